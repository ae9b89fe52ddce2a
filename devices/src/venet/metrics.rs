//! Counters of one port.

use serde::Serialize;

use crate::metrics::{Counter, Named};

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
    /// Times that a frame from the client waited until the VM had brought all of it into memory.
    pub tx_away: Counter,
    /// Times that a frame for the client was dropped, or waited in a TAP, until the VM had brought
    /// buffers into memory.
    pub rx_away: Counter,
}

impl PortMetrics {
    /// All counters by name.
    pub const ALL: [Named<Self>; 13] = [
        ("rx_packets", |all| &all.rx_packets),
        ("rx_bytes", |all| &all.rx_bytes),
        ("rx_dropped", |all| &all.rx_dropped),
        ("rx_errors", |all| &all.rx_errors),
        ("tx_packets", |all| &all.tx_packets),
        ("tx_bytes", |all| &all.tx_bytes),
        ("tx_dropped", |all| &all.tx_dropped),
        ("tx_errors", |all| &all.tx_errors),
        ("signals", |all| &all.signals),
        ("doorbells", |all| &all.doorbells),
        ("batches", |all| &all.batches),
        ("tx_away", |all| &all.tx_away),
        ("rx_away", |all| &all.rx_away),
    ];

    /// Adds the counts of `other`.
    pub(super) fn absorb(&self, other: &PortMetrics) {
        for (_, pick) in Self::ALL {
            pick(self).add(pick(other).get());
        }
    }
}
