//! Configuration space, BARs and MSI-X tables of a bus with three functions, as a guest reaches them:
//! through the ECAM window and through the memory where it placed the BARs.
//!
//! Whatever it writes, doorbells are attached only where a decoded BAR has them, and no BAR is over
//! another one or over the ECAM window.
#![no_main]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use alacrity_devices::GuestRam;
use alacrity_devices::bus::Bus;
use alacrity_devices::interrupt::{DoorbellAddress, DoorbellSpace, Doorbells};
use alacrity_devices::pci::root::ECAM_BYTES;
use alacrity_devices::pci::{Bar, PciFunction, PciRoot};
use alacrity_devices::test_utils::FakeVectors;
use alacrity_devices::virtio::transport::VirtioPci;
use alacrity_devices::virtio::{ActivateError, Activation, VirtioDevice};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

const ECAM: u64 = 0xe000_0000;
const NUM_FUNCTIONS: u32 = 3;
const FUNCTION_BYTES: u64 = 8 * 4096;

#[derive(Debug, Arbitrary)]
enum Op {
    /// An access to configuration space.
    Config {
        slot: u8,
        register: u16,
        value: u64,
        len: u8,
        is_read: bool,
    },
    /// Places BAR 0 in units of 8 KiB from 0xdfff_0000 on: around the ECAM window, often on top of
    /// each other.
    Place { slot: u8, position: u8 },
    /// Writes the command register.
    Command { slot: u8, value: u16 },
    /// An access to the BAR, wherever it is now.
    Bar {
        slot: u8,
        offset: u16,
        value: u64,
        len: u8,
        is_read: bool,
    },
    /// The device raises a vector.
    Interrupt { slot: u8, queue_idx: u16 },
}

/// Insists on attach and detach being pairs.
#[derive(Default)]
struct Pairs(Mutex<BTreeMap<DoorbellAddress, i32>>);

impl Doorbells for Pairs {
    fn attach(&self, address: DoorbellAddress, doorbell: &EventFd) -> io::Result<()> {
        let previous = self.0.lock().unwrap().insert(address, doorbell.as_raw_fd());
        assert_eq!(previous, None, "two doorbells at {address:x?}");
        Ok(())
    }
    fn detach(&self, address: DoorbellAddress, doorbell: &EventFd) -> io::Result<()> {
        let previous = self.0.lock().unwrap().remove(&address);
        assert_eq!(
            previous,
            Some(doorbell.as_raw_fd()),
            "no such doorbell at {address:x?}"
        );
        Ok(())
    }
}

struct Device;

impl VirtioDevice for Device {
    fn device_type(&self) -> u16 {
        1
    }
    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![16, 16]
    }
    fn device_features(&self) -> u64 {
        0x21
    }
    fn config(&self) -> Vec<u8> {
        vec![0; 12]
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        assert!(offset + data.len() as u64 <= 12);
    }
    fn activate(&mut self, _activation: Activation) -> Result<(), ActivateError> {
        Ok(())
    }
    fn reset(&mut self) {}
}

fuzz_target!(|ops: Vec<Op>| {
    let mmio = Arc::new(Bus::default());
    let pairs = Arc::new(Pairs::default());
    let root = Arc::new(PciRoot::new(&mmio, &Arc::default(), pairs.clone()));
    mmio.insert(ECAM, ECAM_BYTES, root.clone())
        .expect("the bus is empty");
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x1000)]).expect("the host has 4 KiB");
    let functions: Vec<_> = (0..NUM_FUNCTIONS)
        .map(|slot| {
            let name = format!("net{slot}");
            let function = VirtioPci::new(&name, Box::new(Device), ram.clone(), &FakeVectors)
                .expect("the host has file descriptors");
            function.place_bar(0, 0xc000_0000 + slot * 0x8000);
            let function = Arc::new(function);
            root.plug(function.clone()).expect("the bus has 32 slots");
            function
        })
        .collect();
    let slot_of = |slot: u8| usize::from(slot) % functions.len();
    let config = |slot: u8, register: u64| ECAM + slot_of(slot) as u64 * FUNCTION_BYTES + register;
    for op in ops {
        match op {
            Op::Config {
                slot,
                register,
                value,
                len,
                is_read,
            } => {
                let gpa = config(slot, u64::from(register) % 0x2000);
                access(&mmio, gpa, value, len, is_read);
            }
            Op::Place { slot, position } => {
                let start = 0xdfff_0000 + u32::from(position) * 0x2000;
                mmio.write(config(slot, 0x10), &start.to_le_bytes());
            }
            Op::Command { slot, value } => {
                mmio.write(config(slot, 0x04), &value.to_le_bytes());
            }
            Op::Bar {
                slot,
                offset,
                value,
                len,
                is_read,
            } => {
                for bar in functions[slot_of(slot)].bars() {
                    access(&mmio, bar.start + u64::from(offset), value, len, is_read);
                }
            }
            Op::Interrupt { slot, queue_idx } => {
                functions[slot_of(slot)].interrupt().signal_queue(queue_idx);
            }
        }
        check_doorbells(&functions, &pairs);
    }
    check_bars(&mmio, &functions, &pairs);
});

fn access(mmio: &Bus, gpa: u64, value: u64, len: u8, is_read: bool) {
    let len = usize::from(len % 8) + 1;
    if is_read {
        mmio.read(gpa, &mut [0; 8][..len]);
    } else {
        mmio.write(gpa, &value.to_le_bytes()[..len]);
    }
}

/// Where the doorbells of a function in `bar` are, with what each signals.
fn doorbells_in(function: &VirtioPci, bar: Bar) -> impl Iterator<Item = (DoorbellAddress, i32)> {
    function.doorbells().iter().map(move |bell| {
        let address = DoorbellAddress {
            space: DoorbellSpace::Memory,
            start: bar.start + bell.offset,
            data: None,
        };
        (address, bell.doorbell.as_raw_fd())
    })
}

/// Each attached doorbell belongs to a decoded BAR.
fn check_doorbells(functions: &[Arc<VirtioPci>], pairs: &Pairs) {
    let is_expected = |attached: (&DoorbellAddress, &i32)| {
        functions.iter().any(|function| {
            let mut bars = function.decoded_bars().into_iter();
            bars.any(|bar| {
                let mut expected = doorbells_in(function, bar);
                expected.any(|(address, fd)| attached == (&address, &fd))
            })
        })
    };
    let attached = pairs.0.lock().unwrap();
    assert!(
        attached.iter().all(is_expected),
        "doorbells outside of decoded BARs: {attached:x?}"
    );
}

/// Rings all doorbells, which shows what BARs are mapped: none is over another one.
fn check_bars(mmio: &Bus, functions: &[Arc<VirtioPci>], pairs: &Pairs) {
    let mut mapped: Vec<Bar> = Vec::new();
    for function in functions {
        for bar in function.decoded_bars() {
            for (address, _) in doorbells_in(function, bar) {
                access(mmio, address.start, 0, 1, false);
            }
            let attached = pairs.0.lock().unwrap();
            let is_attached = |(address, fd)| attached.get(&address) == Some(&fd);
            let num_attached = doorbells_in(function, bar)
                .filter(|bell| is_attached(*bell))
                .count();
            if num_attached == 0 {
                continue; // placed where something else is
            }
            assert_eq!(num_attached, function.doorbells().len());
            let end = bar.start + bar.len;
            assert!(
                end <= ECAM || bar.start >= ECAM + ECAM_BYTES,
                "BAR over ECAM: {bar:x?}"
            );
            let overlaps = |other: &Bar| bar.start < other.start + other.len && other.start < end;
            assert!(!mapped.iter().any(overlaps), "BARs overlap: {bar:x?}");
            mapped.push(bar);
        }
    }
    check_doorbells(functions, pairs);
}
