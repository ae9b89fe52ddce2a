//! A guest that follows the rules.

use super::*;

#[test]
fn blocks_are_taken_and_come_back() {
    let guest = Guest::new();
    let mut driver = guest.start();
    let addr = 0x40_0000;
    guest.ram.write_obj(7u64, GuestAddress(addr)).unwrap();

    driver
        .release
        .publish(&[block(addr, 4 << 20), block(0x80_0000, 4096)]);

    let slot = driver.release.wait();
    assert_eq!((slot.addr, slot.len), (addr, 4 << 20));
    assert_eq!(answer(&slot), (release_result::TAKEN, 4 << 20));
    assert_eq!(answer(&driver.release.wait()).1, 4096);
    assert_eq!(guest.ram.read_obj::<u64>(GuestAddress(addr)).unwrap(), 0);
    let metrics = guest.handle.metrics();
    assert_eq!(metrics.taken_blocks.get(), 2);
    assert_eq!(metrics.freed_bytes.get(), (4 << 20) + 4096);
}

#[test]
fn block_that_cannot_be_taken_as_a_whole_is_kept() {
    let guest = Guest::new();
    let mut driver = guest.start();
    guest.keeper.pinned.lock().insert(0x401);

    driver.release.publish(&[block(0x40_0000, 16 << 10)]);

    let slot = driver.release.wait();
    assert_eq!(answer(&slot), (release_result::KEPT, 12 << 10));
    assert_eq!(guest.handle.metrics().kept_blocks.get(), 1);
}

#[test]
fn set_up_has_an_order() {
    let guest = Guest::new();
    let start = || guest.call(func::START, &mut []).unwrap_err();
    assert_eq!(guest.call(func::STOP, &mut []), Err(Errno::NOENT));
    assert_eq!(start(), Errno::INVAL);
    let ring = |id| guest.share_ring(id, RELEASE_AT).map(drop);
    assert_eq!(ring(shm_id::RELEASE_RING), Err(Errno::INVAL));
    let table = |number, len| guest.share_table(number, TABLE_AT, len).map(drop);
    assert_eq!(table(0, 4096), Err(Errno::INVAL));

    let hello = guest.hello(u32::MAX);

    assert_eq!(hello.features.get(), ALL);
    assert_eq!(hello.num_pages.get(), RAM_BYTES / 4096);
    assert!(hello.release_bytes.get().is_power_of_two());
    assert_eq!(ring(shm_id::EVENT_RING), Ok(()));
    assert_eq!(ring(shm_id::EVENT_RING), Err(Errno::EXIST));
    assert_eq!(start(), Errno::INVAL, "no release ring");
    assert_eq!(ring(shm_id::RELEASE_RING), Ok(()));
    assert_eq!(start(), Errno::INVAL, "no table");
    assert_eq!(table(1, 4096), Err(Errno::INVAL), "past the end of RAM");
    assert_eq!(table(0, (1 << 20) + 8), Err(Errno::INVAL));
    assert_eq!(table(0, 4096), Ok(()));
    assert_eq!(table(0, 4096), Err(Errno::EXIST));
    assert_eq!(ring(7), Err(Errno::INVAL));
    assert_eq!(guest.call(func::RELEASED, &mut [1; 8]), Err(Errno::INVAL));
    assert_eq!(guest.call(func::START, &mut []), Ok(0));
    assert_eq!(start(), Errno::EXIST);
    let mut hello = HelloData::default();
    let again = guest.call(func::HELLO, hello.as_mut_bytes());
    assert_eq!(again, Err(Errno::BUSY));
    assert_eq!(table(0, 8), Err(Errno::BUSY));
    assert_eq!(guest.call(func::STOP, &mut []), Ok(0));
    assert_eq!(guest.call(func::START, &mut []), Ok(0));
}

#[test]
fn second_client_is_refused_until_the_first_one_is_gone() {
    let guest = Guest::new();
    let open = |version| guest.client.open(InterfaceId(0), version);
    assert_eq!(open(VERSION), Err(Errno::BUSY));
    guest.start();

    guest.client.close(guest.connection).unwrap();

    assert_eq!(open(VERSION + 1), Err(Errno::INVAL));
    open(VERSION).unwrap();
}

#[test]
fn disks_are_known_by_their_serial_numbers() {
    let guest = Guest::new();
    guest.hello(ALL);
    assert_eq!(guest.disk(1, b"disk\x09"), Ok(100));
    assert_eq!(guest.disk(1, b"disk\x09"), Err(Errno::EXIST));
    assert_eq!(guest.disk(2, b"other"), Err(Errno::NOENT));
    for slot in [0, 8, 255] {
        assert_eq!(guest.disk(slot, b"disk"), Err(Errno::INVAL));
    }
    let mut data = DiskData {
        slot: 2,
        reserved: [0, 0, 1],
        ..DiskData::default()
    };
    let result = guest.call(func::DISK, data.as_mut_bytes());
    assert_eq!(result, Err(Errno::INVAL));
}

#[test]
fn words_are_read_and_refused() {
    let guest = Guest::new();
    let driver = guest.start();
    assert!(guest.handle.hints(0..u64::MAX).is_empty());
    let word = 2 | 3 << 2 | 1 << 5 | 92 << 8 | 5 << 48;
    driver.table.store(8 * 1000, word, Relaxed);
    driver.table.store(8 * 4095, word, Relaxed);

    let hints = guest.handle.hints(0..4095);

    assert_eq!(hints.len(), 1);
    let (gfn, hint) = hints[0];
    assert_eq!((gfn, hint.age, hint.sequence), (1000, 3, 5));
    assert_eq!((hint.worth, hint.place), (Worth::Volatile, None));
    assert_eq!(guest.disk(1, b"disk\x09"), Ok(100), "while it is started");
    let place = Place {
        disk: 9,
        sector: 92,
    };
    assert_eq!(guest.handle.hints(4000..4096)[0].1.place, Some(place));
    guest.handle.refuse(1000, hint);
    assert_eq!(driver.table.load(8 * 1000, Relaxed), word & !3);
    // The guest has changed it meanwhile.
    guest.handle.refuse(1000, hint);
    assert_eq!(guest.handle.metrics().refused.get(), 1);
    guest.call(func::STOP, &mut []).unwrap();
    assert!(guest.handle.hints(0..4096).is_empty());
}

#[test]
fn guest_that_is_asked_releases_what_is_free() {
    let guest = Guest::new();
    let mut driver = guest.start();
    let freed = thread::scope(|scope| {
        let asker = scope.spawn(|| guest.handle.release_now(LONG));
        let slot = driver.events.wait();
        let [event, number] = slot.meta;
        assert_eq!(event, event::RELEASE_NOW);
        let blocks = [block(0x40_0000, 4 << 20), block(0x80_0000, 4 << 20)];
        driver.release.publish(&blocks);
        driver.release.wait();
        driver.release.wait();
        let mut wrong = (number + 1).to_le_bytes();
        let result = guest.call(func::RELEASED, &mut wrong);
        assert_eq!(result, Err(Errno::INVAL), "nobody asked");
        guest
            .call(func::RELEASED, &mut number.to_le_bytes())
            .unwrap();
        asker.join().unwrap()
    });
    assert_eq!(freed, Ok(8 << 20));
    assert_eq!(guest.handle.metrics().flushes.get(), 1);
}

#[test]
fn guest_that_does_not_answer_is_not_waited_for() {
    let guest = Guest::new();
    let ask = || guest.handle.release_now(Duration::from_millis(1));
    assert_eq!(ask(), Err(NotReleased::NoDriver));
    let _driver = guest.start();

    for _ in 0..16 {
        assert_eq!(ask(), Err(NotReleased::Late { freed_bytes: 0 }));
    }

    assert_eq!(ask(), Err(NotReleased::NoSlot));
    let metrics = guest.handle.metrics();
    assert_eq!(metrics.flushes_late.get(), 16);
    assert_eq!(metrics.events_lost.get(), 1);
    // A late answer is none of the next question.
    guest.call(func::RELEASED, &mut 3u64.to_le_bytes()).unwrap();
    guest.call(func::STOP, &mut []).unwrap();
    assert_eq!(ask(), Err(NotReleased::NoDriver));
}

#[test]
fn whoever_waits_for_a_guest_that_stops_is_told() {
    let guest = Guest::new();
    let mut driver = guest.start();
    let result = thread::scope(|scope| {
        let asker = scope.spawn(|| guest.handle.release_now(LONG));
        driver.events.wait();
        guest.call(func::STOP, &mut []).unwrap();
        asker.join().unwrap()
    });
    assert_eq!(result, Err(NotReleased::NoDriver));
}

#[test]
fn guest_is_told_what_was_dropped_and_how_fast_to_scan() {
    let guest = Guest::new();
    guest.handle.set_scan_rate(5);
    guest.handle.dropped(&[(0x1000, 4096)]);
    let mut driver = guest.start();
    assert_eq!(driver.events.wait().meta, [event::SCAN_RATE, 5]);

    guest.handle.dropped(&[(0x1000, 4096); 20]);

    for _ in 0..11 {
        let slot = driver.events.wait();
        assert_eq!((slot.addr, slot.len), (0x1000, 4096));
        assert_eq!(slot.meta, [event::DROPPED, 0]);
    }
    assert!(driver.events.try_reap().is_none());
    assert_eq!(guest.handle.metrics().events_lost.get(), 9);
    // Other events have slots left.
    for rate in 6..10 {
        guest.handle.set_scan_rate(rate);
        assert_eq!(driver.events.wait().meta, [event::SCAN_RATE, rate]);
    }
    guest.handle.set_scan_rate(10);
    assert_eq!(guest.handle.metrics().events_lost.get(), 10);
    driver.events.publish(&[Slot::default(); 16]);
    guest.handle.dropped(&[(0x2000, 8192); 2]);
    assert_eq!(driver.events.wait().len, 8192);
}

#[test]
fn counters_are_attributes() {
    let guest = Guest::new();
    let mut driver = guest.start();
    driver.release.publish(&[block(0x40_0000, 4096)]);
    driver.release.wait();

    let tree = guest._host.tree();

    let value = tree.read("sys/devices/hints0/freed_bytes").unwrap();
    assert_eq!(value.trim(), "4096");
}
