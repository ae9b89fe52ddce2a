//! A VM that takes a page, and another process that looks at it, in every order of accesses that the C11
//! memory model allows, by `loom`, within three preemptions.
//!
//! To know that the models can fail, each fence, the release at the end of a section, the acquire of who
//! waits for it and the atomic exchange of wishes are taken away in turn: each of these tests has to panic.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, fence};
use vbus::memory::Words;
use vbus::residency::{SECTIONS_BYTES, Sections, Wish, word};

/// Where the places for wishes of the first section start: after its turn.
const WISHES_OFFSET: usize = 8;
const NUM_PLACES: usize = 2;

/// What is taken away from the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Nothing,
    VisitorFence,
    VmFence,
    ReleaseOfLeave,
    AcquireOfWait,
    SwapOfWish,
    SwapOfTake,
}

/// The first section in loom's atomics, as one side uses it. All others are never entered.
#[derive(Clone)]
struct Memory {
    turn: Arc<AtomicU64>,
    wishes: Arc<[AtomicU64; NUM_PLACES]>,
    /// Touched before each fence: loom lets another thread run before an access to something that
    /// both touch, and not before a fence. Relaxed, it orders nothing that fences do not.
    before_fence: Arc<AtomicU64>,
    has_fence: bool,
    has_release: bool,
    has_acquire: bool,
    has_swap: bool,
}

impl Memory {
    fn new(turn: u64) -> Self {
        Memory {
            turn: Arc::new(AtomicU64::new(turn)),
            wishes: Arc::new([0; NUM_PLACES].map(AtomicU64::new)),
            before_fence: Arc::new(AtomicU64::new(0)),
            has_fence: true,
            has_release: true,
            has_acquire: true,
            has_swap: true,
        }
    }

    /// `None`: it stays 0.
    fn word(&self, offset: usize) -> Option<&AtomicU64> {
        assert!(offset.is_multiple_of(8) && offset < SECTIONS_BYTES);
        match offset.checked_sub(WISHES_OFFSET) {
            None => Some(&self.turn),
            Some(place) => self.wishes.get(place / 8),
        }
    }
}

impl Words for Memory {
    fn len_bytes(&self) -> usize {
        SECTIONS_BYTES
    }

    fn load(&self, offset: usize, order: Ordering) -> u64 {
        let order = if self.has_acquire { order } else { Relaxed };
        self.word(offset).map_or(0, |word| word.load(order))
    }

    fn store(&self, offset: usize, value: u64, order: Ordering) {
        let order = if self.has_release { order } else { Relaxed };
        self.word(offset).unwrap().store(value, order);
    }

    fn swap(&self, offset: usize, value: u64, order: Ordering) -> u64 {
        let word = self.word(offset).unwrap();
        if self.has_swap {
            return word.swap(value, order);
        }
        let before = word.load(Acquire);
        word.store(value, Release);
        before
    }

    fn fence(&self) {
        if self.has_fence {
            self.before_fence.fetch_add(1, Relaxed);
            fence(Ordering::SeqCst);
        }
    }
}

/// Both sides of the same sections: of the process, and of the VM.
fn sides(turn: u64, missing: Missing) -> (Sections<Memory>, Sections<Memory>) {
    let memory = Memory::new(turn);
    let visitor = Memory {
        has_fence: missing != Missing::VisitorFence,
        has_release: missing != Missing::ReleaseOfLeave,
        has_swap: missing != Missing::SwapOfWish,
        ..memory.clone()
    };
    let vm = Memory {
        has_fence: missing != Missing::VmFence,
        has_acquire: missing != Missing::AcquireOfWait,
        has_swap: missing != Missing::SwapOfTake,
        ..memory
    };
    (Sections::new(visitor), Sections::new(vm))
}

const HOLE: u64 = 0;
/// What a page holds that was punched, and two that were not.
const ZEROS: u64 = 0;
const BYTES: u64 = 1;
const NEW_BYTES: u64 = 2;

/// A page and its word. Nothing but the protocol orders accesses to its bytes.
struct Page {
    word: AtomicU64,
    bytes: AtomicU64,
}

impl Page {
    fn new() -> Arc<Self> {
        Arc::new(Page {
            word: AtomicU64::new(word::RESIDENT),
            bytes: AtomicU64::new(BYTES),
        })
    }

    fn is_there(&self) -> bool {
        self.word.load(Acquire) == word::RESIDENT
    }

    /// As a VM does it; what it found in the page before it punched it.
    fn take(&self, sections: &Sections<Memory>) -> u64 {
        let (resident, owned) = (word::RESIDENT, word::RESIDENT | word::OWNED);
        self.word
            .compare_exchange(resident, owned, AcqRel, Relaxed)
            .unwrap();
        assert!(sections.wait_until_left(|| {
            loom::thread::yield_now();
            true
        }));
        let found = self.bytes.load(Relaxed);
        self.bytes.store(ZEROS, Relaxed);
        self.word.store(HOLE, Release);
        found
    }
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// A process reads the page `num_sections` times if it is there, and finds no zeros.
fn no_hole_is_read(missing: Missing, num_sections: usize) {
    check(move || {
        let (sections, vm) = sides(0, missing);
        let page = Page::new();
        let visitor = {
            let page = page.clone();
            loom::thread::spawn(move || {
                for _ in 0..num_sections {
                    sections.enter(0);
                    if page.is_there() {
                        assert_eq!(page.bytes.load(Relaxed), BYTES, "a hole was read");
                    }
                    sections.leave(0);
                }
            })
        };
        assert_eq!(page.take(&vm), BYTES);
        visitor.join().unwrap();
    });
}

/// A process writes the page if it is there, and the VM finds what it wrote before it punches the page.
fn no_write_is_lost(missing: Missing) {
    check(move || {
        let (sections, vm) = sides(0, missing);
        let page = Page::new();
        let visitor = {
            let page = page.clone();
            loom::thread::spawn(move || {
                sections.enter(0);
                let is_there = page.is_there();
                if is_there {
                    page.bytes.store(NEW_BYTES, Relaxed);
                }
                sections.leave(0);
                is_there
            })
        };
        let found = page.take(&vm);
        let is_written = visitor.join().unwrap();
        assert_eq!(found == NEW_BYTES, is_written, "a write was lost");
        assert_eq!(page.bytes.load(Relaxed), ZEROS, "a hole was written to");
    });
}

/// A process wishes for the same page again and again while the VM takes wishes: in the end none is left
/// that the VM is not told of.
fn no_wish_is_forgotten(missing: Missing) {
    const WISH: Wish = Wish {
        page: 7,
        is_write: true,
    };
    check(move || {
        // It was in a section before.
        let (sections, vm) = sides(2, missing);
        let doorbell = Arc::new(AtomicU64::new(0));
        let take = |num_taken: &mut usize| {
            if doorbell.swap(0, AcqRel) == 0 {
                return false;
            }
            let wishes = vm.take_wishes();
            assert!(wishes.iter().all(|wish| *wish == WISH));
            *num_taken += wishes.len();
            true
        };
        let visitor = {
            let doorbell = doorbell.clone();
            loom::thread::spawn(move || {
                for _ in 0..2 {
                    if sections.wish(0, [WISH].into_iter()) {
                        doorbell.fetch_add(1, AcqRel);
                    }
                }
            })
        };
        let mut num_taken = 0;
        take(&mut num_taken);
        visitor.join().unwrap();
        while take(&mut num_taken) {}
        assert!((1..=2).contains(&num_taken), "a wish was lost");
        assert_eq!(vm.take_wishes(), [], "a wish was forgotten");
    });
}

#[test]
fn page_that_is_there_is_no_hole_until_the_section_ends() {
    no_hole_is_read(Missing::Nothing, 1);
    no_hole_is_read(Missing::Nothing, 2);
}

#[test]
fn what_was_written_in_a_section_is_there_when_it_was_waited_for() {
    no_write_is_lost(Missing::Nothing);
}

#[test]
fn wish_is_taken_or_told_of() {
    no_wish_is_forgotten(Missing::Nothing);
}

#[test]
#[should_panic(expected = "a hole was read")]
fn holes_are_read_without_the_fence_of_the_visitor() {
    no_hole_is_read(Missing::VisitorFence, 1);
}

#[test]
#[should_panic(expected = "a hole was read")]
fn holes_are_read_without_the_fence_of_the_vm() {
    no_hole_is_read(Missing::VmFence, 1);
}

#[test]
#[should_panic(expected = "a write was lost")]
fn writes_are_lost_without_the_fence_of_the_visitor() {
    no_write_is_lost(Missing::VisitorFence);
}

#[test]
#[should_panic(expected = "a write was lost")]
fn writes_are_lost_without_the_fence_of_the_vm() {
    no_write_is_lost(Missing::VmFence);
}

#[test]
#[should_panic(expected = "a write was lost")]
fn writes_are_lost_without_the_release_of_leave() {
    no_write_is_lost(Missing::ReleaseOfLeave);
}

#[test]
#[should_panic(expected = "a write was lost")]
fn writes_are_lost_without_the_acquire_of_who_waits() {
    no_write_is_lost(Missing::AcquireOfWait);
}

#[test]
#[should_panic(expected = "a wish was")]
fn wishes_are_forgotten_if_they_are_not_put_at_once() {
    no_wish_is_forgotten(Missing::SwapOfWish);
}

#[test]
#[should_panic(expected = "a wish was")]
fn wishes_are_lost_if_they_are_not_taken_at_once() {
    no_wish_is_forgotten(Missing::SwapOfTake);
}
