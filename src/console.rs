//! The user's terminal: raw while the guest has it, and always given back as it was.

use std::io::{self, Stdin, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

use crate::control::Control;
use crate::kvm::vcpu::VcpuObserver;

/// How often a vCPU that waits for a reader in non-blocking mode looks whether the VM ends.
const POLL_INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Ctrl-a.
const ESCAPE: u8 = 1;

/// The settings to give back, for [`restore_terminal`] to find from anywhere.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Puts the terminal back as it was before [`RawTerminal::new`]; harmless without one. Safe to call
/// from a panic hook.
pub fn restore_terminal() {
    restore(SAVED.lock().take());
}

/// The same in a signal handler, which must not wait for whoever was interrupted.
pub fn restore_terminal_if_possible() {
    restore(SAVED.try_lock().and_then(|mut saved| saved.take()));
}

fn restore(saved: Option<Termios>) {
    if let Some(saved) = saved
        && let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, &saved)
    {
        tracing::debug!("terminal: {error}");
    }
}

/// Keeps the terminal of standard input in raw mode until it is dropped.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Switches to raw mode; `None` if standard input is no terminal.
    ///
    /// # Errors
    /// The terminal refuses.
    pub fn new() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let saved = tcgetattr(&stdin)?;
        let mut raw = saved.clone();
        raw.make_raw();
        *SAVED.lock() = Some(saved);
        let terminal = RawTerminal(());
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(terminal))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore_terminal();
    }
}

/// Where the guest's output goes: a descriptor whose reader may take its time, but not hold up the
/// end of the VM. The kick that ends a vCPU interrupts the wait.
#[derive(Debug)]
pub struct GuestOutput<F> {
    fd: F,
    control: Arc<Control>,
}

impl<F: AsFd> GuestOutput<F> {
    /// Output to `fd` of the VM behind `control`.
    pub fn new(fd: F, control: Arc<Control>) -> Self {
        GuestOutput { fd, control }
    }

    fn wait(&self) -> rustix::io::Result<()> {
        poll(
            &mut [PollFd::new(&self.fd, PollFlags::OUT)],
            Some(&POLL_INTERVAL),
        )
        .map(drop)
    }
}

impl<F: AsFd> Write for GuestOutput<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let result = match rustix::io::write(&self.fd, bytes) {
                // Somebody shares the descriptor and made it non-blocking.
                Err(Errno::AGAIN) => self.wait().and(Err(Errno::INTR)),
                result => result,
            };
            match result {
                Err(Errno::INTR) if self.control.is_stopping() => {
                    return Err(io::Error::other("the VM ends"));
                }
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the user typed, with the escape sequences taken out.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// For the guest.
    Bytes(Vec<u8>),
    /// `Ctrl-a x`: end the VM.
    Quit,
    /// Nothing more will come.
    EndOfFile,
}

static STDIN: LazyLock<Stdin> = LazyLock::new(io::stdin);

/// Standard input.
#[derive(Debug)]
pub struct ConsoleInput {
    fd: BorrowedFd<'static>,
    is_terminal: bool,
    is_escaped: bool,
}

impl Default for ConsoleInput {
    fn default() -> Self {
        ConsoleInput::new(STDIN.as_fd(), isatty(STDIN.as_fd()))
    }
}

impl ConsoleInput {
    /// Input from `fd`, with escape sequences if a person types there.
    pub fn new(fd: BorrowedFd<'static>, is_terminal: bool) -> Self {
        ConsoleInput {
            fd,
            is_terminal,
            is_escaped: false,
        }
    }

    /// True if a person types: what they type is read at once, for there may be a `Ctrl-a x` in it.
    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// The descriptor to watch.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Reads up to `room` bytes; call it when the descriptor is readable.
    ///
    /// # Errors
    /// That of `read(2)`.
    pub fn read(&mut self, room: usize) -> io::Result<Input> {
        let mut buffer = [0; 64];
        let len = room.min(buffer.len());
        let target = buffer.get_mut(..len).unwrap_or_default();
        // Not through `Stdin`, whose own buffer epoll does not see.
        let n = rustix::io::read(self.fd, target)?;
        Ok(match buffer.get(..n) {
            Some([]) | None => Input::EndOfFile,
            Some(typed) if self.is_terminal => self.unescape(typed),
            Some(bytes) => Input::Bytes(bytes.to_vec()),
        })
    }

    /// `Ctrl-a x` quits, `Ctrl-a Ctrl-a` is one Ctrl-a, `Ctrl-a` and anything else is both.
    fn unescape(&mut self, typed: &[u8]) -> Input {
        let mut bytes = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            match (self.is_escaped, byte) {
                (true, b'x') => return Input::Quit,
                (true, ESCAPE) => bytes.push(ESCAPE),
                (true, other) => bytes.extend([ESCAPE, other]),
                (false, ESCAPE) => {}
                (false, other) => bytes.push(other),
            }
            self.is_escaped = !self.is_escaped && byte == ESCAPE;
        }
        Input::Bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::End;
    use crate::kvm::vcpu::VcpuThread;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    #[test]
    fn end_of_the_vm_ends_the_wait_for_a_reader() {
        for is_blocking in [true, false] {
            let (_reader, writer) = UnixStream::pair().unwrap();
            writer.set_nonblocking(!is_blocking).unwrap();
            let control = Arc::new(Control::new(Instant::now()).unwrap());
            let output = GuestOutput::new(writer, Arc::clone(&control));
            let output = Arc::new(Mutex::new(output));
            let threads = (0..2)
                .map(|idx| {
                    let output = Arc::clone(&output);
                    VcpuThread::start(format!("writer{idx}"), move || {
                        let result = output.lock().write_all(&[0; 4 << 20]);
                        assert!(result.is_err());
                    })
                })
                .collect::<io::Result<_>>()
                .unwrap();

            control.end(End::Escape);
            VcpuThread::join_all(threads);
        }
    }

    fn typed(chunks: &[&[u8]]) -> Vec<Input> {
        let mut input = ConsoleInput::new(STDIN.as_fd(), true);
        chunks.iter().map(|chunk| input.unescape(chunk)).collect()
    }

    fn bytes(text: &[u8]) -> Input {
        Input::Bytes(text.to_vec())
    }

    #[test]
    fn ctrl_a_x_quits_even_in_two_reads() {
        assert_eq!(typed(&[b"ls\x01", b"x"]), [bytes(b"ls"), Input::Quit]);
    }

    #[test]
    fn doubled_ctrl_a_is_one() {
        assert_eq!(typed(&[b"\x01\x01x"]), [bytes(b"\x01x")]);
    }

    #[test]
    fn ctrl_a_and_another_key_are_both_the_guests() {
        assert_eq!(typed(&[b"\x01e\x01x"]), [Input::Quit]);
        assert_eq!(typed(&[b"\x01e"]), [bytes(b"\x01e")]);
    }
}
