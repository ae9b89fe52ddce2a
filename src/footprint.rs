//! What a VM takes of the host's memory besides guest RAM, and what a daemon takes, kept small.
//!
//! Most of it is the program itself. Much of that is only needed until a guest runs: the command line,
//! kernel images, tables. The kernel keeps it mapped all the same, in pieces of 64 KiB around each page
//! that was used once.
#![expect(unsafe_code, reason = "mallopt, malloc_trim and madvise")]

use std::fs;
use std::io;
use std::ops::Range;

use rustix::mm::{Advice, madvise};

use crate::smaps::{self, Mapping};

/// Has all threads share one heap, where the C library makes one for each. Nothing on the data path
/// allocates, so nobody waits for it. For the start of a program that will have many threads.
pub fn share_one_heap() {
    // SAFETY: the call takes numbers only, and may be made at any time.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives the kernel back what the start of the program needed, as far as nobody uses it: free memory of
/// the heap, and pages of the program and its libraries, which come back from the page cache with their
/// next use. For the moment from which on the program does the same again and again.
pub fn forget_start() {
    // SAFETY: the call takes a number only, and may be made at any time.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::malloc_trim(0) };
    if let Err(error) = drop_refillable() {
        tracing::debug!("memory that the start needed stays: {error}");
    }
}

fn drop_refillable() -> io::Result<()> {
    let mappings = smaps::parse(&fs::read_to_string("/proc/self/smaps")?);
    for mapping in mappings.iter().filter(|mapping| is_refillable(mapping)) {
        let Range { start, end } = mapping.range.clone();
        let address = std::ptr::without_provenance_mut(start);
        // SAFETY: the pages are those of a file and unchanged, so who uses one next finds what was
        // there. Files are mapped without write access by the dynamic linker only, which never takes
        // such a mapping away in a program that loads no libraries by itself, so the range is still
        // what the kernel said.
        unsafe { madvise(address, end - start, Advice::LinuxDontNeed) }?;
    }
    Ok(())
}

/// Whether the kernel can fill `mapping` again with the same: pages of a file that nobody has changed, or
/// can change. Relocated pages are not.
fn is_refillable(mapping: &Mapping) -> bool {
    mapping.name.starts_with('/')
        && !mapping.is_writable
        && !mapping.is_shared
        && mapping.anonymous_kib == 0
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::mmap::MmapRegionBuilder;
    use vm_memory::{FileOffset, VolatileMemory};

    use super::*;

    #[test]
    fn pages_of_a_file_go_and_come_back() {
        const SIZE: usize = 1 << 20;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; SIZE]).unwrap();
        let mapped = MmapRegionBuilder::<()>::new(SIZE)
            .with_file_offset(FileOffset::new(file.reopen().unwrap(), 0))
            .with_mmap_prot(libc::PROT_READ)
            .with_mmap_flags(libc::MAP_PRIVATE)
            .build()
            .unwrap();
        let content = || {
            let mut content = vec![0_u8; SIZE];
            mapped.as_volatile_slice().copy_to(&mut content);
            content
        };
        let rss_kib = || {
            let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
            let start = mapped.as_ptr() as usize;
            let mut mappings = smaps::parse(&smaps).into_iter();
            mappings.find(|it| it.range.start == start).unwrap().rss_kib
        };
        assert!(content() == [7; SIZE]);
        assert_eq!(rss_kib(), 1 << 10);

        drop_refillable().unwrap();

        assert_eq!(rss_kib(), 0);
        assert!(content() == [7; SIZE]);
    }

    #[test]
    fn what_was_written_to_or_may_be_stays() {
        let of_file = Mapping {
            name: "/lib/libc.so.6".into(),
            ..Mapping::default()
        };
        let others = [
            Mapping {
                is_writable: true,
                ..of_file.clone()
            },
            Mapping {
                is_shared: true,
                ..of_file.clone()
            },
            Mapping {
                anonymous_kib: 4,
                ..of_file.clone()
            },
            Mapping {
                name: "[vdso]".into(),
                ..of_file.clone()
            },
            Mapping {
                name: String::new(),
                ..of_file.clone()
            },
        ];

        assert!(is_refillable(&of_file));
        assert!(!others.iter().any(is_refillable), "{others:?}");
    }
}
