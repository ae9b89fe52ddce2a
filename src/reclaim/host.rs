//! What the reclaimer asks of the host's kernel, which tests stand in for.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use super::ram::PageBytes;
use super::userfault::Fault;

/// A file of pages, with holes: guest RAM, or a swap file. Offsets and lengths are in bytes.
pub trait PageFile: fmt::Debug + Send + Sync {
    /// Reads all of `bytes` at `offset`; holes are zeros.
    ///
    /// # Errors
    /// Those of `pread`; `UnexpectedEof` past the end.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// Those of `pwrite`.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes a hole.
    ///
    /// # Errors
    /// Those of `fallocate`.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes zeros of holes.
    ///
    /// # Errors
    /// Those of `fallocate`: memory is short.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Where data is, at `offset` or after; `None` if there is none.
    ///
    /// # Errors
    /// Those of `lseek`.
    fn data_from(&self, offset: u64) -> io::Result<Option<u64>>;

    /// Where a hole is, at `offset` or after, or the end.
    ///
    /// # Errors
    /// Those of `lseek`.
    fn hole_from(&self, offset: u64) -> io::Result<u64>;
}

impl PageFile for File {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(self, flags, offset, len)?)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        Ok(fallocate(self, FallocateFlags::KEEP_SIZE, offset, len)?)
    }

    fn data_from(&self, offset: u64) -> io::Result<Option<u64>> {
        match seek(self, SeekFrom::Data(offset)) {
            Ok(offset) => Ok(Some(offset)),
            Err(Errno::NXIO) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn hole_from(&self, offset: u64) -> io::Result<u64> {
        Ok(seek(self, SeekFrom::Hole(offset))?)
    }
}

/// Accesses to the mapping of guest RAM, which can be made to wait, and threads of ours that do.
pub trait Accesses: AsFd + fmt::Debug + Send + Sync {
    /// From now on accesses to `pages` that need something wait until they are served.
    ///
    /// # Errors
    /// Those of `UFFDIO_REGISTER`: another userfaultfd has them, or memory is short.
    fn register(&self, pages: Range<u64>) -> Result<(), Errno>;

    /// Writes to `pages` wait from its return on; writes before are visible. Holes stay holes, and
    /// are protected when they are filled by [`Accesses::fill`] with `protect` only.
    ///
    /// # Errors
    /// Those of `UFFDIO_WRITEPROTECT`.
    fn protect(&self, pages: Range<u64>) -> Result<(), Errno>;

    /// Lets writes to `pages` go on.
    ///
    /// # Errors
    /// Those of `UFFDIO_WRITEPROTECT`.
    fn unprotect(&self, pages: Range<u64>) -> Result<(), Errno>;

    /// Puts `bytes` into the hole that is `page`, maps it and lets those go on who wait for it; with
    /// `protect` the next write waits. False, and nothing changes, if it is no hole.
    ///
    /// # Errors
    /// Those of `UFFDIO_COPY`: memory is short; `EINVAL`: no such page.
    fn fill(&self, page: u64, bytes: &PageBytes, protect: bool) -> Result<bool, Errno>;

    /// Maps `pages`, which are in the file, and lets those go on who wait for them; with `protect`
    /// the next write waits.
    ///
    /// # Errors
    /// Those of `UFFDIO_CONTINUE`: `EFAULT` if the first one is a hole, `EEXIST` if it is mapped;
    /// `EAGAIN` if another one is, and those before it are mapped now.
    fn map(&self, pages: Range<u64>, protect: bool) -> Result<(), Errno>;

    /// Lets those try again who wait for `page`, if any: accesses, and threads of ours.
    ///
    /// # Errors
    /// Those of `UFFDIO_WAKE`.
    fn wake(&self, page: u64) -> Result<(), Errno>;

    /// Waits as long as `is_waited_for`, which is asked again after each [`Accesses::wake`].
    fn wait_while(&self, is_waited_for: &dyn Fn() -> bool);

    /// The accesses that have begun to wait, at most a few. Does not block; the descriptor is readable
    /// when there are some.
    ///
    /// # Errors
    /// Those of `read`, except `EAGAIN`.
    fn faults(&self) -> Result<Vec<Fault>, Errno>;
}
