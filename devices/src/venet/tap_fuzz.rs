//! Frames of a TAP on bytes of a fuzzer, for one client that keeps to the rules. A socket is in place of
//! the TAP: it keeps the bounds of frames as well.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use vbus::abi::venet::{FrameMeta, frame_flag, gso_type, rx_cap};
use vbus::memory::Region;
use vbus::ring::{North, Slot};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::frame::{MOST_BYTES, Scratch};
use super::fuzz_frame::frame;
use super::mac::MacAddress;
use super::metrics::PortMetrics;
use super::rx::{Receiver, meta_of};
use super::tap_end::{self, header_of};
use super::tap_fetch::TapFetch;
use super::tx::Progress;
use crate::GuestRam;
use crate::client::Client;
use crate::fuzz_ring::{Faults, NUM_SLOTS, both_ends, byte, cut, half};
use crate::tap::HEADER_BYTES;

const BASE: u64 = 0x10_0000;
/// From a buffer to the next one.
const STRIDE: u32 = 0x1100;
const MAX_BUFFER_BYTES: u32 = 0x1000;
/// What is between the buffers, and stays there.
const UNTOUCHED: u8 = 0xee;
const RAM_BYTES: usize = (NUM_SLOTS * STRIDE) as usize;
/// More turns than there can be frames in the socket.
const MAX_TURNS: usize = 10_000;

/// Where frames come in: a TAP that the client has for itself, or that of its switch.
struct Lab {
    host: UnixDatagram,
    source: File,
    is_uplink: bool,
    mtu: u32,
    caps: u32,
    fetch: TapFetch,
    scratch: Scratch,
    receiver: Receiver,
    metrics: PortMetrics,
    ram: GuestRam,
    north: North<Region>,
    buffer_bytes: u32,
    /// What was sent, from the frame on that was received last.
    sent: Vec<(Vec<u8>, bool)>,
    num_received: u64,
    bytes_received: u64,
}

impl Lab {
    #[expect(clippy::expect_used, reason = "a fuzzer without memory cannot go on")]
    fn new(bytes: &mut &[u8], faults: &Arc<Faults>) -> Self {
        let (host, source) = UnixDatagram::pair().expect("out of descriptors");
        for socket in [&host, &source] {
            socket.set_nonblocking(true).expect("a socket can");
        }
        let choice = byte(bytes);
        let caps = u32::from(byte(bytes));
        let (north, south) = both_ends();
        let client = Arc::new(Client::new(Arc::clone(faults) as _));
        let range = (GuestAddress(BASE), RAM_BYTES);
        let ram = GuestRam::from_ranges(&[range]).expect("out of memory");
        let untouched = vec![UNTOUCHED; RAM_BYTES];
        let filled = ram.write_slice(&untouched, GuestAddress(BASE));
        filled.expect("it is all there is");
        let mut receiver = Receiver::new(south, client);
        receiver.configure(ram.clone(), caps, None);
        Lab {
            host,
            source: File::from(OwnedFd::from(source)),
            is_uplink: choice & 1 != 0,
            mtu: u32::from(half(bytes)).max(68),
            caps,
            fetch: TapFetch::new(),
            scratch: Scratch::new(),
            receiver,
            metrics: PortMetrics::default(),
            ram,
            north,
            buffer_bytes: u32::from(half(bytes)) % MAX_BUFFER_BYTES + 1,
            sent: Vec::new(),
            num_received: 0,
            bytes_received: 0,
        }
    }

    fn give_buffers(&mut self, most: u32) {
        for _ in 0..most.min(self.north.room()) {
            let nth = self.north.next_slot_idx();
            let slot = Slot {
                addr: BASE + u64::from(nth * STRIDE),
                len: self.buffer_bytes,
                meta: [0; 2],
            };
            self.north.publish(&[slot]);
        }
    }

    fn send(&mut self, bytes: &mut &[u8]) {
        let wild = byte(bytes);
        let stations = [1, 2].map(|n| MacAddress([2, 0, 0, 0, 0, n]));
        let (frame, meta) = frame(stations[0], stations[1], bytes);
        let header = header_of(&meta);
        let mut packet = [header.as_bytes(), &frame].concat();
        if wild & 1 != 0 {
            let header = cut(bytes, HEADER_BYTES as usize);
            for (place, byte) in packet.iter_mut().zip(header) {
                *place ^= byte;
            }
        }
        if wild & 2 != 0 {
            packet.truncate(usize::from(byte(bytes)));
        }
        // No interface has longer ones.
        packet.truncate((HEADER_BYTES + MOST_BYTES) as usize);
        if self.is_uplink {
            let limits = tap_end::limits(self.mtu);
            // Nothing is sent and received here but frames that make sense.
            if let Some(frame) = tap_end::parse(&packet, packet.len(), limits) {
                let (scratch, metrics) = (&mut self.scratch, &self.metrics);
                self.receiver.deliver(&frame, scratch, metrics);
            }
        } else if self.host.send(&packet).is_err() {
            // The socket is full, or takes no more at once.
            return;
        }
        // Of flags and type, which say that less may arrive, or more.
        let has_offloads = packet.iter().take(2).any(|byte| *byte != 0);
        let frame = packet.get(HEADER_BYTES as usize..).unwrap_or_default();
        self.sent.push((frame.into(), has_offloads));
    }

    fn serve(&mut self) {
        for _ in 0..MAX_TURNS {
            let (receiver, scratch) = (&mut self.receiver, &mut self.scratch);
            let fetch = &mut self.fetch;
            let progress = fetch.serve(&self.source, self.mtu, receiver, scratch, &self.metrics);
            receiver.notify(&self.metrics);
            if progress != Progress::More {
                return;
            }
        }
        panic!("more turns than frames");
    }

    /// Looks at what has arrived: frames that were sent, in order, and no others.
    #[expect(clippy::expect_used, reason = "the ring and the memory are its own")]
    fn receive(&mut self) {
        let mut slot = [Slot::default()];
        while self
            .north
            .reap(&mut slot)
            .expect("the south keeps to the rules")
            == 1
        {
            let [first] = slot;
            let meta = meta_of(first.meta);
            let count = meta.count.get();
            assert!(count > 0, "a buffer comes back with a frame");
            assert!(count == 1 || self.caps & rx_cap::MERGED != 0);
            let mut frame = self.take(&first);
            for _ in 1..count {
                let reaped = self.north.reap(&mut slot);
                assert_eq!(reaped, Ok(1), "frames come whole");
                frame.extend(self.take(&slot[0]));
            }
            self.check(&frame, &meta);
            self.num_received += 1;
            self.bytes_received += frame.len() as u64;
        }
    }

    /// The bytes in a buffer, behind which nothing was written.
    #[expect(clippy::expect_used, reason = "the ring and the memory are its own")]
    fn take(&self, slot: &Slot) -> Vec<u8> {
        assert!(slot.len <= self.buffer_bytes, "no more than it holds");
        let mut bytes = vec![0; STRIDE as usize];
        let read = self.ram.read_slice(&mut bytes, GuestAddress(slot.addr));
        read.expect("it is in memory");
        let behind = bytes.split_off(self.buffer_bytes as usize);
        assert!(behind.iter().all(|byte| *byte == UNTOUCHED));
        bytes.truncate(slot.len as usize);
        bytes
    }

    fn check(&mut self, frame: &[u8], meta: &FrameMeta) {
        let is_it = |(sent, has_offloads): &(Vec<u8>, bool)| {
            let is_part =
                *has_offloads && frame.len() <= sent.len() && frame.get(..12) == sent.get(..12);
            sent == frame || is_part
        };
        let found = self.sent.iter().position(is_it);
        let found = found.expect("nothing arrives that was not sent");
        self.sent.drain(..found);
        let flags = meta.flags.get();
        let wanted = [
            (flags & frame_flag::NEEDS_CSUM != 0, rx_cap::CSUM),
            (flags & frame_flag::ECN != 0, rx_cap::ECN),
            (meta.gso_type == gso_type::TCP4, rx_cap::TSO4),
            (meta.gso_type == gso_type::TCP6, rx_cap::TSO6),
            (meta.gso_type == gso_type::UDP, rx_cap::USO),
        ];
        for (is_there, cap) in wanted {
            assert!(!is_there || self.caps & cap != 0, "what it never asked for");
        }
        assert!(usize::from(meta.hdr_len.get()) <= frame.len() || meta.gso_type == 0);
    }
}

/// Has frames of `bytes` come from a TAP, and checks what the client finds in its buffers.
///
/// # Panics
/// What arrives is not what was sent, was not asked for, or is outside of buffers.
pub fn receive_bytes(bytes: &[u8]) {
    let mut bytes = bytes;
    let faults = Arc::new(Faults::default());
    let mut lab = Lab::new(&mut bytes, &faults);
    lab.give_buffers(NUM_SLOTS);
    while !bytes.is_empty() {
        match byte(&mut bytes) % 4 {
            0 | 1 => lab.send(&mut bytes),
            2 => lab.serve(),
            _ => {
                let most = u32::from(byte(&mut bytes));
                lab.receive();
                lab.give_buffers(most);
            }
        }
    }
    lab.serve();
    lab.receive();
    assert_eq!(lab.metrics.rx_packets.get(), lab.num_received);
    assert_eq!(lab.metrics.rx_bytes.get(), lab.bytes_received);
    assert_eq!(faults.count(), 0, "the client did nothing");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of 60 bytes, of 60 bytes whose header is wild, and of 9,000.
    const FRAMES: [&[u8]; 3] = [
        &[0, 0, 0, 60, 0, 0, 0],
        &[0, 1, 0, 60, 0, 0, 0, 1, 3, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9],
        &[0, 0, 0, 0x28, 0x23, 0, 0],
    ];

    #[test]
    fn frames_arrive_as_they_were() {
        for (choice, caps) in [(0, 0), (0, 0xff), (1, 0), (1, 0xff)] {
            let mut bytes = vec![choice, caps, 0xdc, 5, 0, 8];
            for frame in FRAMES {
                bytes.extend(frame);
                bytes.extend([2, 3, 16]);
            }
            receive_bytes(&bytes);
        }
    }

    #[test]
    fn large_frame_fills_many_buffers() {
        // TCP over IPv4 in segments of 1000 bytes.
        let large = [0, 0, 1 | 16, 0x28, 0x23, 0, 0xe8, 3, 0];
        for caps in [0, 0x3f] {
            let mut bytes = vec![0, caps, 0xdc, 5, 0, 8];
            bytes.extend(large);
            receive_bytes(&bytes);
        }
    }

    #[test]
    fn nothing_is_nothing() {
        receive_bytes(&[]);
    }
}
