//! Counters of a `page-hints` device.

use serde::Serialize;

use crate::metrics::{Counter, Named};

/// What a guest gave away and said of its pages.
#[derive(Debug, Default, Serialize)]
pub struct HintsMetrics {
    /// Blocks of free memory that were taken.
    pub taken_blocks: Counter,
    /// Blocks that the guest had removed from its cache and that were taken.
    pub evicted_blocks: Counter,
    /// Bytes of memory that were freed, of all blocks.
    pub freed_bytes: Counter,
    /// Blocks that were given back, in whole or in part: a transfer was under way, or the device
    /// stopped.
    pub kept_blocks: Counter,
    /// Wake-ups of the worker by the guest.
    pub doorbells: Counter,
    /// Wake-ups of the guest.
    pub signals: Counter,
    /// Events that the guest was sent.
    pub events: Counter,
    /// Events for which it had no slot.
    pub events_lost: Counter,
    /// Times that the guest was told to release what is free.
    pub flushes: Counter,
    /// Those that it did not answer in time.
    pub flushes_late: Counter,
    /// Words that name a disk which is none.
    pub unknown_disks: Counter,
    /// Words that name sectors past the end of their disk.
    pub sectors_past_end: Counter,
    /// Words that were found to be wrong, and made stable.
    pub refused: Counter,
}

impl HintsMetrics {
    /// All counters by name.
    pub const ALL: [Named<Self>; 13] = [
        ("taken_blocks", |all| &all.taken_blocks),
        ("evicted_blocks", |all| &all.evicted_blocks),
        ("freed_bytes", |all| &all.freed_bytes),
        ("kept_blocks", |all| &all.kept_blocks),
        ("doorbells", |all| &all.doorbells),
        ("signals", |all| &all.signals),
        ("events", |all| &all.events),
        ("events_lost", |all| &all.events_lost),
        ("flushes", |all| &all.flushes),
        ("flushes_late", |all| &all.flushes_late),
        ("unknown_disks", |all| &all.unknown_disks),
        ("sectors_past_end", |all| &all.sectors_past_end),
        ("refused", |all| &all.refused),
    ];
}
