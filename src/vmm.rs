//! `alacrity run`: from a configuration to an exit status.

use std::io::{self, Write};
use std::mem;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use alacrity_devices::error;
use ipnet::Ipv4Net;
use vbus::threads::ThreadClass;

use crate::boot::{self, BootError, Initrd, KernelImage};
use crate::builder::{BuildError, Machine, SerialOutputs};
use crate::config::{NetBackend, VmConfig};
use crate::console::{self, ConsoleInput, GuestOutput, RawTerminal};
use crate::control::{Control, End};
use crate::control_socket::{ControlSocket, ControlSocketError, Place, RunningVm, VmIdentity};
use crate::event::MainLoop;
use crate::exec::{self, ExecError};
use crate::exit::ExitStatus;
use crate::footprint;
use crate::kvm::vcpu::{VcpuError, VcpuThread};
use crate::memory::resident_bytes;
use crate::metrics::{MetricsError, MetricsFile};
use crate::preflight::{self, PreflightError};
use crate::reclaim::policy::governor::GovernorThread;
use crate::reclaim::reclaimer::OnFailure;
use crate::resources::{HostResources, ResourceError};
use crate::sandbox::{self, Paths, SandboxError, privileges};

/// Our part of the kernel command line: serial console, no chatter (a byte on it costs a VM exit),
/// a panic ends the VM instead of hanging it, and only the two serial ports that exist are probed.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 8250.nr_uarts=2";

/// Why a VM did not run, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The kernel or initrd is refused.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A disk, a network or the like is refused.
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// This host cannot run the VM.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
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
    /// The metrics have no place.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// Memory that was taken from the guest is gone, so the guest cannot go on.
    #[error("the guest's memory is lost: {0}")]
    MemoryLost(String),
    /// The guest crashed before its command had ended.
    #[error("the guest's CPU gave up (triple fault) before the --exec command had ended")]
    TripleFault,
    /// The program cannot be confined.
    #[error("cannot confine this VM; --sandbox off goes without")]
    Sandbox(#[from] SandboxError),
    /// The guest ended and never ran its command.
    #[error(
        "the guest ended before it ran its --exec command; does its init come from scripts/guest-image?"
    )]
    CommandNotStarted,
}

impl RunError {
    /// The exit status that tells of it.
    pub fn status(&self) -> ExitStatus {
        match self {
            RunError::Boot(_)
            | RunError::Exec(_)
            | RunError::Metrics(MetricsError::Open { .. })
            | RunError::Resource(_)
            | RunError::Preflight(_) => ExitStatus::BadInput,
            RunError::TripleFault => ExitStatus::GuestPanic,
            RunError::Build(BuildError::Boot(_) | BuildError::Memory(_)) => ExitStatus::BadInput,
            RunError::Build(BuildError::Bus(error)) if !error.is_hosts() => ExitStatus::BadInput,
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
    footprint::share_one_heap();
    let files = preflight::input(config)?;
    let mut kernel = KernelImage::open(&files.kernel).map_err(BootError::from)?;
    let payload = config.exec.as_deref().map(exec::payload).transpose()?;
    let mut initrd = files
        .initrd
        .map(|path| Initrd::open(&path, payload.unwrap_or_default()))
        .transpose()
        .map_err(BootError::from)?;

    sandbox::start(
        config.sandbox,
        &paths(config),
        privileges::none,
        config.user,
    )?;
    let resources = HostResources::open(config)?;
    preflight::kvm(config.force)?;
    let metrics_file = config
        .metrics
        .as_deref()
        .map(MetricsFile::open)
        .transpose()?;

    let control = Arc::new(Control::new(started).map_err(host("make an event"))?);
    let is_exec = config.exec.is_some();
    let mut machine = Machine::new(
        config.memory,
        config.hugepages,
        Arc::clone(&control),
        outputs(is_exec, &control),
    )?;
    resources.plug_into(&mut machine, on_lost_memory(&control))?;
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
                machine.end();
                VcpuThread::join_all(threads);
                return Err(host("start a vCPU thread")(source));
            }
        }
    }
    let governor = start_governor(config, &machine);
    let control_socket =
        open_control_socket(config, files.kernel, &machine, &control, governor.as_ref());
    footprint::forget_start();
    sandbox::enter(ThreadClass::Main);
    let ended = main_loop.run();
    control.end(End::Escape); // if the loop failed, the vCPUs stop all the same
    machine.end();
    if let Ok((End::MemoryLost(why), _)) = ended {
        if let Some(control_socket) = control_socket {
            control_socket.abandon();
        }
        if let Some(governor) = governor {
            governor.abandon();
        }
        let written = write_metrics(metrics_file.as_ref(), &machine, &control);
        // Threads may wait for that memory, and nothing but the end of the process lets them go
        // without bytes that never were.
        mem::forget((threads, machine));
        return written.and(Err(RunError::MemoryLost(why)));
    }
    drop(control_socket);
    drop(governor);
    VcpuThread::join_all(threads);
    drop(terminal);
    let (mut end, signal) = ended.map_err(host("run the main loop"))?;
    if matches!(end, End::Reset) && machine.was_panic() {
        end = End::Panic;
    }
    write_metrics(metrics_file.as_ref(), &machine, &control)?;
    let command = match (
        control.command_status(),
        control.timeline().command_us.get(),
    ) {
        _ if !is_exec => Command::None,
        (Some(status), _) => Command::Ended(status),
        (None, Some(_)) => Command::Started,
        (None, None) => Command::NotStarted,
    };
    status(end, signal, command)
}

/// The files that are used by name while the VM runs, and when it ends.
fn paths(config: &VmConfig) -> Paths {
    // Rules are for what is there; who opens the socket tells of a place that cannot be made. Another user
    // may not remove the socket from it: whoever looks for VMs next does.
    let sockets = Place::default_one()
        .ok()
        .filter(|place| config.user.is_none() && place.make().is_ok());
    Paths {
        // Counters of our own memory, and what the governor looks at.
        read: vec!["/proc".into(), "/sys/fs/cgroup".into()],
        write: sockets
            .map(|place| place.dir().to_owned())
            .into_iter()
            .collect(),
    }
}

fn write_metrics(
    file: Option<&MetricsFile>,
    machine: &Machine,
    control: &Control,
) -> Result<(), RunError> {
    file.map_or(Ok(()), |file| Ok(file.write(machine.metrics(), control)?))
}

/// Ends the VM when memory that was taken from the guest cannot be given back.
fn on_lost_memory(control: &Arc<Control>) -> OnFailure {
    let control = Arc::clone(control);
    let is_told = AtomicBool::new(false);
    Box::new(move |why| {
        if is_told.swap(true, Ordering::Relaxed) || control.end(End::MemoryLost(why.into())) {
            return;
        }
        // The VM is ending already, and who ends it may wait for that memory.
        console::restore_terminal();
        let _ = writeln!(io::stderr(), "error: {}", RunError::MemoryLost(why.into()));
        process::exit(ExitStatus::HostError.code().into());
    })
}

/// Lets memory be taken without anybody asking each time. A VM that does not runs as well.
fn start_governor(config: &VmConfig, machine: &Machine) -> Option<GovernorThread> {
    let ram = machine.ram().clone();
    let started = GovernorThread::start(machine.policy()?, config.memory_target, move || {
        resident_bytes(&ram)
    });
    let governor = started
        .inspect_err(|error| tracing::warn!("memory is taken on request only: {error}"))
        .ok()?;
    machine
        .metrics()
        .add("reclaim", "governor", governor.stat());
    Some(governor)
}

/// Lets others ask about the VM. One that nobody can ask runs as well.
fn open_control_socket(
    config: &VmConfig,
    kernel: PathBuf,
    machine: &Machine,
    control: &Arc<Control>,
    governor: Option<&GovernorThread>,
) -> Option<ControlSocket> {
    let vm = RunningVm {
        identity: VmIdentity {
            name: config.name.clone(),
            kernel,
            cpus: config.cpus,
            memory_bytes: config.memory,
        },
        control: Arc::clone(control),
        metrics: Arc::clone(machine.metrics()),
        ram: machine.ram().clone(),
        policy: machine.policy(),
        target: governor.map(GovernorThread::target),
    };
    let opened = Place::default_one()
        .map_err(ControlSocketError::from)
        .and_then(|place| ControlSocket::open(&place, Arc::new(vm)));
    opened
        .inspect_err(|error| {
            let why = error::chain(error);
            tracing::warn!("`alacrity ps` and the like do not find this VM: {why}");
        })
        .ok()
}

/// How far the `--exec` command got.
#[derive(Debug, Clone, Copy)]
enum Command {
    None,
    NotStarted,
    Started,
    Ended(u8),
}

fn status(end: End, signal: Option<u8>, command: Command) -> Result<ExitStatus, RunError> {
    match (end, command) {
        (End::Failed(error), _) => Err(error.into()),
        (End::MemoryLost(why), _) => Err(RunError::MemoryLost(why)),
        (End::Panic, _) => Ok(ExitStatus::GuestPanic),
        (End::Signal(signal), _) => Ok(ExitStatus::Signal(signal)),
        (_, Command::Ended(status)) => Ok(ExitStatus::Command(status)),
        (_, Command::Started | Command::NotStarted) if signal.is_some() => {
            Ok(ExitStatus::Signal(signal.unwrap_or_default()))
        }
        (End::TripleFault, Command::Started | Command::NotStarted) => Err(RunError::TripleFault),
        (End::PowerOff | End::Reset, Command::NotStarted) => Err(RunError::CommandNotStarted),
        // A command may well be `poweroff`.
        (End::PowerOff | End::Reset | End::TripleFault | End::Escape, _) => Ok(ExitStatus::Success),
    }
}

/// With `--exec`, standard output is the command's alone.
fn outputs(is_exec: bool, control: &Arc<Control>) -> SerialOutputs {
    let stdout = Box::new(GuestOutput::new(io::stdout(), Arc::clone(control)));
    if is_exec {
        SerialOutputs {
            console: Box::new(GuestOutput::new(io::stderr(), Arc::clone(control))),
            command: stdout,
        }
    } else {
        SerialOutputs {
            console: stdout,
            command: Box::new(io::sink()),
        }
    }
}

/// Our part, the addresses of the interfaces for the guest image's init, and the user's part.
fn cmdline(config: &VmConfig) -> String {
    let mut cmdline = format!("{CMDLINE} {}", boot::reset::CMDLINE);
    let mut add_address = |dev: String, guest_ip: Option<Ipv4Net>, host_ip: Option<Ipv4Net>| {
        if let Some(guest_ip) = guest_ip {
            cmdline += &format!(" alacrity.ip={dev},{guest_ip}");
            if let Some(host_ip) = host_ip {
                cmdline += &format!(",{}", host_ip.addr());
            }
        }
    };
    for (net_idx, net) in config.nets.iter().enumerate() {
        if let NetBackend::Tap(_) = net.backend {
            add_address(format!("eth{net_idx}"), net.guest_ip, net.host_ip);
        }
    }
    // Their names depend on when the guest finds them.
    for (venet_idx, venet) in config.venets.iter().enumerate() {
        let mac = venet.effective_mac(venet_idx);
        add_address(mac.to_string(), venet.guest_ip, venet.host_ip);
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
            let status = status(end, None, Command::Ended(7)).unwrap();
            assert_eq!(status, ExitStatus::Command(7));
        }
    }

    #[test]
    fn panic_and_signal_outrank_the_command() {
        let panicked = status(End::Panic, None, Command::Ended(0)).unwrap();
        assert_eq!(panicked, ExitStatus::GuestPanic);
        let ended = status(End::Signal(15), Some(15), Command::Started).unwrap();
        assert_eq!(ended, ExitStatus::Signal(15));
    }

    #[test]
    fn power_off_before_the_command_started_is_an_error_unless_we_asked() {
        assert!(matches!(
            status(End::PowerOff, None, Command::NotStarted),
            Err(RunError::CommandNotStarted)
        ));
        let ended = status(End::PowerOff, Some(2), Command::NotStarted).unwrap();
        assert_eq!(ended, ExitStatus::Signal(2));
    }

    #[test]
    fn triple_fault_is_a_way_to_reset_but_not_to_end_a_command() {
        let ended = status(End::TripleFault, None, Command::None).unwrap();
        assert_eq!(ended, ExitStatus::Success);
        let error = status(End::TripleFault, None, Command::Started).unwrap_err();
        assert_eq!(error.status(), ExitStatus::GuestPanic);
    }

    #[test]
    fn command_that_powers_off_is_success() {
        let ended = status(End::PowerOff, None, Command::Started).unwrap();
        assert_eq!(ended, ExitStatus::Success);
    }

    #[test]
    fn power_off_after_a_signal_is_success_without_a_command() {
        let ended = status(End::PowerOff, Some(15), Command::None).unwrap();
        assert_eq!(ended, ExitStatus::Success);
    }
}
