//! The guest's side for tests: interrupts without KVM.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::interrupt::{MsiMessage, MsiVector, MsiVectors};
use crate::virtio::VirtioInterrupt;

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
