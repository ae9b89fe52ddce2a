//! Where things are in a ring, and what a slot says.

use std::mem::offset_of;
use std::sync::atomic::Ordering::{self, Relaxed};

use zerocopy::{FromZeros, IntoBytes};

use crate::abi::{
    RING_MAGIC, RING_MAX_SLOTS, RING_SLOTS_OFFSET, RING_VERSION, RingHeader, RingSlot,
};
use crate::memory::{Region, RegionError, Words};

const SLOT_BYTES: u32 = 32;
const _: () = assert!(size_of::<RingSlot>() == SLOT_BYTES as usize);

const ADDR: usize = offset_of!(RingSlot, addr);
const META: usize = offset_of!(RingSlot, meta);
/// `len`, `batch` and `turn` as one word.
const CONTROL: usize = offset_of!(RingSlot, len);
const _: () = assert!(CONTROL + 8 == size_of::<RingSlot>());

/// Why memory is not a usable ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// Not a power of two from 1 to [`RING_MAX_SLOTS`].
    #[error("ring of {num_slots} slots, want a power of two up to {RING_MAX_SLOTS}")]
    BadCount {
        /// What was found or asked for.
        num_slots: u32,
    },
    /// Shorter than the slots that the header promises.
    #[error("ring of {num_slots} slots in {len} bytes, {needed} are needed")]
    TooShort {
        /// What the header says.
        num_slots: u32,
        /// Bytes of memory.
        len: usize,
        /// Bytes for so many slots.
        needed: usize,
    },
    /// Not a ring, or of another version.
    #[error(
        "no ring of version {RING_VERSION} (magic {magic:#x}, version {version}, slots of {slot_bytes} bytes)"
    )]
    BadHeader {
        /// Found in the memory.
        magic: u32,
        /// Found in the memory.
        version: u32,
        /// Found in the memory.
        slot_bytes: u32,
    },
    /// Shorter than a header.
    #[error("memory too short for a ring")]
    Memory {
        /// What is wrong with it.
        source: RegionError,
    },
}

/// What the other end of a ring cannot have done by following the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// The slot is neither this side's nor on its way.
    #[error("slot {slot_idx} has turn {turn}, want {expected}")]
    BadTurn {
        /// Number of the slot in the ring.
        slot_idx: u32,
        /// What was found.
        turn: u16,
        /// The turn of the next one to come.
        expected: u16,
    },
    /// More slots come back than are out, or none.
    #[error("slot {slot_idx} returns {batch} slots, {outstanding} are out")]
    BadBatch {
        /// Number of the slot in the ring.
        slot_idx: u32,
        /// What was found.
        batch: u16,
        /// How many it could be at most.
        outstanding: u32,
    },
}

/// What a slot carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slot {
    /// Address of the buffer in the memory context of the connection.
    pub addr: u64,
    /// Bytes in the buffer, or its capacity.
    pub len: u32,
    /// Defined by the device class.
    pub meta: [u64; 2],
}

/// Number of slots, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    num_slots: u32,
}

impl Geometry {
    /// A ring of `num_slots` slots.
    ///
    /// # Errors
    /// [`RingError::BadCount`].
    pub fn new(num_slots: u32) -> Result<Self, RingError> {
        if !num_slots.is_power_of_two() || num_slots > RING_MAX_SLOTS {
            return Err(RingError::BadCount { num_slots });
        }
        Ok(Geometry { num_slots })
    }

    /// Number of slots.
    pub fn num_slots(self) -> u32 {
        self.num_slots
    }

    /// Bytes of memory that the ring takes.
    pub fn len_bytes(self) -> usize {
        RING_SLOTS_OFFSET + self.num_slots as usize * size_of::<RingSlot>()
    }

    /// Writes an empty ring with this geometry to the start of `region`, for the north.
    ///
    /// # Errors
    /// [`RingError::TooShort`].
    pub fn format(self, region: &Region) -> Result<(), RingError> {
        self.check_len(region.len())?;
        let memory = |source| RingError::Memory { source };
        let zeros = [0; size_of::<RingSlot>()];
        for slot_idx in 0..self.num_slots as usize {
            let offset = RING_SLOTS_OFFSET + slot_idx * size_of::<RingSlot>();
            region.write(offset, &zeros).map_err(memory)?;
        }
        let header = RingHeader {
            magic: RING_MAGIC.into(),
            version: RING_VERSION.into(),
            num_slots: self.num_slots.into(),
            slot_bytes: SLOT_BYTES.into(),
            ..RingHeader::new_zeroed()
        };
        region.write(0, header.as_bytes()).map_err(memory)
    }

    /// Reads the geometry of the ring at the start of `region`, for the south. The header is not
    /// looked at again.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn read(region: &Region) -> Result<Self, RingError> {
        let mut header = RingHeader::new_zeroed();
        region
            .read(0, header.as_mut_bytes())
            .map_err(|source| RingError::Memory { source })?;
        let (magic, version) = (header.magic.get(), header.version.get());
        let slot_bytes = header.slot_bytes.get();
        if magic != RING_MAGIC || version != RING_VERSION || slot_bytes != SLOT_BYTES {
            return Err(RingError::BadHeader {
                magic,
                version,
                slot_bytes,
            });
        }
        let geometry = Geometry::new(header.num_slots.get())?;
        geometry.check_len(region.len())?;
        Ok(geometry)
    }

    fn check_len(self, len: usize) -> Result<(), RingError> {
        let needed = self.len_bytes();
        if len < needed {
            return Err(RingError::TooShort {
                num_slots: self.num_slots,
                len,
                needed,
            });
        }
        Ok(())
    }
}

/// The last word of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Control {
    pub len: u32,
    pub batch: u16,
    pub turn: u16,
}

impl From<u64> for Control {
    #[expect(clippy::cast_possible_truncation, reason = "takes the word apart")]
    #[inline]
    fn from(word: u64) -> Self {
        Control {
            len: word as u32,
            batch: (word >> 32) as u16,
            turn: (word >> 48) as u16,
        }
    }
}

impl From<Control> for u64 {
    #[inline]
    fn from(control: Control) -> Self {
        u64::from(control.len) | u64::from(control.batch) << 32 | u64::from(control.turn) << 48
    }
}

/// The slots of a ring by position: how many slots passed since the ring was made.
#[derive(Debug)]
pub(super) struct Slots<M> {
    words: M,
    num_slots: u32,
}

impl<M: Words> Slots<M> {
    pub fn new(words: M, geometry: Geometry) -> Self {
        assert!(words.len_bytes() >= geometry.len_bytes());
        Slots {
            words,
            num_slots: geometry.num_slots,
        }
    }

    pub fn num_slots(&self) -> u32 {
        self.num_slots
    }

    #[expect(clippy::cast_possible_truncation, reason = "masked")]
    #[inline]
    pub fn slot_idx(&self, position: u64) -> u32 {
        position as u32 & (self.num_slots - 1)
    }

    /// The turn of a slot that the north publishes at `position`; that of its return is one more.
    #[expect(clippy::cast_possible_truncation, reason = "turns are modulo 2^16")]
    #[inline]
    pub fn turn(&self, position: u64) -> u16 {
        let lap = position >> self.num_slots.trailing_zeros();
        (lap as u16).wrapping_mul(2).wrapping_add(1)
    }

    #[inline]
    fn offset(&self, position: u64) -> usize {
        RING_SLOTS_OFFSET + self.slot_idx(position) as usize * size_of::<RingSlot>()
    }

    #[inline]
    pub fn control(&self, position: u64, order: Ordering) -> Control {
        self.words
            .load(self.offset(position) + CONTROL, order)
            .into()
    }

    #[inline]
    pub fn set_control(&self, position: u64, control: Control, order: Ordering) {
        self.words
            .store(self.offset(position) + CONTROL, control.into(), order);
    }

    /// The rest of a slot whose control word was loaded.
    #[inline]
    pub fn payload(&self, position: u64, control: Control) -> Slot {
        let offset = self.offset(position);
        Slot {
            addr: self.words.load(offset + ADDR, Relaxed),
            len: control.len,
            meta: [
                self.words.load(offset + META, Relaxed),
                self.words.load(offset + META + 8, Relaxed),
            ],
        }
    }

    /// Writes `slots` from `position` on and hands them over with `turn`s that are `turn_offset`
    /// past the north's. The first one's control word, which says how many there are if `batch` is
    /// set, is stored last and releases the others.
    #[inline]
    pub fn hand_over(&self, position: u64, slots: &[Slot], turn_offset: u16, batch: u16) {
        for (nth, slot) in slots.iter().enumerate().rev() {
            let position = position + nth as u64;
            let offset = self.offset(position);
            self.words.store(offset + ADDR, slot.addr, Relaxed);
            let [meta0, meta1] = slot.meta;
            self.words.store(offset + META, meta0, Relaxed);
            self.words.store(offset + META + 8, meta1, Relaxed);
            let control = Control {
                len: slot.len,
                batch,
                turn: self.turn(position).wrapping_add(turn_offset),
            };
            self.set_control(position, control, Ordering::Release);
        }
    }
}
