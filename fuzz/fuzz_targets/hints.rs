//! The rings and the table of a `page-hints` client that filled them with anything at all.
#![no_main]

use alacrity_devices::hints::fuzz::serve_bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let num_faults = serve_bytes(bytes);
    assert!(num_faults <= 1, "a client is cut off once");
});
