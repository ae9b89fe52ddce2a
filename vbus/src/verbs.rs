//! The verbs of the bus, the same for every client: a guest, another process, this process.
//!
//! `open` and `close` frame two verbs that carry all work: `call`, which is synchronous, and `shm`,
//! which shares memory with a signal. What happens by itself comes as an [`Event`].

use std::fmt;
use std::sync::Arc;

use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::Region;

/// Most bytes of data in a [`Verbs::call`].
pub const MAX_CALL_BYTES: usize = 64 << 10;

/// An interface on a bus: counted from 0 in the order in which they came, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceId(pub u32);

impl fmt::Display for InterfaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An open connection of one client; never 0, never used again, means nothing to other clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

/// What a client is told without having asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An interface is on the bus: replayed in ascending order to a client that is new.
    DeviceAdded {
        /// What to open.
        id: InterfaceId,
        /// What it speaks, e.g. `virtual-ethernet`: picks the driver.
        kind: String,
        /// Where it is plugged in: `LINK/INTERFACE`, by the names of the device's link to the bus and
        /// of its interface. Stays the same over a restart of the host, which the id does not. Empty
        /// if the host does not say.
        place: String,
    },
    /// The host's end of an interface is gone, maybe for a while: all connections are as after
    /// [`Event::DeviceDropped`]. What follows is [`Event::DeviceAdded`] of the same id and kind, or
    /// [`Event::DeviceDropped`]. A host never says this of itself; whoever outlives it does.
    DeviceLost {
        /// As in [`Event::DeviceAdded`].
        id: InterfaceId,
    },
    /// An interface left the bus, or this client was cut off from it. Of an open connection only
    /// `close` works from now on.
    DeviceDropped {
        /// As in [`Event::DeviceAdded`].
        id: InterfaceId,
    },
    /// A signal without a wake-up of its own.
    Signal {
        /// From [`ShmRequest::cookie`].
        cookie: u64,
    },
    /// The host will not touch this shared memory again: the last event for its cookie.
    ShmClosed {
        /// From [`ShmRequest::cookie`].
        cookie: u64,
    },
}

/// Where a client's events go.
pub trait EventSink: Send + Sync {
    /// Takes an event. Must not block, nor call back into the bus; called under the bus's lock.
    fn event(&self, event: Event);
}

/// Gets the north to look at shared memory: an interrupt, an eventfd, an event.
pub trait WakeUp: Send + Sync {
    /// Wakes the north. Must not block.
    fn wake(&self);

    /// The eventfd that [`WakeUp::wake`] writes to, if it does nothing else: another process can be
    /// given that one.
    fn as_eventfd(&self) -> Option<&EventFd> {
        None
    }
}

impl WakeUp for EventFd {
    fn wake(&self) {
        // Fails only when the counter is full, and then it is readable.
        let _ = self.write(1);
    }

    fn as_eventfd(&self) -> Option<&EventFd> {
        Some(self)
    }
}

/// Memory that a client shares with a device.
pub struct ShmRequest {
    /// Which one: defined by the device class.
    pub id: u32,
    /// 0, the lowest, to 7.
    pub priority: u32,
    /// The client's own number for it, which comes back in [`Event::ShmClosed`].
    pub cookie: u64,
    /// The memory. It has to stay valid until [`Event::ShmClosed`].
    pub region: Region,
    /// How the two sides wake each other; without it they poll.
    pub signal: Option<SignalRequest>,
}

/// A shm-signal in shared memory, and what carries its wake-ups.
pub struct SignalRequest {
    /// Byte offset of the [`crate::abi::SignalPair`] in the region; a multiple of 8.
    pub offset: u32,
    /// Readable when the north has signalled. The bus duplicates it where it needs to.
    pub doorbell: EventFd,
    /// Wakes the north.
    pub wake_up: Arc<dyn WakeUp>,
}

impl fmt::Debug for ShmRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShmRequest")
            .field("id", &self.id)
            .field("priority", &self.priority)
            .field("cookie", &self.cookie)
            .field("region", &self.region)
            .field("signal", &self.signal)
            .finish()
    }
}

impl fmt::Debug for SignalRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignalRequest")
            .field("offset", &self.offset)
            .field("doorbell", &self.doorbell)
            .finish_non_exhaustive()
    }
}

/// The verbs of one client. All may be called from any thread.
pub trait Verbs {
    /// Connects to the interface `id`, whose driver speaks `version` of the device's ABI.
    ///
    /// # Errors
    /// `ENOENT`: no such interface on this client's bus. `ENODEV`: the client was cut off from it.
    /// `EINVAL`: another version. `EBUSY`: it is open. `EDQUOT`: too many connections. Others by
    /// device.
    fn open(&self, id: InterfaceId, version: u32) -> Result<Handle, Errno>;

    /// Calls function `func` of the device with `data`, at most [`MAX_CALL_BYTES`], which it may
    /// change in place. The result is at least 0.
    ///
    /// # Errors
    /// `ENOENT`: unknown handle. `ENODEV`: the device was dropped. `EINVAL`: unknown function or
    /// wrong length. Others by device.
    fn call(&self, handle: Handle, func: u32, data: &mut [u8]) -> Result<u32, Errno>;

    /// Shares memory with the device until the connection is closed.
    ///
    /// # Errors
    /// `ENOENT`: unknown handle. `ENODEV`: the device was dropped. `EINVAL`: unknown id, bad signal
    /// or contents. `EEXIST`: shared already. `EDQUOT`: too many, or too many bytes. No
    /// [`Event::ShmClosed`] follows an error.
    fn shm(&self, handle: Handle, request: ShmRequest) -> Result<(), Errno>;

    /// Closes a connection: the device stops and lets go of all shared memory, as soon as calls of
    /// other threads on it have ended.
    ///
    /// # Errors
    /// `ENOENT`: unknown handle.
    fn close(&self, handle: Handle) -> Result<(), Errno>;
}
