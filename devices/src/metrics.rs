//! Counters: plain atomics, owned by the device, read by whoever collects them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

/// A monotonic event counter. Any thread may add and read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n` events.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Events so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Counts one event that a guest can provoke; true on the 1st, 2nd, 4th, 8th…, and only then
    /// does the caller log, so that a guest cannot flood the log.
    pub fn count_sparsely(&self) -> bool {
        self.0
            .fetch_add(1, Relaxed)
            .wrapping_add(1)
            .is_power_of_two()
    }
}

impl Serialize for Counter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.get())
    }
}

/// The name of one counter of `M`, and which one it is.
pub type Named<M> = (&'static str, fn(&M) -> &Counter);

/// How often something was done, and how long it took. Any thread may add.
#[derive(Debug, Default, Serialize)]
pub struct Timer {
    /// Times that it was done.
    times: Counter,
    /// Nanoseconds that all of them took.
    total_ns: Counter,
    /// Nanoseconds that the longest one took.
    longest_ns: Longest,
}

impl Timer {
    /// Does it, and answers what it does.
    pub fn time<T>(&self, act: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = act();
        self.add(start.elapsed());
        result
    }

    fn add(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.times.add(1);
        self.total_ns.add(nanos);
        self.longest_ns.0.fetch_max(nanos, Relaxed);
    }
}

#[derive(Debug, Default)]
struct Longest(AtomicU64);

impl Serialize for Longest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0.load(Relaxed))
    }
}

/// Traffic of one virtqueue between guest and device.
#[derive(Debug, Default, Serialize)]
pub struct QueueMetrics {
    /// Doorbell writes by the guest, each a VM exit.
    pub doorbells: Counter,
    /// Interrupts that the device raised for this queue.
    pub interrupts: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_counting_logs_at_powers_of_two() {
        let counter = Counter::default();

        let logged: Vec<u64> = (1..=9).filter(|_| counter.count_sparsely()).collect();

        assert_eq!(logged, [1, 2, 4, 8]);
        assert_eq!(counter.get(), 9);
    }

    #[test]
    fn timer_tells_how_often_how_long_and_how_long_at_most() {
        let timer = Timer::default();

        for nanos in [5, 700, 30] {
            timer.add(Duration::from_nanos(nanos));
        }
        assert_eq!(timer.time(|| 7), 7);

        assert_eq!(timer.times.get(), 4);
        assert!(timer.total_ns.get() >= 735, "{timer:?}");
        assert!(timer.longest_ns.0.load(Relaxed) >= 700, "{timer:?}");
    }
}
