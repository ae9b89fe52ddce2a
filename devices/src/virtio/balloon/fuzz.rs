//! A driver that writes whatever it likes, for property tests and fuzz targets.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::handler::{BalloonFault, BalloonHandler, QueueKind};
use super::metrics::BalloonMetrics;
use crate::GuestRam;
use crate::test_utils::fake_interrupt;
use crate::virtio::interrupt::chain;
use crate::virtio::serve::Served;

/// Size of the queue in descriptors.
pub const QUEUE_SIZE: u16 = 16;
/// Guest RAM in bytes, from address 0.
pub const RAM_BYTES: usize = 0x4_0000;
/// Guest-physical address of the available ring; the descriptor table is at 0.
pub const AVAIL_RING: u32 = 0x100;
/// Guest-physical address of the used ring.
pub const USED_RING: u32 = 0x140;

/// Turns that a guest gets; it cannot bring new work, so a few are enough.
const MAX_TURNS: usize = 8;

/// Serves queue `queue_idx % 3` (inflate, deflate, reporting) to a driver that wrote `bytes` to the
/// start of its RAM. Whatever they are, the device does not panic and is done in bounded time; it
/// may fault.
///
/// # Errors
/// The fault, in words.
///
/// # Panics
/// If the host is out of memory or file descriptors.
#[expect(clippy::unwrap_used, reason = "a host without memory cannot test")]
pub fn serve_arbitrary(queue_idx: u16, bytes: &[u8]) -> Result<(), String> {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap();
    let bytes = bytes.get(..RAM_BYTES).unwrap_or(bytes);
    ram.write_slice(bytes, GuestAddress(0)).unwrap();
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
        queue: queue(),
        ram: ram.clone(),
        interrupt: fake_interrupt(1),
        metrics: Arc::clone(metrics),
    }
}

/// The queue at the fixed addresses, with event index.
#[expect(clippy::unwrap_used, reason = "the size is a power of two")]
pub(super) fn queue() -> Queue {
    let mut queue = Queue::new(QUEUE_SIZE).unwrap();
    queue.set_desc_table_address(Some(0), Some(0));
    queue.set_avail_ring_address(Some(AVAIL_RING), Some(0));
    queue.set_used_ring_address(Some(USED_RING), Some(0));
    queue.set_event_idx(true);
    queue.set_ready(true);
    queue
}

/// Serves until all is done, as the worker does.
pub(super) fn run(handler: &mut BalloonHandler) -> Result<(), BalloonFault> {
    for _ in 0..MAX_TURNS {
        if handler.serve_queue()? == Served::All {
            break;
        }
    }
    Ok(())
}
