//! For tests: how often a thread allocates.
//!
//! ```ignore
//! #[global_allocator]
//! static ALLOCATOR: CountingAllocator = CountingAllocator;
//!
//! let allocations = Allocations::of_thread("venet-dev@bus");
//! // ... frames pass ...
//! assert_eq!(allocations.count(), 0);
//! ```
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::SeqCst};

use super::threads;

/// Threads that can be watched at the same time.
const MOST_WATCHED: usize = 32;

/// A thread that is watched.
struct Watched {
    /// 0: nobody has this place. -1: somebody is about to.
    tid: AtomicI32,
    count: AtomicU64,
}

static WATCHED: [Watched; MOST_WATCHED] = [const {
    Watched {
        tid: AtomicI32::new(0),
        count: AtomicU64::new(0),
    }
}; MOST_WATCHED];

thread_local! {
    /// The thread's id, once it was asked for: to ask is a system call.
    static OWN_TID: Cell<i32> = const { Cell::new(0) };
}

/// The system's allocator, which counts for [`Allocations`].
#[derive(Debug, Clone, Copy)]
pub struct CountingAllocator;

fn count() {
    let own = OWN_TID.get();
    let own = match own {
        0 => {
            let tid = threads::own_tid();
            OWN_TID.set(tid);
            tid
        }
        tid => tid,
    };
    for watched in &WATCHED {
        if watched.tid.load(SeqCst) == own {
            watched.count.fetch_add(1, SeqCst);
        }
    }
}

// SAFETY: all memory is the system allocator's, and counting allocates nothing.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the rules of this function, which are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: as above; `memory` comes from the system's allocator.
        unsafe { System.realloc(memory, layout, new_size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Counts what one thread allocates, in a program whose allocator is a [`CountingAllocator`].
#[derive(Debug)]
pub struct Allocations {
    place: usize,
}

impl Allocations {
    /// Counts for the thread called `name`.
    ///
    /// # Panics
    /// No thread or several are called that, or too many are watched.
    pub fn of_thread(name: &str) -> Self {
        Self::of(threads::tid_of(name))
    }

    /// Counts for the thread that calls this.
    ///
    /// # Panics
    /// Too many threads are watched.
    pub fn of_this_thread() -> Self {
        Self::of(threads::own_tid())
    }

    fn of(tid: i32) -> Self {
        let take = |watched: &Watched| watched.tid.compare_exchange(0, -1, SeqCst, SeqCst);
        let place = WATCHED.iter().position(|watched| take(watched).is_ok());
        let place = place.expect("not so many threads are watched");
        let allocations = Allocations { place };
        allocations.watched().count.store(0, SeqCst);
        allocations.watched().tid.store(tid, SeqCst);
        allocations
    }

    fn watched(&self) -> &'static Watched {
        WATCHED.get(self.place).expect("the place is one of them")
    }

    /// Allocations and reallocations of the thread since this was made.
    pub fn count(&self) -> u64 {
        self.watched().count.load(SeqCst)
    }
}

impl Drop for Allocations {
    fn drop(&mut self) {
        self.watched().tid.store(0, SeqCst);
    }
}
