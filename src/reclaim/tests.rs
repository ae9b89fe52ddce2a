//! Reclaim of plain memory, with threads of this process as its users.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use alacrity_devices::GuestRam;
use alacrity_devices::virtio::blk::TransferWatch;
use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress};

use super::backing::{Disks, PageSource};
use super::faults::FaultServer;
use super::policy::Policy;
use super::ram::{PAGE_BYTES, Ram};
use super::reclaimer::{Means, ReclaimError, ReclaimMetrics, Reclaimer};
use super::restore::DiskWatch;
use super::swap_file::{PageBuffer, SwapFile};
use super::userfault::UserfaultError;
use super::word::PageState;
use crate::memory;

mod hints;
mod huge;
mod paced;
mod release;
pub mod simulation;
mod word;

const PAGE_LEN: u64 = PAGE_BYTES as u64;
const NUM_PAGES: u64 = 1024;

/// A disk in a file, which can break.
#[derive(Debug, Clone)]
struct TestDisk {
    file: Arc<File>,
    is_broken: Arc<AtomicBool>,
}

impl PageSource for TestDisk {
    fn read_page(&self, offset: u64, bytes: &mut PageBuffer) -> io::Result<()> {
        if self.is_broken.load(Ordering::Relaxed) {
            return Err(io::Error::other("broken"));
        }
        self.file.read_exact_at(&mut bytes.0, offset)
    }
}

struct Setup {
    ram: GuestRam,
    disk: TestDisk,
    watch: DiskWatch,
    failures: Arc<Mutex<Vec<String>>>,
    reclaimer: Arc<Reclaimer>,
    faults: Option<FaultServer>,
}

impl Setup {
    /// `None` where faults of the kernel cannot be served.
    fn new() -> Option<Self> {
        Self::with_swap_pages(NUM_PAGES)
    }

    fn with_swap_pages(num_slots: u64) -> Option<Self> {
        Self::with(num_slots, |ram, _| ram)
    }

    fn with(num_slots: u64, change: impl FnOnce(Ram, &GuestRam) -> Ram) -> Option<Self> {
        let ram = memory::allocate(NUM_PAGES * PAGE_LEN, false).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let swap = SwapFile::create(dir.path(), num_slots * PAGE_LEN).unwrap();
        let disk = TestDisk {
            file: Arc::new(tempfile::tempfile().unwrap()),
            is_broken: Arc::default(),
        };
        disk.file.set_len(NUM_PAGES * PAGE_LEN).unwrap();
        let mut disks = Disks::default();
        disks.add(Box::new(disk.clone())).unwrap();
        let failures = Arc::new(Mutex::new(Vec::new()));
        let on_failure = {
            let failures = Arc::clone(&failures);
            Box::new(move |why: &str| failures.lock().push(why.to_owned()))
        };
        let pages = change(Ram::new(&ram).unwrap(), &ram);
        let reclaimer = Reclaimer::new(pages, disks, Some(swap), on_failure);
        let reclaimer = match reclaimer {
            Err(ReclaimError::Userfault(
                error @ (UserfaultError::Permission | UserfaultError::Missing),
            )) => {
                eprintln!("SKIPPED: {error}");
                return None;
            }
            reclaimer => Arc::new(reclaimer.unwrap()),
        };
        let faults = FaultServer::start(Arc::clone(&reclaimer)).unwrap();
        Some(Setup {
            ram,
            disk,
            watch: DiskWatch::new(Arc::clone(&reclaimer), 0),
            failures,
            reclaimer,
            faults: Some(faults),
        })
    }

    fn write(&self, page: u64, value: u64) {
        self.ram
            .write_obj(value, GuestAddress(page * PAGE_LEN))
            .unwrap();
    }

    fn read(&self, page: u64) -> u64 {
        self.ram.read_obj(GuestAddress(page * PAGE_LEN)).unwrap()
    }

    /// Once nobody works on `page`: who gives it back lets go of it a moment later.
    fn state(&self, page: u64) -> Option<PageState> {
        while self.reclaimer.words.claim(page, |_| true).is_none() {
            std::thread::yield_now();
        }
        self.reclaimer.state(page)
    }

    /// Nobody reads ahead, or has a fault left that was served, on return.
    fn settle(&mut self) {
        self.faults = None;
        let faults = FaultServer::start(Arc::clone(&self.reclaimer));
        self.faults = Some(faults.unwrap());
    }

    fn swap_out(&self) -> u64 {
        let pages = 0..NUM_PAGES;
        self.reclaimer.take(pages, Means::Swap).unwrap()
    }

    /// Takes everything, again and again, while others use it, until `is_enough`: on a busy machine they
    /// may come late, and what is taken may not be missed for long.
    fn take_until(&self, means: &[Means], is_enough: impl Fn(&ReclaimMetrics) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut num_rounds = 0;
        while num_rounds < 200 || !is_enough(self.reclaimer.metrics()) {
            assert!(Instant::now() < deadline, "{:?}", self.reclaimer.metrics());
            for means in means {
                self.reclaimer.take(0..NUM_PAGES, *means).unwrap();
            }
            num_rounds += 1;
        }
    }

    fn drop_what_is_on_disk(&self) -> u64 {
        let pages = 0..NUM_PAGES;
        self.reclaimer.take(pages, Means::Drop).unwrap()
    }

    /// A write of the guest: `page` to the page `at` of the disk.
    fn write_to_disk(&self, page: u64, at: u64) {
        let (gpa, len, offset) = (GuestAddress(page * PAGE_LEN), 4096, at * PAGE_LEN);
        self.watch.pin(gpa, len);
        self.watch.begin_change(offset, PAGE_LEN);
        let mut bytes = [0; PAGE_BYTES];
        self.ram.read_slice(&mut bytes, gpa).unwrap();
        self.disk.file.write_all_at(&bytes, offset).unwrap();
        self.watch.transferred(gpa, len, offset);
        self.watch.end_change(offset, PAGE_LEN);
        self.watch.unpin(gpa, len);
    }

    /// A read of the guest: the page `at` of the disk to `page`.
    fn read_from_disk(&self, at: u64, page: u64) {
        let (gpa, len, offset) = (GuestAddress(page * PAGE_LEN), 4096, at * PAGE_LEN);
        self.watch.pin(gpa, len);
        let mut bytes = [0; PAGE_BYTES];
        self.disk.file.read_exact_at(&mut bytes, offset).unwrap();
        self.ram.write_slice(&bytes, gpa).unwrap();
        self.watch.transferred(gpa, len, offset);
        self.watch.unpin(gpa, len);
    }

    /// Fills pages and the disk with the numbers of the pages, plus one.
    fn with_cache(self, num_pages: u64) -> Self {
        for page in 0..num_pages {
            self.write(page, page + 1);
            self.write_to_disk(page, page);
        }
        self
    }
}

/// Ends those who look at a flag, also when the test fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn swapped_pages_come_back_on_access() {
    let Some(setup) = Setup::new() else { return };
    for page in 0..100 {
        setup.write(page, page + 1);
    }

    let num_freed = setup.swap_out();

    assert_eq!(num_freed, 100);
    assert!(matches!(setup.state(7), Some(PageState::Swapped(_))));
    for page in 0..100 {
        assert_eq!(setup.read(page), page + 1);
    }
    assert_eq!(setup.read(500), 0);
    for page in 0..100 {
        assert_eq!(setup.state(page), Some(PageState::Resident));
    }
    assert_eq!(setup.reclaimer.metrics().swapped_in.get(), 100);
    assert_eq!(setup.reclaimer.metrics().mended.get(), 0);
    let times = serde_json::to_value(&**setup.reclaimer.times()).unwrap();
    for operation in ["protect", "read_memory", "swap_out", "punch", "swap_in"] {
        let [times, nanos] = ["times", "longest_ns"].map(|part| times[operation][part].as_u64());
        assert!(times > Some(0) && nanos > Some(0), "{operation}");
    }
    assert_eq!(times["refill"]["times"], 0);
    assert_eq!(setup.reclaimer.swap.as_ref().unwrap().num_used(), 0);
}

#[test]
fn pages_that_just_came_back_are_the_last_to_go() {
    let Some(setup) = Setup::new() else { return };
    let policy = Policy::new(Arc::clone(&setup.reclaimer), None);
    for page in 0..100 {
        setup.write(page, page + 1);
    }
    policy.reclaim(100 * PAGE_LEN, &|| true).unwrap();
    let in_memory = || (0..100).filter(|page| setup.state(*page).unwrap().is_in_memory());
    assert_eq!(in_memory().count(), 0);
    for page in 0..100 {
        setup.write(page, page + 1);
    }
    // The bits of the first round are those of all pages that were asked for, and not of those ahead.
    let taken = policy.reclaim(PAGE_LEN, &|| true).unwrap();
    assert!(taken.swapped_bytes >= PAGE_LEN, "{taken:?}");
    assert!(setup.reclaimer.metrics().spared.get() > 0);
    for page in 0..100 {
        assert_eq!(setup.read(page), page + 1);
    }
    for page in 0..100 {
        setup.state(page);
    }
    let taken = policy.reclaim(100 * PAGE_LEN, &|| true).unwrap();
    assert_eq!(taken.swapped_bytes, 100 * PAGE_LEN);
    assert_eq!(in_memory().count(), 0);
}

#[test]
fn pages_of_zeros_take_no_slot() {
    let Some(setup) = Setup::new() else { return };
    setup.write(3, 1);
    setup.write(3, 0);

    assert_eq!(setup.swap_out(), 1);

    assert_eq!(setup.state(3), Some(PageState::Hole));
    assert_eq!(setup.reclaimer.swap.as_ref().unwrap().num_used(), 0);
    setup.write(3, 9);
    assert_eq!(setup.read(3), 9);
}

#[test]
fn pages_stay_when_the_swap_file_is_full() {
    let Some(setup) = Setup::with_swap_pages(2) else {
        return;
    };
    for page in 0..5 {
        setup.write(page, page + 1);
    }

    assert_eq!(setup.swap_out(), 2);

    for page in 0..5 {
        assert_eq!(setup.read(page), page + 1);
        setup.write(page, page);
    }
}

#[test]
fn writers_and_readers_never_notice() {
    let Some(setup) = Setup::new() else { return };
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Each has pages of its own, counts in them, and finds what it wrote.
        let users: Vec<_> = (0..3)
            .map(|user| {
                let (setup, is_over) = (&setup, &is_over);
                scope.spawn(move || {
                    let mut count = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        for page in (user..200).step_by(3) {
                            assert_eq!(setup.read(page), count);
                            setup.write(page, count + 1);
                        }
                        count += 1;
                    }
                })
            })
            .collect();
        let over = SetOnDrop(&is_over);
        setup.take_until(&[Means::Swap], |metrics| metrics.swapped_in.get() > 200);
        drop(over);
        for user in users {
            user.join().unwrap();
        }
    });
    assert_eq!(setup.reclaimer.metrics().mended.get(), 0);
}

#[test]
fn pages_that_are_on_disk_are_dropped_without_writing() {
    let Some(setup) = Setup::new() else { return };
    let setup = setup.with_cache(100);
    setup.write(200, 7); // on no disk

    assert_eq!(setup.drop_what_is_on_disk(), 100);

    assert!(matches!(setup.state(3), Some(PageState::Dropped(_))));
    assert_eq!(setup.state(200), Some(PageState::Resident));
    for page in 0..100 {
        assert_eq!(setup.read(page), page + 1);
    }
    assert!(matches!(setup.state(99), Some(PageState::Proved(_))));
    // Read, so not changed: dropped again without a look at the disk.
    setup.disk.is_broken.store(true, Ordering::Relaxed);
    assert_eq!(setup.drop_what_is_on_disk(), 100);
    setup.disk.is_broken.store(false, Ordering::Relaxed);
    setup.write(3, 9);
    assert_eq!(setup.read(3), 9);
    assert_eq!(setup.state(3), Some(PageState::Resident));
    assert_eq!(setup.reclaimer.disks.num_dependents(), 99);
    assert_eq!(setup.reclaimer.metrics().swapped_out.get(), 0);
}

#[test]
fn pages_that_changed_since_are_left_alone() {
    let Some(setup) = Setup::new() else { return };
    let setup = setup.with_cache(10);
    setup.write(4, 1000);

    assert_eq!(setup.drop_what_is_on_disk(), 9);

    assert_eq!(setup.reclaimer.metrics().unequal.get(), 1);
    assert_eq!(setup.read(4), 1000);
    setup.write(4, 1001);
    assert_eq!(setup.read(4), 1001);
    assert_eq!(setup.reclaimer.disks.num_dependents(), 9);
}

#[test]
fn pages_are_rebuilt_before_their_sectors_change() {
    let Some(setup) = Setup::new() else { return };
    let setup = setup.with_cache(10);
    setup.read_from_disk(5, 20); // two pages with one backing
    assert_eq!(setup.drop_what_is_on_disk(), 11);
    setup.write(30, 77);

    setup.write_to_disk(30, 5);

    assert_eq!(setup.reclaimer.metrics().rescued.get(), 2);
    assert_eq!(setup.read(5), 6);
    assert_eq!(setup.read(20), 6);
    setup.read_from_disk(5, 21);
    assert_eq!(setup.read(21), 77);
    assert_eq!(setup.reclaimer.disks.num_dependents(), 9);
}

#[test]
fn pages_in_a_transfer_stay() {
    let Some(setup) = Setup::new() else { return };
    let setup = setup.with_cache(3);
    assert_eq!(setup.drop_what_is_on_disk(), 3);
    setup.watch.pin(GuestAddress(PAGE_LEN - 1), 2);
    setup.watch.pin(GuestAddress(PAGE_LEN), 1);
    assert_eq!(setup.state(0), Some(PageState::Pinned(1)));
    assert_eq!(setup.state(1), Some(PageState::Pinned(2)));

    assert_eq!(setup.swap_out(), 0);

    setup.watch.unpin(GuestAddress(PAGE_LEN - 1), 2);
    assert_eq!(setup.swap_out(), 1);
    assert_eq!(setup.state(1), Some(PageState::Pinned(1)));
    setup.watch.unpin(GuestAddress(PAGE_LEN), 1);
    assert_eq!(setup.swap_out(), 1);
    assert_eq!(setup.read(1), 2);
}

#[test]
fn page_that_cannot_be_read_back_is_told() {
    let Some(setup) = Setup::new() else { return };
    let setup = setup.with_cache(1);
    assert_eq!(setup.drop_what_is_on_disk(), 1);
    setup.disk.is_broken.store(true, Ordering::Relaxed);

    setup.watch.pin(GuestAddress(0), 1);

    let failures = setup.failures.lock();
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].contains("broken"), "{failures:?}");
}

#[test]
fn disk_and_memory_agree_while_all_is_taken_and_rewritten() {
    let Some(setup) = Setup::new() else { return };
    let num_pages = 60;
    let setup = setup.with_cache(num_pages);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let users: Vec<_> = (0..3)
            .map(|user| {
                let (setup, is_over) = (&setup, &is_over);
                scope.spawn(move || {
                    // Pages of its own, and sectors that others read to check.
                    let mut round = 1;
                    while !is_over.load(Ordering::Relaxed) {
                        for page in (user..num_pages).step_by(3) {
                            let value = page + 1 + (round - 1) * 1000;
                            assert_eq!(setup.read(page), value, "page {page}");
                            // Another page of the same sectors, which are then written.
                            setup.read_from_disk(page, page + 100);
                            assert_eq!(setup.read(page + 100), value);
                            setup.write(page, value + 1000);
                            setup.write_to_disk(page, page);
                            assert_eq!(setup.read(page + 100), value, "its copy");
                        }
                        round += 1;
                    }
                })
            })
            .collect();
        let over = SetOnDrop(&is_over);
        setup.take_until(&[Means::Drop, Means::Swap], |metrics| {
            metrics.rescued.get() > 0 && metrics.refilled.get() > 200
        });
        drop(over);
        for user in users {
            user.join().unwrap();
        }
    });
    assert_eq!(setup.reclaimer.metrics().mended.get(), 0);
    assert_eq!(*setup.failures.lock(), Vec::<String>::new());
}

#[test]
fn census_knows_where_each_page_is() {
    let Some(setup) = Setup::new() else { return };
    let setup = setup.with_cache(64);
    for page in 128..256 {
        setup.write(page, 1);
    }
    setup.reclaimer.take(0..32, Means::Drop).unwrap();
    setup.reclaimer.take(128..192, Means::Swap).unwrap();
    setup.reclaimer.pin(250..256);

    let map = setup.reclaimer.census(None, 16).unwrap();
    let whole = setup.reclaimer.census(None, 1).unwrap();

    assert_eq!((map.pages_per_cell, map.cells.len()), (64, 16));
    assert_eq!(map.cells[0], [0, 0, 32, 0, 0, 32, 0]);
    assert_eq!(map.cells[1], [64, 0, 0, 0, 0, 0, 0]);
    assert_eq!(map.cells[2], [0, 0, 0, 0, 0, 0, 64]);
    assert_eq!(map.cells[3], [0, 58, 0, 0, 6, 0, 0]);
    assert_eq!(whole.cells, [map.total()]);
    setup.reclaimer.unpin(250..256);
}
