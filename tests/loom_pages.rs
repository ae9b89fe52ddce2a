//! Ownership of pages in every order of accesses that the C11 memory model allows, by `loom`.
//!
//! A page is a word, its memory and a slot. Those are relaxed atomics: whoever owns the page without
//! being ordered after the owner before sees old bytes in some execution.
#![allow(clippy::unwrap_used)]

mod loom_support;

use std::sync::atomic::Ordering::Relaxed;

use alacrity::reclaim::word::{Met, PageState, Wake, Words};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, AtomicUsize};
use loom::thread;

use self::loom_support::{Bell, LoomWord, model};

/// Counts wake-ups.
#[derive(Clone, Default)]
struct Wakes(Arc<AtomicUsize>);

impl Wake for Wakes {
    fn wake(&self, page: u64) {
        assert_eq!(page, 0);
        self.0.fetch_add(1, Relaxed);
    }
}

struct Page {
    words: Words<Wakes, LoomWord>,
    wakes: Wakes,
    /// What is in memory, or [`HOLE`]. Touched by owners only.
    memory: AtomicU64,
    /// What is in the only slot.
    slot: AtomicU64,
}

const HOLE: u64 = 0;
const CONTENT: u64 = 7;
/// What a hole is filled with.
const ZEROS: u64 = 1;
/// What is in the slot once it is somebody else's.
const FREED: u64 = 2;

impl Page {
    fn new() -> Arc<Self> {
        let wakes = Wakes::default();
        let words = Words::with(Box::new([LoomWord::default()]), wakes.clone());
        words
            .claim(0, |_| true)
            .unwrap()
            .release(PageState::Resident);
        Arc::new(Page {
            words,
            wakes,
            memory: AtomicU64::new(CONTENT),
            slot: AtomicU64::new(0),
        })
    }

    /// As the reclaimer does.
    fn swap_out(&self) {
        let Some(mut claim) = self.words.claim(0, |state| state == PageState::Resident) else {
            return;
        };
        self.slot.store(self.memory.load(Relaxed), Relaxed);
        if !claim.publish(PageState::Swapped(0)) {
            return; // as it was
        }
        self.memory.store(HOLE, Relaxed);
        let state = claim.state();
        claim.release(state);
    }

    /// As the server of faults does: false if the page has an owner, who will wake the access.
    fn serve(&self, is_write: bool) -> bool {
        let Met::Free(claim) = self.words.meet(0, is_write).unwrap() else {
            return false;
        };
        if let PageState::Swapped(_) = claim.state() {
            self.memory.store(self.slot.load(Relaxed), Relaxed);
        }
        // The access itself, which finds the content.
        assert_eq!(self.memory.load(Relaxed), CONTENT);
        claim.release(PageState::Resident);
        true
    }

    /// As the reclaimer does with what the guest gives away.
    fn release(&self) -> bool {
        let Some(claim) = self.words.claim(0, |_| true) else {
            return false;
        };
        self.memory.store(HOLE, Relaxed);
        if let PageState::Swapped(_) = claim.state() {
            self.slot.store(FREED, Relaxed);
        }
        claim.release(PageState::Hole);
        true
    }

    /// As [`Page::serve`], of a page that may have been given away: what the access finds, if it is not
    /// tried again.
    fn serve_or_fill(&self, is_write: bool) -> Option<u64> {
        let Met::Free(claim) = self.words.meet(0, is_write).unwrap() else {
            return None;
        };
        match claim.state() {
            PageState::Swapped(_) => self.memory.store(self.slot.load(Relaxed), Relaxed),
            PageState::Hole => self.memory.store(ZEROS, Relaxed),
            _ => {}
        }
        let found = self.memory.load(Relaxed);
        claim.release(PageState::Resident);
        Some(found)
    }

    /// The content is where the state says.
    fn check(&self) {
        let state = self.words.peek(0).unwrap();
        let memory = self.memory.load(Relaxed);
        match state {
            PageState::Resident => assert_eq!(memory, CONTENT),
            PageState::Swapped(0) => {
                assert_eq!(memory, HOLE);
                assert_eq!(self.slot.load(Relaxed), CONTENT);
            }
            other => panic!("{other:?}"),
        }
        // Nobody owns it any more.
        drop(self.words.claim(0, |_| true).unwrap());
    }
}

#[test]
fn two_who_take_a_page_and_one_who_reads_it() {
    model(|| {
        let page = Page::new();
        let takers: Vec<_> = (0..2)
            .map(|_| {
                let page = Arc::clone(&page);
                thread::spawn(move || page.swap_out())
            })
            .collect();
        let is_served = page.serve(false);
        for taker in takers {
            taker.join().unwrap();
        }
        let num_wakes = page.wakes.0.load(Relaxed);
        assert_eq!(
            num_wakes,
            usize::from(!is_served),
            "whoever waits is woken once"
        );
        page.check();
    });
}

#[test]
fn page_that_is_written_to_is_not_taken_unless_the_writer_was_late() {
    model(|| {
        let page = Page::new();
        let taker = {
            let page = Arc::clone(&page);
            thread::spawn(move || page.swap_out())
        };
        // Tried again when it is woken, as the kernel does.
        let mut num_tries = 1;
        while !page.serve(true) {
            while page.wakes.0.load(Relaxed) < num_tries {
                thread::yield_now();
            }
            num_tries += 1;
        }
        taker.join().unwrap();
        page.check();
    });
}

#[test]
fn page_that_is_given_away_while_it_is_taken_and_read() {
    model(|| {
        let page = Page::new();
        let taker = {
            let page = Arc::clone(&page);
            thread::spawn(move || page.swap_out())
        };
        let giver = {
            let page = Arc::clone(&page);
            thread::spawn(move || page.release())
        };
        let found = page.serve_or_fill(true);
        taker.join().unwrap();
        let is_given = giver.join().unwrap();
        match found {
            Some(found) => assert!(found == CONTENT || is_given && found == ZEROS, "{found}"),
            None => assert!(page.wakes.0.load(Relaxed) > 0, "it is tried again"),
        }
        let found = page.serve_or_fill(false).unwrap();
        assert!(found == CONTENT || is_given && found == ZEROS, "{found}");
    });
}

#[test]
fn who_waits_for_a_page_outlives_one_owner_after_the_other() {
    model(|| {
        let bell = Bell::default();
        let words = Arc::new(Words::with(
            Box::new([LoomWord::default()]) as Box<[_]>,
            bell.clone(),
        ));
        let owner = {
            let words = Arc::clone(&words);
            thread::spawn(move || {
                for _ in 0..2 {
                    drop(words.claim(0, |_| true));
                }
            })
        };
        while let Met::Owned = words.meet(0, true).unwrap() {
            bell.wait(&words);
        }
        owner.join().unwrap();
    });
}
