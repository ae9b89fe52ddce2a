//! Event-manager glue: doorbells → handlers.

use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::handler::{BalloonFault, BalloonHandler};
use crate::virtio::VirtioInterrupt;

/// Event data of the turn that a handler asked for; queues have their position.
const AGAIN: u32 = u32::MAX;

/// The subscriber of the balloon's worker.
#[derive(Debug)]
pub(super) struct BalloonSubscriber {
    /// Handlers and their doorbells.
    pub(super) queues: Vec<(BalloonHandler, EventFd)>,
    /// Written by ourselves to get another turn after other events had theirs.
    pub(super) again: EventFd,
    pub(super) interrupt: Arc<VirtioInterrupt>,
}

impl BalloonSubscriber {
    fn events(&self) -> Vec<Events> {
        let doorbells = self.queues.iter().zip(0..);
        doorbells
            .map(|((_, doorbell), i)| Events::with_data(doorbell, i, EventSet::IN))
            .chain([Events::with_data(&self.again, AGAIN, EventSet::IN)])
            .collect()
    }

    /// Serves the queue whose doorbell rang, or all of them; true if there is more to do.
    fn serve(&mut self, event: u32) -> Result<bool, BalloonFault> {
        if event == AGAIN {
            // An error means that nobody wrote it.
            let _ = self.again.read();
        }
        let mut has_more = false;
        for ((handler, doorbell), i) in self.queues.iter_mut().zip(0..) {
            if event == i {
                let num_rung = doorbell.read().unwrap_or(0);
                handler.queue_metrics().doorbells.add(num_rung);
            }
            if event == i || event == AGAIN {
                has_more |= handler.serve_queue()?;
            }
        }
        Ok(has_more)
    }

    fn stop(&self, ops: &mut EventOps<'_>, cause: &dyn std::error::Error) {
        self.interrupt.needs_reset(cause);
        for events in self.events() {
            // An error means that it was not there.
            let _ = ops.remove(events);
        }
    }
}

impl MutEventSubscriber for BalloonSubscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match self.serve(events.data()) {
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
