//! A bus of `alacrity host`.
//!
//! One thread keeps the VM a member of its bus: it joins again when the daemon comes back, and tells
//! the guest's client what the daemon says. Doorbells and interrupts of devices go between guest and
//! daemon without it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alacrity_devices::GuestRam;
use alacrity_devices::metrics::Counter;
use alacrity_devices::vbus_pci::{OnLoss, Uplink};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::io::Errno;
use serde::Serialize;
use vbus::client::{ClientError, Connection, Remote};
use vbus::memory::Region;
use vbus::verbs::{EventSink, Handle, InterfaceId, ShmRequest, Verbs};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::follower::Follower;
use super::session::Session;
use crate::host::socket::{self, SocketError};
use crate::reclaim::visitors::Lender;
use vbus::threads::{self, ThreadClass};

/// A daemon that takes longer to say what is on its bus does not keep the guest waiting.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(1);

/// What a VM says about itself, as [`vbus::bus::Member::report`] takes it.
pub type Report = Box<dyn Fn() -> String + Send>;

/// Why the VM is not on the bus.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// No place where the daemon's socket could be.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Nothing says where the daemon's socket is.
    #[error(
        "--bus {bus}: XDG_RUNTIME_DIR is not set, so there is no default socket; name the daemon's with --host"
    )]
    NoDefault {
        /// The bus.
        bus: String,
    },
    /// No daemon.
    #[error("--bus {bus}: no daemon answers at {}; start one with `alacrity host`, or name its socket with --host", socket.display())]
    Connect {
        /// The bus.
        bus: String,
        /// Where we looked.
        socket: PathBuf,
        /// Why.
        source: ClientError,
    },
    /// The daemon has no such bus.
    #[error(
        "--bus {bus}: the daemon at {} has no bus of this name; make it with `alacrity vbus mkdir config/instances/{bus}`",
        socket.display()
    )]
    NoBus {
        /// The bus.
        bus: String,
        /// The daemon's socket.
        socket: PathBuf,
    },
    /// The daemon has one, but not for us.
    #[error("--bus {bus}: the daemon at {} refuses", socket.display())]
    Join {
        /// The bus.
        bus: String,
        /// The daemon's socket.
        socket: PathBuf,
        /// Why.
        source: ClientError,
    },
    /// The daemon does not take guest RAM: too much of it above all.
    #[error("--bus {bus}: the daemon at {} does not take the guest's memory; choose less with --memory", socket.display())]
    Memory {
        /// The bus.
        bus: String,
        /// The daemon's socket.
        socket: PathBuf,
        /// Why.
        source: Errno,
    },
    /// The daemon cannot do with memory that comes and goes.
    #[error(
        "--bus {bus}: the daemon at {} does not serve guests whose memory is reclaimed; start it from this version of alacrity (on a host with asynchronous I/O), or leave --hints and --swap out",
        socket.display()
    )]
    Pages {
        /// The bus.
        bus: String,
        /// The daemon's socket.
        socket: PathBuf,
        /// Why.
        source: Errno,
    },
    /// The host is out of threads or descriptors.
    #[error("cannot start the thread that follows the bus")]
    Thread {
        /// What the host said.
        source: std::io::Error,
    },
}

impl DaemonError {
    /// True if the host is to blame, not what the user asked for.
    pub fn is_hosts(&self) -> bool {
        matches!(self, DaemonError::Thread { .. })
    }
}

/// What happened to a membership.
#[derive(Debug, Default, Serialize)]
pub struct DaemonMetrics {
    /// Times that the bus was joined.
    pub joins: Counter,
    /// Times that the daemon was lost.
    pub losses: Counter,
}

/// Which bus, and where.
#[derive(Debug, Clone)]
pub(super) struct Place {
    socket: PathBuf,
    pub bus: String,
    /// How long the daemon may take for an answer before it counts as lost.
    pub limit: Duration,
}

/// [`Place::limit`]: the guest's processor stands still meanwhile, and Linux takes one for hung after
/// 20 s. A device answers within milliseconds, on a host that is very busy within a second or two.
const LIMIT: Duration = Duration::from_secs(10);

impl Place {
    pub fn join(&self) -> Result<Remote, DaemonError> {
        let (bus, socket) = (self.bus.clone(), self.socket.clone());
        let connection = match Connection::connect_with_limit(&self.socket, self.limit) {
            Ok(connection) => connection,
            Err(source) => {
                return Err(DaemonError::Connect {
                    bus,
                    socket,
                    source,
                });
            }
        };
        connection.join(&self.bus).map_err(|source| match source {
            ClientError::Join {
                source: Errno::NOENT,
                ..
            } => DaemonError::NoBus { bus, socket },
            source => DaemonError::Join {
                bus,
                socket,
                source,
            },
        })
    }

    /// Lets the daemon see all of `ram`, at the guest's own addresses, and tells it by `lender` which of
    /// it is there, if some may be away.
    pub fn register(
        &self,
        remote: &Remote,
        ram: &GuestRam,
        lender: Option<&Lender>,
    ) -> Result<(), DaemonError> {
        let introduced = lender.map_or(Ok(()), |lender| lender.introduce(remote));
        introduced.map_err(|source| DaemonError::Pages {
            bus: self.bus.clone(),
            socket: self.socket.clone(),
            source,
        })?;
        for region in ram.iter() {
            let start = region.start_addr();
            let registered = usize::try_from(region.len())
                .map_err(|_| Errno::INVAL)
                .and_then(|len| Region::from_ram(ram, start, len).map_err(|_| Errno::INVAL))
                .and_then(|region| remote.add_region(start.raw_value(), &region));
            registered.map_err(|source| DaemonError::Memory {
                bus: self.bus.clone(),
                socket: self.socket.clone(),
                source,
            })?;
        }
        Ok(())
    }
}

/// A bus that was joined, before there is a guest.
pub struct DaemonBus {
    pub(super) place: Place,
    pub(super) remote: Remote,
}

impl fmt::Debug for DaemonBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DaemonBus")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl DaemonBus {
    /// Joins `bus` of the daemon at `socket`, or at the default socket.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub fn join(bus: &str, socket: Option<&Path>) -> Result<Self, DaemonError> {
        let bus = bus.to_owned();
        let socket = match socket::path(socket) {
            Err(SocketError::NoDefault) => return Err(DaemonError::NoDefault { bus }),
            path => path?,
        };
        let place = Place {
            socket,
            bus,
            limit: LIMIT,
        };
        let remote = place.join()?;
        Ok(DaemonBus { place, remote })
    }

    /// The way to this bus for a guest with `ram`, which the daemon can read and write from now on.
    /// `lender` is there if memory of the guest may be away. The daemon shows what `report` returns in its
    /// control tree.
    ///
    /// # Errors
    /// [`DaemonError::Memory`], [`DaemonError::Thread`].
    pub fn uplink(
        self,
        ram: GuestRam,
        lender: Option<Lender>,
        report: Report,
    ) -> Result<DaemonUplink, DaemonError> {
        let thread = |source| DaemonError::Thread { source };
        self.place.register(&self.remote, &ram, lender.as_ref())?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                has_daemon: true,
                ..State::default()
            }),
            changed: Condvar::new(),
            wake: EventFd::new(EFD_NONBLOCK).map_err(thread)?,
            lender: lender.clone(),
            metrics: Arc::default(),
        });
        let follower = Follower {
            lender,
            shared: Arc::clone(&shared),
            place: self.place,
            ram,
            report,
        };
        let remote = self.remote;
        let follow = move || follower.run(remote);
        threads::spawn(ThreadClass::Uplink, "vbus-uplink", follow).map_err(thread)?;
        shared.metrics.joins.add(1);
        Ok(DaemonUplink { shared })
    }
}

/// The way to a bus of a daemon. Its thread ends soon after it was dropped; nobody waits for that,
/// since the daemon could keep it waiting.
pub struct DaemonUplink {
    shared: Arc<Shared>,
}

impl fmt::Debug for DaemonUplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DaemonUplink").finish_non_exhaustive()
    }
}

impl DaemonUplink {
    /// Its counters.
    pub fn metrics(&self) -> Arc<DaemonMetrics> {
        Arc::clone(&self.shared.metrics)
    }

    /// What ends its use.
    pub fn hang_up(&self) -> HangUp {
        HangUp(Arc::clone(&self.shared))
    }
}

impl Drop for DaemonUplink {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// Ends a VM's use of a daemon's bus.
pub struct HangUp(Arc<Shared>);

impl fmt::Debug for HangUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HangUp").finish_non_exhaustive()
    }
}

impl HangUp {
    /// Hangs up for good: calls of the guest that wait for the daemon, which may have been stopped,
    /// return at once.
    pub fn now(&self) {
        // Before the thread that serves the session lets go of it.
        let remote = self.0.session().and_then(|session| session.remote());
        self.0.stop();
        if let Some(remote) = remote {
            remote.hang_up();
        }
    }
}

/// What the thread and its users share.
pub(super) struct Shared {
    state: Mutex<State>,
    /// The thread has changed `state`.
    changed: Condvar,
    /// Readable when others have changed `state`.
    pub wake: EventFd,
    lender: Option<Lender>,
    pub metrics: Arc<DaemonMetrics>,
}

#[derive(Default)]
struct State {
    is_stopped: bool,
    /// The guest's client, if it has one.
    session: Option<Arc<Session>>,
    /// The thread has a daemon, or no reason to think that it will not have one in a moment.
    has_daemon: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn stop(&self) {
        self.lock().is_stopped = true;
        self.wake();
    }

    fn wake(&self) {
        // Fails only when the counter is full, and then it is readable.
        let _ = self.wake.write(1);
    }

    /// The thread has a daemon, or not.
    pub fn set_daemon(&self, has_daemon: bool) {
        self.lock().has_daemon = has_daemon;
        self.changed.notify_all();
    }

    /// Waits until what is on the bus has been told to `session`, if there is a daemon that answers.
    fn wait_until_begun(&self, session: &Session) {
        let is_waiting = |state: &mut State| state.has_daemon && !session.has_begun();
        self.changed
            .wait_while_for(&mut self.lock(), is_waiting, BEGIN_TIMEOUT);
    }

    pub fn is_stopped(&self) -> bool {
        self.lock().is_stopped
    }

    /// The client that is to be served.
    pub fn session(&self) -> Option<Arc<Session>> {
        let session = self.lock().session.clone();
        session.filter(|session| !session.is_over())
    }
}

impl Uplink for DaemonUplink {
    /// What is on the bus has been told when this returns. Never fails: as long as there is no daemon,
    /// the bus has no interfaces.
    fn attach(
        &self,
        events: Arc<dyn EventSink>,
        on_loss: OnLoss,
    ) -> Result<Arc<dyn Verbs + Send + Sync>, Errno> {
        let session = Session::new(events, on_loss, self.shared.lender.clone());
        self.shared.lock().session = Some(Arc::clone(&session));
        self.shared.wake();
        self.shared.wait_until_begun(&session);
        Ok(Arc::new(Client {
            session,
            shared: Arc::clone(&self.shared),
        }))
    }
}

/// A guest's hold on its session.
struct Client {
    session: Arc<Session>,
    shared: Arc<Shared>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.session.end();
        self.shared.wake();
    }
}

impl Verbs for Client {
    fn open(&self, id: InterfaceId, version: u32) -> Result<Handle, Errno> {
        self.session.open(id, version)
    }

    fn call(&self, handle: Handle, func: u32, data: &mut [u8]) -> Result<u32, Errno> {
        self.session.call(handle, func, data)
    }

    fn shm(&self, handle: Handle, request: ShmRequest) -> Result<(), Errno> {
        self.session.shm(handle, request)
    }

    fn close(&self, handle: Handle) -> Result<(), Errno> {
        self.session.close(handle)
    }
}
