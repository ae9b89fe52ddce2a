//! A `passt` process as backend: outgoing connections for the guest without root on the host.
//!
//! passt ends the guest's TCP and UDP connections in ordinary sockets of the host, and answers DHCP,
//! NDP and ARP. Frames cross a stream socket, each behind its length as a 4-byte big-endian number.
//! There are no virtio headers on that socket, so nothing is left for the other side to finish.
//!
//! The process lives as long as its socket: when we end, in whatever way, it reads end of file.
//!
//! # Source
//! `passt(1)`, options `--fd` and `--foreground` (in every packaged version since 2022-11).

use std::ffi::OsStr;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::backend::{Port, Received, Sent, TxFrame};
use super::queue::QueueFault;
use super::window::RxWindow;
use super::{HEADER_BYTES, sys};

/// Largest MTU that passt carries, in bytes.
pub const MAX_MTU: u16 = 65_520;

/// Bytes of the length in front of each frame.
const LENGTH_BYTES: usize = 4;
/// Frames of other lengths end the connection, so they never leave us (passt `tap.c`).
const FRAME_BYTES: std::ops::RangeInclusive<u32> = 14..=65_535;
/// Bytes read in one go: several large frames.
const IN_BYTES: usize = 256 << 10;
/// Bytes that wait for passt before we wait for it.
const MAX_OUT_BYTES: usize = 256 << 10;

/// How long passt may take to end by itself.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Why passt does not run.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    /// There is no such program.
    #[error("passt is not installed; install it with: sudo apt install passt")]
    NotInstalled,
    /// The program cannot be started.
    #[error("cannot start passt")]
    Spawn {
        /// Why.
        source: io::Error,
    },
    /// The program has ended.
    #[error("passt ended with {status}: {message}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// What it said last.
        message: String,
    },
}

/// A running passt. Dropping it ends the process.
#[derive(Debug)]
pub struct Passt {
    child: Child,
    socket: UnixStream,
    /// What passt says; it loses words rather than wait for us to listen.
    messages: UnixStream,
}

impl Passt {
    /// Starts passt. Call it on a thread that lives as long as the VM: passt ends with that thread.
    ///
    /// passt finds out by itself whether the host has a network; ask [`Passt::check`] later.
    ///
    /// # Errors
    /// [`PasstError`].
    pub fn spawn() -> Result<Self, PasstError> {
        Self::spawn_program(OsStr::new("passt"))
    }

    fn spawn_program(program: &OsStr) -> Result<Self, PasstError> {
        let spawn_error = |source| PasstError::Spawn { source };
        let (socket, its_socket) = UnixStream::pair().map_err(spawn_error)?;
        let (messages, its_messages) = UnixStream::pair().map_err(spawn_error)?;
        for end in [&socket, &messages, &its_messages] {
            end.set_nonblocking(true).map_err(spawn_error)?;
        }
        let mut command = Command::new(program);
        command
            .args(["--foreground", "--quiet", "--fd", "0"])
            .stdin(Stdio::from(OwnedFd::from(its_socket)))
            .stdout(Stdio::null())
            .stderr(Stdio::from(OwnedFd::from(its_messages)));
        sys::die_with_parent(&mut command);
        let child = command.spawn().map_err(|source| match source.kind() {
            ErrorKind::NotFound => PasstError::NotInstalled,
            _ => spawn_error(source),
        })?;
        Ok(Passt {
            child,
            socket,
            messages,
        })
    }

    /// Whether passt still runs.
    ///
    /// # Errors
    /// [`PasstError::Ended`] if not, with its last words.
    pub fn check(&mut self) -> Result<(), PasstError> {
        match self.child.try_wait() {
            Ok(Some(status)) => Err(PasstError::Ended {
                status,
                message: self.last_words(),
            }),
            _ => Ok(()),
        }
    }

    pub(super) fn port(&self) -> io::Result<PasstPort> {
        self.socket.try_clone().map(PasstPort::new)
    }

    fn last_words(&mut self) -> String {
        let mut bytes = [0; 4096];
        let len = self.messages.read(&mut bytes).unwrap_or(0);
        let text = String::from_utf8_lossy(bytes.get(..len).unwrap_or(&[])).into_owned();
        let lines: Vec<_> = text
            .lines()
            .map(str::trim)
            // passt complains where the host has no syslog.
            .filter(|line| !line.is_empty() && !line.contains("to syslog"))
            .collect();
        lines.join("; ")
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // Its one connection ends, and so does it. A signal may be refused: started by root it becomes
        // somebody else, and a confined VM has no capability left.
        let _ = self.socket.shutdown(Shutdown::Both);
        let end = Instant::now() + END_PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= end {
                if self.child.kill().is_ok() {
                    let _ = self.child.wait();
                }
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The stream to passt, and the parts of frames that are underway.
#[derive(Debug)]
pub(super) struct PasstPort {
    socket: UnixStream,
    /// Bytes received: `input[input_start..input_end]` is not handled yet.
    input: Box<[u8]>,
    input_start: usize,
    input_end: usize,
    /// Bytes to send, lengths included.
    output: Vec<u8>,
}

impl PasstPort {
    fn new(socket: UnixStream) -> Self {
        PasstPort {
            socket,
            input: vec![0; IN_BYTES].into_boxed_slice(),
            input_start: 0,
            input_end: 0,
            output: Vec::new(),
        }
    }

    /// The next whole frame in `input`.
    fn next_frame(&self) -> io::Result<Option<&[u8]>> {
        let input = self
            .input
            .get(self.input_start..self.input_end)
            .unwrap_or(&[]);
        let Some((length, rest)) = input.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let len_bytes = u32::from_be_bytes(*length);
        if !FRAME_BYTES.contains(&len_bytes) {
            let text = format!("passt sent a frame of {len_bytes} bytes");
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
        Ok(rest.get(..len_bytes as usize))
    }

    /// Reads more input; false if there is none for now.
    fn fill(&mut self) -> io::Result<bool> {
        self.input.copy_within(self.input_start..self.input_end, 0);
        self.input_end -= self.input_start;
        self.input_start = 0;
        // A whole frame always fits, so there is room.
        let room = self.input.get_mut(self.input_end..).unwrap_or_default();
        match self.socket.read(room) {
            Ok(0) => Err(io::Error::new(ErrorKind::UnexpectedEof, "passt has ended")),
            Ok(len_bytes) => {
                self.input_end += len_bytes;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }
}

impl Port for PasstPort {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn send(&mut self, frame: &mut TxFrame<'_>) -> Result<Sent, QueueFault> {
        let len_bytes = frame.len_bytes.saturating_sub(HEADER_BYTES);
        if !FRAME_BYTES.contains(&len_bytes) {
            let text = format!("passt takes {FRAME_BYTES:?} bytes");
            return Ok(Sent::Refused(io::Error::new(ErrorKind::InvalidData, text)));
        }
        if self.output.len() >= MAX_OUT_BYTES {
            match self.flush() {
                Ok(_) if self.output.len() < MAX_OUT_BYTES => {}
                Ok(_) => return Ok(Sent::Full),
                Err(error) => return Ok(Sent::Lost(error)),
            }
        }
        let start = self.output.len();
        self.output.extend_from_slice(&len_bytes.to_be_bytes());
        if let Err(fault) = frame.append_to(HEADER_BYTES, &mut self.output) {
            self.output.truncate(start);
            return Err(fault);
        }
        Ok(Sent::Done)
    }

    fn flush(&mut self) -> io::Result<bool> {
        while !self.output.is_empty() {
            match self.socket.write(&self.output) {
                Ok(len_bytes) => drop(self.output.drain(..len_bytes)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.output.clear();
                    return Err(error);
                }
            }
        }
        Ok(true)
    }

    fn receive(&mut self, window: &mut RxWindow) -> Result<Received, QueueFault> {
        loop {
            let frame = match self.next_frame() {
                Ok(frame) => frame,
                Err(error) => return Ok(Received::Gone(error)),
            };
            let Some(frame) = frame else {
                match self.fill() {
                    Ok(true) => continue,
                    Ok(false) => return Ok(Received::Empty),
                    Err(error) => return Ok(Received::Gone(error)),
                }
            };
            #[expect(clippy::cast_possible_truncation, reason = "checked by `next_frame`")]
            let len_bytes = frame.len() as u32 + HEADER_BYTES;
            let fits = u64::from(len_bytes) <= window.len_bytes();
            if fits {
                window.write_at(0, &[0; HEADER_BYTES as usize])?;
                window.write_at(HEADER_BYTES, frame)?;
            }
            self.input_start += LENGTH_BYTES + frame.len();
            return Ok(if fits {
                Received::Frame(len_bytes)
            } else {
                Received::TooLarge
            });
        }
    }
}

#[cfg(test)]
#[path = "passt_tests.rs"]
mod tests;
