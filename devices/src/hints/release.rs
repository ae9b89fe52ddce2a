//! The ring of blocks that a guest gives away, and the worker that serves it.
//!
//! The worker touches guest memory only between blocks: while the keeper takes one, it owns pages that
//! the ring itself may be in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use event_manager::{EventOps, Events, MutEventSubscriber};
use parking_lot::Mutex;
use vbus::abi::hints::{MAX_RELEASE_BYTES, PAGE_BYTES, ReleaseMeta, release_kind, release_result};
use vbus::ring::{RingFault, Slot};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::little_endian::U64;

use super::handle::Shared;
use super::keeper::NotRam;
use super::metrics::HintsMetrics;
use crate::client::{Client, RingEnd, readable};

const DOORBELL: u32 = 0;
const KICK: u32 = 1;

/// Blocks that are served in a turn: as many as Linux reports at once.
const BUDGET: usize = 32;

/// What no driver that follows the rules does.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReleaseFault {
    #[error(transparent)]
    Ring(#[from] RingFault),
    #[error("{len} bytes at {addr:#x} are no block")]
    NoBlock { addr: u64, len: u32 },
    #[error("block at {addr:#x} is {source}")]
    NotRam { addr: u64, source: NotRam },
    #[error("blocks of kind {kind}")]
    Kind { kind: u8 },
    #[error("a reserved field is not 0")]
    Reserved,
}

/// What is left to do after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing; the doorbell tells when there is.
    Idle,
    /// Maybe more.
    More,
}

/// The ring.
pub(super) struct ReleaseQueue {
    pub(super) end: RingEnd,
}

fn meta_of(words: [u64; 2]) -> ReleaseMeta {
    let words: [U64; 2] = words.map(U64::new);
    zerocopy::transmute!(words)
}

fn words_of(meta: ReleaseMeta) -> [u64; 2] {
    let words: [U64; 2] = zerocopy::transmute!(meta);
    words.map(U64::get)
}

impl ReleaseQueue {
    /// Takes blocks until there are none, the budget is used up or `is_stopping`.
    pub(super) fn serve(
        &mut self,
        shared: &Shared,
        is_stopping: &AtomicBool,
    ) -> Result<Progress, ReleaseFault> {
        self.end.signal.receiver.disable();
        let mut num_served = 0;
        let result = loop {
            if num_served == BUDGET || is_stopping.load(Relaxed) {
                break Ok(Progress::More);
            }
            match self.serve_one(shared) {
                Ok(true) => num_served += 1,
                Ok(false) if self.end.signal.receiver.enable() => break Ok(Progress::Idle),
                Ok(false) => break Ok(Progress::More),
                Err(fault) => break Err(fault),
            }
        };
        if num_served > 0 {
            self.notify(&shared.metrics);
        }
        result
    }

    /// Takes one block; false if there is none.
    fn serve_one(&mut self, shared: &Shared) -> Result<bool, ReleaseFault> {
        let mut slots = [Slot::default()];
        if self.end.ring.take(&mut slots)? == 0 {
            return Ok(false);
        }
        let [slot] = &mut slots;
        release(slot, shared)?;
        self.end.ring.give_back_filled(&slots);
        Ok(true)
    }

    /// Gives back what is in the ring now, as it is.
    pub(super) fn keep_all(&mut self, metrics: &HintsMetrics) -> Result<(), RingFault> {
        for _ in 0..self.end.ring.num_slots() {
            let mut slots = [Slot::default()];
            if self.end.ring.take(&mut slots)? == 0 {
                break;
            }
            let [slot] = &mut slots;
            finish(slot, release_result::KEPT, 0);
            self.end.ring.give_back_filled(&slots);
            metrics.kept_blocks.add(1);
        }
        self.notify(metrics);
        Ok(())
    }

    fn notify(&self, metrics: &HintsMetrics) {
        if self.end.signal.notify() {
            metrics.signals.add(1);
        }
    }
}

/// Gives the block in `slot` to the keeper, and makes `slot` its answer.
fn release(slot: &mut Slot, shared: &Shared) -> Result<(), ReleaseFault> {
    let meta = meta_of(slot.meta);
    let metrics = &shared.metrics;
    let taken = match meta.kind {
        release_kind::FREE => &metrics.taken_blocks,
        release_kind::EVICTED => &metrics.evicted_blocks,
        kind => return Err(ReleaseFault::Kind { kind }),
    };
    if meta.reserved0.get() != 0 || meta.reserved1.get() != 0 {
        return Err(ReleaseFault::Reserved);
    }
    let &mut Slot { addr, len, .. } = slot;
    let is_block = len.is_power_of_two()
        && (PAGE_BYTES..=MAX_RELEASE_BYTES).contains(&len)
        && addr.is_multiple_of(len.into());
    if !is_block {
        return Err(ReleaseFault::NoBlock { addr, len });
    }
    let released = shared.keeper.release(addr, len.into());
    let released = released.map_err(|source| ReleaseFault::NotRam { addr, source })?;
    metrics.freed_bytes.add(released.freed_bytes);
    let result = if released.is_whole {
        taken.add(1);
        release_result::TAKEN
    } else {
        metrics.kept_blocks.add(1);
        release_result::KEPT
    };
    finish(slot, result, released.freed_bytes);
    Ok(())
}

fn finish(slot: &mut Slot, result: u8, freed_bytes: u64) {
    slot.meta = words_of(ReleaseMeta {
        result,
        num_freed: freed_bytes.into(),
        ..meta_of(slot.meta)
    });
}

/// Serves the ring of one connection while it is started.
pub(super) struct Handler {
    pub(super) shared: Arc<Shared>,
    pub(super) client: Arc<Client>,
    pub(super) queue: Arc<Mutex<ReleaseQueue>>,
    pub(super) doorbell: Arc<EventFd>,
    /// Another turn. Not read either: each write is an edge.
    pub(super) kick: EventFd,
    pub(super) is_stopping: Arc<AtomicBool>,
}

impl Handler {
    fn kick(&self) {
        // Fails only when the counter is full, and then it is readable.
        let _ = self.kick.write(1);
    }

    fn watched(&self) -> [(&EventFd, u32); 2] {
        [(&self.kick, KICK), (&self.doorbell, DOORBELL)]
    }
}

impl MutEventSubscriber for Handler {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.data() == DOORBELL {
            self.shared.metrics.doorbells.add(1);
        }
        if self.is_stopping.load(Relaxed) {
            return;
        }
        if !self.client.is_cut_off() {
            let mut queue = self.queue.lock();
            match queue.serve(&self.shared, &self.is_stopping) {
                Ok(Progress::Idle) => {}
                Ok(Progress::More) => self.kick(),
                Err(fault) => self.client.cut_off("release", fault),
            }
        }
        if self.client.is_cut_off() {
            for (event, _) in self.watched() {
                // An error means that it was not watched.
                let _ = ops.remove(Events::empty(event));
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (event, data) in self.watched() {
            if let Err(error) = ops.add(Events::with_data(event, data, readable())) {
                // It comes from the client: not worth more than it can repeat without harm.
                tracing::debug!("cannot watch a doorbell of page hints: {error}");
            }
        }
        // The client may have filled its ring before anybody listened.
        self.kick();
    }
}
