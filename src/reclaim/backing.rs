//! Disks whose contents pages may be rebuilt from, and what is known of them.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use alacrity_devices::virtio::blk::Disk;
use parking_lot::{Mutex, MutexGuard};
use zerocopy::IntoBytes;

use super::ram::PAGE_BYTES;
use super::swap_file::PageBuffer;
use super::word::{Backing, NUM_ADDRESSES};

/// Bytes of a sector.
pub const SECTOR_BYTES: u64 = 512;
/// Sectors of a page.
pub const PAGE_SECTORS: u64 = 8;

/// What a page can be read from again.
pub trait PageSource: Send + Sync + fmt::Debug {
    /// Reads a page at `offset`, in bytes.
    ///
    /// # Errors
    /// Those of the device; `UnexpectedEof` past its end.
    fn read_page(&self, offset: u64, bytes: &mut PageBuffer) -> io::Result<()>;

    /// Reads pages that follow each other from `offset` on, in bytes.
    ///
    /// # Errors
    /// As [`PageSource::read_page`], if any of them cannot be read.
    fn read_pages(&self, offset: u64, pages: &mut [PageBuffer]) -> io::Result<()> {
        let offsets = (offset..).step_by(PAGE_BYTES);
        let mut pages = pages.iter_mut().zip(offsets);
        pages.try_for_each(|(page, offset)| self.read_page(offset, page))
    }
}

impl PageSource for Arc<Disk> {
    fn read_page(&self, offset: u64, bytes: &mut PageBuffer) -> io::Result<()> {
        self.read_exact_at(&mut bytes.0, offset)
    }

    fn read_pages(&self, offset: u64, pages: &mut [PageBuffer]) -> io::Result<()> {
        self.read_exact_at(pages.as_mut_bytes(), offset)
    }
}

/// The disks of one guest, by number.
///
/// A page that depends on sectors is one whose bytes may be dropped, because they are there. Whoever
/// changes sectors says so before, and rebuilds those that depend on them; while they change nobody
/// begins to depend on them.
#[derive(Debug, Default)]
pub struct Disks {
    disks: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    source: Box<dyn PageSource>,
    uses: Mutex<Uses>,
}

#[derive(Debug, Default)]
struct Uses {
    /// First sector and page.
    dependents: BTreeSet<(u64, u64)>,
    /// About to change, in bytes.
    changes: Vec<Range<u64>>,
}

impl Disks {
    /// Adds a disk; its number, or `None` if there are 256.
    pub fn add(&mut self, source: Box<dyn PageSource>) -> Option<u8> {
        let number = u8::try_from(self.disks.len()).ok()?;
        self.disks.push(Entry {
            source,
            uses: Mutex::default(),
        });
        Some(number)
    }

    fn uses(&self, disk: u8) -> Option<MutexGuard<'_, Uses>> {
        let entry = self.disks.get(usize::from(disk))?;
        Some(entry.uses.lock())
    }

    /// Reads the page that `backing` names, and those that follow it.
    ///
    /// # Errors
    /// Those of the disk, if any of them cannot be read.
    pub fn read(&self, backing: Backing, pages: &mut [PageBuffer]) -> io::Result<()> {
        let entry = self.disks.get(usize::from(backing.disk));
        let entry = entry.ok_or(io::ErrorKind::NotFound)?;
        entry
            .source
            .read_pages(backing.sector * SECTOR_BYTES, pages)
    }

    /// From now on nobody changes what `backing` names without rebuilding `page`; false if somebody
    /// is about to.
    #[must_use]
    pub fn depend(&self, backing: Backing, page: u64) -> bool {
        let Some(mut uses) = self.uses(backing.disk) else {
            return false;
        };
        let start = backing.sector * SECTOR_BYTES;
        let end = start + PAGE_SECTORS * SECTOR_BYTES;
        let is_changing = |change: &Range<u64>| change.start < end && start < change.end;
        if uses.changes.iter().any(is_changing) {
            return false;
        }
        uses.dependents.insert((backing.sector, page));
        true
    }

    /// Ends what [`Disks::depend`] began.
    pub fn forget(&self, backing: Backing, page: u64) {
        if let Some(mut uses) = self.uses(backing.disk) {
            uses.dependents.remove(&(backing.sector, page));
        }
    }

    /// Bytes of `disk` are about to change; the pages that depend on them.
    pub fn begin_change(&self, disk: u8, bytes: Range<u64>) -> Vec<u64> {
        let Some(mut uses) = self.uses(disk) else {
            return Vec::new();
        };
        let first = (bytes.start / SECTOR_BYTES).saturating_sub(PAGE_SECTORS - 1);
        let end = bytes.end.div_ceil(SECTOR_BYTES);
        let overlapping = uses.dependents.range((first, 0)..(end, 0));
        let pages = overlapping.map(|(_, page)| *page).collect();
        uses.changes.push(bytes);
        pages
    }

    /// They have changed.
    pub fn end_change(&self, disk: u8, bytes: &Range<u64>) {
        if let Some(mut uses) = self.uses(disk)
            && let Some(index) = uses.changes.iter().position(|change| change == bytes)
        {
            uses.changes.swap_remove(index);
        }
    }

    /// Number of pages that depend on some disk.
    pub fn num_dependents(&self) -> usize {
        let disks = (0..=u8::MAX).map_while(|disk| self.uses(disk));
        disks.map(|uses| uses.dependents.len()).sum()
    }
}

/// For each page where it was read from or written to last, if that is known: a hint. 8 bytes each.
#[derive(Debug)]
pub struct TransferMap(Box<[AtomicU64]>);

/// Set in words of [`TransferMap`] that say something.
const KNOWN: u64 = 1;

impl TransferMap {
    /// Nothing is known of `num_pages`.
    pub fn new(num_pages: usize) -> Self {
        let words = std::iter::repeat_with(AtomicU64::default);
        TransferMap(words.take(num_pages).collect())
    }

    /// Where `page` may be read from again.
    pub fn get(&self, page: u64) -> Option<Backing> {
        let word = self.0.get(usize::try_from(page).ok()?)?.load(Relaxed);
        (word & KNOWN != 0).then_some(Backing {
            disk: word.to_le_bytes()[1],
            sector: word >> 16,
        })
    }

    /// Tells where, or that it is not known.
    pub fn set(&self, page: u64, backing: Option<Backing>) {
        let word = backing.filter(|backing| backing.sector < NUM_ADDRESSES);
        let word = word.map_or(0, |backing| {
            backing.sector << 16 | u64::from(backing.disk) << 8 | KNOWN
        });
        if let Ok(page) = usize::try_from(page)
            && let Some(entry) = self.0.get(page)
        {
            entry.store(word, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Nothing;

    impl PageSource for Nothing {
        fn read_page(&self, _offset: u64, _bytes: &mut PageBuffer) -> io::Result<()> {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn disks() -> Disks {
        let mut disks = Disks::default();
        assert_eq!(disks.add(Box::new(Nothing)), Some(0));
        disks
    }

    fn at(sector: u64) -> Backing {
        Backing { disk: 0, sector }
    }

    #[test]
    fn change_finds_those_that_overlap_by_a_byte() {
        let disks = disks();
        for (page, sector) in [(1, 0), (2, 8), (3, 9), (4, 100), (5, 8)] {
            assert!(disks.depend(at(sector), page));
        }
        let changed = |disks: &Disks, bytes: Range<u64>| {
            let pages = disks.begin_change(0, bytes.clone());
            disks.end_change(0, &bytes);
            pages
        };
        assert_eq!(changed(&disks, 0..1), [1]);
        assert_eq!(changed(&disks, 4095..4097), [1, 2, 5]);
        assert_eq!(changed(&disks, 8 * 512 + 1..17 * 512), [2, 5, 3]);
        assert!(changed(&disks, 17 * 512..100 * 512).is_empty());
        assert_eq!(changed(&disks, 107 * 512..107 * 512 + 1), [4]);
        assert!(changed(&disks, 108 * 512..u64::MAX).is_empty());
        disks.forget(at(8), 2);
        assert_eq!(changed(&disks, 4096..4097), [5]);
        assert_eq!(disks.num_dependents(), 4);
    }

    #[test]
    fn nobody_depends_on_what_is_changing() {
        let disks = disks();
        disks.begin_change(0, 4096..4097);
        disks.begin_change(0, 4096..4097);
        assert!(!disks.depend(at(8), 1));
        assert!(!disks.depend(at(1), 1));
        assert!(disks.depend(at(0), 1));
        assert!(disks.depend(at(9), 1));
        disks.end_change(0, &(4096..4097));
        assert!(!disks.depend(at(8), 1));
        disks.end_change(0, &(4096..4097));
        assert!(disks.depend(at(8), 1));
    }

    #[test]
    fn other_disks_are_nothing_to_depend_on() {
        let disks = disks();
        let other = Backing { disk: 1, sector: 0 };
        assert!(!disks.depend(other, 1));
        assert!(disks.read(other, &mut [PageBuffer::default()]).is_err());
        assert!(disks.begin_change(1, 0..1).is_empty());
    }

    #[test]
    fn map_remembers_the_last_transfer() {
        let map = TransferMap::new(2);
        assert_eq!(map.get(1), None);
        map.set(1, Some(at(0)));
        assert_eq!(map.get(1), Some(at(0)));
        map.set(
            1,
            Some(Backing {
                disk: 255,
                sector: NUM_ADDRESSES - 1,
            }),
        );
        assert_eq!(map.get(1).unwrap().sector, NUM_ADDRESSES - 1);
        map.set(1, Some(at(NUM_ADDRESSES)));
        assert_eq!(map.get(1), None);
        map.set(2, Some(at(0)));
        assert_eq!(map.get(2), None);
    }
}
