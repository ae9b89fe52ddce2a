//! The virtual bus: what devices and their backends share about guest memory.
//!
//! The bus itself (object model, verbs, signals, rings) builds on this crate. It knows nothing of
//! KVM, PCI or event loops, so that any host process can link it.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing))]

pub mod memory;
