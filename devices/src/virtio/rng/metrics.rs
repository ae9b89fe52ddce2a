//! Counters of the entropy device.

use serde::Serialize;

use crate::metrics::{Counter, QueueMetrics};

/// Traffic of the entropy device.
#[derive(Debug, Default, Serialize)]
pub struct RngMetrics {
    /// Requests answered.
    pub requests: Counter,
    /// Random bytes handed to the guest.
    pub bytes: Counter,
    /// Doorbells and interrupts.
    pub queue: QueueMetrics,
}
