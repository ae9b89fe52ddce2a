//! Queue and configuration interrupts of one virtio device, and its broken state.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;

use crate::error::chain;
use crate::interrupt::MsiVector;
use crate::metrics::Counter;
use crate::pci::msix::VectorOwner;

/// The vector number that means "none" (VIRTIO 1.2 §4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// How a device reaches its driver: MSI-X vectors chosen by the driver, and the status bits that
/// the device itself may set. Shared by the transport and the device's worker.
pub struct VirtioInterrupt {
    name: String,
    vectors: Vec<Box<dyn MsiVector>>,
    queue_vectors: Vec<AtomicU16>,
    config_vector: AtomicU16,
    device_status: AtomicU8,
    config_generation: AtomicU8,
    /// Interrupts that found no vector to go to.
    pub lost_interrupts: Counter,
    /// Times the device was stopped because its driver broke the rules.
    pub faults: Counter,
}

impl fmt::Debug for VirtioInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioInterrupt")
            .field("name", &self.name)
            .field("queue_vectors", &self.queue_vectors)
            .field("device_status", &self.device_status)
            .finish_non_exhaustive()
    }
}

impl VirtioInterrupt {
    /// Interrupts for a device called `name` in the log, with `num_queues` queues; no queue has a
    /// vector yet.
    pub fn new(name: String, vectors: Vec<Box<dyn MsiVector>>, num_queues: usize) -> Self {
        VirtioInterrupt {
            name,
            vectors,
            queue_vectors: (0..num_queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            config_vector: AtomicU16::new(NO_VECTOR),
            device_status: AtomicU8::new(0),
            config_generation: AtomicU8::new(0),
            lost_interrupts: Counter::default(),
            faults: Counter::default(),
        }
    }

    /// The device's name in the log, such as `net0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The MSI-X vectors behind the table, in its order.
    pub fn vectors(&self) -> &[Box<dyn MsiVector>] {
        &self.vectors
    }

    /// Changes with every configuration change, so that a driver can tell a torn read
    /// (VIRTIO 1.2 §2.5).
    pub fn config_generation(&self) -> u8 {
        self.config_generation.load(Ordering::Acquire)
    }

    /// Interrupts the guest: queue `queue_idx` has new used buffers. Any thread may call it.
    pub fn signal_queue(&self, queue_idx: u16) {
        if let Some(vector) = self.queue_vectors.get(usize::from(queue_idx)) {
            self.raise(vector.load(Ordering::Acquire));
        }
    }

    /// Interrupts the guest: the device's configuration or status changed.
    pub fn signal_config(&self) {
        self.config_generation.fetch_add(1, Ordering::AcqRel);
        self.raise(self.config_vector.load(Ordering::Acquire));
    }

    /// Cuts the device off after its driver broke the rules: sets `DEVICE_NEEDS_RESET`
    /// (VIRTIO 1.2 §2.1.2), tells the guest, counts, and logs sparsely. The caller stops serving.
    pub fn needs_reset(&self, cause: &dyn std::error::Error) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the status is one byte, the bit is 64"
        )]
        let bit = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
        self.device_status.fetch_or(bit, Ordering::AcqRel);
        if self.faults.count_sparsely() {
            tracing::warn!(
                "{}: stopped until its driver resets it: {}",
                self.name,
                chain(cause)
            );
        }
        self.signal_config();
    }

    /// Status bits that the device set by itself.
    pub fn device_status(&self) -> u8 {
        self.device_status.load(Ordering::Acquire)
    }

    /// Back to the state after [`VirtioInterrupt::new`], but for the counters. Called by the
    /// transport while the device is stopped.
    pub fn reset(&self) {
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        self.device_status.store(0, Ordering::Release);
    }

    /// Chooses the vector of queue `queue_idx`; answers what it is now: `vector`, or [`NO_VECTOR`]
    /// if there is no such vector.
    pub fn set_queue_vector(&self, queue_idx: u16, vector: u16) -> u16 {
        match self.queue_vectors.get(usize::from(queue_idx)) {
            Some(slot) => self.set(slot, vector),
            None => NO_VECTOR,
        }
    }

    /// The vector of queue `queue_idx`.
    pub fn queue_vector(&self, queue_idx: u16) -> u16 {
        self.queue_vectors
            .get(usize::from(queue_idx))
            .map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// Chooses the configuration vector; answers as [`VirtioInterrupt::set_queue_vector`] does.
    pub fn set_config_vector(&self, vector: u16) -> u16 {
        self.set(&self.config_vector, vector)
    }

    /// The configuration vector.
    pub fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    fn set(&self, slot: &AtomicU16, vector: u16) -> u16 {
        let known = if usize::from(vector) < self.vectors.len() {
            vector
        } else {
            NO_VECTOR
        };
        slot.store(known, Ordering::Release);
        known
    }

    fn raise(&self, vector: u16) {
        match self.vectors.get(usize::from(vector)) {
            // An eventfd write fails only when 2^64 - 2 interrupts are pending already.
            Some(vector) => drop(vector.irqfd().write(1)),
            None => self.lost_interrupts.add(1),
        }
    }
}

impl VectorOwner for VirtioInterrupt {
    fn vectors(&self) -> &[Box<dyn MsiVector>] {
        &self.vectors
    }
}
