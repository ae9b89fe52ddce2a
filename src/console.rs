//! The user's terminal: raw while the guest has it, and always given back as it was.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Mutex, PoisonError};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// Ctrl-a.
const ESCAPE: u8 = 1;

/// The settings to give back, for [`restore_terminal`] to find from anywhere.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Puts the terminal back as it was before [`RawTerminal::new`]; harmless without one. Safe to call
/// from a panic hook.
pub fn restore_terminal() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
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
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
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

/// Standard input.
#[derive(Debug)]
pub struct ConsoleInput {
    is_terminal: bool,
    is_escaped: bool,
}

impl Default for ConsoleInput {
    fn default() -> Self {
        ConsoleInput {
            is_terminal: isatty(io::stdin()),
            is_escaped: false,
        }
    }
}

impl ConsoleInput {
    /// The descriptor to watch.
    pub fn fd(&self) -> RawFd {
        io::stdin().as_fd().as_raw_fd()
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
        let n = rustix::io::read(io::stdin(), target)?;
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

    fn typed(chunks: &[&[u8]]) -> Vec<Input> {
        let mut input = ConsoleInput {
            is_terminal: true,
            is_escaped: false,
        };
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
