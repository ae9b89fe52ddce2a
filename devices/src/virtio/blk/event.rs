//! Event glue: doorbell and completions → handler.

use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::eventfd::EventFd;

use super::handler::{BlkFault, Handler};
use crate::virtio::VirtioInterrupt;
use crate::virtio::serve::{Serve, Served, Wake, clear_doorbell};

const DOORBELL: usize = 0;

/// What a disk's worker serves. Dropping it waits for what is under way.
#[derive(Debug)]
pub(super) struct BlkServer {
    pub(super) handler: Handler,
    pub(super) doorbell: EventFd,
}

impl Serve for BlkServer {
    type Fault = BlkFault;

    fn watched(&self) -> Vec<RawFd> {
        let completion_evt = self.handler.engine().completion_evt();
        [&self.doorbell]
            .into_iter()
            .chain(completion_evt)
            .map(AsRawFd::as_raw_fd)
            .collect()
    }

    fn serve(&mut self, wake: Wake) -> Result<Served, BlkFault> {
        match wake {
            Wake::Event(DOORBELL) => {
                let num_rung = clear_doorbell(&self.doorbell);
                self.handler.backend().metrics.queue.doorbells.add(num_rung);
                self.handler.serve_queue()
            }
            Wake::Event(_) => self.handler.serve_completions(),
            Wake::Again => self.handler.serve_queue(),
        }
    }

    fn interrupt(&self) -> &VirtioInterrupt {
        &self.handler.backend().interrupt
    }
}
