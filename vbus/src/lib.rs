//! The virtual bus: what devices and their backends share about guest memory.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing))]

pub mod abi;
pub mod memory;
pub mod ring;
pub mod signal;
