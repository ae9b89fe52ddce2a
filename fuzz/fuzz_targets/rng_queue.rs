//! The queue of an entropy device whose driver wrote anything at all to its memory.
#![no_main]

use alacrity_devices::virtio::rng::fuzz::serve_arbitrary;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|memory: &[u8]| {
    // A fault is an answer; a panic or a hang is a finding.
    let _ = serve_arbitrary(memory);
});
