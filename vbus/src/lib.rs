//! The virtual bus: devices of a host for guests and processes, which speak to them with two verbs,
//! `call` and `shm`.
//!
//! | module | what lives there |
//! |---|---|
//! | [`verbs`], [`device`], [`attribute`] | what clients call, what device models implement |
//! | [`bus`] | classes, devices, buses, members, clients, connections, and who may do what |
//! | [`tree`], [`state`] | the control tree of an administrator, and what of it is kept |
//! | [`memory`], [`signal`], [`ring`] | shared memory, who is awake, slots that go round |
//! | [`abi`] | layouts and numbers that both sides share |
//! | [`threads`] | all threads, and how they are confined |
//! | [`server`], [`wire`], [`eventfd`] | the verbs for other processes, over a Unix socket |
//! | [`client`] | the other end of that socket, with a tutorial |
//!
//! Nothing here knows KVM, PCI or a device. Clients are hostile: what they share is read once, then
//! checked, and one that breaks the rules is cut off alone. Lock order: [`bus`].
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
pub mod loan;
pub mod memory;
pub mod residency;
pub mod ring;
pub mod server;
pub mod signal;
pub mod state;
#[cfg(any(test, feature = "test-utils"))]
pub mod test_utils;
pub mod threads;
pub mod tree;
pub mod verbs;
pub mod wire;

pub use rustix::io::Errno;
