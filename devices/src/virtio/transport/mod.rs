//! Virtio over PCI (VIRTIO 1.2 §4.1), modern only.
//!
//! | module | what lives there |
//! |---|---|
//! | [`common`] | the common configuration: features, status, queues; pure, without PCI |
//! | [`pci`] | the PCI function around it: capabilities, BAR layout, MSI-X, doorbells |

pub mod common;
pub mod pci;

pub use pci::VirtioPci;
