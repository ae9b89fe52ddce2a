//! Event queues: order, what waits, and guests that break their rules.

use rustix::io::Errno;
use vbus::abi::RING_SLOTS_OFFSET;
use vbus::abi::pci::{NO_VECTOR, NUM_EVENT_QUEUES, event, func};
use vbus::test_utils::func as echo;
use vbus::test_utils::{add_echo, wait_until};
use vbus::verbs::{Event, EventSink, InterfaceId};
use vm_memory::{Bytes, GuestAddress};

use crate::test_utils::count_warnings;
use crate::vbus_pci::events::MAX_SHMS;
use crate::vbus_pci::fake_guest::{FakeGuest, QUEUES, SHMS};

const DEVICES: u32 = NUM_EVENT_QUEUES - 1;

fn added(id: u64) -> (u64, u64) {
    (event::DEVICE_ADDED, id)
}

fn lost(id: u64) -> (u64, u64) {
    (event::DEVICE_LOST, id)
}

/// What a bus says of an interface that came or came back.
fn bus_adds(id: u32, kind: &str) -> Event {
    Event::DeviceAdded {
        id: InterfaceId(id),
        kind: kind.to_owned(),
        place: "a/default".to_owned(),
    }
}

fn dropped(id: u64) -> (u64, u64) {
    (event::DEVICE_DROPPED, id)
}

/// Events as they come, while the guest gives one slot at a time.
fn drain(guest: &FakeGuest, queue: u32, count: usize) -> Vec<(u64, u64)> {
    let mut events = guest.events(queue);
    while events.len() < count {
        assert!(guest.publish(queue, 1), "the host waits for a slot");
        let before = events.len();
        let more = std::cell::RefCell::new(Vec::new());
        wait_until("an event", || {
            more.borrow_mut().extend(guest.events(queue));
            !more.borrow().is_empty()
        });
        events.extend(more.into_inner());
        assert_eq!(events.len(), before + 1);
    }
    events
}

#[test]
fn hot_added_and_removed_interfaces_are_told() {
    let guest = FakeGuest::started(1, 8);
    assert_eq!(guest.events(DEVICES), [added(0)]);

    add_echo(&guest.host, "bus", "late");
    assert_eq!(guest.events(DEVICES), [added(1)]);
    guest.host.unlink("bus", "d0").unwrap();

    assert_eq!(guest.events(DEVICES), [dropped(0)]);
    let metrics = guest.function.metrics();
    assert_eq!(metrics.devices_added.get(), 2);
    assert_eq!(metrics.devices_dropped.get(), 1);
}

#[test]
fn guest_that_does_not_want_interrupts_gets_none() {
    let guest = FakeGuest::started(1, 8);
    let irqfd = guest.function.connector().around.vectors.irqfd(DEVICES);
    let irqfd = irqfd.unwrap();
    assert_eq!(irqfd.read().unwrap(), 1);

    // It is told already and has not looked yet.
    add_echo(&guest.host, "bus", "late");

    assert!(irqfd.read().is_err());
    assert_eq!(guest.events(DEVICES).len(), 2);
    assert_eq!(guest.function.metrics().event_interrupts.get(), 1);
}

#[test]
fn events_wait_for_slots_in_order() {
    let guest = FakeGuest::started(3, 2);
    // Two slots, and a third event that waits.
    guest.host.unlink("bus", "d0").unwrap();
    add_echo(&guest.host, "bus", "late");

    let events = drain(&guest, DEVICES, 5);

    let expected = [added(0), added(1), added(2), dropped(0), added(3)];
    assert_eq!(events, expected);
    assert!(!guest.publish(DEVICES, 1), "nothing waits any more");
    assert!(guest.function.metrics().full_event_queues.get() >= 1);
}

#[test]
fn interface_that_comes_and_goes_untold_is_not_told() {
    let guest = FakeGuest::started(2, 1);
    for round in 0..50 {
        let name = format!("short{round}");
        add_echo(&guest.host, "bus", &name);
        guest.host.unlink("bus", &name).unwrap();
    }
    guest.host.unlink("bus", "d0").unwrap();

    assert_eq!(drain(&guest, DEVICES, 3), [added(0), added(1), dropped(0)]);
    assert_eq!(guest.function.metrics().coalesced_events.get(), 100);
}

#[test]
fn lost_interface_returns_under_its_id_or_is_dropped() {
    let guest = FakeGuest::started(2, 8);
    guest.events(DEVICES);
    let events = guest.function.connector().events();

    for id in [0, 1].map(InterfaceId) {
        events.event(Event::DeviceLost { id });
    }
    assert_eq!(guest.events(DEVICES), [lost(0), lost(1)]);
    events.event(bus_adds(0, "echo"));
    events.event(Event::DeviceDropped { id: InterfaceId(1) });

    assert_eq!(guest.events(DEVICES), [added(0), dropped(1)]);
    assert_eq!(guest.function.metrics().devices_lost.get(), 2);
}

#[test]
fn bus_that_comes_and_goes_costs_a_guest_that_never_looks_little() {
    let guest = FakeGuest::started(2, 2);
    let events = guest.function.connector().events();
    for _ in 0..1000 {
        events.event(Event::DeviceLost { id: InterfaceId(0) });
        events.event(bus_adds(0, "echo"));
    }
    events.event(Event::DeviceLost { id: InterfaceId(1) });

    assert_eq!(events.backlog_len(DEVICES as usize), 3);
    let expected = [added(0), added(1), lost(0), added(0), lost(1)];
    assert_eq!(drain(&guest, DEVICES, 5), expected);
}

#[test]
fn cut_off_is_told_as_a_drop() {
    let guest = FakeGuest::started(1, 8);
    let handle = guest.open(0).unwrap();
    guest.share(&FakeGuest::shm(handle, 3, 33)).unwrap();
    guest.events(DEVICES);

    guest.device_call(handle, echo::FAULT, &[]).unwrap();

    assert_eq!(guest.events(DEVICES), [dropped(0)]);
    wait_until("it is closed", || {
        guest.function.metrics().shms_closed.get() == 1
    });
    assert_eq!(guest.events(0), [(event::SHM_CLOSED, 33)]);
    let call = guest.device_call(handle, echo::REVERSE, &[1]);
    assert_eq!(call.unwrap_err(), Errno::NODEV);
    assert_eq!(guest.open(0).unwrap_err(), Errno::NODEV);
    guest.close(handle).unwrap();
}

#[test]
fn signal_waits_once_and_before_the_end_of_its_memory() {
    let guest = FakeGuest::started(1, 1);
    let handle = guest.open(0).unwrap();
    let mut other = FakeGuest::shm(handle, 7, 77);
    other.priority = 0.into();
    guest.share(&other).unwrap();
    let mut shm = FakeGuest::shm(handle, 0, 5);
    shm.signal_offset = 8.into();
    shm.vector = NO_VECTOR.into();
    guest.share(&shm).unwrap();
    // The only slot of queue 0.
    guest.device_call(handle, echo::DROP_SHM, &[7]).unwrap();
    for _ in 0..10 {
        let to_north = GuestAddress(SHMS + 8 + 64);
        guest.ram.write_slice(&[0; 16], to_north).unwrap();
        guest.ram.write_slice(&[1], to_north).unwrap();
        guest.device_call(handle, echo::POKE, &[9]).unwrap();
    }
    guest.close(handle).unwrap();

    let closed = |cookie| (event::SHM_CLOSED, cookie);
    let expected = [closed(77), (event::SIGNAL, 5), closed(5)];
    assert_eq!(drain(&guest, 0, 3), expected);
    assert_eq!(guest.function.metrics().signals.get(), 1);
}

#[test]
fn shms_whose_end_is_untold_count() {
    let guest = FakeGuest::started(1, 1);
    let handle = guest.open(0).unwrap();
    // The one slot, and a backlog as long as can be.
    let mut accepted = 0;
    let refused = loop {
        match guest.share(&FakeGuest::shm(handle, 9, accepted)) {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
        guest.device_call(handle, echo::DROP_SHM, &[9]).unwrap();
    };
    assert_eq!(refused, Errno::DQUOT);
    assert_eq!(accepted, MAX_SHMS as u64 + 1);
    let len = guest.function.connector().events().backlog_len(0);
    assert_eq!(len, MAX_SHMS);

    assert_eq!(drain(&guest, 0, 2).len(), 2);

    guest.share(&FakeGuest::shm(handle, 9, 0)).unwrap();
    let again = guest.share(&FakeGuest::shm(handle, 10, 0));
    assert_eq!(again.unwrap_err(), Errno::DQUOT);
}

/// Makes the next slot of the queue of interfaces one that cannot be.
fn break_queue(guest: &FakeGuest) {
    let turn = QUEUES + u64::from(DEVICES) * 4096 + RING_SLOTS_OFFSET as u64 + 30;
    guest
        .ram
        .write_slice(&[0x77; 2], GuestAddress(turn))
        .unwrap();
}

#[test]
fn broken_event_queue_stops_the_connector_until_a_reset() {
    let guest = FakeGuest::started(0, 4);
    add_echo(&guest.host, "bus", "d");
    let handle = guest.open(0).unwrap();
    guest.share(&FakeGuest::shm(handle, 1, 1)).unwrap();
    // All slots but the first are still good: it is the next but three.
    for round in 0..3 {
        add_echo(&guest.host, "bus", &format!("more{round}"));
    }
    break_queue(&guest);

    let num_warnings = count_warnings(|| add_echo(&guest.host, "bus", "last"));

    assert_eq!(num_warnings, 1);
    for func in 0..10 {
        assert_eq!(guest.call(func, &[0u8; 8]).unwrap_err(), Errno::IO);
    }
    let census = &guest.census;
    wait_until("all is closed", || {
        census.connections.load(std::sync::atomic::Ordering::SeqCst) == 0
    });
    assert_eq!(guest.function.metrics().faults.get(), 1);

    guest.reset();
    guest.start(8);
    assert_eq!(guest.open(0).map(|_| ()), Ok(()));
    assert_eq!(guest.function.metrics().faults.get(), 1);
}

#[test]
fn break_before_start_is_found_at_start() {
    let guest = FakeGuest::new(1);
    guest.negotiate().unwrap();
    for queue in 0..NUM_EVENT_QUEUES {
        guest.add_queue(queue, 4).unwrap();
    }
    break_queue(&guest);

    guest.call(func::START, &[0u8; 8]).unwrap();

    assert_eq!(guest.open(0).unwrap_err(), Errno::IO);
}

#[test]
fn doorbells_without_end_cost_one_thread_and_change_nothing() {
    let guest = FakeGuest::started(2, 1);
    for _ in 0..10_000 {
        for queue in 0..NUM_EVENT_QUEUES {
            guest.ring(queue);
        }
    }

    assert_eq!(drain(&guest, DEVICES, 2), [added(0), added(1)]);
}

#[test]
fn what_the_bus_should_not_say_is_not_told() {
    let guest = FakeGuest::started(1, 8);
    guest.events(DEVICES);
    let events = guest.function.connector().events();

    events.event(Event::Signal { cookie: 1 });
    events.event(Event::ShmClosed { cookie: 1 });
    events.event(Event::DeviceDropped { id: InterfaceId(7) });
    events.event(Event::DeviceLost { id: InterfaceId(7) });
    events.event(bus_adds(0, "again"));

    for queue in 0..NUM_EVENT_QUEUES {
        assert!(guest.events(queue).is_empty());
    }
}
