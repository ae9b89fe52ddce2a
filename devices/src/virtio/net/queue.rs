//! One virtqueue as the data path sees it: chains out, used buffers in, interrupts when wanted.
//!
//! Taking chains off the available ring is `virtio-queue`'s work. The used ring is written here,
//! because a frame spread over several buffers must become visible in one step (VIRTIO 1.2
//! §5.1.6.4.1) and `Queue::add_used` shows each buffer at once.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use vmm_sys_util::eventfd::EventFd;

use super::metrics::NetMetrics;
use crate::GuestRam;
use crate::iovec::{IoVecError, MAX_SEGMENTS};
use crate::metrics::QueueMetrics;
use crate::virtio::{ActiveQueue, VirtioInterrupt};

/// Why a queue cannot be served any more: its driver broke the rules.
#[derive(Debug, thiserror::Error)]
pub(super) enum QueueFault {
    #[error("queue {queue_idx}: cannot take a chain off the available ring")]
    Available {
        queue_idx: u16,
        source: virtio_queue::Error,
    },
    #[error("queue {queue_idx}: the chain at descriptor {head} breaks off or is a loop")]
    BrokenChain { queue_idx: u16, head: u16 },
    #[error("queue {queue_idx}: the chain at descriptor {head} has over {MAX_SEGMENTS} parts")]
    LongChain { queue_idx: u16, head: u16 },
    #[error("queue {queue_idx}: a descriptor of the chain at {head} has the wrong direction")]
    Direction { queue_idx: u16, head: u16 },
    #[error("queue {queue_idx}: the chain at descriptor {head} has {len} bytes, want {want}")]
    ShortChain {
        queue_idx: u16,
        head: u16,
        len: u32,
        want: u32,
    },
    #[error("queue {queue_idx}: the available index went back")]
    IndexWentBack { queue_idx: u16 },
    #[error("queue {queue_idx}: descriptor {head} is beyond the table")]
    BadHead { queue_idx: u16, head: u16 },
    #[error("a buffer is not usable")]
    Buffer(#[from] IoVecError),
    #[error("cannot copy from or to a buffer")]
    Copy(#[source] GuestMemoryError),
    #[error("queue {queue_idx}: a ring is not all RAM")]
    Ring {
        queue_idx: u16,
        source: GuestMemoryError,
    },
}

/// Most descriptors that a chain of a usual driver has: Linux has 17 fragments of a packet, and two more.
/// A longer one makes lists longer once.
pub(super) const USUAL_SEGMENTS: usize = 32;

/// One descriptor of a chain, copied and checked for nothing but its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) gpa: GuestAddress,
    pub(super) len: u32,
    pub(super) is_writable: bool,
}

/// One chain taken off the available ring; its segments are in the caller's vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) head: u16,
    pub(super) len_bytes: u32,
}

/// Which way the buffers of a chain have to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// The device reads all of them.
    DeviceReads,
    /// The device writes all of them.
    DeviceWrites,
    /// Readable ones, then writable ones.
    Command,
}

/// One virtqueue, owned by the worker that serves it.
#[derive(Debug)]
pub(super) struct NetQueue {
    index: u16,
    queue: Queue,
    ram: GuestRam,
    doorbell: EventFd,
    interrupt: Arc<VirtioInterrupt>,
    metrics: Arc<NetMetrics>,
    control_idx: u16,
    /// Where the next used element goes; runs ahead of the index that the driver sees.
    next_used: Wrapping<u16>,
    /// The index that the driver sees.
    published: Wrapping<u16>,
}

impl NetQueue {
    /// Takes over a queue. `control_idx` is the index of the device's control queue.
    pub(super) fn new(
        active: ActiveQueue,
        has_event_idx: bool,
        control_idx: u16,
        ram: GuestRam,
        interrupt: Arc<VirtioInterrupt>,
        metrics: Arc<NetMetrics>,
    ) -> Self {
        let mut queue = active.queue;
        queue.set_event_idx(has_event_idx);
        let next_used = Wrapping(queue.next_used());
        NetQueue {
            index: active.index,
            queue,
            ram,
            doorbell: active.doorbell,
            interrupt,
            metrics,
            control_idx,
            next_used,
            published: next_used,
        }
    }

    pub(super) fn ram(&self) -> &GuestRam {
        &self.ram
    }

    pub(super) fn index(&self) -> u16 {
        self.index
    }

    /// Number of descriptors, which is the most chains the driver can have handed over.
    pub(super) fn size(&self) -> u16 {
        self.queue.size()
    }

    pub(super) fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }

    pub(super) fn metrics(&self) -> &NetMetrics {
        &self.metrics
    }

    /// Clears the doorbell and counts how often it rang.
    pub(super) fn clear_doorbell(&self) {
        // An error means that it did not ring.
        self.queue_metrics()
            .doorbells
            .add(self.doorbell.read().unwrap_or(0));
    }

    /// Takes one chain off the available ring and appends its descriptors to `segments`.
    pub(super) fn pop(
        &mut self,
        direction: Direction,
        segments: &mut Vec<Segment>,
    ) -> Result<Option<Chain>, QueueFault> {
        let queue_idx = self.index;
        let mut available = self
            .queue
            .iter(&self.ram)
            .map_err(|source| QueueFault::Available { queue_idx, source })?;
        let Some(descriptors) = available.next() else {
            return Ok(None);
        };
        let head = descriptors.head_index();
        let first_idx = segments.len();
        let mut len_bytes = 0_u32;
        let mut has_writable = false;
        let mut is_complete = false;
        for descriptor in descriptors {
            if segments.len() - first_idx == MAX_SEGMENTS {
                return Err(QueueFault::LongChain { queue_idx, head });
            }
            let is_writable = descriptor.is_write_only();
            let is_allowed = match direction {
                Direction::DeviceReads => !is_writable,
                Direction::DeviceWrites => is_writable,
                Direction::Command => is_writable || !has_writable,
            };
            if !is_allowed {
                return Err(QueueFault::Direction { queue_idx, head });
            }
            has_writable |= is_writable;
            // The iterator ends before the sum leaves u32.
            len_bytes = len_bytes.saturating_add(descriptor.len());
            is_complete = !descriptor.has_next();
            segments.push(Segment {
                gpa: descriptor.addr(),
                len: descriptor.len(),
                is_writable,
            });
        }
        if is_complete {
            Ok(Some(Chain { head, len_bytes }))
        } else {
            Err(QueueFault::BrokenChain { queue_idx, head })
        }
    }

    /// Puts the chain that [`NetQueue::pop`] gave last back.
    pub(super) fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives the chain at `head` back, of which the device wrote `len_bytes`; the driver sees it
    /// after [`NetQueue::publish`].
    pub(super) fn put_used(&mut self, head: u16, len_bytes: u32) -> Result<(), QueueFault> {
        let queue_idx = self.index;
        if head >= self.queue.size() {
            return Err(QueueFault::BadHead { queue_idx, head });
        }
        let slot = u64::from(self.next_used.0 % self.queue.size());
        // The ring was checked to be in RAM, so the sum does not wrap.
        let gpa = GuestAddress(self.queue.used_ring().wrapping_add(4 + 8 * slot));
        // `struct virtq_used_elem`: id and length, little-endian 32 bits each.
        let element = u64::from(head) | u64::from(len_bytes) << 32;
        self.ram
            .write_obj(element.to_le(), gpa)
            .map_err(|source| QueueFault::Ring { queue_idx, source })?;
        self.next_used += 1;
        Ok(())
    }

    /// Shows the driver all used chains so far, and interrupts it if it asked for that.
    pub(super) fn publish(&mut self) -> Result<(), QueueFault> {
        if self.next_used == self.published {
            return Ok(());
        }
        let old = self.published;
        // Release: the elements that `put_used` wrote are visible before the index; pairs with the
        // driver's read barrier after it loads the index (Linux `virtqueue_get_buf_ctx_split`).
        let idx_gpa = GuestAddress(self.queue.used_ring().wrapping_add(2));
        self.ram
            .store(self.next_used.0.to_le(), idx_gpa, Ordering::Release)
            .map_err(|source| self.ring_fault(source))?;
        self.published = self.next_used;
        self.queue.set_next_used(self.next_used.0);
        if self.wants_interrupt(old)? {
            self.queue_metrics().interrupts.add(1);
            self.interrupt.signal_queue(self.index);
        }
        Ok(())
    }

    /// Asks the driver not to ring while the device looks at the ring anyway.
    pub(super) fn disable_doorbell(&mut self) -> Result<(), QueueFault> {
        let queue_idx = self.index;
        self.queue
            .disable_notification(&self.ram)
            .map_err(|source| QueueFault::Available { queue_idx, source })
    }

    /// Asks the driver to ring for the next chain; true if one came in the meantime.
    pub(super) fn enable_doorbell(&mut self) -> Result<bool, QueueFault> {
        let queue_idx = self.index;
        self.queue
            .enable_notification(&self.ram)
            .map_err(|source| QueueFault::Available { queue_idx, source })
    }

    /// The driver announced chains that were not there a moment later.
    pub(super) fn index_fault(&self) -> QueueFault {
        QueueFault::IndexWentBack {
            queue_idx: self.index,
        }
    }

    /// Whether the driver wants to know of the used chains since index `old` (VIRTIO 1.2 §2.7.7.2).
    fn wants_interrupt(&self, old: Wrapping<u16>) -> Result<bool, QueueFault> {
        // The index is visible before we look at what the driver asked for; pairs with the barrier
        // between the driver's request and its last look at the index (`virtqueue_enable_cb`).
        fence(Ordering::SeqCst);
        let avail_ring = self.queue.avail_ring();
        let load = |offset: u64| {
            self.ram
                .load(
                    GuestAddress(avail_ring.wrapping_add(offset)),
                    Ordering::Relaxed,
                )
                .map(u16::from_le)
                .map_err(|source| self.ring_fault(source))
        };
        if self.queue.event_idx_enabled() {
            let used_event = Wrapping(load(4 + 2 * u64::from(self.queue.size()))?);
            Ok(self.published - used_event - Wrapping(1) < self.published - old)
        } else {
            Ok(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0)
        }
    }

    fn queue_metrics(&self) -> &QueueMetrics {
        self.metrics.queue(self.index, self.control_idx)
    }

    fn ring_fault(&self, source: GuestMemoryError) -> QueueFault {
        QueueFault::Ring {
            queue_idx: self.index,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake_driver::{FakeQueue, QUEUE_SIZE, ram};
    use super::*;
    use crate::test_utils::fake_interrupt;
    use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT};

    struct Setup {
        driver: FakeQueue,
        queue: NetQueue,
        interrupt: Arc<VirtioInterrupt>,
    }

    fn setup(has_event_idx: bool) -> Setup {
        let driver = FakeQueue::new(&ram(), 0);
        let interrupt = fake_interrupt(3);
        let metrics = Arc::new(NetMetrics::new(1));
        let queue = driver.net_queue(&interrupt, &metrics, has_event_idx);
        Setup {
            driver,
            queue,
            interrupt,
        }
    }

    fn pop(queue: &mut NetQueue) -> Result<Option<Chain>, QueueFault> {
        queue.pop(Direction::DeviceReads, &mut Vec::new())
    }

    fn num_interrupts(interrupt: &VirtioInterrupt) -> u64 {
        interrupt.vectors()[1].irqfd().read().unwrap_or(0)
    }

    #[test]
    fn pop_gives_chains_with_their_length() {
        let mut s = setup(false);
        s.driver.offer(&[(0x1000, 12, false), (0x2000, 100, false)]);
        let mut segments = Vec::new();

        let chain = s.queue.pop(Direction::DeviceReads, &mut segments);

        let want = Chain {
            head: 0,
            len_bytes: 112,
        };
        assert_eq!(chain.unwrap(), Some(want));
        assert_eq!(segments[1].gpa, GuestAddress(0x2000));
        assert!(pop(&mut s.queue).unwrap().is_none());
    }

    #[test]
    fn pop_refuses_an_index_that_jumps() {
        let mut s = setup(false);
        s.driver.set_avail_idx(QUEUE_SIZE + 1);

        let fault = pop(&mut s.queue).unwrap_err();

        assert!(matches!(fault, QueueFault::Available { .. }), "{fault}");
    }

    #[test]
    fn pop_refuses_a_head_beyond_the_table() {
        let mut s = setup(false);
        s.driver.offer_head(QUEUE_SIZE);

        let fault = pop(&mut s.queue).unwrap_err();

        assert!(
            matches!(fault, QueueFault::BrokenChain { head: 16, .. }),
            "{fault}"
        );
    }

    #[test]
    fn pop_refuses_a_loop() {
        let mut s = setup(false);
        s.driver.write_desc(0, 0x1000, 4, VRING_DESC_F_NEXT, 1);
        s.driver.write_desc(1, 0x1000, 4, VRING_DESC_F_NEXT, 0);
        s.driver.offer_head(0);

        let fault = pop(&mut s.queue).unwrap_err();

        assert!(matches!(fault, QueueFault::BrokenChain { .. }), "{fault}");
    }

    #[test]
    fn pop_refuses_an_indirect_table_outside_of_ram() {
        let mut s = setup(false);
        s.driver
            .write_desc(0, 1 << 40, 32, VRING_DESC_F_INDIRECT, 0);
        s.driver.offer_head(0);

        let fault = pop(&mut s.queue).unwrap_err();

        assert!(matches!(fault, QueueFault::BrokenChain { .. }), "{fault}");
    }

    #[test]
    fn pop_refuses_an_overlong_indirect_chain() {
        let mut s = setup(false);
        let table = 0x1_0000_u64;
        for desc_idx in 0..2000_u64 {
            let word = 4_u64 | 1 << 32 | (desc_idx + 1) << 48;
            let gpa = GuestAddress(table + 16 * desc_idx + 8);
            s.queue.ram().write_obj(word, gpa).unwrap();
        }
        s.driver
            .write_desc(0, table, 2000 * 16, VRING_DESC_F_INDIRECT, 0);
        s.driver.offer_head(0);

        let fault = pop(&mut s.queue).unwrap_err();

        assert!(matches!(fault, QueueFault::LongChain { .. }), "{fault}");
    }

    #[test]
    fn pop_refuses_a_buffer_of_the_wrong_direction() {
        let mut s = setup(false);
        s.driver.offer(&[(0x1000, 12, false), (0x2000, 100, true)]);

        let fault = pop(&mut s.queue).unwrap_err();

        assert!(matches!(fault, QueueFault::Direction { .. }), "{fault}");
    }

    #[test]
    fn used_chains_appear_together_at_publication() {
        let mut s = setup(false);
        s.queue.put_used(3, 10).unwrap();
        s.queue.put_used(4, 20).unwrap();
        assert_eq!(s.driver.used_idx(), 0);

        s.queue.publish().unwrap();

        assert_eq!(s.driver.used_idx(), 2);
        assert_eq!(s.driver.used(0), (3, 10));
        assert_eq!(s.driver.used(1), (4, 20));
        assert_eq!(num_interrupts(&s.interrupt), 1);
    }

    #[test]
    fn publication_of_nothing_does_not_interrupt() {
        let mut s = setup(false);

        s.queue.publish().unwrap();

        assert_eq!(num_interrupts(&s.interrupt), 0);
    }

    #[test]
    fn driver_without_event_index_switches_interrupts_off_by_flag() {
        let mut s = setup(false);
        s.driver.set_avail_flags(1);
        s.queue.put_used(0, 0).unwrap();

        s.queue.publish().unwrap();

        assert_eq!(num_interrupts(&s.interrupt), 0);
    }

    #[test]
    fn event_index_interrupts_only_when_it_is_passed() {
        let mut s = setup(true);
        s.driver.set_used_event(1);
        s.queue.put_used(0, 0).unwrap();
        s.queue.publish().unwrap();
        assert_eq!(num_interrupts(&s.interrupt), 0);
        s.queue.put_used(1, 0).unwrap();

        s.queue.publish().unwrap();

        assert_eq!(num_interrupts(&s.interrupt), 1);
    }

    #[test]
    fn doorbell_for_a_chain_that_came_meanwhile_is_not_waited_for() {
        let mut s = setup(true);
        assert!(!s.queue.enable_doorbell().unwrap());
        s.driver.offer(&[(0x1000, 12, false)]);

        assert!(s.queue.enable_doorbell().unwrap());
    }

    #[test]
    fn put_used_refuses_a_head_beyond_the_table() {
        let mut s = setup(false);

        let fault = s.queue.put_used(QUEUE_SIZE, 0).unwrap_err();

        assert!(matches!(fault, QueueFault::BadHead { .. }), "{fault}");
    }
}
