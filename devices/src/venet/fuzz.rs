//! The data path of one connection on bytes of a fuzzer, without a thread.

use std::sync::Arc;

use vbus::memory::Region;
use vm_memory::{Bytes, GuestAddress};

use super::frame::{Frame, Limits, Scratch};
use super::metrics::PortMetrics;
use super::path::Path;
use super::rx::Receiver;
use super::tx::{Rest, Sender};
use crate::GuestRam;
use crate::client::Client;
use crate::fuzz_ring::{Faults, NUM_SLOTS, RING_BYTES, cut, ring};

const POOL_BYTES: usize = 1024;
const MEMORY_BYTES: usize = 32 << 10;
/// Where the memory starts.
const BASE: u64 = 0x1000;

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
    let mut sender = Sender::new(ring(cut(&mut bytes, RING_BYTES), has_turns & 1 != 0).0);
    let (rx, _) = ring(cut(&mut bytes, RING_BYTES), has_turns & 2 != 0);
    let mut receiver = Receiver::new(rx, Arc::clone(&client));
    let pool = Region::new_private(POOL_BYTES).expect("out of memory");
    pool.write(0, cut(&mut bytes, POOL_BYTES)).expect("it fits");
    let range = (GuestAddress(BASE), MEMORY_BYTES);
    let ram = GuestRam::from_ranges(&[range]).expect("out of memory");
    let memory = cut(&mut bytes, MEMORY_BYTES);
    ram.write_slice(memory, GuestAddress(BASE))
        .expect("it fits");

    receiver.configure(ram.clone(), rx_caps.into(), None);
    let limits = Limits {
        caps: tx_caps.into(),
        mtu: u16::from_le_bytes([mtu_low, mtu_high]).max(68).into(),
    };
    sender.configure(ram, limits, Some(pool), None);
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
    faults.count()
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
