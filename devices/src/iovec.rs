//! Scatter lists that point the kernel at guest memory.
//!
//! `readv`, `writev` and io_uring move bytes between a file and guest RAM without a copy in
//! between. Only the kernel dereferences the pointers in here, and the list keeps the mapping
//! alive, so no Rust reference into guest RAM ever exists.
#![expect(unsafe_code, reason = "vectored I/O on raw iovecs")]

use std::io;
use std::os::fd::AsRawFd;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError, VolatileSlice};

use crate::GuestRam;

/// Most segments that one system call takes (`UIO_MAXIOV`).
pub const MAX_SEGMENTS: usize = 1024;

/// Why a guest buffer cannot join a scatter list.
#[derive(Debug, thiserror::Error)]
pub enum IoVecError {
    /// The buffer is not all RAM.
    #[error("buffer of {len} bytes at GPA {gpa:#x} is not all RAM")]
    NotRam {
        /// First guest-physical address.
        gpa: u64,
        /// Length in bytes.
        len: usize,
        /// What the memory map said.
        source: GuestMemoryError,
    },
    /// The list is full.
    #[error("more than {MAX_SEGMENTS} segments")]
    TooManySegments,
    /// The sum of all lengths does not fit.
    #[error("more than {} bytes", u32::MAX)]
    TooLong,
}

/// An ordered list of guest buffers.
pub struct GuestIoVecs {
    /// Keeps every mapping that `iovecs` points into alive.
    ram: GuestRam,
    iovecs: Vec<libc::iovec>,
    len_bytes: u32,
}

impl std::fmt::Debug for GuestIoVecs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestIoVecs")
            .field("segments", &self.iovecs.len())
            .field("len_bytes", &self.len_bytes)
            .finish_non_exhaustive()
    }
}

// SAFETY: the pointers lead into shared mappings that `ram` (which is Send) keeps alive; nothing
// ties them to the thread that made them.
unsafe impl Send for GuestIoVecs {}

impl GuestIoVecs {
    /// An empty list of buffers in `ram`.
    pub fn new(ram: GuestRam) -> Self {
        Self::with_capacity(ram, 0)
    }

    /// An empty list with room for `num_segments` segments; more are allocated when they are needed.
    pub fn with_capacity(ram: GuestRam, num_segments: usize) -> Self {
        GuestIoVecs {
            ram,
            iovecs: Vec::with_capacity(num_segments.min(MAX_SEGMENTS)),
            len_bytes: 0,
        }
    }

    /// Forgets all buffers and keeps the allocation.
    pub fn clear(&mut self) {
        self.iovecs.clear();
        self.len_bytes = 0;
    }

    /// Sum of the buffers' lengths in bytes.
    pub fn len_bytes(&self) -> u32 {
        self.len_bytes
    }

    /// Number of segments; one buffer has several where it crosses memory regions.
    pub fn num_segments(&self) -> usize {
        self.iovecs.len()
    }

    /// Appends the buffer `gpa .. gpa + len`. A buffer of zero bytes adds nothing.
    ///
    /// # Errors
    /// [`IoVecError`]; the list keeps what it held before, or a part of the new buffer that the
    /// caller throws away with [`GuestIoVecs::truncate`].
    pub fn push(&mut self, gpa: GuestAddress, len: u32) -> Result<(), IoVecError> {
        let not_ram = |source| IoVecError::NotRam {
            gpa: gpa.0,
            len: len as usize,
            source,
        };
        let total = self.len_bytes.checked_add(len).ok_or(IoVecError::TooLong)?;
        for slice in self.ram.get_slices(gpa, len as usize) {
            let slice = slice.map_err(not_ram)?;
            if self.iovecs.len() == MAX_SEGMENTS {
                return Err(IoVecError::TooManySegments);
            }
            self.iovecs.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
        self.len_bytes = total;
        Ok(())
    }

    /// Cuts the list to its first `len_bytes` bytes.
    pub fn truncate(&mut self, len_bytes: u32) {
        let mut left = len_bytes as usize;
        let mut num_kept = 0;
        for iovec in &mut self.iovecs {
            if left == 0 {
                break;
            }
            iovec.iov_len = iovec.iov_len.min(left);
            left -= iovec.iov_len;
            num_kept += 1;
        }
        self.iovecs.truncate(num_kept);
        self.len_bytes = self.len_bytes.min(len_bytes);
    }

    /// The list for a system call that finishes while `self` is alive and unchanged (io_uring).
    pub fn as_iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }

    /// One `readv` from `file` into the buffers; bytes read.
    ///
    /// # Errors
    /// That of `readv(2)`.
    pub fn read_from(&self, file: &impl AsRawFd) -> io::Result<usize> {
        self.read_behind(0, file)
    }

    /// As [`GuestIoVecs::read_from`], into the buffers behind the first `num_skipped` segments.
    ///
    /// # Errors
    /// That of `readv(2)`.
    pub fn read_behind(&self, num_skipped: usize, file: &impl AsRawFd) -> io::Result<usize> {
        let iovecs = self.iovecs.get(num_skipped..).unwrap_or_default();
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_SEGMENTS")]
        let count = iovecs.len() as libc::c_int;
        // SAFETY:
        // - `iovecs` is at most MAX_SEGMENTS live entries, each inside a mapping that `ram` owns and
        //   keeps mapped read-write for the whole call (`push` made them from checked slices), or
        //   inside the byte that `read_behind_and_probe` lends for the call.
        // - no Rust reference into those mappings exists anywhere.
        let n = unsafe { libc::readv(file.as_raw_fd(), iovecs.as_ptr(), count) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// As [`GuestIoVecs::read_behind`], with one more byte of room that is ours: a result beyond the
    /// buffers' length says that a datagram did not fit them. A full list lends its last segment.
    ///
    /// # Errors
    /// That of `readv(2)`.
    pub fn read_behind_and_probe(
        &mut self,
        num_skipped: usize,
        file: &impl AsRawFd,
    ) -> io::Result<usize> {
        let mut spare = 0_u8;
        let lent = match self.iovecs.len() {
            MAX_SEGMENTS => self.iovecs.pop(),
            _ => None,
        };
        // `spare` outlives the call, and nobody borrows it; afterwards it is not in the list.
        self.iovecs.push(libc::iovec {
            iov_base: std::ptr::from_mut(&mut spare).cast(),
            iov_len: 1,
        });
        let result = self.read_behind(num_skipped, file);
        self.iovecs.pop();
        self.iovecs.extend(lent);
        result
    }

    /// One `writev` of the buffers to `file`; bytes written.
    ///
    /// # Errors
    /// That of `writev(2)`.
    pub fn write_to(&self, file: &impl AsRawFd) -> io::Result<usize> {
        // SAFETY: as in `read_behind`.
        let n = unsafe { libc::writev(file.as_raw_fd(), self.iovecs.as_ptr(), self.count()) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// One `preadv` from `file` at `offset` bytes into the buffers; bytes read.
    ///
    /// # Errors
    /// That of `preadv(2)`.
    pub fn read_from_at(&self, file: &impl AsRawFd, offset: u64) -> io::Result<usize> {
        // SAFETY: as in `read_behind`.
        let n = unsafe {
            libc::preadv64(
                file.as_raw_fd(),
                self.iovecs.as_ptr(),
                self.count(),
                offset.cast_signed(),
            )
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// One `pwritev` of the buffers to `file` at `offset` bytes; bytes written.
    ///
    /// # Errors
    /// That of `pwritev(2)`.
    pub fn write_to_at(&self, file: &impl AsRawFd, offset: u64) -> io::Result<usize> {
        // SAFETY: as in `read_behind`.
        let n = unsafe {
            libc::pwritev64(
                file.as_raw_fd(),
                self.iovecs.as_ptr(),
                self.count(),
                offset.cast_signed(),
            )
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    #[expect(clippy::cast_possible_truncation, reason = "at most MAX_SEGMENTS")]
    fn count(&self) -> libc::c_int {
        self.iovecs.len() as libc::c_int
    }
}

/// A part of a peer's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First guest-physical address.
    pub gpa: GuestAddress,
    /// Length in bytes.
    pub len: u32,
}

impl Piece {
    /// Where it is in `ram`, if that is in one region: one look, for what is nearly always so.
    pub(crate) fn slice(self, ram: &GuestRam) -> Option<VolatileSlice<'_>> {
        ram.get_slice(self.gpa, self.len as usize).ok()
    }

    /// Whether all of it is memory.
    pub(crate) fn is_in(self, ram: &GuestRam) -> bool {
        self.slice(ram).is_some() || ram.check_range(self.gpa, self.len as usize)
    }
}

/// A scatter list for one system call at a time, of private bytes and of guest buffers.
///
/// Unlike [`GuestIoVecs`] it keeps no mapping alive and nothing between two calls but its
/// allocation: for lists that differ from call to call.
#[derive(Debug, Default)]
pub struct MixedIoVecs {
    /// Empty but during a call.
    iovecs: Vec<libc::iovec>,
}

// SAFETY: it holds no pointers while no call is at work, and a call borrows it exclusively.
unsafe impl Send for MixedIoVecs {}

impl MixedIoVecs {
    /// A list with room for `num_segments` segments; more are allocated when they are needed.
    pub fn with_capacity(num_segments: usize) -> Self {
        MixedIoVecs {
            iovecs: Vec::with_capacity(num_segments.min(MAX_SEGMENTS)),
        }
    }

    fn push(&mut self, base: *mut u8, len: usize) -> Result<(), IoVecError> {
        if self.iovecs.len() == MAX_SEGMENTS {
            return Err(IoVecError::TooManySegments);
        }
        self.iovecs.push(libc::iovec {
            iov_base: base.cast(),
            iov_len: len,
        });
        Ok(())
    }

    fn push_guest(&mut self, ram: &GuestRam, piece: Piece) -> Result<(), IoVecError> {
        if let Some(slice) = piece.slice(ram) {
            return self.push(slice.ptr_guard_mut().as_ptr(), slice.len());
        }
        let not_ram = |source| IoVecError::NotRam {
            gpa: piece.gpa.0,
            len: piece.len as usize,
            source,
        };
        for slice in ram.get_slices(piece.gpa, piece.len as usize) {
            let slice = slice.map_err(not_ram)?;
            self.push(slice.ptr_guard_mut().as_ptr(), slice.len())?;
        }
        Ok(())
    }

    /// One `writev` to `file`: of `private`, then of `pieces` of `ram`; bytes written.
    ///
    /// # Errors
    /// That of `writev(2)`, or [`IoVecError`] inside of an error of kind `InvalidInput`.
    pub fn write(
        &mut self,
        file: &impl AsRawFd,
        private: &[&[u8]],
        ram: &GuestRam,
        pieces: impl IntoIterator<Item = Piece>,
    ) -> io::Result<usize> {
        self.write_filled(file, private, |list| {
            let mut pieces = pieces.into_iter();
            pieces.try_for_each(|piece| list.push_guest(ram, piece))
        })
    }

    /// The same of `private` alone.
    ///
    /// # Errors
    /// As [`MixedIoVecs::write`].
    pub fn write_private(&mut self, file: &impl AsRawFd, private: &[&[u8]]) -> io::Result<usize> {
        self.write_filled(file, private, |_| Ok(()))
    }

    /// The same of `private` and then of `guest`, a part of a peer's memory that was looked up.
    ///
    /// # Errors
    /// As [`MixedIoVecs::write`].
    pub fn write_slice(
        &mut self,
        file: &impl AsRawFd,
        private: &[&[u8]],
        guest: VolatileSlice<'_>,
    ) -> io::Result<usize> {
        self.write_filled(file, private, |list| {
            list.push(guest.ptr_guard_mut().as_ptr(), guest.len())
        })
    }

    /// `push_guest` pushes nothing but what its caller borrows.
    fn write_filled(
        &mut self,
        file: &impl AsRawFd,
        private: &[&[u8]],
        push_guest: impl FnOnce(&mut Self) -> Result<(), IoVecError>,
    ) -> io::Result<usize> {
        self.iovecs.clear();
        let fill = || {
            for bytes in private {
                // The kernel only reads what `writev` is given.
                self.push(bytes.as_ptr().cast_mut(), bytes.len())?;
            }
            push_guest(self)
        };
        let result = fill().map_err(invalid).and_then(|()| {
            // SAFETY:
            // - `iovecs` holds at most MAX_SEGMENTS live entries, each inside of `private` or of guest
            //   memory that `push_guest`'s maker borrows; both for the whole call.
            // - `writev` writes to none of them, and no Rust reference into guest RAM exists.
            let n = unsafe { libc::writev(file.as_raw_fd(), self.iovecs.as_ptr(), self.count()) };
            usize::try_from(n).map_err(|_| io::Error::last_os_error())
        });
        self.iovecs.clear();
        result
    }

    /// One `readv` from `file`: to `head`, then to `pieces` of `ram`, then to `tail`; bytes read.
    ///
    /// # Errors
    /// That of `readv(2)`, or [`IoVecError`] inside of an error of kind `InvalidInput`.
    pub fn read(
        &mut self,
        file: &impl AsRawFd,
        head: &mut [u8],
        ram: &GuestRam,
        pieces: impl IntoIterator<Item = Piece>,
        tail: &mut [u8],
    ) -> io::Result<usize> {
        self.iovecs.clear();
        let fill = || {
            self.push(head.as_mut_ptr(), head.len())?;
            pieces
                .into_iter()
                .try_for_each(|piece| self.push_guest(ram, piece))?;
            self.push(tail.as_mut_ptr(), tail.len())
        };
        let result = fill().map_err(invalid).and_then(|()| {
            // SAFETY:
            // - `iovecs` holds at most MAX_SEGMENTS live entries, each inside of `head` or `tail`,
            //   which are borrowed exclusively, or of a mapping of `ram`, which is borrowed; all for
            //   the whole call.
            // - no Rust reference into guest RAM exists.
            let n = unsafe { libc::readv(file.as_raw_fd(), self.iovecs.as_ptr(), self.count()) };
            usize::try_from(n).map_err(|_| io::Error::last_os_error())
        });
        self.iovecs.clear();
        result
    }

    #[expect(clippy::cast_possible_truncation, reason = "at most MAX_SEGMENTS")]
    fn count(&self) -> libc::c_int {
        self.iovecs.len() as libc::c_int
    }
}

fn invalid(error: IoVecError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use vm_memory::Bytes;

    fn piece(gpa: u64, len: u32) -> Piece {
        let gpa = GuestAddress(gpa);
        Piece { gpa, len }
    }

    #[test]
    fn mixed_list_is_written_private_bytes_first() {
        let ram = ram();
        ram.write_slice(b"abcd", GuestAddress(0xffe)).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let mut list = MixedIoVecs::default();

        let pieces = [piece(0xffe, 4), piece(0xfff, 1)];
        assert_eq!(list.write(&file, &[b"12", b"3"], &ram, pieces).unwrap(), 8);

        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "123abcdb");
    }

    #[test]
    fn mixed_list_is_read_in_order() {
        let ram = ram();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        file.rewind().unwrap();
        let mut list = MixedIoVecs::with_capacity(4);
        let (mut head, mut tail) = ([0; 2], [0; 8]);

        let pieces = [piece(0xfff, 2), piece(0x10, 3)];
        let len = list
            .read(&file, &mut head, &ram, pieces, &mut tail)
            .unwrap();

        assert_eq!((len, &head, &tail), (10, b"01", b"789\0\0\0\0\0"));
        let mut bytes = [0; 2];
        ram.read_slice(&mut bytes, GuestAddress(0xfff)).unwrap();
        assert_eq!(&bytes, b"23");
    }

    #[test]
    fn mixed_list_refuses_what_is_not_ram() {
        let mut list = MixedIoVecs::default();
        let file = tempfile::tempfile().unwrap();

        let error = list.write(&file, &[b"x"], &ram(), [piece(0x1fff, 2)]);

        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(file.metadata().unwrap().len(), 0);
    }

    /// Two regions that touch at 0x1000.
    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)]).unwrap()
    }

    #[test]
    fn buffer_across_two_regions_is_written_in_order() {
        let ram = ram();
        ram.write_slice(b"abcd", GuestAddress(0xffe)).unwrap();
        let mut iovecs = GuestIoVecs::new(ram);
        iovecs.push(GuestAddress(0xffe), 4).unwrap();
        let mut file = tempfile::tempfile().unwrap();

        assert_eq!(iovecs.write_to(&file).unwrap(), 4);

        assert_eq!(iovecs.num_segments(), 2);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcd");
    }

    #[test]
    fn read_fills_buffers_in_order_and_stops_at_truncation() {
        let ram = ram();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut iovecs = GuestIoVecs::new(ram.clone());
        iovecs.push(GuestAddress(0x10), 3).unwrap();
        iovecs.push(GuestAddress(0x20), 3).unwrap();
        iovecs.push(GuestAddress(0x30), 3).unwrap();
        iovecs.truncate(5);

        assert_eq!(iovecs.read_from_at(&file, 1).unwrap(), 5);

        let mut bytes = [0; 3];
        ram.read_slice(&mut bytes, GuestAddress(0x20)).unwrap();
        assert_eq!(&bytes, b"45\0");
        assert_eq!(iovecs.len_bytes(), 5);
    }

    #[test]
    fn push_refuses_a_buffer_past_the_end_of_ram() {
        let mut iovecs = GuestIoVecs::new(ram());

        let err = iovecs.push(GuestAddress(0x1ffc), 5).unwrap_err();

        assert!(
            matches!(err, IoVecError::NotRam { gpa: 0x1ffc, .. }),
            "{err}"
        );
    }

    #[test]
    fn push_refuses_more_segments_than_the_kernel_takes() {
        let mut iovecs = GuestIoVecs::new(ram());
        for _ in 0..MAX_SEGMENTS {
            iovecs.push(GuestAddress(0), 1).unwrap();
        }

        let err = iovecs.push(GuestAddress(0), 1).unwrap_err();

        assert!(matches!(err, IoVecError::TooManySegments), "{err}");
    }
}
