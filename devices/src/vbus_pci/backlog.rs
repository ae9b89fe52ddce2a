//! Events that wait for an empty slot, in order.
//!
//! What bounds it: there are at most two entries of a shm (a signal, its end), and shms are limited;
//! at most two of an interface (`interfaces`). Of the interfaces in it some are on the bus, and the
//! guest was told that the others are, all at one time: so there are at most twice as many as there
//! have been at a time.

use std::collections::VecDeque;

/// An event in a backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// The interface with this id came, or came back.
    Added(u32),
    /// The host's end of the interface with this id is gone.
    Lost(u32),
    /// The interface with this id left.
    Dropped(u32),
    /// The shm with this cookie of ours was signalled.
    Signal(u64),
    /// The shm with this cookie of ours was let go.
    Closed(u64),
}

/// The backlog of one event queue.
#[derive(Debug, Default)]
pub(super) struct Backlog(VecDeque<Entry>);

impl Backlog {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn push(&mut self, entry: Entry) {
        self.0.push_back(entry);
    }

    /// Takes an entry back; false if it does not wait here.
    pub fn take_back(&mut self, unwanted: Entry) -> bool {
        let place = self.0.iter().position(|entry| *entry == unwanted);
        place.is_some_and(|place| self.0.remove(place).is_some())
    }

    /// The oldest, at most `max`.
    pub fn first(&self, max: usize) -> impl Iterator<Item = Entry> {
        self.0.iter().copied().take(max)
    }

    /// Takes the oldest `count` out.
    pub fn pop(&mut self, count: usize) -> impl Iterator<Item = Entry> {
        self.0.drain(..count.min(self.0.len()))
    }
}
