//! Tells a client when the last use of its shared memory ends.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::quota::Charge;
use crate::verbs::{Event, EventSink};

/// Goes with an [`Shm`](crate::device::Shm); dropped with it.
pub(crate) struct ClosedNotice {
    promise: Arc<Promise>,
    /// What the shm takes of the member's quotas.
    charges: Vec<Charge>,
}

/// The promise of one [`Event::ShmClosed`], which is void if the device refuses the memory.
pub(crate) struct Promise {
    events: Arc<dyn EventSink>,
    cookie: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What `shm` returned, once it has.
    is_accepted: Option<bool>,
    is_dropped: bool,
}

impl ClosedNotice {
    /// A notice, and the promise that has to be settled when the device has answered.
    pub fn new(
        events: Arc<dyn EventSink>,
        cookie: u64,
        charges: Vec<Charge>,
    ) -> (Self, Arc<Promise>) {
        let promise = Arc::new(Promise {
            events,
            cookie,
            state: Mutex::default(),
        });
        let notice = ClosedNotice {
            promise: Arc::clone(&promise),
            charges,
        };
        (notice, promise)
    }
}

impl Promise {
    /// The device took the memory, or not; it may have dropped it already.
    pub fn settle(&self, is_accepted: bool) {
        let is_due = {
            let mut state = self.state.lock();
            state.is_accepted = Some(is_accepted);
            is_accepted && state.is_dropped
        };
        self.send_if(is_due);
    }

    fn send_if(&self, is_due: bool) {
        if is_due {
            self.events.event(Event::ShmClosed {
                cookie: self.cookie,
            });
        }
    }
}

impl Drop for ClosedNotice {
    fn drop(&mut self) {
        // Before the event, so that a client that heard of it can share as much again.
        self.charges.clear();
        let is_due = {
            let mut state = self.promise.state.lock();
            state.is_dropped = true;
            state.is_accepted == Some(true)
        };
        self.promise.send_if(is_due);
    }
}

impl fmt::Debug for ClosedNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClosedNotice")
            .field("cookie", &self.promise.cookie)
            .finish_non_exhaustive()
    }
}
