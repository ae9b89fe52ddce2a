use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion};

use super::word::{KEPT, OWNED, PROTECTED, RESIDENT};
use super::*;
use crate::eventfd;

const PAGE: u64 = PAGE_BYTES;
const NUM_PAGES: usize = CHUNK_PAGES as usize + 16;
/// Addresses of two ranges of four pages each, and where they are in the file, in pages.
const LOW: (u64, u64) = (0x10_0000, 0);
const HIGH: (u64, u64) = (LOW.0 + 6 * PAGE, 8);
const RANGE_PAGES: u64 = 4;

/// A VM and a process that has its memory.
struct Lab {
    map: PageMap,
    visit: Visit,
    asked: Arc<EventFd>,
    residency: Arc<Residency>,
    ram: GuestRam,
}

fn memfd(num_bytes: u64) -> File {
    let fd = memfd_create(c"ram", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, num_bytes).unwrap();
    fd.into()
}

fn cloned(fd: &impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().unwrap()
}

impl Lab {
    /// All pages of the first chunk are holes that count.
    fn new() -> Self {
        let map = PageMap::new(NUM_PAGES).unwrap();
        map.watch(0);
        let visit = Visit::new().unwrap();
        let asked = Arc::new(EventFd::new(0).unwrap());
        let fds = (cloned(&map), visit.lend().unwrap());
        let served = EventFd::new(0).unwrap();
        let wake_up = Arc::clone(&asked) as Arc<dyn WakeUp>;
        let residency = Residency::new(NUM_PAGES as u64, fds, wake_up, served).unwrap();
        let file = memfd(NUM_PAGES as u64 * PAGE);
        let ranges = [LOW, HIGH].map(|(gpa, page)| {
            let file = FileOffset::new(file.try_clone().unwrap(), page * PAGE);
            let num_bytes = (RANGE_PAGES * PAGE) as usize;
            (GuestAddress(gpa), num_bytes, Some(file))
        });
        Lab {
            map,
            visit,
            asked,
            residency,
            ram: GuestRam::from_ranges_with_files(ranges).unwrap(),
        }
    }

    fn set(&self, page: u64, word: u64) {
        self.map.as_ref()[page as usize].store(word, Release);
    }

    fn access(&self) -> Access {
        self.residency.access().unwrap()
    }

    /// Whether `len` bytes from `gpa` on can be read, and whether they can be written.
    fn has(&self, gpa: u64, len: u32) -> [bool; 2] {
        let access = self.access();
        [false, true].map(|is_write| access.has(&self.ram, gpa, len, is_write))
    }

    fn take_wishes(&self) -> Vec<Wish> {
        self.visit.sections().take_wishes()
    }

    fn is_asked(&self) -> bool {
        eventfd::drain(&self.asked) != 0
    }
}

const BOTH: [bool; 2] = [true, true];
const TO_READ: [bool; 2] = [true, false];
const NEITHER: [bool; 2] = [false, false];

#[test]
fn state_of_a_page_says_what_can_be_done_with_it() {
    let lab = Lab::new();
    assert_eq!(lab.has(LOW.0, 1), NEITHER);
    for state in 0..=word::STATE_MASK {
        let expected = match state {
            RESIDENT | KEPT => BOTH,
            PROTECTED => TO_READ,
            _ => NEITHER,
        };
        for of_the_vm in [0, 1 << 5, u64::MAX << 5] {
            lab.set(0, state | of_the_vm);
            assert_eq!(lab.has(LOW.0, 1), expected, "{state} {of_the_vm:#x}");
            lab.set(0, state | of_the_vm | OWNED);
            assert_eq!(lab.has(LOW.0, 1), NEITHER, "{state} {of_the_vm:#x}, owned");
        }
    }
}

#[test]
fn all_is_there_of_a_chunk_that_is_not_watched() {
    let lab = Lab::new();
    let has = |page| {
        let wish = |is_write| Wish { page, is_write };
        [false, true].map(|is_write| lab.residency.has(wish(is_write)))
    };
    let (last_of_first, last) = (CHUNK_PAGES - 1, NUM_PAGES as u64 - 1);

    // There is none.
    lab.map.watch(2);
    lab.map.watch(u64::MAX);
    assert_eq!(
        [last_of_first, CHUNK_PAGES, last].map(has),
        [NEITHER, BOTH, BOTH]
    );
    lab.map.watch(1);

    assert_eq!([last_of_first, CHUNK_PAGES, last].map(has), [NEITHER; 3]);
    assert_eq!([last + 1, u64::MAX].map(has), [BOTH; 2]);
}

#[test]
fn addresses_without_memory_or_without_a_file_are_there() {
    let lab = Lab::new();
    for gpa in [0, LOW.0 - 1, LOW.0 + 4 * PAGE, HIGH.0 + 4 * PAGE, u64::MAX] {
        assert_eq!(lab.has(gpa, 1), BOTH, "{gpa:#x}");
    }
    assert_eq!(lab.has(u64::MAX - 1, u32::MAX), BOTH);

    let ram = GuestRam::from_ranges(&[(GuestAddress(LOW.0), 4096)]).unwrap();

    assert!(lab.access().has(&ram, LOW.0, 1, true));
}

#[test]
fn all_pages_of_a_range_have_to_be_there() {
    let lab = Lab::new();
    let (first_of_low, first_of_high) = (LOW.1, HIGH.1);
    lab.set(first_of_low, RESIDENT);

    assert_eq!(lab.has(LOW.0, 4096), BOTH);
    assert_eq!(lab.has(LOW.0 + 4095, 1), BOTH);
    assert_eq!(lab.has(LOW.0 + 4095, 2), NEITHER);
    assert_eq!(lab.has(LOW.0 - 1, 2), BOTH);
    assert_eq!(lab.has(LOW.0 + 4096, 0), BOTH, "no bytes");
    lab.set(first_of_low + 1, PROTECTED);
    assert_eq!(lab.has(LOW.0 + 4095, 2), TO_READ);

    // From the last page of the lower range over the gap to the first one of the higher.
    let over_the_gap = (LOW.0 + 3 * PAGE, 3 * 4096 + 1);
    lab.set(first_of_low + 3, RESIDENT);
    assert_eq!(lab.has(over_the_gap.0, over_the_gap.1), NEITHER);
    lab.set(first_of_high, RESIDENT);
    assert_eq!(lab.has(over_the_gap.0, over_the_gap.1), BOTH);
    lab.set(first_of_low + 3, OWNED);
    assert_eq!(lab.has(over_the_gap.0, over_the_gap.1), NEITHER);
}

#[test]
fn wishes_are_taken_once_and_what_is_there_is_not_wished_for() {
    let lab = Lab::new();
    let access = lab.access();
    lab.set(LOW.1 + 1, RESIDENT);
    lab.set(LOW.1 + 2, PROTECTED);
    let all = (LOW.0, 4 * 4096);
    let pages = |wishes: Vec<Wish>| wishes.iter().map(|wish| wish.page).collect::<Vec<_>>();

    access.wish(&lab.ram, [all, (HIGH.0 + 1, 1)].into_iter(), false);

    assert!(lab.is_asked());
    let wishes = lab.take_wishes();
    assert!(wishes.iter().all(|wish| !wish.is_write));
    assert_eq!(pages(wishes), [0, 3, 8]);
    assert_eq!(lab.take_wishes(), []);

    access.wish(&lab.ram, [all].into_iter(), true);

    assert!(lab.is_asked());
    let wishes = lab.take_wishes();
    assert!(wishes.iter().all(|wish| wish.is_write));
    assert_eq!(pages(wishes), [0, 2, 3]);
}

#[test]
fn wish_of_somebody_who_was_in_no_section_yet_is_found() {
    let lab = Lab::new();
    let [first, second] = [lab.access(), lab.access()];
    second.wish(&lab.ram, [(LOW.0, 1)].into_iter(), false);
    assert_eq!(lab.take_wishes().len(), 1);
    first.wish(&lab.ram, [(LOW.0, 1)].into_iter(), false);
    assert_eq!(lab.take_wishes().len(), 1);
}

#[test]
fn vm_is_told_of_each_wish_once_and_if_nothing_is_lacking() {
    let lab = Lab::new();
    let access = lab.access();
    let wish = |nth_pages: &[u64]| {
        let ranges = nth_pages.iter().map(|nth| (LOW.0 + nth * PAGE, 1));
        access.wish(&lab.ram, ranges, false);
        lab.is_asked()
    };

    assert!(wish(&[0, 1]));
    assert!(!wish(&[0, 1]));
    assert!(!wish(&[1]));
    assert!(wish(&[1, 2]), "one of them is new");
    lab.take_wishes();
    assert!(wish(&[1]), "it was taken");

    lab.set(0, RESIDENT);
    assert!(
        wish(&[0]),
        "it came meanwhile: nobody else says that it is there"
    );
    assert_eq!(lab.take_wishes().len(), 1);
}

#[test]
fn same_page_to_be_written_is_another_wish() {
    let lab = Lab::new();
    let access = lab.access();
    let range = || [(LOW.0, 1)].into_iter();
    access.wish(&lab.ram, range(), false);
    lab.is_asked();

    access.wish(&lab.ram, range(), true);

    assert!(lab.is_asked());
    let wishes = lab.take_wishes();
    let is_write: Vec<bool> = wishes.iter().map(|wish| wish.is_write).collect();
    assert_eq!(is_write, [false, true]);
}

#[test]
fn wishes_without_room_come_later() {
    let lab = Lab::new();
    let sections = lab.visit.sections();
    let most = NUM_WISHES as u64;
    sections.enter(1);
    let wish = |pages: std::ops::Range<u64>| {
        let wishes = pages.map(|page| Wish {
            page,
            is_write: false,
        });
        sections.wish(1, wishes)
    };
    let take = || {
        let wishes = sections.take_wishes().into_iter();
        wishes.map(|wish| wish.page).collect::<Vec<_>>()
    };

    assert!(wish(0..most + 20));
    assert!(!wish(0..most + 20), "those that have room are known");
    assert_eq!(take(), (0..most).collect::<Vec<_>>());
    assert!(wish(most..most + 20));
    assert_eq!(take(), (most..most + 20).collect::<Vec<_>>());

    // And of pages as far back as there can be.
    let last = (1 << 52) - 1;
    assert!(wish(last..last + 1));
    assert_eq!(take(), [last]);
}

#[test]
fn others_can_read_the_map_and_not_write_it() {
    let lab = Lab::new();
    let given = cloned(&lab.map);
    let len = map_bytes(NUM_PAGES as u64).unwrap();

    let error = MmapRegion::<()>::from_file(FileOffset::new(given.into(), 0), len).unwrap_err();

    let MmapRegionError::Mmap(error) = error else {
        panic!("{error}")
    };
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    let given = cloned(&lab.map);
    assert_eq!(rustix::io::pwrite(&given, &[1; 8], 0), Err(Errno::PERM));
    assert_eq!(ftruncate(&given, 0), Err(Errno::PERM));
    // Its owner can, and they see it.
    lab.set(3, RESIDENT);
    let mut word = [0; 8];
    rustix::io::pread(&given, &mut word, 3 * 8).unwrap();
    assert_eq!(u64::from_ne_bytes(word), RESIDENT);
    assert_eq!(lab.has(LOW.0 + 3 * PAGE, 1), BOTH);
}

#[test]
fn map_or_sections_that_are_too_short_are_refused() {
    let (map, visit) = (PageMap::new(16).unwrap(), Visit::new().unwrap());
    let short = || Region::new_shared(SECTIONS_BYTES - 8).unwrap().1;
    let new = |num_pages, fds| {
        let asked = Arc::new(EventFd::new(0).unwrap());
        Residency::new(num_pages, fds, asked, EventFd::new(0).unwrap())
    };

    assert!(new(16, (cloned(&map), visit.lend().unwrap())).is_ok());
    let errors = [
        new(17, (cloned(&map), visit.lend().unwrap())).unwrap_err(),
        new(16, (cloned(&map), short())).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, RegionError::FileTooShort { .. }), "{error}");
    }
    // Shared in both directions, what only the VM may write could not be mapped.
    let swapped = (visit.lend().unwrap(), cloned(&map));
    assert!(new(16, swapped).is_err());
    for num_pages in [0, u64::MAX / 8, u64::MAX] {
        let error = new(num_pages, (cloned(&map), visit.lend().unwrap())).unwrap_err();
        assert!(matches!(error, RegionError::OutOfRange { .. }), "{error}");
    }
}

#[test]
fn sections_run_out_and_come_back() {
    let lab = Lab::new();
    let mut all: Vec<Access> = (0..NUM_SECTIONS).map(|_| lab.access()).collect();
    let mut numbers: Vec<usize> = all.iter().map(|access| access.nth).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..NUM_SECTIONS));
    assert!(lab.residency.access().is_none());

    let given_back = all.remove(77).nth;

    assert_eq!(lab.access().nth, given_back);
    assert_eq!(lab.access().nth, given_back);
}

fn turn(sections: &Sections, nth: usize) -> u64 {
    sections.memory.load(turn_at(nth), Relaxed)
}

#[test]
fn whatever_was_written_there_turns_are_odd_inside_and_even_outside() {
    let sections = Sections::new(Region::new_private(SECTIONS_BYTES).unwrap());
    let last = NUM_SECTIONS - 1;
    for before in [0, 1, 2, 0x7777, u64::MAX - 1, u64::MAX] {
        sections.memory.store(turn_at(last), before, Relaxed);
        sections.enter(last);
        let inside = turn(&sections, last);
        assert_eq!(inside % 2, 1, "{before}");
        assert_ne!(inside, before, "who waits for it has to see that it ended");
        for meanwhile in [inside, before, 0, 1, u64::MAX] {
            sections.memory.store(turn_at(last), meanwhile, Relaxed);
            sections.leave(last);
            assert_eq!(turn(&sections, last) % 2, 0, "{before} {meanwhile}");
        }
    }
    let others = (0..last).map(|nth| turn(&sections, nth));
    assert!(others.eq(std::iter::repeat_n(0, last)));
}

#[test]
fn vm_waits_for_sections_as_long_as_it_wants_to() {
    let lab = Lab::new();
    let [first, second] = [lab.access(), lab.access()];
    let sections = lab.visit.sections();
    let nobody = || panic!("nobody is there to wait for");
    assert!(sections.wait_until_left(nobody));

    let inside = second.enter();
    assert!(!sections.wait_until_left(|| false));
    let mut patience = 100;
    assert!(!sections.wait_until_left(|| {
        patience -= 1;
        patience > 0
    }));
    assert_eq!(patience, 0);

    // It ends while the VM waits.
    let mut inside = Some(inside);
    assert!(sections.wait_until_left(|| {
        inside = None;
        true
    }));
    assert!(sections.wait_until_left(nobody));

    // Another one began at once: that one sees what the VM did.
    let mut inside = Some(first.enter());
    let mut again = None;
    assert!(sections.wait_until_left(|| {
        inside = None;
        again = Some(first.enter());
        true
    }));
    assert!(!sections.wait_until_left(|| false));
    drop(again);
    assert!(sections.wait_until_left(nobody));
}

#[test]
fn visit_is_lent_until_the_last_one_lets_go() {
    let visit = Visit::new().unwrap();
    assert!(!visit.is_lent());
    let [first, second] = [visit.lend().unwrap(), visit.lend().unwrap()];
    assert!(visit.is_lent());
    let region = Region::from_memfd(first, SECTIONS_BYTES).unwrap();
    drop(second);
    assert!(visit.is_lent(), "it is mapped");
    drop(region);
    assert!(!visit.is_lent());
}
