//! Counters of the balloon.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Serialize, Serializer};

use crate::metrics::{Counter, QueueMetrics};

/// A number that rises and falls. Any thread may set and read it.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Replaces the number.
    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Serialize for Gauge {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.get())
    }
}

/// What went through the balloon.
#[derive(Debug, Default, Serialize)]
pub struct BalloonMetrics {
    /// Pages of 4096 bytes that the guest put into the balloon.
    pub inflated_pages: Counter,
    /// Pages of 4096 bytes that the guest took out of the balloon.
    pub deflated_pages: Counter,
    /// Bytes that the guest reported free.
    pub reported_bytes: Counter,
    /// Bytes of guest RAM given back to the host, from the balloon and from reports.
    pub released_bytes: Counter,
    /// Ranges that the host refused to take back; the guest does not notice.
    pub release_errors: Counter,
    /// Bytes that the balloon shall have.
    pub target_bytes: Gauge,
    /// Bytes that the balloon has, says the guest.
    pub actual_bytes: Gauge,
    /// Doorbells and interrupts of the inflate queue.
    pub inflate_queue: QueueMetrics,
    /// Doorbells and interrupts of the deflate queue.
    pub deflate_queue: QueueMetrics,
    /// Doorbells and interrupts of the reporting queue.
    pub reporting_queue: QueueMetrics,
}
