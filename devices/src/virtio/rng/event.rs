//! Event-manager glue: doorbell → handler.

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::handler::RngHandler;

const DOORBELL: u32 = 0;
const AGAIN: u32 = 1;

/// The subscriber of the entropy device's worker.
#[derive(Debug)]
pub(super) struct RngSubscriber {
    pub(super) handler: RngHandler,
    pub(super) doorbell: EventFd,
    /// Written by ourselves to get another turn after other events had theirs.
    pub(super) again: EventFd,
}

impl RngSubscriber {
    fn events(&self) -> [Events; 2] {
        [
            Events::with_data(&self.doorbell, DOORBELL, EventSet::IN),
            Events::with_data(&self.again, AGAIN, EventSet::IN),
        ]
    }

    fn stop(&self, ops: &mut EventOps<'_>, cause: &dyn std::error::Error) {
        self.handler.interrupt.needs_reset(cause);
        for events in self.events() {
            // An error means that it was not there.
            let _ = ops.remove(events);
        }
    }
}

impl MutEventSubscriber for RngSubscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.data() == DOORBELL {
            let num_rung = self.doorbell.read().unwrap_or(0);
            self.handler.metrics.queue.doorbells.add(num_rung);
        } else {
            // An error means that nobody wrote it.
            let _ = self.again.read();
        }
        match self.handler.serve_queue() {
            Ok(false) => {}
            // A write to an eventfd fails only when it is readable anyway.
            Ok(true) => drop(self.again.write(1)),
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
