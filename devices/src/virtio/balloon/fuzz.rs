//! A driver that writes whatever it likes, for property tests and fuzz targets.

use std::sync::Arc;

use super::handler::{BalloonFault, BalloonHandler, QueueKind};
use super::metrics::BalloonMetrics;
use crate::GuestRam;
use crate::error::chain;
use crate::test_utils::{arbitrary_ram, fake_interrupt, fixed_queue, serve_turns};

/// Guest RAM in bytes, from address 0.
pub const RAM_BYTES: usize = 0x4_0000;

/// Serves queue `queue_idx % 3` (inflate, deflate, reporting) to a driver that wrote `bytes` to the
/// start of its RAM. Whatever they are, the device does not panic and is done in bounded time; it
/// may fault.
///
/// # Errors
/// The fault, in words.
///
/// # Panics
/// If the host is out of memory or file descriptors.
pub fn serve_arbitrary(queue_idx: u16, bytes: &[u8]) -> Result<(), String> {
    let ram = arbitrary_ram(&[RAM_BYTES], bytes);
    let kind = match queue_idx % 3 {
        0 => QueueKind::Inflate,
        1 => QueueKind::Deflate,
        _ => QueueKind::Reporting,
    };
    let mut handler = handler(kind, &ram, &Arc::default());
    run(&mut handler).map_err(|fault| chain(&fault))
}

/// A handler on the queue at the fixed addresses.
pub(super) fn handler(
    kind: QueueKind,
    ram: &GuestRam,
    metrics: &Arc<BalloonMetrics>,
) -> BalloonHandler {
    BalloonHandler {
        kind,
        queue_idx: 0,
        queue: fixed_queue(),
        ram: ram.clone(),
        interrupt: fake_interrupt(1),
        metrics: Arc::clone(metrics),
    }
}

/// Serves until all is done, as the worker does.
pub(super) fn run(handler: &mut BalloonHandler) -> Result<(), BalloonFault> {
    serve_turns(|| handler.serve_queue())
}
