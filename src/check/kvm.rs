//! Opening `/dev/kvm`: is it there, may we, is it what we need?

use std::fs::OpenOptions;
use std::io;

use kvm_ioctls::Kvm;

use super::{Item, State, Topic};
use crate::kvm::vm::REQUIRED_CAPS;

const DEVICE: &str = "/dev/kvm";
/// The only version there is (KVM api.rst, `KVM_GET_API_VERSION`).
const API_VERSION: i32 = 12;

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// No such device.
    #[error(
        "no {DEVICE}; switch on virtualization in the firmware and load kvm-intel or kvm-amd, or use scripts/lab"
    )]
    Missing {
        /// What the kernel said.
        source: io::Error,
    },
    /// The device is not for this user.
    #[error(
        "no permission for {DEVICE}; join its group (sudo usermod -aG kvm $USER), then log in again"
    )]
    Denied {
        /// What the kernel said.
        source: io::Error,
    },
    /// Some other failure.
    #[error("cannot open {DEVICE}; look for kvm in the kernel log, or use scripts/lab")]
    Open {
        /// What the kernel said.
        source: io::Error,
    },
    /// Something else than KVM, or another KVM than Linux has had since 2007.
    #[error(
        "{DEVICE} has API version {found}, want {API_VERSION}; update the host kernel, or use scripts/lab"
    )]
    ApiVersion {
        /// What the kernel said.
        found: i32,
    },
}

impl KvmError {
    fn of(source: io::Error) -> Self {
        match state_of(&source) {
            State::Missing => Self::Missing { source },
            State::Denied => Self::Denied { source },
            _ => Self::Open { source },
        }
    }

    fn state(&self) -> State {
        match self {
            Self::Missing { .. } => State::Missing,
            Self::Denied { .. } => State::Denied,
            Self::Open { .. } | Self::ApiVersion { .. } => State::Broken,
        }
    }
}

/// What it says about a device node that it cannot be opened.
fn state_of(error: &io::Error) -> State {
    match error.kind() {
        io::ErrorKind::NotFound => State::Missing,
        io::ErrorKind::PermissionDenied => State::Denied,
        _ => State::Broken,
    }
}

/// Opens KVM and checks its version.
///
/// # Errors
/// [`KvmError`], with its remedy.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|errno| KvmError::of(errno.into()))?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        found => Err(KvmError::ApiVersion { found }),
    }
}

/// Opens a device node of another kind for reading and writing, to see whether that works.
pub(super) fn can_open(path: &str) -> Result<(), (State, io::Error)> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) => Err((state_of(&error), error)),
    }
}

/// The device itself.
pub(super) fn device() -> Item {
    let topic = Topic::required("kvm", DEVICE);
    match open() {
        Ok(_) => topic.ok(format!("API version {API_VERSION}")),
        Err(error) => {
            let text = error.to_string();
            let (detail, remedy) = text.split_once("; ").unwrap_or((&text, ""));
            topic.not_ok(error.state(), detail, remedy)
        }
    }
}

/// What KVM must be able to do for us.
pub(super) fn capabilities() -> Item {
    let topic = Topic::required("kvm_capabilities", "KVM capabilities");
    let Ok(kvm) = open() else {
        return topic.not_ok(State::Missing, "unknown without KVM", "see /dev/kvm above");
    };
    let missing: Vec<_> = REQUIRED_CAPS
        .into_iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .map(|(_, name)| name)
        .collect();
    if missing.is_empty() {
        return topic.ok(format!("all {} needed", REQUIRED_CAPS.len()));
    }
    topic.not_ok(
        State::Missing,
        format!("no {}", missing.join(", no ")),
        "use a newer host kernel (6.1 has them all), or scripts/lab",
    )
}
