//! Long random conversations of both ends of a ring, beside plain queues; and a north that writes
//! whatever it likes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;
use vbus::abi::{RING_SLOTS_OFFSET, RingSlot};
use vbus::memory::{Region, Words};
use vbus::ring::{Geometry, North, Slot, South};

/// What one of the ends does.
#[derive(Debug, Clone, Copy)]
enum Step {
    Publish(usize),
    Take(usize),
    GiveBack(u32),
    GiveBackFilled(usize),
    Reap(usize),
    Reclaim,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..12_usize).prop_map(Step::Publish),
        3 => (0..12_usize).prop_map(Step::Take),
        2 => (0..12_u32).prop_map(Step::GiveBack),
        1 => (0..12_usize).prop_map(Step::GiveBackFilled),
        2 => (0..12_usize).prop_map(Step::Reap),
        1 => Just(Step::Reclaim),
    ]
}

/// A slot that came back: what the north may find in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Back {
    Filled(Slot),
    /// First one of a batch that came back unchanged: without its length.
    First(Slot),
    Unchanged(Slot),
}

impl Back {
    fn expected(self) -> Slot {
        match self {
            Back::Filled(slot) | Back::Unchanged(slot) => slot,
            Back::First(slot) => Slot { len: 0, ..slot },
        }
    }
}

/// Both ends beside the queues that they amount to.
struct Model {
    north: North,
    south: South,
    published: VecDeque<Slot>,
    taken: VecDeque<Slot>,
    returned: VecDeque<Back>,
    next: u32,
}

impl Model {
    fn new(num_slots: u32) -> Self {
        let geometry = Geometry::new(num_slots).unwrap();
        let region = Region::new_private(geometry.len_bytes()).unwrap();
        Model {
            north: North::create(region.clone(), geometry).unwrap(),
            south: South::attach(region).unwrap(),
            published: VecDeque::new(),
            taken: VecDeque::new(),
            returned: VecDeque::new(),
            next: 0,
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

    fn num_out(&self) -> usize {
        self.published.len() + self.taken.len() + self.returned.len()
    }

    fn run(&mut self, step: Step) {
        let num_slots = self.north.num_slots() as usize;
        match step {
            Step::Publish(count) => {
                let slots = self.fresh(count);
                let fits = count.min(num_slots - self.num_out());
                assert_eq!(self.north.publish(&slots), fits);
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
                for (nth, slot) in self.taken.drain(..count).enumerate() {
                    self.returned.push_back(match nth {
                        0 => Back::First(slot),
                        _ => Back::Unchanged(slot),
                    });
                }
            }
            Step::GiveBackFilled(count) => {
                let slots = self.fresh(count);
                let fits = count.min(self.taken.len());
                assert_eq!(self.south.give_back_filled(&slots), fits);
                self.taken.drain(..fits);
                self.returned
                    .extend(slots[..fits].iter().copied().map(Back::Filled));
            }
            Step::Reap(count) => {
                let mut slots = vec![Slot::default(); count];
                let num_reaped = self.north.reap(&mut slots).unwrap();
                assert_eq!(num_reaped, count.min(self.returned.len()));
                for slot in &slots[..num_reaped] {
                    assert_eq!(*slot, self.returned.pop_front().unwrap().expected());
                }
            }
            Step::Reclaim => {
                assert_eq!(self.north.reclaim().unwrap() as usize, self.returned.len());
                self.returned.clear();
            }
        }
        assert_eq!(self.north.outstanding() as usize, self.num_out());
        assert_eq!(self.south.outstanding() as usize, self.taken.len());
    }
}

/// What a hostile north does to the memory, or the south to itself.
#[derive(Debug, Clone, Copy)]
enum Attack {
    /// Any word of the ring, to any value.
    Word(usize, u64),
    /// Length, batch and turn of a slot, near what they may be.
    Control(usize, u16, u16),
    South(Step),
}

fn attack() -> impl Strategy<Value = Attack> {
    prop_oneof![
        1 => (any::<usize>(), any::<u64>()).prop_map(|(word, value)| Attack::Word(word, value)),
        3 => (any::<usize>(), 0..20_u16, 0..8_u16)
            .prop_map(|(slot, batch, turn)| Attack::Control(slot, batch, turn)),
        4 => step().prop_map(Attack::South),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn both_ends_agree_with_plain_queues(
        log2_slots in 0..6_u32,
        steps in prop::collection::vec(step(), 1..3000),
    ) {
        let mut model = Model::new(1 << log2_slots);
        for step in steps {
            model.run(step);
        }
    }

    #[test]
    fn hostile_north_gets_a_fault_or_slots_and_nothing_else(
        log2_slots in 0..6_u32,
        attacks in prop::collection::vec(attack(), 1..500),
    ) {
        let num_slots = 1 << log2_slots;
        let geometry = Geometry::new(num_slots).unwrap();
        let region = Region::new_private(geometry.len_bytes()).unwrap();
        geometry.format(&region).unwrap();
        let mut south = South::attach(region.clone()).unwrap();
        let mut slots = [Slot::default(); 64];
        for attack in attacks {
            let before = south.outstanding();
            match attack {
                Attack::Word(word, value) => {
                    region.store(word % (region.len() / 8) * 8, value, Relaxed);
                }
                Attack::Control(slot_idx, batch, turn) => {
                    let slot = slot_idx % num_slots as usize * size_of::<RingSlot>();
                    let value = u64::from(batch) << 32 | u64::from(turn) << 48;
                    region.store(RING_SLOTS_OFFSET + slot + 24, value, Relaxed);
                }
                Attack::South(Step::Take(count)) => match south.take(&mut slots[..count]) {
                    Ok(num_taken) => {
                        prop_assert!(num_taken <= count);
                        prop_assert_eq!(south.outstanding() as usize, before as usize + num_taken);
                    }
                    Err(_) => break,
                },
                Attack::South(Step::GiveBackFilled(count)) => {
                    let num_returned = south.give_back_filled(&slots[..count]);
                    prop_assert_eq!(num_returned, count.min(before as usize));
                }
                Attack::South(Step::GiveBack(count)) => {
                    south.give_back(count);
                    prop_assert_eq!(south.outstanding(), before - before.min(count));
                }
                Attack::South(_) => {}
            }
            prop_assert!(south.outstanding() <= num_slots);
        }
    }
}

#[test]
fn turns_wrap_after_32_768_laps_and_nothing_happens() {
    for num_slots in [1, 2, 4] {
        let mut model = Model::new(num_slots);
        for nth in 0..70_000 * num_slots {
            model.run(Step::Publish(2));
            model.run(Step::Take(3));
            match nth % 3 {
                0 => model.run(Step::GiveBackFilled(2)),
                _ => model.run(Step::GiveBack(2)),
            }
            // Nothing is left from a lap before that could be taken for this one's.
            model.run(Step::Take(1));
            model.run(Step::Reap(4));
        }
        assert!(model.north.outstanding() == 0);
    }
}
