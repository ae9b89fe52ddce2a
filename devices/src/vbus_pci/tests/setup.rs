//! Registers, and the way to a started session.

use rustix::io::Errno;
use vbus::abi::pci::{
    Channel, EventQueue, MAGIC, NUM_CHANNELS, NUM_EVENT_QUEUES, NUM_SIGNALS, NUM_VECTORS,
    Negotiate, REGISTERS_BAR, Registers, VERSION, cap, event, func,
};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, FromZeros};

use crate::pci::PciFunction;
use crate::vbus_pci::fake_guest::{CALLS, FakeGuest, QUEUES, RAM_BYTES, RAM_START};

const NOTHING: [u8; 8] = [0; 8];

fn registers(guest: &FakeGuest) -> Registers {
    let mut bytes = [0; size_of::<Registers>()];
    for (idx, word) in bytes.chunks_exact_mut(4).enumerate() {
        guest.function.read_bar(REGISTERS_BAR, idx as u64 * 4, word);
    }
    Registers::read_from_bytes(&bytes).unwrap()
}

#[test]
fn identity_and_bars_are_those_of_the_abi() {
    let guest = FakeGuest::new(0);
    let mut ids = [0; 12];

    guest.function.read_config(0, &mut ids);

    assert_eq!(ids[..4], [0xda, 0x11, 0x00, 0x20]);
    assert_eq!(ids[8..], [3, 0, 0x80, 0x06]);
    let bars: Vec<_> = guest.function.bars().iter().map(|bar| bar.idx).collect();
    assert_eq!(bars, [0, 2, 4]);
    // By number, and at a port of its own.
    assert_eq!(guest.function.doorbells().len(), 2 * NUM_SIGNALS as usize);
}

#[test]
fn registers_say_what_there_is_and_cannot_be_changed() {
    let guest = FakeGuest::new(0);

    for offset in (0..32).step_by(4) {
        guest.function.write_bar(REGISTERS_BAR, offset, &[0xff; 4]);
    }

    let registers = registers(&guest);
    assert_eq!(registers.magic.get(), MAGIC);
    assert_eq!(registers.version.get(), VERSION);
    let offered = cap::DEVICE_LOST | cap::SIGNAL_PORTS;
    assert_eq!(registers.capabilities.get(), offered);
    assert_eq!(registers.num_event_queues.get(), NUM_EVENT_QUEUES);
    assert_eq!(registers.num_signals.get(), NUM_SIGNALS);
    assert_eq!(registers.num_vectors.get(), NUM_VECTORS);
    assert_eq!(registers.num_channels.get(), NUM_CHANNELS);
    assert_eq!(registers.num_resets.get(), 0);
    let mut past = [1; 8];
    guest.function.read_bar(REGISTERS_BAR, 4088, &mut past);
    assert_eq!(past, [0; 8]);
}

#[test]
fn msix_table_is_in_its_bar() {
    let guest = FakeGuest::new(0);
    let mut data = [0; 8];

    guest
        .function
        .write_bar(4, 63 * 16, &0xfee0_1000u64.to_le_bytes());
    guest.function.read_bar(4, 63 * 16, &mut data);
    assert_eq!(u64::from_le_bytes(data), 0xfee0_1000);

    // Pending while masked.
    guest.start(8);
    guest.function.write_bar(4, 0x800, &[0xff; 8]);
    guest.function.read_bar(4, 0x800, &mut data);
    assert_eq!(data, [0; 8]);
}

#[test]
fn negotiate_comes_first_and_once() {
    let guest = FakeGuest::new(0);
    assert_eq!(guest.add_queue(0, 8).unwrap_err(), Errno::INVAL);
    assert_eq!(guest.call(func::START, &NOTHING).unwrap_err(), Errno::INVAL);
    let channel = Channel::new_zeroed();
    assert_eq!(
        guest.call(func::CHANNEL, &channel).unwrap_err(),
        Errno::INVAL
    );
    let mut wrong = Negotiate::new_zeroed();
    wrong.version = 2.into();
    assert_eq!(
        guest.call(func::NEGOTIATE, &wrong).unwrap_err(),
        Errno::INVAL
    );

    let (status, given) = guest.negotiate().unwrap();

    let given = given.capabilities.get();
    assert_eq!((status, given), (0, cap::DEVICE_LOST | cap::SIGNAL_PORTS));
    assert_eq!(guest.negotiate().unwrap_err(), Errno::BUSY);
}

#[test]
fn verbs_need_a_started_session() {
    let guest = FakeGuest::new(1);
    guest.negotiate().unwrap();
    for func in [
        func::DEVICE_INFO,
        func::OPEN,
        func::DEVICE_CALL,
        func::SHM,
        func::CLOSE,
        9,
        999,
    ] {
        assert_eq!(guest.call(func, &NOTHING).unwrap_err(), Errno::INVAL);
    }
    assert_eq!(guest.call(func::START, &NOTHING).unwrap_err(), Errno::INVAL);
    for queue in 0..NUM_EVENT_QUEUES - 1 {
        guest.add_queue(queue, 8).unwrap();
    }
    assert_eq!(guest.call(func::START, &NOTHING).unwrap_err(), Errno::INVAL);
    guest.add_queue(NUM_EVENT_QUEUES - 1, 8).unwrap();

    guest.call(func::START, &NOTHING).unwrap();

    assert_eq!(guest.call(func::START, &NOTHING).unwrap_err(), Errno::BUSY);
    assert_eq!(guest.call(999, &NOTHING).unwrap_err(), Errno::INVAL);
    let mut again = EventQueue::new_zeroed();
    again.addr = QUEUES.into();
    again.len = 4096.into();
    assert_eq!(
        guest.call(func::EVENT_QUEUE, &again).unwrap_err(),
        Errno::BUSY
    );
}

#[test]
fn event_queue_has_to_be_a_ring_in_memory() {
    let guest = FakeGuest::new(0);
    guest.negotiate().unwrap();
    let ram_end = RAM_START + RAM_BYTES as u64;
    let queue = |queue: u32, vector: u32, addr: u64, len: u32| {
        let mut args = EventQueue::new_zeroed();
        args.queue = queue.into();
        args.vector = vector.into();
        args.addr = addr.into();
        args.len = len.into();
        guest.call(func::EVENT_QUEUE, &args).unwrap_err()
    };

    assert_eq!(queue(0, 0, QUEUES, 4096), Errno::INVAL, "zeros are no ring");
    assert_eq!(guest.add_queue(0, 8).map(|(status, _)| status), Ok(0));
    // The same ring is good enough for number 1, but for what is wrong.
    assert_eq!(queue(0, 0, QUEUES, 4096), Errno::BUSY);
    assert_eq!(queue(NUM_EVENT_QUEUES, 0, QUEUES, 4096), Errno::INVAL);
    assert_eq!(queue(1, NUM_VECTORS, QUEUES, 4096), Errno::INVAL);
    assert_eq!(queue(1, 0, QUEUES + 4, 4096), Errno::INVAL);
    assert_eq!(queue(1, 0, QUEUES, 256 + 8 * 32 - 8), Errno::INVAL);
    assert_eq!(queue(1, 0, QUEUES, 0), Errno::FAULT);
    assert_eq!(queue(1, 0, 0, 4096), Errno::FAULT);
    assert_eq!(queue(1, 0, ram_end - 8, 4096), Errno::FAULT);
    assert_eq!(queue(1, 0, u64::MAX - 7, u32::MAX), Errno::FAULT);
}

#[test]
fn call_is_found_only_where_one_can_be() {
    let guest = FakeGuest::new(0);
    let ram_end = RAM_START + RAM_BYTES as u64;
    let bad = [
        CALLS + 32,
        CALLS + 4096 - 64,
        0,
        RAM_START - 128,
        ram_end,
        ram_end - 64,
        u64::MAX - 127,
    ];
    for addr in bad {
        let offset = std::mem::offset_of!(Registers, call) as u64;
        guest
            .function
            .write_bar(REGISTERS_BAR, offset, &addr.to_le_bytes());
    }
    let metrics = guest.function.metrics();
    assert_eq!(metrics.unanswered_calls.get(), bad.len() as u64);
    assert_eq!(metrics.calls.get(), 0);

    let last = ram_end - 128;
    assert!(guest.call_at(last, 999, &NOTHING).unwrap().is_err());
}

#[test]
fn address_can_be_written_in_halves() {
    let guest = FakeGuest::new(0);
    let mut args = Negotiate::new_zeroed();
    args.version = VERSION.into();
    guest.write_call(CALLS, func::NEGOTIATE, &args);
    let offset = std::mem::offset_of!(Registers, call) as u64;
    let bytes = CALLS.to_le_bytes();

    guest.function.write_bar(REGISTERS_BAR, offset, &bytes[..4]);
    assert!(guest.answer_at::<Negotiate>(CALLS).is_none());
    guest
        .function
        .write_bar(REGISTERS_BAR, offset + 4, &bytes[4..]);

    assert!(guest.answer_at::<Negotiate>(CALLS).unwrap().is_ok());
}

#[test]
fn call_without_bus_mastering_is_not_answered() {
    let guest = FakeGuest::new(0);
    guest.function.write_config(4, &[3, 0]);

    assert!(guest.call_at(CALLS, 999, &NOTHING).is_none());

    guest.function.write_config(4, &[7, 0]);
    assert!(guest.call_at(CALLS, 999, &NOTHING).is_some());
}

#[test]
fn error_leaves_all_but_the_status_alone() {
    let guest = FakeGuest::started(1, 8);
    let mut before = vec![0xaa; 128];
    before[..4].copy_from_slice(&func::OPEN.to_le_bytes());
    guest.ram.write_slice(&before, GuestAddress(CALLS)).unwrap();
    let offset = std::mem::offset_of!(Registers, call) as u64;

    guest
        .function
        .write_bar(REGISTERS_BAR, offset, &CALLS.to_le_bytes());

    let mut after = vec![0; 128];
    guest
        .ram
        .read_slice(&mut after, GuestAddress(CALLS))
        .unwrap();
    assert_eq!(after[4..8], (-2i32).to_le_bytes(), "ENOENT");
    assert_eq!(after[..4], before[..4]);
    assert_eq!(after[8..], before[8..]);
}

#[test]
fn channel_makes_the_call_at_its_address() {
    let guest = FakeGuest::new(1);
    guest.negotiate().unwrap();
    let fast_call = |channel: u32| guest.fast_call(channel);
    let add = |channel: u32| guest.add_channel(channel, CALLS + 0x1000);
    add(NUM_CHANNELS - 1).unwrap();
    assert_eq!(add(NUM_CHANNELS - 1), Err(Errno::BUSY));
    assert_eq!(add(NUM_CHANNELS), Err(Errno::INVAL));

    guest.write_call(CALLS + 0x1000, func::START, &NOTHING);
    fast_call(NUM_CHANNELS - 1);
    let answer = guest.answer_at::<u64>(CALLS + 0x1000).unwrap();
    assert_eq!(answer, Err(Errno::INVAL), "no queues");

    let metrics = guest.function.metrics();
    let unanswered = metrics.unanswered_calls.get();
    for channel in [0, NUM_CHANNELS, u32::MAX] {
        fast_call(channel);
    }
    assert_eq!(metrics.unanswered_calls.get(), unanswered + 3);
    guest.reset();
    fast_call(NUM_CHANNELS - 1);
    assert_eq!(metrics.unanswered_calls.get(), unanswered + 4);
}

#[test]
fn start_tells_of_all_interfaces_in_order() {
    let guest = FakeGuest::started(3, 8);

    let added = |id| (event::DEVICE_ADDED, id);
    assert_eq!(
        guest.events(NUM_EVENT_QUEUES - 1),
        [added(0), added(1), added(2)]
    );
    assert!(guest.events(0).is_empty());
    assert_eq!(guest.function.metrics().devices_added.get(), 3);
    assert!(guest.function.metrics().event_interrupts.get() >= 1);
}
