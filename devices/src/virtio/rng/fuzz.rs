//! A driver that writes whatever it likes, for fuzz targets.

use std::fs::File;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::handler::{MAX_REQUEST_BYTES, RngHandler};
use crate::GuestRam;
use crate::error::chain;
use crate::iovec::GuestIoVecs;
use crate::test_utils::{fake_interrupt, fixed_queue};
use crate::virtio::serve::Served;

/// Guest RAM in bytes, from address 0.
pub const RAM_BYTES: usize = 0x4_0000;

/// Turns that a guest gets; it cannot bring new work, so a few are enough.
const MAX_TURNS: usize = 8;

/// Serves the queue to a driver that wrote `bytes` to the start of its RAM. Whatever they are, the device
/// does not panic and is done in bounded time; it may fault.
///
/// # Errors
/// The fault, in words.
///
/// # Panics
/// If the host is out of memory or file descriptors; if the device fills more than it was asked for.
#[expect(clippy::unwrap_used, reason = "a host without memory cannot test")]
pub fn serve_arbitrary(bytes: &[u8]) -> Result<(), String> {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap();
    let bytes = bytes.get(..RAM_BYTES).unwrap_or(bytes);
    ram.write_slice(bytes, GuestAddress(0)).unwrap();
    let mut handler = RngHandler {
        queue: fixed_queue(),
        iovecs: GuestIoVecs::new(ram.clone()),
        ram,
        // The same each time.
        urandom: Arc::new(File::open("/dev/zero").unwrap()),
        interrupt: fake_interrupt(1),
        metrics: Arc::default(),
    };
    let mut outcome = Ok(());
    for _ in 0..MAX_TURNS {
        match handler.serve_queue() {
            Ok(Served::More) => {}
            Ok(Served::All) => break,
            Err(fault) => {
                outcome = Err(chain(&fault));
                break;
            }
        }
    }
    let most = handler.metrics.requests.get() * u64::from(MAX_REQUEST_BYTES);
    assert!(handler.metrics.bytes.get() <= most);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_memory_has_no_request() {
        assert_eq!(serve_arbitrary(&[]), Ok(()));
    }
}
