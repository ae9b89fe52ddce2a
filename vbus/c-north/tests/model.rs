//! Long random conversations of the kernel modules' end of a ring with the host's, beside plain
//! queues; and a south that writes whatever it likes.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use proptest::prelude::*;
use vbus::abi::{RING_MAX_SLOTS, RING_SIGNAL_OFFSET, RING_SLOTS_OFFSET, RingSlot};
use vbus::memory::{Region, Words};
use vbus::ring::{Slot, South};
use vbus::signal::{self, Side, SignalReceiver, SignalSender};
use vbus_c_north::{Interrupt, Publisher, Reaper, Wires, north};

const EPROTO: i32 = 71;

#[derive(Default)]
struct Counts {
    doorbells: AtomicU32,
    interrupts: AtomicU32,
}

impl Wires for Counts {
    fn doorbell(&self) {
        self.doorbells.fetch_add(1, Relaxed);
    }
    fn interrupt(&self) {
        self.interrupts.fetch_add(1, Relaxed);
    }
}

/// What one of the ends does.
#[derive(Debug, Clone, Copy)]
enum Step {
    Publish(usize),
    Take(usize),
    GiveBack(u32),
    GiveBackFilled(usize),
    Look,
    Release(usize),
    SignalSouth,
    SignalNorth,
    SouthSleeps,
    SouthWakes,
    NorthSleeps,
    NorthWakes,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..12_usize).prop_map(Step::Publish),
        3 => (0..12_usize).prop_map(Step::Take),
        2 => (0..12_u32).prop_map(Step::GiveBack),
        1 => (0..12_usize).prop_map(Step::GiveBackFilled),
        2 => Just(Step::Look),
        3 => (0..12_usize).prop_map(Step::Release),
        1 => Just(Step::SignalSouth),
        1 => Just(Step::SignalNorth),
        1 => Just(Step::SouthSleeps),
        1 => Just(Step::SouthWakes),
        1 => Just(Step::NorthSleeps),
        1 => Just(Step::NorthWakes),
    ]
}

/// One direction of the signal.
#[derive(Default)]
struct Flags {
    is_enabled: bool,
    is_dirty: bool,
    num_wakes: u32,
}

impl Flags {
    fn inject(&mut self) -> bool {
        let must_wake = !self.is_dirty && self.is_enabled;
        self.is_dirty = true;
        self.num_wakes += u32::from(must_wake);
        must_wake
    }
    fn disable(&mut self) {
        *self = Flags {
            num_wakes: self.num_wakes,
            ..Flags::default()
        };
    }
    fn enable(&mut self) -> bool {
        self.is_enabled = true;
        !self.is_dirty
    }
}

/// Both ends beside the queues that they amount to.
struct Model {
    publisher: Publisher,
    reaper: Reaper,
    interrupt: Interrupt,
    counts: Arc<Counts>,
    south: South,
    to_north: SignalSender<Region>,
    from_north: SignalReceiver<Region>,
    num_slots: usize,
    published: VecDeque<Slot>,
    taken: VecDeque<Slot>,
    returned: VecDeque<Slot>,
    /// Of `returned`, those that the north knows of.
    num_known: usize,
    next: u32,
    next_publish: u32,
    next_reap: u32,
    southward: Flags,
    northward: Flags,
}

impl Model {
    fn new(num_slots: u32, position: u32) -> Self {
        let counts = Arc::new(Counts::default());
        let (publisher, reaper, interrupt) = north(num_slots, position, counts.clone()).unwrap();
        let region = publisher.region();
        let (to_north, from_north) =
            signal::attach(region.clone(), RING_SIGNAL_OFFSET, Side::South).unwrap();
        Model {
            publisher,
            reaper,
            interrupt,
            counts,
            south: South::attach(region).unwrap(),
            to_north,
            from_north,
            num_slots: num_slots as usize,
            published: VecDeque::new(),
            taken: VecDeque::new(),
            returned: VecDeque::new(),
            num_known: 0,
            next: 0,
            next_publish: position,
            next_reap: position,
            southward: Flags::default(),
            northward: Flags::default(),
        }
    }

    fn fresh(&mut self, count: usize) -> Vec<Slot> {
        (0..count)
            .map(|_| {
                self.next = self.next.wrapping_add(1);
                let value = u64::from(self.next);
                Slot {
                    addr: value << 8,
                    len: self.next | 1,
                    meta: [!value, value ^ 0xaaaa],
                }
            })
            .collect()
    }

    fn idx_of(&self, position: u32) -> u32 {
        position % self.num_slots as u32
    }

    fn num_out(&self) -> usize {
        self.published.len() + self.taken.len() + self.returned.len()
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Publish(count) => {
                let slots = self.fresh(count);
                let fits = count.min(self.num_slots - self.num_out());
                assert_eq!(
                    self.publisher.next_slot_idx(),
                    self.idx_of(self.next_publish)
                );
                assert_eq!(self.publisher.publish(&slots), fits);
                self.next_publish = self.next_publish.wrapping_add(fits as u32);
                self.published.extend(&slots[..fits]);
            }
            Step::Take(count) => {
                let mut slots = vec![Slot::default(); count];
                let num_taken = self.south.take(&mut slots).unwrap();
                assert_eq!(num_taken, count.min(self.published.len()));
                for slot in &slots[..num_taken] {
                    assert_eq!(Some(*slot), self.published.pop_front());
                    self.taken.push_back(*slot);
                }
            }
            Step::GiveBack(count) => {
                self.south.give_back(count);
                let count = self.taken.len().min(count as usize);
                for (nth, mut slot) in self.taken.drain(..count).enumerate() {
                    if nth == 0 {
                        slot.len = 0;
                    }
                    self.returned.push_back(slot);
                }
            }
            Step::GiveBackFilled(count) => {
                let slots = self.fresh(count);
                let fits = count.min(self.taken.len());
                assert_eq!(self.south.give_back_filled(&slots), fits);
                self.taken.drain(..fits);
                self.returned.extend(&slots[..fits]);
            }
            Step::Look => {
                self.num_known = self.returned.len();
                assert_eq!(self.reaper.returned(), Ok(self.num_known as u32));
            }
            Step::Release(count) => {
                let count = count.min(self.num_known);
                for nth in 0..count {
                    let (idx, slot) = self.reaper.slot(nth as u32);
                    let position = self.next_reap.wrapping_add(nth as u32);
                    assert_eq!(idx, self.idx_of(position));
                    assert_eq!(Some(slot), self.returned.pop_front());
                }
                self.reaper.release(count as u32);
                self.next_reap = self.next_reap.wrapping_add(count as u32);
                self.num_known -= count;
            }
            Step::SignalSouth => {
                assert_eq!(self.publisher.signal(), self.southward.inject());
            }
            Step::SignalNorth => {
                let must_wake = self.to_north.inject();
                assert_eq!(must_wake, self.northward.inject());
                if must_wake {
                    self.interrupt.raise();
                }
            }
            Step::SouthSleeps => {
                assert_eq!(self.from_north.enable(), self.southward.enable());
            }
            Step::SouthWakes => {
                self.from_north.disable();
                self.southward.disable();
            }
            Step::NorthSleeps => {
                assert_eq!(self.reaper.enable_notify(), self.northward.enable());
            }
            Step::NorthWakes => {
                self.reaper.disable_notify();
                self.northward.disable();
            }
        }
        assert_eq!(
            self.publisher.room() as usize,
            self.num_slots - self.num_out()
        );
        assert_eq!(self.south.outstanding() as usize, self.taken.len());
        assert_eq!(
            self.counts.doorbells.load(Relaxed),
            self.southward.num_wakes
        );
        assert_eq!(
            self.counts.interrupts.load(Relaxed),
            self.northward.num_wakes
        );
    }
}

/// What a hostile south does to the memory.
#[derive(Debug, Clone, Copy)]
enum Attack {
    /// Any word of the ring, to any value.
    Word(usize, u64),
    /// Batch and turn of the `nth` slot that is out: the turn by how much it is more than that of a
    /// published slot.
    Control {
        nth: u32,
        batch: u16,
        turn: u16,
    },
    Publish(usize),
    Release(u32),
}

fn attack() -> impl Strategy<Value = Attack> {
    prop_oneof![
        1 => (any::<usize>(), any::<u64>()).prop_map(|(word, value)| Attack::Word(word, value)),
        3 => (0..3_u32, 0..20_u16, 0..5_u16).prop_map(|(nth, batch, turn)| Attack::Control {
            nth,
            batch,
            turn: turn.wrapping_sub(2),
        }),
        4 => (0..12_usize).prop_map(Attack::Publish),
        2 => any::<u32>().prop_map(Attack::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn both_languages_agree_with_plain_queues(
        log2_slots in 0..6_u32,
        steps in prop::collection::vec(step(), 1..3000),
    ) {
        let mut model = Model::new(1 << log2_slots, 0);
        for step in steps {
            model.run(step);
        }
    }

    #[test]
    fn hostile_south_gets_no_more_back_than_is_out(
        log2_slots in 0..6_u32,
        attacks in prop::collection::vec(attack(), 1..500),
    ) {
        let num_slots = 1 << log2_slots;
        let (mut publisher, mut reaper, _interrupt) =
            north(num_slots, 0, Arc::new(Counts::default())).unwrap();
        let region = publisher.region();
        let slots = [Slot::default(); 12];
        let (mut num_out, mut reaped) = (0, 0);
        for attack in attacks {
            match attack {
                Attack::Word(word, value) => {
                    region.store(word % (region.len() / 8) * 8, value, Relaxed);
                }
                Attack::Control { nth, batch, turn } => {
                    let position = reaped + nth;
                    let published = (position / num_slots * 2 + 1) as u16;
                    let control = u64::from(batch) << 32
                        | u64::from(published.wrapping_add(turn)) << 48;
                    let slot = (position % num_slots) as usize * size_of::<RingSlot>();
                    region.store(RING_SLOTS_OFFSET + slot + 24, control, Relaxed);
                }
                Attack::Publish(count) => {
                    num_out += publisher.publish(&slots[..count]) as u32;
                    publisher.signal();
                }
                Attack::Release(count) => match reaper.returned() {
                    Ok(num_back) => {
                        prop_assert!(num_back <= num_out);
                        let count = count % (num_back + 1);
                        for nth in 0..count {
                            prop_assert!(reaper.slot(nth).0 < num_slots);
                        }
                        reaper.release(count);
                        num_out -= count;
                        reaped += count;
                    }
                    Err(errno) => {
                        prop_assert_eq!(errno, EPROTO);
                        break;
                    }
                },
            }
            prop_assert_eq!(publisher.room(), num_slots - num_out);
        }
    }
}

#[test]
fn largest_ring_fills_and_empties() {
    let mut model = Model::new(RING_MAX_SLOTS, 0);
    for _ in 0..3 {
        let all = RING_MAX_SLOTS as usize;
        model.run(Step::Publish(all + 1));
        model.run(Step::Publish(1));
        model.run(Step::Take(all + 1));
        model.run(Step::GiveBack(RING_MAX_SLOTS));
        model.run(Step::Look);
        model.run(Step::Release(all));
    }
}

#[test]
fn rings_of_other_sizes_are_refused() {
    for num_slots in [0, 3, RING_MAX_SLOTS + 1, RING_MAX_SLOTS * 2] {
        assert!(north(num_slots, 0, Arc::new(Counts::default())).is_none());
    }
}

/// Turns wrap after 32,768 laps, positions after 2^32 slots.
#[test]
fn turns_and_positions_wrap_and_nothing_happens() {
    for num_slots in [1, 2, 4] {
        let last_laps = 0u32.wrapping_sub(num_slots << 15);
        let mut model = Model::new(num_slots, last_laps);
        for nth in 0..70_000 * num_slots {
            model.run(Step::Publish(2));
            model.run(Step::Take(3));
            match nth % 3 {
                0 => model.run(Step::GiveBackFilled(2)),
                _ => model.run(Step::GiveBack(2)),
            }
            // Nothing is left from a lap before that could be taken for this one's.
            model.run(Step::Take(1));
            model.run(Step::Look);
            model.run(Step::Release(4));
        }
        assert!(model.next_publish < last_laps, "they have wrapped");
    }
}
