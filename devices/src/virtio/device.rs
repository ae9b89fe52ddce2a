//! The trait between a transport and a device.

use std::io;
use std::sync::Arc;

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::VirtioInterrupt;
use crate::GuestRam;

/// One queue that the driver made ready, handed to the device at activation.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Index of the queue within its device; the device's other queues may be absent.
    pub index: u16,
    /// Addresses, size and positions, checked against guest RAM.
    pub queue: Queue,
    /// Signalled by the guest's doorbell; its count is the number of VM exits it took.
    pub doorbell: EventFd,
}

/// What a device gets when its driver sets `DRIVER_OK` (VIRTIO 1.2 §3.1.1).
#[derive(Debug)]
pub struct Activation {
    /// All of the guest's RAM.
    pub ram: GuestRam,
    /// Feature bits that device and driver agreed on, a subset of what the device offered.
    pub features: u64,
    /// The queues the driver enabled, in order of index.
    pub queues: Vec<ActiveQueue>,
    /// How to interrupt the guest.
    pub interrupt: Arc<VirtioInterrupt>,
}

impl Activation {
    /// True if feature `bit` was negotiated.
    pub fn has_feature(&self, bit: u32) -> bool {
        self.features >> bit & 1 == 1
    }
}

/// Why a device did not start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left out a queue that the device cannot work without.
    #[error("queue {index} was not enabled")]
    QueueMissing {
        /// Index of the queue.
        index: u16,
    },
    /// The host could not start the worker.
    #[error("cannot start the device's worker")]
    Worker(#[source] io::Error),
    /// The host resource behind the device refused the negotiated features.
    #[error("cannot set up the backend")]
    Backend(#[source] io::Error),
}

/// A virtio device as its transport sees it. Called by vCPU threads, one at a time.
///
/// Life: `activate` → `reset` → `activate` → …; dropping an active device stops it too.
pub trait VirtioDevice: Send {
    /// The device's number (VIRTIO 1.2 §5).
    fn device_type(&self) -> u16;

    /// Largest size of each queue in descriptors, a power of two each; the length is the number of
    /// queues.
    fn queue_max_sizes(&self) -> Vec<u16>;

    /// Feature bits that the device offers. The transport adds `VIRTIO_F_VERSION_1`; queue features
    /// (`VIRTIO_F_RING_EVENT_IDX`, `VIRTIO_F_RING_INDIRECT_DESC`) are the device's to offer.
    fn device_features(&self) -> u64;

    /// The device-specific configuration as the driver reads it, always of the same length.
    fn config(&self) -> Vec<u8>;

    /// Writes `data` to the configuration at `offset`; the range is inside [`VirtioDevice::config`]. Most
    /// configurations are read-only, and a write is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Starts to serve the queues.
    ///
    /// # Errors
    /// [`ActivateError`]; the transport then sets `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops. When it returns, no thread of the device touches guest memory or interrupts any more,
    /// and the device can be activated again.
    fn reset(&mut self);
}
