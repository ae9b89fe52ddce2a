//! The bus for processes: join one, and use its devices with `call` and shared memory.
//!
//! | type | what it is |
//! |---|---|
//! | [`Connection`] | a socket to a daemon, before it is known what for |
//! | [`Remote`] | a member of a bus: [`Verbs`](crate::verbs::Verbs), events, memory |
//! | [`Ring`] | the north's end of a ring, its signals and its eventfds |
//! | [`Admin`] | the control tree |
//!
//! [`Remote`] can be used from any number of threads at once and has none of its own. Events are
//! taken with [`Remote::try_next_event`], which never waits; [`Remote`] and [`Ring`] are
//! [`AsFd`](std::os::fd::AsFd), so that any event loop can tell when to ask. When the daemon dies,
//! everything returns `ECONNRESET` at once.
//!
//! In the process of the host itself no client is needed: [`Member::attach`] gives the same verbs.
//!
//! [`Member::attach`]: crate::bus::Member::attach
//!
//! # Tutorial
//! A daemon: a host with a device on a bus, and a server for it. The device of this example returns
//! every slot of a ring with the bytes of its buffer reversed.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use vbus::bus::Host;
//! use vbus::client::{Connection, Ring, RingRequest};
//! use vbus::ring::Slot;
//! use vbus::server::Server;
//! use vbus::test_utils::ring_echo::{RingEchoClass, RING_ID, VERSION, func};
//! use vbus::verbs::Verbs;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let host = Host::new();
//! host.register_class(Arc::new(RingEchoClass))?;
//! host.create_device("echo0")?;
//! host.set_type("echo0", "ring-echo")?;
//! host.create_bus("bus0")?;
//! host.link("bus0", "echo0", "echo0")?;
//!
//! let directory = tempfile::tempdir()?;
//! let path = directory.path().join("vbus.sock");
//! let _server = Server::bind(&path, host)?;
//!
//! // From here on it could be another process. It joins the bus and finds what is there.
//! let bus = Connection::connect(&path)?.join("bus0")?;
//! let devices = bus.devices()?;
//! let (id, kind) = devices.first().ok_or("no device")?;
//! assert_eq!(kind, "ring-echo");
//!
//! // A connection, and a call: the device changes the data in place.
//! let echo = bus.open(*id, VERSION)?;
//! let mut data = *b"bus";
//! assert_eq!(bus.call(echo, func::REVERSE, &mut data)?, 3);
//! assert_eq!(&data, b"sub");
//!
//! // Memory for buffers, at an address of our choice: slots name it by that.
//! let buffers = bus.add_memory(0x10_0000, 64 << 10)?;
//! buffers.write(0, b"hello")?;
//!
//! // A ring of 8 slots. Publishing wakes the device if it sleeps; `wait` sleeps until it
//! // returned something.
//! let request = RingRequest { id: RING_ID, priority: 0, cookie: 1, num_slots: 8 };
//! let mut ring = Ring::share_remote(&bus, echo, request)?;
//! let slot = Slot { addr: 0x10_0000, len: 5, meta: [7, 0] };
//! assert_eq!(ring.publish(&[slot]), 1);
//!
//! let mut returned = [Slot::default(); 8];
//! assert!(ring.wait(Some(Duration::from_secs(10)))?);
//! assert_eq!(ring.reap(&mut returned)?, 1);
//! assert_eq!(returned[0].meta[0], 7);
//!
//! let mut bytes = [0; 5];
//! buffers.read(0, &mut bytes)?;
//! assert_eq!(&bytes, b"olleh");
//! bus.close(echo)?;
//! # Ok(())
//! # }
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

mod admin;
mod inbox;
mod link;
mod remote;
mod ring;

pub use admin::{Admin, NodeKind, NodeStat};
pub use inbox::Device;
pub use remote::Remote;
pub use ring::{Ring, RingRequest, RingSetupError, RingWaitError};

use crate::abi::wire::{cap, kind};
use link::Link;

/// Why there is no connection to a daemon, or none of the kind that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or not for us.
    #[error("cannot connect to {}: is `alacrity host` running?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// The daemon turned us away: `EDQUOT` for too many clients, `EPROTONOSUPPORT` for a version
    /// that it does not speak.
    #[error("daemon refuses the connection")]
    Greet {
        /// Why.
        source: Errno,
    },
    /// `ENOENT`: there is no such bus. `EBUSY`: this process is a member of another one.
    #[error("cannot join bus {bus}")]
    Join {
        /// Its name.
        bus: String,
        /// Why.
        source: Errno,
    },
    /// The control tree is for root and the daemon's user.
    #[error("this user may not administrate the daemon")]
    NotAdmin,
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Connection {
    link: Arc<Link>,
}

impl Connection {
    /// Connects to the daemon at the socket `path`.
    ///
    /// # Errors
    /// [`ClientError::Connect`], [`ClientError::Greet`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let link = Link::connect(path, None)?;
        Ok(Connection { link })
    }

    /// As [`Connection::connect`], to a daemon that is given up if it does not answer a request within
    /// about `limit`, e.g. because somebody stopped it: then the connection ends, and everything
    /// returns `ETIMEDOUT`.
    ///
    /// # Errors
    /// As of [`Connection::connect`].
    pub fn connect_with_limit(path: &Path, limit: Duration) -> Result<Self, ClientError> {
        let link = Link::connect(path, Some(limit))?;
        Ok(Connection { link })
    }

    /// Makes this process a member of `bus`. It stays one until the last [`Remote`] is dropped.
    ///
    /// # Errors
    /// [`ClientError::Join`].
    pub fn join(self, bus: &str) -> Result<Remote, ClientError> {
        let reply = self.link.exchange(kind::JOIN, &[bus.as_bytes()], &[]);
        match reply.and_then(|reply| reply.result) {
            Ok(_) => Ok(Remote::new(self.link)),
            Err(source) => Err(ClientError::Join {
                bus: bus.to_owned(),
                source,
            }),
        }
    }

    /// Administrates the daemon.
    ///
    /// # Errors
    /// [`ClientError::NotAdmin`].
    pub fn admin(self) -> Result<Admin, ClientError> {
        if self.link.caps() & cap::ADMIN == 0 {
            return Err(ClientError::NotAdmin);
        }
        Ok(Admin::new(self.link))
    }
}
