//! How a device reaches the guest (interrupts) and the guest reaches a device (doorbells).
//!
//! The VMM implements these traits on KVM's irqfd and ioeventfd; tests implement them on plain
//! eventfds. Devices never learn a GSI.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// What an MSI writes, and where (PCI 3.0 §6.8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// Guest-physical address of the write.
    pub address: u64,
    /// The value written.
    pub data: u32,
}

/// One MSI-X vector's way into the guest.
///
/// The eventfd is the vector: writing to it raises the interrupt. While the vector is masked the
/// eventfd keeps the write, which is the pending bit of PCI 3.0 §6.8.2.10, and unmasking delivers it.
pub trait MsiVector: Send + Sync {
    /// Write here to raise the interrupt. Stays the same for the life of the vector.
    fn irqfd(&self) -> &EventFd;
    /// Routes the vector to `message` and unmasks it; `None` masks it.
    ///
    /// # Errors
    /// The host refused the route.
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()>;
}

/// Hands out MSI-X vectors.
pub trait MsiVectors: Send + Sync {
    /// Makes one vector, masked.
    ///
    /// # Errors
    /// The host is out of routes or file descriptors.
    fn allocate(&self) -> io::Result<Box<dyn MsiVector>>;
}

/// In which of the guest's address spaces a doorbell is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DoorbellSpace {
    /// Guest-physical memory.
    Memory,
    /// I/O ports.
    Ports,
}

/// Which guest writes ring a doorbell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DoorbellAddress {
    /// Address space.
    pub space: DoorbellSpace,
    /// Guest-physical address, or port.
    pub start: u64,
    /// `None`: writes of any width and data. Else only 4-byte writes of this value.
    pub data: Option<u32>,
}

/// Turns guest writes to an address into eventfd signals, without an exit to user space.
pub trait Doorbells: Send + Sync {
    /// From now on a guest write at `address` signals `doorbell` and does nothing else.
    ///
    /// # Errors
    /// The host refused, for instance because `address` has a doorbell already.
    fn attach(&self, address: DoorbellAddress, doorbell: &EventFd) -> io::Result<()>;
    /// Undoes [`Doorbells::attach`] for the same `address` and `doorbell`.
    ///
    /// # Errors
    /// There is no such doorbell.
    fn detach(&self, address: DoorbellAddress, doorbell: &EventFd) -> io::Result<()>;
}
