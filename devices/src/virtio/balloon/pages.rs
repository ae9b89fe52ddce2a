//! Page numbers → runs of pages. Pure.

use std::ops::Range;

/// Page numbers taken at once: what Linux puts into one request.
pub(super) const CHUNK_PAGES: usize = 256;

/// Sorts `pfns` (page frame numbers in units of 4096 bytes) and yields the runs of pages that
/// follow each other; duplicates count once. At most one run per number.
pub(super) fn runs(pfns: &mut [u32]) -> impl Iterator<Item = Range<u64>> {
    pfns.sort_unstable();
    pfns.chunk_by(|before, after| *after - *before <= 1)
        .filter_map(|run| {
            let (first, last) = (*run.first()?, *run.last()?);
            Some(u64::from(first)..u64::from(last) + 1)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// First and last page of each run.
    fn of(pfns: &[u32]) -> Vec<(u64, u64)> {
        runs(&mut pfns.to_vec())
            .map(|run| (run.start, run.end - 1))
            .collect()
    }

    #[test]
    fn neighbours_in_any_order_make_one_run() {
        assert_eq!(of(&[7, 5, 6, 6]), [(5, 7)]);
    }

    #[test]
    fn gap_of_one_page_separates_runs() {
        assert_eq!(of(&[1, 3, 2, 5]), [(1, 3), (5, 5)]);
    }

    #[test]
    fn last_page_number_does_not_overflow() {
        assert_eq!(of(&[u32::MAX]), [(0xffff_ffff, 0xffff_ffff)]);
    }

    proptest! {
        #[test]
        fn runs_cover_exactly_the_pages(pfns in prop::collection::vec(0..64u32, 0..64)) {
            let covered: Vec<u64> = runs(&mut pfns.clone()).flatten().collect();
            let mut want: Vec<u64> = pfns.iter().map(|pfn| u64::from(*pfn)).collect();
            want.sort_unstable();
            want.dedup();

            prop_assert_eq!(covered, want);
        }
    }
}
