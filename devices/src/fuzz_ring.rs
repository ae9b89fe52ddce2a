//! Rings on bytes of a fuzzer, and who counts that a guest was cut off.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use vbus::abi::{RING_SIGNAL_OFFSET, RING_SLOTS_OFFSET};
use vbus::device::{FaultReporter, ShmSignal};
use vbus::memory::{Region, Words};
use vbus::ring::{Geometry, North, South};
use vbus::signal::{self, Side};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::client::RingEnd;

/// Slots of each ring.
pub(crate) const NUM_SLOTS: u32 = 16;
/// Bytes of a slot.
pub(crate) const SLOT_BYTES: usize = 32;
/// Bytes of all slots.
pub(crate) const RING_BYTES: usize = NUM_SLOTS as usize * SLOT_BYTES;
/// Of the control word: a slot that was published in the first lap.
const FIRST_TURN: u64 = 1 << 48;

/// Counts how often the guest was cut off.
#[derive(Debug, Default)]
pub(crate) struct Faults(AtomicUsize);

impl Faults {
    /// So far.
    pub(crate) fn count(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl FaultReporter for Faults {
    fn report(&self, _reason: &dyn fmt::Display) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Cuts `len` bytes off `bytes`; fewer if there are no more.
pub(crate) fn cut<'b>(bytes: &mut &'b [u8], len: usize) -> &'b [u8] {
    let (piece, rest) = bytes.split_at(len.min(bytes.len()));
    *bytes = rest;
    piece
}

/// Cuts a byte off `bytes`; 0 if there is none.
pub(crate) fn byte(bytes: &mut &[u8]) -> u8 {
    cut(bytes, 1).first().copied().unwrap_or(0)
}

/// Cuts a little-endian number off `bytes`; missing bytes are 0.
pub(crate) fn half(bytes: &mut &[u8]) -> u16 {
    u16::from_le_bytes([byte(bytes), byte(bytes)])
}

/// A ring whose slots are `slots`, and its memory; with `has_turns` as if they had been published by
/// the rules.
#[expect(clippy::expect_used, reason = "a fuzzer without memory cannot go on")]
pub(crate) fn ring(slots: &[u8], has_turns: bool) -> (RingEnd, Region) {
    let geometry = Geometry::new(NUM_SLOTS).expect("16 is a power of two");
    let region = Region::new_private(geometry.len_bytes()).expect("out of memory");
    geometry.format(&region).expect("it is long enough");
    region.write(RING_SLOTS_OFFSET, slots).expect("it fits");
    if has_turns {
        for slot_idx in 0..slots.len().div_ceil(SLOT_BYTES) {
            let offset = RING_SLOTS_OFFSET + slot_idx * SLOT_BYTES + 24;
            let len = region.load(offset, Relaxed) & u64::from(u32::MAX);
            region.store(offset, len | FIRST_TURN, Relaxed);
        }
    }
    (south(&region), region)
}

/// An empty ring, for a client that keeps to the rules; both ends of it.
#[expect(clippy::expect_used, reason = "a fuzzer without memory cannot go on")]
pub(crate) fn both_ends() -> (North<Region>, RingEnd) {
    let geometry = Geometry::new(NUM_SLOTS).expect("16 is a power of two");
    let region = Region::new_private(geometry.len_bytes()).expect("out of memory");
    let north = North::create(region.clone(), geometry).expect("it is long enough");
    (north, south(&region))
}

#[expect(clippy::expect_used, reason = "a fuzzer without memory cannot go on")]
fn south(region: &Region) -> RingEnd {
    let (sender, receiver) =
        signal::attach(region.clone(), RING_SIGNAL_OFFSET, Side::South).expect("it is in there");
    let new_event = || EventFd::new(EFD_NONBLOCK).expect("out of descriptors");
    RingEnd {
        ring: South::attach(region.clone()).expect("it was formatted"),
        signal: ShmSignal {
            sender,
            receiver,
            doorbell: new_event(),
            wake_up: Arc::new(new_event()),
        },
    }
}
