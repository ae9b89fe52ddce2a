//! Counters of one port.

use serde::Serialize;

use crate::metrics::Counter;

/// Traffic of one port; tx and rx as its client sees them.
#[derive(Debug, Default, Serialize)]
pub struct PortMetrics {
    /// Frames that the client received.
    pub rx_packets: Counter,
    /// Their bytes.
    pub rx_bytes: Counter,
    /// Frames for the client that found no buffer, or its link down.
    pub rx_dropped: Counter,
    /// Receive buffers that are none: outside of the client's memory, or empty.
    pub rx_errors: Counter,
    /// Frames that the client sent.
    pub tx_packets: Counter,
    /// Their bytes.
    pub tx_bytes: Counter,
    /// Frames from the client that nobody took: no link, a full backend, too much flooding.
    pub tx_dropped: Counter,
    /// Frames from the client that make no sense.
    pub tx_errors: Counter,
    /// Wake-ups that were sent to the client.
    pub signals: Counter,
    /// Doorbells that came from the client.
    pub doorbells: Counter,
    /// Batches of frames that were taken from the client at once.
    pub batches: Counter,
}

impl PortMetrics {
    /// All counters by name.
    pub fn all(&self) -> [(&'static str, &Counter); 11] {
        [
            ("rx_packets", &self.rx_packets),
            ("rx_bytes", &self.rx_bytes),
            ("rx_dropped", &self.rx_dropped),
            ("rx_errors", &self.rx_errors),
            ("tx_packets", &self.tx_packets),
            ("tx_bytes", &self.tx_bytes),
            ("tx_dropped", &self.tx_dropped),
            ("tx_errors", &self.tx_errors),
            ("signals", &self.signals),
            ("doorbells", &self.doorbells),
            ("batches", &self.batches),
        ]
    }

    /// The counter called `name`; 0 if there is none.
    pub fn value(&self, name: &str) -> u64 {
        let all = self.all();
        let found = all.iter().find(|(other, _)| *other == name);
        found.map_or(0, |(_, counter)| counter.get())
    }

    /// Adds the counts of `other`.
    pub(super) fn absorb(&self, other: &PortMetrics) {
        for ((_, mine), (_, theirs)) in self.all().into_iter().zip(other.all()) {
            mine.add(theirs.get());
        }
    }
}
