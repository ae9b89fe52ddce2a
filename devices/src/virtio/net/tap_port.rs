//! The data path of one TAP queue.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use super::backend::{Port, Received, Sent, TxFrame};
use super::queue::QueueFault;
use super::window::RxWindow;

/// One queue of a TAP: each `read` and `write` is one frame with its virtio header.
#[derive(Debug)]
pub(super) struct TapPort {
    queue: Arc<File>,
}

impl TapPort {
    pub(super) fn new(queue: Arc<File>) -> Self {
        TapPort { queue }
    }
}

impl Port for TapPort {
    fn fd(&self) -> RawFd {
        self.queue.as_raw_fd()
    }

    fn send(&mut self, frame: &mut TxFrame<'_>) -> Result<Sent, QueueFault> {
        let error = match frame.iovecs()?.write_to(&*self.queue) {
            Ok(_) => return Ok(Sent::Done),
            Err(error) => error,
        };
        Ok(match error.raw_os_error() {
            Some(libc::EAGAIN) => Sent::Full,
            // Bad header or length.
            Some(libc::EINVAL | libc::EMSGSIZE | libc::EFAULT) => Sent::Refused(error),
            // EIO: the interface is down. EBADFD: it is gone, or its queue is off. No memory.
            _ => Sent::Lost(error),
        })
    }

    fn receive(&mut self, window: &mut RxWindow) -> Result<Received, QueueFault> {
        Ok(match window.read_from(&*self.queue) {
            Ok(len_bytes) if len_bytes as u64 > window.len_bytes() => Received::TooLarge,
            // A window is far below 4 GiB wherever a frame of that size could come from.
            Ok(len_bytes) => Received::Frame(u32::try_from(len_bytes).unwrap_or(u32::MAX)),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted => Received::Empty,
                _ => Received::Gone(error),
            },
        })
    }
}
