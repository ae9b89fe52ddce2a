//! What comes from a TAP: frames of any length, with any header in front, for a client or a driver that
//! keeps to the rules. It gets what was sent or nothing, in its buffers and nowhere else.
#![no_main]

use alacrity_devices::{venet, virtio};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((choice, bytes)) if choice & 1 == 0 => venet::tap_fuzz::receive_bytes(bytes),
        Some((_, bytes)) => virtio::net::rx_fuzz::receive_bytes(bytes),
        None => {}
    }
});
