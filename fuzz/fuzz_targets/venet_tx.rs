//! The rings of a `venet` connection whose client filled them, the pool of segments and its memory
//! with anything at all, and gets its own frames back.
#![no_main]

use alacrity_devices::venet::fuzz::serve_bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let num_faults = serve_bytes(bytes);
    assert!(num_faults <= 1, "a client is cut off once");
});
