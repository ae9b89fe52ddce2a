//! Features, configuration space, activation and reset of the balloon.

use std::fmt;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;

use super::event::BalloonServer;
use super::handle::BalloonHandle;
use super::handler::{BalloonHandler, QueueKind};
use super::metrics::BalloonMetrics;
use crate::virtio::serve;
use crate::virtio::{ActivateError, Activation, VirtioDevice};
use crate::worker::Worker;

/// Feature bits (VIRTIO 1.2 §5.5.3), which virtio-bindings lacks.
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u32 = 2;
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;

/// Descriptors of each queue.
const QUEUE_SIZE: u16 = 128;

/// Queues in order of index.
///
/// Deviation: VIRTIO 1.2 §5.5.2 counts the reporting queue as number 4 whether queues 2 and 3 are
/// there or not; Linux and QEMU number only the queues that are, and so do we.
const QUEUES: [QueueKind; 3] = [QueueKind::Inflate, QueueKind::Deflate, QueueKind::Reporting];

/// Offset in bytes of `actual` in `struct virtio_balloon_config`, behind `num_pages`.
const ACTUAL_OFFSET: u64 = 4;
/// Size in bytes of `struct virtio_balloon_config` without the fields of features not offered.
const CONFIG_BYTES: usize = 8;

/// A virtio memory balloon.
pub struct BalloonDevice {
    name: String,
    handle: BalloonHandle,
    metrics: Arc<BalloonMetrics>,
    worker: Option<Worker>,
}

impl fmt::Debug for BalloonDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalloonDevice")
            .field("name", &self.name)
            .field("handle", &self.handle)
            .field("is_active", &self.worker.is_some())
            .finish_non_exhaustive()
    }
}

impl BalloonDevice {
    /// An empty balloon called `name` in the log and as a thread, such as `balloon0`.
    pub fn new(name: String, metrics: Arc<BalloonMetrics>) -> Self {
        BalloonDevice {
            name,
            handle: BalloonHandle::new(Arc::clone(&metrics)),
            metrics,
            worker: None,
        }
    }

    /// The host's side, to set the size while the guest runs, or before.
    pub fn handle(&self) -> BalloonHandle {
        self.handle.clone()
    }

    fn config_bytes(&self) -> [u8; CONFIG_BYTES] {
        let mut config = [0; CONFIG_BYTES];
        let (num_pages, actual) = config.split_at_mut(CONFIG_BYTES / 2);
        num_pages.copy_from_slice(&self.handle.target_pages().to_le_bytes());
        actual.copy_from_slice(&self.handle.actual_pages().to_le_bytes());
        config
    }
}

impl VirtioDevice for BalloonDevice {
    #[expect(clippy::cast_possible_truncation, reason = "the number is 5")]
    fn device_type(&self) -> u16 {
        VIRTIO_ID_BALLOON as u16
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES.len()]
    }

    fn device_features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BALLOON_F_DEFLATE_ON_OOM
            | 1 << VIRTIO_BALLOON_F_REPORTING
    }

    fn config(&self) -> Vec<u8> {
        self.config_bytes().to_vec()
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if offset == ACTUAL_OFFSET
            && let Ok(bytes) = data.try_into()
        {
            self.handle.set_actual_pages(u32::from_le_bytes(bytes));
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        let has_event_idx = activation.has_feature(VIRTIO_RING_F_EVENT_IDX);
        let has_reporting = activation.has_feature(VIRTIO_BALLOON_F_REPORTING);
        let mut queues = Vec::new();
        for mut active in activation.queues {
            let Some(&kind) = QUEUES.get(usize::from(active.index)) else {
                continue;
            };
            if kind == QueueKind::Reporting && !has_reporting {
                continue;
            }
            active.queue.set_event_idx(has_event_idx);
            let handler = BalloonHandler {
                kind,
                queue_idx: active.index,
                queue: active.queue,
                ram: activation.ram.clone(),
                interrupt: Arc::clone(&activation.interrupt),
                metrics: Arc::clone(&self.metrics),
            };
            queues.push((handler, active.doorbell));
        }
        for (kind, index) in QUEUES.into_iter().zip(0..) {
            let is_needed = kind != QueueKind::Reporting || has_reporting;
            if is_needed && !queues.iter().any(|(handler, _)| handler.kind == kind) {
                return Err(ActivateError::QueueMissing { index });
            }
        }
        let server = BalloonServer {
            queues,
            interrupt: Arc::clone(&activation.interrupt),
        };
        self.worker = Some(serve::spawn(self.name.clone(), server)?);
        self.handle.set_interrupt(Some(activation.interrupt));
        Ok(())
    }

    fn reset(&mut self) {
        self.handle.set_interrupt(None);
        if let Some(worker) = self.worker.take() {
            worker.stop();
        }
        // A driver that starts anew has all its pages (VIRTIO 1.2 §5.5.5).
        self.handle.set_actual_pages(0);
    }
}
