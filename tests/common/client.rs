//! A client of a bus as a process of its own: the test program, started again.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use vbus::client::Connection;

/// Says that a process is to be a client: socket and bus.
const ROLE: &str = "ALACRITY_TEST_CLIENT";
/// The test that does it, in each test program that has clients.
const TEST: &str = "client_process";

/// What the client prints when it has joined, and when the daemon is gone.
const JOINED: &str = "client: joined";
const LOST: &str = "client: lost the daemon";

/// A member of a bus. Dropping it kills it.
pub struct ClientProcess {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl ClientProcess {
    /// Starts a process and waits until it is a member of `bus`.
    pub fn join(socket: &Path, bus: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env(ROLE, format!("{}\n{bus}", socket.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut client = ClientProcess {
            child,
            stdin,
            stdout,
        };
        client.expect(JOINED);
        client
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn expect(&mut self, wanted: &str) {
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            let num_bytes = self.stdout.read_line(&mut line).unwrap();
            assert_ne!(num_bytes, 0, "the client ended without `{wanted}`");
        }
    }

    /// Waits until it says that its daemon is gone, and ends.
    pub fn expect_lost(mut self) {
        self.expect(LOST);
        assert!(self.child.wait().unwrap().success());
    }

    /// Lets it leave the bus.
    pub fn end(mut self) {
        drop(self.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for ClientProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In a process that [`ClientProcess::join`] started: is a member until standard input ends or the
/// daemon does. In others, nothing.
pub fn be_one_if_asked() {
    let Ok(role) = env::var(ROLE) else { return };
    let (socket, bus) = role.split_once('\n').unwrap();
    let member = Connection::connect(Path::new(socket))
        .unwrap()
        .join(bus)
        .unwrap();
    say(JOINED);
    loop {
        let stdin = io::stdin();
        let mut fds = [
            PollFd::from_borrowed_fd(member.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN),
        ];
        poll(&mut fds, None).unwrap();
        if member.try_next_event().is_err() {
            return say(LOST);
        }
        if !fds[1].revents().is_empty() && stdin.lock().read(&mut [0; 64]).unwrap() == 0 {
            return;
        }
    }
}

/// Prints a line at once; the test harness may have begun one.
fn say(line: &str) {
    let mut out = io::stdout();
    writeln!(out, "\n{line}").unwrap();
    out.flush().unwrap();
}
