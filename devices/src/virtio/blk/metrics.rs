//! Counters of one disk.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use serde::{Serialize, Serializer};

use crate::metrics::{Counter, QueueMetrics};

/// What moves the data of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// Asynchronous, through io_uring.
    IoUring,
    /// One `preadv` or `pwritev` at a time.
    Sync,
}

/// The engine in use, or none while the driver has not started the disk.
#[derive(Debug, Default)]
pub struct EngineGauge(AtomicU8);

impl EngineGauge {
    /// Says which engine serves from now on.
    pub(super) fn set(&self, kind: EngineKind) {
        self.0.store(kind as u8 + 1, Relaxed);
    }

    /// The engine that served last, if any did.
    pub fn get(&self) -> Option<EngineKind> {
        [EngineKind::IoUring, EngineKind::Sync]
            .into_iter()
            .find(|kind| *kind as u8 + 1 == self.0.load(Relaxed))
    }
}

impl Serialize for EngineGauge {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self.get() {
            None => "none",
            Some(EngineKind::IoUring) => "io_uring",
            Some(EngineKind::Sync) => "sync",
        })
    }
}

/// Traffic of one disk. Requests that failed count in `errors` only.
#[derive(Debug, Default, Serialize)]
pub struct BlkMetrics {
    /// What moves the data.
    pub engine: EngineGauge,
    /// Read requests.
    pub reads: Counter,
    /// Bytes read from the disk.
    pub read_bytes: Counter,
    /// Write requests.
    pub writes: Counter,
    /// Bytes written to the disk.
    pub written_bytes: Counter,
    /// Flush requests.
    pub flushes: Counter,
    /// Discard requests.
    pub discards: Counter,
    /// Write-zeroes requests.
    pub write_zeroes: Counter,
    /// Bytes given back or zeroed by discard and write-zeroes requests.
    pub discarded_bytes: Counter,
    /// Requests answered with an error, by fault of the host or the guest.
    pub errors: Counter,
    /// Those among them where the host could not do what was right to ask.
    pub host_errors: Counter,
    /// Doorbells and interrupts.
    pub queue: QueueMetrics,
}
