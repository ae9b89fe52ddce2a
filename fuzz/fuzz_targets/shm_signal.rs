//! A shm-signal whose other side writes any word at any time, and does anything to the doorbell: the words
//! change as the rules say and no others do, wake-ups follow from them, and nobody waits.
#![no_main]

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vbus::device::ShmSignal;
use vbus::memory::{Region, Words};
use vbus::signal::{self, Side};
use vbus::verbs::WakeUp;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const NUM_WORDS: usize = 48;
const PAIR_BYTES: usize = 128;

#[derive(Debug, Arbitrary)]
enum Step {
    /// The other side writes a word.
    Word {
        word: u8,
        value: u64,
    },
    /// A flag of the signal, more often than others.
    Flag {
        flag: u8,
        value: bool,
    },
    Notify,
    Disable,
    Enable,
    /// The other side counts something into the doorbell.
    Ring(u32),
    Drain,
    /// Another attempt, which changes nothing.
    Attach {
        offset: usize,
        is_north: bool,
    },
}

#[derive(Debug, Arbitrary)]
struct Input {
    offset: u8,
    is_north: bool,
    is_nonblocking: bool,
    words: Vec<u64>,
    steps: Vec<Step>,
}

#[derive(Default)]
struct Census(AtomicUsize);

impl WakeUp for Census {
    fn wake(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

fn side(is_north: bool) -> Side {
    match is_north {
        true => Side::North,
        false => Side::South,
    }
}

fn fits(offset: usize) -> bool {
    let end = offset.checked_add(PAIR_BYTES);
    offset.is_multiple_of(8) && end.is_some_and(|end| end <= NUM_WORDS * 8)
}

fuzz_target!(|input: Input| {
    let region = Region::new_private(NUM_WORDS * 8).expect("the host has a page");
    let mut model = [0; NUM_WORDS];
    for (nth, value) in input.words.into_iter().take(NUM_WORDS).enumerate() {
        region.store(nth * 8, value, Relaxed);
        model[nth] = value;
    }
    let offset = usize::from(input.offset) * 4;
    let Some((sender, receiver)) = signal::attach(region.clone(), offset, side(input.is_north))
    else {
        assert!(!fits(offset));
        return;
    };
    assert!(fits(offset));
    let census = Arc::new(Census::default());
    let signal = ShmSignal {
        sender,
        receiver,
        doorbell: EventFd::new(if input.is_nonblocking {
            EFD_NONBLOCK
        } else {
            0
        })
        .expect("the host has descriptors"),
        wake_up: Arc::clone(&census) as _,
    };
    // To the south first, a cache line each: "enabled", "dirty".
    let (to_south, to_north) = (offset / 8, offset / 8 + 8);
    let (sent, received) = match input.is_north {
        true => (to_south, to_north),
        false => (to_north, to_south),
    };
    let mut num_wakes = 0;
    let mut num_rings = 0_u64;
    for step in input.steps {
        match step {
            Step::Word { word, value } => {
                let word = usize::from(word) % NUM_WORDS;
                region.store(word * 8, value, Relaxed);
                model[word] = value;
            }
            Step::Flag { flag, value } => {
                let word = [sent, sent + 1, received, received + 1][usize::from(flag) % 4];
                region.store(word * 8, value.into(), Relaxed);
                model[word] = value.into();
            }
            Step::Notify => {
                let is_due = model[sent + 1] == 0 && model[sent] != 0;
                if model[sent + 1] == 0 {
                    model[sent + 1] = 1;
                }
                assert_eq!(signal.notify(), is_due);
                num_wakes += usize::from(is_due);
            }
            Step::Disable => {
                signal.receiver.disable();
                model[received] = 0;
                model[received + 1] = 0;
            }
            Step::Enable => {
                model[received] = 1;
                assert_eq!(signal.receiver.enable(), model[received + 1] == 0);
            }
            Step::Ring(value) => {
                // It could fill up only after more than 2^32 steps.
                signal.doorbell.write(value.into()).expect("there is room");
                num_rings += u64::from(value);
            }
            Step::Drain => {
                signal.drain_doorbell();
                num_rings = 0;
            }
            Step::Attach { offset, is_north } => {
                let attached = signal::attach(region.clone(), offset, side(is_north));
                assert_eq!(attached.is_some(), fits(offset));
            }
        }
        for (nth, value) in model.iter().enumerate() {
            assert_eq!(region.load(nth * 8, Relaxed), *value, "word {nth}");
        }
        assert_eq!(census.0.load(Relaxed), num_wakes);
    }
    if num_rings > 0 {
        assert_eq!(signal.doorbell.read().expect("it was rung"), num_rings);
    }
    signal.drain_doorbell();
});
