//! Guest RAM: one sealed memfd, mapped shared, below and above the MMIO gap.
#![expect(unsafe_code, reason = "madvise on the mapping")]

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use alacrity_devices::GuestRam;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::layout::{HIGH_RAM_START, MMIO_GAP_START};

/// Unit of a file's blocks (`stat(2)`).
const BLOCK_BYTES: u64 = 512;

/// Why there is no guest RAM.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host has no memfd, or no huge page support behind it.
    #[error("cannot create a memory file of {bytes} bytes for guest RAM{}", hugepage_hint(*.is_huge))]
    Create {
        /// Size asked for.
        bytes: u64,
        /// Backed by huge pages.
        is_huge: bool,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file cannot be mapped; with huge pages this is where an empty pool shows.
    #[error("cannot map {bytes} bytes of guest RAM{}", hugepage_hint(*.is_huge))]
    Map {
        /// Size of the mapping.
        bytes: u64,
        /// Backed by huge pages.
        is_huge: bool,
        /// What the kernel said.
        source: MmapRegionError,
    },
    /// Two mappings overlap or an address wraps: the layout is wrong.
    #[error("guest RAM layout is impossible")]
    Layout(#[source] vm_memory::GuestRegionCollectionError),
    /// The mapping cannot be kept out of child processes.
    #[error("cannot keep guest RAM out of child processes")]
    DontFork(#[source] io::Error),
}

fn hugepage_hint(is_huge: bool) -> &'static str {
    if is_huge {
        " from the huge page pool (fill it: echo N > /proc/sys/vm/nr_hugepages, 2 MiB each)"
    } else {
        ""
    }
}

/// Memory that the file of guest RAM takes of the host.
pub fn resident_bytes(ram: &GuestRam) -> u64 {
    // All regions are of one file.
    let file = ram.iter().next().and_then(|region| region.file_offset());
    file.and_then(|offset| offset.file().metadata().ok())
        .map_or(0, |metadata| metadata.blocks() * BLOCK_BYTES)
}

/// Splits guest RAM around the MMIO gap.
///
/// `ram_bytes` is a multiple of 4096. Answers `(low, high)` in bytes; `high` is 0 if all fits below
/// [`MMIO_GAP_START`]. `low + high == ram_bytes`.
pub fn split(ram_bytes: u64) -> (u64, u64) {
    let low = ram_bytes.min(MMIO_GAP_START);
    (low, ram_bytes - low)
}

/// Makes `ram_bytes` of guest RAM, zeroed, without touching any page yet.
///
/// The file is sealed against resizing before it is mapped, so that nobody who gets the descriptor
/// can make us fault; a write seal would forbid hole punching.
///
/// # Errors
/// [`MemoryError`].
pub fn allocate(ram_bytes: u64, is_huge: bool) -> Result<GuestRam, MemoryError> {
    let file = memory_file(ram_bytes, is_huge).map_err(|source| MemoryError::Create {
        bytes: ram_bytes,
        is_huge,
        source,
    })?;
    let (low, high) = split(ram_bytes);
    let mut regions = Vec::new();
    for (start, bytes, offset) in [(0, low, 0), (HIGH_RAM_START, high, low)] {
        if bytes == 0 {
            continue;
        }
        let map_error = |source| MemoryError::Map {
            bytes,
            is_huge,
            source,
        };
        let file = file
            .try_clone()
            .map_err(|source| map_error(MmapRegionError::Mmap(source)))?;
        let len =
            usize::try_from(bytes).map_err(|_| map_error(MmapRegionError::InvalidOffsetLength))?;
        let mapping = MmapRegionBuilder::new(len)
            .with_file_offset(FileOffset::new(file, offset))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | if is_huge { 0 } else { libc::MAP_NORESERVE })
            .with_hugetlbfs(is_huge)
            .build()
            .map_err(map_error)?;
        // SAFETY:
        // - the range is one live mapping, just made, that nothing else uses yet.
        // - MADV_DONTFORK changes only what a fork copies; it moves and frees nothing.
        unsafe {
            rustix::mm::madvise(
                mapping.as_ptr().cast(),
                len,
                rustix::mm::Advice::LinuxDontFork,
            )
        }
        .map_err(|errno| MemoryError::DontFork(errno.into()))?;
        // SAFETY: as above; MADV_HUGEPAGE changes only how the kernel backs pages it adds later.
        let advised = unsafe {
            rustix::mm::madvise(
                mapping.as_ptr().cast(),
                len,
                rustix::mm::Advice::LinuxHugepage,
            )
        };
        if let Err(errno) = advised {
            // Without transparent huge pages in the host's kernel, small ones do.
            tracing::debug!("guest RAM: no transparent huge pages: {errno}");
        }
        let region = GuestRegionMmap::new(mapping, GuestAddress(start))
            .ok_or(map_error(MmapRegionError::InvalidOffsetLength))?;
        regions.push(region);
    }
    GuestRam::from_regions(regions).map_err(MemoryError::Layout)
}

fn memory_file(bytes: u64, is_huge: bool) -> io::Result<File> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if is_huge {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let fd = memfd_create(c"alacrity-guest-ram", flags)?;
    ftruncate(&fd, bytes)?;
    fcntl_add_seals(&fd, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(File::from(fd))
}

/// End of the RAM below the gap, exclusive.
pub fn low_end(ram: &GuestRam) -> u64 {
    use vm_memory::GuestMemoryRegion;
    ram.iter()
        .next()
        .map_or(0, |region| region.start_addr().0 + region.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{GIB, MIB};
    use vm_memory::{Bytes, GuestMemoryRegion};

    #[test]
    fn small_ram_stays_below_the_gap() {
        assert_eq!(split(64 * MIB), (64 * MIB, 0));
        assert_eq!(split(3 * GIB), (3 * GIB, 0));
    }

    #[test]
    fn large_ram_continues_above_4_gib() {
        assert_eq!(split(4 * GIB), (3 * GIB, GIB));
    }

    #[test]
    fn ram_on_both_sides_of_the_gap_is_one_sealed_file() {
        let ram = allocate(4 * GIB, false).unwrap();

        ram.write_obj(7u8, GuestAddress(5 * GIB - 1)).unwrap();

        let mut regions = ram.iter();
        let (low, high) = (regions.next().unwrap(), regions.next().unwrap());
        let file = low.file_offset().unwrap().file();
        assert!(file.set_len(1).is_err(), "SHRINK and GROW are sealed");
        assert_eq!(high.start_addr(), GuestAddress(HIGH_RAM_START));
        assert_eq!(high.file_offset().unwrap().start(), 3 * GIB);
        assert!(ram.write_obj(7u8, GuestAddress(5 * GIB)).is_err());
        assert!(ram.write_obj(7u8, GuestAddress(MMIO_GAP_START)).is_err());
    }
}
