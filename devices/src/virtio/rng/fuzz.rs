//! A driver that writes whatever it likes, for fuzz targets.

use std::fs::File;
use std::sync::Arc;

use super::handler::{MAX_REQUEST_BYTES, RngHandler};
use crate::error::chain;
use crate::iovec::GuestIoVecs;
use crate::test_utils::{arbitrary_ram, fake_interrupt, fixed_queue, serve_turns};

/// Guest RAM in bytes, from address 0.
pub const RAM_BYTES: usize = 0x4_0000;

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
    let ram = arbitrary_ram(&[RAM_BYTES], bytes);
    let mut handler = RngHandler {
        queue: fixed_queue(),
        iovecs: GuestIoVecs::new(ram.clone()),
        ram,
        // The same each time.
        urandom: Arc::new(File::open("/dev/zero").unwrap()),
        interrupt: fake_interrupt(1),
        metrics: Arc::default(),
    };
    let outcome = serve_turns(|| handler.serve_queue());
    let most = handler.metrics.requests.get() * u64::from(MAX_REQUEST_BYTES);
    assert!(handler.metrics.bytes.get() <= most);
    outcome.map_err(|fault| chain(&fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_memory_has_no_request() {
        assert_eq!(serve_arbitrary(&[]), Ok(()));
    }
}
