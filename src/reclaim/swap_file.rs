//! The private swap file of one VM: pages that have no other backing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};

use super::ram::{PAGE_BYTES, PageBytes};
use super::word::NUM_ADDRESSES;

const PAGE_LEN: u64 = PAGE_BYTES as u64;

/// A page at an address that direct I/O takes.
#[derive(Debug, Clone)]
#[repr(C, align(4096))]
pub struct PageBuffer(pub PageBytes);

impl Default for PageBuffer {
    fn default() -> Self {
        PageBuffer([0; PAGE_BYTES])
    }
}

/// Slots of a page each in a file that nobody else uses.
///
/// The file has no name: nothing is left when the VM ends, however it ends.
#[derive(Debug)]
pub struct SwapFile {
    file: File,
    slots: Mutex<Slots>,
}

#[derive(Debug)]
struct Slots {
    /// Given back, and to be given next.
    free: Vec<u64>,
    /// Never given yet from here on.
    next: u64,
    /// There are so many.
    end: u64,
}

impl SwapFile {
    /// A file of at most `bytes` in the directory `dir`, whose disk it takes as it fills.
    ///
    /// # Errors
    /// Those of opening a file there; `EOPNOTSUPP` of a file system without unnamed files.
    pub fn create(dir: &Path, bytes: u64) -> io::Result<Self> {
        let open = |flags: i32| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_TMPFILE | flags)
                .mode(0o600)
                .open(dir)
        };
        // Swapped pages are not to fill the host's page cache. Some file systems cannot help it.
        let file = match open(libc::O_DIRECT) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => open(0),
            result => result,
        }?;
        let end = (bytes / PAGE_LEN).min(NUM_ADDRESSES);
        Ok(SwapFile {
            file,
            slots: Mutex::new(Slots {
                free: Vec::new(),
                next: 0,
                end,
            }),
        })
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of slots in use.
    pub fn num_used(&self) -> u64 {
        let slots = self.slots();
        slots.next - slots.free.len() as u64
    }

    /// Writes a page to a free slot; `None` if there is none.
    ///
    /// # Errors
    /// Those of `pwrite`: the disk is full.
    pub fn store(&self, bytes: &PageBuffer) -> io::Result<Option<u64>> {
        let Some(slot) = self.take_slot() else {
            return Ok(None);
        };
        let written = self.file.write_all_at(&bytes.0, slot * PAGE_LEN);
        if let Err(error) = written {
            self.slots().free.push(slot);
            return Err(error);
        }
        Ok(Some(slot))
    }

    fn take_slot(&self) -> Option<u64> {
        let mut slots = self.slots();
        if let Some(slot) = slots.free.pop() {
            return Some(slot);
        }
        let slot = slots.next;
        slots.next = (slot < slots.end).then_some(slot + 1)?;
        Some(slot)
    }

    /// Reads the page in `slot`.
    ///
    /// # Errors
    /// Those of `pread`.
    pub fn load(&self, slot: u64, bytes: &mut PageBuffer) -> io::Result<()> {
        self.file.read_exact_at(&mut bytes.0, slot * PAGE_LEN)
    }

    /// Gives `slot` back, whose page is in memory again or gone.
    pub fn free(&self, slot: u64) {
        // Before anybody else gets it. What cannot be punched is used again all the same.
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = fallocate(&self.file, flags, slot * PAGE_LEN, PAGE_LEN);
        self.slots().free.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(byte: u8) -> PageBuffer {
        PageBuffer([byte; PAGE_BYTES])
    }

    #[test]
    fn pages_come_back_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let swap = SwapFile::create(dir.path(), 1 << 20).unwrap();
        let slots: Vec<_> = (0..3)
            .map(|byte| swap.store(&page(byte)).unwrap().unwrap())
            .collect();
        for (byte, slot) in slots.into_iter().enumerate() {
            let mut bytes = page(0xff);
            swap.load(slot, &mut bytes).unwrap();
            assert_eq!(usize::from(bytes.0[0]), byte);
            assert_eq!(bytes.0[0], bytes.0[PAGE_BYTES - 1]);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn no_more_slots_than_there_is_room_for() {
        let dir = tempfile::tempdir().unwrap();
        let swap = SwapFile::create(dir.path(), 2 * PAGE_LEN + 1).unwrap();
        let first = swap.store(&page(1)).unwrap().unwrap();
        assert!(swap.store(&page(2)).unwrap().is_some());
        assert_eq!(swap.store(&page(3)).unwrap(), None);
        assert_eq!(swap.num_used(), 2);

        swap.free(first);

        assert_eq!(swap.num_used(), 1);
        assert_eq!(swap.store(&page(4)).unwrap(), Some(first));
    }
}
