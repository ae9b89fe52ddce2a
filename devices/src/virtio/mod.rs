//! Virtio devices (VIRTIO 1.2) and their PCI transport.
//!
//! | module | what lives there |
//! |---|---|
//! | [`device`] | the trait between transport and device, and what activation hands over |
//! | [`interrupt`] | queue and configuration interrupts, the needs-reset state |
//! | [`transport`] | virtio over PCI, modern only |
//! | [`net`], [`blk`], [`rng`], [`balloon`] | one folder per device |
//!
//! The transport knows registers and notification, a device knows its protocol. A device takes its
//! queues at activation, serves them on its own [`crate::worker::Worker`], and gives them up at reset.

pub mod balloon;
pub mod blk;
pub mod device;
pub mod interrupt;
pub mod net;
pub mod rng;
pub(crate) mod serve;
pub mod transport;

pub use device::{ActivateError, Activation, ActiveQueue, VirtioDevice};
pub use interrupt::VirtioInterrupt;
