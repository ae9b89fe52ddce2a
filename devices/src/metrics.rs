//! Counters: plain atomics, owned by the device, read by whoever collects them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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
}
