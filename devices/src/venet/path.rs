//! The seams between the classes: what is behind a port, and the way frames take there.

use std::os::fd::RawFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::frame::{Frame, Scratch};
use super::port::Port;
use super::rx::Receiver;
use super::tx::Progress;

/// What a class adds to what all have in common. Shared by all ports of a device.
pub(super) trait Backend: Send + Sync {
    /// Whether a client can connect now.
    fn check_open(&self) -> Result<(), Errno> {
        Ok(())
    }

    /// Most bytes of payload in a frame.
    fn mtu(&self) -> u32;

    /// True while frames can go anywhere.
    fn is_link_up(&self) -> bool {
        true
    }

    /// The way out of `port`, for the worker of its connection.
    fn path(self: Arc<Self>, port: &Arc<Port>) -> Box<dyn Path>;

    /// The connection of `port` was closed.
    fn closed(&self, port: &Arc<Port>) {
        let _ = port;
    }
}

/// The way that the frames of one port take. Belongs to one thread.
pub(super) trait Path: Send {
    /// Who sends, for the log.
    fn name(&self) -> &str;

    /// Looks what has changed since the last time. Called before each look at a client's frames.
    fn refresh(&mut self) {}

    /// Sends a frame; what that took, in frames copied. Never waits.
    fn send(&mut self, frame: &Frame<'_>, scratch: &mut Scratch) -> u32;

    /// Wakes whoever has received something.
    fn flush(&mut self);

    /// Where frames come from that are for this port alone, and readable when there are any.
    fn source(&self) -> Option<RawFd> {
        None
    }

    /// Prepares the source for a receiver with `caps`, bits of [`vbus::abi::venet::rx_cap`].
    fn set_caps(&mut self, caps: u32) {
        let _ = caps;
    }

    /// Something happened to the source other than a frame: see what.
    fn check_source(&mut self) {}

    /// Delivers frames of the source to the port's own `receiver`, which is to be told afterwards.
    fn receive(&mut self, receiver: &mut Receiver, scratch: &mut Scratch) -> Progress {
        let _ = (receiver, scratch);
        Progress::Idle
    }
}
