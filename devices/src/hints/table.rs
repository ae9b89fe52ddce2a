//! The guest's words for its pages.
//!
//! They are memory of the guest, which may change any time: a word is loaded once, as a whole, and
//! what is looked at is that copy.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::Acquire;

use vbus::abi::hints::{TABLE_PAGES, page_state, word};
use vbus::memory::{Region, Words};

use super::keeper::KnownDisk;
use super::metrics::HintsMetrics;

/// Bytes of a word.
const WORD_BYTES: usize = 8;
/// Sectors of a page.
const PAGE_SECTORS: u64 = 8;
/// Most bytes of a table.
pub(super) const MAX_TABLE_BYTES: usize = TABLE_PAGES as usize * WORD_BYTES;
/// Disks by slot, from 1 on.
pub(super) type Disks = [OnceLock<KnownDisk>; NUM_DISKS];
const NUM_DISKS: usize = 7;
const _: () = assert!(NUM_DISKS as u64 == word::DISK_MAX);

/// What a guest says that a page is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worth {
    /// It matters.
    Stable,
    /// It has no content. Not a release: that is an act of its own.
    Unused,
    /// A disk has the same.
    Volatile,
    /// As volatile, and mapped where it may be written to.
    MaybeVolatile,
}

/// A place on a disk that exists and has so many sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The keeper's number of the disk.
    pub disk: u8,
    /// First of 8 sectors of 512 bytes.
    pub sector: u64,
}

/// What a guest says of a page. It may be wrong in every way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint {
    /// What the page is worth.
    pub worth: Worth,
    /// 0, used lately, to 7.
    pub age: u8,
    /// One more with each change by the guest.
    pub sequence: u16,
    /// Where the same bytes are, if the guest knows and that makes sense.
    pub place: Option<Place>,
    /// The word.
    pub(super) word: u64,
}

impl Hint {
    /// What `word` says, with `disks` as the guest named them.
    pub(super) fn parse(word: u64, disks: &Disks, metrics: &HintsMetrics) -> Self {
        let worth = match word & word::STATE_MASK {
            page_state::UNUSED => Worth::Unused,
            page_state::VOLATILE => Worth::Volatile,
            page_state::MAYBE_VOLATILE => Worth::MaybeVolatile,
            _ => Worth::Stable,
        };
        let [.., low, high] = word.to_le_bytes();
        let [first, ..] = (word >> word::AGE_SHIFT & word::AGE_MAX).to_le_bytes();
        let has_place = matches!(worth, Worth::Volatile | Worth::MaybeVolatile);
        Hint {
            worth,
            age: first,
            sequence: u16::from_le_bytes([low, high]),
            place: has_place.then(|| place(word, disks, metrics)).flatten(),
            word,
        }
    }
}

fn place(word: u64, disks: &Disks, metrics: &HintsMetrics) -> Option<Place> {
    let slot = word >> word::DISK_SHIFT & word::DISK_MAX;
    let slot = usize::try_from(slot).ok()?.checked_sub(1)?;
    let Some(disk) = disks.get(slot).and_then(OnceLock::get) else {
        metrics.unknown_disks.add(1);
        return None;
    };
    let sector = word >> word::SECTOR_SHIFT & word::SECTOR_MAX;
    if sector + PAGE_SECTORS > disk.num_sectors {
        metrics.sectors_past_end.add(1);
        return None;
    }
    Some(Place {
        disk: disk.number,
        sector,
    })
}

/// The tables of one guest.
#[derive(Debug, Clone, Default)]
pub(super) struct Tables {
    /// By number; none past the end of RAM.
    pub(super) regions: Vec<Option<Region>>,
}

impl Tables {
    /// The table with the word of `gfn`, and where in it.
    fn find(&self, gfn: u64) -> Option<(&Region, usize)> {
        let number = usize::try_from(gfn / u64::from(TABLE_PAGES)).ok()?;
        let index = usize::try_from(gfn % u64::from(TABLE_PAGES)).ok()?;
        let region = self.regions.get(number)?.as_ref()?;
        let offset = index * WORD_BYTES;
        (offset + WORD_BYTES <= region.len()).then_some((region, offset))
    }

    /// The word of `gfn` now, if there is one.
    pub(super) fn load(&self, gfn: u64) -> Option<u64> {
        let (region, offset) = self.find(gfn)?;
        Some(region.load(offset, Acquire))
    }

    /// Makes the word of `gfn` say that the page is stable, if it is still `seen`.
    pub(super) fn refuse(&self, gfn: u64, seen: u64) -> bool {
        let Some((region, offset)) = self.find(gfn) else {
            return false;
        };
        region.replace(offset, seen, seen & !word::STATE_MASK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    const DISK: KnownDisk = KnownDisk {
        number: 9,
        num_sectors: 100,
    };

    fn parse(word: u64) -> (Hint, HintsMetrics) {
        let metrics = HintsMetrics::default();
        let disks = Disks::default();
        disks[2].set(DISK).unwrap();
        (Hint::parse(word, &disks, &metrics), metrics)
    }

    fn volatile(slot: u64, sector: u64) -> u64 {
        2 | slot << 5 | sector << 8
    }

    #[test]
    fn fields_are_where_the_abi_says() {
        let (hint, _) = parse(3 | 5 << 2 | 3 << 5 | 92 << 8 | 0xfedc << 48);

        assert_eq!(hint.worth, Worth::MaybeVolatile);
        assert_eq!(hint.age, 5);
        assert_eq!(hint.sequence, 0xfedc);
        let place = Place {
            disk: 9,
            sector: 92,
        };
        assert_eq!(hint.place, Some(place));
    }

    #[test]
    fn places_that_are_none_are_counted() {
        for (word, num_unknown, num_past) in [
            (volatile(0, 5), 0, 0),
            (volatile(3, 92), 0, 0),
            (volatile(3, 93), 0, 1),
            (volatile(3, word::SECTOR_MAX), 0, 1),
            (volatile(7, 0), 1, 0),
            (volatile(7, 0) & !3, 0, 0), // stable: nobody looks
            (u64::MAX, 1, 0),
        ] {
            let (hint, metrics) = parse(word);
            let is_good = word == volatile(3, 92);
            assert_eq!(hint.place.is_some(), is_good, "{word:#x}");
            assert_eq!(metrics.unknown_disks.get(), num_unknown, "{word:#x}");
            assert_eq!(metrics.sectors_past_end.get(), num_past, "{word:#x}");
        }
    }

    #[test]
    fn pages_without_a_word_have_none() {
        let region = Region::new_private(24).unwrap();
        region.store(16, 7, Relaxed);
        let tables = Tables {
            regions: vec![None, Some(region)],
        };
        let first = u64::from(TABLE_PAGES);

        assert_eq!(tables.load(first + 2), Some(7));
        for gfn in [0, first - 1, first + 3, 2 * first, u64::MAX] {
            assert_eq!(tables.load(gfn), None);
            assert!(!tables.refuse(gfn, 0));
        }
    }

    #[test]
    fn refusal_changes_a_word_that_is_as_it_was_seen() {
        let region = Region::new_private(8).unwrap();
        let seen = volatile(3, 5) | 1 << 48;
        region.store(0, seen, Relaxed);
        let tables = Tables {
            regions: vec![Some(region)],
        };

        assert!(!tables.refuse(0, seen + (1 << 48)));
        assert!(tables.refuse(0, seen));
        assert_eq!(tables.load(0), Some(seen & !3));
    }
}
