//! A page that is taken, while its disk is written, a device holds it or its punch fails, in every order
//! of accesses that the C11 memory model allows, by `loom`.
//!
//! Memory, disk and slot are relaxed atomics: who works on them without being ordered after those before
//! finds old bytes in some execution.
#![allow(clippy::unwrap_used)]

mod loom_support;

use std::io;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use alacrity::reclaim::backing::{Disks, PageSource};
use alacrity::reclaim::swap_file::PageBuffer;
use alacrity::reclaim::word::{Backing, Claim, Met, PageState, Pin, Words};
use loom::sync::atomic::AtomicU64;
use loom::sync::{Arc, Mutex};
use loom::thread;

use self::loom_support::{Bell, LoomWord, model};

const HOLE: u64 = 0;
const CONTENT: u64 = 7;
/// What a device or another page writes.
const NEW: u64 = 8;
const BACKING: Backing = Backing { disk: 0, sector: 8 };
/// The bytes of [`BACKING`].
const SECTORS: std::ops::Range<u64> = 4096..8192;

/// A disk has to have something to be read from.
#[derive(Debug)]
struct Unread;

impl PageSource for Unread {
    fn read_page(&self, _offset: u64, _bytes: &mut PageBuffer) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

struct World {
    words: Words<Bell, LoomWord>,
    bell: Bell,
    memory: AtomicU64,
    /// The swap file's slot.
    slot: AtomicU64,
    disk: AtomicU64,
    /// Those of the reclaimer, whose lock loom does not know.
    disks: Mutex<Disks>,
}

impl World {
    /// A page in memory that is the same on disk.
    fn new() -> Arc<Self> {
        let bell = Bell::default();
        let words = Words::with(Box::new([LoomWord::default()]) as Box<[_]>, bell.clone());
        let claim = words.claim(0, |_| true).unwrap();
        claim.release(PageState::Resident);
        let mut disks = Disks::default();
        disks.add(Box::new(Unread)).unwrap();
        Arc::new(World {
            words,
            bell,
            memory: AtomicU64::new(CONTENT),
            slot: AtomicU64::new(HOLE),
            disk: AtomicU64::new(CONTENT),
            disks: Mutex::new(disks),
        })
    }

    /// Owns the page, however long that takes.
    fn own(&self, is_write: bool) -> Claim<'_, Bell, LoomWord> {
        loop {
            match self.words.meet(0, is_write).unwrap() {
                Met::Free(claim) => return claim,
                Met::Owned => self.bell.wait(&self.words),
            }
        }
    }

    fn forget(&self) {
        self.disks.lock().unwrap().forget(BACKING, 0);
    }

    /// As the reclaimer does with a page that may be on disk.
    fn drop_to_disk(&self) {
        let wants = |state| matches!(state, PageState::Resident | PageState::Proved(_));
        let Some(mut claim) = self.words.claim(0, wants) else {
            return;
        };
        if let PageState::Resident = claim.state() {
            let bytes = self.memory.load(Relaxed);
            if !self.disks.lock().unwrap().depend(BACKING, 0) {
                return;
            }
            if self.disk.load(Relaxed) != bytes {
                return self.forget();
            }
        }
        let was_proved = claim.state() != PageState::Resident;
        if claim.publish(PageState::Dropped(BACKING)) {
            self.memory.store(HOLE, Relaxed);
        } else {
            self.forget();
            if was_proved {
                claim.release(PageState::Resident);
            }
        }
    }

    /// As the server of faults does with a read.
    fn read(&self) -> u64 {
        let claim = self.own(false);
        if let PageState::Dropped(backing) = claim.state() {
            self.memory.store(self.disk.load(Relaxed), Relaxed);
            let found = self.memory.load(Relaxed);
            claim.release(PageState::Proved(backing));
            return found;
        }
        self.memory.load(Relaxed)
    }

    /// As the disk does for the guest, from another page.
    fn write_disk(&self) {
        let dependents = self.disks.lock().unwrap().begin_change(0, SECTORS);
        for _ in dependents {
            let claim = self.own(true);
            match claim.state() {
                PageState::Dropped(_) => {
                    self.memory.store(self.disk.load(Relaxed), Relaxed);
                }
                PageState::Proved(_) => {}
                _ => continue,
            }
            self.forget();
            claim.release(PageState::Resident);
        }
        self.disk.store(NEW, Relaxed);
        self.disks.lock().unwrap().end_change(0, &SECTORS);
    }

    /// As the reclaimer does with a page that is on no disk.
    fn swap_out(&self) {
        let is_resident = |state| state == PageState::Resident;
        let Some(mut claim) = self.words.claim(0, is_resident) else {
            return;
        };
        self.slot.store(self.memory.load(Relaxed), Relaxed);
        if claim.publish(PageState::Swapped(0)) {
            self.memory.store(HOLE, Relaxed);
        }
    }

    /// Keeps the page in memory, as the reclaimer does for a device.
    fn pin(&self) {
        loop {
            match self.words.pin(0).unwrap() {
                Pin::Done => return,
                Pin::Owned => self.bell.wait(&self.words),
                Pin::Absent(claim) => {
                    if let PageState::Swapped(_) = claim.state() {
                        self.memory.store(self.slot.load(Relaxed), Relaxed);
                    }
                    return claim.release(PageState::Pinned(1));
                }
            }
        }
    }

    /// As a device does that writes to memory: what it finds there.
    fn transfer(&self, new: u64) -> u64 {
        self.pin();
        // It asks nobody from here on.
        let found = self.memory.swap(new, AcqRel);
        thread::yield_now();
        assert_eq!(self.memory.load(Relaxed), new, "taken during a transfer");
        self.words.unpin(0);
        found
    }
}

fn spawn(world: &Arc<World>, run: fn(&World)) -> thread::JoinHandle<()> {
    let world = Arc::clone(world);
    thread::spawn(move || run(&world))
}

#[test]
fn page_that_is_dropped_while_its_sectors_change_and_it_is_read() {
    model(|| {
        let world = World::new();
        let taker = spawn(&world, World::drop_to_disk);
        let writer = spawn(&world, World::write_disk);
        assert_eq!(world.read(), CONTENT);
        taker.join().unwrap();
        writer.join().unwrap();
        assert_eq!(world.read(), CONTENT);
    });
}

#[test]
fn page_that_was_proved_and_dropped_again_while_its_sectors_change() {
    model(|| {
        let world = World::new();
        world.drop_to_disk();
        assert_eq!(world.read(), CONTENT);
        let writer = spawn(&world, World::write_disk);
        world.drop_to_disk();
        assert_eq!(world.read(), CONTENT);
        world.drop_to_disk();
        writer.join().unwrap();
        world.drop_to_disk();
        assert_eq!(world.read(), CONTENT);
    });
}

#[test]
fn page_in_a_transfer_is_not_taken() {
    model(|| {
        let world = World::new();
        let taker = spawn(&world, World::swap_out);
        assert_eq!(world.transfer(NEW), CONTENT);
        assert_eq!(world.transfer(CONTENT), NEW);
        taker.join().unwrap();
        let claim = world.own(false);
        match claim.state() {
            PageState::Resident => assert_eq!(world.memory.load(Relaxed), CONTENT),
            PageState::Swapped(_) => assert_eq!(world.slot.load(Relaxed), CONTENT),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn two_transfers_keep_a_page_until_both_are_over() {
    model(|| {
        let world = World::new();
        world.swap_out();
        let taker = spawn(&world, World::swap_out);
        let device = spawn(&world, |world| {
            world.pin();
            assert_ne!(world.memory.load(Relaxed), HOLE);
            thread::yield_now();
            assert_ne!(world.memory.load(Relaxed), HOLE);
            world.words.unpin(0);
        });
        assert_eq!(world.transfer(NEW), CONTENT);
        taker.join().unwrap();
        device.join().unwrap();
        assert_eq!(world.transfer(CONTENT), NEW);
    });
}

#[test]
fn huge_page_that_is_not_split_is_zeros_for_its_owner_only() {
    model(|| {
        let world = World::new();
        let taker = spawn(&world, |world| {
            let is_resident = |state| state == PageState::Resident;
            let Some(mut claim) = world.words.claim(0, is_resident) else {
                return;
            };
            let bytes = world.memory.load(Relaxed);
            world.slot.store(bytes, Relaxed);
            if claim.publish(PageState::Swapped(0)) {
                world.memory.store(HOLE, Relaxed); // and still there
                world.memory.store(bytes, Relaxed);
                claim.release(PageState::Resident);
            }
        });
        assert_eq!(world.read(), CONTENT);
        taker.join().unwrap();
        assert_eq!(world.read(), CONTENT);
    });
}

/// A word of a guest's table: in the upper half how often the guest changed it, in the lower one what
/// it said then.
fn said(sequence: u64) -> u64 {
    (sequence << 32) | (sequence + 100)
}

/// What the host makes of it.
const REFUSED: u64 = 1 << 63;

#[test]
fn word_of_the_guest_is_never_torn_and_no_change_of_it_is_lost() {
    model(|| {
        let word = Arc::new(AtomicU64::new(said(0)));
        // The scanner and whoever withdraws a hint: what fails is looked at again later.
        let change = |word: &AtomicU64| {
            let old = word.load(Acquire);
            let new = said((old & !REFUSED) >> 32) + said(1) - said(0);
            u64::from(word.compare_exchange(old, new, AcqRel, Acquire).is_ok())
        };
        let scanner = {
            let word = Arc::clone(&word);
            thread::spawn(move || change(&word) + change(&word))
        };
        let host = {
            let word = Arc::clone(&word);
            thread::spawn(move || {
                let seen = word.load(Acquire) & !REFUSED;
                assert_eq!(seen, said(seen >> 32), "torn");
                let _ = word.compare_exchange(seen, seen | REFUSED, AcqRel, Acquire);
            })
        };
        let num_withdrawn = change(&word);
        let num_changes = num_withdrawn + scanner.join().unwrap();
        host.join().unwrap();
        assert_eq!(word.load(Relaxed) & !REFUSED, said(num_changes), "lost");
    });
}
