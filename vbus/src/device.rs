//! What a device model implements.
//!
//! A class makes devices; a device offers interfaces on each bus it is put on; an interface makes a
//! connection for each client that opens it. Neither knows whether a client is a guest, another
//! process, or a part of this one.

use std::fmt;
use std::sync::Arc;

use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use crate::attribute::Attribute;
use crate::bus::ClosedNotice;
use crate::memory::{MemoryContext, Region};
use crate::signal::{SignalReceiver, SignalSender};
use crate::verbs::WakeUp;

/// A kind of devices, e.g. `venet-tap`.
pub trait DeviceClass: Send + Sync {
    /// The name that is written into a device's `type`; unique.
    fn name(&self) -> &'static str;

    /// Makes the device that the administrator called `name`.
    ///
    /// # Errors
    /// Any errno, by class.
    fn create(&self, name: &str) -> Result<Arc<dyn Device>, Errno>;
}

/// A device. Dropped when it is removed and its last connection is gone.
pub trait Device: Send + Sync {
    /// Its attributes by name. Always the same names, asked for once.
    fn attributes(&self) -> Vec<(&'static str, Arc<dyn Attribute>)>;

    /// Puts the device on `bus`; the interfaces that it offers there, which the bus registers.
    ///
    /// # Errors
    /// `EBUSY`: it is on as many buses as it can be.
    fn connect_bus(&self, bus: &str) -> Result<Vec<InterfaceOffer>, Errno>;

    /// Takes the device off `bus`, whose interfaces are unregistered already. Connections that are
    /// open live on.
    fn disconnect_bus(&self, bus: &str);
}

/// An interface that a device offers on a bus.
pub struct InterfaceOffer {
    /// Its name among the device's interfaces, e.g. `default`: at most 64 bytes, no `.`.
    pub name: String,
    /// What it speaks, e.g. `virtual-ethernet`.
    pub kind: &'static str,
    /// Makes connections.
    pub interface: Arc<dyn Interface>,
}

/// One interface of a device on one bus.
pub trait Interface: Send + Sync {
    /// Connects a client.
    ///
    /// # Errors
    /// `EINVAL`: another version of the device's ABI. `EBUSY`: as many connections as it takes.
    fn connect(&self, peer: Peer) -> Result<Arc<dyn Connection>, Errno>;
}

/// The client at the other end of a connection.
#[derive(Clone)]
pub struct Peer {
    /// Version of the device's ABI that its driver speaks.
    pub version: u32,
    /// Where its memory is.
    pub memory: Arc<dyn MemoryContext>,
    /// Whom to tell when it breaks the rules.
    pub faults: Arc<dyn FaultReporter>,
}

/// Takes the report that a client broke the rules.
pub trait FaultReporter: Send + Sync {
    /// Cuts this connection off: the client is told that the device is gone, the connection is
    /// closed soon, by another thread. The device stops working on it at once. Counted, logged,
    /// never blocks.
    fn report(&self, reason: &dyn fmt::Display);
}

/// One client's connection to one interface. Calls may come from several threads at once.
pub trait Connection: Send + Sync {
    /// A synchronous call. Must not block for long; see [`crate::verbs::Verbs::call`].
    ///
    /// # Errors
    /// `EINVAL`: unknown function or wrong length. Others by device.
    fn call(&self, func: u32, data: &mut [u8]) -> Result<u32, Errno>;

    /// Takes memory that the client shares.
    ///
    /// # Errors
    /// `EINVAL`: unknown id, a signal missing or too many, bad contents. `EEXIST`: it has one.
    fn shm(&self, shm: Shm) -> Result<(), Errno>;

    /// Stops all work for this client and lets go of its memory, before it returns. Called once;
    /// neither of the others is called afterwards.
    fn close(&self);
}

/// Memory that a client shares with a device. Dropping it tells the client that it has it back.
pub struct Shm {
    /// Which one: defined by the device class.
    pub id: u32,
    /// 0, the lowest, to 7.
    pub priority: u32,
    /// The memory.
    pub region: Region,
    /// How the two sides wake each other, if at all.
    pub signal: Option<ShmSignal>,
    /// Tells the client when it is dropped: last, when the memory is let go.
    pub(crate) closed: Option<ClosedNotice>,
}

impl Shm {
    /// Memory outside of any bus, for a device's own tests.
    pub fn detached(id: u32, region: Region, signal: Option<ShmSignal>) -> Self {
        Shm {
            id,
            priority: 0,
            region,
            signal,
            closed: None,
        }
    }
}

/// The south's end of a shm-signal.
pub struct ShmSignal {
    /// Towards the north.
    pub sender: SignalSender<Region>,
    /// From the north.
    pub receiver: SignalReceiver<Region>,
    /// Readable when the north has signalled. Empty it with [`ShmSignal::drain_doorbell`] only.
    pub doorbell: EventFd,
    /// Carries a wake-up to the north.
    pub wake_up: Arc<dyn WakeUp>,
}

/// Forbids to take an [`Shm`] apart: its end must be the end of its memory.
impl Drop for Shm {
    fn drop(&mut self) {}
}

impl ShmSignal {
    /// Tells the north that something has changed; true if it had to be woken.
    pub fn notify(&self) -> bool {
        let is_due = self.sender.inject();
        if is_due {
            self.wake_up.wake();
        }
        is_due
    }

    /// Makes the doorbell unreadable until the north signals again. Unlike `doorbell.read()` it
    /// never waits, whatever a process does to the eventfd that it shares with us.
    pub fn drain_doorbell(&self) {
        crate::eventfd::drain(&self.doorbell);
    }
}

impl fmt::Debug for InterfaceOffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterfaceOffer")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Shm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shm")
            .field("id", &self.id)
            .field("priority", &self.priority)
            .field("region", &self.region)
            .field("signal", &self.signal)
            .field("closed", &self.closed)
            .finish()
    }
}

impl fmt::Debug for ShmSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShmSignal")
            .field("doorbell", &self.doorbell)
            .finish_non_exhaustive()
    }
}
