//! Features, configuration space, activation and reset of a disk.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;

use super::SECTOR_BYTES;
use super::disk::Disk;
use super::engine::Engine;
use super::event::BlkServer;
use super::handler::{Backend, Handler};
use super::metrics::{BlkMetrics, EngineKind};
use super::ranges::{MAX_DISCARD_SECTORS, MAX_RANGES, MAX_WRITE_ZEROES_SECTORS};
use super::request::SEG_MAX;
use super::watch::TransferWatch;
use crate::virtio::serve;
use crate::virtio::{ActivateError, Activation, VirtioDevice};
use crate::worker::Worker;

/// Descriptors of the one queue, and most requests under way.
const QUEUE_SIZE: u16 = 256;

/// Size of `struct virtio_blk_config` up to the write-zeroes fields (VIRTIO 1.2 §5.2.4).
const CONFIG_BYTES: usize = 60;
/// Offset of its `writeback` field, the only one that a driver may write.
const WRITEBACK_OFFSET: u64 = 32;

/// Length of a serial number in bytes (VIRTIO 1.2 §5.2.6).
const SERIAL_BYTES: usize = 20;

/// Why a text is not a serial number.
#[derive(Debug, thiserror::Error)]
pub enum SerialError {
    /// It does not fit.
    #[error("serial number of {len} bytes, at most {SERIAL_BYTES} fit")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
}

/// What the guest reads as a disk's serial number: up to 20 bytes, padded with zeroes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Serial([u8; SERIAL_BYTES]);

impl Serial {
    /// A serial number that reads `text`; the empty text means none.
    ///
    /// # Errors
    /// [`SerialError::TooLong`] above 20 bytes.
    pub fn new(text: &str) -> Result<Self, SerialError> {
        let mut bytes = [0; SERIAL_BYTES];
        let len = text.len();
        bytes
            .get_mut(..len)
            .ok_or(SerialError::TooLong { len })?
            .copy_from_slice(text.as_bytes());
        Ok(Serial(bytes))
    }

    /// What the guest reads.
    pub fn bytes(self) -> [u8; SERIAL_BYTES] {
        self.0
    }
}

/// A virtio disk.
pub struct BlkDevice {
    name: String,
    disk: Arc<Disk>,
    serial: Serial,
    engine: Option<EngineKind>,
    watch: Option<Arc<dyn TransferWatch>>,
    metrics: Arc<BlkMetrics>,
    /// The `writeback` field, while the driver may choose it; shared with the worker.
    is_writeback: Arc<AtomicBool>,
    can_choose_writeback: bool,
    worker: Option<Worker>,
}

impl fmt::Debug for BlkDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlkDevice")
            .field("name", &self.name)
            .field("disk", &self.disk)
            .field("is_active", &self.worker.is_some())
            .finish_non_exhaustive()
    }
}

impl BlkDevice {
    /// A disk called `name` in the log and as a thread, such as `blk0`.
    pub fn new(name: String, disk: Arc<Disk>, serial: Serial, metrics: Arc<BlkMetrics>) -> Self {
        BlkDevice {
            name,
            disk,
            serial,
            engine: None,
            watch: None,
            metrics,
            is_writeback: Arc::new(AtomicBool::new(true)),
            can_choose_writeback: false,
            worker: None,
        }
    }

    /// The same disk, but with the engine of `kind` and no other. Without this it uses io_uring
    /// where the host allows it.
    #[must_use]
    pub fn with_engine(mut self, kind: EngineKind) -> Self {
        self.engine = Some(kind);
        self
    }

    /// The same disk, which tells `watch` of its transfers.
    #[must_use]
    pub fn with_watch(mut self, watch: Arc<dyn TransferWatch>) -> Self {
        self.watch = Some(watch);
        self
    }

    /// `struct virtio_blk_config`, little-endian.
    fn config_bytes(&self) -> [u8; CONFIG_BYTES] {
        let disk = &self.disk;
        let logical = disk.logical_block_bytes();
        let physical_exp = disk.physical_block_bytes().ilog2() - logical.ilog2();
        let alignment = u64::from(disk.physical_block_bytes()) / SECTOR_BYTES;
        let mut config = [0; CONFIG_BYTES];
        let mut put = |offset: usize, bytes: &[u8]| {
            if let Some(field) = config.get_mut(offset..offset + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        put(0, &disk.num_sectors().to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &logical.to_le_bytes());
        put(24, &physical_exp.to_le_bytes()[..1]);
        put(26, &1u16.to_le_bytes()); // min_io_size in logical blocks
        put(32, &[u8::from(self.is_writeback.load(Ordering::Relaxed))]);
        put(34, &1u16.to_le_bytes()); // num_queues
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &MAX_RANGES.to_le_bytes());
        put(44, &u32::try_from(alignment).unwrap_or(1).to_le_bytes());
        put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
        put(52, &MAX_RANGES.to_le_bytes());
        put(56, &[u8::from(disk.can_discard())]); // write_zeroes_may_unmap
        config
    }
}

impl VirtioDevice for BlkDevice {
    #[expect(clippy::cast_possible_truncation, reason = "the number is 2")]
    fn device_type(&self) -> u16 {
        VIRTIO_ID_BLOCK as u16
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn device_features(&self) -> u64 {
        let mut features = 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_FLUSH;
        if self.disk.is_read_only() {
            features |= 1 << VIRTIO_BLK_F_RO;
        } else {
            features |= 1 << VIRTIO_BLK_F_CONFIG_WCE | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        }
        if self.disk.can_discard() {
            features |= 1 << VIRTIO_BLK_F_DISCARD;
        }
        features
    }

    fn config(&self) -> Vec<u8> {
        self.config_bytes().to_vec()
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if offset == WRITEBACK_OFFSET
            && self.can_choose_writeback
            && let [value] = data
        {
            self.is_writeback.store(*value != 0, Ordering::Relaxed);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        let has_flush = activation.has_feature(VIRTIO_BLK_F_FLUSH);
        let has_event_idx = activation.has_feature(VIRTIO_RING_F_EVENT_IDX);
        self.can_choose_writeback = activation.has_feature(VIRTIO_BLK_F_CONFIG_WCE);
        // A driver that cannot flush relies on each write (VIRTIO 1.2 §5.2.6.2).
        let is_writeback = has_flush || self.can_choose_writeback;
        self.is_writeback.store(is_writeback, Ordering::Relaxed);
        let Activation {
            ram,
            mut queues,
            interrupt,
            ..
        } = activation;
        let mut active = queues
            .pop()
            .filter(|queue| queue.index == 0)
            .ok_or(ActivateError::QueueMissing { index: 0 })?;
        active.queue.set_event_idx(has_event_idx);
        let engine = Engine::new(&self.name, Arc::clone(&self.disk), self.engine, QUEUE_SIZE)
            .map_err(ActivateError::Backend)?;
        self.metrics.engine.set(engine.kind());
        let backend = Backend {
            disk: Arc::clone(&self.disk),
            serial: self.serial.0,
            is_writeback: Arc::clone(&self.is_writeback),
            metrics: Arc::clone(&self.metrics),
            interrupt,
            watch: self.watch.clone(),
        };
        let server = BlkServer {
            handler: Handler::new(backend, active.index, active.queue, ram, engine),
            doorbell: active.doorbell,
        };
        self.worker = Some(serve::spawn(self.name.clone(), server)?);
        Ok(())
    }

    fn reset(&mut self) {
        // Joins the worker, whose engine waits for what is under way before it is gone.
        if let Some(worker) = self.worker.take() {
            worker.stop();
        }
        self.can_choose_writeback = false;
        self.is_writeback.store(true, Ordering::Relaxed);
    }
}
