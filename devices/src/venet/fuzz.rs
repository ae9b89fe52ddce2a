//! The data path of one connection on bytes of a fuzzer, without a thread.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use vbus::abi::{RING_SIGNAL_OFFSET, RING_SLOTS_OFFSET};
use vbus::device::{FaultReporter, ShmSignal};
use vbus::memory::{Region, Words};
use vbus::ring::{Geometry, South};
use vbus::signal::{self, Side};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::frame::{Frame, Limits, Scratch};
use super::metrics::PortMetrics;
use super::path::Path;
use super::rx::{Client, Receiver, RingEnd};
use super::tx::{Rest, Sender};
use crate::GuestRam;

const NUM_SLOTS: u32 = 16;
const SLOT_BYTES: usize = 32;
const RING_BYTES: usize = NUM_SLOTS as usize * SLOT_BYTES;
const POOL_BYTES: usize = 1024;
const MEMORY_BYTES: usize = 32 << 10;
/// Where the memory starts.
const BASE: u64 = 0x1000;
/// Of the control word: a slot that was published in the first lap.
const FIRST_TURN: u64 = 1 << 48;

#[derive(Default)]
struct Faults(AtomicUsize);

impl FaultReporter for Faults {
    fn report(&self, _reason: &dyn fmt::Display) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Sends to its own receiver.
struct Loop {
    receiver: Receiver,
    metrics: PortMetrics,
}

impl Path for Loop {
    fn name(&self) -> &str {
        "fuzz"
    }

    fn send(&mut self, frame: &Frame<'_>, scratch: &mut Scratch) -> u32 {
        self.receiver.deliver(frame, scratch, &self.metrics)
    }

    fn flush(&mut self) {
        self.receiver.notify(&self.metrics);
    }
}

/// Cuts `len` bytes off `bytes`; fewer if there are no more.
fn cut<'b>(bytes: &mut &'b [u8], len: usize) -> &'b [u8] {
    let (piece, rest) = bytes.split_at(len.min(bytes.len()));
    *bytes = rest;
    piece
}

/// A ring whose slots are `slots`; with `has_turns` as if they had been published by the rules.
#[expect(clippy::expect_used, reason = "a fuzzer without memory cannot go on")]
fn ring(slots: &[u8], has_turns: bool) -> RingEnd {
    let geometry = Geometry::new(NUM_SLOTS).expect("16 is a power of two");
    let region = Region::new_private(geometry.len_bytes()).expect("out of memory");
    geometry.format(&region).expect("it is long enough");
    region.write(RING_SLOTS_OFFSET, slots).expect("it fits");
    if has_turns {
        for slot_idx in 0..slots.len().div_ceil(SLOT_BYTES) {
            let offset = RING_SLOTS_OFFSET + slot_idx * SLOT_BYTES + 24;
            let len = region.load(offset, Relaxed) & u64::from(u32::MAX);
            region.store(offset, len | FIRST_TURN, Relaxed);
        }
    }
    let (sender, receiver) =
        signal::attach(region.clone(), RING_SIGNAL_OFFSET, Side::South).expect("it is in there");
    let new_event = || EventFd::new(EFD_NONBLOCK).expect("out of descriptors");
    RingEnd {
        ring: South::attach(region).expect("it was formatted"),
        signal: ShmSignal {
            sender,
            receiver,
            doorbell: new_event(),
            wake_up: Arc::new(new_event()),
        },
    }
}

/// Serves one client and says how often it was cut off.
///
/// `bytes` are: capabilities to send and to receive, MTU (little-endian), whether turns are right
/// (one byte each, two for the MTU); slots of the transmit ring, of the receive ring; the pool of
/// segments; the client's memory. What is missing is zero.
#[expect(clippy::expect_used, reason = "a fuzzer without memory cannot go on")]
pub fn serve_bytes(bytes: &[u8]) -> usize {
    let mut bytes = bytes;
    let Some((&[tx_caps, rx_caps, mtu_low, mtu_high, has_turns], rest)) = bytes.split_first_chunk()
    else {
        return 0;
    };
    bytes = rest;
    let faults = Arc::new(Faults::default());
    let client = Arc::new(Client::new(Arc::clone(&faults) as _));
    let mut sender = Sender::new(ring(cut(&mut bytes, RING_BYTES), has_turns & 1 != 0));
    let rx = ring(cut(&mut bytes, RING_BYTES), has_turns & 2 != 0);
    let mut receiver = Receiver::new(rx, Arc::clone(&client));
    let pool = Region::new_private(POOL_BYTES).expect("out of memory");
    pool.write(0, cut(&mut bytes, POOL_BYTES)).expect("it fits");
    let range = (GuestAddress(BASE), MEMORY_BYTES);
    let ram = GuestRam::from_ranges(&[range]).expect("out of memory");
    let memory = cut(&mut bytes, MEMORY_BYTES);
    ram.write_slice(memory, GuestAddress(BASE))
        .expect("it fits");

    receiver.configure(ram.clone(), rx_caps.into());
    let limits = Limits {
        caps: tx_caps.into(),
        mtu: u16::from_le_bytes([mtu_low, mtu_high]).max(68).into(),
    };
    sender.configure(ram, limits, Some(pool));
    let mut path = Loop {
        receiver,
        metrics: PortMetrics::default(),
    };
    let mut scratch = Scratch::new();
    let metrics = PortMetrics::default();
    for _ in 0..4 {
        if let Err(fault) = sender.serve(&mut path, &mut scratch, &metrics, 256, Rest::Asleep) {
            client.cut_off("transmit", fault);
            break;
        }
    }
    path.receiver.flush();
    let num_taken = metrics.tx_packets.get() + metrics.tx_errors.get();
    assert!(num_taken <= NUM_SLOTS.into(), "no slot is taken twice");
    faults.0.load(Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_frame_comes_back() {
        let mut bytes = vec![0x3f, 0x3f, 0xdc, 5, 3];
        for addr in [BASE, BASE + 0x1000] {
            let mut slots = [0; RING_BYTES];
            slots[..8].copy_from_slice(&addr.to_le_bytes());
            slots[24] = 100;
            // The others are too short and too small.
            bytes.extend(slots);
        }
        assert_eq!(serve_bytes(&bytes), 0);
    }

    #[test]
    fn turn_from_nowhere_is_one_fault() {
        let mut bytes = vec![0x3f, 0x3f, 0xdc, 5, 2];
        let mut slots = [0; RING_BYTES];
        slots[30] = 99;
        bytes.extend(slots);

        assert_eq!(serve_bytes(&bytes), 1);
    }

    #[test]
    fn nothing_is_no_fault() {
        assert_eq!(serve_bytes(&[]), 0);
    }
}
