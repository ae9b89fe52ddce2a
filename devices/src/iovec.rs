//! Scatter lists that point the kernel at guest memory.
//!
//! `readv`, `writev` and io_uring move bytes between a file and guest RAM without a copy in
//! between. Only the kernel dereferences the pointers in here, and the list keeps the mapping
//! alive, so no Rust reference into guest RAM ever exists.
#![expect(unsafe_code, reason = "vectored I/O on raw iovecs")]

use std::io;
use std::os::fd::AsRawFd;

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, Permissions};

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
        GuestIoVecs {
            ram,
            iovecs: Vec::new(),
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
        let slices = self
            .ram
            .get_slices(gpa, len as usize, Permissions::ReadWrite)
            .map_err(not_ram)?;
        for slice in slices {
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
        // SAFETY:
        // - `iovecs` holds at most MAX_SEGMENTS live entries, each inside a mapping that `ram` owns
        //   and keeps mapped read-write for the whole call (`push` made them from checked slices).
        // - no Rust reference into those mappings exists anywhere.
        let n = unsafe { libc::readv(file.as_raw_fd(), self.iovecs.as_ptr(), self.count()) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// One `writev` of the buffers to `file`; bytes written.
    ///
    /// # Errors
    /// That of `writev(2)`.
    pub fn write_to(&self, file: &impl AsRawFd) -> io::Result<usize> {
        // SAFETY: as in `read_from`.
        let n = unsafe { libc::writev(file.as_raw_fd(), self.iovecs.as_ptr(), self.count()) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// One `preadv` from `file` at `offset` bytes into the buffers; bytes read.
    ///
    /// # Errors
    /// That of `preadv(2)`.
    pub fn read_from_at(&self, file: &impl AsRawFd, offset: u64) -> io::Result<usize> {
        // SAFETY: as in `read_from`.
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
        // SAFETY: as in `read_from`.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use vm_memory::Bytes;

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
