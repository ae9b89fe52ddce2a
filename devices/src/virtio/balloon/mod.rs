//! The virtio memory balloon (VIRTIO 1.2 §5.5) with free page reporting: gives guest memory that
//! the guest does not use back to the host.
//!
//! | file | what lives there |
//! |---|---|
//! | `device` | features, configuration space, activation and reset |
//! | `handle` | the host's side: target, actual size |
//! | `handler` | queues → page ranges → used rings |
//! | `pages` | page numbers → runs of pages; pure |
//! | [`reclaim`] | how a range of guest RAM goes back to the host |
//! | `event` | event-manager glue of the worker |
//! | `metrics` | counters |
//!
//! Guest RAM is a shared memfd, so memory is freed by punching a hole into it. The guest finds
//! zeroes there when it touches the memory again, which both protocols allow.

mod device;
mod event;
#[cfg(any(test, feature = "test-utils"))]
pub mod fuzz;
mod handle;
mod handler;
mod metrics;
mod pages;
pub mod reclaim;
#[cfg(test)]
mod tests;

pub use device::BalloonDevice;
pub use handle::BalloonHandle;
pub use metrics::{BalloonMetrics, Gauge};

/// The unit of the balloon in bytes, whatever the page size of guest and host (VIRTIO 1.2 §5.5.6).
pub const BALLOON_PAGE_BYTES: u64 = 4096;
