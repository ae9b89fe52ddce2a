//! The receive queue against a socket as backend.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::super::backend::{Backend, SharedPort};
use super::super::fake_driver::{FakeQueue, QUEUE_SIZE, ram};
use super::super::metrics::NetMetrics;
use super::*;
use crate::GuestRam;
use crate::test_utils::fake_interrupt;

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

struct Setup {
    ram: GuestRam,
    driver: FakeQueue,
    rx: RxQueue,
    host: UnixDatagram,
    port: SharedPort,
    filter: MacFilter,
}

fn setup(has_merged_buffers: bool) -> Setup {
    let ram = ram();
    let driver = FakeQueue::new(&ram, 0);
    let metrics = Arc::new(NetMetrics::new(1));
    let queue = driver.net_queue(&fake_interrupt(3), &metrics, true);
    let (host, guest) = UnixDatagram::pair().unwrap();
    Setup {
        ram,
        driver,
        rx: RxQueue::new(queue, has_merged_buffers),
        host,
        port: Backend::Datagram(vec![guest]).ports().unwrap().remove(0),
        filter: MacFilter::new(GUEST_MAC),
    }
}

impl Setup {
    fn serve(&mut self) -> Result<Progress, QueueFault> {
        let mut port = self.port.lock();
        self.rx.serve(&mut *port, &self.filter)
    }

    /// Offers buffers of 4 KiB from 64 KiB on.
    fn offer_pages(&mut self, num_buffers: u64) {
        for idx in 0..num_buffers {
            self.driver
                .offer(&[(0x1_0000 + 0x1000 * idx, 0x1000, true)]);
        }
    }

    fn num_buffers_at(&self, gpa: u64) -> u16 {
        self.ram.read_obj(GuestAddress(gpa + 10)).unwrap()
    }
}

/// A frame with its virtio header: header of zeros, destination, then `payload` bytes of 7.
fn frame(destination: [u8; 6], payload: usize) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    bytes.extend(destination);
    bytes.extend(vec![7; payload]);
    bytes
}

#[test]
fn small_frame_takes_one_of_the_gathered_buffers() {
    let mut s = setup(true);
    s.offer_pages(16);
    s.host.send(&frame(GUEST_MAC, 100)).unwrap();

    s.serve().unwrap();

    assert_eq!(s.driver.used_idx(), 1);
    assert_eq!(s.driver.used(0), (0, 118));
    assert_eq!(s.num_buffers_at(0x1_0000), 1);
    assert_eq!(s.rx.queue.metrics().rx_bytes.get(), 106);
}

#[test]
fn large_frame_is_spread_over_buffers_that_become_visible_together() {
    let mut s = setup(true);
    s.offer_pages(16);
    s.host.send(&frame(GUEST_MAC, 9000)).unwrap();

    s.serve().unwrap();

    assert_eq!(s.driver.used_idx(), 3);
    assert_eq!(s.num_buffers_at(0x1_0000), 3);
    assert_eq!(s.driver.used(0), (0, 0x1000));
    assert_eq!(s.driver.used(1), (1, 0x1000));
    assert_eq!(s.driver.used(2), (2, 9018 - 0x2000));
    let last: u8 = s.ram.read_obj(GuestAddress(0x1_0000 + 9017)).unwrap();
    assert_eq!(last, 7);
}

#[test]
fn later_frames_use_the_buffers_gathered_for_earlier_ones() {
    let mut s = setup(true);
    s.offer_pages(16);
    s.host.send(&frame(GUEST_MAC, 1)).unwrap();
    s.serve().unwrap();
    s.driver.offer(&[(0x1_0000, 0x1000, true)]);
    s.host.send(&frame(GUEST_MAC, 2)).unwrap();

    s.serve().unwrap();

    assert_eq!(s.driver.used(1), (1, 20));
}

#[test]
fn frame_waits_until_the_guest_has_buffers_for_the_largest_one() {
    let mut s = setup(true);
    s.offer_pages(2);
    s.host.send(&frame(GUEST_MAC, 1)).unwrap();
    assert!(matches!(s.serve().unwrap(), Progress::Blocked));
    assert_eq!(s.driver.avail_event(), 2, "the next buffer rings");
    s.offer_pages(14);

    s.serve().unwrap();

    assert_eq!(s.driver.used_idx(), 1);
}

#[test]
fn driver_whose_whole_ring_is_small_is_served_all_the_same() {
    let mut s = setup(true);
    for _ in 0..QUEUE_SIZE {
        s.driver.offer(&[(0x1_0000, 256, true)]);
    }
    s.host.send(&frame(GUEST_MAC, 500)).unwrap();

    s.serve().unwrap();

    assert_eq!(s.driver.used_idx(), 3);
}

#[test]
fn frame_larger_than_an_unmerged_buffer_is_dropped() {
    let mut s = setup(false);
    s.driver
        .offer(&[(0x1_0000, 12, true), (0x1_1000, 106, true)]);
    s.host.send(&frame(GUEST_MAC, 101)).unwrap();
    s.host.send(&frame(GUEST_MAC, 100)).unwrap();

    s.serve().unwrap();

    assert_eq!(s.driver.used_idx(), 1);
    assert_eq!(s.driver.used(0), (0, 118), "exactly full is no reason");
    assert_eq!(s.num_buffers_at(0x1_0000), 1);
    assert_eq!(s.rx.queue.metrics().rx_drops.get(), 1);
}

#[test]
fn frame_for_somebody_else_uses_no_buffer() {
    let mut s = setup(true);
    s.filter.is_promiscuous = false;
    s.offer_pages(16);
    s.host.send(&frame([2, 0, 0, 0, 0, 9], 10)).unwrap();
    s.host.send(&frame(GUEST_MAC, 20)).unwrap();

    s.serve().unwrap();

    assert_eq!(s.driver.used_idx(), 1);
    assert_eq!(s.driver.used(0), (0, 38));
    assert_eq!(s.rx.queue.metrics().rx_filtered.get(), 1);
}

#[test]
fn buffer_that_the_device_may_not_write_is_a_fault() {
    let mut s = setup(true);
    s.driver.offer(&[(0x1_0000, 0x1000, false)]);

    let fault = s.serve().unwrap_err();

    assert!(matches!(fault, QueueFault::Direction { .. }), "{fault}");
}

#[test]
fn buffer_without_room_for_the_header_is_a_fault() {
    let mut s = setup(true);
    s.driver.offer(&[(0x1_0000, 11, true)]);

    let fault = s.serve().unwrap_err();

    assert!(
        matches!(fault, QueueFault::ShortChain { len: 11, .. }),
        "{fault}"
    );
}

#[test]
fn buffer_outside_of_ram_is_a_fault() {
    let mut s = setup(true);
    s.driver.offer(&[(0x3_f800, 0x1000, true)]);

    let fault = s.serve().unwrap_err();

    assert!(matches!(fault, QueueFault::Buffer(_)), "{fault}");
}
