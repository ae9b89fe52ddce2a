//! Event-manager glue: doorbell and completions → handler.

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::handler::{BlkFault, Handler, Served};

const DOORBELL: u32 = 0;
const COMPLETION: u32 = 1;
const AGAIN: u32 = 2;

/// The subscriber of a disk's worker. Dropping it waits for what is under way.
#[derive(Debug)]
pub(super) struct BlkSubscriber {
    pub(super) handler: Handler,
    pub(super) doorbell: EventFd,
    /// Written by ourselves to get another turn after other events had theirs.
    pub(super) again: EventFd,
}

impl BlkSubscriber {
    fn events(&self) -> Vec<Events> {
        let mut events = vec![
            Events::with_data(&self.doorbell, DOORBELL, EventSet::IN),
            Events::with_data(&self.again, AGAIN, EventSet::IN),
        ];
        if let Some(completion_evt) = self.handler.engine().completion_evt() {
            events.push(Events::with_data(completion_evt, COMPLETION, EventSet::IN));
        }
        events
    }

    fn serve(&mut self, event: u32) -> Result<Served, BlkFault> {
        match event {
            COMPLETION => return self.handler.serve_completions(),
            DOORBELL => {
                let num_rung = self.doorbell.read().unwrap_or(0);
                self.handler.backend().metrics.queue.doorbells.add(num_rung);
            }
            // An error means that nobody wrote it.
            _ => drop(self.again.read()),
        }
        self.handler.serve_queue()
    }

    fn stop(&self, ops: &mut EventOps<'_>, cause: &dyn std::error::Error) {
        self.handler.backend().interrupt.needs_reset(cause);
        for events in self.events() {
            // An error means that it was not there.
            let _ = ops.remove(events);
        }
    }
}

impl MutEventSubscriber for BlkSubscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match self.serve(events.data()) {
            Ok(Served::All) => {}
            // A write to an eventfd fails only when it is readable anyway.
            Ok(Served::More) => drop(self.again.write(1)),
            Err(fault) => self.stop(ops, &fault),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for events in self.events() {
            if let Err(error) = ops.add(events) {
                return self.stop(ops, &error);
            }
        }
    }
}
