//! The common configuration structure (VIRTIO 1.2 §4.1.4.3) and the device's life: feature
//! negotiation, queue setup, activation and reset.

use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_F_VERSION_1,
};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::super::device::{ActivateError, Activation, ActiveQueue, VirtioDevice};
use super::super::interrupt::VirtioInterrupt;
use crate::GuestRam;
use crate::metrics::Counter;

/// Bytes of the structure.
pub const COMMON_BYTES: u64 = 0x38;

const STATUS_DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK.to_le_bytes()[0];
const STATUS_FAILED: u8 = VIRTIO_CONFIG_S_FAILED.to_le_bytes()[0];
const STATUS_FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK.to_le_bytes()[0];

/// Why a driver's queue setup is refused at `DRIVER_OK`.
#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error(
        "queue {index}: rings of {size} descriptors at {desc:#x}, {avail:#x}, {used:#x} are not all RAM, or overlap its end"
    )]
    BadRings {
        index: u16,
        size: u16,
        desc: u64,
        avail: u64,
        used: u64,
    },
    #[error("driver set DRIVER_OK without FEATURES_OK")]
    NoFeatures,
    #[error("device did not start")]
    Activate(#[from] ActivateError),
    #[error("cannot duplicate the doorbell of queue {index}")]
    Doorbell { index: u16, source: std::io::Error },
}

/// A device with the registers in front of it.
pub struct CommonConfig {
    device: Box<dyn VirtioDevice>,
    interrupt: Arc<VirtioInterrupt>,
    ram: GuestRam,
    queues: Vec<Queue>,
    doorbells: Vec<EventFd>,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    status: u8,
    is_active: bool,
    /// Times that the driver set `FAILED`.
    times_given_up: Counter,
}

impl std::fmt::Debug for CommonConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommonConfig")
            .field("status", &self.status)
            .field("driver_features", &self.driver_features)
            .field("is_active", &self.is_active)
            .finish_non_exhaustive()
    }
}

impl CommonConfig {
    /// Registers of `device`, whose queue `i` is rung by `doorbells[i]`.
    ///
    /// # Errors
    /// A queue size that is no power of two up to 32,768.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        interrupt: Arc<VirtioInterrupt>,
        ram: GuestRam,
        doorbells: Vec<EventFd>,
    ) -> Result<Self, virtio_queue::Error> {
        let queues = device
            .queue_max_sizes()
            .into_iter()
            .map(Queue::new)
            .collect::<Result<_, _>>()?;
        Ok(CommonConfig {
            device,
            interrupt,
            ram,
            queues,
            doorbells,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            status: 0,
            is_active: false,
            times_given_up: Counter::default(),
        })
    }

    /// The device behind the registers.
    pub fn device(&self) -> &dyn VirtioDevice {
        self.device.as_ref()
    }

    /// The device behind the registers.
    pub fn device_mut(&mut self) -> &mut dyn VirtioDevice {
        self.device.as_mut()
    }

    /// Reads the register at `offset`. Registers are read whole; anything else answers zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let value = self.register(offset, data.len());
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    fn register(&self, offset: u64, len: usize) -> u64 {
        let queue = self.queues.get(usize::from(self.queue_select));
        let low = |address: u64| address & 0xffff_ffff;
        let high = |address: u64| address >> 32;
        match (offset, len) {
            (0x00, 4) => self.device_feature_select.into(),
            (0x04, 4) => feature_word(self.offered(), self.device_feature_select),
            (0x08, 4) => self.driver_feature_select.into(),
            (0x0c, 4) => feature_word(self.driver_features, self.driver_feature_select),
            (0x10, 2) => self.interrupt.config_vector().into(),
            (0x12, 2) => self.queues.len() as u64,
            (0x14, 1) => self.status().into(),
            (0x15, 1) => self.interrupt.config_generation().into(),
            (0x16, 2) => self.queue_select.into(),
            (0x18, 2) => queue.map_or(0, |queue| queue.size().into()),
            (0x1a, 2) => self.interrupt.queue_vector(self.queue_select).into(),
            (0x1c, 2) => queue.is_some_and(QueueT::ready).into(),
            (0x1e, 2) => self.queue_select.into(), // notification offset: one doorbell per queue
            (0x20, 4) => queue.map_or(0, |queue| low(queue.desc_table())),
            (0x24, 4) => queue.map_or(0, |queue| high(queue.desc_table())),
            (0x28, 4) => queue.map_or(0, |queue| low(queue.avail_ring())),
            (0x2c, 4) => queue.map_or(0, |queue| high(queue.avail_ring())),
            (0x30, 4) => queue.map_or(0, |queue| low(queue.used_ring())),
            (0x34, 4) => queue.map_or(0, |queue| high(queue.used_ring())),
            _ => 0,
        }
    }

    /// The driver wrote `data` at `offset`. A 64-bit write counts as two 32-bit ones.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        match *data {
            [a] => self.set_register(offset, 1, u32::from(a)),
            [a, b] => self.set_register(offset, 2, u32::from(u16::from_le_bytes([a, b]))),
            [a, b, c, d] => self.set_register(offset, 4, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => {
                self.set_register(offset, 4, u32::from_le_bytes([a, b, c, d]));
                self.set_register(offset + 4, 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
    }

    fn set_register(&mut self, offset: u64, len: usize, value: u32) {
        let low16 = (value & 0xffff).try_into().unwrap_or(0u16);
        match (offset, len) {
            (0x00, 4) => self.device_feature_select = value,
            (0x08, 4) => self.driver_feature_select = value,
            (0x0c, 4) => self.set_driver_features(value),
            (0x10, 2) => drop(self.interrupt.set_config_vector(low16)),
            (0x14, 1) => self.set_status(value.to_le_bytes()[0]),
            (0x16, 2) => self.queue_select = low16,
            (0x1a, 2) => drop(self.interrupt.set_queue_vector(self.queue_select, low16)),
            (0x18 | 0x1c | 0x20..=0x34, _) => self.set_queue_register(offset, len, value),
            _ => {}
        }
    }

    /// Queue registers are frozen once the queue is enabled (§4.1.4.3.2).
    fn set_queue_register(&mut self, offset: u64, len: usize, value: u32) {
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return;
        };
        if queue.ready() {
            return;
        }
        match (offset, len) {
            (0x18, 2) => queue.set_size((value & 0xffff).try_into().unwrap_or(0)),
            (0x1c, 2) => queue.set_ready(value == 1),
            (0x20, 4) => queue.set_desc_table_address(Some(value), None),
            (0x24, 4) => queue.set_desc_table_address(None, Some(value)),
            (0x28, 4) => queue.set_avail_ring_address(Some(value), None),
            (0x2c, 4) => queue.set_avail_ring_address(None, Some(value)),
            (0x30, 4) => queue.set_used_ring_address(Some(value), None),
            (0x34, 4) => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn offered(&self) -> u64 {
        self.device.device_features() | 1 << VIRTIO_F_VERSION_1
    }

    fn set_driver_features(&mut self, value: u32) {
        if self.status & STATUS_FEATURES_OK != 0 {
            return;
        }
        let shift = match self.driver_feature_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        let mask = 0xffff_ffff << shift;
        self.driver_features = self.driver_features & !mask | u64::from(value) << shift;
    }

    fn status(&self) -> u8 {
        self.status | self.interrupt.device_status()
    }

    fn set_status(&mut self, status: u8) {
        if status == 0 {
            self.reset();
            return;
        }
        let gained = status & !self.status;
        self.status = status;
        if gained & STATUS_FEATURES_OK != 0 && !self.accepts_features() {
            self.status &= !STATUS_FEATURES_OK; // the driver reads it back (§3.1.1 step 6)
        }
        if gained & STATUS_FAILED != 0 && self.times_given_up.count_sparsely() {
            tracing::warn!("{}: its driver gave up", self.interrupt.name());
        }
        // A device that needs a reset stays off until it gets one, whatever else the driver writes.
        let is_broken = self.interrupt.device_status() != 0;
        if gained & STATUS_DRIVER_OK != 0 && !self.is_active && !is_broken {
            match self.activate() {
                Ok(()) => self.is_active = true,
                Err(error) => self.interrupt.needs_reset(&error),
            }
        }
    }

    /// Only what we offered, and never without `VIRTIO_F_VERSION_1`.
    fn accepts_features(&self) -> bool {
        self.driver_features & !self.offered() == 0
            && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn activate(&mut self) -> Result<(), SetupError> {
        if self.status & STATUS_FEATURES_OK == 0 {
            return Err(SetupError::NoFeatures);
        }
        let has_event_idx =
            self.driver_features & 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        for ((index, queue), doorbell) in (0u16..).zip(&mut self.queues).zip(&self.doorbells) {
            if !queue.ready() {
                continue;
            }
            if !queue.is_valid(&self.ram) {
                return Err(SetupError::BadRings {
                    index,
                    size: queue.size(),
                    desc: queue.desc_table(),
                    avail: queue.avail_ring(),
                    used: queue.used_ring(),
                });
            }
            queue.set_event_idx(has_event_idx);
            let state = queue.state();
            queues.push(ActiveQueue {
                index,
                queue: Queue::try_from(state).map_err(|_| SetupError::BadRings {
                    index,
                    size: state.size,
                    desc: state.desc_table,
                    avail: state.avail_ring,
                    used: state.used_ring,
                })?,
                doorbell: doorbell
                    .try_clone()
                    .map_err(|source| SetupError::Doorbell { index, source })?,
            });
        }
        self.device.activate(Activation {
            ram: self.ram.clone(),
            features: self.driver_features,
            queues,
            interrupt: Arc::clone(&self.interrupt),
        })?;
        Ok(())
    }

    /// Back to the state after power-on (§2.4).
    fn reset(&mut self) {
        self.device.reset();
        self.is_active = false;
        self.interrupt.reset();
        for queue in &mut self.queues {
            queue.reset();
        }
        for doorbell in &self.doorbells {
            // Empty already, most of the time.
            let _ = doorbell.read();
        }
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.status = 0;
    }

    /// Rings the doorbell of queue `queue_idx` by hand, when no ioeventfd caught the write.
    pub fn ring(&self, queue_idx: u64) {
        let doorbell = usize::try_from(queue_idx)
            .ok()
            .and_then(|queue_idx| self.doorbells.get(queue_idx));
        if let Some(doorbell) = doorbell {
            // Fails only when the counter is full, and then it is readable.
            let _ = doorbell.write(1);
        }
    }
}

impl Drop for CommonConfig {
    fn drop(&mut self) {
        self.device.reset();
    }
}

fn feature_word(features: u64, select: u32) -> u64 {
    match select {
        0 => features & 0xffff_ffff,
        1 => features >> 32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
