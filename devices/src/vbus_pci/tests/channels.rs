//! Calls of a channel, whose place is looked up once.

use proptest::prelude::*;
use rustix::io::Errno;
use vbus::abi::pci::{DeviceCall, func};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::FromZeros;

use crate::vbus_pci::fake_guest::{CALLS, FakeGuest, RAM_BYTES, RAM_START};

#[test]
fn channel_where_no_call_can_be_is_not_answered() {
    let guest = FakeGuest::started(0, 8);
    let end = RAM_START + RAM_BYTES as u64;
    let metrics = guest.function.metrics();

    // Outside of memory, over the end of a page, not aligned.
    let bad = [0, end, u64::MAX - 63, CALLS + 0x1000 - 64, CALLS + 8];
    for (channel, addr) in (0..).zip(bad) {
        guest.add_channel(channel, addr).unwrap();
        guest.fast_call(channel);
    }

    assert_eq!(metrics.unanswered_calls.get(), 5);
}

#[test]
fn set_up_through_a_channel_is_answered() {
    let guest = FakeGuest::started(0, 8);
    let at = CALLS + 0x1000;
    guest.add_channel(0, at).unwrap();

    guest.write_call(at, func::START, &[0u8; 8]);
    guest.fast_call(0);

    assert_eq!(guest.answer_at::<u64>(at), Some(Err(Errno::BUSY)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whether the place of its data is known with the call's, or has to be looked up.
    #[test]
    fn channel_and_register_find_the_same_data(
        calls_in_page in 0u64..63,
        addr in prop_oneof![0u64..0x3000, (RAM_BYTES as u64 - 200)..(RAM_BYTES as u64 + 8)],
        len in 0u32..200,
    ) {
        let guest = FakeGuest::started(1, 8);
        let handle = guest.open(0).unwrap();
        let at = CALLS + 0x1000 + calls_in_page * 64;
        guest.add_channel(0, at).unwrap();
        let mut args = DeviceCall::new_zeroed();
        args.handle = handle.into();
        args.len = len.into();
        args.addr = (RAM_START + addr).into();
        let all: Vec<u8> = (0..RAM_BYTES).map(|idx| (idx % 251) as u8).collect();
        let after = |is_fast| {
            guest.ram.write_slice(&all, GuestAddress(RAM_START)).unwrap();
            if is_fast {
                guest.write_call(at, func::DEVICE_CALL, &args);
                guest.fast_call(0);
            } else {
                guest.call_at(at, func::DEVICE_CALL, &args);
            }
            let mut bytes = vec![0; RAM_BYTES];
            guest.ram.read_slice(&mut bytes, GuestAddress(RAM_START)).unwrap();
            bytes
        };

        prop_assert!(after(true) == after(false));
    }
}
