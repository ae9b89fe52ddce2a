//! The thread that brings frames from a TAP into a switch.

use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::frame::Scratch;
use super::path::Path;
use super::switch_path::SwitchPath;
use super::tap_end::{self, TapBuffer, TapEnd};
use crate::client::readable;
use crate::worker::Worker;

/// Frames per turn; then the stop event has its turn.
const BUDGET: usize = 256;

/// Starts the thread for the uplink of the switch `name`.
///
/// # Errors
/// `EMFILE`, `EAGAIN`.
pub(super) fn spawn(
    name: &str,
    tap: Arc<TapEnd>,
    path: SwitchPath,
    mtu: u32,
) -> Result<Worker, Errno> {
    let handler = UplinkHandler {
        tap,
        path,
        mtu,
        buffer: TapEnd::new_buffer(),
        scratch: Scratch::new(),
        kick: EventFd::new(EFD_NONBLOCK).map_err(|_| Errno::MFILE)?,
    };
    let name = format!("uplink-{name}").replace('\0', "");
    Worker::spawn(name, handler).map_err(|_| Errno::AGAIN)
}

struct UplinkHandler {
    tap: Arc<TapEnd>,
    path: SwitchPath,
    mtu: u32,
    buffer: TapBuffer,
    scratch: Scratch,
    kick: EventFd,
}

impl MutEventSubscriber for UplinkHandler {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        self.path.refresh();
        let Some(own) = self.path.own().cloned() else {
            return;
        };
        let metrics = own.metrics();
        let mut is_empty = false;
        for _ in 0..BUDGET {
            match self
                .tap
                .receive(&mut self.buffer, tap_end::limits(self.mtu))
            {
                Some(Ok(frame)) => {
                    metrics.tx_packets.add(1);
                    metrics.tx_bytes.add(frame.len().into());
                    self.path.send(&frame, &mut self.scratch);
                }
                Some(Err(())) => metrics.tx_errors.add(1),
                None => {
                    is_empty = true;
                    break;
                }
            }
        }
        self.path.flush();
        if !is_empty {
            // Fails only when the counter is full, and then it is readable.
            let _ = self.kick.write(1);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let tap = Events::with_data_raw(self.tap.fd(), 0, readable());
        let kick = Events::with_data(&self.kick, 1, readable());
        for events in [tap, kick] {
            if let Err(error) = ops.add(events) {
                tracing::error!("{}: cannot watch the TAP: {error}", self.path.name());
            }
        }
    }
}
