//! The virtio block device (VIRTIO 1.2 §5.2): a raw image file or a block device as a disk.
//!
//! | file | what lives there |
//! |---|---|
//! | `device` | features, configuration space, activation and reset |
//! | `disk` | the file behind the disk: checks at opening, lock, flush, discard, zeroing |
//! | `sys` | the few system calls that the standard library lacks |
//! | `segments`, `request` | descriptor chain → request; pure, no file |
//! | `ranges` | the payload of discard and write-zeroes requests; pure |
//! | `handler` | queue → requests → disk → used ring, and nothing about threads |
//! | `engine`, `uring` | what moves data: system calls or io_uring |
//! | `event` | event-manager glue of the worker |
//! | `metrics` | counters |
//! | `watch` | who is told of transfers, to reclaim guest memory |
//!
//! Data moves straight between the file and guest memory. Writes land in the host's page cache and
//! a guest flush is an `fdatasync`, so all writes that completed before the flush are on the disk
//! when it completes.

mod device;
mod disk;
mod engine;
mod event;
#[cfg(any(test, feature = "test-utils"))]
pub mod fuzz;
mod handler;
mod metrics;
mod ranges;
mod request;
mod segments;
mod sys;
#[cfg(test)]
mod tests;
mod uring;
mod watch;

pub use device::{BlkDevice, Serial, SerialError};
pub use disk::{Disk, DiskError};
pub use metrics::{BlkMetrics, EngineKind};
pub use watch::TransferWatch;

/// Unit of every position and length on a virtio disk, in bytes (VIRTIO 1.2 §5.2.4).
pub const SECTOR_BYTES: u64 = 512;
