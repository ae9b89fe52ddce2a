//! How much is taken at a time, so that a guest gets on.
//!
//! The rate is doubled each second, until the guest had to bring back too much of what was taken: then
//! it is halved, the words of the guest have to be older, and for a while it grows by small steps only.
//! At the lowest rate fewer pages are taken than may come back, so there is no storm, however wrong the
//! wish is.

use std::time::{Duration, Instant};

use super::MAX_AGE;

/// More pages that came back in a second are too many.
const MAX_REFAULTS: u64 = 100;
/// Pages in a second: 256 KiB at least, 32 MiB at first, 1 GiB at most.
const MIN_RATE: u64 = 64;
const FIRST_RATE: u64 = 1 << 13;
const MAX_RATE: u64 = 1 << 18;
/// What is added each second, if it is not doubled: 256 KiB.
const RATE_STEP: u64 = 64;
/// So many seconds without too many refaults, and it is doubled again.
const NUM_CALM: u32 = 30;
/// What came back is counted over at least this time.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long to wait when hardly anything was found in all of memory, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(64);
/// That is, less than one page of so many.
const FEW: u64 = 256;

/// The state of a paced reclaim.
#[derive(Debug, Clone)]
pub struct Pace {
    rate: u64,
    min_age: u8,
    /// When the interval began, and the count then.
    interval: Option<(Instant, u64)>,
    refaults: u64,
    /// Taken since then.
    num_used: u64,
    /// Intervals since too many came back.
    num_calm: u32,
    /// Pages that may be taken as of that time; less than none after more were than might be.
    credit: i64,
    credit_at: Option<Instant>,
    /// Since the last look at all of memory began.
    num_tried: u64,
    num_taken: u64,
    pause: Duration,
    resume_at: Option<Instant>,
    num_halvings: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            rate: FIRST_RATE,
            min_age: 0,
            interval: None,
            refaults: 0,
            num_used: 0,
            num_calm: NUM_CALM,
            credit: 0,
            credit_at: None,
            num_tried: 0,
            num_taken: 0,
            pause: Duration::ZERO,
            resume_at: None,
            num_halvings: 0,
        }
    }
}

impl Pace {
    /// Pages in a second.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// Words of the guest that are younger do not count.
    pub fn min_age(&self) -> u8 {
        self.min_age
    }

    /// Pages that came back in a second, of late.
    pub fn refaults(&self) -> u64 {
        self.refaults
    }

    /// Times that too many came back.
    pub fn num_halvings(&self) -> u64 {
        self.num_halvings
    }

    /// Learns that `num_refaults` pages have come back so far.
    pub fn learn(&mut self, now: Instant, num_refaults: u64) {
        let (start, before) = *self.interval.get_or_insert((now, num_refaults));
        let elapsed = now.saturating_duration_since(start);
        if elapsed < INTERVAL {
            return;
        }
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let in_a_second = |num: u64| num.saturating_mul(1000) / millis.max(1);
        self.refaults = in_a_second(num_refaults.saturating_sub(before));
        let used = in_a_second(std::mem::take(&mut self.num_used));
        self.interval = Some((now, num_refaults));
        if self.refaults > MAX_REFAULTS {
            self.rate = (self.rate.min(used) / 2).max(MIN_RATE);
            self.min_age = (self.min_age + 1).min(MAX_AGE);
            self.num_calm = 0;
            self.num_halvings += 1;
            return;
        }
        self.min_age = self.min_age.saturating_sub(1);
        self.num_calm = self.num_calm.saturating_add(1);
        // One that is not made use of says nothing about the next one.
        if used >= self.rate / 2 {
            let is_careful = self.num_calm <= NUM_CALM;
            let step = if is_careful { RATE_STEP } else { self.rate };
            self.rate = (self.rate + step).min(MAX_RATE);
        }
    }

    /// Pages that may be taken now: at most those of a second.
    pub fn allowance(&mut self, now: Instant) -> u64 {
        let since = self.credit_at.replace(now).unwrap_or(now);
        let elapsed = now.saturating_duration_since(since).min(INTERVAL);
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let (earned, most) = (signed(self.rate * millis / 1000), signed(self.rate));
        self.credit = self.credit.saturating_add(earned).min(most);
        match self.resume_at.is_some_and(|at| now < at) {
            true => 0,
            false => u64::try_from(self.credit).unwrap_or(0),
        }
    }

    /// Learns what came of it; `num_pages` are all that could be tried.
    pub fn tried(&mut self, now: Instant, num_tried: u64, num_taken: u64, num_pages: u64) {
        self.num_used += num_taken;
        self.credit = self.credit.saturating_sub(signed(num_taken));
        self.num_tried += num_tried;
        self.num_taken += num_taken;
        if self.num_tried < num_pages {
            return;
        }
        self.pause = match self.num_taken < self.num_tried / FEW {
            true => (self.pause * 2).clamp(FIRST_PAUSE, MAX_PAUSE),
            false => Duration::ZERO,
        };
        self.resume_at = (!self.pause.is_zero()).then(|| now + self.pause);
        (self.num_tried, self.num_taken) = (0, 0);
    }

    /// Something else is wanted: it may be found where the last wish found nothing.
    pub fn restart(&mut self) {
        self.pause = Duration::ZERO;
        self.resume_at = None;
    }
}

fn signed(num: u64) -> i64 {
    i64::try_from(num).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Seconds in which as much is taken as may be and so many pages come back; the rates at their ends.
    fn rates(pace: &mut Pace, refaults: &[u64]) -> Vec<u64> {
        let mut now = Instant::now();
        let mut count = 0;
        pace.learn(now, count);
        let seconds = refaults.iter().map(|num_new| {
            pace.tried(now, 1, pace.rate(), u64::MAX);
            now += SECOND;
            count += num_new;
            pace.learn(now, count);
            pace.rate()
        });
        seconds.collect()
    }

    #[test]
    fn rate_grows_until_pages_come_back_and_then_by_small_steps() {
        let mut pace = Pace::default();
        let many = MAX_REFAULTS + 1;

        let rates = rates(&mut pace, &[0, MAX_REFAULTS, many, 5000, 0, 0]);

        let first = FIRST_RATE;
        let (step, twice) = (RATE_STEP, 2 * RATE_STEP);
        assert_eq!(rates[..4], [2 * first, 4 * first, 2 * first, first]);
        assert_eq!(rates[4..], [first + step, first + twice]);
        assert_eq!(pace.num_halvings(), 2);
    }

    #[test]
    fn rate_and_age_have_their_limits_and_come_back() {
        let mut pace = Pace::default();
        rates(&mut pace, &[1000; 40]);
        assert_eq!((pace.rate(), pace.min_age()), (MIN_RATE, MAX_AGE));

        // Its clock begins anew, 40 s ago.
        rates(&mut pace, &[0; 90]);
        assert_eq!((pace.rate(), pace.min_age()), (MAX_RATE, 0));
    }

    #[test]
    fn rate_that_is_not_used_does_not_grow() {
        let mut pace = Pace::default();
        let now = Instant::now();
        pace.learn(now, 0);
        pace.tried(now, 1, FIRST_RATE / 2 - 1, u64::MAX);
        pace.learn(now + SECOND, 0);
        assert_eq!(pace.rate(), FIRST_RATE);
        // And what was not used is not what is halved.
        pace.tried(now, 1, 1000, u64::MAX);
        pace.learn(now + 2 * SECOND, MAX_REFAULTS + 1);
        assert_eq!(pace.rate(), 500);
    }

    #[test]
    fn allowance_is_the_rate_by_the_time_less_what_was_taken() {
        let mut pace = Pace::default();
        let now = Instant::now();
        assert_eq!(pace.allowance(now), 0);
        assert_eq!(pace.allowance(now + SECOND / 4), FIRST_RATE / 4);
        pace.tried(now, 1, FIRST_RATE / 2, u64::MAX);
        assert_eq!(pace.allowance(now + SECOND / 4), 0);
        assert_eq!(pace.allowance(now + SECOND / 2), 0, "a debt is paid first");
        assert_eq!(pace.allowance(now + 3 * SECOND / 4), FIRST_RATE / 4);
        assert_eq!(pace.allowance(now + 100 * SECOND), FIRST_RATE);
    }

    #[test]
    fn looks_that_find_nothing_are_ever_farther_apart() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        pace.allowance(now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pace.tried(now, 1000, 0, 1000);
            let resume_at = pace.resume_at.unwrap();
            assert_eq!(pace.allowance(resume_at - SECOND / 2), 0);
            pauses.push((resume_at - now).as_secs());
            now = resume_at;
            assert!(pace.allowance(now) > 0);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 64]);

        // Half a look says nothing, and a good one ends it.
        pace.tried(now, 500, 0, 1000);
        assert!(pace.allowance(now) > 0);
        pace.tried(now, 500, 100, 1000);
        assert_eq!(pace.resume_at, None);
        pace.tried(now, 1000, 0, 1000);
        assert_eq!(pace.resume_at, Some(now + SECOND));
        pace.restart();
        assert!(pace.allowance(now) > 0);
    }
}
