//! Programs that were started: what they say is followed with a deadline, and they end with us, however
//! we end.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use super::command_line::CommandLine;
use super::interrupt::Interrupt;
use super::{GuestsError, io_error};

/// Has the kernel kill a program when the thread that started it ends.
const TIED: [&str; 3] = ["--pdeathsig", "KILL", "--"];
/// How long a program may take to end by itself.
const POLITE: Duration = Duration::from_secs(3);
/// How often something is looked at that nothing tells of.
const LOOK: Duration = Duration::from_millis(50);
/// Lines of standard error that are kept.
const KEPT_LINES: usize = 4;

/// A running program. Dropping it ends it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    complaints: Arc<Mutex<VecDeque<String>>>,
}

impl Process {
    /// Starts it with nothing on standard input. It ends with the thread that calls this.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(line: &CommandLine) -> Result<Self, GuestsError> {
        let mut child = Command::new("setpriv")
            .args(TIED)
            .args(&line.0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(io_error("start setpriv; install util-linux"))?;
        let (sender, lines) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            // Ends with the program.
            thread::spawn(move || {
                for_each_line(stdout, |line| {
                    let _ = sender.send(line);
                });
            });
        }
        let complaints = Arc::default();
        if let Some(stderr) = child.stderr.take() {
            let complaints: Arc<Mutex<VecDeque<String>>> = Arc::clone(&complaints);
            thread::spawn(move || {
                for_each_line(stderr, |line| {
                    let mut kept = complaints.lock();
                    kept.push_back(line);
                    if kept.len() > KEPT_LINES {
                        kept.pop_front();
                    }
                });
            });
        }
        Ok(Process {
            child,
            lines,
            complaints,
        })
    }

    /// Number of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line, `None` if none comes for `silence` or any more.
    ///
    /// # Errors
    /// The run is to end.
    pub fn next_line(
        &self,
        silence: Duration,
        interrupt: &Interrupt,
    ) -> Result<Option<String>, GuestsError> {
        let end = Instant::now() + silence;
        loop {
            interrupt.check()?;
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left.min(LOOK)) {
                Ok(line) => return Ok(Some(line)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Waits until it has ended by itself; false after `patience`.
    ///
    /// # Errors
    /// The run is to end.
    pub fn wait(&mut self, patience: Duration, interrupt: &Interrupt) -> Result<bool, GuestsError> {
        let end = Instant::now() + patience;
        while matches!(self.child.try_wait(), Ok(None)) {
            interrupt.check()?;
            if Instant::now() >= end {
                return Ok(false);
            }
            thread::sleep(LOOK);
        }
        Ok(true)
    }

    /// Waits until it has ended; whether with success, and within `patience`.
    ///
    /// # Errors
    /// The run is to end.
    pub fn wait_success(
        &mut self,
        patience: Duration,
        interrupt: &Interrupt,
    ) -> Result<bool, GuestsError> {
        self.wait(patience, interrupt)?;
        Ok(matches!(self.child.try_wait(), Ok(Some(status)) if status.success()))
    }

    /// The last lines of standard error.
    pub fn complaints(&self) -> String {
        let kept: Vec<_> = self.complaints.lock().iter().cloned().collect();
        kept.join("; ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        let end = Instant::now() + POLITE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            thread::sleep(LOOK);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Guests may say anything, also what is no text, and lines without end.
fn for_each_line(from: impl Read, mut tell: impl FnMut(String)) {
    const MAX_BYTES: u64 = 64 << 10;
    let mut from = BufReader::new(from);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match from.by_ref().take(MAX_BYTES).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(_) => tell(String::from_utf8_lossy(&bytes).trim_end().to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str) -> Process {
        let line = CommandLine(vec!["sh".into(), "-c".into(), script.into()]);
        Process::start(&line).unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn lines_come_until_the_program_ends() {
        let interrupt = Interrupt::default();
        let mut process = start("echo one; printf 'tw\\377o\\n'; echo oops >&2");

        let line = || process.next_line(LONG, &interrupt).unwrap();
        assert_eq!(line().as_deref(), Some("one"));
        assert_eq!(line().as_deref(), Some("tw\u{fffd}o"));
        assert_eq!(line(), None);
        assert!(process.wait(LONG, &interrupt).unwrap());
        while process.complaints().is_empty() {
            thread::sleep(LOOK);
        }
        assert_eq!(process.complaints(), "oops");
    }

    #[test]
    fn silence_is_not_waited_out_for_ever() {
        let interrupt = Interrupt::default();
        let mut process = start("exec sleep 1000");

        assert_eq!(process.next_line(LOOK, &interrupt).unwrap(), None);
        assert!(!process.wait(LOOK, &interrupt).unwrap());
    }

    #[test]
    fn program_ends_when_it_is_dropped_even_if_it_would_not() {
        let process = start("trap '' TERM; echo up; while :; do sleep 1; done");
        let interrupt = Interrupt::default();
        assert_eq!(
            process.next_line(LONG, &interrupt).unwrap().as_deref(),
            Some("up")
        );
        let place = format!("/proc/{}", process.pid());

        drop(process);

        assert!(!std::path::Path::new(&place).exists());
    }

    #[test]
    fn interrupt_ends_waiting() {
        let interrupt = Interrupt::default();
        let process = start("exec sleep 1000");
        interrupt.raise(15);

        let error = process.next_line(LONG, &interrupt).unwrap_err();

        assert!(matches!(error, GuestsError::Interrupted { signal: 15 }));
    }
}
