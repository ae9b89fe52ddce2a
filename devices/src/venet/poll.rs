//! How long a worker looks for work before it sleeps.
//!
//! To wake a sleeping thread on another CPU takes tens of microseconds, and a doorbell is an exit of
//! the guest. So a worker that was woken again right after it fell asleep stays awake a little longer
//! the next time, and one that looked in vain does not, as KVM does for halted vCPUs
//! (`Documentation/virt/kvm/halt-polling.rst`).
//!
//! While frames stream, a worker also looks after whoever else wants this CPU had it, a few times.
//! Where nobody does, that takes a microsecond. Where the client does, it fills its ring meanwhile,
//! instead of ringing at each frame for a worker that takes the CPU away from it. A frame now and
//! then is no stream, and its answer does not wait for the CPU.

use std::time::{Duration, Instant};

/// Longest look: what it takes to sleep and to be woken.
const MOST: Duration = Duration::from_micros(50);
/// First look; less was no sleep.
const LEAST: Duration = Duration::from_micros(5);

/// Looks in vain before a worker sleeps, while frames stream.
const MOST_IN_VAIN: u32 = 4;
/// Longest time of finding work again and again; then others have their turn.
const TURN: Duration = Duration::from_millis(2);

/// How long the next look lasts.
#[derive(Debug, Default)]
pub(super) struct Poll {
    window: Duration,
    /// The last look around found work.
    has_paid: bool,
    asleep_since: Option<Instant>,
}

impl Poll {
    /// The worker is awake: learns from how long it slept.
    pub(super) fn woken(&mut self, now: Instant) {
        let Some(since) = self.asleep_since.take() else {
            return;
        };
        let slept = now.saturating_duration_since(since);
        if slept < LEAST {
            // Not asleep at all: two events at once.
        } else if slept <= MOST {
            self.window = (self.window * 2).clamp(LEAST, MOST);
        } else if slept > self.window + MOST {
            // It would have looked in vain.
            self.window = Duration::ZERO;
        }
    }

    /// Begins to look around, after `num_frames` since the worker was woken.
    pub(super) fn look(&self, now: Instant, num_frames: u64) -> Look {
        let is_stream = self.has_paid || num_frames > 1;
        Look {
            start: now,
            now,
            worked: now,
            window: self.window,
            most_in_vain: if is_stream { MOST_IN_VAIN } else { 0 },
            num_in_vain: 0,
            has_paid: false,
        }
    }

    /// The worker has looked around.
    pub(super) fn has_looked(&mut self, look: &Look) {
        self.has_paid = look.has_paid;
    }

    /// The worker falls asleep.
    pub(super) fn sleeps(&mut self, now: Instant) {
        self.asleep_since = Some(now);
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Look once more.
    Look,
    /// There is no more work.
    Sleep,
    /// There is, but it is the turn of others.
    Later,
}

/// A look around before sleeping.
#[derive(Debug)]
pub(super) struct Look {
    start: Instant,
    now: Instant,
    worked: Instant,
    window: Duration,
    most_in_vain: u32,
    num_in_vain: u32,
    has_paid: bool,
}

impl Look {
    /// True while waiting is expected to pay.
    pub(super) fn is_waiting(&self) -> bool {
        !self.window.is_zero()
    }

    /// Looked, and whether there was anything.
    pub(super) fn looked(&mut self, now: Instant, has_worked: bool) {
        self.now = now;
        if has_worked {
            self.worked = now;
            self.num_in_vain = 0;
            self.has_paid = true;
        } else {
            self.num_in_vain = self.num_in_vain.saturating_add(1);
        }
    }

    pub(super) fn next(&self) -> Next {
        let has_waited = self.now - self.worked >= self.window;
        if self.num_in_vain >= self.most_in_vain && has_waited {
            Next::Sleep
        } else if self.now - self.start <= TURN {
            Next::Look
        } else if self.num_in_vain == 0 {
            Next::Later
        } else {
            // The others have had their turn, and it was long.
            Next::Sleep
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The window after sleeps of so many microseconds.
    fn after(sleeps: &[u64]) -> u128 {
        let mut now = Instant::now();
        let mut poll = Poll::default();
        for sleep in sleeps {
            poll.sleeps(now);
            now += Duration::from_micros(*sleep);
            poll.woken(now);
        }
        poll.window.as_micros()
    }

    #[test]
    fn short_sleeps_make_it_stay_awake() {
        assert_eq!(after(&[]), 0);
        assert_eq!(after(&[30]), 5);
        assert_eq!(after(&[30, 20]), 10);
        assert_eq!(after(&[30, 20, 1]), 10);
        assert_eq!(after(&[30; 9]), 50);
    }

    #[test]
    fn long_sleep_makes_it_sleep_at_once() {
        assert_eq!(after(&[30, 30, 1000]), 0);
        assert_eq!(after(&[30, 30, 55]), 10);
    }

    /// What follows looks that took so many microseconds and found work or not, when the worker had
    /// slept so and then had so many frames.
    fn next(sleeps: &[u64], num_frames: u64, looks: &[(u64, bool)]) -> Next {
        let mut now = Instant::now();
        let poll = Poll {
            window: Duration::from_micros(after(sleeps).try_into().unwrap()),
            ..Poll::default()
        };
        let mut look = poll.look(now, num_frames);
        for (took, has_worked) in looks {
            assert_eq!(look.next(), Next::Look);
            now += Duration::from_micros(*took);
            look.looked(now, *has_worked);
        }
        look.next()
    }

    #[test]
    fn one_frame_is_no_stream() {
        assert_eq!(next(&[], 1, &[]), Next::Sleep);
        assert_eq!(next(&[30, 30], 1, &[(9, false)]), Next::Look);
        assert_eq!(next(&[30, 30], 1, &[(10, false)]), Next::Sleep);
    }

    #[test]
    fn stream_gets_a_few_looks_in_vain() {
        assert_eq!(next(&[], 2, &[(1, false); 3]), Next::Look);
        assert_eq!(next(&[], 2, &[(1, false); 4]), Next::Sleep);
        let looks = [(1, false), (1, false), (1, false), (1, true)];
        assert_eq!(next(&[], 2, &looks), Next::Look);
        assert_eq!(next(&[30, 30], 2, &[(2, false); 4]), Next::Look);
    }

    #[test]
    fn look_that_paid_is_followed_by_one() {
        let mut poll = Poll::default();
        let now = Instant::now();
        let mut look = poll.look(now, 2);
        look.looked(now, true);
        poll.has_looked(&look);

        let mut look = poll.look(now, 1);
        assert_eq!(look.next(), Next::Look);
        look.looked(now, false);
        poll.has_looked(&look);
        assert_eq!(poll.look(now, 1).next(), Next::Sleep);
    }

    #[test]
    fn others_have_their_turn() {
        assert_eq!(next(&[], 2, &[(1000, true); 2]), Next::Look);
        assert_eq!(next(&[], 2, &[(1000, true); 3]), Next::Later);
        assert_eq!(next(&[], 2, &[(3000, false)]), Next::Sleep);
    }
}
