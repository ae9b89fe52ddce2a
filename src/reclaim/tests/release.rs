//! What the guest gives away, while everything else goes on.

use std::os::unix::fs::MetadataExt;
use std::sync::mpsc;

use alacrity_devices::hints::{Keeper, NotRam};
use proptest::prelude::*;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::reclaim::release::{GuestMemory, HintedDisk};
use crate::reclaim::userfault::{Fault, FaultKind};

const DISK: HintedDisk = HintedDisk {
    serial: *b"root\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    number: 0,
    num_sectors: NUM_PAGES * 8,
};

fn keeper(setup: &Setup) -> GuestMemory {
    GuestMemory::new(Arc::clone(&setup.reclaimer), vec![DISK])
}

/// Pages of memory that the guest takes, as the kernel counts them.
fn num_resident(setup: &Setup) -> u64 {
    let region = setup.ram.iter().next().unwrap();
    let file = region.file_offset().unwrap();
    file.file().metadata().unwrap().blocks() / 8
}

#[test]
fn memory_that_nobody_watches_is_freed_at_once() {
    let Some(setup) = Setup::new() else { return };
    for page in 0..512 {
        setup.write(page, page + 1);
    }
    assert_eq!(num_resident(&setup), 512);

    let released = keeper(&setup).release(0, 1 << 20).unwrap();

    assert!(released.is_whole);
    assert_eq!(released.freed_bytes, 1 << 20);
    assert_eq!(num_resident(&setup), 256);
    assert_eq!(setup.read(255), 0);
    assert_eq!(setup.read(256), 257);
    setup.write(3, 9);
    assert_eq!(setup.swap_out(), 258); // a read of a hole makes a page too
    assert_eq!(setup.read(3), 9);
}

#[test]
fn pages_in_every_state_become_holes() {
    let Some(setup) = Setup::new() else { return };
    let mut setup = setup.with_cache(40);
    for page in 40..60 {
        setup.write(page, 7);
    }
    assert_eq!(setup.drop_what_is_on_disk(), 40);
    assert_eq!(setup.swap_out(), 20);
    for page in (0..10).chain(40..45) {
        setup.read(page); // proved, resident
    }
    assert!(matches!(setup.state(9), Some(PageState::Proved(_))));

    setup.settle();
    let num_before = num_resident(&setup);
    assert!(num_before >= 15);
    let released = keeper(&setup).release(0, 256 << 10).unwrap();

    assert!(released.is_whole);
    assert_eq!(released.freed_bytes, num_before * PAGE_LEN);
    assert_eq!(setup.reclaimer.disks.num_dependents(), 0);
    assert_eq!(setup.reclaimer.swap.as_ref().unwrap().num_used(), 0);
    assert_eq!(num_resident(&setup), 0);
    let states = (0..60).map(|page| setup.state(page));
    assert!(
        states
            .into_iter()
            .all(|state| state == Some(PageState::Hole))
    );
    for page in 0..60 {
        assert_eq!(setup.read(page), 0);
        setup.write(page, 5);
        assert_eq!(setup.read(page), 5);
    }
    assert_eq!(setup.reclaimer.metrics().mended.get(), 0);
}

#[test]
fn pages_in_a_transfer_stay_and_the_others_go() {
    let Some(setup) = Setup::new() else { return };
    for page in 0..16 {
        setup.write(page, page + 1);
    }
    setup.watch.pin(GuestAddress(5 * PAGE_LEN), 4096);

    let released = keeper(&setup).release(0, 16 * PAGE_LEN).unwrap();

    assert!(!released.is_whole);
    assert_eq!(released.freed_bytes, 15 * PAGE_LEN);
    assert_eq!(setup.read(5), 6);
    assert_eq!(setup.read(6), 0);
    setup.watch.unpin(GuestAddress(5 * PAGE_LEN), 4096);
    let released = keeper(&setup).release(5 * PAGE_LEN, PAGE_LEN).unwrap();
    assert!(released.is_whole);
}

#[test]
fn only_ram_can_be_given_away() {
    let Some(setup) = Setup::new() else { return };
    let keeper = keeper(&setup);
    assert_eq!(keeper.num_pages(), NUM_PAGES);
    let len = NUM_PAGES * PAGE_LEN;
    for (gpa, len) in [
        (len, PAGE_LEN),
        (len - PAGE_LEN, 2 * PAGE_LEN),
        (u64::MAX - 4095, PAGE_LEN),
        (0, 2 * len),
        (0, 1 << 63),
    ] {
        assert_eq!(keeper.release(gpa, len), Err(NotRam), "{gpa:#x} {len:#x}");
    }
    assert_eq!(keeper.disk(&DISK.serial).unwrap().num_sectors, 8192);
    assert_eq!(keeper.disk(&[0; 20]), None);
}

#[test]
fn users_who_give_away_find_zeros_or_what_they_wrote() {
    let Some(mut setup) = Setup::new() else {
        return;
    };
    let keeper = keeper(&setup);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Each has blocks of its own. The last one's are on disk as well.
        let users: Vec<_> = (0..3)
            .map(|user| {
                let (setup, keeper, is_over) = (&setup, &keeper, &is_over);
                scope.spawn(move || {
                    let mut round = 1;
                    while !is_over.load(Ordering::Relaxed) {
                        for block in (user..48).step_by(3) {
                            let pages = block * 4..block * 4 + 4;
                            for page in pages.clone() {
                                setup.write(page, page + round);
                                if user == 2 {
                                    setup.write_to_disk(page, page);
                                }
                            }
                            for page in pages.clone() {
                                assert_eq!(setup.read(page), page + round);
                            }
                            let gpa = pages.start * PAGE_LEN;
                            let is_whole = keeper.release(gpa, 4 * PAGE_LEN).unwrap().is_whole;
                            for page in pages {
                                let found = setup.read(page);
                                let is_kept = !is_whole && found == page + round;
                                assert!(found == 0 || is_kept, "{found} in page {page}");
                            }
                        }
                        round += 1;
                    }
                })
            })
            .collect();
        let over = SetOnDrop(&is_over);
        setup.take_until(&[Means::Drop, Means::Swap], |metrics| {
            metrics.swapped_in.get() > 0 && metrics.zero_filled.get() > 1000
        });
        drop(over);
        for user in users {
            user.join().unwrap();
        }
    });
    assert_eq!(setup.reclaimer.metrics().mended.get(), 0);
    assert_eq!(*setup.failures.lock(), Vec::<String>::new());
    // No page is left that nobody can take, and nothing that it had is.
    setup.settle();
    setup.reclaimer.release(0..NUM_PAGES);
    assert_eq!(num_resident(&setup), 0);
    assert_eq!(setup.reclaimer.disks.num_dependents(), 0);
    assert_eq!(setup.reclaimer.swap.as_ref().unwrap().num_used(), 0);
}

#[derive(Debug, Clone)]
enum Act {
    Write(u64, u64),
    Read(u64),
    WriteToDisk(u64, u64),
    ReadFromDisk(u64, u64),
    Pin(u64),
    Unpin(u64),
    Drop(u64, u64),
    Swap(u64, u64),
    Release(u64, u32),
}

/// Pages that are acted on; the disk has as many.
const NUM_MODEL_PAGES: u64 = 16;

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let page = || 0..NUM_MODEL_PAGES;
    let act = prop_oneof![
        3 => (page(), 0..4u64).prop_map(|(page, value)| Act::Write(page, value)),
        3 => page().prop_map(Act::Read),
        2 => (page(), page()).prop_map(|(page, at)| Act::WriteToDisk(page, at)),
        2 => (page(), page()).prop_map(|(at, page)| Act::ReadFromDisk(at, page)),
        1 => page().prop_map(Act::Pin),
        1 => page().prop_map(Act::Unpin),
        2 => (page(), page()).prop_map(|(start, len)| Act::Drop(start, len)),
        2 => (page(), page()).prop_map(|(start, len)| Act::Swap(start, len)),
        3 => (page(), 0..4u32).prop_map(|(page, order)| Act::Release(page, order)),
    ];
    proptest::collection::vec(act, 1..60)
}

/// Does `acts` to a guest and to plain arrays, and compares.
fn check(acts: &[Act]) {
    let Some(mut setup) = Setup::new() else {
        return;
    };
    let keeper = keeper(&setup);
    let mut ram = [0; NUM_MODEL_PAGES as usize];
    let mut disk = ram;
    let mut pins = ram;
    for act in acts {
        match *act {
            Act::Write(page, value) => {
                setup.write(page, value);
                ram[page as usize] = value;
            }
            Act::Read(page) => assert_eq!(setup.read(page), ram[page as usize], "{act:?}"),
            Act::WriteToDisk(page, at) => {
                setup.write_to_disk(page, at);
                disk[at as usize] = ram[page as usize];
            }
            Act::ReadFromDisk(at, page) => {
                setup.read_from_disk(at, page);
                ram[page as usize] = disk[at as usize];
            }
            Act::Pin(page) => {
                setup.watch.pin(GuestAddress(page * PAGE_LEN), 4096);
                pins[page as usize] += 1;
            }
            Act::Unpin(page) if pins[page as usize] > 0 => {
                setup.watch.unpin(GuestAddress(page * PAGE_LEN), 4096);
                pins[page as usize] -= 1;
            }
            Act::Unpin(_) => {}
            Act::Drop(start, len) => {
                let pages = start..start + len;
                setup.reclaimer.take(pages, Means::Drop).unwrap();
            }
            Act::Swap(start, len) => {
                let pages = start..start + len;
                setup.reclaimer.take(pages, Means::Swap).unwrap();
            }
            Act::Release(page, order) => {
                let num_pages = 1 << order;
                let start = page / num_pages * num_pages;
                setup.settle();
                let released = keeper.release(start * PAGE_LEN, num_pages * PAGE_LEN);
                let pages = start as usize..(start + num_pages) as usize;
                let num_pinned = pages.clone().filter(|page| pins[*page] > 0).count();
                assert_eq!(released.unwrap().is_whole, num_pinned == 0, "{act:?}");
                for page in pages.filter(|page| pins[*page] == 0) {
                    ram[page] = 0;
                }
            }
        }
    }
    for page in 0..NUM_MODEL_PAGES {
        assert_eq!(setup.read(page), ram[page as usize], "page {page}");
        setup.write(page, 9);
        assert_eq!(setup.read(page), 9);
    }
    assert_eq!(*setup.failures.lock(), Vec::<String>::new());
    assert_eq!(setup.reclaimer.metrics().mended.get(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn guest_sees_plain_memory_that_it_gives_away(acts in acts()) {
        check(&acts);
    }
}

#[test]
fn page_that_was_allocated_and_not_touched_is_there() {
    let Some(setup) = Setup::new() else { return };
    setup.swap_out(); // everything is watched
    let reclaimer = &setup.reclaimer;
    reclaimer.ram.fill_with_zeros(5..6).unwrap();
    let claim = reclaimer.words.claim(5, |state| state == PageState::Hole);
    claim.unwrap().release(PageState::Resident);

    // Of an access that came before.
    let kind = FaultKind::Missing { is_write: true };
    reclaimer.serve_or_queue(Fault { page: 5, kind }, &mpsc::channel().0);

    assert_eq!(*setup.failures.lock(), Vec::<String>::new());
    setup.write(5, 9);
    assert_eq!(setup.read(5), 9);
}

#[test]
fn what_is_dropped_is_noted_and_can_be_given_away() {
    let Some(setup) = Setup::new() else { return };
    let setup = setup.with_cache(40);
    assert_eq!(setup.drop_what_is_on_disk(), 40);

    let noted = setup.reclaimer.noted_drops();

    assert_eq!(noted, [(0, 40 << 12)]);
    assert!(setup.reclaimer.noted_drops().is_empty());
    // As a guest does that has removed 32 of them from its cache.
    assert!(keeper(&setup).release(0, 32 << 12).unwrap().is_whole);
    for page in 0..32 {
        setup.write(page, 3);
    }
    let metrics = setup.reclaimer.metrics();
    assert_eq!(metrics.refilled.get(), 0);
    setup.write(32, 3);
    setup.state(32);
    assert_eq!(metrics.refilled_to_write.get(), 1);
}
