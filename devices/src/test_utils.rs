//! The guest's side for tests: interrupts without KVM.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::{Event, Level, Metadata, Subscriber, span};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::GuestRam;
use crate::interrupt::{MsiMessage, MsiVector, MsiVectors};
use crate::virtio::VirtioInterrupt;
use crate::virtio::serve::Served;

/// Vectors that lead nowhere but to their eventfds.
#[derive(Debug, Default)]
pub struct FakeVectors;

#[derive(Debug)]
struct FakeVector(EventFd);

impl MsiVector for FakeVector {
    fn irqfd(&self) -> &EventFd {
        &self.0
    }
    fn route(&self, _message: Option<MsiMessage>) -> io::Result<()> {
        Ok(())
    }
}

impl MsiVectors for FakeVectors {
    fn allocate(&self) -> io::Result<Box<dyn MsiVector>> {
        Ok(Box::new(FakeVector(EventFd::new(EFD_NONBLOCK)?)))
    }
}

/// Interrupts of a device called `test`: vector 0 for the configuration, vector `i + 1` for queue
/// `i`. Read `interrupt.vectors()[i + 1].irqfd()` to see how often queue `i` interrupted.
///
/// # Panics
/// If the host is out of file descriptors.
#[expect(
    clippy::unwrap_used,
    reason = "a test without file descriptors cannot go on"
)]
#[expect(clippy::cast_possible_truncation, reason = "tests have few queues")]
pub fn fake_interrupt(num_queues: usize) -> Arc<VirtioInterrupt> {
    let vectors = (0..=num_queues)
        .map(|_| FakeVectors.allocate().unwrap())
        .collect();
    let interrupt = VirtioInterrupt::new("test".into(), vectors, num_queues);
    interrupt.set_config_vector(0);
    for queue_idx in 0..num_queues as u16 {
        interrupt.set_queue_vector(queue_idx, queue_idx + 1);
    }
    Arc::new(interrupt)
}

/// Runs `action` and answers how many warnings and errors it logged on this thread.
pub fn count_warnings(action: impl FnOnce()) -> usize {
    let counter = WarningCounter::default();
    let num_warnings = Arc::clone(&counter.0);
    tracing::subscriber::with_default(counter, action);
    num_warnings.load(Ordering::Relaxed)
}

#[derive(Debug, Default)]
struct WarningCounter(Arc<AtomicUsize>);

impl Subscriber for WarningCounter {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }
    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}
    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}
    fn event(&self, _event: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _span: &span::Id) {}
    fn exit(&self, _span: &span::Id) {}
}

/// Size in descriptors of [`fixed_queue`].
pub const QUEUE_SIZE: u16 = 16;
/// Guest-physical address of its available ring; the descriptor table is at 0.
pub const AVAIL_RING: u32 = 0x100;
/// Guest-physical address of its used ring.
pub const USED_RING: u32 = 0x140;

/// A ready queue at fixed addresses, with event index.
#[expect(clippy::unwrap_used, reason = "the size is a power of two")]
pub(crate) fn fixed_queue() -> Queue {
    let mut queue = Queue::new(QUEUE_SIZE).unwrap();
    queue.set_desc_table_address(Some(0), Some(0));
    queue.set_avail_ring_address(Some(AVAIL_RING), Some(0));
    queue.set_used_ring_address(Some(USED_RING), Some(0));
    queue.set_event_idx(true);
    queue.set_ready(true);
    queue
}

/// Turns that a driver gets that cannot bring new work.
const MAX_TURNS: usize = 32;

/// Guest RAM of regions of these sizes in bytes, one behind the other from address 0, that starts with
/// `bytes`, as many as fit.
#[expect(clippy::unwrap_used, reason = "a host without memory cannot test")]
pub(crate) fn arbitrary_ram(region_sizes: &[usize], bytes: &[u8]) -> GuestRam {
    let mut total = 0;
    let regions: Vec<_> = region_sizes
        .iter()
        .map(|size| {
            total += size;
            (GuestAddress((total - size) as u64), *size)
        })
        .collect();
    let ram = GuestRam::from_ranges(&regions).unwrap();
    let bytes = bytes.get(..total).unwrap_or(bytes);
    ram.write_slice(bytes, GuestAddress(0)).unwrap();
    ram
}

/// Serves turn after turn until all is done, as a worker does, but not for ever.
pub(crate) fn serve_turns<E>(mut serve: impl FnMut() -> Result<Served, E>) -> Result<(), E> {
    for _ in 0..MAX_TURNS {
        if serve()? == Served::All {
            break;
        }
    }
    Ok(())
}
