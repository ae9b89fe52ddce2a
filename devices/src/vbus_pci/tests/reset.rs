//! Resets: at any moment, in a loop, with calls of other vCPUs underway.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use vbus::abi::pci::{
    Close, DeviceCall, DeviceInfo, MSIX_BAR, NO_VECTOR, NUM_EVENT_QUEUES, Negotiate, Open,
    REGISTERS_BAR, Registers, VERSION, func,
};
use vbus::test_utils::ECHO_VERSION;
use vbus::test_utils::func as echo;
use vbus::test_utils::wait_until;
use vm_memory::GuestMemoryBackend;
use zerocopy::FromZeros;

use crate::pci::PciFunction;
use crate::vbus_pci::fake_guest::{CALLS, DATA, FakeGuest};

fn num_resets(guest: &FakeGuest) -> u32 {
    let mut bytes = [0; 4];
    let offset = std::mem::offset_of!(Registers, num_resets) as u64;
    guest.function.read_bar(REGISTERS_BAR, offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

/// Users of the mapping of the guest's memory.
fn num_users(guest: &FakeGuest) -> usize {
    let region = guest.ram.iter().next().unwrap();
    Arc::strong_count(&region.get_mmap())
}

/// Opens all and shares memory with and without signals.
pub(super) fn use_all(guest: &FakeGuest, num_devices: u32) {
    for id in 0..num_devices {
        let handle = guest.open(id).unwrap();
        guest.share(&FakeGuest::shm(handle, 1, 1)).unwrap();
        let mut shm = FakeGuest::shm(handle, 0, 2);
        shm.signal_offset = 8.into();
        shm.vector = if id == 0 { 9.into() } else { NO_VECTOR.into() };
        guest.share(&shm).unwrap();
    }
}

#[test]
fn reset_lets_go_of_everything_before_it_returns() {
    let guest = FakeGuest::new(3);
    let users_before = num_users(&guest);
    guest.start(8);
    use_all(&guest, 3);
    assert_eq!(guest.census.connections.load(SeqCst), 3);

    guest.reset();

    assert_eq!(guest.census.connections.load(SeqCst), 0);
    // The test's own ends of the four event queues.
    let own = 4 * 3;
    assert_eq!(num_users(&guest), users_before + own);
    assert_eq!(num_resets(&guest), 1);
    let signals = &guest.function.connector().around.signals;
    assert_eq!(signals.num_taken(), NUM_EVENT_QUEUES as usize);
    assert_eq!(guest.open(0).unwrap_err(), Errno::INVAL);
    assert_eq!(guest.function.metrics().late_closes.get(), 0);

    guest.start(8);
    use_all(&guest, 3);
}

#[test]
fn reset_in_a_loop_leaves_nothing_behind() {
    let guest = FakeGuest::new(2);
    for round in 0..100 {
        guest.start(4);
        use_all(&guest, round % 3);
        guest.reset();
    }
    assert_eq!(num_resets(&guest), 100);
    assert_eq!(guest.census.connections.load(SeqCst), 0);
    for _ in 0..1000 {
        guest.reset();
    }
    assert_eq!(num_resets(&guest), 1100);
    assert_eq!(guest.function.metrics().resets.get(), 1100);
}

#[test]
fn end_of_bus_mastering_is_a_reset() {
    let guest = FakeGuest::started(1, 8);
    use_all(&guest, 1);

    guest.function.write_config(4, &[3, 0]);

    assert_eq!(num_resets(&guest), 1);
    assert_eq!(guest.census.connections.load(SeqCst), 0);
    guest.function.write_config(4, &[7, 0]);
    assert_eq!(num_resets(&guest), 1);
    guest.start(8);
}

#[test]
fn function_level_reset_leaves_nothing_configured() {
    let guest = FakeGuest::started(1, 8);
    use_all(&guest, 1);
    guest.function.place_bar(0, 0xc000_0000);
    let entry = [0, 0x10, 0xe0, 0xfe, 0, 0, 0, 0];
    guest.function.write_bar(MSIX_BAR, 0, &entry);

    reset_function(&guest);

    assert_eq!(num_resets(&guest), 1);
    assert_eq!(guest.census.connections.load(SeqCst), 0);
    assert_eq!(guest.function.decoded_bars(), []);
    assert!(guest.function.bars().iter().all(|bar| bar.start == 0));
    let mut entry = [0xff; 16];
    guest.function.read_bar(MSIX_BAR, 0, &mut entry);
    assert_eq!(u128::from_le_bytes(entry), 1 << 96, "masked");
    let mut args = Negotiate::new_zeroed();
    args.version = VERSION.into();
    assert!(
        guest.call_at(CALLS, func::NEGOTIATE, &args).is_none(),
        "no bus master"
    );

    guest.function.write_config(4, &[7, 0]);
    guest.start(8);
}

/// As a system does it: finds the capability in the chain and writes to it.
fn reset_function(guest: &FakeGuest) {
    let byte = |offset: u16| {
        let mut byte = [0];
        guest.function.read_config(offset, &mut byte);
        byte[0]
    };
    let mut offset = u16::from(byte(0x34));
    while byte(offset) != 0x13 {
        assert_ne!(offset, 0, "no advanced features");
        offset = u16::from(byte(offset + 1));
    }
    assert_eq!(
        byte(offset + 3) & 3,
        3,
        "transactions pending, function-level reset"
    );
    guest.function.write_config(offset + 4, &[1]);
    assert_eq!(byte(offset + 5) & 1, 0, "nothing is pending");
}

#[test]
fn dropped_connector_lets_go_of_everything() {
    let guest = FakeGuest::started(2, 8);
    use_all(&guest, 2);
    let FakeGuest {
        function, census, ..
    } = guest;

    drop(function);

    assert_eq!(census.connections.load(SeqCst), 0);
}

/// One vCPU that makes calls of all kinds without end.
fn make_calls(guest: &FakeGuest, page: u64, is_over: &AtomicBool) -> u64 {
    let addr = CALLS + page * 4096;
    let mut num_done = 0;
    let mut negotiate = Negotiate::new_zeroed();
    negotiate.version = VERSION.into();
    while !is_over.load(Relaxed) {
        let id = (num_done % 3) as u32;
        let mut open = Open::new_zeroed();
        open.id = id.into();
        open.version = ECHO_VERSION.into();
        let opened = guest.call_at(addr, func::OPEN, &open).unwrap();
        if let Ok((_, open)) = opened {
            let mut call = DeviceCall::new_zeroed();
            call.handle = open.handle;
            call.func = echo::REVERSE.into();
            call.addr = (DATA + page * 4096).into();
            call.len = 64.into();
            let result = guest.call_at(addr, func::DEVICE_CALL, &call).unwrap();
            if let Err(error) = result {
                assert!([Errno::NOENT, Errno::INVAL].contains(&error), "{error}");
            }
            let mut shm = FakeGuest::shm(open.handle.get(), page as u32, 1);
            shm.signal_offset = 8.into();
            let _ = guest.call_at(addr, func::SHM, &shm).unwrap();
            let close = Close {
                handle: open.handle,
            };
            let _ = guest.call_at(addr, func::CLOSE, &close).unwrap();
        }
        let mut info = DeviceInfo::new_zeroed();
        info.id = id.into();
        let _ = guest.call_at(addr, func::DEVICE_INFO, &info).unwrap();
        let _ = guest.call_at(addr, func::NEGOTIATE, &negotiate).unwrap();
        num_done += 1;
    }
    num_done
}

#[test]
fn resets_and_calls_of_several_vcpus_at_once() {
    let guest = FakeGuest::new(3);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let vcpus: Vec<_> = (1..4)
            .map(|page| {
                let (guest, is_over) = (&guest, &is_over);
                scope.spawn(move || make_calls(guest, page, is_over))
            })
            .collect();
        for round in 0..200 {
            if try_start(&guest) && round % 4 == 0 {
                thread::sleep(Duration::from_millis(5));
            }
            guest.reset();
            assert_eq!(guest.census.calls_after_close.load(SeqCst), 0);
        }
        is_over.store(true, Relaxed);
        for vcpu in vcpus {
            assert!(vcpu.join().unwrap() > 0);
        }
    });
    guest.reset();
    assert_eq!(guest.census.connections.load(SeqCst), 0);
    assert!(
        guest.census.connected.load(SeqCst) > 0,
        "some calls met a bus"
    );
    assert_eq!(guest.function.metrics().late_closes.get(), 0);
    let signals = &guest.function.connector().around.signals;
    assert_eq!(signals.num_taken(), NUM_EVENT_QUEUES as usize);
}

/// As [`FakeGuest::start`], though other vCPUs negotiate as well.
fn try_start(guest: &FakeGuest) -> bool {
    let _ = guest.negotiate();
    for queue in 0..NUM_EVENT_QUEUES {
        if guest.add_queue(queue, 8).is_err() {
            return false;
        }
        guest.publish(queue, 8);
    }
    guest.call(func::START, &[0u8; 8]).is_ok()
}

#[test]
fn interfaces_that_come_and_go_meanwhile() {
    let guest = FakeGuest::new(3);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let vcpus: Vec<_> = (1..3)
            .map(|page| {
                let (guest, is_over) = (&guest, &is_over);
                scope.spawn(move || make_calls(guest, page, is_over))
            })
            .collect();
        let administrator = scope.spawn(|| {
            while !is_over.load(Relaxed) {
                for name in ["d0", "d1", "d2"] {
                    guest.host.unlink("bus", name).unwrap();
                    guest.host.link("bus", name, name).unwrap();
                }
            }
        });
        for _ in 0..100 {
            if try_start(&guest) {
                for queue in 0..NUM_EVENT_QUEUES {
                    let count = guest.events(queue).len();
                    guest.publish(queue, count as u32);
                }
            }
            guest.reset();
        }
        is_over.store(true, Relaxed);
        administrator.join().unwrap();
        for vcpu in vcpus {
            vcpu.join().unwrap();
        }
    });
    guest.reset();
    wait_until("all is closed", || {
        guest.census.connections.load(SeqCst) == 0
    });
    let metrics = guest.function.metrics();
    assert_eq!(metrics.late_closes.get(), 0);
    assert_eq!(metrics.faults.get(), 0);
    let signals = &guest.function.connector().around.signals;
    assert_eq!(signals.num_taken(), NUM_EVENT_QUEUES as usize);
}
