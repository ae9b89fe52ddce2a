//! What a connector counts.

use serde::Serialize;

use crate::metrics::Counter;

/// Counters of one connector.
#[derive(Debug, Default, Serialize)]
pub struct VbusPciMetrics {
    /// Calls, through the register or a channel.
    pub calls: Counter,
    /// Calls through a channel.
    pub fast_calls: Counter,
    /// Calls that were answered with an error.
    pub failed_calls: Counter,
    /// Calls that could not be answered: a bad address, an unknown channel, no bus mastering.
    pub unanswered_calls: Counter,
    /// Resets: by the register, by the end of bus mastering, or of the whole function.
    pub resets: Counter,
    /// Events told: an interface came, or came back.
    pub devices_added: Counter,
    /// Events told: the host's end of an interface is gone.
    pub devices_lost: Counter,
    /// Events told: an interface left.
    pub devices_dropped: Counter,
    /// Events told: a signal without a vector of its own.
    pub signals: Counter,
    /// Events told: shared memory was let go.
    pub shms_closed: Counter,
    /// Events that were left out: an interface that came and left, or was lost and came back, before
    /// that was told, a signal that was to be told already.
    pub coalesced_events: Counter,
    /// Interrupts for events.
    pub event_interrupts: Counter,
    /// Times that an event queue was full and the guest had to ring.
    pub full_event_queues: Counter,
    /// Doorbells that took an exit to this process: the first ring of each number.
    pub doorbell_exits: Counter,
    /// Doorbells with a number that no signal can have.
    pub unknown_doorbells: Counter,
    /// Times that the guest broke the rules of an event queue, which stops the connector.
    pub faults: Counter,
    /// Resets that waited in vain for memory to be let go.
    pub late_closes: Counter,
}
