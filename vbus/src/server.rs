//! The verbs for other processes of this machine, on a Unix socket.
//!
//! One thread accepts; one thread per client, `vbus-PID`, waits for its requests and runs the verbs,
//! so that a slow call delays only the client that called. No thread ever waits for a client: what
//! cannot be sent goes into a bounded queue, and a client that fills it is cut off.
//!
//! A client is a process, by its pidfd: what it is a member of, has open and shares ends when its
//! socket is closed or the process dies, whichever is first. Whatever else it does wrong ends only
//! its own connection; that is counted in [`ServerStats`] and logged.
//!
//! Rules and messages are in `docs/abi-socket.md`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use rustix::net::SocketType;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Host;

mod accept;
mod admin;
mod listener;
mod outbox;
mod peer;
mod post;
mod session;
mod share;
mod space;

pub use listener::{BindError, Listener};

use crate::threads::{self, ThreadClass};
use accept::Clients;
use post::Poster;

/// How long [`Server::shutdown`] waits for threads in all. They need it only if a device is slow to
/// close, or if the kernel is with a file that a client sent.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// There is no socket to listen on.
    #[error("cannot listen on {}", path.display())]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        source: BindError,
    },
    /// The host is out of descriptors or threads.
    #[error("cannot {what} of the server")]
    Start {
        /// The operation.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// How many clients are taken. Each takes a thread and about 100 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Connected at a time.
    pub clients: usize,
    /// Of these, of one user.
    pub clients_per_uid: usize,
}

impl Default for ServerLimits {
    fn default() -> Self {
        ServerLimits {
            clients: 512,
            clients_per_uid: 256,
        }
    }
}

/// What a server did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Clients that are connected now.
    pub clients: usize,
    /// Clients that were taken.
    pub accepted: u64,
    /// Clients that were turned away: too many, or not to be identified.
    pub refused: u64,
    /// Clients that were cut off since they broke the rules of the protocol.
    pub cut_off: u64,
}

#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicU64,
    refused: AtomicU64,
    cut_off: AtomicU64,
}

/// What all threads of a server know.
struct Shared {
    host: Arc<Host>,
    limits: ServerLimits,
    /// Readable from the moment on when the server stops.
    stop: EventFd,
    /// Readable when a client's thread has ended.
    ended: EventFd,
    clients: Mutex<Clients>,
    /// Notified when a client's thread has ended.
    left: Condvar,
    counters: Counters,
    /// Shows that this host has asynchronous I/O; each client that needs it gets its own.
    probe: Option<Poster>,
}

impl Shared {}

/// Serves the verbs of a host's buses on a Unix socket. Dropping it shuts it down.
pub struct Server {
    shared: Arc<Shared>,
    accept: Option<JoinHandle<()>>,
    listener: Arc<Listener>,
}

/// A socket on which nobody is served yet: clients that connect wait. So a host can be made ready
/// with the certainty that no other server has its place.
#[derive(Debug)]
pub struct Listening {
    listener: Listener,
}

impl Listening {
    /// Listens on `path`, as [`Server::bind`].
    ///
    /// # Errors
    /// [`ServerError::Bind`].
    pub fn bind(path: &Path) -> Result<Self, ServerError> {
        let listener =
            Listener::bind(path, SocketType::SEQPACKET).map_err(|source| ServerError::Bind {
                path: path.to_owned(),
                source,
            })?;
        Ok(Listening { listener })
    }

    /// Serves `host`, also to those who wait.
    ///
    /// # Errors
    /// [`ServerError::Start`].
    pub fn serve(self, host: Arc<Host>, limits: ServerLimits) -> Result<Server, ServerError> {
        let listener = Arc::new(self.listener);
        let eventfd = || {
            let what = "make an eventfd";
            EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)
                .map_err(|source| ServerError::Start { what, source })
        };
        let shared = Arc::new(Shared {
            host,
            limits,
            stop: eventfd()?,
            ended: eventfd()?,
            clients: Mutex::default(),
            left: Condvar::new(),
            counters: Counters::default(),
            probe: Poster::new().ok(),
        });
        let (their_shared, their_listener) = (Arc::clone(&shared), Arc::clone(&listener));
        let serve = move || accept::run(&their_shared, &their_listener);
        let accept = threads::spawn(ThreadClass::Bus, "vbus-accept", serve).map_err(|source| {
            ServerError::Start {
                what: "start a thread",
                source,
            }
        })?;
        Ok(Server {
            shared,
            accept: Some(accept),
            listener,
        })
    }
}

impl Server {
    /// Listens on `path`, which only this user can connect to, and serves `host`.
    ///
    /// A socket that a dead server left behind is replaced.
    ///
    /// # Errors
    /// [`ServerError`]: above all, another server listens there.
    pub fn bind(path: &Path, host: Arc<Host>) -> Result<Self, ServerError> {
        Self::bind_with(path, host, ServerLimits::default())
    }

    /// As [`Server::bind`], with other limits.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn bind_with(
        path: &Path,
        host: Arc<Host>,
        limits: ServerLimits,
    ) -> Result<Self, ServerError> {
        Listening::bind(path)?.serve(host, limits)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.listener.path()
    }

    /// Counts.
    pub fn stats(&self) -> ServerStats {
        let counters = &self.shared.counters;
        ServerStats {
            clients: self.shared.clients.lock().len(),
            accepted: counters.accepted.load(Relaxed),
            refused: counters.refused.load(Relaxed),
            cut_off: counters.cut_off.load(Relaxed),
        }
    }

    /// Disconnects all clients, closes what they have open, ends and joins all threads, and removes
    /// the socket.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let Some(accept) = self.accept.take() else {
            return;
        };
        self.listener.remove();
        let _ = self.shared.stop.write(1);
        let deadline = Instant::now() + SHUTDOWN_DEADLINE;
        let mut clients = self.shared.clients.lock();
        while clients.len() > 0 {
            let time_left = deadline.saturating_duration_since(Instant::now());
            if time_left.is_zero() {
                let num_clients = clients.len();
                tracing::error!("vbus: {num_clients} clients did not end in time: left behind");
                break;
            }
            self.shared.left.wait_for(&mut clients, time_left);
        }
        drop(clients);
        if accept.join().is_err() {
            tracing::error!("vbus: the accepting thread had panicked");
        }
        self.shared.clients.lock().join_ended();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("path", &self.path())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl From<crate::wire::WireError> for CutOff {
    fn from(source: crate::wire::WireError) -> Self {
        CutOff::Message { source }
    }
}

/// What a client did that ended its connection.
#[derive(Debug, thiserror::Error)]
enum CutOff {
    #[error("no message of the protocol")]
    Message { source: crate::wire::WireError },
    #[error("left too much unread")]
    Overrun,
    #[error("speaks versions {min} to {max} of the protocol")]
    Version { min: u16, max: u16 },
    #[error("shares memory that is not safe to map")]
    Memory { source: crate::memory::RegionError },
    #[error("sent a descriptor that is no plain eventfd")]
    Eventfd { source: Errno },
    #[error("cannot be served")]
    Host { source: Errno },
}
