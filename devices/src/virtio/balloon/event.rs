//! Event glue: doorbells → handlers.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::handler::{BalloonFault, BalloonHandler};
use crate::virtio::VirtioInterrupt;
use crate::virtio::serve::{Serve, Served, Wake, clear_doorbell};

/// What the balloon's worker serves.
#[derive(Debug)]
pub(super) struct BalloonServer {
    /// Handlers and their doorbells.
    pub(super) queues: Vec<(BalloonHandler, EventFd)>,
    pub(super) interrupt: Arc<VirtioInterrupt>,
}

impl Serve for BalloonServer {
    type Fault = BalloonFault;

    fn watched(&self) -> Vec<RawFd> {
        self.queues
            .iter()
            .map(|(_, doorbell)| doorbell.as_raw_fd())
            .collect()
    }

    /// Serves the queue whose doorbell rang, or all of them.
    fn serve(&mut self, wake: Wake) -> Result<Served, BalloonFault> {
        let mut served = Served::All;
        for (i, (handler, doorbell)) in self.queues.iter_mut().enumerate() {
            if wake == Wake::Event(i) {
                let num_rung = clear_doorbell(doorbell);
                handler.queue_metrics().doorbells.add(num_rung);
            }
            if (wake == Wake::Event(i) || wake == Wake::Again)
                && handler.serve_queue()? == Served::More
            {
                served = Served::More;
            }
        }
        Ok(served)
    }

    fn interrupt(&self) -> &VirtioInterrupt {
        &self.interrupt
    }
}
