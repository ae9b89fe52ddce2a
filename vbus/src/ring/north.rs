//! The end that owns the memory.

use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::layout::{Geometry, RingError, RingFault, Slot, Slots};
use crate::memory::{Region, Words};

/// The north's end of a ring: publishes slots and reaps what comes back.
#[derive(Debug)]
pub struct North<M = Region> {
    slots: Slots<M>,
    /// Position of the next slot to publish.
    published: u64,
    /// Position of the next slot to come back; at most `num_slots` behind `published`.
    reaped: u64,
    /// Slots from `reaped` on that are known to be back.
    num_back: u32,
}

impl North<Region> {
    /// Makes an empty ring at the start of `region`.
    ///
    /// # Errors
    /// [`RingError::TooShort`].
    pub fn create(region: Region, geometry: Geometry) -> Result<Self, RingError> {
        geometry.format(&region)?;
        Ok(Self::new(region, geometry))
    }
}

impl<M: Words> North<M> {
    /// The end of an empty ring in `words`, which is long enough and zero but for the header.
    ///
    /// # Panics
    /// The memory is shorter than the ring.
    pub fn new(words: M, geometry: Geometry) -> Self {
        North {
            slots: Slots::new(words, geometry),
            published: 0,
            reaped: 0,
            num_back: 0,
        }
    }

    /// Number of slots.
    pub fn num_slots(&self) -> u32 {
        self.slots.num_slots()
    }

    /// Slots that are out: published and not reaped.
    #[expect(clippy::cast_possible_truncation, reason = "at most num_slots")]
    pub fn outstanding(&self) -> u32 {
        (self.published - self.reaped) as u32
    }

    /// Slots that can be published now.
    pub fn room(&self) -> u32 {
        self.num_slots() - self.outstanding()
    }

    /// Number in the ring of the slot that is published next: the key to what belongs to it.
    pub fn next_slot_idx(&self) -> u32 {
        self.slots.slot_idx(self.published)
    }

    /// Hands `slots` to the south as one batch, as far as there is room; how many that were.
    ///
    /// They take the slot numbers from [`North::next_slot_idx`] on, modulo the number of slots.
    #[inline]
    pub fn publish(&mut self, slots: &[Slot]) -> usize {
        let num_slots = slots.len().min(self.room() as usize);
        let slots = slots.get(..num_slots).unwrap_or_default();
        self.slots.hand_over(self.published, slots, 0, 0);
        self.published += num_slots as u64;
        num_slots
    }

    /// Takes back slots that the south returned, oldest first, with what is in them; how many.
    ///
    /// # Errors
    /// [`RingFault`].
    #[inline]
    pub fn reap(&mut self, slots: &mut [Slot]) -> Result<usize, RingFault> {
        let mut num_reaped = 0;
        for slot in slots {
            if self.num_back == 0 && !self.look()? {
                break;
            }
            let control = self.slots.control(self.reaped, Relaxed);
            *slot = self.slots.payload(self.reaped, control);
            self.reaped += 1;
            self.num_back -= 1;
            num_reaped += 1;
        }
        Ok(num_reaped)
    }

    /// Takes back all slots that the south returned, without a look at what is in them; how many.
    ///
    /// # Errors
    /// [`RingFault`].
    #[inline]
    pub fn reclaim(&mut self) -> Result<u32, RingFault> {
        let mut num_reclaimed = 0;
        while self.num_back != 0 || self.look()? {
            self.reaped += u64::from(self.num_back);
            num_reclaimed += self.num_back;
            self.num_back = 0;
        }
        Ok(num_reclaimed)
    }

    /// True if another batch is back.
    #[inline]
    fn look(&mut self) -> Result<bool, RingFault> {
        if self.reaped == self.published {
            return Ok(false);
        }
        // Pairs with the release in `South::give_back` and `South::give_back_filled`.
        let control = self.slots.control(self.reaped, Acquire);
        let published = self.slots.turn(self.reaped);
        if control.turn == published {
            return Ok(false);
        }
        let slot_idx = self.slots.slot_idx(self.reaped);
        if control.turn != published.wrapping_add(1) {
            return Err(RingFault::BadTurn {
                slot_idx,
                turn: control.turn,
                expected: published.wrapping_add(1),
            });
        }
        let num_back = u32::from(control.batch);
        if num_back == 0 || num_back > self.outstanding() {
            return Err(RingFault::BadBatch {
                slot_idx,
                batch: control.batch,
                outstanding: self.outstanding(),
            });
        }
        self.num_back = num_back;
        Ok(true)
    }
}
