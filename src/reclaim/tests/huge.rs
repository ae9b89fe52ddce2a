//! Memory on huge pages, and memory that the kernel does not free.

use std::sync::atomic::AtomicU8;

use rustix::io::Errno;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::reclaim::host::PageFile;
use crate::reclaim::ram::RamError;

/// How punches go.
const WELL: u8 = 0;
const ERROR: u8 = 1;
/// As with a part of a huge page that is not split: it is zeroed, and stays.
const UNSPLIT: u8 = 2;

/// A file of guest RAM that does not always free what it is asked to.
#[derive(Debug)]
struct Stubborn {
    file: File,
    how: Arc<AtomicU8>,
}

impl PageFile for Stubborn {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        PageFile::read_exact_at(&self.file, bytes, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        PageFile::write_all_at(&self.file, bytes, offset)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.how.load(Ordering::Relaxed) {
            ERROR => Err(Errno::AGAIN.into()),
            UNSPLIT => {
                // Unmapped first, as a punch does.
                self.file.punch(offset, len)?;
                let zeros = vec![0; len as usize];
                PageFile::write_all_at(&self.file, &zeros, offset)
            }
            _ => self.file.punch(offset, len),
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.allocate(offset, len)
    }

    fn data_from(&self, offset: u64) -> io::Result<Option<u64>> {
        self.file.data_from(offset)
    }

    fn hole_from(&self, offset: u64) -> io::Result<u64> {
        self.file.hole_from(offset)
    }
}

#[test]
fn memory_that_is_not_freed_keeps_its_bytes() {
    let how = Arc::new(AtomicU8::new(WELL));
    let stubborn = {
        let how = Arc::clone(&how);
        |ram: Ram, guest: &GuestRam| {
            let file = guest.iter().next().unwrap().file_offset().unwrap().file();
            let file = file.try_clone().unwrap();
            ram.with_file(Box::new(Stubborn { file, how }))
        }
    };
    let Some(setup) = Setup::with(NUM_PAGES, stubborn) else {
        return;
    };
    let mut setup = setup.with_cache(40);
    for page in 40..80 {
        setup.write(page, page + 1);
    }
    setup.write(80, 1);
    setup.write(80, 0);
    for kind in [ERROR, UNSPLIT] {
        how.store(kind, Ordering::Relaxed);
        setup.settle();
        let num_before = setup.reclaimer.metrics().unpunched.get();

        assert_eq!(setup.drop_what_is_on_disk(), 0);
        assert_eq!(setup.swap_out(), 0);

        let num_unpunched = setup.reclaimer.metrics().unpunched.get() - num_before;
        assert!(num_unpunched >= 81, "{num_unpunched}");
        for page in 0..80 {
            assert_eq!(setup.read(page), page + 1, "{kind}");
            setup.write(page, page + 1);
        }
        assert_eq!(setup.read(80), 0);
        assert_eq!(setup.reclaimer.disks.num_dependents(), 0);
        assert_eq!(setup.reclaimer.swap.as_ref().unwrap().num_used(), 0);
    }
    how.store(WELL, Ordering::Relaxed);
    setup.settle();
    // All of a huge page, where the kernel made one.
    assert!(setup.swap_out() >= 81);
    for page in 0..80 {
        assert_eq!(setup.read(page), page + 1);
    }
}

/// Makes huge pages of what is in memory, as the kernel does by itself where it is told to.
#[expect(unsafe_code, reason = "madvise")]
fn collapse(ram: &GuestRam) -> io::Result<()> {
    let region = ram.iter().next().unwrap();
    let at = region.get_host_address(vm_memory::MemoryRegionAddress(0));
    let huge = 2 << 20;
    let at = at.unwrap();
    let at = at.wrapping_add(at.align_offset(huge));
    // SAFETY: it changes on which pages the bytes are, not which they are, and at least one huge page
    // from its first multiple on is in the mapping of 4 MiB.
    match unsafe { libc::madvise(at.cast(), huge, libc::MADV_COLLAPSE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[test]
fn pages_of_a_huge_page_go_and_come_back() {
    let Some(mut setup) = Setup::new() else {
        return;
    };
    for page in 0..NUM_PAGES {
        setup.write(page, page + 1);
    }
    if let Err(error) = collapse(&setup.ram) {
        eprintln!("SKIPPED: no huge pages of shared memory: {error}");
        return;
    }
    let in_part = setup.reclaimer.take(5..9, Means::Swap).unwrap();
    assert_eq!(in_part + setup.reclaimer.metrics().unpunched.get(), 4);
    for page in 0..16 {
        assert_eq!(setup.read(page), page + 1);
        setup.write(page, page + 1);
    }
    setup.settle();
    let unpunched = setup.reclaimer.metrics().unpunched.get();
    let num_taken = setup.swap_out();
    let unpunched = setup.reclaimer.metrics().unpunched.get() - unpunched;
    assert_eq!(num_taken + unpunched, NUM_PAGES);
    assert!(num_taken >= 512, "{num_taken}");
    for page in 0..NUM_PAGES {
        assert_eq!(setup.read(page), page + 1);
    }
    assert_eq!(setup.reclaimer.metrics().mended.get(), 0);
}

#[test]
fn pages_of_the_pool_are_refused() {
    match memory::allocate(2 << 20, true) {
        Ok(ram) => assert!(matches!(Ram::new(&ram), Err(RamError::Hugetlb))),
        Err(error) => eprintln!("SKIPPED: no huge pages in the pool: {error}"),
    }
}
