//! Queues → page ranges → used rings. Knows nothing about threads and events.

use std::sync::Arc;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::BALLOON_PAGE_BYTES;
use super::metrics::BalloonMetrics;
use super::pages::{CHUNK_PAGES, runs};
use super::reclaim::release_range;
use crate::GuestRam;
use crate::metrics::QueueMetrics;
use crate::virtio::VirtioInterrupt;
use crate::virtio::serve::Served;

/// Size of a page number in bytes.
const PFN_BYTES: usize = 4;

/// Most page numbers in one chain; Linux sends 256, other drivers a page full of them.
const MAX_CHAIN_PAGES: usize = 4096;

/// Most chains of one queue before other events get a turn.
const MAX_CHAINS_PER_TURN: u32 = 16;

/// Most descriptors of a chain; Linux reports 32 ranges at once.
const MAX_DESCRIPTORS: usize = 128;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueKind {
    /// The guest puts pages into the balloon.
    Inflate,
    /// The guest takes pages out of the balloon.
    Deflate,
    /// The guest names free ranges.
    Reporting,
}

/// Why the balloon is cut off from its driver.
#[derive(Debug, thiserror::Error)]
pub(super) enum BalloonFault {
    #[error("{kind:?} queue")]
    Queue {
        kind: QueueKind,
        source: virtio_queue::Error,
    },
    #[error("{kind:?} queue: longer than {MAX_DESCRIPTORS} descriptors")]
    TooLong { kind: QueueKind },
    #[error("{kind:?} queue: more than {MAX_CHAIN_PAGES} page numbers in a chain")]
    TooManyPages { kind: QueueKind },
    #[error("{kind:?} queue: cannot read page numbers")]
    NotReadable {
        kind: QueueKind,
        source: GuestMemoryError,
    },
    #[error("{kind:?} queue: {len} bytes at GPA {gpa:#x} are not all RAM")]
    NotRam { kind: QueueKind, gpa: u64, len: u64 },
}

/// Serves one of the queues.
#[derive(Debug)]
pub(super) struct BalloonHandler {
    pub(super) kind: QueueKind,
    pub(super) queue_idx: u16,
    pub(super) queue: Queue,
    pub(super) ram: GuestRam,
    pub(super) interrupt: Arc<VirtioInterrupt>,
    pub(super) metrics: Arc<BalloonMetrics>,
}

impl BalloonHandler {
    /// Doorbells and interrupts of this queue.
    pub(super) fn queue_metrics(&self) -> &QueueMetrics {
        match self.kind {
            QueueKind::Inflate => &self.metrics.inflate_queue,
            QueueKind::Deflate => &self.metrics.deflate_queue,
            QueueKind::Reporting => &self.metrics.reporting_queue,
        }
    }

    /// Serves the chains in the available ring, up to [`MAX_CHAINS_PER_TURN`].
    ///
    /// # Errors
    /// [`BalloonFault`]: stop and wait for reset.
    pub(super) fn serve_queue(&mut self) -> Result<Served, BalloonFault> {
        let kind = self.kind;
        let ring = |source| BalloonFault::Queue { kind, source };
        let next_used = self.queue.next_used();
        let mut budget = MAX_CHAINS_PER_TURN;
        let mut has_more = true;
        while has_more && budget > 0 {
            self.queue.disable_notification(&self.ram).map_err(ring)?;
            while budget > 0 && self.serve_chain()? {
                budget -= 1;
            }
            // A round costs something even if the ring turns out not to yield a chain.
            budget = budget.saturating_sub(1);
            has_more = budget == 0 || self.queue.enable_notification(&self.ram).map_err(ring)?;
        }
        let has_news = self.queue.next_used() != next_used;
        if has_news && self.queue.needs_notification(&self.ram).map_err(ring)? {
            self.interrupt.signal_queue(self.queue_idx);
            self.queue_metrics().interrupts.add(1);
        }
        Ok(if has_more { Served::More } else { Served::All })
    }

    fn serve_chain(&mut self) -> Result<bool, BalloonFault> {
        let kind = self.kind;
        let ring = |source| BalloonFault::Queue { kind, source };
        let Some(chain) = self.queue.iter(&self.ram).map_err(ring)?.next() else {
            return Ok(false);
        };
        let head = chain.head_index();
        match kind {
            QueueKind::Inflate | QueueKind::Deflate => self.serve_pages(chain)?,
            QueueKind::Reporting => self.serve_report(chain)?,
        }
        // Nothing was written into the chain.
        self.queue.add_used(&self.ram, head, 0).map_err(ring)?;
        Ok(true)
    }

    /// Takes the page numbers of `chain` in chunks into a local buffer.
    fn serve_pages(&self, chain: DescriptorChain<&GuestRam>) -> Result<(), BalloonFault> {
        let kind = self.kind;
        let mut pages_left = MAX_CHAIN_PAGES;
        for (i, descriptor) in chain.enumerate() {
            if i == MAX_DESCRIPTORS {
                return Err(BalloonFault::TooLong { kind });
            }
            if descriptor.is_write_only() {
                continue;
            }
            // A u32 always fits, and a count that did not would be too large.
            let num_pages = usize::try_from(descriptor.len()).unwrap_or(usize::MAX) / PFN_BYTES;
            pages_left = pages_left
                .checked_sub(num_pages)
                .ok_or(BalloonFault::TooManyPages { kind })?;
            self.serve_page_array(descriptor.addr(), num_pages)?;
        }
        Ok(())
    }

    /// Serves `num_pages` page numbers at `gpa`, at most [`MAX_CHAIN_PAGES`].
    fn serve_page_array(&self, gpa: GuestAddress, num_pages: usize) -> Result<(), BalloonFault> {
        let mut gpa = gpa.0;
        let mut pages_left = num_pages;
        while pages_left > 0 {
            let now = pages_left.min(CHUNK_PAGES);
            let mut bytes = [0; CHUNK_PAGES * PFN_BYTES];
            let bytes = bytes.get_mut(..now * PFN_BYTES).unwrap_or_default();
            self.ram
                .read_slice(bytes, GuestAddress(gpa))
                .map_err(|source| BalloonFault::NotReadable {
                    kind: self.kind,
                    source,
                })?;
            let mut pfns = [0; CHUNK_PAGES];
            for (pfn, bytes) in pfns.iter_mut().zip(bytes.as_chunks::<PFN_BYTES>().0) {
                *pfn = u32::from_le_bytes(*bytes);
            }
            self.serve_pfns(pfns.get_mut(..now).unwrap_or_default())?;
            // read_slice found all of it, so this is at most one past the end of RAM.
            gpa = gpa.wrapping_add(bytes.len() as u64);
            pages_left -= now;
        }
        Ok(())
    }

    fn serve_pfns(&self, pfns: &mut [u32]) -> Result<(), BalloonFault> {
        let num_pages = pfns.len() as u64;
        for run in runs(pfns) {
            // At most 2^32 pages of 2^12 bytes.
            let gpa = run.start * BALLOON_PAGE_BYTES;
            let len = (run.end - run.start) * BALLOON_PAGE_BYTES;
            self.check_ram(gpa, len)?;
            if self.kind == QueueKind::Inflate {
                self.release(gpa, len);
            }
        }
        match self.kind {
            QueueKind::Inflate => self.metrics.inflated_pages.add(num_pages),
            _ => self.metrics.deflated_pages.add(num_pages),
        }
        Ok(())
    }

    /// Takes the free ranges that are the buffers of `chain` (VIRTIO 1.2 §5.5.6.7).
    fn serve_report(&self, chain: DescriptorChain<&GuestRam>) -> Result<(), BalloonFault> {
        for (i, descriptor) in chain.enumerate() {
            if i == MAX_DESCRIPTORS {
                return Err(BalloonFault::TooLong { kind: self.kind });
            }
            let (gpa, len) = (descriptor.addr().0, u64::from(descriptor.len()));
            self.check_ram(gpa, len)?;
            self.metrics.reported_bytes.add(len);
            self.release(gpa, len);
        }
        Ok(())
    }

    fn check_ram(&self, gpa: u64, len: u64) -> Result<(), BalloonFault> {
        let is_ram = usize::try_from(len)
            .is_ok_and(|len| GuestMemoryBackend::check_range(&self.ram, GuestAddress(gpa), len));
        let fault = BalloonFault::NotRam {
            kind: self.kind,
            gpa,
            len,
        };
        is_ram.then_some(()).ok_or(fault)
    }

    /// Gives a range that is all RAM back to the host. If the host refuses, the guest is none the
    /// wiser: its pages just stay.
    fn release(&self, gpa: u64, len: u64) {
        match release_range(&self.ram, GuestAddress(gpa), len) {
            Ok(released) => self.metrics.released_bytes.add(released),
            Err(error) if self.metrics.release_errors.count_sparsely() => {
                let name = self.interrupt.name();
                tracing::warn!("{name}: cannot free {len} bytes at GPA {gpa:#x}: {error}");
            }
            Err(_) => {}
        }
    }
}
