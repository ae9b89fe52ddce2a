//! Guests that write anything anywhere.

use proptest::prelude::*;
use vbus::abi::pci::{NUM_EVENT_QUEUES, func};
use vm_memory::{Bytes, GuestAddress};

use crate::vbus_pci::fake_guest::{CALLS, FakeGuest, RAM_BYTES, RAM_START};
use crate::vbus_pci::fuzz;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn anything_at_all_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
        fuzz::drive(&bytes);
    }

    #[test]
    fn anything_at_all_by_several_vcpus_at_once_is_survived(
        scripts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..3000), 4),
    ) {
        let scripts: Vec<&[u8]> = scripts.iter().map(Vec::as_slice).collect();
        fuzz::drive_together(&scripts);
    }

    #[test]
    fn call_that_fails_writes_its_status_and_nothing_else(
        func in 0u32..12,
        args in prop::collection::vec(prop_oneof![any::<u64>(), 0u64..300], 6),
    ) {
        let guest = FakeGuest::started(1, 8);
        let mut bytes = [0; 48];
        for (place, word) in bytes.chunks_exact_mut(8).zip(&args) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        guest.write_call(CALLS, func, &bytes);
        let mut before = vec![0; RAM_BYTES];
        guest.ram.read_slice(&mut before, GuestAddress(RAM_START)).unwrap();

        let result = guest.call(func, &bytes);

        let mut after = vec![0; RAM_BYTES];
        guest.ram.read_slice(&mut after, GuestAddress(RAM_START)).unwrap();
        if result.is_err() {
            after[4..8].copy_from_slice(&before[4..8]);
        } else {
            after[4..128].copy_from_slice(&before[4..128]);
        }
        // With no connection there is nothing else that a call could write to.
        prop_assert!(before == after);
        let good = [func::OPEN, func::DEVICE_INFO, func::CHANNEL];
        prop_assert!(result.is_err() || good.contains(&func));
    }
}

#[test]
fn handles_of_nobody_reach_no_device() {
    let guest = FakeGuest::started(2, 8);
    let handle = guest.open(0).unwrap();
    for guess in (0..300)
        .chain([u64::MAX, 1 << 32])
        .filter(|guess| *guess != handle)
    {
        assert!(guest.device_call(guess, 0, b"x").is_err());
        assert!(guest.share(&FakeGuest::shm(guess, 0, 0)).is_err());
        assert!(guest.close(guess).is_err());
    }
    assert_eq!(guest.device_call(handle, 0, b"xy").unwrap().1, b"yx");
}

#[test]
fn guest_that_never_looks_at_its_events_holds_little() {
    let guest = FakeGuest::started(1, 1);
    for _ in 0..2000 {
        if let Ok(handle) = guest.open(0) {
            for id in 0..3 {
                let _ = guest.share(&FakeGuest::shm(handle, id, 0));
            }
            guest.close(handle).unwrap();
        }
    }
    let events = guest.function.connector().events();
    let waiting: usize = (0..NUM_EVENT_QUEUES as usize)
        .map(|lane_idx| events.backlog_len(lane_idx))
        .sum();
    assert_eq!(waiting, crate::vbus_pci::events::MAX_SHMS);
}
