//! Layouts and numbers that both sides of the bus share: version 2 of the ABI of AlacrityVM.
//!
//! Little-endian everywhere, explicit padding, the same for 32- and 64-bit peers. The C twin is
//! `guest-kernel/include/alacrity/vbus_abi.h`; a test compiles both and compares every size and
//! offset. The text with the rules is `docs/abi.md`.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub mod hints;
pub mod pci;
pub mod venet;
pub mod wire;

/// Bytes of a cache line: what is written by different sides never shares one.
pub const CACHE_LINE_BYTES: usize = 64;

/// Version of this ABI: rings, signals, verbs and events.
pub const ABI_VERSION: u32 = 2;

/// Priorities of signals: 0, the lowest, to 7. A larger one is taken for 7.
pub const NUM_PRIORITIES: u32 = 8;

/// First field of a ring: `VBR2` as text.
pub const RING_MAGIC: u32 = u32::from_le_bytes(*b"VBR2");
/// Layout version of rings.
pub const RING_VERSION: u32 = 2;
/// Most slots of a ring; the number of slots is a power of two.
pub const RING_MAX_SLOTS: u32 = 4096;
/// Byte offset of the [`SignalPair`] in a ring.
pub const RING_SIGNAL_OFFSET: usize = 128;
/// Byte offset of the first slot in a ring.
pub const RING_SLOTS_OFFSET: usize = 256;

/// Flags of one direction of a shm-signal, in a cache line of their own.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SignalFlags {
    /// Not 0: the receiver wants to be woken. Written by the receiver only.
    pub enabled: U64,
    /// Not 0: something changed since the receiver last looked. Set by the sender, cleared by the
    /// receiver.
    pub dirty: U64,
    /// Zero.
    pub reserved: [u8; 48],
}

/// A shm-signal: both directions.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SignalPair {
    /// Towards the south: the north sends, the south receives.
    pub to_south: SignalFlags,
    /// Towards the north: the south sends, the north receives.
    pub to_north: SignalFlags,
}

/// The start of a ring. The north writes it once, before it shares the ring; the south copies it
/// once, when it attaches.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RingHeader {
    /// [`RING_MAGIC`].
    pub magic: U32,
    /// [`RING_VERSION`].
    pub version: U32,
    /// Number of slots: a power of two, at most [`RING_MAX_SLOTS`].
    pub num_slots: U32,
    /// Bytes of a slot: `size_of::<RingSlot>()`.
    pub slot_bytes: U32,
    /// Zero.
    pub reserved: [u8; RING_SIGNAL_OFFSET - 16],
    /// Wakes either side.
    pub signal: SignalPair,
}

/// One slot of a ring. `control` is the last eight bytes, written and read as one.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RingSlot {
    /// Where the buffer is: an address in the memory context of the connection.
    pub addr: U64,
    /// Defined by the device class.
    pub meta: [U64; 2],
    /// Bytes in the buffer, or its capacity.
    pub len: U32,
    /// On return: number of slots that come back with this one, itself included. Else 0.
    pub batch: U16,
    /// Whose turn it is: 2 × lap + 1 when the north publishes, 2 × lap + 2 when the south returns
    /// it, modulo 2¹⁶. Odd: the south owns the slot; even: the north.
    pub turn: U16,
}

const _: () = assert!(size_of::<SignalFlags>() == CACHE_LINE_BYTES);
const _: () = assert!(size_of::<RingHeader>() == RING_SLOTS_OFFSET);
const _: () = assert!(std::mem::offset_of!(RingHeader, signal) == RING_SIGNAL_OFFSET);
const _: () = assert!(size_of::<RingSlot>() == 32);
