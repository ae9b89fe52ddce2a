//! Pages that were dropped, for the guest to be told.
//!
//! Nothing depends on that: a guest that knows can give such a page away, and then nobody waits for
//! bytes that he is about to overwrite. So there is room for so many notes, and no more.

use std::mem;
use std::ops::Range;

use parking_lot::Mutex;

/// Runs that are noted before somebody takes them.
const MAX_RUNS: usize = 1024;
/// Pages of a run: 4 MiB.
const MAX_PAGES: u64 = 1024;

/// Runs of pages.
#[derive(Debug, Default)]
pub struct Drops(Mutex<Vec<Range<u64>>>);

impl Drops {
    /// `page` was dropped; false if there is no room for a note.
    pub fn note(&self, page: u64) -> bool {
        let mut runs = self.0.lock();
        let is_full = runs.len() >= MAX_RUNS;
        match runs.last_mut() {
            Some(run) if run.end == page && page - run.start < MAX_PAGES => run.end += 1,
            _ if is_full => return false,
            _ => runs.push(page..page + 1),
        }
        true
    }

    /// What was noted since the last call.
    pub fn take(&self) -> Vec<Range<u64>> {
        mem::take(&mut self.0.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_run() {
        let drops = Drops::default();
        for page in [5, 6, 7, 9, 8, 9] {
            assert!(drops.note(page));
        }
        assert_eq!(drops.take(), [5..8, 9..10, 8..10]);
        assert!(drops.take().is_empty());
        for page in 0..MAX_PAGES + 1 {
            drops.note(page);
        }
        assert_eq!(drops.take(), [0..MAX_PAGES, MAX_PAGES..MAX_PAGES + 1]);
    }

    #[test]
    fn room_is_limited() {
        let drops = Drops::default();
        let noted = (0..3000).filter(|page| drops.note(page * 2));
        assert_eq!(noted.count(), MAX_RUNS);
        assert_eq!(drops.take().len(), MAX_RUNS);
        assert!(drops.note(0));
    }
}
