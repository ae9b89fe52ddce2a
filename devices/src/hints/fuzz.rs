//! A release ring, an event ring and tables on bytes of a fuzzer, without a thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use vbus::abi::hints::{MAX_RELEASE_BYTES, SERIAL_BYTES, feature};
use vbus::memory::{Region, Words};

use super::handle::{HintsHandle, Session, Shared};
use super::keeper::{Keeper, KnownDisk, NotRam, Released};
use super::release::ReleaseQueue;
use super::table::{Disks, Tables};
use crate::client::Client;
use crate::fuzz_ring::{Faults, NUM_SLOTS, RING_BYTES, cut, ring};

const NUM_WORDS: usize = 64;
/// RAM is from address 0 on.
const RAM_BYTES: u64 = 64 << 20;
const DISK: KnownDisk = KnownDisk {
    number: 3,
    num_sectors: 1000,
};

/// Takes blocks that are some.
struct Checker {
    /// What is zeroed when its first page is taken.
    ring: Mutex<Option<Region>>,
}

impl Keeper for Checker {
    fn num_pages(&self) -> u64 {
        RAM_BYTES / 4096
    }

    fn release(&self, gpa: u64, len: u64) -> Result<Released, NotRam> {
        assert!(len.is_power_of_two() && (4096..=MAX_RELEASE_BYTES.into()).contains(&len));
        assert!(gpa.is_multiple_of(len));
        let end = gpa.checked_add(len).ok_or(NotRam)?;
        if end > RAM_BYTES {
            return Err(NotRam);
        }
        let ring = self.ring.lock();
        if let Some(ring) = &*ring
            && gpa == 0
        {
            for offset in (0..ring.len()).step_by(8) {
                ring.store(offset, 0, Relaxed);
            }
        }
        Ok(Released {
            freed_bytes: len / 2,
            is_whole: gpa & 0x1000 == 0,
        })
    }

    fn disk(&self, _serial: &[u8; SERIAL_BYTES]) -> Option<KnownDisk> {
        Some(DISK)
    }
}

/// Serves one guest and says how often it was cut off.
///
/// `bytes` are: flags (bits 0 and 1: turns of the release and of the event ring are right, bit 2: the
/// release ring is in page 0)); then: slots of the release ring, of the event ring; words of the
/// table. What is missing is zero.
#[expect(clippy::expect_used, reason = "a fuzzer without memory cannot go on")]
pub fn serve_bytes(bytes: &[u8]) -> usize {
    let mut bytes = bytes;
    let Some((flags, rest)) = bytes.split_first() else {
        return 0;
    };
    bytes = rest;
    let faults = Arc::new(Faults::default());
    let client = Arc::new(Client::new(Arc::clone(&faults) as _));
    let (end, region) = ring(cut(&mut bytes, RING_BYTES), flags & 1 != 0);
    let (events, _) = ring(cut(&mut bytes, RING_BYTES), flags & 2 != 0);
    let table = Region::new_private(NUM_WORDS * 8).expect("out of memory");
    table
        .write(0, cut(&mut bytes, NUM_WORDS * 8))
        .expect("it fits");
    let keeper = Checker {
        ring: Mutex::new((flags & 4 != 0).then_some(region)),
    };
    let shared = Arc::new(Shared::new(Arc::new(keeper)));
    let disks = Arc::<Disks>::default();
    if let Some(disk) = disks.first() {
        let _ = disk.set(DISK);
    }
    shared.start(Session {
        client: Arc::clone(&client),
        features: feature::RELEASE | feature::TABLE | feature::DROPPED,
        events,
        tables: Tables {
            regions: vec![Some(table.clone())],
        },
        disks,
    });
    let handle = HintsHandle(Arc::clone(&shared));

    let mut queue = ReleaseQueue { end };
    for _ in 0..4 {
        if let Err(fault) = queue.serve(&shared, &AtomicBool::new(false)) {
            client.cut_off("release", fault);
            break;
        }
    }
    if !client.is_cut_off()
        && let Err(fault) = queue.keep_all(&shared.metrics)
    {
        client.cut_off("release", fault);
    }
    let metrics = &shared.metrics;
    let num_served = metrics.taken_blocks.get() + metrics.evicted_blocks.get();
    let num_served = num_served + metrics.kept_blocks.get();
    assert!(num_served <= NUM_SLOTS.into(), "no slot is taken twice");

    for (gfn, hint) in handle.hints(0..u64::MAX) {
        let is_in_table = usize::try_from(gfn).is_ok_and(|gfn| gfn < NUM_WORDS);
        assert!(is_in_table && hint.age <= 7);
        if let Some(place) = hint.place {
            assert!(place.disk == DISK.number && place.sector + 8 <= DISK.num_sectors);
        }
        handle.refuse(gfn, hint);
    }
    assert!(
        handle.hints(0..u64::MAX).is_empty(),
        "all words are refused"
    );
    handle.dropped(&[(0x1000, 4096); 20]);
    let _ = handle.release_now(Duration::ZERO);
    let _ = shared.answer(1);
    shared.stop();
    faults.count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz_ring::SLOT_BYTES;

    /// Flags and a release ring whose slots are all `addr`, `len`.
    fn bytes(flags: u8, addr: u64, len: u32) -> Vec<u8> {
        let mut slot = [0; SLOT_BYTES];
        slot[..8].copy_from_slice(&addr.to_le_bytes());
        slot[24..28].copy_from_slice(&len.to_le_bytes());
        let mut bytes = vec![flags];
        bytes.extend(slot.repeat(NUM_SLOTS as usize));
        bytes
    }

    #[test]
    fn good_blocks_are_no_fault() {
        assert_eq!(serve_bytes(&bytes(3, 0x40_0000, 4 << 20)), 0);
    }

    #[test]
    fn bad_block_is_one_fault() {
        assert_eq!(serve_bytes(&bytes(3, 0x1000, 8192)), 1);
    }

    #[test]
    fn ring_that_is_given_away_is_an_empty_one() {
        assert_eq!(serve_bytes(&bytes(7, 0, 4096)), 0);
    }

    #[test]
    fn words_of_ones_are_no_fault() {
        let mut bytes = bytes(3, 0x40_0000, 4096);
        bytes.extend([0xff; RING_BYTES + NUM_WORDS * 8]);
        serve_bytes(&bytes);
    }

    #[test]
    fn nothing_is_no_fault() {
        assert_eq!(serve_bytes(&[]), 0);
    }
}
