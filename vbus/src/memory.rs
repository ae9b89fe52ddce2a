//! Memory that two sides of a bus share.
//!
//! | type | what it is |
//! |---|---|
//! | [`GuestRam`] | all memory of one peer, by its own addresses: RAM of a guest, or the memfds a process shared |
//! | [`MemoryContext`] | where a connection gets it from |
//! | [`Region`] | one range of it with atomic access: a ring, a table |
//!
//! The other side may change any byte at any time. So nothing here hands out a reference into
//! shared memory: bytes are copied, words are loaded and stored atomically.
#![expect(unsafe_code, reason = "atomic access to shared mappings")]

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, fstatfs, ftruncate,
};
use rustix::io::Errno;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, MmapRegion, VolatileMemory, VolatileSlice,
};

use crate::residency::Residency;

/// `f_type` of the file system that plain memfds are on (Linux `include/uapi/linux/magic.h`).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// All memory of one peer: shared mappings of sealed memfds, by guest-physical address.
///
/// For a guest that is its RAM; for a host process, the memory it registered, at the addresses that
/// it chose. Cloning is cheap (it copies a few `Arc`s) and keeps the mappings alive.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;

/// Where a connection finds the memory of its peer.
pub trait MemoryContext: Send + Sync {
    /// The peer's memory as it is now. What is registered later needs a new snapshot.
    fn snapshot(&self) -> GuestRam;

    /// Which of its pages are in memory, if any may be away: then whoever uses a snapshot has to look
    /// before each access.
    fn residency(&self) -> Option<Arc<Residency>> {
        None
    }
}

impl MemoryContext for GuestRam {
    fn snapshot(&self) -> GuestRam {
        self.clone()
    }
}

/// Why memory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// Nothing to share, or a range that ends past the end of the address space or of its memory.
    #[error("{len} bytes at {start:#x} are not all in the peer's memory")]
    OutOfRange {
        /// First byte: an address or an offset.
        start: u64,
        /// Length in bytes.
        len: usize,
    },
    /// Words are accessed as a whole.
    #[error("address {start:#x} is not a multiple of 8")]
    Unaligned {
        /// First byte: an address or an offset.
        start: u64,
    },
    /// The file could shrink under us, and every access then would be a SIGBUS.
    #[error("memory file is not sealed against resizing (F_SEAL_SHRINK and F_SEAL_GROW)")]
    NotSealed,
    /// Pages of other file systems (huge pages above all) can run out, and that is a SIGBUS too.
    #[error("memory file is not a plain memfd (MFD_HUGETLB is not taken)")]
    NotMemfd,
    /// The file is shorter than what is to be shared.
    #[error("memory file has {file_bytes} bytes, {len} are to be shared")]
    FileTooShort {
        /// Size of the file in bytes.
        file_bytes: u64,
        /// Bytes to share.
        len: usize,
    },
    /// No memory file at all, or the host refuses another mapping.
    #[error("cannot {what} the memory file")]
    File {
        /// The operation.
        what: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// The host refuses another mapping.
    #[error("cannot map the memory file")]
    Map {
        /// What the kernel said.
        source: MmapRegionError,
    },
}

/// Atomic 64-bit words of shared memory, by byte offset: all that rings and signals need.
///
/// Offsets are multiples of 8 inside the memory: whoever builds a ring checks its geometry once.
/// Implemented by [`Region`], and by model checkers.
pub trait Words {
    /// Bytes of memory.
    fn len_bytes(&self) -> usize;
    /// Loads the word at `offset`.
    fn load(&self, offset: usize, order: Ordering) -> u64;
    /// Stores the word at `offset`.
    fn store(&self, offset: usize, value: u64, order: Ordering);
    /// Replaces the word at `offset`; the old one.
    fn swap(&self, offset: usize, value: u64, order: Ordering) -> u64;
    /// A sequentially consistent fence: orders stores before it with loads after it.
    fn fence(&self);
}

/// A range of memory shared with a peer.
///
/// Clones share the same bytes and keep the mapping alive.
#[derive(Clone)]
pub struct Region {
    mapping: Arc<MmapRegion<()>>,
    /// First byte in the mapping; a multiple of 8.
    offset: usize,
    len: usize,
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("len", &self.len).finish()
    }
}

impl Region {
    /// New zeroed memory of `len` bytes in a memfd that is sealed against resizing, for sharing
    /// with another process; the descriptor is what to send.
    ///
    /// # Errors
    /// [`RegionError`]: the host is out of memory or descriptors.
    pub fn new_shared(len: usize) -> Result<(Self, OwnedFd), RegionError> {
        let (region, fd) = Self::new_unsealed(len)?;
        fcntl_add_seals(&fd, SealFlags::SEAL).map_err(|source| RegionError::File {
            what: "seal",
            source,
        })?;
        Ok((region, fd))
    }

    /// The same in a memfd that can be sealed against more.
    pub(crate) fn new_unsealed(len: usize) -> Result<(Self, OwnedFd), RegionError> {
        let file = |what| move |source| RegionError::File { what, source };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create(c"vbus-shm", flags).map_err(file("create"))?;
        ftruncate(&fd, len as u64).map_err(file("size"))?;
        fcntl_add_seals(&fd, SealFlags::GROW | SealFlags::SHRINK).map_err(file("seal"))?;
        let region = Self::from_memfd(
            fd.try_clone().map_err(|_| RegionError::File {
                what: "duplicate",
                source: Errno::MFILE,
            })?,
            len,
        )?;
        Ok((region, fd))
    }

    /// New zeroed memory of `len` bytes that only this process sees.
    ///
    /// # Errors
    /// [`RegionError::Map`]: the host is out of memory.
    pub fn new_private(len: usize) -> Result<Self, RegionError> {
        let mapping = MmapRegion::new(len).map_err(|source| RegionError::Map { source })?;
        Self::of(Arc::new(mapping), 0, len)
    }

    /// The first `len` bytes of a memfd of somebody who is not trusted.
    ///
    /// # Errors
    /// [`RegionError`]: no memfd, not sealed against resizing, shorter than `len`, or `len` is 0.
    pub fn from_memfd(memfd: OwnedFd, len: usize) -> Result<Self, RegionError> {
        Self::from_memfd_at(memfd, 0, len)
    }

    /// As [`Region::from_memfd`], from `offset` of the file on, a multiple of the page size.
    ///
    /// # Errors
    /// [`RegionError`].
    pub fn from_memfd_at(memfd: OwnedFd, offset: u64, len: usize) -> Result<Self, RegionError> {
        let mapping = map_memfd_at(memfd, offset, len)?;
        Self::of(Arc::new(mapping), 0, len)
    }

    /// As [`Region::from_memfd`], of a memfd that need not be writable. Only what loads is to be used.
    pub(crate) fn from_memfd_to_read(memfd: OwnedFd, len: usize) -> Result<Self, RegionError> {
        let file = check_memfd(memfd, 0, len)?;
        let mapping = MmapRegion::build(Some(file), len, libc::PROT_READ, libc::MAP_SHARED);
        let mapping = mapping.map_err(|source| RegionError::Map { source })?;
        Self::of(Arc::new(mapping), 0, len)
    }

    /// The memfd that the region is in, and where it starts in it; `None` for private memory.
    pub fn memfd(&self) -> Option<(&File, u64)> {
        let file = self.mapping.file_offset()?;
        Some((file.file(), file.start().checked_add(self.offset as u64)?))
    }

    /// Where this region starts in `whole`, if it is a part of the same mapping.
    pub(crate) fn offset_in(&self, whole: &Region) -> Option<usize> {
        let offset = self.offset.checked_sub(whole.offset)?;
        let end = offset.checked_add(self.len)?;
        (Arc::ptr_eq(&self.mapping, &whole.mapping) && end <= whole.len).then_some(offset)
    }

    /// `len` bytes of a peer's memory from `gpa` on, which is a multiple of 8; they do not cross
    /// from one of its mappings into the next.
    ///
    /// # Errors
    /// [`RegionError::OutOfRange`] or [`RegionError::Unaligned`].
    pub fn from_ram(ram: &GuestRam, gpa: GuestAddress, len: usize) -> Result<Self, RegionError> {
        let out_of_range = || RegionError::OutOfRange { start: gpa.0, len };
        let (region, offset) = ram.to_region_addr(gpa).ok_or_else(out_of_range)?;
        let offset = usize::try_from(offset.0).map_err(|_| out_of_range())?;
        if !gpa.0.is_multiple_of(8) {
            return Err(RegionError::Unaligned { start: gpa.0 });
        }
        Self::of(region.get_mmap(), offset, len).map_err(|_| out_of_range())
    }

    /// `len` bytes of this region from `offset` on, which is a multiple of 8.
    ///
    /// # Errors
    /// [`RegionError::OutOfRange`] or [`RegionError::Unaligned`].
    pub fn subregion(&self, offset: usize, len: usize) -> Result<Self, RegionError> {
        let start = offset as u64;
        match offset.checked_add(len) {
            Some(end) if end <= self.len => {}
            _ => return Err(RegionError::OutOfRange { start, len }),
        }
        Self::of(Arc::clone(&self.mapping), self.offset + offset, len)
    }

    fn of(mapping: Arc<MmapRegion<()>>, offset: usize, len: usize) -> Result<Self, RegionError> {
        let start = offset as u64;
        match offset.checked_add(len) {
            Some(end) if len > 0 && end <= mapping.size() => {}
            _ => return Err(RegionError::OutOfRange { start, len }),
        }
        // Mappings start at a page, so the address is a multiple of 8 as well.
        if !offset.is_multiple_of(8) {
            return Err(RegionError::Unaligned { start });
        }
        Ok(Region {
            mapping,
            offset,
            len,
        })
    }

    /// Bytes in the region; never 0.
    #[expect(clippy::len_without_is_empty, reason = "no region is empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// `len` bytes from `offset` on, for copies.
    ///
    /// # Errors
    /// [`RegionError::OutOfRange`].
    pub fn slice(&self, offset: usize, len: usize) -> Result<VolatileSlice<'_>, RegionError> {
        let out_of_range = || RegionError::OutOfRange {
            start: offset as u64,
            len,
        };
        match offset.checked_add(len) {
            Some(end) if end <= self.len => {}
            _ => return Err(out_of_range()),
        }
        self.mapping
            .get_slice(self.offset + offset, len)
            .map_err(|_| out_of_range())
    }

    /// Copies bytes from `offset` on into `bytes`; they may change meanwhile, `bytes` then does not.
    ///
    /// # Errors
    /// [`RegionError::OutOfRange`].
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), RegionError> {
        self.slice(offset, bytes.len())?.copy_to(bytes);
        Ok(())
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Errors
    /// [`RegionError::OutOfRange`].
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), RegionError> {
        self.slice(offset, bytes.len())?.copy_from(bytes);
        Ok(())
    }

    /// Replaces the word at `offset`, a multiple of 8 inside the region, by `new` if it is `current`;
    /// false, and nothing changes, if it is not.
    pub fn replace(&self, offset: usize, current: u64, new: u64) -> bool {
        let (current, new) = (current.to_le(), new.to_le());
        let word = self.word(offset);
        word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// The first `num_words` words, in the processor's byte order.
    pub(crate) fn words(&self, num_words: usize) -> &[AtomicU64] {
        assert!(
            num_words <= self.len / 8,
            "{num_words} words of a region of {} bytes",
            self.len
        );
        // SAFETY: `self.offset + self.len <= mapping.size()` is an invariant of `of`.
        let first = unsafe { self.mapping.as_ptr().add(self.offset) };
        // SAFETY:
        // - the pointer is a multiple of 8: mappings are page-aligned, the offset is a multiple of 8.
        // - `8 * num_words <= len` was asserted, and so much is mapped for as long as `self.mapping`
        //   lives, which the result borrows.
        // - every access to shared memory in this process is atomic or volatile, as the peer's are; no
        //   `&mut` or plain reference to it exists anywhere.
        unsafe { std::slice::from_raw_parts(first.cast(), num_words) }
    }

    #[inline]
    fn word(&self, offset: usize) -> &AtomicU64 {
        // Callers check their geometry when they attach; no value of the peer's gets here.
        assert!(
            offset.is_multiple_of(8) && offset < self.len && self.len - offset >= 8,
            "word at {offset} of a region of {} bytes",
            self.len
        );
        // SAFETY: `offset + 8 <= len` was asserted, and `self.offset + self.len <= mapping.size()`
        // is an invariant of `of`, so the result is inside the mapping.
        let word = unsafe { self.mapping.as_ptr().add(self.offset + offset) };
        // SAFETY:
        // - the pointer is a multiple of 8: mappings are page-aligned, both offsets multiples of 8.
        // - 8 bytes from it are mapped for as long as `self.mapping` lives, which the result borrows.
        // - every access to shared memory in this process is atomic or volatile, as the peer's are;
        //   no `&mut` or plain reference to it exists anywhere.
        unsafe { AtomicU64::from_ptr(word.cast()) }
    }
}

impl Words for Region {
    fn len_bytes(&self) -> usize {
        self.len
    }
    #[inline]
    fn load(&self, offset: usize, order: Ordering) -> u64 {
        u64::from_le(self.word(offset).load(order))
    }
    #[inline]
    fn store(&self, offset: usize, value: u64, order: Ordering) {
        self.word(offset).store(value.to_le(), order);
    }
    #[inline]
    fn swap(&self, offset: usize, value: u64, order: Ordering) -> u64 {
        u64::from_le(self.word(offset).swap(value.to_le(), order))
    }
    #[inline]
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// Maps the first `len` bytes of a memfd of somebody who is not trusted, shared, read and write.
///
/// # Errors
/// As [`Region::from_memfd`].
pub fn map_memfd(memfd: OwnedFd, len: usize) -> Result<MmapRegion<()>, RegionError> {
    map_memfd_at(memfd, 0, len)
}

/// As [`map_memfd`], from `offset` of the file on, a multiple of the page size.
///
/// # Errors
/// As [`Region::from_memfd`].
pub fn map_memfd_at(
    memfd: OwnedFd,
    offset: u64,
    len: usize,
) -> Result<MmapRegion<()>, RegionError> {
    let file = check_memfd(memfd, offset, len)?;
    MmapRegion::from_file(file, len).map_err(|source| RegionError::Map { source })
}

/// Whether `len` bytes of `memfd` can be mapped without danger.
fn check_memfd(memfd: OwnedFd, offset: u64, len: usize) -> Result<FileOffset, RegionError> {
    let out_of_range = RegionError::OutOfRange { start: offset, len };
    let Some(end) = offset.checked_add(len as u64) else {
        return Err(out_of_range);
    };
    if len == 0 {
        return Err(out_of_range);
    }
    let file = |what| move |source| RegionError::File { what, source };
    let seals = fcntl_get_seals(&memfd).map_err(file("read the seals of"))?;
    if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
        return Err(RegionError::NotSealed);
    }
    let file_system = fstatfs(&memfd).map_err(file("read the kind of"))?.f_type;
    if file_system != TMPFS_MAGIC {
        return Err(RegionError::NotMemfd);
    }
    let size = fstat(&memfd).map_err(file("read the size of"))?.st_size;
    let file_bytes = u64::try_from(size).unwrap_or(0);
    if end > file_bytes {
        return Err(RegionError::FileTooShort { file_bytes, len });
    }
    Ok(FileOffset::new(File::from(memfd), offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Ordering::Relaxed;

    #[test]
    fn both_ends_of_a_shared_region_see_the_same_bytes() {
        let (mine, fd) = Region::new_shared(4096).unwrap();
        let theirs = Region::from_memfd(fd, 4096).unwrap();

        mine.write(5, b"bus").unwrap();
        mine.store(4088, 7, Relaxed);

        let mut bytes = [0; 3];
        theirs.read(5, &mut bytes).unwrap();
        assert_eq!(&bytes, b"bus");
        assert_eq!(theirs.swap(4088, 8, Relaxed), 7);
        assert_eq!(mine.load(4088, Relaxed), 8);
    }

    #[test]
    fn memory_that_could_shrink_is_refused() {
        let fd = rustix::fs::memfd_create(c"x", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, 4096).unwrap();
        fcntl_add_seals(&fd, SealFlags::GROW).unwrap();

        let error = Region::from_memfd(fd, 4096).unwrap_err();

        assert!(matches!(error, RegionError::NotSealed), "{error}");
    }

    #[test]
    fn descriptor_that_is_no_memfd_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();

        let error = Region::from_memfd(file.into(), 4096).unwrap_err();

        assert!(matches!(
            error,
            RegionError::File { .. } | RegionError::NotSealed
        ));
    }

    #[test]
    fn more_than_the_file_has_is_refused() {
        let (_, fd) = Region::new_shared(4096).unwrap();

        let error = Region::from_memfd(fd, 4097).unwrap_err();

        assert!(
            matches!(
                error,
                RegionError::FileTooShort {
                    file_bytes: 4096,
                    len: 4097
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn subregions_stay_inside() {
        let region = Region::new_private(4096).unwrap();

        assert!(region.subregion(8, 4088).is_ok());
        for (offset, len) in [(8, 4089), (4096, 1), (0, 0), (usize::MAX, 2)] {
            let error = region.subregion(offset, len).unwrap_err();
            assert!(matches!(error, RegionError::OutOfRange { .. }), "{error}");
        }
        let error = region.subregion(4, 8).unwrap_err();
        assert!(
            matches!(error, RegionError::Unaligned { start: 4 }),
            "{error}"
        );
    }

    #[test]
    fn region_of_ram_ends_where_its_mapping_ends() {
        let ram =
            GuestRam::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)])
                .unwrap();

        assert!(Region::from_ram(&ram, GuestAddress(0x1ff8), 8).is_ok());
        for (gpa, len) in [(0xff8, 16), (0x2000, 8), (u64::MAX - 7, 8)] {
            let error = Region::from_ram(&ram, GuestAddress(gpa), len).unwrap_err();
            assert!(matches!(error, RegionError::OutOfRange { .. }), "{error}");
        }
    }
}
