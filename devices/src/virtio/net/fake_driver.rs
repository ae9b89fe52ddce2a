//! The driver's side for tests and fuzz targets: rings in guest memory.

use std::num::Wrapping;
use std::sync::Arc;

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::metrics::NetMetrics;
use super::queue::NetQueue;
use crate::GuestRam;
use crate::virtio::{ActiveQueue, VirtioInterrupt};

/// Descriptors of each queue.
pub(super) const QUEUE_SIZE: u16 = 16;
/// Guest memory that each queue takes.
pub(super) const QUEUE_BYTES: u64 = 0x400;
const AVAIL_OFFSET: u64 = 0x100;
const USED_OFFSET: u64 = 0x200;

/// Guest memory of 256 KiB, in two regions that touch.
pub(super) fn ram() -> GuestRam {
    let regions = [
        (GuestAddress(0), 0x2_0000),
        (GuestAddress(0x2_0000), 0x2_0000),
    ];
    GuestRam::from_ranges(&regions).expect("the host has 256 KiB")
}

/// Queue `index` of a device as its driver sees it; its rings lie at `index * QUEUE_BYTES`.
#[derive(Debug, Clone)]
pub(super) struct FakeQueue {
    ram: GuestRam,
    pub(super) index: u16,
    base: u64,
    next_desc: Wrapping<u16>,
}

impl FakeQueue {
    pub(super) fn new(ram: &GuestRam, index: u16) -> Self {
        FakeQueue {
            ram: ram.clone(),
            index,
            base: u64::from(index) * QUEUE_BYTES,
            next_desc: Wrapping(0),
        }
    }

    /// The device's side.
    pub(super) fn activate(&self) -> ActiveQueue {
        let mut queue = Queue::new(QUEUE_SIZE).expect("the size is a power of two");
        let low = |gpa: u64| u32::try_from(gpa).ok();
        queue.set_desc_table_address(low(self.base), Some(0));
        queue.set_avail_ring_address(low(self.base + AVAIL_OFFSET), Some(0));
        queue.set_used_ring_address(low(self.base + USED_OFFSET), Some(0));
        queue.set_ready(true);
        ActiveQueue {
            index: self.index,
            queue,
            doorbell: EventFd::new(EFD_NONBLOCK).expect("the host has file descriptors"),
        }
    }

    /// The device's side for handlers that are tested without a device; control queue 2.
    pub(super) fn net_queue(
        &self,
        interrupt: &Arc<VirtioInterrupt>,
        metrics: &Arc<NetMetrics>,
        has_event_idx: bool,
    ) -> NetQueue {
        NetQueue::new(
            self.activate(),
            has_event_idx,
            2,
            self.ram.clone(),
            Arc::clone(interrupt),
            Arc::clone(metrics),
        )
    }
}

impl FakeQueue {
    /// Writes descriptor `desc_idx`.
    pub(super) fn write_desc(&self, desc_idx: u16, gpa: u64, len: u32, flags: u32, next: u16) {
        let gpa_of_desc = self.base + 16 * u64::from(desc_idx);
        let words = [
            gpa,
            u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48,
        ];
        for (offset, word) in [0, 8].into_iter().zip(words) {
            self.write(gpa_of_desc + offset, word);
        }
    }

    /// Puts the chain at descriptor `head` on the available ring.
    pub(super) fn offer_head(&self, head: u16) {
        let idx: u16 = self.read(self.base + AVAIL_OFFSET + 2);
        let slot = u64::from(idx % QUEUE_SIZE);
        self.write(self.base + AVAIL_OFFSET + 4 + 2 * slot, head);
        self.set_avail_idx(idx.wrapping_add(1));
    }

    /// Sets the available ring's index, whatever it holds.
    pub(super) fn set_avail_idx(&self, idx: u16) {
        self.write(self.base + AVAIL_OFFSET + 2, idx);
    }

    /// Offers a chain of buffers (address, length, device may write); answers its head.
    pub(super) fn offer(&mut self, buffers: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_desc.0 % QUEUE_SIZE;
        for (position, &(gpa, len, is_writable)) in buffers.iter().enumerate() {
            let desc_idx = self.next_desc.0 % QUEUE_SIZE;
            self.next_desc += 1;
            let mut flags = if is_writable { VRING_DESC_F_WRITE } else { 0 };
            if position + 1 < buffers.len() {
                flags |= VRING_DESC_F_NEXT;
            }
            self.write_desc(desc_idx, gpa, len, flags, self.next_desc.0 % QUEUE_SIZE);
        }
        self.offer_head(head);
        head
    }

    /// Number of chains the device gave back.
    pub(super) fn used_idx(&self) -> u16 {
        self.read(self.base + USED_OFFSET + 2)
    }

    /// Head and length of the chain that the device gave back as number `used_idx`.
    pub(super) fn used(&self, used_idx: u16) -> (u32, u32) {
        let gpa = self.base + USED_OFFSET + 4 + 8 * u64::from(used_idx % QUEUE_SIZE);
        (self.read(gpa), self.read(gpa + 4))
    }

    /// With event index: after which chain the device wants a doorbell.
    #[cfg(test)]
    pub(super) fn avail_event(&self) -> u16 {
        self.read(self.base + USED_OFFSET + 4 + 8 * u64::from(QUEUE_SIZE))
    }

    /// With event index: asks for an interrupt once chain `used_idx` is used.
    #[cfg(test)]
    pub(super) fn set_used_event(&self, used_idx: u16) {
        self.write(
            self.base + AVAIL_OFFSET + 4 + 2 * u64::from(QUEUE_SIZE),
            used_idx,
        );
    }

    /// Without event index: asks for interrupts or for none.
    #[cfg(test)]
    pub(super) fn set_avail_flags(&self, flags: u16) {
        self.write(self.base + AVAIL_OFFSET, flags);
    }

    fn write<T: vm_memory::ByteValued>(&self, gpa: u64, value: T) {
        let result = self.ram.write_obj(value, GuestAddress(gpa));
        result.expect("the rings are in RAM");
    }

    fn read<T: vm_memory::ByteValued>(&self, gpa: u64) -> T {
        let result = self.ram.read_obj(GuestAddress(gpa));
        result.expect("the rings are in RAM")
    }
}
