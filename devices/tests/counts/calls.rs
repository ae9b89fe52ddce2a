//! Calls of a device through the connector, from the port write on.

use std::io;
use std::sync::Arc;

use alacrity_devices::bus::{Bus, BusDevice};
use alacrity_devices::interrupt::{DoorbellAddress, Doorbells};
use alacrity_devices::pci::PciRoot;
use alacrity_devices::vbus_pci::fake_guest::{CALLS, FakeGuest};
use vbus::abi::pci::{DeviceCall, func, port};
use vbus::test_utils::allocations::Allocations;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

const PORTS: u64 = 0xc000;
const CALL: u64 = CALLS + 0x1000;
const NUM_CALLS: u64 = 1000;

struct NoDoorbells;

impl Doorbells for NoDoorbells {
    fn attach(&self, _address: DoorbellAddress, _doorbell: &EventFd) -> io::Result<()> {
        Ok(())
    }
    fn detach(&self, _address: DoorbellAddress, _doorbell: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn call_allocates_nothing() {
    let guest = FakeGuest::started(1, 64);
    let handle = guest.open(0).unwrap();
    guest.add_channel(0, CALL).unwrap();
    let (mmio, pio) = (Arc::new(Bus::default()), Arc::new(Bus::default()));
    let root = PciRoot::new(&mmio, &pio, Arc::new(NoDoorbells));
    root.plug(guest.function.clone()).unwrap();
    root.write(0x18, &(PORTS as u32).to_le_bytes());
    root.write(0x04, &[7, 0]);
    let args = DeviceCall {
        handle: handle.into(),
        func: 0.into(),
        len: 6.into(),
        addr: (CALL + 128).into(),
    };
    guest.write_call(CALL, func::DEVICE_CALL, &args);
    let data = GuestAddress(CALL + 128);
    guest.ram.write_slice(b"abcdef", data).unwrap();

    let allocations = Allocations::of_this_thread();
    for _ in 0..NUM_CALLS + 1 {
        assert!(pio.write(PORTS + u64::from(port::FAST_CALL), &[0; 4]));
    }
    assert_eq!(allocations.count(), 0);

    // They were made: an odd number of reversals.
    let mut after = [0; 6];
    guest.ram.read_slice(&mut after, data).unwrap();
    assert_eq!(&after, b"fedcba");
    assert_eq!(guest.function.metrics().fast_calls.get(), NUM_CALLS + 1);
}
