//! A guest buffer in pieces, as a descriptor chain names it.

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};

use crate::GuestRam;
use crate::iovec::{GuestIoVecs, IoVecError};

/// One piece of guest memory; nothing says that it is RAM.
#[derive(Debug, Clone, Copy)]
struct Segment {
    gpa: GuestAddress,
    len: u32,
}

/// Pieces of guest memory in order. Their number is bounded by who pushes.
#[derive(Debug, Default)]
pub(super) struct Segments {
    list: Vec<Segment>,
    len_bytes: u32,
}

impl Segments {
    /// Forgets all pieces and keeps the allocation.
    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.len_bytes = 0;
    }

    /// Appends `gpa .. gpa + len`; false if the total would not fit 32 bits.
    pub(super) fn push(&mut self, gpa: GuestAddress, len: u32) -> bool {
        let Some(total) = self.len_bytes.checked_add(len) else {
            return false;
        };
        if len > 0 {
            self.list.push(Segment { gpa, len });
            self.len_bytes = total;
        }
        true
    }

    /// Total length in bytes.
    pub(super) fn len_bytes(&self) -> u32 {
        self.len_bytes
    }

    /// Where the pieces are, and their lengths in bytes.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (GuestAddress, u32)> {
        self.list.iter().map(|segment| (segment.gpa, segment.len))
    }

    /// Cuts off the last byte and tells where it is; `None` if there is none, or if its piece wraps
    /// the address space.
    pub(super) fn pop_last_byte(&mut self) -> Option<GuestAddress> {
        let last = self.list.last_mut()?;
        let gpa = last.gpa.checked_add(u64::from(last.len) - 1)?;
        last.len -= 1;
        self.len_bytes -= 1;
        if last.len == 0 {
            self.list.pop();
        }
        Some(gpa)
    }

    /// Cuts off the first bytes and copies them to `buf`, as many as fit; their number.
    ///
    /// # Errors
    /// A piece is not RAM.
    pub(super) fn take_front(
        &mut self,
        ram: &GuestRam,
        buf: &mut [u8],
    ) -> Result<usize, GuestMemoryError> {
        let mut num_taken = 0;
        let mut num_used_up = 0;
        for segment in &mut self.list {
            let rest = buf.get_mut(num_taken..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            let len = rest.len().min(segment.len as usize);
            ram.read_slice(rest.get_mut(..len).unwrap_or_default(), segment.gpa)?;
            num_taken += len;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "at most segment.len, a u32"
            )]
            let len = len as u32;
            // read_slice found all of it, so the end does not wrap.
            segment.gpa = segment.gpa.unchecked_add(u64::from(len));
            segment.len -= len;
            self.len_bytes -= len;
            num_used_up += usize::from(segment.len == 0);
        }
        self.list.drain(..num_used_up);
        Ok(num_taken)
    }

    /// Copies the first bytes of `data` to the pieces, as many as fit; their number.
    ///
    /// # Errors
    /// A piece is not RAM.
    pub(super) fn write(&self, ram: &GuestRam, data: &[u8]) -> Result<u32, GuestMemoryError> {
        let mut rest = data;
        let mut num_written = 0;
        for segment in &self.list {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at(rest.len().min(segment.len as usize));
            ram.write_slice(now, segment.gpa)?;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "at most segment.len, a u32"
            )]
            let len = now.len() as u32;
            num_written += len;
            rest = later;
        }
        Ok(num_written)
    }

    /// Fills `iovecs` with the pieces but for their first `skip` bytes.
    ///
    /// # Errors
    /// A piece is not RAM.
    pub(super) fn fill(&self, iovecs: &mut GuestIoVecs, skip: u32) -> Result<(), IoVecError> {
        iovecs.clear();
        let mut skip = skip;
        for segment in &self.list {
            let skipped = skip.min(segment.len);
            skip -= skipped;
            if skipped == segment.len {
                continue;
            }
            let gpa = GuestAddress(segment.gpa.0.wrapping_add(u64::from(skipped)));
            iovecs.push(gpa, segment.len - skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap()
    }

    fn segments(pieces: &[(u64, u32)]) -> Segments {
        let mut segments = Segments::default();
        for (gpa, len) in pieces {
            assert!(segments.push(GuestAddress(*gpa), *len));
        }
        segments
    }

    #[test]
    fn front_is_taken_across_pieces() {
        let ram = ram();
        ram.write_slice(b"abcdef", GuestAddress(0x10)).unwrap();
        let mut pieces = segments(&[(0x10, 2), (0x12, 0), (0x12, 4)]);
        let mut buf = [0; 3];

        assert_eq!(pieces.take_front(&ram, &mut buf).unwrap(), 3);

        assert_eq!(&buf, b"abc");
        assert_eq!(pieces.len_bytes(), 3);
        assert_eq!(pieces.pop_last_byte(), Some(GuestAddress(0x15)));
    }

    #[test]
    fn front_is_short_when_the_pieces_are() {
        let mut pieces = segments(&[(0x10, 2)]);

        assert_eq!(pieces.take_front(&ram(), &mut [0; 3]).unwrap(), 2);

        assert_eq!(pieces.len_bytes(), 0);
        assert_eq!(pieces.pop_last_byte(), None);
    }

    #[test]
    fn last_byte_of_a_piece_that_wraps_is_nowhere() {
        let mut pieces = segments(&[(u64::MAX, 2)]);

        assert_eq!(pieces.pop_last_byte(), None);
    }

    #[test]
    fn total_of_four_gib_is_refused() {
        let mut pieces = segments(&[(0, u32::MAX)]);

        assert!(!pieces.push(GuestAddress(0), 1));
    }

    #[test]
    fn fill_skips_across_pieces() {
        let mut iovecs = GuestIoVecs::new(ram());

        segments(&[(0, 4), (8, 4), (16, 4)])
            .fill(&mut iovecs, 6)
            .unwrap();

        assert_eq!(iovecs.num_segments(), 2);
        assert_eq!(iovecs.len_bytes(), 6);
    }
}
