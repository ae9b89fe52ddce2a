//! Devices of the kind `virtual-ethernet`, on a bus of this process, with the driver at the other end.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs
)]

mod away;
mod fixture;
mod hostile;
mod loopback;
mod offloads;
mod remote;
mod setup;
mod siege;
mod switch;
mod tap;
