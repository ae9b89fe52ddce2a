//! Receive, transmit and control queue of a network device, with rings, tables and buffers that
//! the guest filled with anything at all.
#![no_main]

use alacrity_devices::virtio::net::fuzz::serve_bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let num_faults = serve_bytes(bytes);
    assert!(num_faults <= 3, "a queue faults once");
});
