//! Both ends of a ring in every order of accesses that the C11 memory model allows, by `loom`, within
//! six preemptions.
//!
//! Each slot stands for a buffer that the model checker watches: north writes it, south reads or
//! writes it, and whoever touches it without having got it properly is a data race. To know that the
//! models can fail, the release or the acquire of either side is taken away in turn.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::atomic::Ordering::{self, Relaxed};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, fence};
use vbus::abi::RING_SLOTS_OFFSET;
use vbus::memory::Words;
use vbus::ring::{Geometry, North, Slot, South};

const NUM_SLOTS: u32 = 2;
const WORDS_PER_SLOT: usize = 4;

/// The slots in loom's atomics; the header is not looked at.
#[derive(Clone)]
struct Memory {
    words: Arc<Vec<AtomicU64>>,
    has_release: bool,
    has_acquire: bool,
}

impl Memory {
    fn new() -> Self {
        let num_words = NUM_SLOTS as usize * WORDS_PER_SLOT;
        Memory {
            words: Arc::new((0..num_words).map(|_| AtomicU64::new(0)).collect()),
            has_release: true,
            has_acquire: true,
        }
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8));
        &self.words[(offset - RING_SLOTS_OFFSET) / 8]
    }
}

impl Words for Memory {
    fn len_bytes(&self) -> usize {
        RING_SLOTS_OFFSET + self.words.len() * 8
    }

    fn load(&self, offset: usize, order: Ordering) -> u64 {
        self.word(offset)
            .load(if self.has_acquire { order } else { Relaxed })
    }

    fn store(&self, offset: usize, value: u64, order: Ordering) {
        self.word(offset)
            .store(value, if self.has_release { order } else { Relaxed });
    }

    fn swap(&self, offset: usize, value: u64, order: Ordering) -> u64 {
        self.word(offset).swap(value, order)
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// What a slot points to. Accesses are announced to loom and nothing is read or written.
struct Buffer(UnsafeCell<()>);

#[expect(
    unsafe_code,
    reason = "loom's cells are not Sync, whatever they are for"
)]
// SAFETY: the pointer that the cell gives is never dereferenced.
unsafe impl Sync for Buffer {}

impl Buffer {
    fn read(&self) {
        self.0.with(|_| ());
    }

    fn write(&self) {
        self.0.with_mut(|_| ());
    }
}

/// How the south returns what it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Return {
    Unchanged,
    Filled,
}

/// What is taken away from the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Nothing,
    NorthRelease,
    NorthAcquire,
    SouthRelease,
    SouthAcquire,
}

fn slot(value: u64) -> Slot {
    Slot {
        addr: value,
        len: u32::try_from(value).unwrap(),
        meta: [value + 1000, value + 2000],
    }
}

/// What a filled slot says that was taken as `slot`.
fn filled(slot: Slot) -> Slot {
    Slot {
        len: slot.len + 50,
        ..slot
    }
}

/// The north publishes `batches`, as large as there is room, and takes all back: nothing is lost,
/// twice there, torn, or touched by both.
fn all_come_back(batches: &'static [u64], take_at_most: usize, way: Return, missing: Missing) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(6);
    model.check(move || {
        let geometry = Geometry::new(NUM_SLOTS).unwrap();
        let buffers: Arc<Vec<Buffer>> = Arc::new(
            (0..NUM_SLOTS)
                .map(|_| Buffer(UnsafeCell::new(())))
                .collect(),
        );
        let total: u64 = batches.iter().sum();
        let memory = Memory::new();
        let south_memory = Memory {
            has_release: missing != Missing::SouthRelease,
            has_acquire: missing != Missing::SouthAcquire,
            ..memory.clone()
        };
        let north_memory = Memory {
            has_release: missing != Missing::NorthRelease,
            has_acquire: missing != Missing::NorthAcquire,
            ..memory
        };
        let device = {
            let buffers = buffers.clone();
            let mut south = South::new(south_memory, geometry);
            loom::thread::spawn(move || {
                let mut num_taken = 0;
                while num_taken < total {
                    let mut slots = [Slot::default(); NUM_SLOTS as usize];
                    let count = south.take(&mut slots[..take_at_most]).unwrap();
                    if count == 0 {
                        loom::thread::yield_now();
                        continue;
                    }
                    for taken in &mut slots[..count] {
                        assert_eq!(*taken, slot(num_taken), "torn");
                        let buffer = &buffers[usize::try_from(num_taken % 2).unwrap()];
                        match way {
                            Return::Unchanged => buffer.read(),
                            Return::Filled => buffer.write(),
                        }
                        *taken = filled(*taken);
                        num_taken += 1;
                    }
                    match way {
                        Return::Unchanged => south.give_back(u32::try_from(count).unwrap()),
                        Return::Filled => {
                            assert_eq!(south.give_back_filled(&slots[..count]), count);
                        }
                    }
                }
            })
        };
        let mut north = North::new(north_memory, geometry);
        let (mut num_published, mut num_back) = (0_u64, 0_u64);
        let mut batches = batches.iter();
        let mut batch = *batches.next().unwrap();
        while num_back < total {
            if batch != 0 && u64::from(north.room()) >= batch {
                let slots: Vec<Slot> = (num_published..num_published + batch)
                    .map(|value| {
                        buffers[usize::try_from(value % 2).unwrap()].write();
                        slot(value)
                    })
                    .collect();
                assert_eq!(north.publish(&slots), slots.len());
                num_published += batch;
                batch = batches.next().copied().unwrap_or(0);
            }
            let count = match way {
                Return::Unchanged => u64::from(north.reclaim().unwrap()),
                Return::Filled => {
                    let mut back = [Slot::default(); NUM_SLOTS as usize];
                    let count = north.reap(&mut back).unwrap();
                    for (back, value) in back[..count].iter().zip(num_back..) {
                        assert_eq!(*back, filled(slot(value)), "torn");
                    }
                    count as u64
                }
            };
            if count == 0 {
                loom::thread::yield_now();
            }
            num_back += count;
        }
        assert_eq!(num_back, total);
        device.join().unwrap();
    });
}

#[test]
fn unchanged_slots_come_back_over_laps() {
    all_come_back(&[2, 1, 1], 2, Return::Unchanged, Missing::Nothing);
    all_come_back(&[1, 2, 2], 1, Return::Unchanged, Missing::Nothing);
}

#[test]
fn filled_slots_come_back_over_laps() {
    all_come_back(&[2, 1, 1], 2, Return::Filled, Missing::Nothing);
    all_come_back(&[1, 2], 1, Return::Filled, Missing::Nothing);
}

#[test]
#[should_panic(expected = "torn")]
fn slots_are_torn_without_the_release_of_the_north() {
    all_come_back(&[2, 1, 1], 2, Return::Unchanged, Missing::NorthRelease);
}

#[test]
#[should_panic(expected = "torn")]
fn slots_are_torn_without_the_acquire_of_the_south() {
    all_come_back(&[2, 1, 1], 2, Return::Unchanged, Missing::SouthAcquire);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn buffers_race_without_the_release_of_the_south() {
    all_come_back(&[2, 1, 1], 2, Return::Unchanged, Missing::SouthRelease);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn buffers_race_without_the_acquire_of_the_north() {
    all_come_back(&[2, 1, 1], 2, Return::Unchanged, Missing::NorthAcquire);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn filled_buffers_race_without_the_release_of_the_south() {
    all_come_back(&[2, 1], 2, Return::Filled, Missing::SouthRelease);
}
