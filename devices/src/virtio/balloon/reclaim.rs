//! How a range of guest RAM goes back to the host.
#![expect(unsafe_code, reason = "madvise and fstatfs")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use crate::GuestRam;

/// Unit of freeing without huge pages, in bytes.
const PAGE_BYTES: u64 = 4096;

/// Gives the memory behind `gpa .. gpa + len` back to the host; it reads as zeroes afterwards.
///
/// Returns the bytes given back: the whole pages of the range (2 MiB each where guest RAM is made
/// of huge pages), whether the guest had ever touched them or not. Pages that the range covers in
/// part stay as they are. One system call per memory region of the range.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`], and nothing is freed, if the range is not all RAM; else that of
/// `fallocate(2)`, and a part may be freed.
pub fn release_range(ram: &GuestRam, gpa: GuestAddress, len: u64) -> io::Result<u64> {
    let is_ram = usize::try_from(len).is_ok_and(|len| ram.check_range(gpa, len));
    let end = gpa.0.checked_add(len).filter(|_| is_ram);
    let end = end.ok_or(io::ErrorKind::InvalidInput)?;
    let mut released = 0;
    for region in ram.iter() {
        let base = region.start_addr().0;
        let first = gpa.0.max(base);
        // A region is mapped, so its end is far from wrapping.
        let last = end.min(base + region.len());
        if first < last {
            released += release_in_region(region, first - base, last - base)?;
        }
    }
    Ok(released)
}

/// Frees the whole pages in the bytes `start .. end` of `region`, which has them all.
fn release_in_region(region: &impl GuestMemoryRegion, start: u64, end: u64) -> io::Result<u64> {
    match region.file_offset() {
        Some(file_offset) => punch_hole(file_offset, start, end),
        None => {
            let (start, end) = whole_pages(start, end, PAGE_BYTES);
            drop_anonymous(region, start, end - start)?;
            Ok(end - start)
        }
    }
}

fn punch_hole(file_offset: &FileOffset, start: u64, end: u64) -> io::Result<u64> {
    let file = file_offset.file();
    let base = file_offset.start();
    let page_bytes = page_bytes(file)?;
    let (start, end) = whole_pages(base + start, base + end, page_bytes);
    if start < end {
        fallocate(file, FallocateMode::PunchHole, true, start, end - start)?;
    }
    Ok(end - start)
}

/// The whole pages in `start .. end`; `start == end` if there are none.
fn whole_pages(start: u64, end: u64, page_bytes: u64) -> (u64, u64) {
    let end = end - end % page_bytes;
    let start = start.next_multiple_of(page_bytes).min(end);
    (start, end)
}

/// Unit of freeing of a memfd in bytes: its huge page size, or that of a page.
fn page_bytes(file: &File) -> io::Result<u64> {
    // Not fstat's block size: a memfd that may use transparent huge pages says 2 MiB there, but
    // frees single pages.
    let mut statfs = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: fstatfs writes one `struct statfs` to its argument, which `statfs` has room for.
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), statfs.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstatfs succeeded, so it filled the whole struct.
    let statfs = unsafe { statfs.assume_init() };
    if statfs.f_type == libc::HUGETLBFS_MAGIC {
        return Ok(statfs.f_bsize.unsigned_abs());
    }
    Ok(PAGE_BYTES)
}

/// Frees `len` bytes at `offset` of a region without a file, a multiple of the page size each.
fn drop_anonymous(region: &impl GuestMemoryRegion, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let slice = region
        .get_slice(vm_memory::MemoryRegionAddress(offset), len)
        .map_err(io::Error::other)?;
    let hva = slice.ptr_guard_mut().as_ptr();
    // SAFETY:
    // - `hva .. hva + len` is inside the region's mapping, as `get_slice` checked, and the mapping
    //   outlives the call, as `region` is borrowed.
    // - the pages become zero, which for shared guest memory is a write like any other of the
    //   guest's; no Rust reference into it exists.
    let result = unsafe { libc::madvise(hva.cast(), len, libc::MADV_DONTNEED) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use vm_memory::Bytes;

    const RAM_BYTES: usize = 0x1_0000;

    /// Two regions that touch, the second from the middle of one file, all of it written.
    fn file_ram() -> (GuestRam, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(RAM_BYTES as u64).unwrap();
        let half = RAM_BYTES / 2;
        let at = |start| Some(FileOffset::new(file.try_clone().unwrap(), start));
        let ram = GuestRam::from_ranges_with_files([
            (GuestAddress(0), half, at(0)),
            (GuestAddress(half as u64), half, at(half as u64)),
        ])
        .unwrap();
        ram.write_slice(&[0xff; RAM_BYTES], GuestAddress(0))
            .unwrap();
        (ram, file)
    }

    fn num_bytes_left(ram: &GuestRam) -> usize {
        let mut bytes = vec![0; RAM_BYTES];
        ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes.iter().filter(|byte| **byte != 0).count()
    }

    #[test]
    fn range_across_regions_leaves_the_file() {
        let (ram, file) = file_ram();
        file.sync_all().unwrap();
        let before = file.metadata().unwrap().blocks();

        let released = release_range(&ram, GuestAddress(0x7000), 0x2000).unwrap();

        assert_eq!(released, 0x2000);
        assert_eq!(num_bytes_left(&ram), RAM_BYTES - 0x2000);
        let byte: u8 = ram.read_obj(GuestAddress(0x9000)).unwrap();
        assert_eq!(byte, 0xff);
        assert_eq!(before - file.metadata().unwrap().blocks(), 0x2000 / 512);
    }

    #[test]
    fn pages_covered_in_part_stay() {
        let (ram, _file) = file_ram();

        let released = release_range(&ram, GuestAddress(0x1001), 0x1fff).unwrap();

        assert_eq!(released, 0x1000);
        assert_eq!(num_bytes_left(&ram), RAM_BYTES - 0x1000);
    }

    #[test]
    fn range_inside_a_page_frees_nothing() {
        let (ram, _file) = file_ram();

        assert_eq!(release_range(&ram, GuestAddress(0x10), 0x20).unwrap(), 0);

        assert_eq!(num_bytes_left(&ram), RAM_BYTES);
    }

    #[test]
    fn anonymous_memory_is_dropped() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap();
        ram.write_slice(&[0xff; RAM_BYTES], GuestAddress(0))
            .unwrap();

        let released = release_range(&ram, GuestAddress(0x1000), 0x3000).unwrap();

        assert_eq!(released, 0x3000);
        assert_eq!(num_bytes_left(&ram), RAM_BYTES - 0x3000);
    }

    #[test]
    fn range_past_the_end_of_ram_is_refused() {
        let (ram, _file) = file_ram();

        let err = release_range(&ram, GuestAddress(0xf000), 0x1001).unwrap_err();

        assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(num_bytes_left(&ram), RAM_BYTES);
    }

    #[test]
    fn range_that_wraps_is_refused() {
        let (ram, _file) = file_ram();

        let err = release_range(&ram, GuestAddress(u64::MAX), 2).unwrap_err();

        assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn huge_pages_are_freed_whole_or_not_at_all() {
        let huge = 2 << 20;

        assert_eq!(whole_pages(4096, 2 * huge + 4096, huge), (huge, 2 * huge));
        assert_eq!(whole_pages(4096, huge + 4096, huge), (huge, huge));
        assert_eq!(whole_pages(4096, 8192, huge), (0, 0));
    }
}
