//! The private swap file of one VM: pages that have no other backing.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use parking_lot::Mutex;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::host::PageFile;
use super::ram::{PAGE_BYTES, PageBytes};
use super::word::NUM_ADDRESSES;

const PAGE_LEN: u64 = PAGE_BYTES as u64;

/// A page at an address that direct I/O takes.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable)]
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
    file: Box<dyn PageFile>,
    slots: Mutex<Slots>,
}

#[derive(Debug)]
struct Slots {
    /// Given back, and to be given when there are no others.
    free: BTreeSet<u64>,
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
        Ok(SwapFile::new(Box::new(file), bytes))
    }

    /// At most `bytes` of `file`, which is empty.
    pub(super) fn new(file: Box<dyn PageFile>, bytes: u64) -> Self {
        SwapFile {
            file,
            slots: Mutex::new(Slots {
                free: BTreeSet::new(),
                next: 0,
                end: (bytes / PAGE_LEN).min(NUM_ADDRESSES),
            }),
        }
    }

    /// Number of slots in use.
    pub fn num_used(&self) -> u64 {
        let slots = self.slots.lock();
        slots.next - slots.free.len() as u64
    }

    /// Writes pages to free slots that follow each other, as many as there are in one place; none if
    /// there is none.
    ///
    /// # Errors
    /// Those of `pwrite`: the disk is full.
    pub fn store(&self, pages: &[PageBuffer]) -> io::Result<Range<u64>> {
        let slots = self.take_slots(pages.len() as u64);
        let num_slots = usize::try_from(slots.end - slots.start).unwrap_or(0);
        let bytes = pages.get(..num_slots).unwrap_or_default().as_bytes();
        let written = self.file.write_all_at(bytes, slots.start * PAGE_LEN);
        if let Err(error) = written {
            self.slots.lock().free.extend(slots);
            return Err(error);
        }
        Ok(slots)
    }

    /// At most so many that follow each other. Those first that were never used; the others cost no
    /// place on the disk.
    fn take_slots(&self, num_wanted: u64) -> Range<u64> {
        let mut slots = self.slots.lock();
        if slots.next < slots.end {
            let start = slots.next;
            slots.next = start.saturating_add(num_wanted).min(slots.end);
            return start..slots.next;
        }
        let start = slots.free.first().copied().unwrap_or(slots.end);
        let mut end = start;
        while end - start < num_wanted && slots.free.remove(&end) {
            end += 1;
        }
        start..end
    }

    /// Reads the pages in `slot` and those that follow it.
    ///
    /// # Errors
    /// Those of `pread`.
    pub fn load(&self, slot: u64, pages: &mut [PageBuffer]) -> io::Result<()> {
        self.file
            .read_exact_at(pages.as_mut_bytes(), slot * PAGE_LEN)
    }

    /// Gives `slots` back, whose pages are in memory again or gone.
    pub fn free(&self, slots: Range<u64>) {
        // Before anybody else gets them. What cannot be punched is used again all the same.
        let (start, len) = (slots.start * PAGE_LEN, (slots.end - slots.start) * PAGE_LEN);
        let _ = self.file.punch(start, len);
        self.slots.lock().free.extend(slots);
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
        assert_eq!(swap.store(&[page(0), page(1)]).unwrap(), 0..2);
        assert_eq!(swap.store(&[page(2)]).unwrap(), 2..3);

        let mut pages = [page(0xff), page(0xff)];
        swap.load(1, &mut pages).unwrap();

        assert_eq!(pages[0].0, [1; PAGE_BYTES]);
        assert_eq!(pages[1].0, [2; PAGE_BYTES]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn no_more_slots_than_there_is_room_for() {
        let dir = tempfile::tempdir().unwrap();
        let swap = SwapFile::create(dir.path(), 3 * PAGE_LEN + 1).unwrap();
        assert_eq!(swap.store(&[page(1), page(2)]).unwrap(), 0..2);
        assert_eq!(swap.store(&[page(3), page(4)]).unwrap(), 2..3);
        assert!(swap.store(&[page(4)]).unwrap().is_empty());
        assert_eq!(swap.num_used(), 3);

        swap.free(0..2);

        assert_eq!(swap.num_used(), 1);
        assert_eq!(swap.store(&[page(4)]).unwrap(), 0..1);
        swap.free(2..3);
        // No more than follow each other.
        assert_eq!(swap.store(&[page(5), page(6), page(7)]).unwrap(), 1..3);
        assert!(swap.store(&[page(8)]).unwrap().is_empty());
        assert_eq!(swap.num_used(), 3);
    }
}
