//! Queue → random bytes → used ring. Knows nothing about threads and events.

use std::fs::File;
use std::io;
use std::sync::Arc;

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::metrics::RngMetrics;
use crate::GuestRam;
use crate::iovec::{GuestIoVecs, IoVecError};
use crate::virtio::VirtioInterrupt;
use crate::virtio::serve::Served;

/// Most bytes for one request; a driver that wants more asks again.
pub(super) const MAX_REQUEST_BYTES: u32 = 64 << 10;

/// Most requests before other events get a turn: 1 MiB, some milliseconds of work.
pub(super) const MAX_REQUESTS_PER_TURN: u32 = 16;

/// Most descriptors of a chain.
const MAX_DESCRIPTORS: usize = 64;

/// Why the entropy device is cut off from its driver.
#[derive(Debug, thiserror::Error)]
pub(super) enum RngFault {
    #[error("queue")]
    Queue { source: virtio_queue::Error },
    #[error("chain at descriptor {head}: longer than {MAX_DESCRIPTORS} descriptors")]
    TooLong { head: u16 },
    #[error("chain at descriptor {head}: no writable byte")]
    NothingToFill { head: u16 },
    #[error("chain at descriptor {head}: cannot use the buffer")]
    Buffer { head: u16, source: IoVecError },
    #[error("cannot read random bytes of the host")]
    Source { source: io::Error },
}

impl From<virtio_queue::Error> for RngFault {
    fn from(source: virtio_queue::Error) -> Self {
        RngFault::Queue { source }
    }
}

/// Serves the one queue.
#[derive(Debug)]
pub(super) struct RngHandler {
    pub(super) queue: Queue,
    pub(super) ram: GuestRam,
    pub(super) urandom: Arc<File>,
    pub(super) iovecs: GuestIoVecs,
    pub(super) interrupt: Arc<VirtioInterrupt>,
    pub(super) metrics: Arc<RngMetrics>,
}

impl RngHandler {
    /// Fills the buffers in the available ring, up to [`MAX_REQUESTS_PER_TURN`].
    ///
    /// # Errors
    /// [`RngFault`]: stop and wait for reset.
    pub(super) fn serve_queue(&mut self) -> Result<Served, RngFault> {
        let next_used = self.queue.next_used();
        let mut budget = MAX_REQUESTS_PER_TURN;
        let mut has_more = true;
        while has_more && budget > 0 {
            self.queue.disable_notification(&self.ram)?;
            while budget > 0 && self.serve_chain()? {
                budget -= 1;
            }
            // A round costs something even if the ring turns out not to yield a chain.
            budget = budget.saturating_sub(1);
            has_more = budget == 0 || self.queue.enable_notification(&self.ram)?;
        }
        if self.queue.next_used() != next_used && self.queue.needs_notification(&self.ram)? {
            self.interrupt.signal_queue(0);
            self.metrics.queue.interrupts.add(1);
        }
        Ok(if has_more { Served::More } else { Served::All })
    }

    fn serve_chain(&mut self) -> Result<bool, RngFault> {
        let Some(chain) = self.queue.iter(&self.ram)?.next() else {
            return Ok(false);
        };
        let head = chain.head_index();
        self.iovecs.clear();
        for (i, descriptor) in chain.enumerate() {
            if i == MAX_DESCRIPTORS {
                return Err(RngFault::TooLong { head });
            }
            let room = MAX_REQUEST_BYTES - self.iovecs.len_bytes();
            if descriptor.is_write_only() {
                self.iovecs
                    .push(descriptor.addr(), descriptor.len().min(room))
                    .map_err(|source| RngFault::Buffer { head, source })?;
            }
        }
        if self.iovecs.len_bytes() == 0 {
            return Err(RngFault::NothingToFill { head });
        }
        let len = loop {
            match self.iovecs.read_from(&self.urandom) {
                Ok(len) => break len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(RngFault::Source { source }),
            }
        };
        // At most MAX_REQUEST_BYTES.
        let len = u32::try_from(len).unwrap_or(MAX_REQUEST_BYTES);
        self.queue.add_used(&self.ram, head, len)?;
        self.metrics.requests.add(1);
        self.metrics.bytes.add(u64::from(len));
        Ok(true)
    }
}
