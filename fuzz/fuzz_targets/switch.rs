//! Two switches whose stations come and go, choose addresses and send frames with any header: who gets a
//! frame, who does not, what of it, and what is counted.
#![no_main]

use alacrity_devices::venet::switch_fuzz::drive;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| drive(bytes));
