//! Two TAP interfaces on a bridge, in a network namespace of their own.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::thread;

use alacrity_devices::tap::Tap;
use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::BenchError;
use super::frames::{Stream, ethernet_frame};
use super::ip::ip;

/// Bytes of the header that each frame of a TAP has in front: `struct virtio_net_hdr_v1`.
const HEADER_BYTES: usize = 12;
/// Largest frame with its header.
const MAX_BYTES: usize = 2048;
/// Where frames come from and go to; the bridge learns both.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
const RECEIVER: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Nanoseconds after which a receiver looks whether it is still wanted.
const A_WHILE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// The pair. Everything ends with it: the TAPs are not persistent, and nobody else is in the namespace.
pub struct TapPair {
    sender: Arc<File>,
    receiver: Arc<File>,
    _taps: [Tap; 2],
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> BenchError {
    move |source| BenchError::Io { what, source }
}

impl TapPair {
    /// Makes it.
    ///
    /// # Errors
    /// No privilege to, or no `ip`.
    pub fn new() -> Result<Self, BenchError> {
        // A thread of its own enters the namespace, which lives on in the open TAPs; what `ip` made
        // in it stays with it.
        thread::spawn(Self::new_in_namespace)
            .join()
            .map_err(|_| BenchError::Panic)?
    }

    fn new_in_namespace() -> Result<Self, BenchError> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|source| {
            io_error("make a network namespace; run this as root")(source.into())
        })?;
        let open = |name| Tap::open(name, 1).map_err(|source| BenchError::Tap { source });
        let taps = [open("bench0")?, open("bench1")?];
        ip("link add bridge0 type bridge forward_delay 0 mcast_snooping 0")?;
        for tap in &taps {
            ip(&format!("link set {} master bridge0 up", tap.name()))?;
        }
        ip("link set bridge0 up")?;
        let file = |tap: &Tap| tap.queues().first().map(Arc::clone).ok_or(BenchError::Lost);
        let [first, second] = &taps;
        Ok(TapPair {
            sender: file(first)?,
            receiver: file(second)?,
            _taps: taps,
        })
    }

    /// Sends frames of `len` bytes until the stream is over.
    ///
    /// # Errors
    /// The TAP broke.
    pub fn send(&self, len: usize, stream: &Stream) -> Result<(), BenchError> {
        // The bridge learns where the receiver is.
        write(&self.receiver, &tap_frame([0xff; 6], RECEIVER, 64))?;
        let frame = tap_frame(RECEIVER, SENDER, len);
        while !stream.is_over() {
            write(&self.sender, &frame)?;
        }
        Ok(())
    }

    /// Receives frames until the stream is over.
    ///
    /// # Errors
    /// The TAP broke.
    pub fn receive(&self, stream: &Stream) -> Result<(), BenchError> {
        let mut bytes = [0; MAX_BYTES];
        while !stream.is_over() {
            match (&*self.receiver).read(&mut bytes) {
                // Not what the kernel itself says, about IPv6.
                Ok(_)
                    if bytes
                        .get(HEADER_BYTES..)
                        .is_some_and(|f| f.starts_with(&RECEIVER)) =>
                {
                    stream.arrived(1);
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(&*self.receiver, PollFlags::IN)];
                    poll(&mut fds, Some(&A_WHILE))
                        .map_err(|source| io_error("wait for a TAP")(source.into()))?;
                }
                Err(error) => return Err(io_error("read a TAP")(error)),
            }
        }
        Ok(())
    }
}

/// A frame as a TAP takes it.
fn tap_frame(target: [u8; 6], source: [u8; 6], len: usize) -> Vec<u8> {
    [vec![0; HEADER_BYTES], ethernet_frame(target, source, len)].concat()
}

fn write(mut tap: &File, frame: &[u8]) -> Result<(), BenchError> {
    match tap.write(frame) {
        Err(error) if error.kind() != ErrorKind::WouldBlock => {
            Err(io_error("write to a TAP")(error))
        }
        _ => Ok(()),
    }
}
