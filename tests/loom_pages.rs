//! Ownership of pages in every order of accesses that the C11 memory model allows, by `loom`.
//!
//! A page is a word, its memory and a slot. Those are relaxed atomics: whoever owns the page without
//! being ordered after the owner before sees old bytes in some execution.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::Ordering::{self, Relaxed};

use alacrity::reclaim::word::{Met, PageState, Wake, Word, Words};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, AtomicUsize};
use loom::thread;

/// A word of loom's.
#[derive(Default)]
struct LoomWord(AtomicU64);

impl Word for LoomWord {
    fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }

    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.0.compare_exchange(current, new, success, failure)
    }
}

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

/// With at most three preemptions: without the bound it takes a minute, and each mistake that was tried
/// needs two at most.
fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
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
