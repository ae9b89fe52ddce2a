//! The memory interface `page-hints`, version 1.
//!
//! The guest tells the host what its pages are worth, without an exit for each: a word for each page
//! in tables that are shared once. A word is a hint. It chooses what the host looks at first, and
//! gives no right to lose a byte.
//!
//! A guest gives memory away by the release ring alone: an explicit act, of blocks that it owns.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What interfaces of this ABI have as their kind.
pub const KIND: &str = "page-hints";
/// Version of this ABI, as given to `open`.
pub const VERSION: u32 = 1;

/// Bytes of a page, whatever the guest's own are.
pub const PAGE_BYTES: u32 = 4096;
/// Pages that a table has the words of.
pub const TABLE_PAGES: u32 = 1 << 17;
/// Most bytes of a block that is released: a power of two of pages.
pub const MAX_RELEASE_BYTES: u32 = 4 << 20;

/// Shared memory of a connection, by its id.
pub mod shm_id {
    /// Ring of blocks that the guest gives away, [`super::ReleaseMeta`] in each slot; with a signal.
    pub const RELEASE_RING: u32 = 0;
    /// Ring of empty slots that come back as events; with a signal.
    pub const EVENT_RING: u32 = 1;
    /// The words of pages 0 to [`super::TABLE_PAGES`] - 1; without a signal. The next table has the
    /// next id, and so on. A table may be shorter; pages without a word are stable.
    pub const TABLE: u32 = 16;
}

/// Functions of `call`.
pub mod func {
    /// [`super::HelloData`] in and out. `EBUSY` if started.
    pub const HELLO: u32 = 0;
    /// [`super::DiskData`] in and out: a disk that words name, and how the host knows it. `ENOENT`:
    /// it has none like that. `EEXIST`: the slot is taken. At any time: disks come late.
    pub const DISK: u32 = 1;
    /// Starts. No data. `EINVAL` without what was negotiated, `EEXIST` if started.
    pub const START: u32 = 2;
    /// Stops: the host reads no word and takes no block any more when it returns. What is in the
    /// release ring comes back as [`super::release_result::KEPT`]. No data. `ENOENT` if stopped.
    pub const STOP: u32 = 3;
    /// The guest has done what [`super::event::RELEASE_NOW`] wanted: its argument, 8 bytes in.
    pub const RELEASED: u32 = 4;
}

/// Bits of [`HelloData::features`].
pub mod feature {
    /// The release ring.
    pub const RELEASE: u32 = 1 << 0;
    /// The tables.
    pub const TABLE: u32 = 1 << 1;
    /// [`super::event::DROPPED`].
    pub const DROPPED: u32 = 1 << 2;
}

/// Data of [`func::HELLO`].
#[repr(C, align(8))]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HelloData {
    /// [`feature`]; in: what the driver wants, out: what it gets.
    pub features: U32,
    /// Out: bytes of the smallest block that is worth releasing, a power of two of pages.
    pub release_bytes: U32,
    /// Out: pages from address 0 to the end of RAM.
    pub num_pages: U64,
}

/// Bytes of the serial number of a disk.
pub const SERIAL_BYTES: usize = 20;

/// Data of [`func::DISK`].
#[repr(C, align(8))]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DiskData {
    /// 1 to 7: how words name it.
    pub slot: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Serial number of the disk, ASCII, filled up with zeros.
    pub serial: [u8; SERIAL_BYTES],
    /// Out: sectors of 512 bytes.
    pub num_sectors: U64,
}

/// `meta` of a slot of the release ring, whose `addr` and `len` are those of the block: a power of
/// two of pages, aligned to itself.
#[repr(C, align(8))]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ReleaseMeta {
    /// [`release_kind`].
    pub kind: u8,
    /// When it returns: [`release_result`].
    pub result: u8,
    /// Zero.
    pub reserved0: U16,
    /// Zero.
    pub reserved1: U32,
    /// When it returns: bytes of memory that the host has freed.
    pub num_freed: U64,
}

/// Values of [`ReleaseMeta::kind`].
pub mod release_kind {
    /// Free memory of the guest.
    pub const FREE: u8 = 0;
    /// A page that was dropped, and that the guest has removed from its cache.
    pub const EVICTED: u8 = 1;
}

/// Values of [`ReleaseMeta::result`].
pub mod release_result {
    /// The block is zero when it is read next.
    pub const TAKEN: u8 = 0;
    /// Each page of it is zero or what it was.
    pub const KEPT: u8 = 1;
}

/// Events in `meta[0]` of a slot of the event ring; `meta[1]` is the argument.
pub mod event {
    /// Release what is free now, then call [`super::func::RELEASED`] with the argument.
    pub const RELEASE_NOW: u64 = 0;
    /// The pages at `addr`, `len` bytes, were dropped: a reader waits for a disk. Needs
    /// [`super::feature::DROPPED`].
    pub const DROPPED: u64 = 1;
    /// The scanner may look at so many pages in a second; 0: it rests.
    pub const SCAN_RATE: u64 = 2;
}

/// A word of a table: bits and fields from bit 0 on.
pub mod word {
    /// Bits 1:0: [`super::page_state`].
    pub const STATE_MASK: u64 = 0x3;
    /// Bits 4:2: age, 0 (used lately) to 7.
    pub const AGE_SHIFT: u32 = 2;
    /// Its largest value.
    pub const AGE_MAX: u64 = 7;
    /// Bits 7:5: slot of the disk; 0: unknown, and so is the sector.
    pub const DISK_SHIFT: u32 = 5;
    /// Its largest value.
    pub const DISK_MAX: u64 = 7;
    /// Bits 47:8: sector of 512 bytes.
    pub const SECTOR_SHIFT: u32 = 8;
    /// Its largest value.
    pub const SECTOR_MAX: u64 = (1 << 40) - 1;
    /// Bits 63:48: one more with each change by the guest.
    pub const SEQUENCE_SHIFT: u32 = 48;
}

/// States of a page in its word.
pub mod page_state {
    /// The content matters, for all the guest knows.
    pub const STABLE: u64 = 0;
    /// No content. For those who look at the table only: memory is given away by the release ring.
    pub const UNUSED: u64 = 1;
    /// The same as its sectors have.
    pub const VOLATILE: u64 = 2;
    /// As volatile, and mapped where it may be written to.
    pub const MAYBE_VOLATILE: u64 = 3;
}

const _: () = assert!(size_of::<HelloData>() == 16);
const _: () = assert!(size_of::<DiskData>() == 32);
const _: () = assert!(size_of::<ReleaseMeta>() == 16);
