//! `alacrity run`: from a configuration to an exit status.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::boot::{self, BootError, Initrd, KernelImage};
use crate::builder::{BuildError, Machine, SerialOutputs};
use crate::config::{NetBackend, VmConfig};
use crate::console::{ConsoleInput, RawTerminal};
use crate::control::{Control, End};
use crate::event::MainLoop;
use crate::exec::{self, ExecError};
use crate::exit::ExitStatus;
use crate::images::{BootFiles, ImageError};
use crate::kvm::vcpu::{VcpuError, VcpuThread};

/// Our part of the kernel command line: serial console, no chatter (a byte on it costs a VM exit),
/// a panic ends the VM instead of hanging it, and only the two serial ports that exist are probed.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 8250.nr_uarts=2";

/// Why a VM did not run, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No kernel to boot.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The kernel or initrd is refused.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The command cannot be handed over.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The VM cannot be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A vCPU failed.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The host is out of threads, descriptors or the like.
    #[error("cannot {action}")]
    Host {
        /// What we wanted.
        action: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// The metrics file cannot be written.
    #[error("cannot write metrics to {}", path.display())]
    Metrics {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The guest powered off before its command had ended.
    #[error(
        "the guest ended before its --exec command did; does its init come from scripts/guest-image?"
    )]
    NoCommandStatus,
}

impl RunError {
    /// The exit status that tells of it.
    pub fn status(&self) -> ExitStatus {
        match self {
            RunError::Image(_) | RunError::Boot(_) | RunError::Exec(_) => ExitStatus::BadInput,
            RunError::Build(BuildError::Boot(_) | BuildError::Memory(_)) => ExitStatus::BadInput,
            _ => ExitStatus::HostError,
        }
    }
}

fn host(action: &'static str) -> impl Fn(io::Error) -> RunError {
    move |source| RunError::Host { action, source }
}

/// Runs the VM that `config` (validated) describes, in a program that started at `started`, until
/// it ends.
///
/// # Errors
/// [`RunError`]; everything made so far is gone by then.
pub fn run(config: &VmConfig, started: Instant) -> Result<ExitStatus, RunError> {
    let files = BootFiles::of(config)?;
    let mut kernel = KernelImage::open(&files.kernel).map_err(BootError::from)?;
    let payload = config.exec.as_deref().map(exec::payload).transpose()?;
    let mut initrd = files
        .initrd
        .map(|path| Initrd::open(&path, payload.unwrap_or_default()))
        .transpose()
        .map_err(BootError::from)?;

    let control = Arc::new(Control::new(started).map_err(host("make an event"))?);
    let is_exec = config.exec.is_some();
    let mut machine = Machine::new(
        config.memory,
        config.hugepages,
        Arc::clone(&control),
        outputs(is_exec),
    )?;
    let num_vcpus = u8::try_from(config.cpus).unwrap_or(u8::MAX); // validated: at most 32
    let vcpus = machine.create_vcpus(num_vcpus, &mut kernel, initrd.as_mut(), &cmdline(config))?;
    control.memory_ready();

    let (console, power_button) = machine
        .controls((!is_exec).then(ConsoleInput::default))
        .map_err(host("duplicate an event"))?;
    let main_loop = MainLoop::new(Arc::clone(&control), console, power_button, is_exec)
        .map_err(host("make the main loop"))?;
    let terminal = if is_exec {
        None
    } else {
        RawTerminal::new().map_err(host("switch the terminal to raw mode"))?
    };
    let mut threads: Vec<VcpuThread> = Vec::with_capacity(vcpus.len());
    for vcpu in vcpus {
        match vcpu.spawn(machine.vcpu_context()) {
            Ok(thread) => threads.push(thread),
            Err(source) => {
                control.end(End::Escape);
                threads.into_iter().for_each(VcpuThread::join);
                return Err(host("start a vCPU thread")(source));
            }
        }
    }
    let ended = main_loop.run();
    control.end(End::Escape); // if the loop failed, the vCPUs stop all the same
    threads.into_iter().for_each(VcpuThread::join);
    drop(terminal);
    let (mut end, signal) = ended.map_err(host("run the main loop"))?;
    if matches!(end, End::Reset) && machine.was_panic() {
        end = End::Panic;
    }
    if let Some(path) = &config.metrics {
        machine
            .metrics()
            .write(&control, path)
            .map_err(|source| RunError::Metrics {
                path: path.clone(),
                source,
            })?;
    }
    status(end, signal, is_exec, control.command_status())
}

fn status(
    end: End,
    signal: Option<u8>,
    is_exec: bool,
    command_status: Option<u8>,
) -> Result<ExitStatus, RunError> {
    match (end, command_status) {
        (End::Failed(error), _) => Err(error.into()),
        (End::Panic, _) => Ok(ExitStatus::GuestPanic),
        (End::Signal(signal), _) => Ok(ExitStatus::Signal(signal)),
        (_, Some(status)) if is_exec => Ok(ExitStatus::Command(status)),
        (End::PowerOff | End::Reset, None) if is_exec => match signal {
            Some(signal) => Ok(ExitStatus::Signal(signal)),
            None => Err(RunError::NoCommandStatus),
        },
        (End::PowerOff | End::Reset | End::Escape, _) => Ok(ExitStatus::Success),
    }
}

/// With `--exec`, standard output is the command's alone.
fn outputs(is_exec: bool) -> SerialOutputs {
    if is_exec {
        SerialOutputs {
            console: Box::new(io::stderr()),
            command: Box::new(io::stdout()),
        }
    } else {
        SerialOutputs {
            console: Box::new(io::stdout()),
            command: Box::new(io::sink()),
        }
    }
}

/// Our part, the addresses of the interfaces for the guest image's init, and the user's part.
fn cmdline(config: &VmConfig) -> String {
    let mut cmdline = format!("{CMDLINE} {}", boot::reset::CMDLINE);
    for (net_idx, net) in config.nets.iter().enumerate() {
        if let (NetBackend::Tap(_), Some(guest_ip)) = (&net.backend, net.guest_ip) {
            cmdline += &format!(" alacrity.ip=eth{net_idx},{guest_ip}");
            if let Some(host_ip) = net.host_ip {
                cmdline += &format!(",{}", host_ip.addr());
            }
        }
    }
    if !config.cmdline.is_empty() {
        cmdline.push(' ');
        cmdline += &config.cmdline;
    }
    cmdline
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_status_is_ours_however_the_guest_ended_afterwards() {
        for end in [End::PowerOff, End::Reset] {
            let status = status(end, None, true, Some(7)).unwrap();
            assert_eq!(status, ExitStatus::Command(7));
        }
    }

    #[test]
    fn panic_and_signal_outrank_the_command() {
        assert_eq!(
            status(End::Panic, None, true, Some(0)).unwrap(),
            ExitStatus::GuestPanic
        );
        let ended = status(End::Signal(15), Some(15), true, None).unwrap();
        assert_eq!(ended, ExitStatus::Signal(15));
    }

    #[test]
    fn power_off_before_the_command_ended_is_an_error_unless_we_asked() {
        assert!(matches!(
            status(End::PowerOff, None, true, None),
            Err(RunError::NoCommandStatus)
        ));
        assert_eq!(
            status(End::PowerOff, Some(2), true, None).unwrap(),
            ExitStatus::Signal(2)
        );
    }

    #[test]
    fn power_off_after_a_signal_is_success_without_a_command() {
        assert_eq!(
            status(End::PowerOff, Some(15), false, None).unwrap(),
            ExitStatus::Success
        );
    }
}
