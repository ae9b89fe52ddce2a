//! The seam to what keeps a guest's memory.

use vbus::abi::hints::SERIAL_BYTES;

/// What came of a block that the guest gave away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Released {
    /// Bytes of memory that were freed: less than the block has where it was a hole already.
    pub freed_bytes: u64,
    /// All of the block is zero now. If not, each page of it is zero or what it was.
    pub is_whole: bool,
}

/// A block that is not in RAM, or not in one part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not in RAM")]
pub struct NotRam;

/// A disk, as its keeper knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownDisk {
    /// The keeper's number for it.
    pub number: u8,
    /// Sectors of 512 bytes.
    pub num_sectors: u64,
}

/// Keeps the memory of one guest. Called from any thread.
pub trait Keeper: Send + Sync {
    /// Pages of 4 KiB from address 0 to the end of RAM.
    fn num_pages(&self) -> u64;

    /// The guest gives away `len` bytes at `gpa`: whole pages, at most
    /// [`vbus::abi::hints::MAX_RELEASE_BYTES`], anywhere in the address space. Must not access guest
    /// memory in a way that waits for the keeper.
    ///
    /// # Errors
    /// [`NotRam`]: nothing was done.
    fn release(&self, gpa: u64, len: u64) -> Result<Released, NotRam>;

    /// The disk with that serial number, filled up with zeros.
    fn disk(&self, serial: &[u8; SERIAL_BYTES]) -> Option<KnownDisk>;
}
