//! The host's side of the balloon, shared by whoever sets its size and the device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use super::BALLOON_PAGE_BYTES;
use super::metrics::BalloonMetrics;
use crate::virtio::VirtioInterrupt;

#[derive(Debug, Default)]
struct Shared {
    /// `num_pages` of the configuration: pages of 4096 bytes that the balloon shall have.
    target_pages: AtomicU32,
    /// `actual` of the configuration: pages that it has, as the guest wrote it.
    actual_pages: AtomicU32,
    /// The way to the guest while the device is active.
    interrupt: Mutex<Option<Arc<VirtioInterrupt>>>,
    metrics: Arc<BalloonMetrics>,
}

/// Sets the size of one guest's balloon. Cloning is cheap; any thread may use it.
#[derive(Debug, Clone)]
pub struct BalloonHandle(Arc<Shared>);

impl BalloonHandle {
    pub(super) fn new(metrics: Arc<BalloonMetrics>) -> Self {
        BalloonHandle(Arc::new(Shared {
            metrics,
            ..Shared::default()
        }))
    }

    /// Asks the guest to have `bytes` in the balloon, rounded down to 4096 and capped at 16 TiB.
    /// The guest follows when it likes, as far as it can, or not at all.
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes / BALLOON_PAGE_BYTES).unwrap_or(u32::MAX);
        self.0.target_pages.store(pages, Ordering::Release);
        let metrics = &self.0.metrics;
        metrics
            .target_bytes
            .set(u64::from(pages) * BALLOON_PAGE_BYTES);
        let interrupt = self.0.interrupt.lock();
        if let Some(interrupt) = interrupt.as_ref() {
            interrupt.signal_config();
        }
    }

    /// Bytes that the balloon shall have.
    pub fn target_bytes(&self) -> u64 {
        u64::from(self.target_pages()) * BALLOON_PAGE_BYTES
    }

    /// Bytes that the balloon has, says the guest; it may lie.
    pub fn actual_bytes(&self) -> u64 {
        u64::from(self.actual_pages()) * BALLOON_PAGE_BYTES
    }

    pub(super) fn target_pages(&self) -> u32 {
        self.0.target_pages.load(Ordering::Acquire)
    }

    pub(super) fn actual_pages(&self) -> u32 {
        self.0.actual_pages.load(Ordering::Acquire)
    }

    pub(super) fn set_actual_pages(&self, pages: u32) {
        self.0.actual_pages.store(pages, Ordering::Release);
        let bytes = u64::from(pages) * BALLOON_PAGE_BYTES;
        self.0.metrics.actual_bytes.set(bytes);
    }

    /// From now on a new target interrupts the guest through `interrupt`, or nobody.
    pub(super) fn set_interrupt(&self, interrupt: Option<Arc<VirtioInterrupt>>) {
        *self.0.interrupt.lock() = interrupt;
    }
}
