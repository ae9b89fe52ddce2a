//! Both ends in one thread.

use super::*;
use crate::abi::{RING_SLOTS_OFFSET, RingSlot};
use crate::memory::{Region, Words};
use std::sync::atomic::Ordering::Relaxed;

fn ring(num_slots: u32) -> (North, South, Region) {
    let geometry = Geometry::new(num_slots).unwrap();
    let region = Region::new_private(geometry.len_bytes()).unwrap();
    let north = North::create(region.clone(), geometry).unwrap();
    let south = South::attach(region.clone()).unwrap();
    (north, south, region)
}

fn slots(addrs: std::ops::Range<u64>) -> Vec<Slot> {
    let slot = |addr: u64| Slot {
        addr,
        len: u32::try_from(addr).unwrap() + 1,
        meta: [addr + 2, addr + 3],
    };
    addrs.map(slot).collect()
}

fn take(south: &mut South, most: usize) -> Vec<Slot> {
    let mut slots = vec![Slot::default(); most];
    let num_taken = south.take(&mut slots).unwrap();
    slots.truncate(num_taken);
    slots
}

#[test]
fn slots_go_south_and_come_back_filled_in_order() {
    let (mut north, mut south, _) = ring(4);

    assert_eq!(north.publish(&slots(10..13)), 3);
    assert_eq!(take(&mut south, 2), slots(10..12));
    assert_eq!(take(&mut south, 2), slots(12..13));
    assert_eq!(south.give_back_filled(&slots(20..23)), 3);

    let mut back = [Slot::default(); 4];
    assert_eq!(north.reap(&mut back), Ok(3));
    assert_eq!(back[..3], slots(20..23));
    assert_eq!(north.room(), 4);
}

#[test]
fn batches_given_back_unchanged_are_not_taken_again_after_laps() {
    let (mut north, mut south, _) = ring(4);

    for lap in 0..100_000u64 {
        // 3 of 4, so that batches begin at each slot.
        assert_eq!(north.publish(&slots(lap..lap + 3)), 3);
        assert_eq!(take(&mut south, 8), slots(lap..lap + 3));
        south.give_back(3);
        assert_eq!(take(&mut south, 8), []);
        assert_eq!(north.reclaim(), Ok(3));
    }
}

#[test]
fn full_ring_takes_no_more_and_gives_no_slot_twice() {
    let (mut north, mut south, _) = ring(2);

    assert_eq!(north.publish(&slots(0..3)), 2);
    assert_eq!(north.publish(&slots(3..4)), 0);
    assert_eq!(take(&mut south, 8), slots(0..2));
    assert_eq!(take(&mut south, 8), []);

    south.give_back(1);
    assert_eq!(north.reclaim(), Ok(1));
    assert_eq!(north.publish(&slots(4..6)), 1);
    assert_eq!(take(&mut south, 8), slots(4..5));
}

#[test]
fn batch_is_reaped_in_parts() {
    let (mut north, mut south, _) = ring(4);
    north.publish(&slots(0..3));
    take(&mut south, 3);
    south.give_back_filled(&slots(5..8));

    let mut back = [Slot::default(); 2];
    assert_eq!(north.reap(&mut back), Ok(2));
    assert_eq!(back[..], slots(5..7));
    assert_eq!(north.reclaim(), Ok(1));
}

#[test]
fn south_returns_no_more_than_it_took() {
    let (mut north, mut south, _) = ring(4);
    north.publish(&slots(0..2));

    south.give_back(2);
    assert_eq!(south.give_back_filled(&slots(0..2)), 0);
    assert_eq!(north.reclaim(), Ok(0));
}

/// Overwrites the control word of a slot.
fn corrupt(region: &Region, slot_idx: usize, batch: u64, turn: u64) {
    let offset = RING_SLOTS_OFFSET + slot_idx * size_of::<RingSlot>() + 24;
    region.store(offset, batch << 32 | turn << 48, Relaxed);
}

#[test]
fn turns_from_nowhere_are_faults() {
    for turn in [2, 3, 0x7fff, 0xfffe] {
        let (_, mut south, region) = ring(4);
        corrupt(&region, 0, 0, turn);

        let fault = south.take(&mut [Slot::default()]).unwrap_err();

        let wanted = RingFault::BadTurn {
            slot_idx: 0,
            turn: u16::try_from(turn).unwrap(),
            expected: 1,
        };
        assert_eq!(fault, wanted);
    }
}

#[test]
fn north_refuses_impossible_returns() {
    for (batch, turn) in [(0, 2), (3, 2), (1, 3), (1, 0)] {
        let (mut north, _, region) = ring(4);
        north.publish(&slots(0..2));
        corrupt(&region, 0, batch, turn);

        assert!(north.reclaim().is_err(), "batch {batch}, turn {turn}");
    }
}

#[test]
fn headers_that_are_none_are_refused() {
    let (_, _, region) = ring(4);
    let write = |offset, value: u32| region.write(offset, &value.to_le_bytes()).unwrap();

    for (offset, value) in [(0, 1), (4, 1), (8, 0), (8, 3), (8, 8), (8, 8192), (12, 16)] {
        let mut good = [0; 4];
        region.read(offset, &mut good).unwrap();
        write(offset, value);
        assert!(Geometry::read(&region).is_err(), "{value} at {offset}");
        region.write(offset, &good).unwrap();
    }
    assert!(Geometry::read(&region).is_ok());
    assert!(South::attach(region.subregion(0, 128).unwrap()).is_err());
}
