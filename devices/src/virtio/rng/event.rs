//! Event glue: doorbell → handler.

use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::eventfd::EventFd;

use super::handler::{RngFault, RngHandler};
use crate::virtio::VirtioInterrupt;
use crate::virtio::serve::{Serve, Served, Wake, clear_doorbell};

/// What the entropy device's worker serves.
#[derive(Debug)]
pub(super) struct RngServer {
    pub(super) handler: RngHandler,
    pub(super) doorbell: EventFd,
}

impl Serve for RngServer {
    type Fault = RngFault;

    fn watched(&self) -> Vec<RawFd> {
        vec![self.doorbell.as_raw_fd()]
    }

    fn serve(&mut self, wake: Wake) -> Result<Served, RngFault> {
        if wake != Wake::Again {
            let num_rung = clear_doorbell(&self.doorbell);
            self.handler.metrics.queue.doorbells.add(num_rung);
        }
        self.handler.serve_queue()
    }

    fn interrupt(&self) -> &VirtioInterrupt {
        &self.handler.interrupt
    }
}
