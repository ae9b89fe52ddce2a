//! The split virtqueue as a transport: VIRTIO 1.2 §2.7, event indices negotiated.
//!
//! The device's end is what `devices/src/virtio/net/queue.rs` does: chains through the `virtio-queue`
//! crate, used elements written in place, one store of the used index per batch. The driver's end is
//! the best that a simple one can be: descriptors in ring order, so that there is no free list, one
//! store of the available index per batch.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use vbus::memory::GuestRam;
use vbus::ring::Slot;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::volatile_memory::Error as VolatileError;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, MmapRegion, VolatileMemory};

use super::BenchError;
use super::harness::{MAX_BATCH, NUM_SLOTS, NorthEnd, Sent, SouthEnd, Transport};

const DESCRIPTORS: u32 = 0;
const AVAILABLE: u32 = 0x4000;
const USED: u32 = 0x8000;
/// Offset of `used_event` in the available ring.
const USED_EVENT: u32 = 4 + 2 * NUM_SLOTS as u32;
/// Offset of `avail_event` in the used ring.
const AVAIL_EVENT: u32 = 4 + 8 * NUM_SLOTS as u32;

/// One split virtqueue.
#[derive(Debug)]
pub struct Virtqueue;

/// The driver's end. It polls for what comes back, so it never moves `used_event`.
#[derive(Debug)]
pub struct VirtqueueNorth {
    ram: Arc<MmapRegion<()>>,
    avail_idx: Wrapping<u16>,
    used_idx: Wrapping<u16>,
}

/// The device's end.
#[derive(Debug)]
pub struct VirtqueueSouth {
    ram: GuestRam,
    queue: Queue,
    /// Heads of the chains that were taken and not given back.
    heads: Vec<u16>,
    next_used: Wrapping<u16>,
    /// Interrupts that were due: one each time the index goes once round past `used_event`.
    num_due: u64,
}

impl Transport for Virtqueue {
    type North = VirtqueueNorth;
    type South = VirtqueueSouth;

    fn connect(ram: &GuestRam) -> Result<(VirtqueueNorth, VirtqueueSouth), BenchError> {
        let queue_error = |source| BenchError::Queue { source };
        let mut queue = Queue::new(NUM_SLOTS).map_err(queue_error)?;
        queue
            .try_set_desc_table_address(gpa(DESCRIPTORS))
            .map_err(queue_error)?;
        queue
            .try_set_avail_ring_address(gpa(AVAILABLE))
            .map_err(queue_error)?;
        queue
            .try_set_used_ring_address(gpa(USED))
            .map_err(queue_error)?;
        queue.set_event_idx(true);
        queue.set_ready(true);
        if !queue.is_valid(ram) {
            return Err(BenchError::QueuePlace);
        }
        let (region, _) = ram
            .to_region_addr(GuestAddress(0))
            .ok_or(BenchError::QueuePlace)?;
        let north = VirtqueueNorth {
            ram: region.get_mmap(),
            avail_idx: Wrapping(0),
            used_idx: Wrapping(0),
        };
        let south = VirtqueueSouth {
            ram: ram.clone(),
            queue,
            heads: Vec::with_capacity(MAX_BATCH),
            next_used: Wrapping(0),
            num_due: 0,
        };
        Ok((north, south))
    }
}

fn gpa(offset: u32) -> GuestAddress {
    GuestAddress(offset.into())
}

/// Whether a side that asked to be told at index `event` is due, now that the index went from `old`
/// to `new` (VIRTIO 1.2 §2.7.7.2).
fn is_due(event: u16, new: Wrapping<u16>, old: Wrapping<u16>) -> bool {
    new - Wrapping(event) - Wrapping(1) < new - old
}

impl VirtqueueNorth {
    #[inline]
    fn word(&self, offset: u32) -> Result<&AtomicU64, VolatileError> {
        self.ram.get_atomic_ref(offset as usize)
    }

    #[inline]
    fn half(&self, offset: u32) -> Result<&AtomicU16, VolatileError> {
        self.ram.get_atomic_ref(offset as usize)
    }

    #[inline]
    fn publish(&mut self, slots: &[Slot]) -> Result<bool, VolatileError> {
        let old = self.avail_idx;
        for slot in slots {
            let desc_idx = self.avail_idx.0 % NUM_SLOTS;
            let descriptor = DESCRIPTORS + 16 * u32::from(desc_idx);
            self.word(descriptor)?
                .store(slot.addr.to_le(), Ordering::Relaxed);
            // Length; no flags, no next one.
            self.word(descriptor + 8)?
                .store(u64::from(slot.len).to_le(), Ordering::Relaxed);
            self.half(AVAILABLE + 4 + 2 * u32::from(desc_idx))?
                .store(desc_idx.to_le(), Ordering::Relaxed);
            self.avail_idx += 1;
        }
        self.half(AVAILABLE + 2)?
            .store(self.avail_idx.0.to_le(), Ordering::Release);
        fence(Ordering::SeqCst);
        let event = u16::from_le(self.half(USED + AVAIL_EVENT)?.load(Ordering::Relaxed));
        Ok(is_due(event, self.avail_idx, old))
    }

    #[inline]
    fn collect(&mut self) -> Result<Option<usize>, VolatileError> {
        let used_idx = u16::from_le(self.half(USED + 2)?.load(Ordering::Acquire));
        let mut count = 0;
        while self.used_idx.0 != used_idx {
            let desc_idx = self.used_idx.0 % NUM_SLOTS;
            let id = self.used_id(USED + 4 + 8 * u32::from(desc_idx))?;
            if id != u32::from(desc_idx) {
                return Ok(None);
            }
            self.used_idx += 1;
            count += 1;
        }
        Ok(Some(count))
    }

    /// The id in the used element at `offset`.
    #[inline]
    fn used_id(&self, offset: u32) -> Result<u32, VolatileError> {
        let id: &AtomicU32 = self.ram.get_atomic_ref(offset as usize)?;
        Ok(u32::from_le(id.load(Ordering::Relaxed)))
    }
}

impl NorthEnd for VirtqueueNorth {
    #[inline]
    fn send(&mut self, slots: &[Slot]) -> Result<Sent, BenchError> {
        let outstanding = usize::from((self.avail_idx - self.used_idx).0);
        if outstanding + slots.len() > usize::from(NUM_SLOTS) {
            return Ok(Sent::default());
        }
        let is_wake_up_due = self
            .publish(slots)
            .map_err(|source| BenchError::Volatile { source })?;
        Ok(Sent {
            count: slots.len(),
            is_wake_up_due,
        })
    }

    #[inline]
    fn reclaim(&mut self) -> Result<usize, BenchError> {
        self.collect()
            .map_err(|source| BenchError::Volatile { source })?
            .ok_or(BenchError::Lost)
    }
}

impl VirtqueueSouth {
    /// As `NetQueue::publish`.
    #[inline]
    fn publish(&mut self) -> Result<(), BenchError> {
        let copy = |source| BenchError::Copy { source };
        let old = Wrapping(self.queue.next_used());
        self.ram
            .store(self.next_used.0.to_le(), gpa(USED + 2), Ordering::Release)
            .map_err(copy)?;
        self.queue.set_next_used(self.next_used.0);
        fence(Ordering::SeqCst);
        let event: u16 = self
            .ram
            .load(gpa(AVAILABLE + USED_EVENT), Ordering::Relaxed)
            .map_err(copy)?;
        self.num_due += u64::from(is_due(u16::from_le(event), self.next_used, old));
        Ok(())
    }
}

impl SouthEnd for VirtqueueSouth {
    #[inline]
    fn take(&mut self, slots: &mut [Slot]) -> Result<usize, BenchError> {
        let mut available = self
            .queue
            .iter(&self.ram)
            .map_err(|source| BenchError::Queue { source })?;
        self.heads.clear();
        // Chains of one descriptor each, as for frames without a header of their own.
        for slot in slots {
            let Some(chain) = available.next() else {
                break;
            };
            self.heads.push(chain.head_index());
            for descriptor in chain {
                slot.addr = descriptor.addr().0;
                slot.len = descriptor.len();
            }
        }
        Ok(self.heads.len())
    }

    #[inline]
    fn give_back(&mut self) -> Result<(), BenchError> {
        for &head in &self.heads {
            let element = USED + 4 + 8 * u32::from(self.next_used.0 % NUM_SLOTS);
            // `struct virtq_used_elem`: id and length, little-endian 32 bits each.
            self.ram
                .write_obj(u64::from(head).to_le(), gpa(element))
                .map_err(|source| BenchError::Copy { source })?;
            self.next_used += 1;
        }
        self.publish()
    }

    fn stay_awake(&mut self) -> Result<(), BenchError> {
        self.queue
            .disable_notification(&self.ram)
            .map_err(|source| BenchError::Queue { source })
    }

    fn fall_asleep(&mut self) -> Result<bool, BenchError> {
        self.queue
            .enable_notification(&self.ram)
            .map(|has_more| !has_more)
            .map_err(|source| BenchError::Queue { source })
    }
}
