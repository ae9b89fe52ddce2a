//! The end of the host.

use std::sync::atomic::Ordering::{Acquire, Release};

use super::layout::{Control, Geometry, RingError, RingFault, Slot, Slots};
use crate::memory::{Region, Words};

/// The south's end of a ring: takes slots and returns them in the same order.
#[derive(Debug)]
pub struct South<M = Region> {
    slots: Slots<M>,
    /// Position of the next slot to take.
    taken: u64,
    /// Position of the next slot to return; at most `num_slots` behind `taken`.
    returned: u64,
}

impl South<Region> {
    /// Attaches to the ring at the start of `region`, which the north has made.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn attach(region: Region) -> Result<Self, RingError> {
        let geometry = Geometry::read(&region)?;
        Ok(Self::new(region, geometry))
    }
}

impl<M: Words> South<M> {
    /// The end of an empty ring in `words`, which is long enough.
    ///
    /// # Panics
    /// The memory is shorter than the ring.
    pub fn new(words: M, geometry: Geometry) -> Self {
        South {
            slots: Slots::new(words, geometry),
            taken: 0,
            returned: 0,
        }
    }

    /// Number of slots.
    pub fn num_slots(&self) -> u32 {
        self.slots.num_slots()
    }

    /// Slots that were taken and not returned.
    #[expect(clippy::cast_possible_truncation, reason = "at most num_slots")]
    pub fn outstanding(&self) -> u32 {
        (self.taken - self.returned) as u32
    }

    /// Takes the slots that the north published, oldest first; how many.
    ///
    /// The copies are all there is to look at: the north may write the slots again at any time.
    ///
    /// # Errors
    /// [`RingFault::BadTurn`].
    #[inline]
    pub fn take(&mut self, slots: &mut [Slot]) -> Result<usize, RingFault> {
        let mut num_taken = 0;
        for slot in slots {
            if self.outstanding() == self.num_slots() {
                break;
            }
            // Pairs with the release in `North::publish`.
            let control = self.slots.control(self.taken, Acquire);
            if !self.is_published(control.turn)? {
                break;
            }
            *slot = self.slots.payload(self.taken, control);
            self.taken += 1;
            num_taken += 1;
        }
        Ok(num_taken)
    }

    /// True if `turn` says that the next slot is there to be taken.
    #[inline]
    fn is_published(&self, turn: u16) -> Result<bool, RingFault> {
        let expected = self.slots.turn(self.taken);
        match expected.wrapping_sub(turn) {
            0 => Ok(true),
            // From the lap before: returned by itself, or with a batch.
            1 | 2 => Ok(false),
            _ => Err(RingFault::BadTurn {
                slot_idx: self.slots.slot_idx(self.taken),
                turn,
                expected,
            }),
        }
    }

    /// Returns the `num_slots` oldest slots that are out as one batch, unchanged; as many as are out
    /// at most. What the north finds in them is what it wrote, except that the first one's `len`
    /// is 0.
    #[inline]
    pub fn give_back(&mut self, num_slots: u32) {
        let num_slots = num_slots.min(self.outstanding());
        if num_slots == 0 {
            return;
        }
        let control = Control {
            len: 0,
            batch: batch(num_slots),
            turn: self.slots.turn(self.returned).wrapping_add(1),
        };
        // Pairs with the acquire in `North::look`.
        self.slots.set_control(self.returned, control, Release);
        self.returned += u64::from(num_slots);
    }

    /// Writes `slots` over the oldest ones that are out and returns them as one batch; how many, as
    /// many as are out at most.
    #[inline]
    pub fn give_back_filled(&mut self, slots: &[Slot]) -> usize {
        let num_slots = slots.len().min(self.outstanding() as usize);
        let slots = slots.get(..num_slots).unwrap_or_default();
        #[expect(clippy::cast_possible_truncation, reason = "at most num_slots")]
        let batch = batch(num_slots as u32);
        self.slots.hand_over(self.returned, slots, 1, batch);
        self.returned += num_slots as u64;
        num_slots
    }
}

/// A number of slots as the field has it; rings have at most [`crate::abi::RING_MAX_SLOTS`].
fn batch(num_slots: u32) -> u16 {
    u16::try_from(num_slots).unwrap_or(u16::MAX)
}
