//! A driver that writes whatever it likes, for property tests and fuzz targets.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use super::disk::Disk;
use super::engine::Engine;
use super::handler::{Backend, BlkFault, Handler};
use super::metrics::{BlkMetrics, EngineKind};
use super::watch::TransferWatch;
use crate::GuestRam;
use crate::error::chain;
use crate::test_utils::{QUEUE_SIZE, arbitrary_ram, fake_interrupt, fixed_queue, serve_turns};
use crate::virtio::VirtioInterrupt;

/// Guest RAM in bytes, from address 0, in two regions that meet in the middle.
pub const RAM_BYTES: usize = 0x1_0000;

/// Serves `disk` to a driver that wrote `bytes` to the start of its RAM: descriptor table,
/// available ring, used ring, and the rest for headers, indirect tables and data.
///
/// Whatever `bytes` are, the device does not panic and is done in bounded time; it may fault.
///
/// # Errors
/// The fault, in words.
///
/// # Panics
/// If the host is out of memory or file descriptors, or lacks the engine.
pub fn serve_arbitrary(disk: &Arc<Disk>, kind: EngineKind, bytes: &[u8]) -> Result<(), String> {
    let ram = arbitrary_ram(&[RAM_BYTES / 2; 2], bytes);
    let mut handler = handler(disk, kind, &ram, &fake_interrupt(1), None);
    run(&mut handler).map_err(|fault| chain(&fault))
}

/// A handler on the queue at the fixed addresses.
#[expect(clippy::unwrap_used, reason = "a host without memory cannot test")]
pub(super) fn handler(
    disk: &Arc<Disk>,
    kind: EngineKind,
    ram: &GuestRam,
    interrupt: &Arc<VirtioInterrupt>,
    watch: Option<Arc<dyn TransferWatch>>,
) -> Handler {
    let backend = Backend {
        disk: Arc::clone(disk),
        serial: *b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        is_writeback: Arc::new(AtomicBool::new(true)),
        metrics: Arc::new(BlkMetrics::default()),
        interrupt: Arc::clone(interrupt),
        watch,
    };
    let engine = Engine::new("test", Arc::clone(disk), Some(kind), QUEUE_SIZE).unwrap();
    Handler::new(backend, 0, fixed_queue(), ram.clone(), engine)
}

/// Serves until all is done, as the worker does.
pub(super) fn run(handler: &mut Handler) -> Result<(), BlkFault> {
    serve_turns(|| handler.serve_queue())?;
    while handler.engine().num_in_flight() > 0 {
        let _ = handler.serve_completions()?;
        thread::yield_now();
    }
    Ok(())
}
