//! The virtual bus: what devices and their backends share about guest memory.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

pub mod abi;
pub mod attribute;
pub mod device;
pub mod memory;
pub mod ring;
pub mod signal;
pub mod tree;
pub mod verbs;

pub use rustix::io::Errno;
