//! The transmit queue against a socket as backend.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::super::backend::{Backend, SharedPort};
use super::super::fake_driver::{FakeQueue, ram};
use super::super::metrics::NetMetrics;
use super::*;
use crate::GuestRam;
use crate::test_utils::fake_interrupt;

struct Setup {
    ram: GuestRam,
    driver: FakeQueue,
    tx: TxQueue,
    host: UnixDatagram,
    port: SharedPort,
}

fn setup() -> Setup {
    let ram = ram();
    let driver = FakeQueue::new(&ram, 1);
    let metrics = Arc::new(NetMetrics::new(1));
    let queue = driver.net_queue(&fake_interrupt(3), &metrics, true);
    let (host, guest) = UnixDatagram::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    Setup {
        ram,
        driver,
        tx: TxQueue::new(queue),
        host,
        port: Backend::Datagram(vec![guest]).ports().unwrap().remove(0),
    }
}

impl Setup {
    fn serve(&mut self) -> Result<Progress, QueueFault> {
        self.tx.serve(&mut *self.port.lock())
    }

    fn receive(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 0x1_0000];
        let len = self.host.recv(&mut bytes).ok()?;
        bytes.truncate(len);
        Some(bytes)
    }
}

#[test]
fn frame_leaves_with_the_header_the_guest_wrote() {
    let mut s = setup();
    s.ram.write_slice(&[5; 12], GuestAddress(0x1000)).unwrap();
    s.ram.write_slice(&[6; 60], GuestAddress(0x2000)).unwrap();
    s.driver.offer(&[(0x1000, 12, false), (0x2000, 60, false)]);

    assert!(matches!(s.serve().unwrap(), Progress::Idle));

    let frame = s.receive().unwrap();
    assert_eq!(frame.len(), 72);
    assert_eq!(frame[11..13], [5, 6]);
    assert_eq!(s.driver.used(0), (0, 0));
    assert_eq!(s.tx.queue.metrics().tx_packets.get(), 1);
    assert_eq!(s.tx.queue.metrics().tx_bytes.get(), 60);
}

#[test]
fn idle_queue_waits_for_the_next_doorbell() {
    let mut s = setup();
    s.driver.offer(&[(0x1000, 72, false)]);

    s.serve().unwrap();

    assert_eq!(s.driver.avail_event(), 1);
}

#[test]
fn frame_without_content_is_dropped_and_its_buffer_returned() {
    let mut s = setup();
    s.driver.offer(&[(0x1000, 12, false)]);
    s.driver.offer(&[(0x1000, 80, false)]);

    s.serve().unwrap();

    assert_eq!(s.receive().unwrap().len(), 80);
    assert!(s.receive().is_none());
    assert_eq!(s.driver.used_idx(), 2);
    assert_eq!(s.tx.queue.metrics().tx_errors.get(), 1);
}

#[test]
fn frame_larger_than_any_ip_packet_is_dropped() {
    let mut s = setup();
    s.driver.offer(&[(0x1000, MAX_FRAME_BYTES + 1, false)]);

    s.serve().unwrap();

    assert!(s.receive().is_none());
    assert_eq!(s.tx.queue.metrics().tx_errors.get(), 1);
}

#[test]
fn full_backend_leaves_the_frame_on_the_ring() {
    let mut s = setup();
    let mut num_sent = 0;
    while !matches!(s.serve().unwrap(), Progress::Blocked) {
        s.driver.offer(&[(0x1000, 80, false)]);
        num_sent += 1;
        assert!(num_sent < 10_000, "a socket's queue is short");
    }
    let used_before = s.driver.used_idx();
    while s.receive().is_some() {}

    assert!(matches!(s.serve().unwrap(), Progress::Idle));

    assert_eq!(s.driver.used_idx(), used_before + 1);
    assert_eq!(s.receive().unwrap().len(), 80);
}

#[test]
fn closed_backend_loses_the_frame_and_goes_on() {
    let mut s = setup();
    s.host = UnixDatagram::unbound().unwrap();
    s.driver.offer(&[(0x1000, 80, false)]);

    assert!(matches!(s.serve().unwrap(), Progress::Idle));

    assert_eq!(s.driver.used_idx(), 1);
    assert_eq!(s.tx.queue.metrics().tx_drops.get(), 1);
}

#[test]
fn buffer_that_the_device_may_write_is_a_fault() {
    let mut s = setup();
    s.driver.offer(&[(0x1000, 80, true)]);

    let fault = s.serve().unwrap_err();

    assert!(matches!(fault, QueueFault::Direction { .. }), "{fault}");
}

#[test]
fn buffer_outside_of_ram_is_a_fault() {
    let mut s = setup();
    s.driver.offer(&[(0x4_0000, 80, false)]);

    let fault = s.serve().unwrap_err();

    assert!(matches!(fault, QueueFault::Buffer(_)), "{fault}");
}
