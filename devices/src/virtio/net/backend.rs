//! Where frames go. The data path sees a `Port` per queue pair and nothing of what is behind it.

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use parking_lot::Mutex;
use vm_memory::Bytes;

use super::passt::Passt;
use super::queue::{QueueFault, Segment};
use super::tap_port::TapPort;
use super::window::RxWindow;
use crate::GuestRam;
use crate::iovec::GuestIoVecs;
use crate::tap::Tap;

/// What carries a device's frames.
#[derive(Debug)]
pub enum Backend {
    /// An interface of the host.
    Tap(Tap),
    /// A `passt` process: outgoing connections without root.
    Passt(Passt),
    /// One datagram socket per queue pair; each datagram is a virtio header and a frame.
    #[cfg(any(test, feature = "test-utils"))]
    Datagram(Vec<std::os::unix::net::UnixDatagram>),
}

impl Backend {
    /// Number of queue pairs, 1 to [`super::MAX_QUEUE_PAIRS`].
    pub fn num_queue_pairs(&self) -> u16 {
        match self {
            Backend::Tap(tap) => tap.num_queue_pairs(),
            Backend::Passt(_) => 1,
            #[cfg(any(test, feature = "test-utils"))]
            Backend::Datagram(sockets) => u16::try_from(sockets.len()).unwrap_or(u16::MAX),
        }
    }

    /// Whether it takes and gives frames with unfinished checksums and of more than one segment.
    pub(super) fn has_offloads(&self) -> bool {
        !matches!(self, Backend::Passt(_))
    }

    /// Whether that includes UDP segmentation.
    pub(super) fn has_uso(&self) -> bool {
        match self {
            Backend::Tap(tap) => tap.has_uso(),
            _ => false,
        }
    }

    /// What frames the backend may give: a set of `TUN_F_*`.
    pub(super) fn set_offloads(&self, tun_offloads: u32) -> io::Result<()> {
        match self {
            Backend::Tap(tap) => tap.set_offloads(tun_offloads),
            _ => Ok(()),
        }
    }

    /// From now on frames arrive on the first `num_pairs` ports only.
    pub(super) fn set_active_pairs(&self, num_pairs: u16) -> io::Result<()> {
        match self {
            Backend::Tap(tap) => tap.set_active_queues(num_pairs),
            _ => Ok(()),
        }
    }

    /// One port per queue pair. Called once.
    pub(super) fn ports(&self) -> io::Result<Vec<SharedPort>> {
        match self {
            Backend::Tap(tap) => {
                let port = |queue| share(TapPort::new(Arc::clone(queue)));
                Ok(tap.queues().iter().map(port).collect())
            }
            Backend::Passt(passt) => Ok(vec![share(passt.port()?)]),
            #[cfg(any(test, feature = "test-utils"))]
            Backend::Datagram(sockets) => sockets
                .iter()
                .map(|socket| {
                    socket.set_nonblocking(true)?;
                    let file = std::fs::File::from(std::os::fd::OwnedFd::from(socket.try_clone()?));
                    Ok(share(TapPort::new(Arc::new(file))))
                })
                .collect(),
        }
    }
}

/// A port that outlives the workers which use it one after the other. Never contended: the worker
/// of its queue pair is the only one to lock it.
pub(super) type SharedPort = Arc<Mutex<dyn Port>>;

fn share(port: impl Port + 'static) -> SharedPort {
    Arc::new(Mutex::new(port))
}

/// A frame on its way from the guest: virtio header and Ethernet frame, still in guest memory.
pub(super) struct TxFrame<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) segments: &'a [Segment],
    pub(super) len_bytes: u32,
    /// Scratch space; what it holds is of no interest.
    pub(super) iovecs: &'a mut GuestIoVecs,
}

impl TxFrame<'_> {
    /// The frame for the kernel to read.
    pub(super) fn iovecs(&mut self) -> Result<&GuestIoVecs, QueueFault> {
        self.iovecs.clear();
        for segment in self.segments {
            self.iovecs.push(segment.gpa, segment.len)?;
        }
        Ok(self.iovecs)
    }

    /// Appends the frame without its first `skip` bytes to `bytes`.
    pub(super) fn append_to(&self, skip: u32, bytes: &mut Vec<u8>) -> Result<(), QueueFault> {
        let mut skip = skip;
        for segment in self.segments {
            let skipped = skip.min(segment.len);
            skip -= skipped;
            let start = bytes.len();
            // At most MAX_FRAME_BYTES in all, which the caller checked.
            bytes.resize(start + (segment.len - skipped) as usize, 0);
            let gpa = vm_memory::GuestAddress(segment.gpa.0.wrapping_add(u64::from(skipped)));
            if let Some(space) = bytes.get_mut(start..) {
                self.ram.read_slice(space, gpa).map_err(QueueFault::Copy)?;
            }
        }
        Ok(())
    }
}

/// What became of a frame from the guest.
#[derive(Debug)]
pub(super) enum Sent {
    /// The backend has it.
    Done,
    /// The backend takes no more for now; offer the frame again when the port is writable.
    Full,
    /// The frame is not valid.
    Refused(io::Error),
    /// The host could not take it.
    Lost(io::Error),
}

/// What a port had for the guest.
#[derive(Debug)]
pub(super) enum Received {
    /// A frame of so many bytes, virtio header included, now in the window.
    Frame(u32),
    /// Nothing for now.
    Empty,
    /// A frame that does not fit the window; it is gone.
    TooLarge,
    /// The backend has ended or failed.
    Gone(io::Error),
}

/// One queue pair's way to the backend. None of its functions blocks.
pub(super) trait Port: Send + fmt::Debug {
    /// What to watch for readable and writable events.
    fn fd(&self) -> RawFd;

    /// Sends a frame of at most [`super::MAX_FRAME_BYTES`].
    fn send(&mut self, frame: &mut TxFrame<'_>) -> Result<Sent, QueueFault>;

    /// Passes on what the port still holds of the frames sent; false if some is left.
    fn flush(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    /// Puts the next frame, with its virtio header but for `num_buffers`, into `window`.
    fn receive(&mut self, window: &mut RxWindow) -> Result<Received, QueueFault>;
}
