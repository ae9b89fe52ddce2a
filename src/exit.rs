//! The exit statuses of `alacrity`, one meaning each. They are a public interface: scripts rely on
//! them.

use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// 0: the guest powered off or rebooted, or the command did its work.
    Success,
    /// 0 to 255: `run --exec` ran the command, and this is the command's own status.
    Command(u8),
    /// 1: `check` found that this host cannot run Linux guests.
    CheckFailed,
    /// 1: `vbus` was refused an operation, `reclaim` got less than wanted, or `bench report --compare`
    /// found something worse.
    OperationFailed,
    /// 2: bad usage or input; nothing was started.
    BadInput,
    /// 3: the guest panicked.
    GuestPanic,
    /// 4: the host or KVM failed.
    HostError,
    /// 128 + N: signal N ended the VM before the guest had powered off.
    Signal(u8),
}

impl ExitStatus {
    /// The number that the parent process sees.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Command(code) => code,
            Self::CheckFailed | Self::OperationFailed => 1,
            Self::BadInput => 2,
            Self::GuestPanic => 3,
            Self::HostError => 4,
            Self::Signal(signal) => signal.saturating_add(128),
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        status.code().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_that_the_help_promises() {
        assert_eq!(ExitStatus::Success.code(), 0);
        assert_eq!(ExitStatus::Command(7).code(), 7);
        assert_eq!(ExitStatus::BadInput.code(), 2);
        assert_eq!(ExitStatus::GuestPanic.code(), 3);
        assert_eq!(ExitStatus::HostError.code(), 4);
        assert_eq!(ExitStatus::Signal(15).code(), 143);
        assert_eq!(ExitStatus::Signal(255).code(), 255);
    }
}
