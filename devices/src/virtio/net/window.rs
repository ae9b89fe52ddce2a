//! Receive buffers taken off the ring ahead of the frames that will fill them.
//!
//! Nobody knows the length of the next frame before it is read, so the buffers must hold the
//! largest one. Most frames fill one buffer; the others stay here, parsed and checked, for the next
//! frame.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::{Bytes, GuestAddress};

use super::MAX_FRAME_BYTES;
use super::queue::{Chain, QueueFault, Segment};
use crate::GuestRam;
use crate::iovec::{GuestIoVecs, MAX_SEGMENTS};

/// Used-up scatter list entries that are worth the rebuild of the list.
const MAX_STALE_IOVECS: usize = MAX_SEGMENTS / 2;

/// Buffers that usual drivers have here at a time, of a segment each. With smaller or scattered ones all
/// lists become longer once.
const USUAL_BUFFERS: usize = 64;

/// One buffer: a chain of the receive queue.
#[derive(Debug)]
struct Buffer {
    chain: Chain,
    num_segments: usize,
    num_iovecs: usize,
}

/// Buffers in the order in which frames fill them.
#[derive(Debug)]
pub(super) struct RxWindow {
    ram: GuestRam,
    buffers: VecDeque<Buffer>,
    /// The buffers' descriptors, those of the first buffer first.
    segments: VecDeque<Segment>,
    len_bytes: u64,
    /// The same buffers for the kernel; the first `num_stale` entries are of used-up buffers.
    iovecs: GuestIoVecs,
    num_stale: usize,
}

impl RxWindow {
    pub(super) fn new(ram: GuestRam) -> Self {
        RxWindow {
            iovecs: GuestIoVecs::with_capacity(ram.clone(), MAX_STALE_IOVECS + 2 * USUAL_BUFFERS),
            ram,
            buffers: VecDeque::with_capacity(USUAL_BUFFERS),
            segments: VecDeque::with_capacity(USUAL_BUFFERS),
            len_bytes: 0,
            num_stale: 0,
        }
    }

    /// Sum of the buffers' lengths in bytes.
    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    pub(super) fn num_buffers(&self) -> usize {
        self.buffers.len()
    }

    /// Number of buffers, at least one, that the first `len_bytes` bytes take.
    pub(super) fn num_buffers_for(&self, len_bytes: u32) -> u16 {
        let mut left = len_bytes;
        let mut num_buffers = 0;
        for buffer in &self.buffers {
            num_buffers += 1;
            if left <= buffer.chain.len_bytes {
                break;
            }
            left -= buffer.chain.len_bytes;
        }
        num_buffers
    }

    /// Appends the buffer `chain` with its `segments`.
    pub(super) fn push(&mut self, chain: Chain, segments: &[Segment]) -> Result<(), QueueFault> {
        if self.num_stale > MAX_STALE_IOVECS {
            self.rebuild()?;
        }
        let num_iovecs = self.iovecs.num_segments();
        for segment in segments {
            self.iovecs.push(segment.gpa, segment.len)?;
        }
        self.segments.extend(segments);
        self.buffers.push_back(Buffer {
            chain,
            num_segments: segments.len(),
            num_iovecs: self.iovecs.num_segments() - num_iovecs,
        });
        self.len_bytes += u64::from(chain.len_bytes);
        Ok(())
    }

    /// Takes the first buffer out.
    pub(super) fn pop(&mut self) -> Option<Chain> {
        let buffer = self.buffers.pop_front()?;
        self.segments.drain(..buffer.num_segments);
        self.len_bytes -= u64::from(buffer.chain.len_bytes);
        self.num_stale += buffer.num_iovecs;
        if self.buffers.is_empty() {
            self.iovecs.clear();
            self.num_stale = 0;
        }
        Some(buffer.chain)
    }

    /// One `readv` from `file` into the buffers; bytes read, or a number beyond
    /// [`RxWindow::len_bytes`] if there were more.
    ///
    /// # Errors
    /// That of `readv(2)`.
    pub(super) fn read_from(&mut self, file: &impl AsRawFd) -> io::Result<usize> {
        if self.len_bytes >= u64::from(MAX_FRAME_BYTES) {
            self.iovecs.read_behind(self.num_stale, file)
        } else {
            self.iovecs.read_behind_and_probe(self.num_stale, file)
        }
    }

    /// Copies `bytes` to the buffers, `offset` bytes from the start of the first one. What does not
    /// fit is left out.
    pub(super) fn write_at(&self, offset: u32, bytes: &[u8]) -> Result<(), QueueFault> {
        let mut bytes = bytes;
        for (gpa, len) in self.pieces(offset, bytes.len()) {
            let (piece, rest) = bytes.split_at(len);
            self.ram.write_slice(piece, gpa).map_err(QueueFault::Copy)?;
            bytes = rest;
        }
        Ok(())
    }

    /// Copies from the buffers, `offset` bytes from the start of the first one. What lies beyond
    /// the buffers stays as it is in `bytes`.
    pub(super) fn read_at(&self, offset: u32, bytes: &mut [u8]) -> Result<(), QueueFault> {
        let mut bytes = bytes;
        for (gpa, len) in self.pieces(offset, bytes.len()) {
            let (piece, rest) = bytes.split_at_mut(len);
            self.ram.read_slice(piece, gpa).map_err(QueueFault::Copy)?;
            bytes = rest;
        }
        Ok(())
    }

    /// The parts of guest memory that hold `len` bytes from `offset` on; together at most `len`.
    fn pieces(&self, offset: u32, len: usize) -> impl Iterator<Item = (GuestAddress, usize)> {
        let mut skip = offset;
        let mut left = len;
        self.segments.iter().map_while(move |segment| {
            if left == 0 {
                return None;
            }
            let skipped = skip.min(segment.len);
            skip -= skipped;
            let piece = left.min((segment.len - skipped) as usize);
            left -= piece;
            // The segment is in RAM, so the sum does not wrap.
            Some((
                GuestAddress(segment.gpa.0.wrapping_add(u64::from(skipped))),
                piece,
            ))
        })
    }

    fn rebuild(&mut self) -> Result<(), QueueFault> {
        self.iovecs.clear();
        self.num_stale = 0;
        for segment in &self.segments {
            self.iovecs.push(segment.gpa, segment.len)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
    }

    fn segment(gpa: u64, len: u32) -> Segment {
        Segment {
            gpa: GuestAddress(gpa),
            len,
            is_writable: true,
        }
    }

    fn push(window: &mut RxWindow, head: u16, segments: &[Segment]) {
        let len_bytes = segments.iter().map(|segment| segment.len).sum();
        window.push(Chain { head, len_bytes }, segments).unwrap();
    }

    #[test]
    fn bytes_at_an_offset_cross_segments_and_buffers() {
        let ram = ram();
        let mut window = RxWindow::new(ram.clone());
        push(&mut window, 0, &[segment(0x100, 3), segment(0x200, 2)]);
        push(&mut window, 1, &[segment(0x300, 8)]);

        window.write_at(2, b"abcdef").unwrap();

        let mut bytes = [0; 6];
        window.read_at(2, &mut bytes).unwrap();
        assert_eq!(&bytes, b"abcdef");
        assert_eq!(ram.read_obj::<u8>(GuestAddress(0x102)).unwrap(), b'a');
        assert_eq!(ram.read_obj::<u8>(GuestAddress(0x201)).unwrap(), b'c');
        assert_eq!(ram.read_obj::<u8>(GuestAddress(0x302)).unwrap(), b'f');
    }

    #[test]
    fn frames_fill_the_buffers_that_are_left() {
        let ram = ram();
        let mut window = RxWindow::new(ram.clone());
        push(&mut window, 0, &[segment(0x100, 4)]);
        push(&mut window, 1, &[segment(0x200, 4)]);
        let (host, guest) = UnixDatagram::pair().unwrap();
        window.pop().unwrap();

        host.send(b"wxyz").unwrap();

        assert_eq!(window.read_from(&guest).unwrap(), 4);
        let mut bytes = [0; 4];
        ram.read_slice(&mut bytes, GuestAddress(0x200)).unwrap();
        assert_eq!(&bytes, b"wxyz");
    }

    #[test]
    fn endless_use_keeps_the_scatter_list_short() {
        let mut window = RxWindow::new(ram());
        push(&mut window, 0, &[segment(0x100, 1)]);

        for head in 1..5000_u16 {
            push(&mut window, head, &[segment(u64::from(head), 1)]);
            window.pop().unwrap();
        }

        assert_eq!(window.num_buffers(), 1);
        assert_eq!(window.len_bytes(), 1);
        assert!(window.iovecs.num_segments() <= MAX_SEGMENTS);
        assert_eq!(window.iovecs.num_segments() - window.num_stale, 1);
    }
}
