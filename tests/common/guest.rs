//! VMs of the default guest image, started as a user starts them, each with a deadline.

use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::host::{Host, image_dir};
use super::output::Output;
use super::stall;
use super::terminal::Terminal;
use super::{ALACRITY, DEADLINE, until};

/// The prompt of the guest's shell.
pub const PROMPT: &str = "root@guest:";

/// `alacrity run` with arguments.
#[derive(Debug)]
pub struct Vm {
    command: Command,
}

impl Vm {
    /// A VM of 512 MiB and one vCPU, unless `args` say otherwise.
    pub fn new(host: &Host, args: &[&str]) -> Self {
        Self::through(host, &[ALACRITY, "run"], args)
    }

    /// The same, started by `program` and its first arguments.
    pub fn through(host: &Host, program: &[&str], args: &[&str]) -> Self {
        let mut command = Command::new(program[0]);
        command
            .args(&program[1..])
            .args(args)
            .current_dir(host.cwd())
            .env("TMPDIR", host.tmp())
            .env("ALACRITY_GUEST_DIR", image_dir())
            .process_group(0)
            .stderr(Stdio::piped());
        Vm { command }
    }

    /// The same with the guest image in `dir` as the default one.
    pub fn with_image(mut self, dir: &Path) -> Self {
        self.command.env("ALACRITY_GUEST_DIR", dir);
        self
    }

    /// Runs it to its end with nothing on standard input.
    #[track_caller]
    pub fn run(mut self) -> Outcome {
        self.command.stdin(Stdio::null());
        self.start_piped().wait()
    }

    /// Starts it with pipes as standard input and output.
    #[track_caller]
    pub fn start(mut self) -> Running {
        self.command.stdin(Stdio::piped());
        self.start_piped()
    }

    /// Starts it on a terminal of its own.
    #[track_caller]
    pub fn start_on_terminal(mut self) -> Running {
        let terminal = Terminal::new();
        terminal.connect(&mut self.command);
        let settings = terminal.settings().unwrap();
        let mut child = self.command.spawn().unwrap();
        drop(self.command); // and with it our copies of the terminal
        Running {
            stdout: terminal.screen(),
            stderr: Output::collect(child.stderr.take().unwrap()),
            input: Some(terminal.keyboard()),
            terminal: Some((terminal, settings)),
            child,
        }
    }

    #[track_caller]
    fn start_piped(mut self) -> Running {
        let mut child = self.command.stdout(Stdio::piped()).spawn().unwrap();
        Running {
            stdout: Output::collect(child.stdout.take().unwrap()),
            stderr: Output::collect(child.stderr.take().unwrap()),
            input: child.stdin.take().map(|pipe| Box::new(pipe) as _),
            terminal: None,
            child,
        }
    }
}

/// A VM at work. Dropping it kills it and whatever it started.
pub struct Running {
    child: Child,
    pub stdout: Output,
    pub stderr: Output,
    input: Option<Box<dyn Write>>,
    terminal: Option<(Terminal, String)>,
}

impl Running {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it does now.
    fn diagnosis(&self) -> String {
        stall::diagnosis(self.child.id())
    }

    /// Types or pipes `text` into the guest's console.
    #[track_caller]
    pub fn send(&mut self, text: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(text.as_bytes()).unwrap();
        input.flush().unwrap();
    }

    /// Ends the VM's standard input.
    pub fn end_input(&mut self) {
        self.input = None;
    }

    /// Waits until the guest has printed `text`.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        self.wait_for_times(text, 1);
    }

    /// Waits until the guest has printed `text` that many times.
    #[track_caller]
    pub fn wait_for_times(&self, text: &str, times: usize) {
        assert!(
            self.stdout.wait_for(text, times, DEADLINE),
            "the guest did not print `{text}` {times} times\n{self:?}\n{}",
            self.diagnosis()
        );
    }

    /// Waits until the program has reported `text`.
    #[track_caller]
    pub fn wait_for_report(&self, text: &str) {
        assert!(
            self.stderr.wait_for(text, 1, DEADLINE),
            "no report of `{text}`\n{self:?}\n{}",
            self.diagnosis()
        );
    }

    /// Runs `command` in the guest's shell, where it has to succeed, and waits for its end.
    #[track_caller]
    pub fn shell(&mut self, command: &str) {
        // The arithmetic keeps the echo of what is typed from looking like the answer.
        let nonce = self.stdout.text().len();
        self.send(&format!("{command}; echo status-$?-of-$(({nonce}+0))-\n"));
        self.wait_for(&format!("-of-{nonce}-"));
        let success = format!("status-0-of-{nonce}-");
        assert!(self.stdout.text().contains(&success), "failed\n{self:?}");
    }

    /// Waits for the guest's shell.
    #[track_caller]
    pub fn wait_for_shell(&self) {
        self.wait_for(PROMPT);
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Whether the terminal is as it was before the start.
    pub fn is_terminal_unchanged(&self) -> bool {
        let (terminal, before) = self.terminal.as_ref().unwrap();
        terminal.settings().unwrap() == *before
    }

    /// Memory that the guest's RAM takes of the host, in bytes.
    #[track_caller]
    pub fn resident_bytes(&self) -> u64 {
        let pid = self.child.id();
        fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|fd| {
                let target = fs::read_link(fd).unwrap_or_default();
                target.to_string_lossy().contains("alacrity-guest-ram")
            })
            .map(|fd| fs::metadata(fd).unwrap().blocks() * 512)
            .expect("guest RAM is a memfd")
    }

    /// Waits for the end; kills the VM and fails at the deadline.
    #[track_caller]
    pub fn wait(mut self) -> Outcome {
        let mut status = None;
        let has_ended = until(DEADLINE, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(
            has_ended,
            "the VM did not end in {DEADLINE:?}\n{self:?}\n{}",
            self.diagnosis()
        );
        let is_terminal_unchanged = self.terminal.is_none() || self.is_terminal_unchanged();
        self.terminal = None; // so that its screen ends
        for output in [&self.stdout, &self.stderr] {
            assert!(output.wait_closed(DEADLINE), "output goes on\n{self:?}");
        }
        Outcome {
            status: status.unwrap(),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
            is_terminal_unchanged,
        }
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, &self.stdout.text(), &self.stderr.text())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process_group(self.pid(), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// How a VM ended, and what it said.
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    /// True without a terminal, too.
    pub is_terminal_unchanged: bool,
}

impl Outcome {
    /// Checks the exit status; death by signal N is `-N`.
    #[track_caller]
    pub fn assert_status(&self, wanted: i32) -> &Self {
        let status = self.status;
        let found = status
            .code()
            .unwrap_or_else(|| -status.signal().unwrap_or_default());
        assert_eq!(found, wanted, "exit status\n{self:?}");
        self
    }

    /// Checks that standard output has all `parts`.
    #[track_caller]
    pub fn assert_prints(&self, parts: &[&str]) -> &Self {
        for part in parts {
            assert!(self.stdout.contains(part), "no `{part}` on\n{self:?}");
        }
        self
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.status)?;
        show(f, &self.stdout, &self.stderr)
    }
}

fn show(f: &mut fmt::Formatter<'_>, stdout: &str, stderr: &str) -> fmt::Result {
    writeln!(f, "--- standard output:\n{stdout}")?;
    writeln!(f, "--- standard error:\n{stderr}\n---")
}
