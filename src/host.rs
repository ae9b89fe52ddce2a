//! `alacrity host`: the process that buses, devices and their data paths live in.
//!
//! ```text
//! administrator ── mount ──▶ filesystem ──┐
//! alacrity vbus ── socket ─▶ vbus::server ┼─▶ vbus::tree ─▶ vbus::bus::Host ─▶ devices
//! clients ──────── socket ─▶ vbus::server ┴──── verbs ───▶     │
//!                              │                state file ◀── changes
//!                              └─▶ vms ── control sockets ──▶ VMs of this user
//! ```
//!
//! [`run`] reads top to bottom: everything that can be refused comes before anything is made, and
//! what is made goes away in the opposite order, whatever ends the daemon.

pub mod confinement;
pub mod daemon_id;
pub mod filesystem;
pub mod fuse_mount;
pub mod handles;
pub mod inodes;
pub mod mount;
pub mod mount_table;
pub mod socket;
pub mod state_file;
pub mod unmounter;
pub mod vms;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use alacrity_devices::venet::{LoopbackClass, SwitchClass, TapClass};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use vbus::bus::Host;
use vbus::device::DeviceClass;
use vbus::server::{Listening, ServerError, ServerLimits};
use vbus::state::{RestoreError, State};
use vbus::threads::ThreadClass;

use crate::cli::HostArgs;
use crate::control_socket::Place;
use crate::exit::ExitStatus;
use crate::footprint;
use crate::sandbox::{self, Mode, SandboxError};
use mount::{MountError, MountPoint};
use socket::SocketError;
use state_file::{Saver, StateFile, StateFileError};
use vms::ControlledVms;

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No place for the socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// No state file.
    #[error(transparent)]
    StateFile(#[from] StateFileError),
    /// Nobody can connect.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The state file speaks of what this host does not have.
    #[error("cannot restore state {}", path.display())]
    Restore {
        /// The file.
        path: PathBuf,
        /// What and why.
        source: RestoreError,
    },
    /// The mount would hide the socket.
    #[error("socket {} is below the mount point; choose another place for one of them", socket.display())]
    HiddenSocket {
        /// The socket.
        socket: PathBuf,
    },
    /// Two classes of one name.
    #[error("device class {name} cannot be registered")]
    Class {
        /// Its name.
        name: &'static str,
        /// Why.
        source: Errno,
    },
    /// The program cannot be confined.
    #[error("cannot confine this daemon; --sandbox off goes without")]
    Sandbox(#[from] SandboxError),
    /// The host is out of descriptors or the like.
    #[error("cannot wait for signals")]
    Signals {
        /// What the host said.
        source: io::Error,
    },
}

impl HostError {
    /// The exit status that tells of it.
    pub fn status(&self) -> ExitStatus {
        match self {
            HostError::Class { .. }
            | HostError::Signals { .. }
            | HostError::Sandbox(_)
            | HostError::Server(ServerError::Start { .. })
            | HostError::StateFile(StateFileError::Thread { .. }) => ExitStatus::HostError,
            _ => ExitStatus::BadInput,
        }
    }
}

/// Runs the daemon until SIGINT, SIGTERM, SIGHUP or SIGQUIT; `ready` is called with one line for the
/// user once all is up.
///
/// # Errors
/// [`HostError`]; everything made so far is gone by then.
pub fn run(args: &HostArgs, ready: impl FnOnce(&str)) -> Result<ExitStatus, HostError> {
    footprint::share_one_heap();
    let socket = socket::path(args.socket.as_deref())?;
    let file = args.state.as_deref().map(StateFile::new).transpose()?;
    let state = match &file {
        Some(file) => file.load::<State>()?,
        None => None,
    };
    if args.socket.is_none() {
        socket::make_default_dir(&socket)?; // where the mount point may be, too
    }
    let mount_point = args.mount.as_deref().map(MountPoint::check).transpose()?;
    if mount_point
        .as_ref()
        .is_some_and(|place| place.hides(&socket))
    {
        return Err(HostError::HiddenSocket { socket });
    }
    // From here on a signal is a wish that is granted below, not the end.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT])
        .map_err(|source| HostError::Signals { source })?;

    raise_descriptor_limit();
    let listening = Listening::bind(&socket)?;
    let mount_point = mount_point.map(MountPoint::replace_stale).transpose()?;
    // Without a place for their sockets there are no VMs that could be asked.
    let vms = Place::default_one().ok();
    // Each thread from here on; this one, once it has mounted.
    sandbox::start(
        args.sandbox.map_or(Mode::default(), Into::into),
        &confinement::paths(&socket, file.as_ref(), vms.as_ref()),
        confinement::capabilities,
        None,
    )?;
    let host = host()?;
    if let Some(place) = vms {
        host.show_vms(Arc::new(ControlledVms::new(place, &host)));
    }
    let saver = match file {
        Some(file) => Some(keep_state(&host, file, state)?),
        None => None,
    };
    let server = listening.serve(Arc::clone(&host), ServerLimits::default())?;
    let mount = mount_point
        .map(|place| place.mount(host.tree(), args.allow_other))
        .transpose()?;

    footprint::forget_start();
    sandbox::enter(ThreadClass::Daemon);
    let tree = mount.as_ref().map_or(String::new(), |mount| {
        format!(", control tree on {}", mount.path().display())
    });
    ready(&format!("ready: socket {}{tree}\n", socket.display()));
    if let Some(signal) = signals.forever().next() {
        tracing::info!("host: signal {signal}: ending");
    }
    drop(mount);
    drop(server);
    drop(saver);
    Ok(ExitStatus::Success)
}

/// Allows as many descriptors as we may have: each ring that is shared takes up to three.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(
            "host: still limited to {:?} descriptors: {error}",
            limit.current
        );
    }
}

/// A host with all device classes.
fn host() -> Result<Arc<Host>, HostError> {
    let host = Host::new();
    let classes: [Arc<dyn DeviceClass>; 3] = [
        Arc::new(LoopbackClass),
        Arc::new(SwitchClass),
        Arc::new(TapClass::default()),
    ];
    for class in classes {
        let name = class.name();
        host.register_class(class)
            .map_err(|source| HostError::Class { name, source })?;
    }
    Ok(host)
}

/// Restores `state` and keeps it from then on.
fn keep_state(host: &Arc<Host>, file: StateFile, state: Option<State>) -> Result<Saver, HostError> {
    if let Some(state) = state {
        host.restore(&state).map_err(|source| HostError::Restore {
            path: file.path().into(),
            source,
        })?;
    }
    let kept = Arc::clone(host);
    let saver = Saver::start(file, move || kept.state())?;
    let notice = saver.notice();
    host.on_change(Box::new(move || notice.changed()));
    Ok(saver)
}
