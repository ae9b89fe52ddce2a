//! How long a worker looks for work before it sleeps.
//!
//! To wake a sleeping thread on another CPU takes tens of microseconds, and a doorbell is an exit of
//! the guest. So a worker that was woken again right after it fell asleep stays awake a little longer
//! the next time, and one that looked in vain sleeps at once, as KVM does for halted vCPUs
//! (`Documentation/virt/kvm/halt-polling.rst`).

use std::time::{Duration, Instant};

/// Longest look: what it takes to sleep and to be woken.
const MOST: Duration = Duration::from_micros(50);
/// First look; less was no sleep.
const LEAST: Duration = Duration::from_micros(5);

/// How long the next look lasts.
#[derive(Debug, Default)]
pub(super) struct Poll {
    window: Duration,
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

    /// How long to look for more work.
    pub(super) fn window(&self) -> Duration {
        self.window
    }

    /// The worker falls asleep.
    pub(super) fn sleeps(&mut self, now: Instant) {
        self.asleep_since = Some(now);
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
        poll.window().as_micros()
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
}
