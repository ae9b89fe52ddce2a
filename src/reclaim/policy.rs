//! Which memory to take, when somebody wants some.
//!
//! | module | what |
//! |---|---|
//! | [`governor`] | takes memory by itself: a target, limits of cgroups, memory pressure |
//! | [`pace`] | how much of it at a time |
//! | [`pressure`] | what the host says about its memory |

pub mod governor;
pub mod pace;
pub mod pressure;

use std::sync::Arc;
use std::time::{Duration, Instant};

use alacrity_devices::hints::{Hint, HintsHandle, NotReleased, Place};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::ram::PAGE_BYTES;
use super::reclaimer::{Means, ReclaimError, Reclaimer};
use super::word::{Backing, PageState};

const PAGE_LEN: u64 = PAGE_BYTES as u64;
/// Pages that are tried at once: 2 MiB.
const STEP_PAGES: u64 = 512;

/// And at least, where no more are wanted than that.
const MIN_STEP_PAGES: u64 = 16;
/// So many words of the guest are looked at for one order that is in no hurry: those of 4 GiB.
const MAX_WORDS: u64 = 1 << 20;

/// The oldest age of a guest's words.
pub const MAX_AGE: u8 = 7;
/// How long a guest may take to release what is free.
const RELEASE_TIME: Duration = Duration::from_secs(2);

/// What was taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reclaimed {
    /// Bytes that the guest gave away as free.
    pub released_bytes: u64,
    /// Bytes of pages that are zero, or the same as what a disk has: nothing was written.
    pub dropped_bytes: u64,
    /// Bytes of pages that were written to the swap file.
    pub swapped_bytes: u64,
    /// How long it took.
    #[serde(rename = "took_us", with = "micros")]
    pub took: Duration,
}

impl Reclaimed {
    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        [self.released_bytes, self.dropped_bytes, self.swapped_bytes]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// What shall be taken, and what may be done for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Bytes that are wanted.
    pub bytes: u64,
    /// Pages that may be looked at for it by each means; `None`: all of them, those that just came back
    /// too, and the best ones first.
    pub max_tries: Option<u64>,
    /// The guest is asked to release what is free.
    pub asks_guest: bool,
    /// Words of the guest that are younger do not count, 0 to [`MAX_AGE`].
    pub min_age: u8,
    /// Pages without another backing may be swapped.
    pub may_swap: bool,
}

impl Order {
    /// To take `bytes`, by all means.
    pub fn at_once(bytes: u64) -> Self {
        Order {
            bytes,
            max_tries: None,
            asks_guest: true,
            min_age: 0,
            may_swap: true,
        }
    }
}

/// What became of an [`Order`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What was taken.
    pub reclaimed: Reclaimed,
    /// Pages that were looked at.
    pub num_tried: u64,
}

/// Where the next look begins, so that each page gets its turn.
#[derive(Debug, Default)]
struct Cursors {
    drop: u64,
    swap: u64,
    /// By how much younger than [`MAX_AGE`], then by guest frame number.
    words: (u8, u64),
}

/// Takes memory in the order of what it costs to bring it back.
#[derive(Debug)]
pub struct Policy {
    reclaimer: Arc<Reclaimer>,
    hints: Option<HintsHandle>,
    cursors: Mutex<Cursors>,
}

impl Policy {
    /// Takes from what `reclaimer` has; asks a guest that gives hints by `hints`.
    pub fn new(reclaimer: Arc<Reclaimer>, hints: Option<HintsHandle>) -> Self {
        Policy {
            reclaimer,
            hints,
            cursors: Mutex::default(),
        }
    }

    /// What the guest says of its pages, if it can.
    pub fn hints(&self) -> Option<&HintsHandle> {
        self.hints.as_ref()
    }

    /// What it takes from.
    pub fn reclaimer(&self) -> &Reclaimer {
        &self.reclaimer
    }

    /// Takes at least `bytes`, if there is so much to be had, and up to 2 MiB more, for as long as
    /// `is_wanted`, which it asks often. One at a time. A guest that gives hints has time to release
    /// what is free, and may release more.
    ///
    /// # Errors
    /// [`ReclaimError`]; what was taken until then stays taken.
    pub fn reclaim(
        &self,
        bytes: u64,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Reclaimed, ReclaimError> {
        let outcome = self.carry_out(&Order::at_once(bytes), is_wanted);
        outcome.map(|outcome| outcome.reclaimed)
    }

    /// The same within the limits of `order`.
    ///
    /// # Errors
    /// As [`Policy::reclaim`].
    pub fn carry_out(
        &self,
        order: &Order,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Outcome, ReclaimError> {
        let start = Instant::now();
        let mut cursors = self.cursors.lock();
        let cursors = &mut *cursors;
        let guest = self.hints.as_ref().filter(|_| order.asks_guest);
        let released_bytes = guest.map_or(0, ask_for_free_memory);
        let mut round = Round {
            policy: self,
            order,
            is_wanted,
            num_wanted: order
                .bytes
                .saturating_sub(released_bytes)
                .div_ceil(PAGE_LEN),
            num_tried: 0,
        };
        let mut dropped = 0;
        if let Some(hints) = &self.hints {
            dropped += round.take_hinted(hints, &mut cursors.words)?;
        }
        dropped += round.take(Means::Drop, &mut cursors.drop)?;
        let swapped = if order.may_swap && self.reclaimer.can_swap() {
            round.take(Means::Swap, &mut cursors.swap)?
        } else {
            0
        };
        Ok(Outcome {
            reclaimed: Reclaimed {
                released_bytes,
                dropped_bytes: dropped * PAGE_LEN,
                swapped_bytes: swapped * PAGE_LEN,
                took: start.elapsed(),
            },
            num_tried: round.num_tried,
        })
    }

    /// Tells the guest what was dropped. Its event ring may have been taken too: with a page owned this
    /// could wait for itself.
    fn tell_of_drops(&self) {
        let drops = self.reclaimer.noted_drops();
        if let Some(hints) = &self.hints {
            hints.dropped(&drops);
        }
    }

    /// Takes the pages of `words`, as far as they are true, and tells the guest which were not.
    fn take_words(
        &self,
        hints: &HintsHandle,
        words: &[(u64, Hint)],
        spares_recent: bool,
    ) -> Result<u64, ReclaimError> {
        let reclaimer = &self.reclaimer;
        let page_of = |(gfn, _): &(u64, Hint)| reclaimer.ram.page_of_gfn(*gfn);
        for (word, page) in words.iter().zip(words.iter().map(page_of)) {
            // What was transferred is known better than what is said.
            if let (Some(page), Some(Place { disk, sector })) = (page, word.1.place)
                && reclaimer.transfers.get(page).is_none()
            {
                let backing = Backing { disk, sector };
                reclaimer.transfers.set(page, Some(backing));
            }
        }
        let mut num_taken = 0;
        for run in words.chunk_by(|one, next| one.0 + 1 == next.0) {
            if let (Some(first), Some(last)) =
                (run.first().and_then(page_of), run.last().and_then(page_of))
            {
                num_taken += if spares_recent {
                    reclaimer.take_unused(first..last + 1, Means::Drop)?
                } else {
                    reclaimer.take(first..last + 1, Means::Drop)?
                };
            }
        }
        for word @ (gfn, hint) in words {
            let Some(page) = page_of(word) else { continue };
            // It was compared, and is not the same.
            if reclaimer.state(page) == Some(PageState::Resident)
                && reclaimer.transfers.get(page).is_none()
            {
                hints.refuse(*gfn, *hint);
            }
        }
        self.tell_of_drops();
        Ok(num_taken)
    }
}

/// One order that is carried out.
struct Round<'a> {
    policy: &'a Policy,
    order: &'a Order,
    is_wanted: &'a dyn Fn() -> bool,
    /// Pages that are still wanted.
    num_wanted: u64,
    /// Pages that were looked at.
    num_tried: u64,
}

impl Round<'_> {
    /// Until when a means that is tried from now on may be.
    fn last_try(&self) -> u64 {
        let max_tries = self.order.max_tries.unwrap_or(u64::MAX);
        self.num_tried.saturating_add(max_tries)
    }

    fn goes_on(&self, last_try: u64) -> bool {
        self.num_wanted > 0 && self.num_tried < last_try && (self.is_wanted)()
    }

    /// Pages to try at once: no more than are wanted, if there is no hurry.
    fn step(&self) -> u64 {
        match self.order.max_tries {
            Some(_) => self.num_wanted.clamp(MIN_STEP_PAGES, STEP_PAGES),
            None => STEP_PAGES,
        }
    }

    fn count(&mut self, num_tried: u64, num_taken: u64) {
        self.num_tried += num_tried;
        self.num_wanted = self.num_wanted.saturating_sub(num_taken);
    }

    /// Takes pages that the guest calls volatile, those first that it did not use for longest; how
    /// many were. An order that is in no hurry goes on at `next`, where the one before ended.
    fn take_hinted(
        &mut self,
        hints: &HintsHandle,
        next: &mut (u8, u64),
    ) -> Result<u64, ReclaimError> {
        let num_gfns = self.policy.reclaimer.ram.num_gfns();
        let last_try = self.last_try();
        let mut num_words = 0;
        let mut num_taken = 0;
        let has_limits = self.order.max_tries.is_some();
        if !has_limits {
            *next = (0, 0);
        }
        while self.goes_on(last_try) && (!has_limits || num_words < MAX_WORDS) {
            let (youth, start) = *next;
            if youth > MAX_AGE - self.order.min_age.min(MAX_AGE) {
                *next = (0, 0);
                break;
            }
            let end = (start + STEP_PAGES).min(num_gfns);
            let mut words = hints.hints(start..end);
            words.retain(|(_, hint)| hint.age == MAX_AGE - youth && hint.place.is_some());
            let step = usize::try_from(self.step()).unwrap_or(usize::MAX);
            let end = words.get(step).map_or(end, |(gfn, _)| *gfn);
            words.truncate(step);
            let taken = self.policy.take_words(hints, &words, has_limits)?;
            self.count(words.len() as u64, taken);
            num_taken += taken;
            num_words += end - start;
            *next = if end < num_gfns {
                (youth, end)
            } else {
                (youth + 1, 0)
            };
        }
        Ok(num_taken)
    }

    /// Goes around all pages once, from `next` on, until as many are taken as are wanted; how many
    /// were. Those that just came back are spared, except in a second round of those who want all.
    fn take(&mut self, means: Means, next: &mut u64) -> Result<u64, ReclaimError> {
        let reclaimer = &self.policy.reclaimer;
        let num_pages = reclaimer.num_pages();
        let spared = &reclaimer.metrics().spared;
        let num_spared = spared.get();
        let last_try = self.last_try();
        let mut num_taken = 0;
        let mut num_passed = 0;
        while self.goes_on(last_try) {
            let is_second = num_passed >= num_pages;
            let has_second = self.order.max_tries.is_none() && spared.get() != num_spared;
            if is_second && (!has_second || num_passed >= 2 * num_pages) {
                break;
            }
            if *next >= num_pages {
                *next = 0;
            }
            let step = self.step().min(last_try - self.num_tried);
            let end = (*next + step).min(num_pages);
            let taken = if is_second {
                reclaimer.take(*next..end, means)?
            } else {
                reclaimer.take_unused(*next..end, means)?
            };
            self.policy.tell_of_drops();
            self.count(end - *next, taken);
            num_taken += taken;
            num_passed += end - *next;
            *next = end;
        }
        Ok(num_taken)
    }
}

/// Bytes that the guest released.
fn ask_for_free_memory(hints: &HintsHandle) -> u64 {
    match hints.release_now(RELEASE_TIME) {
        Ok(freed_bytes) | Err(NotReleased::Late { freed_bytes }) => freed_bytes,
        Err(NotReleased::NoDriver | NotReleased::NoSlot) => 0,
    }
}

/// A duration as a whole number of microseconds.
mod micros {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        u64::try_from(time.as_micros())
            .unwrap_or(u64::MAX)
            .serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_micros)
    }
}
