//! Features, activation and reset of the entropy device.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;

use super::event::RngServer;
use super::handler::RngHandler;
use super::metrics::RngMetrics;
use crate::iovec::GuestIoVecs;
use crate::virtio::serve;
use crate::virtio::{ActivateError, Activation, VirtioDevice};
use crate::worker::Worker;

/// Descriptors of the one queue; Linux keeps one request under way.
const QUEUE_SIZE: u16 = 64;

/// A virtio entropy device.
pub struct RngDevice {
    name: String,
    urandom: Arc<File>,
    metrics: Arc<RngMetrics>,
    worker: Option<Worker>,
}

impl fmt::Debug for RngDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RngDevice")
            .field("name", &self.name)
            .field("is_active", &self.worker.is_some())
            .finish_non_exhaustive()
    }
}

impl RngDevice {
    /// An entropy device called `name` in the log and as a thread, such as `rng0`.
    ///
    /// # Errors
    /// The host has no readable `/dev/urandom`.
    pub fn new(name: String, metrics: Arc<RngMetrics>) -> io::Result<Self> {
        Ok(RngDevice {
            name,
            urandom: Arc::new(File::open("/dev/urandom")?),
            metrics,
            worker: None,
        })
    }
}

impl VirtioDevice for RngDevice {
    #[expect(clippy::cast_possible_truncation, reason = "the number is 4")]
    fn device_type(&self) -> u16 {
        VIRTIO_ID_RNG as u16
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn device_features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        let has_event_idx = activation.has_feature(VIRTIO_RING_F_EVENT_IDX);
        let mut active = activation
            .queues
            .into_iter()
            .find(|queue| queue.index == 0)
            .ok_or(ActivateError::QueueMissing { index: 0 })?;
        active.queue.set_event_idx(has_event_idx);
        let server = RngServer {
            handler: RngHandler {
                queue: active.queue,
                iovecs: GuestIoVecs::new(activation.ram.clone()),
                ram: activation.ram,
                urandom: Arc::clone(&self.urandom),
                interrupt: activation.interrupt,
                metrics: Arc::clone(&self.metrics),
            },
            doorbell: active.doorbell,
        };
        self.worker = Some(serve::spawn(self.name.clone(), server)?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::handler::{MAX_REQUEST_BYTES, MAX_REQUESTS_PER_TURN, RngFault};
    use super::*;
    use crate::GuestRam;
    use crate::test_utils::fake_interrupt;
    use crate::virtio::serve::Served;
    use proptest::prelude::*;
    use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use virtio_queue::Queue;
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestAddress};

    const W: u16 = VRING_DESC_F_WRITE as u16;
    const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    const BUFFER: u64 = 0x1_0000;
    const RAM_BYTES: usize = 0x4_0000;

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap()
    }

    /// A handler whose driver made these chains available.
    fn handler(ram: &GuestRam, descriptors: &[(u64, u32, u16, u16)]) -> RngHandler {
        let mock = MockSplitQueue::new(ram, QUEUE_SIZE);
        let descriptors: Vec<RawDescriptor> = descriptors
            .iter()
            .map(|(gpa, len, flags, next)| Descriptor::new(*gpa, *len, *flags, *next).into())
            .collect();
        mock.add_desc_chains(&descriptors, 0).unwrap();
        let mut queue: Queue = mock.create_queue().unwrap();
        queue.set_event_idx(true);
        RngHandler {
            queue,
            ram: ram.clone(),
            urandom: Arc::new(File::open("/dev/urandom").unwrap()),
            iovecs: GuestIoVecs::new(ram.clone()),
            interrupt: fake_interrupt(1),
            metrics: Arc::default(),
        }
    }

    #[test]
    fn buffer_is_filled_and_the_guest_interrupted() {
        let ram = ram();
        let mut handler = handler(&ram, &[(BUFFER, 64, W, 0)]);

        assert_eq!(handler.serve_queue().unwrap(), Served::All);

        let mut bytes = [0; 64];
        ram.read_slice(&mut bytes, GuestAddress(BUFFER)).unwrap();
        assert_ne!(bytes, [0; 64]);
        assert_eq!(handler.metrics.bytes.get(), 64);
        assert_eq!(handler.metrics.queue.interrupts.get(), 1);
    }

    #[test]
    fn request_is_capped() {
        let ram = ram();
        let chain = [
            (BUFFER, 0xf000, W | NEXT, 1),
            (BUFFER + 0xf000, 0x2000, W, 0),
        ];
        let mut handler = handler(&ram, &chain);

        assert_eq!(handler.serve_queue().unwrap(), Served::All);

        assert_eq!(handler.metrics.bytes.get(), u64::from(MAX_REQUEST_BYTES));
        let behind: u64 = ram.read_obj(GuestAddress(BUFFER + 0x1_0000)).unwrap();
        assert_eq!(behind, 0);
    }

    #[test]
    fn many_requests_are_served_in_turns() {
        let ram = ram();
        let mut handler = handler(&ram, &[(BUFFER, 8, W, 0); 20]);

        assert_eq!(handler.serve_queue().unwrap(), Served::More);
        assert_eq!(
            handler.metrics.requests.get(),
            u64::from(MAX_REQUESTS_PER_TURN)
        );
        assert_eq!(handler.serve_queue().unwrap(), Served::All);
        assert_eq!(handler.metrics.requests.get(), 20);
    }

    #[test]
    fn buffer_outside_ram_is_a_fault() {
        let ram = ram();
        let mut handler = handler(&ram, &[(RAM_BYTES as u64 - 4, 8, W, 0)]);

        let fault = handler.serve_queue().unwrap_err();

        assert!(matches!(fault, RngFault::Buffer { head: 0, .. }), "{fault}");
    }

    #[test]
    fn chain_without_a_writable_byte_is_a_fault() {
        let ram = ram();
        let mut handler = handler(&ram, &[(BUFFER, 8, 0, 0)]);

        let fault = handler.serve_queue().unwrap_err();

        assert!(
            matches!(fault, RngFault::NothingToFill { head: 0 }),
            "{fault}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn hostile_chains_do_not_panic_the_device(
            chains in prop::collection::vec(
                (0..0x5_0000u64, any::<u32>(), 0..8u16, 0..70u16), 1..60,
            ),
        ) {
            let ram = ram();
            let mut handler = handler(&ram, &chains);

            for _ in 0..8 {
                if !matches!(handler.serve_queue(), Ok(Served::More)) {
                    break;
                }
            }

            let max = u64::from(MAX_REQUEST_BYTES) * u64::from(QUEUE_SIZE);
            prop_assert!(handler.metrics.bytes.get() <= max);
        }
    }
}
