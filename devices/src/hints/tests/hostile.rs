//! A guest that does not follow the rules.

use super::*;

/// Tells whether the client is cut off for `slot`.
fn assert_cut_off(slot: Slot) {
    let guest = Guest::new();
    let mut driver = guest.start();
    // What came before counts.
    driver.release.publish(&[block(0x40_0000, 4096), slot]);
    guest.wait_cut_off(&format!("{slot:x?} is refused"));
    assert_eq!(guest.keeper.taken(), [(0x40_0000, 4096)]);
}

#[test]
fn slots_that_are_no_block_cut_the_guest_off() {
    for (addr, len) in [
        (0, 0),
        (0, 1),
        (0, 2048),
        (0, 4095),
        (0, 12 << 10),
        (0, 8 << 20),
        (0, 1 << 31),
        (0, u32::MAX),
        (1, 4096),
        (0x1000, 8192),
        (RAM_BYTES, 4096),
        (RAM_BYTES - 4096, 8192),
        (u64::MAX, 4096),
        (u64::MAX - 4095, 4096),
        (!((4 << 20) - 1), 4 << 20),
        (1 << 63, 4 << 20),
    ] {
        assert_cut_off(block(addr, len));
    }
}

#[test]
fn fields_that_mean_nothing_cut_the_guest_off() {
    for bit in 0..64 {
        let meta = [1u64 << bit, 0];
        let is_known = bit == 0 || (8..16).contains(&bit); // kind 1, and what the host fills in
        if !is_known {
            assert_cut_off(Slot {
                meta,
                ..block(0x50_0000, 4096)
            });
        }
    }
}

#[test]
fn results_are_not_the_guests_to_say() {
    let guest = Guest::new();
    let mut driver = guest.start();
    let meta = [0xff01, u64::MAX];
    driver.release.publish(&[Slot {
        meta,
        ..block(0x40_0000, 4096)
    }]);

    let slot = driver.release.wait();

    assert_eq!(answer(&slot), (release_result::TAKEN, 4096));
    assert_eq!(guest.handle.metrics().evicted_blocks.get(), 1);
}

#[test]
fn ring_of_garbage_is_one_fault() {
    for turn in [3, 99, 0x7fff, 0xfffe] {
        let guest = Guest::new();
        let driver = guest.start();
        let region = &driver.release.region;
        region.store(RING_SLOTS_OFFSET + 24, turn << 48 | 4096, Relaxed);
        driver.release.ring();
        guest.wait_cut_off("the ring is refused");
        assert!(guest.keeper.taken().is_empty());
    }
}

#[test]
fn event_ring_of_garbage_is_one_fault() {
    let guest = Guest::new();
    let driver = guest.start();
    let region = &driver.events.region;
    region.store(RING_SLOTS_OFFSET + 24, 99 << 48, Relaxed);

    let result = guest.handle.release_now(LONG);

    assert_eq!(result, Err(NotReleased::NoSlot));
    guest.wait_cut_off("the ring is refused");
    let result = guest.handle.release_now(LONG);
    assert_eq!(result, Err(NotReleased::NoDriver));
}

#[test]
fn same_block_again_and_again_is_taken_each_time() {
    let guest = Guest::new();
    let mut driver = guest.start();
    for _ in 0..200 {
        driver.release.publish(&[block(0x40_0000, 4 << 20); 3]);
        for _ in 0..3 {
            assert_eq!(answer(&driver.release.wait()).0, release_result::TAKEN);
        }
    }
    assert_eq!(guest.num_cut_off(), 0);
}

#[test]
fn guest_that_never_looks_is_served_as_far_as_its_ring_goes() {
    let guest = Guest::new();
    let mut driver = guest.start();
    driver.release.publish(&[block(0x40_0000, 4096); 64]);
    wait_until("all are taken", || guest.keeper.taken().len() == 64);
    for _ in 0..1000 {
        driver.release.doorbell.write(1).unwrap();
    }
    thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.keeper.taken().len(), 64);
    assert_eq!(guest.num_cut_off(), 0);
}

/// The ring that is served is zero all of a sudden.
#[test]
fn guest_that_gives_away_its_rings_has_none() {
    for addr in [RELEASE_AT, EVENTS_AT, TABLE_AT] {
        let guest = Guest::new();
        let mut driver = guest.start();
        let page = addr & !0xfff;
        // In the first lap a slot of zeros is an empty one, later it is garbage.
        for _ in 0..2 {
            driver.release.publish(&[block(0x40_0000, 4096); 64]);
            for _ in 0..64 {
                driver.release.wait();
            }
        }
        driver.release.publish(&[block(page, 4096)]);
        wait_until("it is taken", || {
            guest.keeper.taken().last() == Some(&(page, 4096))
        });
        driver.release.doorbell.write(1).unwrap();
        let _ = guest.handle.release_now(Duration::from_millis(1));
        assert!(guest.handle.hints(0..4096).is_empty());
        if addr == RELEASE_AT {
            guest.wait_cut_off("the ring is no ring any more");
        }
    }
}

#[test]
fn guest_that_gives_away_everything_takes_nobody_along() {
    let guest = Guest::new();
    let mut driver = guest.start();
    let blocks: Vec<_> = (0..RAM_BYTES / (4 << 20))
        .map(|nth| block(nth * (4 << 20), 4 << 20))
        .rev()
        .collect();
    driver.release.publish(&blocks);
    wait_until("all is taken", || {
        guest.keeper.taken().len() == blocks.len()
    });
    driver.release.doorbell.write(1).unwrap();
    let _ = guest.handle.release_now(Duration::from_millis(1));
    guest.client.close(guest.connection).unwrap();
    guest.client.open(InterfaceId(0), VERSION).unwrap();
}

#[test]
fn nothing_is_taken_after_stop() {
    let guest = Guest::new();
    let mut driver = guest.start();
    guest.keeper.delay_ms.store(5, Relaxed);
    driver.release.publish(&[block(0x40_0000, 4096); 64]);
    wait_until("it has begun", || !guest.keeper.taken().is_empty());

    guest.call(func::STOP, &mut []).unwrap();

    guest.keeper.is_over.store(true, Relaxed);
    let mut num_kept = 0;
    for _ in 0..64 {
        let slot = driver.release.try_reap().expect("all are back");
        num_kept += u64::from(answer(&slot).0 == release_result::KEPT);
    }
    assert!(num_kept > 0);
    assert_eq!(guest.keeper.taken().len() as u64, 64 - num_kept);
    assert_eq!(guest.handle.metrics().kept_blocks.get(), num_kept);
    driver.release.publish(&[block(0x40_0000, 4096)]);
    driver.release.doorbell.write(1).unwrap();
    thread::sleep(Duration::from_millis(20));
    assert!(driver.release.try_reap().is_none());
    // It is what the next start finds.
    guest.keeper.is_over.store(false, Relaxed);
    guest.call(func::START, &mut []).unwrap();
    assert_eq!(answer(&driver.release.wait()).0, release_result::TAKEN);
}

#[test]
fn nothing_is_taken_after_close() {
    let guest = Guest::new();
    let mut driver = guest.start();
    guest.keeper.delay_ms.store(5, Relaxed);
    driver.release.publish(&[block(0x40_0000, 4096); 64]);
    wait_until("it has begun", || !guest.keeper.taken().is_empty());

    guest.client.close(guest.connection).unwrap();

    guest.keeper.is_over.store(true, Relaxed);
    let num_taken = guest.keeper.taken().len();
    assert!(num_taken < 64);
    driver.release.doorbell.write(1).unwrap();
    thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.keeper.taken().len(), num_taken);
}

#[test]
fn calls_with_data_of_the_wrong_length_are_refused() {
    let guest = Guest::new();
    for func in [
        func::HELLO,
        func::DISK,
        func::START,
        func::STOP,
        func::RELEASED,
        99,
    ] {
        for len in [1, 7, 15, 17, 31, 33, 4096] {
            let result = guest.call(func, &mut vec![0xff; len]);
            assert_eq!(result, Err(Errno::INVAL), "{func} with {len} bytes");
        }
    }
}

#[test]
fn table_with_a_signal_or_in_odd_sizes() {
    let guest = Guest::new();
    guest.hello(ALL);
    let table = guest.share_ring(shm_id::TABLE, TABLE_AT);
    assert_eq!(table.map(drop), Err(Errno::INVAL));
    // Three words and a half.
    guest.share_table(0, TABLE_AT, 28).unwrap();
    guest.share_ring(shm_id::RELEASE_RING, RELEASE_AT).unwrap();
    guest.share_ring(shm_id::EVENT_RING, EVENTS_AT).unwrap();
    guest.call(func::START, &mut []).unwrap();
    let ones = [0xff; 64];
    guest
        .ram
        .write_slice(&ones, GuestAddress(TABLE_AT))
        .unwrap();

    assert_eq!(guest.handle.hints(0..u64::MAX).len(), 3);
    assert_eq!(guest.handle.metrics().unknown_disks.get(), 3);
}
