//! The verbs, and what carries the signals.

use rustix::io::Errno;
use vbus::abi::pci::{
    DeviceCall, DeviceInfo, MAX_CALL_BYTES, NO_SIGNAL, NO_VECTOR, NUM_EVENT_QUEUES, NUM_SIGNALS,
    NUM_VECTORS, Open, PORTS_BAR, PORTS_BAR_BYTES, event, func, port,
};
use vbus::test_utils::func as echo;
use vbus::test_utils::{ECHO_KIND, ECHO_NUM_SHMS};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::FromZeros;

use crate::pci::PciFunction;
use crate::vbus_pci::connector::MAX_HANDLES;
use crate::vbus_pci::fake_guest::{DATA, FakeGuest, RAM_BYTES, RAM_START, SHMS};

/// As [`FakeGuest::shm`] for page 0 with a signal at its start, which the guest wants.
fn signalled(guest: &FakeGuest, handle: u64, cookie: u64, vector: u32) -> u32 {
    let mut shm = FakeGuest::shm(handle, 0, cookie);
    shm.signal_offset = 8.into();
    shm.vector = vector.into();
    shm.priority = 7.into();
    let number = guest.share(&shm).unwrap();
    want(guest);
    number
}

/// Asks for the signal of page 0.
fn want(guest: &FakeGuest) {
    let to_north = GuestAddress(SHMS + 8 + 64);
    guest.ram.write_slice(&[0; 16], to_north).unwrap();
    guest.ram.write_slice(&[1], to_north).unwrap();
}

#[test]
fn device_info_names_the_kind() {
    let guest = FakeGuest::started(1, 8);
    let mut info = DeviceInfo::new_zeroed();
    info.kind = [0xff; 64];

    let (_, info) = guest.call(func::DEVICE_INFO, &info).unwrap();

    let kind = info.kind.split(|byte| *byte == 0).next().unwrap();
    assert_eq!(kind, ECHO_KIND.as_bytes());
    assert_eq!(info.kind[ECHO_KIND.len()..], [0; 64][ECHO_KIND.len()..]);
    let mut info = DeviceInfo::new_zeroed();
    info.id = 1.into();
    assert_eq!(
        guest.call(func::DEVICE_INFO, &info).unwrap_err(),
        Errno::NOENT
    );
    guest.host.unlink("bus", "d0").unwrap();
    let info = DeviceInfo::new_zeroed();
    assert_eq!(
        guest.call(func::DEVICE_INFO, &info).unwrap_err(),
        Errno::NOENT
    );
}

#[test]
fn open_has_the_errors_of_the_bus() {
    let guest = FakeGuest::started(1, 8);
    assert_eq!(guest.open(1).unwrap_err(), Errno::NOENT);
    let mut other_version = Open::new_zeroed();
    other_version.version = 99.into();
    assert_eq!(
        guest.call(func::OPEN, &other_version).unwrap_err(),
        Errno::INVAL
    );

    let handle = guest.open(0).unwrap();

    assert_ne!(handle, 0);
    assert_eq!(guest.open(0).unwrap_err(), Errno::BUSY);
    guest.close(handle).unwrap();
    let second = guest.open(0).unwrap();
    assert_ne!(second, handle, "never used again");
    assert_eq!(guest.close(handle).unwrap_err(), Errno::NOENT);
    assert_eq!(guest.close(0).unwrap_err(), Errno::NOENT);
}

#[test]
fn connections_are_limited() {
    let guest = FakeGuest::started(MAX_HANDLES + 1, 512 / 8);
    let handles: Vec<u64> = (0..MAX_HANDLES as u32)
        .map(|id| guest.open(id).unwrap())
        .collect();

    assert_eq!(guest.open(MAX_HANDLES as u32).unwrap_err(), Errno::DQUOT);

    guest.close(handles[7]).unwrap();
    guest.open(MAX_HANDLES as u32).unwrap();
}

#[test]
fn device_call_changes_the_data_unless_it_fails() {
    let guest = FakeGuest::started(1, 8);
    let handle = guest.open(0).unwrap();

    let (result, data) = guest.device_call(handle, echo::REVERSE, b"bus").unwrap();
    assert_eq!((result, data.as_slice()), (3, b"sub".as_slice()));
    let (result, data) = guest.device_call(handle, echo::REVERSE, b"").unwrap();
    assert_eq!((result, data.len()), (0, 0));
    let full = vec![7; MAX_CALL_BYTES as usize];
    let (result, _) = guest.device_call(handle, echo::REVERSE, &full).unwrap();
    assert_eq!(result, MAX_CALL_BYTES);

    assert_eq!(
        guest.device_call(handle, 77, b"bus").unwrap_err(),
        Errno::INVAL
    );
    assert_eq!(
        guest.device_call(handle + 1, 0, b"bus").unwrap_err(),
        Errno::NOENT
    );
    let mut data = [0; 3];
    guest.ram.read_slice(&mut data, GuestAddress(DATA)).unwrap();
    assert_eq!(&data, b"bus");
}

#[test]
fn data_of_a_call_has_to_be_in_memory() {
    let guest = FakeGuest::started(1, 8);
    let handle = guest.open(0).unwrap();
    let ram_end = RAM_START + RAM_BYTES as u64;
    let call = |addr: u64, len: u32| {
        let mut args = DeviceCall::new_zeroed();
        args.handle = handle.into();
        args.len = len.into();
        args.addr = addr.into();
        guest
            .call(func::DEVICE_CALL, &args)
            .map(|(status, _)| status)
    };

    assert_eq!(call(ram_end - 3, 3), Ok(3));
    assert_eq!(call(ram_end - 3, 4), Err(Errno::FAULT));
    assert_eq!(call(0, 1), Err(Errno::FAULT));
    assert_eq!(call(0, 0), Ok(0), "no data, so its address does not matter");
    assert_eq!(call(u64::MAX, 2), Err(Errno::FAULT));
    assert_eq!(call(u64::MAX - 1, 1), Err(Errno::FAULT));
    assert_eq!(call(DATA, MAX_CALL_BYTES + 1), Err(Errno::INVAL));
    assert_eq!(call(DATA, u32::MAX), Err(Errno::INVAL));
}

#[test]
fn shm_is_shared_once_until_close() {
    let guest = FakeGuest::started(1, 8);
    let handle = guest.open(0).unwrap();
    let shm = FakeGuest::shm(handle, 1, 5);

    assert_eq!(guest.share(&shm), Ok(NO_SIGNAL));
    assert_eq!(guest.share(&shm), Err(Errno::EXIST));
    // A guest may number as it likes.
    assert_eq!(guest.share(&FakeGuest::shm(handle, 2, 5)), Ok(NO_SIGNAL));
    assert!(guest.events(0).is_empty());
    guest.close(handle).unwrap();

    assert_eq!(guest.events(0), [(event::SHM_CLOSED, 5); 2]);
}

#[test]
fn shm_that_cannot_be_is_refused() {
    let guest = FakeGuest::started(1, 8);
    let handle = guest.open(0).unwrap();
    let ram_end = RAM_START + RAM_BYTES as u64;
    let good = FakeGuest::shm(handle, 1, 5);
    let refused = |change: &dyn Fn(&mut vbus::abi::pci::Shm)| {
        let mut shm = good;
        change(&mut shm);
        guest.share(&shm).unwrap_err()
    };

    assert_eq!(refused(&|shm| shm.handle = 99.into()), Errno::NOENT);
    assert_eq!(refused(&|shm| shm.id = ECHO_NUM_SHMS.into()), Errno::INVAL);
    assert_eq!(refused(&|shm| shm.addr = (SHMS + 1).into()), Errno::INVAL);
    assert_eq!(
        refused(&|shm| shm.addr = (ram_end - 8).into()),
        Errno::FAULT
    );
    assert_eq!(
        refused(&|shm| shm.addr = (u64::MAX - 7).into()),
        Errno::FAULT
    );
    assert_eq!(refused(&|shm| shm.len = 0.into()), Errno::FAULT);
    assert_eq!(refused(&|shm| shm.len = u32::MAX.into()), Errno::FAULT);
    let with_signal = |offset: u32, vector: u32| {
        refused(&|shm| {
            shm.signal_offset = offset.into();
            shm.vector = vector.into();
        })
    };
    assert_eq!(with_signal(4, 0), Errno::INVAL);
    assert_eq!(with_signal(4096 - 120, 0), Errno::INVAL);
    assert_eq!(with_signal(u32::MAX - 7, 0), Errno::INVAL);
    assert_eq!(with_signal(0, NUM_VECTORS), Errno::INVAL);
    assert_eq!(with_signal(0, NO_VECTOR - 1), Errno::INVAL);
    // None of them keeps a number, and none is told.
    let signals = &guest.function.connector().around.signals;
    assert_eq!(signals.num_taken(), NUM_EVENT_QUEUES as usize);
    guest.close(handle).unwrap();
    for queue in 0..NUM_EVENT_QUEUES - 1 {
        assert!(guest.events(queue).is_empty());
    }
}

#[test]
fn signal_with_a_vector_is_an_interrupt_and_no_event() {
    let guest = FakeGuest::started(1, 8);
    let handle = guest.open(0).unwrap();
    let number = signalled(&guest, handle, 5, 40);
    assert!((NUM_EVENT_QUEUES..NUM_SIGNALS).contains(&number));
    guest.events(NUM_EVENT_QUEUES - 1);

    let (was_due, _) = guest.device_call(handle, echo::POKE, &[9]).unwrap();

    assert_eq!(was_due, 1);
    let irqfd = guest.function.connector().around.vectors.irqfd(40).unwrap();
    assert_eq!(irqfd.read().unwrap(), 1);
    assert!(guest.events(NUM_EVENT_QUEUES - 1).is_empty());
}

#[test]
fn signal_without_a_vector_is_an_event_in_the_queue_of_its_priority() {
    let guest = FakeGuest::started(4, 8);
    for (id, priority, queue) in [(0, 0, 0), (1, 2, 1), (2, 5, 2), (3, 99, 3)] {
        let handle = guest.open(id).unwrap();
        guest.events(queue);
        let mut shm = FakeGuest::shm(handle, 0, 70 + u64::from(id));
        shm.signal_offset = 8.into();
        shm.priority = priority.into();
        guest.share(&shm).unwrap();
        want(&guest);

        guest.device_call(handle, echo::POKE, &[9]).unwrap();

        assert_eq!(guest.events(queue), [(event::SIGNAL, 70 + u64::from(id))]);
        guest.close(handle).unwrap();
        assert_eq!(
            guest.events(queue),
            [(event::SHM_CLOSED, 70 + u64::from(id))]
        );
    }
}

#[test]
fn doorbell_signals_the_eventfd_that_the_bus_has() {
    let guest = FakeGuest::started(1, 8);
    let handle = guest.open(0).unwrap();
    let number = signalled(&guest, handle, 5, NO_VECTOR);

    guest.ring(number);
    guest.ring(NUM_SIGNALS);
    guest.ring(u32::MAX);
    let too_short = port::DOORBELL.into();
    guest.function.write_bar(PORTS_BAR, too_short, &[0, 0]);

    let bell = &guest.function.doorbells()[number as usize];
    assert_eq!(bell.data, Some(number));
    assert_eq!(bell.doorbell.read().unwrap(), 1);
    let metrics = guest.function.metrics();
    assert_eq!(metrics.doorbell_exits.get(), 1);
    assert_eq!(metrics.unknown_doorbells.get(), 2);
}

#[test]
fn port_of_a_signal_rings_what_its_number_rings() {
    let guest = FakeGuest::started(1, 8);
    let handle = guest.open(0).unwrap();
    let number = signalled(&guest, handle, 5, NO_VECTOR);
    let at = u64::from(port::SIGNALS + number);

    // Neither the width nor the data matter: KVM looks at neither.
    guest.function.write_bar(PORTS_BAR, at, &[0]);
    guest.function.write_bar(PORTS_BAR, at, &[0xff; 4]);
    guest.ring(number);

    let bells = guest.function.doorbells();
    let own = bells.iter().find(|bell| bell.offset == at).unwrap();
    assert_eq!(own.data, None);
    assert_eq!(own.doorbell.read().unwrap(), 3);
    assert!(bells[number as usize].doorbell.read().is_err(), "the same");
    let metrics = guest.function.metrics();
    assert_eq!(metrics.doorbell_exits.get(), 3);
}

#[test]
fn ports_that_are_none_of_a_signal_ring_nothing() {
    let guest = FakeGuest::started(0, 8);

    for offset in (1..4).chain(5..u64::from(port::SIGNALS)) {
        guest.function.write_bar(PORTS_BAR, offset, &[0; 4]);
    }
    guest
        .function
        .write_bar(PORTS_BAR, PORTS_BAR_BYTES.into(), &[0]);
    guest.function.write_bar(PORTS_BAR, u64::MAX, &[0]);

    let metrics = guest.function.metrics();
    assert_eq!(metrics.doorbell_exits.get(), 0);
    assert_eq!(metrics.unknown_doorbells.get(), 2, "beyond the BAR");
}

#[test]
fn signal_numbers_are_limited_and_come_back() {
    let guest = FakeGuest::started(3, 64);
    let mut handles = Vec::new();
    let mut numbers = Vec::new();
    let mut refused = 0;
    for id in 0..3 {
        let handle = guest.open(id).unwrap();
        handles.push(handle);
        for page in 0..60 {
            let mut shm = FakeGuest::shm(handle, page, 1);
            shm.signal_offset = 0.into();
            match guest.share(&shm) {
                Ok(number) => numbers.push(number),
                Err(error) => {
                    assert_eq!(error, Errno::DQUOT);
                    refused += 1;
                }
            }
        }
    }
    numbers.sort_unstable();
    let all: Vec<u32> = (NUM_EVENT_QUEUES..NUM_SIGNALS).collect();
    assert_eq!(numbers, all);
    assert_eq!(refused, 3 * 60 - numbers.len());

    guest.ring(NUM_EVENT_QUEUES);
    guest.close(handles[0]).unwrap();
    let mut shm = FakeGuest::shm(handles[2], 61, 1);
    shm.signal_offset = 0.into();
    assert_eq!(guest.share(&shm), Ok(NUM_EVENT_QUEUES));
    let bell = &guest.function.doorbells()[NUM_EVENT_QUEUES as usize];
    assert!(
        bell.doorbell.read().is_err(),
        "rings from before are forgotten"
    );
}
