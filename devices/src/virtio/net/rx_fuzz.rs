//! Frames of a TAP on bytes of a fuzzer, for a driver that keeps to the rules. A socket is in place of the
//! TAP: it keeps the bounds of frames as well.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::batch::Progress;
use super::fake_driver::{FakeQueue, QUEUE_SIZE, ram};
use super::filter::MacFilter;
use super::metrics::NetMetrics;
use super::rx::RxQueue;
use super::tap_port::TapPort;
use super::{HEADER_BYTES, MAX_FRAME_BYTES, NUM_BUFFERS_OFFSET};
use crate::GuestRam;
use crate::fuzz_ring::{byte, cut, half};
use crate::test_utils::fake_interrupt;

/// Where the first buffer is, and from one to the next.
const BUFFERS: u64 = 0x4000;
const STRIDE: u32 = 0x1100;
const MAX_BUFFER_BYTES: u32 = 0x1000;
/// What is between the buffers, and stays there.
const UNTOUCHED: u8 = 0xee;
/// More turns than there can be frames in the socket.
const MAX_TURNS: usize = 10_000;
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A buffer as the driver gave it: pieces of memory.
struct Buffer {
    head: u16,
    pieces: Vec<(u64, u32)>,
}

struct Lab {
    host: UnixDatagram,
    port: TapPort,
    queue: RxQueue,
    filter: MacFilter,
    ram: GuestRam,
    driver: FakeQueue,
    given: VecDeque<Buffer>,
    next_piece: u64,
    num_used: u16,
    /// Of each buffer.
    piece_bytes: [u32; 2],
    has_merged_buffers: bool,
    /// What was sent, from the frame on that was received last.
    sent: VecDeque<Vec<u8>>,
    num_received: u64,
}

impl Lab {
    #[expect(clippy::expect_used, reason = "a fuzzer without memory cannot go on")]
    fn new(bytes: &mut &[u8]) -> Self {
        let choice = byte(bytes);
        let (host, source) = UnixDatagram::pair().expect("out of descriptors");
        for socket in [&host, &source] {
            socket.set_nonblocking(true).expect("a socket can");
        }
        let ram = ram();
        let untouched = vec![UNTOUCHED; usize::from(QUEUE_SIZE) * STRIDE as usize];
        let filled = ram.write_slice(&untouched, GuestAddress(BUFFERS));
        filled.expect("the buffers are in RAM");
        let driver = FakeQueue::new(&ram, 0);
        let metrics = Arc::new(NetMetrics::new(1));
        let queue = driver.net_queue(&fake_interrupt(3), &metrics, choice & 1 != 0);
        let has_merged_buffers = choice & 2 != 0;
        let mut filter = MacFilter::new(OWN);
        filter.is_promiscuous = choice & 4 == 0;
        let mut piece_bytes =
            [half(bytes), half(bytes)].map(|len| u32::from(len) % MAX_BUFFER_BYTES + 1);
        if choice & 8 == 0 {
            piece_bytes[1] = 0;
        }
        // A shorter one has no room for a header, and is a fault.
        piece_bytes[0] = piece_bytes[0].max(HEADER_BYTES);
        Lab {
            host,
            port: TapPort::new(Arc::new(File::from(OwnedFd::from(source)))),
            queue: RxQueue::new(queue, has_merged_buffers),
            filter,
            ram,
            driver,
            given: VecDeque::new(),
            next_piece: 0,
            num_used: 0,
            piece_bytes,
            has_merged_buffers,
            sent: VecDeque::new(),
            num_received: 0,
        }
    }

    fn give_buffers(&mut self, most: u8) {
        let lens: Vec<u32> = self
            .piece_bytes
            .into_iter()
            .filter(|len| *len > 0)
            .collect();
        for _ in 0..most {
            if (self.given.len() + 1) * lens.len() > usize::from(QUEUE_SIZE) {
                break;
            }
            let mut pieces = Vec::new();
            for len in &lens {
                let nth = self.next_piece % u64::from(QUEUE_SIZE);
                self.next_piece += 1;
                pieces.push((BUFFERS + nth * u64::from(STRIDE), *len));
            }
            let chain: Vec<_> = pieces.iter().map(|(gpa, len)| (*gpa, *len, true)).collect();
            let head = self.driver.offer(&chain);
            self.given.push_back(Buffer { head, pieces });
        }
    }

    fn send(&mut self, bytes: &mut &[u8]) {
        let choice = byte(bytes);
        let len = usize::from(half(bytes)) + usize::from(byte(bytes));
        let num_given = usize::from(byte(bytes)) % 64;
        let mut packet = cut(bytes, num_given).to_vec();
        packet.resize(len.min(MAX_FRAME_BYTES as usize), 0xa5);
        if choice & 1 != 0
            && let Some(destination) = packet.get_mut(HEADER_BYTES as usize..)
        {
            for (place, byte) in destination.iter_mut().zip(OWN) {
                *place = byte;
            }
        }
        if self.host.send(&packet).is_ok() {
            self.sent.push_back(packet);
        }
    }

    #[expect(clippy::expect_used, reason = "the driver keeps to the rules")]
    fn serve(&mut self) {
        for _ in 0..MAX_TURNS {
            let progress = self.queue.serve(&mut self.port, &self.filter);
            match progress.expect("no fault of the driver") {
                Progress::More => {}
                Progress::Gone(error) => panic!("the socket is there: {error}"),
                Progress::Idle | Progress::Blocked => return,
            }
        }
        panic!("more turns than frames");
    }

    /// Looks at what has arrived: frames that were sent, in order, and no others.
    fn receive(&mut self) {
        while self.num_used != self.driver.used_idx() {
            let mut frame = self.take();
            let count = frame
                .get(NUM_BUFFERS_OFFSET as usize..)
                .and_then(<[u8]>::first_chunk)
                .map_or(0, |bytes| u16::from_le_bytes(*bytes));
            assert!(count == 1 || (self.has_merged_buffers && count > 1));
            for _ in 1..count {
                assert_ne!(self.num_used, self.driver.used_idx(), "frames come whole");
                frame.extend(self.take());
            }
            self.num_received += 1;
            self.check(&frame, count);
        }
    }

    /// The bytes in a used buffer, behind whose pieces nothing was written.
    #[expect(clippy::expect_used, reason = "the rings and the memory are its own")]
    fn take(&mut self) -> Vec<u8> {
        let (head, len) = self.driver.used(self.num_used);
        self.num_used = self.num_used.wrapping_add(1);
        let buffer = self.given.pop_front().expect("it was given");
        assert_eq!(head, u32::from(buffer.head), "buffers are used in order");
        let mut frame = Vec::new();
        for (gpa, piece_bytes) in buffer.pieces {
            let mut bytes = vec![0; STRIDE as usize];
            let read = self.ram.read_slice(&mut bytes, GuestAddress(gpa));
            read.expect("it is in memory");
            let behind = bytes.split_off(piece_bytes as usize);
            assert!(behind.iter().all(|byte| *byte == UNTOUCHED));
            frame.extend(bytes);
        }
        assert!(len as usize <= frame.len(), "no more than it holds");
        frame.truncate(len as usize);
        frame
    }

    fn check(&mut self, frame: &[u8], count: u16) {
        let same = |sent: &Vec<u8>| {
            let mut sent = sent.clone();
            if let Some(place) = sent.get_mut(NUM_BUFFERS_OFFSET as usize..HEADER_BYTES as usize) {
                place.copy_from_slice(&count.to_le_bytes());
            }
            sent == frame
        };
        let found = self.sent.iter().position(same);
        assert!(found.is_some(), "nothing arrives that was not sent");
        self.sent.drain(..=found.unwrap_or(0));
        // A TAP gives none that is shorter than its addresses.
        if let Some(destination) = frame.get(HEADER_BYTES as usize..)
            && let Some(destination) = destination.first_chunk()
        {
            assert!(self.filter.accepts(destination), "not for this driver");
        }
    }
}

/// Has frames of `bytes` come from a TAP, and checks what the driver finds in its buffers.
///
/// # Panics
/// What arrives is not what was sent, or is outside of buffers.
pub fn receive_bytes(bytes: &[u8]) {
    let mut bytes = bytes;
    let mut lab = Lab::new(&mut bytes);
    lab.give_buffers(u8::MAX);
    while !bytes.is_empty() {
        match byte(&mut bytes) % 4 {
            0 | 1 => lab.send(&mut bytes),
            2 => lab.serve(),
            _ => {
                let most = byte(&mut bytes);
                lab.receive();
                lab.give_buffers(most);
            }
        }
    }
    lab.serve();
    lab.receive();
    assert_eq!(lab.queue.queue.metrics().rx_packets.get(), lab.num_received);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_all_sizes_arrive_or_do_not() {
        for choice in 0..16 {
            let mut bytes = vec![choice, 0, 4, 100, 0];
            for len in [0_u16, 12, 13, 72, 1500, 9000, u16::MAX] {
                let [low, high] = len.to_le_bytes();
                bytes.extend([0, 1, low, high, 0, 0, 2, 3, 16]);
            }
            receive_bytes(&bytes);
        }
    }

    #[test]
    fn nothing_is_nothing() {
        receive_bytes(&[]);
    }
}
