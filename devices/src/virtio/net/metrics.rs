//! Counters of one network device.

use serde::Serialize;

use crate::metrics::{Counter, QueueMetrics};

/// Traffic of one network device, all queue pairs together. Directions are the guest's.
#[derive(Debug, Default, Serialize)]
pub struct NetMetrics {
    /// Frames given to the guest.
    pub rx_packets: Counter,
    /// Bytes of those frames, without virtio headers.
    pub rx_bytes: Counter,
    /// Frames for the guest that were larger than its buffers.
    pub rx_drops: Counter,
    /// Frames for somebody else, refused by the guest's MAC filter.
    pub rx_filtered: Counter,
    /// Times the backend failed to deliver a frame.
    pub rx_errors: Counter,
    /// Frames the backend took from the guest.
    pub tx_packets: Counter,
    /// Bytes of those frames, without virtio headers.
    pub tx_bytes: Counter,
    /// Frames from the guest lost because the host's interface was down or out of memory.
    pub tx_drops: Counter,
    /// Frames from the guest that are not valid (header, length).
    pub tx_errors: Counter,
    /// Commands on the control queue.
    pub control_commands: Counter,
    /// Commands among them that were refused.
    pub control_refused: Counter,
    /// Times the host refused to set up the backend as the driver asked.
    pub backend_refusals: Counter,
    /// The queues, pair by pair.
    pub pairs: Vec<PairMetrics>,
    /// The control queue.
    pub control: QueueMetrics,
}

/// The two queues of one pair.
#[derive(Debug, Default, Serialize)]
pub struct PairMetrics {
    /// Device to guest.
    pub rx: QueueMetrics,
    /// Guest to device.
    pub tx: QueueMetrics,
}

impl NetMetrics {
    /// Counters at zero for a device with `num_queue_pairs` pairs.
    pub fn new(num_queue_pairs: u16) -> Self {
        NetMetrics {
            pairs: (0..num_queue_pairs)
                .map(|_| PairMetrics::default())
                .collect(),
            ..NetMetrics::default()
        }
    }

    /// Counters of queue `queue_idx` in a device whose control queue is `control_idx`.
    pub(super) fn queue(&self, queue_idx: u16, control_idx: u16) -> &QueueMetrics {
        match self.pairs.get(usize::from(queue_idx / 2)) {
            Some(pair) if queue_idx < control_idx && queue_idx.is_multiple_of(2) => &pair.rx,
            Some(pair) if queue_idx < control_idx => &pair.tx,
            _ => &self.control,
        }
    }
}
