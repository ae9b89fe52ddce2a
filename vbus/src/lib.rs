//! The virtual bus: object model, verbs, control tree, signals and rings.
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
pub mod bus;
pub mod client;
pub mod device;
pub mod eventfd;
pub mod memory;
pub mod ring;
pub mod server;
pub mod signal;
pub mod state;
#[cfg(any(test, feature = "test-utils"))]
pub mod test_utils;
pub mod tree;
pub mod verbs;
pub mod wire;

pub use rustix::io::Errno;
