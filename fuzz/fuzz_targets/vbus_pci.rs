//! The PCI connector of a guest that writes anything to its memory, its event queues, registers,
//! ports and configuration space, while interfaces come and go.
//!
//! Whatever it did, a reset closes all that it had open and brings back a connector that works.
#![no_main]

use alacrity_devices::vbus_pci::fuzz::drive;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| drive(bytes));
