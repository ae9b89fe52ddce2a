//! The sending end of a connection: slots of its transmit ring, as frames.

use std::ops::Range;

use vbus::abi::venet::{FrameMeta, MAX_SEGMENTS, Segment, frame_flag};
use vbus::memory::Region;
use vbus::residency::Access;
use vbus::ring::{RingFault, Slot};
use vm_memory::GuestAddress;
use zerocopy::{FromZeros, IntoBytes};

use super::frame::{BadFrame, Frame, HeadRoom, Limits, MOST_BYTES, Scratch};
use super::metrics::PortMetrics;
use super::packet::MAX_HEADER_BYTES;
use super::path::Path;
use super::rx::meta_of;
use crate::GuestRam;
use crate::client::RingEnd;
use crate::iovec::Piece;

/// Frames that are taken off the ring at once, and returned at once if they are small.
const BATCH_SLOTS: usize = 32;
/// Bytes of frames after which their slots are returned, and their receivers woken: these then work
/// while we do.
const BATCH_BYTES: u64 = 128 << 10;

/// Whether a queue has been served to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing left; its doorbell tells when there is.
    Idle,
    /// The budget is used up: let others have their turn, then go on.
    More,
    /// The next frame is not all in memory. Who brings it in says so.
    Away,
}

/// What the client cannot have done by following the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Ring(#[from] RingFault),
    #[error(transparent)]
    Frame(#[from] BadFrame),
}

/// What follows when there is nothing left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Sleep: the client's doorbell is asked for.
    Asleep,
    /// Another look, soon: it is not.
    Awake,
}

/// Takes frames from one client.
pub(super) struct Sender {
    end: RingEnd,
    ram: GuestRam,
    limits: Limits,
    /// Segments of scattered frames.
    pool: Option<Region>,
    /// If memory of the client may be away.
    access: Option<Access>,
    slots: Box<[Slot]>,
    /// Those of `slots` that were taken off the ring and not sent yet.
    unsent: Range<usize>,
    /// The first of them is not all in memory, and was counted.
    is_away: bool,
    segments: Box<[Segment]>,
    pieces: Vec<Piece>,
    /// Those of frames that are not sent yet.
    wanted: Vec<Piece>,
    head: HeadRoom,
}

impl Sender {
    pub(super) fn new(end: RingEnd) -> Self {
        let most = usize::from(MAX_SEGMENTS);
        Sender {
            end,
            ram: GuestRam::default(),
            limits: Limits { caps: 0, mtu: 0 },
            pool: None,
            access: None,
            unsent: 0..0,
            is_away: false,
            slots: vec![Slot::default(); BATCH_SLOTS].into_boxed_slice(),
            segments: vec![Segment::default(); most].into_boxed_slice(),
            pieces: Vec::with_capacity(most),
            wanted: Vec::with_capacity(2 * most),
            head: [0; MAX_HEADER_BYTES],
        }
    }

    /// Sets what holds from the next frame on.
    pub(super) fn configure(
        &mut self,
        ram: GuestRam,
        limits: Limits,
        pool: Option<Region>,
        access: Option<Access>,
    ) {
        self.ram = ram;
        self.limits = limits;
        self.pool = pool;
        self.access = access;
    }

    /// Until it is configured again nothing of the client's memory is accessed.
    pub(super) fn end_access(&mut self) {
        self.access = None;
    }

    /// Asks for no doorbell until [`Rest::Asleep`].
    pub(super) fn stay_awake(&self) {
        self.end.signal.receiver.disable();
    }

    /// Sends what the ring holds along `path`, at most about `budget` frames.
    ///
    /// # Errors
    /// The client broke the rules; its ring is not to be used again.
    pub(super) fn serve(
        &mut self,
        path: &mut dyn Path,
        scratch: &mut Scratch,
        metrics: &PortMetrics,
        budget: u32,
        rest: Rest,
    ) -> Result<Progress, Fault> {
        let mut budget = budget;
        self.end.signal.receiver.disable();
        loop {
            if self.unsent.is_empty() {
                self.unsent = 0..self.end.ring.take(&mut self.slots)?;
                metrics.batches.add((!self.unsent.is_empty()).into());
            }
            if self.unsent.is_empty() {
                if rest == Rest::Awake {
                    return Ok(Progress::Idle);
                }
                if self.end.signal.receiver.enable() {
                    return Ok(Progress::Idle);
                }
                self.end.signal.receiver.disable();
            }
            // An empty look costs as well: a client that only says "dirty" keeps nobody here.
            let cost = self.send(path, scratch, metrics)?.max(1);
            if !self.unsent.is_empty() {
                return Ok(Progress::Away);
            }
            budget = budget.saturating_sub(cost);
            if budget == 0 {
                return Ok(Progress::More);
            }
        }
    }

    /// Sends what was taken off the ring and returns the slots, up to a frame that is not all in memory;
    /// what it took, in frames copied.
    ///
    /// # Errors
    /// A frame that breaks the rules. Those before it are sent.
    fn send(
        &mut self,
        path: &mut dyn Path,
        scratch: &mut Scratch,
        metrics: &PortMetrics,
    ) -> Result<u32, BadFrame> {
        let mut batch = Batch::default();
        let mut cost = 0_u32;
        while let Some(slot) = self.slots.get(self.unsent.clone()).and_then(<[_]>::first) {
            let meta = meta_of(slot.meta);
            let segments = &mut self.segments;
            let gathered = gather(slot, &meta, self.pool.as_ref(), segments, &mut self.pieces);
            let section = self.access.as_ref().map(Access::enter);
            if gathered.is_ok()
                && slot.len <= MOST_BYTES
                && let Some(access) = &self.access
            {
                let has = |piece: &Piece| access.has(&self.ram, piece.gpa.0, piece.len, false);
                if !self.pieces.iter().all(has) {
                    drop(section);
                    self.wish_for_unsent();
                    // Once, however often it is looked at.
                    metrics.tx_away.add((!self.is_away).into());
                    self.is_away = true;
                    break;
                }
            }
            self.is_away = false;
            self.unsent.start += 1;
            let result = gathered.and_then(|()| {
                let (pieces, head) = (&self.pieces, &mut self.head);
                Frame::in_ram(&self.ram, pieces, slot.len, &meta, self.limits, head)
            });
            if let Err(reason) = result
                && reason.is_fault()
            {
                metrics.tx_errors.add(1);
                batch.end(&mut self.end, path, metrics);
                return Err(reason);
            }
            batch.num_slots += 1;
            match result {
                Ok(frame) => {
                    batch.num_packets += 1;
                    batch.num_bytes += u64::from(frame.len());
                    cost = cost.saturating_add(path.send(&frame, scratch).max(1));
                }
                Err(reason) => {
                    cost = cost.saturating_add(1);
                    if metrics.tx_errors.count_sparsely() {
                        tracing::warn!("{}: tx: {reason}", path.name());
                    }
                }
            }
            if batch.num_bytes >= BATCH_BYTES {
                std::mem::take(&mut batch).end(&mut self.end, path, metrics);
            }
        }
        batch.end(&mut self.end, path, metrics);
        Ok(cost)
    }

    /// Wishes for the frame that is not all in memory, and for those behind it: they may come from the
    /// same file.
    fn wish_for_unsent(&mut self) {
        let Some(access) = &self.access else { return };
        self.wanted.clear();
        for slot in self.slots.get(self.unsent.clone()).unwrap_or_default() {
            let (segments, pieces) = (&mut self.segments, &mut self.pieces);
            let gathered = gather(
                slot,
                &meta_of(slot.meta),
                self.pool.as_ref(),
                segments,
                pieces,
            );
            let is_enough = self.wanted.len() >= usize::from(MAX_SEGMENTS);
            if is_enough || gathered.is_err() || slot.len > MOST_BYTES {
                break;
            }
            self.wanted.append(pieces);
        }
        let ranges = self.wanted.iter().map(|piece| (piece.gpa.0, piece.len));
        access.wish(&self.ram, ranges, false);
    }
}

/// Frames that are sent, and whose slots are still here.
#[derive(Debug, Default)]
struct Batch {
    num_slots: u32,
    num_packets: u64,
    num_bytes: u64,
}

impl Batch {
    /// Returns the slots, and wakes whoever wants to know.
    fn end(self, end: &mut RingEnd, path: &mut dyn Path, metrics: &PortMetrics) {
        if self.num_slots == 0 {
            return;
        }
        metrics.tx_packets.add(self.num_packets);
        metrics.tx_bytes.add(self.num_bytes);
        // The frames are copied: the client may use its buffers again.
        end.ring.give_back(self.num_slots);
        path.flush();
        if end.signal.notify() {
            metrics.signals.add(1);
        }
    }
}

/// Lists in `pieces` where the frame in `slot` is. A list of segments is copied once.
fn gather(
    slot: &Slot,
    meta: &FrameMeta,
    pool: Option<&Region>,
    segments: &mut [Segment],
    pieces: &mut Vec<Piece>,
) -> Result<(), BadFrame> {
    pieces.clear();
    if meta.flags.get() & frame_flag::SG == 0 {
        pieces.push(Piece {
            gpa: GuestAddress(slot.addr),
            len: slot.len,
        });
        return Ok(());
    }
    let pool = pool.ok_or(BadFrame::Segments)?;
    let count = usize::from(meta.count.get());
    let segments = segments.get_mut(..count).ok_or(BadFrame::Segments)?;
    segments.fill(Segment::new_zeroed());
    let offset = usize::try_from(slot.addr).map_err(|_| BadFrame::Segments)?;
    pool.read(offset, segments.as_mut_bytes())
        .map_err(|_| BadFrame::Segments)?;
    let mut total = 0_u64;
    for segment in segments.iter() {
        let len = segment.len.get();
        if len == 0 || segment.reserved.get() != 0 {
            return Err(BadFrame::Segments);
        }
        total += u64::from(len);
        pieces.push(Piece {
            gpa: GuestAddress(segment.addr.get()),
            len,
        });
    }
    if total != u64::from(slot.len) {
        return Err(BadFrame::Segments);
    }
    Ok(())
}
