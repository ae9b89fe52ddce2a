//! A ring of which one end is ours and the other one is the input: our south and a
//! hostile north, or our north and a hostile south. Either faults or works within its slots.
#![no_main]

use std::sync::atomic::Ordering::Relaxed;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use vbus::abi::{RING_SLOTS_OFFSET, RingSlot};
use vbus::memory::{Region, Words};
use vbus::ring::{Geometry, North, Slot, South};

#[derive(Debug, Arbitrary)]
enum Step {
    /// Any word of the ring; the header too.
    Word {
        word: u16,
        value: u64,
    },
    /// A control word that is nearly right.
    Control {
        slot: u8,
        len: u32,
        batch: u8,
        turn: u8,
    },
    Publish(u8),
    Take(u8),
    GiveBack(u16),
    GiveBackFilled(u8),
    Reap(u8),
    Reclaim,
}

#[derive(Debug, Arbitrary)]
struct Input {
    is_north_ours: bool,
    log2_slots: u8,
    header: Option<[u32; 4]>,
    steps: Vec<Step>,
}

fuzz_target!(|input: Input| {
    let num_slots = 1 << (input.log2_slots % 7);
    let geometry = Geometry::new(num_slots).unwrap();
    let region = Region::new_private(geometry.len_bytes()).unwrap();
    geometry.format(&region).unwrap();
    if let Some(header) = input.header {
        let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        region.write(0, &bytes).unwrap();
        let Ok(south) = South::attach(region.clone()) else {
            return;
        };
        assert!(south.num_slots() <= num_slots);
        region.write(8, &num_slots.to_le_bytes()).unwrap();
    }
    let mut north = North::new(region.clone(), geometry);
    let mut south = South::new(region.clone(), geometry);
    let mut slots = [Slot::default(); 256];
    for step in input.steps {
        match step {
            Step::Word { word, value } => {
                region.store(usize::from(word) % (region.len() / 8) * 8, value, Relaxed);
            }
            Step::Control {
                slot,
                len,
                batch,
                turn,
            } => {
                let slot = usize::from(slot) % num_slots as usize * size_of::<RingSlot>();
                let value = u64::from(len) | u64::from(batch) << 32 | u64::from(turn) << 48;
                region.store(RING_SLOTS_OFFSET + slot + 24, value, Relaxed);
            }
            Step::Publish(count) if input.is_north_ours => {
                let room = north.room() as usize;
                let count = usize::from(count);
                assert_eq!(north.publish(&slots[..count]), count.min(room));
            }
            Step::Reap(count) if input.is_north_ours => {
                let before = north.outstanding() as usize;
                let Ok(num_reaped) = north.reap(&mut slots[..usize::from(count)]) else {
                    return;
                };
                assert!(num_reaped <= before);
                assert_eq!(north.outstanding() as usize, before - num_reaped);
            }
            Step::Reclaim if input.is_north_ours => {
                let before = north.outstanding();
                let Ok(num_reclaimed) = north.reclaim() else {
                    return;
                };
                assert_eq!(north.outstanding(), before - num_reclaimed);
            }
            Step::Take(count) if !input.is_north_ours => {
                let before = south.outstanding() as usize;
                let Ok(num_taken) = south.take(&mut slots[..usize::from(count)]) else {
                    return;
                };
                assert!(num_taken <= usize::from(count));
                assert_eq!(south.outstanding() as usize, before + num_taken);
            }
            Step::GiveBack(count) if !input.is_north_ours => {
                let before = south.outstanding();
                south.give_back(count.into());
                assert_eq!(south.outstanding(), before - before.min(count.into()));
            }
            Step::GiveBackFilled(count) if !input.is_north_ours => {
                let before = south.outstanding() as usize;
                let count = usize::from(count);
                assert_eq!(south.give_back_filled(&slots[..count]), count.min(before));
            }
            _ => {}
        }
        assert!(north.outstanding() <= num_slots);
        assert!(south.outstanding() <= num_slots);
    }
});
