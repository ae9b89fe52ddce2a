//! The kernel modules' end of a ring and the host's in threads of their own, which sleep and wake
//! each other. A fence that is missing shows here rarely at best; that each is needed, loom says of the
//! Rust twin (`vbus/tests/loom_signal.rs`).
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use vbus::abi::RING_SIGNAL_OFFSET;
use vbus::memory::Region;
use vbus::ring::{Slot, South};
use vbus::signal::{self, Side};
use vbus_c_north::{Interrupt, Publisher, Reaper, Wires, north};

/// Nobody sleeps as long unless a wake-up was lost.
const LOST: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Threads {
    south: OnceLock<Thread>,
    reaper: OnceLock<Thread>,
    num_doorbells: AtomicU64,
    num_interrupts: AtomicU64,
}

impl Wires for Threads {
    fn doorbell(&self) {
        self.num_doorbells.fetch_add(1, Relaxed);
        self.south.wait().unpark();
    }
    fn interrupt(&self) {
        self.num_interrupts.fetch_add(1, Relaxed);
        self.reaper.wait().unpark();
    }
}

fn sleep() {
    let start = Instant::now();
    thread::park_timeout(LOST);
    assert!(start.elapsed() < LOST, "a wake-up was lost");
}

/// Numbers that look random (splitmix64).
struct Random(u64);

impl Random {
    /// 0 to `end` - 1.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as usize % end
    }
}

/// What the north publishes as `number`.
fn sent(number: u64) -> Slot {
    Slot {
        addr: number << 3,
        len: number as u32 | 1,
        meta: [!number, number.wrapping_mul(7)],
    }
}

/// What the south makes of it, if it fills the slot.
fn filled(number: u64) -> Slot {
    Slot {
        addr: !(number << 3),
        len: number as u32 | 2,
        meta: [number, number.wrapping_mul(9)],
    }
}

/// Publishes the slots from `*next` to `end` - 1 as far as there is room, in batches.
fn publish(publisher: &mut Publisher, next: &mut u64, end: u64, random: &mut Random) {
    loop {
        let room = publisher.room() as usize;
        let left = usize::try_from(end - *next).unwrap();
        let count = room.min(left).min(1 + random.below(64));
        if count == 0 {
            return;
        }
        let slots: Vec<Slot> = (*next..).take(count).map(sent).collect();
        assert_eq!(publisher.publish(&slots), count);
        *next += count as u64;
        publisher.signal();
    }
}

/// Takes all that is back and should be `*next` and those that follow.
fn reap(reaper: &mut Reaper, next: &mut u64, num_filled: &mut u64) {
    let num_back = reaper.returned().expect("the south keeps to the rules");
    for nth in 0..num_back {
        let (_, slot) = reaper.slot(nth);
        let was = sent(*next);
        if slot == filled(*next) {
            *num_filled += 1;
        } else {
            assert!(slot.len == was.len || slot.len == 0, "{slot:?}");
            assert_eq!(
                Slot {
                    len: was.len,
                    ..slot
                },
                was
            );
        }
        *next += 1;
    }
    reaper.release(num_back);
}

/// Serves the ring until `is_over`; answers how many slots it filled and how often it asked to be
/// woken.
fn serve(region: Region, mut interrupt: Interrupt, is_over: &AtomicBool) -> (u64, u64) {
    let (to_north, from_north) =
        signal::attach(region.clone(), RING_SIGNAL_OFFSET, Side::South).unwrap();
    let mut south = South::attach(region).unwrap();
    let mut random = Random(1);
    let mut taken = VecDeque::new();
    let (mut next, mut num_filled, mut num_sleeps) = (0, 0, 0);
    while !is_over.load(SeqCst) {
        from_north.disable();
        loop {
            let mut slots = vec![Slot::default(); 1 + random.below(64)];
            let count = south.take(&mut slots).unwrap();
            for slot in &slots[..count] {
                assert_eq!(*slot, sent(next));
                taken.push_back(next);
                next += 1;
            }
            if taken.is_empty() {
                break;
            }
            // Some stay out as long as there are more to take.
            let num_back = match count {
                0 => taken.len(),
                _ => random.below(taken.len() + 1),
            };
            let numbers: Vec<u64> = taken.drain(..num_back).collect();
            if random.below(2) == 0 {
                south.give_back(u32::try_from(num_back).unwrap());
            } else {
                let slots: Vec<Slot> = numbers.into_iter().map(filled).collect();
                assert_eq!(south.give_back_filled(&slots), num_back);
                num_filled += num_back as u64;
            }
            if num_back > 0 && to_north.inject() {
                interrupt.raise();
            }
        }
        num_sleeps += 1;
        if from_north.enable() && !is_over.load(SeqCst) {
            sleep();
        }
    }
    (num_filled, num_sleeps)
}

/// Sends `num_slots` × `num_laps` slots around the ring; publishing and reaping are in one thread,
/// or in two.
fn converse(num_slots: u32, num_laps: u64, are_apart: bool) {
    let end = u64::from(num_slots) * num_laps;
    let threads = Arc::new(Threads::default());
    let (mut publisher, mut reaper, interrupt) = north(num_slots, 0, threads.clone()).unwrap();
    let region = publisher.region();
    let is_over = AtomicBool::new(false);
    let mut north_filled = 0;
    let mut north_sleeps = 0;
    let (south_filled, south_sleeps) = thread::scope(|scope| {
        let south = scope.spawn(|| serve(region, interrupt, &is_over));
        threads.south.set(south.thread().clone()).unwrap();
        threads.reaper.set(thread::current()).unwrap();
        let mut random = Random(2);
        let mut published = 0;
        let mut has_room = None;
        let mut own_publisher = None;
        if are_apart {
            let apart = scope.spawn(move || {
                while published < end {
                    publish(&mut publisher, &mut published, end, &mut random);
                    if published < end {
                        sleep();
                    }
                }
            });
            has_room = Some(apart.thread().clone());
        } else {
            own_publisher = Some((publisher, random));
        }
        let mut reaped = 0;
        while reaped < end {
            reaper.disable_notify();
            loop {
                let before = reaped;
                reap(&mut reaper, &mut reaped, &mut north_filled);
                if let Some((publisher, random)) = &mut own_publisher {
                    publish(publisher, &mut published, end, random);
                }
                if reaped == before {
                    break;
                }
                if let Some(publisher) = &has_room {
                    publisher.unpark();
                }
            }
            north_sleeps += 1;
            if reaped < end && reaper.enable_notify() {
                sleep();
            }
        }
        is_over.store(true, SeqCst);
        south.thread().unpark();
        south.join().unwrap()
    });
    assert_eq!(north_filled, south_filled);
    // There is one sender in each direction, so each sleep is ended by one wake-up at most.
    assert!(threads.num_doorbells.load(Relaxed) <= south_sleeps);
    assert!(threads.num_interrupts.load(Relaxed) <= north_sleeps);
}

#[test]
fn one_thread_publishes_and_reaps() {
    for (num_slots, num_laps) in [
        (1, 20_000),
        (2, 20_000),
        (16, 5_000),
        (256, 500),
        (4096, 50),
    ] {
        converse(num_slots, num_laps, false);
    }
}

#[test]
fn one_thread_publishes_and_another_reaps() {
    for (num_slots, num_laps) in [
        (1, 20_000),
        (2, 20_000),
        (16, 5_000),
        (256, 500),
        (4096, 50),
    ] {
        converse(num_slots, num_laps, true);
    }
}
