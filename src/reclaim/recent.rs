//! Pages that were brought back because somebody accessed them: better not the next ones to go.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// A bit for each page, of the kind that a clock algorithm has. A hint.
#[derive(Debug)]
pub struct Recent(Box<[AtomicU64]>);

impl Recent {
    /// None of `num_pages`.
    pub fn new(num_pages: usize) -> Self {
        let words = std::iter::repeat_with(AtomicU64::default);
        let num_words = num_pages.div_ceil(64);
        Recent(words.take(num_words).collect())
    }

    fn bit(&self, page: u64) -> Option<(&AtomicU64, u64)> {
        let word = self.0.get(usize::try_from(page / 64).ok()?)?;
        Some((word, 1 << (page % 64)))
    }

    /// Somebody accessed `page`.
    pub fn set(&self, page: u64) {
        if let Some((word, bit)) = self.bit(page) {
            word.fetch_or(bit, Relaxed);
        }
    }

    /// Whether somebody accessed `page` since the last call.
    pub fn take(&self, page: u64) -> bool {
        self.bit(page).is_some_and(|(word, bit)| {
            word.load(Relaxed) & bit != 0 && word.fetch_and(!bit, Relaxed) & bit != 0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_access_counts_once() {
        let recent = Recent::new(65);
        recent.set(64);
        recent.set(64);
        recent.set(128);
        assert!(!recent.take(63));
        assert!(recent.take(64));
        assert!(!recent.take(64));
        assert!(!recent.take(128));
    }
}
