//! Device models of alacrity.
//!
//! | module | what lives there |
//! |---|---|
//! | [`bus`] | address → device dispatch for port I/O and MMIO exits |
//! | [`error`] | errors as text |
//! | [`interrupt`] | the interrupt and doorbell traits that the VMM implements on KVM |
//! | [`iovec`] | scatter lists that point the kernel at guest memory |
//! | [`worker`] | the thread that serves one device's queues |
//! | [`metrics`] | counters, owned by the device, read by the collector |
//! | [`pci`] | root complex, configuration space, MSI-X |
//! | [`tap`] | TAP interfaces of the host |
//! | [`vbus_pci`] | the PCI function through which a guest reaches its bus |
//! | [`hints`] | `page-hints` on the virtual bus: what the guest's pages are worth |
//! | [`venet`] | `virtual-ethernet` devices on the virtual bus |
//! | [`virtio`] | virtio devices and their PCI transport |
//! | [`legacy`] | serial ports, ACPI power, reset and panic ports |
//!
//! Nothing here knows KVM: devices get an `EventFd` or a small trait, so each of them is tested on
//! the heap. The guest is hostile: a value it wrote is read once, checked, and a violation stops
//! that device for that guest and nothing else.
//!
//! Lock order: [`bus::Bus`] table → one device. On the virtual bus: connection → its transmit ring →
//! the receive ring of one port. No lock is held across a blocking call.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

mod attributes;
pub mod bus;
mod client;
pub mod error;
#[cfg(any(test, feature = "test-utils"))]
mod fuzz_ring;
pub mod hints;
pub mod interrupt;
pub mod iovec;
pub mod legacy;
pub mod metrics;
pub mod pci;
pub mod tap;
#[cfg(any(test, feature = "test-utils"))]
pub mod test_utils;
pub mod vbus_pci;
pub mod venet;
pub mod virtio;
pub mod worker;

pub use vbus::memory::GuestRam;
