//! Which memory to take, when somebody wants some.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::ram::PAGE_BYTES;
use super::reclaimer::{Means, ReclaimError, Reclaimer};

const PAGE_LEN: u64 = PAGE_BYTES as u64;
/// Pages that are tried at once: 2 MiB.
const STEP_PAGES: u64 = 512;

/// What was taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reclaimed {
    /// Bytes of pages that are zero, or the same as what a disk has: nothing was written.
    pub dropped_bytes: u64,
    /// Bytes of pages that were written to the swap file.
    pub swapped_bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// Takes memory in the order of what it costs to bring it back.
#[derive(Debug)]
pub struct Policy {
    reclaimer: Arc<Reclaimer>,
    /// Where the next look begins, by means: the page after the last one that was tried.
    next: Mutex<[u64; 2]>,
}

impl Policy {
    /// Takes from what `reclaimer` has.
    pub fn new(reclaimer: Arc<Reclaimer>) -> Self {
        Policy {
            reclaimer,
            next: Mutex::default(),
        }
    }

    /// Takes at least `bytes`, if there is so much to be had, and up to 2 MiB more. One at a time.
    ///
    /// # Errors
    /// [`ReclaimError`]; what was taken until then stays taken.
    pub fn reclaim(&self, bytes: u64) -> Result<Reclaimed, ReclaimError> {
        let start = Instant::now();
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let [next_drop, next_swap] = &mut *next;
        let wanted = bytes.div_ceil(PAGE_LEN);
        let dropped = self.take(wanted, Means::Drop, next_drop)?;
        let swapped = if self.reclaimer.can_swap() {
            self.take(wanted.saturating_sub(dropped), Means::Swap, next_swap)?
        } else {
            0
        };
        Ok(Reclaimed {
            dropped_bytes: dropped * PAGE_LEN,
            swapped_bytes: swapped * PAGE_LEN,
            took: start.elapsed(),
        })
    }

    /// Goes once around all pages, from `next` on, until `wanted` are taken; how many were.
    fn take(&self, wanted: u64, means: Means, next: &mut u64) -> Result<u64, ReclaimError> {
        let num_pages = self.reclaimer.num_pages();
        let mut num_taken = 0;
        let mut num_tried = 0;
        while num_taken < wanted && num_tried < num_pages {
            if *next >= num_pages {
                *next = 0;
            }
            let end = (*next + STEP_PAGES).min(num_pages);
            num_tried += end - *next;
            num_taken += self.reclaimer.take(*next..end, means)?;
            *next = end;
        }
        Ok(num_taken)
    }
}
