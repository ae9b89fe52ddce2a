//! One queue of a balloon: the first byte chooses inflate, deflate or reporting, the rest is what
//! the guest wrote to its memory.
#![no_main]

use alacrity_devices::virtio::balloon::fuzz::serve_arbitrary;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((&queue_idx, memory)) = bytes.split_first() {
        // A fault is an answer; a panic or a hang is a finding.
        let _ = serve_arbitrary(queue_idx.into(), memory);
    }
});
