//! A limit of how often something may happen.

/// A token bucket: `rate` times per second, and `rate` at once after a second of silence.
#[derive(Debug)]
pub(super) struct Bucket {
    /// In thousandths.
    tokens: u64,
    filled_ms: u64,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(rate: u32, now_ms: u64) -> Self {
        Bucket {
            tokens: u64::from(rate) * 1000,
            filled_ms: now_ms,
        }
    }

    /// True if it may happen once more at `now_ms`.
    pub(super) fn take(&mut self, rate: u32, now_ms: u64) -> bool {
        let passed_ms = now_ms.saturating_sub(self.filled_ms);
        self.filled_ms = now_ms;
        let full = u64::from(rate) * 1000;
        let filled = passed_ms.saturating_mul(u64::from(rate));
        self.tokens = self.tokens.saturating_add(filled).min(full);
        match self.tokens.checked_sub(1000) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }

    /// Counts `more` that came of what was taken; the next ones wait for them.
    pub(super) fn charge(&mut self, more: u32) {
        self.tokens = self.tokens.saturating_sub(u64::from(more) * 1000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(bucket: &mut Bucket, rate: u32, now_ms: u64) -> usize {
        (0..1000).take_while(|_| bucket.take(rate, now_ms)).count()
    }

    #[test]
    fn burst_is_one_second_and_refill_is_the_rate() {
        let mut bucket = Bucket::new(10, 0);

        assert_eq!(take_all(&mut bucket, 10, 0), 10);
        assert_eq!(take_all(&mut bucket, 10, 99), 0);
        assert_eq!(take_all(&mut bucket, 10, 250), 2);
        assert_eq!(take_all(&mut bucket, 10, 60_000), 10);
    }

    #[test]
    fn what_comes_of_one_counts_as_well() {
        let mut bucket = Bucket::new(10, 0);
        assert!(bucket.take(10, 0));

        bucket.charge(7);

        assert_eq!(take_all(&mut bucket, 10, 0), 2);
        bucket.charge(u32::MAX);
        assert_eq!(take_all(&mut bucket, 10, 1000), 10);
    }

    #[test]
    fn rate_of_zero_is_never() {
        assert!(!Bucket::new(0, 0).take(0, 100_000));
    }
}
