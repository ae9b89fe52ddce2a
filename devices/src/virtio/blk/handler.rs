//! Queue → requests → disk → used ring. Knows nothing about threads and events.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::SECTOR_BYTES;
use super::disk::{Disk, is_unsupported};
use super::engine::{Engine, Finished};
use super::metrics::BlkMetrics;
use super::ranges::{MAX_PAYLOAD_BYTES, RangeOp, is_on_disk, ranges};
use super::request::{ChainError, Request, Transfer};
use super::watch::{Change, TransferWatch, Watched};
use crate::GuestRam;
use crate::virtio::VirtioInterrupt;
use crate::virtio::serve::Served;

/// Data to move before other events, a reset above all, get a turn.
const TURN_BYTES: u64 = 64 << 20;

/// Data under way at which no further request starts: a reset waits for all of it, on the vCPU
/// that asks for the reset.
const MAX_IN_FLIGHT_BYTES: u64 = 128 << 20;

/// Why a disk is cut off from its driver.
#[derive(Debug, thiserror::Error)]
pub(super) enum BlkFault {
    #[error("chain at descriptor {head}")]
    Chain { head: u16, source: ChainError },
    #[error("queue")]
    Queue { source: virtio_queue::Error },
    #[error("more than {limit} requests under way")]
    TooManyRequests { limit: usize },
    #[error("engine")]
    Engine { source: io::Error },
}

impl From<virtio_queue::Error> for BlkFault {
    fn from(source: virtio_queue::Error) -> Self {
        BlkFault::Queue { source }
    }
}

/// What a handler serves, and for whom.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) disk: Arc<Disk>,
    pub(super) serial: [u8; 20],
    /// Writes may stay in the host's page cache until a flush.
    pub(super) is_writeback: Arc<AtomicBool>,
    pub(super) metrics: Arc<BlkMetrics>,
    pub(super) interrupt: Arc<VirtioInterrupt>,
    /// Who is told of transfers.
    pub(super) watch: Option<Arc<dyn TransferWatch>>,
}

impl Backend {
    /// From now on, and until the result is dropped, the bytes may change.
    fn change(&self, offset: u64, len: u64) -> Option<Change> {
        let watch = self.watch.as_ref()?;
        Some(Change::begin(watch, offset, len))
    }

    /// Tells of the transfer of `request`, which is about to begin.
    fn watch(&self, request: &Request) -> Option<Watched> {
        let watch = self.watch.as_ref()?;
        let (pieces, is_write) = match request.transfer() {
            Transfer::Read => (request.writable.pieces(), false),
            Transfer::Write { .. } => (request.readable.pieces(), true),
            Transfer::Flush => return None,
        };
        Some(Watched::begin(watch, pieces, request.offset(), is_write))
    }
}

/// Serves one queue.
#[derive(Debug)]
pub(super) struct Handler {
    backend: Backend,
    queue: Queue,
    queue_idx: u16,
    ram: GuestRam,
    /// Dropped while `ram` is mapped; it waits for what it has under way.
    engine: Engine,
    /// Requests to use again.
    pool: Vec<Request>,
    /// Kept for its allocation.
    finished: Vec<Finished>,
    /// Chains went to the used ring that the guest was not told of.
    has_news: bool,
    /// Data of the requests under way.
    in_flight_bytes: u64,
    /// See [`MAX_IN_FLIGHT_BYTES`].
    pub(super) max_in_flight_bytes: u64,
    /// Chains wait until some of the data under way has arrived.
    is_throttled: bool,
}

impl Handler {
    pub(super) fn new(
        backend: Backend,
        queue_idx: u16,
        queue: Queue,
        ram: GuestRam,
        engine: Engine,
    ) -> Self {
        Handler {
            backend,
            queue,
            queue_idx,
            ram,
            engine,
            pool: Vec::new(),
            finished: Vec::new(),
            has_news: false,
            in_flight_bytes: 0,
            max_in_flight_bytes: MAX_IN_FLIGHT_BYTES,
            is_throttled: false,
        }
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(super) fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Serves the chains in the available ring, but not more than the queue holds, and no more than
    /// about [`TURN_BYTES`] of data.
    ///
    /// # Errors
    /// [`BlkFault`]: stop and wait for reset.
    pub(super) fn serve_queue(&mut self) -> Result<Served, BlkFault> {
        let mut budget = self.queue.size();
        let mut bytes_left = TURN_BYTES;
        while budget > 0 {
            self.queue.disable_notification(&self.ram)?;
            while budget > 0
                && self.has_room()
                && let Some(num_bytes) = self.serve_chain()?
            {
                bytes_left = bytes_left.saturating_sub(num_bytes);
                budget = if bytes_left > 0 { budget - 1 } else { 0 };
            }
            let is_submitted = self.submit()?;
            if !is_submitted {
                break;
            }
            self.is_throttled = !self.has_room();
            if self.is_throttled {
                return Ok(Served::All);
            }
            if budget > 0 && !self.queue.enable_notification(&self.ram)? {
                return Ok(Served::All);
            }
            // A round costs something even if the ring turns out not to yield a chain.
            budget = budget.saturating_sub(1);
        }
        Ok(Served::More)
    }

    /// Answers the requests that the engine has finished.
    ///
    /// # Errors
    /// [`BlkFault`]: stop and wait for reset.
    pub(super) fn serve_completions(&mut self) -> Result<Served, BlkFault> {
        let is_submitted = self.reap()?;
        self.signal()?;
        let can_go_on = self.is_throttled && self.has_room();
        Ok(if is_submitted && !can_go_on {
            Served::All
        } else {
            Served::More
        })
    }

    fn has_room(&self) -> bool {
        self.in_flight_bytes < self.max_in_flight_bytes
    }

    fn submit(&mut self) -> Result<bool, BlkFault> {
        let is_submitted = self
            .engine
            .submit()
            .map_err(|source| BlkFault::Engine { source })?;
        // What the page cache holds is finished already.
        let is_reaped = self.reap()?;
        self.signal()?;
        Ok(is_submitted && is_reaped)
    }

    fn reap(&mut self) -> Result<bool, BlkFault> {
        let mut finished = std::mem::take(&mut self.finished);
        let is_submitted = self
            .engine
            .reap(&mut finished)
            .map_err(|source| BlkFault::Engine { source })?;
        for (request, result) in finished.drain(..) {
            self.finish(request, result)?;
        }
        self.finished = finished;
        Ok(is_submitted)
    }

    fn signal(&mut self) -> Result<(), BlkFault> {
        if std::mem::take(&mut self.has_news) && self.queue.needs_notification(&self.ram)? {
            self.backend.interrupt.signal_queue(self.queue_idx);
            self.backend.metrics.queue.interrupts.add(1);
        }
        Ok(())
    }

    /// Takes one chain off the available ring and answers or starts it. Returns what it costs in
    /// bytes of data; `None` if there is no chain.
    fn serve_chain(&mut self) -> Result<Option<u64>, BlkFault> {
        let Some(chain) = self.queue.iter(&self.ram)?.next() else {
            return Ok(None);
        };
        let head = chain.head_index();
        let mut request = self
            .pool
            .pop()
            .unwrap_or_else(|| Request::new(self.ram.clone()));
        let fault = |source| BlkFault::Chain { head, source };
        request.parse(chain, &self.ram).map_err(fault)?;
        let num_bytes = match request.op {
            // They may come to writing zeroes, right here.
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => TURN_BYTES,
            _ => u64::from(request.readable.len_bytes()) + u64::from(request.writable.len_bytes()),
        };
        match self.prepare(&mut request).map_err(fault)? {
            Some((status, written)) => self.answer(request, status, written)?,
            None => self.start(request)?,
        }
        Ok(Some(num_bytes))
    }

    /// Does what needs no engine: then the status and the bytes written for the guest. Or makes
    /// `request` ready for the engine.
    fn prepare(&self, request: &mut Request) -> Result<Option<(u32, u32)>, ChainError> {
        let disk = &self.backend.disk;
        let is_write = matches!(
            request.op,
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
        );
        if is_write && disk.is_read_only() {
            return Ok(Some((VIRTIO_BLK_S_IOERR, 0)));
        }
        let (transfer, len) = match request.op {
            VIRTIO_BLK_T_IN => (Transfer::Read, request.writable.len_bytes()),
            VIRTIO_BLK_T_OUT => {
                let is_durable = !self.backend.is_writeback.load(Ordering::Relaxed);
                let transfer = Transfer::Write { is_durable };
                (transfer, request.readable.len_bytes())
            }
            VIRTIO_BLK_T_FLUSH => {
                request.begin(Transfer::Flush, 0)?;
                return Ok(None);
            }
            VIRTIO_BLK_T_GET_ID => {
                let written = request
                    .writable
                    .write(&self.ram, &self.backend.serial)
                    .map_err(|source| ChainError::NotWritable { source })?;
                return Ok(Some((VIRTIO_BLK_S_OK, written)));
            }
            VIRTIO_BLK_T_DISCARD => return self.deallocate(request, RangeOp::Discard).map(done),
            VIRTIO_BLK_T_WRITE_ZEROES => {
                return self.deallocate(request, RangeOp::WriteZeroes).map(done);
            }
            _ => return Ok(Some((VIRTIO_BLK_S_UNSUPP, 0))),
        };
        let num_sectors = u64::from(len) / SECTOR_BYTES;
        if u64::from(len) % SECTOR_BYTES != 0
            || !is_on_disk(request.sector, num_sectors, disk.num_sectors())
        {
            return Ok(Some((VIRTIO_BLK_S_IOERR, 0)));
        }
        if len == 0 {
            return Ok(Some((VIRTIO_BLK_S_OK, 0)));
        }
        // At most the size of a file, see is_on_disk.
        request.begin(transfer, request.sector.saturating_mul(SECTOR_BYTES))?;
        Ok(None)
    }

    /// Discards or zeroes; the status to answer.
    fn deallocate(&self, request: &mut Request, op: RangeOp) -> Result<u32, ChainError> {
        let disk = &self.backend.disk;
        let metrics = &self.backend.metrics;
        let mut payload = [0; MAX_PAYLOAD_BYTES];
        let len = request
            .readable
            .take_front(&self.ram, &mut payload)
            .map_err(|source| ChainError::NotReadable { source })?;
        let payload = payload.get(..len).unwrap_or_default();
        if payload.is_empty() || request.readable.len_bytes() > 0 {
            return Ok(VIRTIO_BLK_S_IOERR);
        }
        if op == RangeOp::Discard && !disk.can_discard() {
            return Ok(VIRTIO_BLK_S_UNSUPP);
        }
        let ranges = || ranges(op, payload, disk.num_sectors());
        if let Some(status) = ranges().find_map(Result::err) {
            return Ok(status);
        }
        for range in ranges().filter_map(Result::ok) {
            let _change = self.backend.change(range.offset, range.len);
            let result = match op {
                RangeOp::Discard => disk.discard(range.offset, range.len),
                RangeOp::WriteZeroes => disk.write_zeroes(range.offset, range.len, range.may_unmap),
            };
            match result {
                Ok(()) => metrics.discarded_bytes.add(range.len),
                Err(error) if is_unsupported(&error) => return Ok(VIRTIO_BLK_S_UNSUPP),
                Err(error) => return Ok(self.host_error(request, &error)),
            }
        }
        let is_writeback = self.backend.is_writeback.load(Ordering::Relaxed);
        if !is_writeback && let Err(error) = disk.flush() {
            return Ok(self.host_error(request, &error));
        }
        match op {
            RangeOp::Discard => metrics.discards.add(1),
            RangeOp::WriteZeroes => metrics.write_zeroes.add(1),
        }
        Ok(VIRTIO_BLK_S_OK)
    }

    fn start(&mut self, mut request: Request) -> Result<(), BlkFault> {
        // Each request occupies a descriptor of the guest, so an honest one cannot have more.
        let limit = usize::from(self.queue.size());
        if self.engine.num_in_flight() >= limit {
            return Err(BlkFault::TooManyRequests { limit });
        }
        self.in_flight_bytes += u64::from(request.len_bytes());
        request.watched = self.backend.watch(&request);
        let finished = self
            .engine
            .start(request)
            .map_err(|source| BlkFault::Engine { source })?;
        match finished {
            Some((request, result)) => self.finish(request, result),
            None => Ok(()),
        }
    }

    fn finish(&mut self, mut request: Request, result: io::Result<()>) -> Result<(), BlkFault> {
        if let Some(watched) = request.watched.take()
            && result.is_ok()
        {
            watched.succeed();
        }
        // Added by `start`.
        self.in_flight_bytes -= u64::from(request.len_bytes());
        let metrics = &self.backend.metrics;
        let bytes = u64::from(request.done());
        let status = match (result, request.transfer()) {
            (Err(error), _) => self.host_error(&request, &error),
            (Ok(()), Transfer::Read) => {
                metrics.reads.add(1);
                metrics.read_bytes.add(bytes);
                VIRTIO_BLK_S_OK
            }
            (Ok(()), Transfer::Write { .. }) => {
                metrics.writes.add(1);
                metrics.written_bytes.add(bytes);
                VIRTIO_BLK_S_OK
            }
            (Ok(()), Transfer::Flush) => {
                metrics.flushes.add(1);
                VIRTIO_BLK_S_OK
            }
        };
        let written = match request.transfer() {
            Transfer::Read => request.done(),
            Transfer::Write { .. } | Transfer::Flush => 0,
        };
        self.answer(request, status, written)
    }

    /// Counts what the host said and logs it sparsely; the status to answer.
    fn host_error(&self, request: &Request, error: &io::Error) -> u32 {
        if self.backend.metrics.host_errors.count_sparsely() {
            tracing::warn!(
                "{}: request type {} at sector {}: {error}",
                self.backend.interrupt.name(),
                request.op,
                request.sector,
            );
        }
        VIRTIO_BLK_S_IOERR
    }

    /// Writes the status and gives the chain back; `written` bytes of the writable part before the
    /// status are filled.
    fn answer(&mut self, request: Request, status: u32, written: u32) -> Result<(), BlkFault> {
        let head = request.head;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "0 to 2, and one byte in the ABI"
        )]
        let status_byte = status as u8;
        request
            .write_status(&self.ram, status_byte)
            .map_err(|source| BlkFault::Chain { head, source })?;
        // The length promises that all before it is written (VIRTIO 1.2 §2.7.8.2), so the status
        // counts only if there is no gap before it.
        let has_gap = written < request.writable.len_bytes();
        let len = written.saturating_add(u32::from(!has_gap));
        self.queue.add_used(&self.ram, head, len)?;
        self.has_news = true;
        if status != VIRTIO_BLK_S_OK {
            self.backend.metrics.errors.add(1);
        }
        self.pool.push(request);
        Ok(())
    }
}

fn done(status: u32) -> Option<(u32, u32)> {
    Some((status, 0))
}
