//! The way in for fuzz targets: bytes as a driver's rings and buffers.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::backend::{Backend, Port, Received, Sent, TxFrame};
use super::control::ControlQueue;
use super::fake_driver::{FakeQueue, ram};
use super::filter::MacFilter;
use super::metrics::NetMetrics;
use super::queue::QueueFault;
use super::rx::RxQueue;
use super::state::{Shared, SharedMac};
use super::tx::TxQueue;
use super::window::RxWindow;
use crate::test_utils::fake_interrupt;

/// Turns that each queue gets.
const NUM_TURNS: usize = 4;

/// Serves the receive, transmit and control queue of a driver whose memory starts with `bytes`.
///
/// The first byte chooses features: bit 0 event index, bit 1 merged buffers, bit 2 a strict filter.
/// The rest is guest memory from address 0: descriptor table, available and used ring of the three
/// queues (1 KiB each: table at 0, rings at 0x100 and 0x200), then whatever they point to.
///
/// Answers the number of queues that were stopped for a fault. Never panics, and does a bounded
/// amount of work, whatever the bytes are.
///
/// # Panics
/// The host is out of memory or file descriptors.
#[expect(
    clippy::expect_used,
    reason = "a fuzz target cannot go on without them"
)]
pub fn serve_bytes(bytes: &[u8]) -> usize {
    let (choice, memory) = bytes.split_first().unwrap_or((&0, &[]));
    let ram = ram();
    let len = memory.len().min(0x2_0000);
    ram.write_slice(memory.get(..len).unwrap_or(&[]), GuestAddress(0))
        .expect("the first region is larger");
    let interrupt = fake_interrupt(3);
    let metrics = Arc::new(NetMetrics::new(1));
    let [rx, tx, control] = [0, 1, 2]
        .map(|index| FakeQueue::new(&ram, index).net_queue(&interrupt, &metrics, choice & 1 != 0));
    let shared = Shared::new(
        Arc::new(Backend::Datagram(Vec::new())),
        interrupt,
        Arc::new(SharedMac::new([2, 0, 0, 0, 0, 1])),
        u64::MAX,
        2,
    )
    .expect("the host has file descriptors");
    let mut filter = MacFilter::new([2, 0, 0, 0, 0, 1]);
    filter.is_promiscuous = choice & 4 == 0;
    let mut port = FuzzPort { num_calls: 0 };
    let mut rx = RxQueue::new(rx, choice & 2 != 0);
    let mut tx = TxQueue::new(tx);
    let mut control = ControlQueue::new(control, Arc::new(shared));
    let mut turns = |serve: &mut dyn FnMut(&mut FuzzPort) -> Result<(), QueueFault>| {
        usize::from((0..NUM_TURNS).any(|_| serve(&mut port).is_err()))
    };
    turns(&mut |port| rx.serve(port, &filter).map(drop))
        + turns(&mut |port| tx.serve(port).map(drop))
        + turns(&mut |_| control.serve().map(drop))
}

/// A backend with frames of all sizes that is full, empty and broken now and then.
#[derive(Debug)]
struct FuzzPort {
    num_calls: usize,
}

impl Port for FuzzPort {
    fn fd(&self) -> RawFd {
        -1
    }

    fn send(&mut self, frame: &mut TxFrame<'_>) -> Result<Sent, QueueFault> {
        self.num_calls += 1;
        let mut copy = Vec::new();
        frame.append_to(super::HEADER_BYTES, &mut copy)?;
        assert_eq!(
            copy.len() + super::HEADER_BYTES as usize,
            frame.len_bytes as usize
        );
        assert_eq!(frame.iovecs()?.len_bytes(), frame.len_bytes);
        Ok(match self.num_calls % 7 {
            5 => Sent::Full,
            6 => Sent::Refused(io::ErrorKind::InvalidInput.into()),
            _ => Sent::Done,
        })
    }

    fn receive(&mut self, window: &mut RxWindow) -> Result<Received, QueueFault> {
        self.num_calls += 1;
        let sizes = [72, 1526, 9018, super::MAX_FRAME_BYTES, 12, 0];
        let Some(&len_bytes) = sizes.get(self.num_calls % 7) else {
            return Ok(Received::Empty);
        };
        if u64::from(len_bytes) > window.len_bytes() {
            return Ok(Received::TooLarge);
        }
        window.write_at(
            0,
            &vec![self.num_calls.to_le_bytes()[0]; len_bytes as usize],
        )?;
        Ok(Received::Frame(len_bytes))
    }
}
