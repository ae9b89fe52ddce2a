//! What the pages of a guest are, for those who draw them.

use std::io;
use std::ops::Range;

use alacrity_devices::hints::{HintsHandle, Worth};
use serde::{Deserialize, Serialize};

use super::reclaimer::Reclaimer;
use super::word::PageState;

/// What a page is to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    /// Takes no memory: zeros, or never touched.
    Absent,
    /// In memory, and the only copy for all that is known.
    Only,
    /// In memory, and a disk had the same, or the guest says so: can be dropped if that is true.
    Volatile,
    /// In memory, and the guest does not use it.
    Unused,
    /// In memory, and not to be taken now: a transfer is under way.
    Pinned,
    /// On a disk only.
    Dropped,
    /// In the swap file only.
    Swapped,
}

impl PageKind {
    /// All, in the order of [`MemoryMap::cells`].
    pub const ALL: [PageKind; 7] = [
        PageKind::Absent,
        PageKind::Only,
        PageKind::Volatile,
        PageKind::Unused,
        PageKind::Pinned,
        PageKind::Dropped,
        PageKind::Swapped,
    ];
}

/// Pages of a cell by [`PageKind`].
pub type Cell = [u32; PageKind::ALL.len()];

/// The memory of a guest in cells of as many pages each, the last one maybe less.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryMap {
    /// Pages of 4,096 bytes in a cell; a power of two.
    pub pages_per_cell: u64,
    /// From the lowest address on.
    pub cells: Vec<Cell>,
}

impl MemoryMap {
    /// Pages of all cells.
    pub fn total(&self) -> Cell {
        self.cells.iter().fold(Cell::default(), |mut total, cell| {
            for (sum, num) in total.iter_mut().zip(cell) {
                *sum += num;
            }
            total
        })
    }
}

impl Reclaimer {
    /// The memory of the guest in at most `most_cells`; each page is looked at at another moment.
    ///
    /// # Errors
    /// Those of `lseek`.
    pub fn census(&self, hints: Option<&HintsHandle>, most_cells: u64) -> io::Result<MemoryMap> {
        let num_pages = self.num_pages();
        let pages_per_cell = num_pages.div_ceil(most_cells.max(1)).next_power_of_two();
        let mut cells = Vec::new();
        let mut start = 0;
        while start < num_pages {
            let end = num_pages.min(start + pages_per_cell);
            cells.push(self.count(hints, start..end)?);
            start = end;
        }
        Ok(MemoryMap {
            pages_per_cell,
            cells,
        })
    }

    fn count(&self, hints: Option<&HintsHandle>, pages: Range<u64>) -> io::Result<Cell> {
        let mut cell = Cell::default();
        let mut from = pages.start;
        while from < pages.end {
            let first = self.ram.first_in_memory(from..pages.end)?;
            let first = first.unwrap_or(pages.end);
            for page in from..first {
                add(&mut cell, self.kind_absent(page));
            }
            if first == pages.end {
                break;
            }
            let end = self.ram.end_of_memory(first)?.min(pages.end);
            let worths = self.worths(hints, first..end);
            for (page, worth) in (first..end).zip(worths) {
                add(&mut cell, self.kind_present(page, worth));
            }
            from = end;
        }
        Ok(cell)
    }

    /// What the guest says of `pages`.
    fn worths(&self, hints: Option<&HintsHandle>, pages: Range<u64>) -> Vec<Worth> {
        let mut worths = vec![Worth::Stable; usize::try_from(pages.end - pages.start).unwrap_or(0)];
        let Some(hints) = hints else {
            return worths;
        };
        for run in self.ram.runs(pages.clone()) {
            let Some(gpa) = self.ram.gpa_of_page(run.start) else {
                continue;
            };
            let gfn = gpa / super::ram::PAGE_BYTES as u64;
            for (hinted, hint) in hints.hints(gfn..gfn + (run.end - run.start)) {
                let offset = run.start - pages.start + (hinted - gfn);
                let worth = usize::try_from(offset).ok();
                if let Some(worth) = worth.and_then(|idx| worths.get_mut(idx)) {
                    *worth = hint.worth;
                }
            }
        }
        worths
    }

    fn kind_absent(&self, page: u64) -> PageKind {
        match self.state(page) {
            Some(PageState::Dropped(_)) => PageKind::Dropped,
            Some(PageState::Swapped(_)) => PageKind::Swapped,
            _ => PageKind::Absent,
        }
    }

    fn kind_present(&self, page: u64, worth: Worth) -> PageKind {
        match self.state(page) {
            Some(PageState::Pinned(_) | PageState::Kept) => PageKind::Pinned,
            Some(PageState::Proved(_)) => PageKind::Volatile,
            _ => match worth {
                Worth::Unused => PageKind::Unused,
                Worth::Volatile | Worth::MaybeVolatile => PageKind::Volatile,
                Worth::Stable if self.transfers.get(page).is_some() => PageKind::Volatile,
                Worth::Stable => PageKind::Only,
            },
        }
    }
}

fn add(cell: &mut Cell, kind: PageKind) {
    let place = PageKind::ALL.iter().position(|known| *known == kind);
    if let Some(num) = place.and_then(|idx| cell.get_mut(idx)) {
        *num += 1;
    }
}
