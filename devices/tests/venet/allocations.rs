//! Workers allocate nothing for frames.
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::SeqCst};

use crate::fixture::*;

/// The allocator of all tests here.
struct Counting;

/// Threads whose allocations count; 0 for none.
static WATCHED: [AtomicI32; 2] = [AtomicI32::new(0), AtomicI32::new(0)];
static NUM_ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    if WATCHED[0].load(SeqCst) == 0 {
        return;
    }
    // SAFETY: it asks for nothing.
    let own = unsafe { libc::gettid() };
    if WATCHED.iter().any(|tid| tid.load(SeqCst) == own) {
        NUM_ALLOCATIONS.fetch_add(1, SeqCst);
    }
}

// SAFETY: all memory is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the rules of this function, which are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above; `memory` comes from `alloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn tid_of(thread: &str) -> i32 {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let task = tasks.map(|task| task.unwrap().path()).find(|task| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim_end() == thread)
    });
    task.unwrap()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn switch_moves_frames_without_allocating() {
    let lab = Lab::with("venet-switch", &["nm1", "nm2"]);
    let mut stations = ["nm1", "nm2"].map(|bus| lab.station(bus, small()));
    let there = [frame(mac(2), mac(1), 60), frame(mac(2), mac(1), 1500)];
    let back = [frame(mac(1), mac(2), 60), frame(mac(1), mac(2), 1500)];
    let mut go_round = |num_rounds| {
        for _ in 0..num_rounds {
            let [a, b] = &mut stations;
            send(a, &there.each_ref().map(|frame| &frame[..]));
            send(b, &back.each_ref().map(|frame| &frame[..]));
            assert_eq!(drain(a).len() + drain(b).len(), 4);
        }
    };
    // Each learns where the other is.
    go_round(10);

    for (watched, thread) in WATCHED.iter().zip(["venet-dev@nm1", "venet-dev@nm2"]) {
        watched.store(tid_of(thread), SeqCst);
    }
    go_round(1000);
    assert_eq!(NUM_ALLOCATIONS.load(SeqCst), 0);

    // Another port is something to take note of.
    lab.host.create_bus("nm3").unwrap();
    lab.host.link("nm3", "net", "dev").unwrap();
    go_round(1);
    assert_ne!(NUM_ALLOCATIONS.load(SeqCst), 0, "allocations are counted");
}
