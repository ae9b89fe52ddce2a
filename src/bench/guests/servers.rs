//! What guests ask on the host: iperf3 and `traffic`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::GuestsError;
use super::command_line::CommandLine;
use super::interrupt::Interrupt;
use super::process::Process;
use super::script::{IPERF_PORTS, RR_PORT, UDP_PORT};

/// How often a thread looks whether its server has ended.
const LOOK: Duration = Duration::from_millis(20);

/// The servers. Dropping them ends them.
#[derive(Debug)]
pub struct Servers {
    traffic: PathBuf,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _rr: Process,
}

impl Servers {
    /// Starts them; `traffic` is the program for the host's end.
    ///
    /// # Errors
    /// One cannot be started.
    pub fn start(traffic: &Path) -> Result<Self, GuestsError> {
        let rr = traffic_line(traffic, &format!("rr-serve {RR_PORT}"));
        let rr = Process::start(&rr)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let keep = |port| {
            let is_over = Arc::clone(&is_over);
            thread::spawn(move || keep_iperf(port, &is_over))
        };
        let threads = IPERF_PORTS.into_iter().map(keep).collect();
        Ok(Servers {
            traffic: traffic.to_owned(),
            is_over,
            threads,
            _rr: rr,
        })
    }

    /// Starts to count datagrams for `seconds` from the first on.
    ///
    /// # Errors
    /// The counter cannot be started.
    pub fn count(&self, seconds: u64) -> Result<Process, GuestsError> {
        let line = format!("udp-count {UDP_PORT} {seconds}");
        Process::start(&traffic_line(&self.traffic, &line))
    }

    /// Starts to send datagrams of `size` to `to` for `seconds`.
    ///
    /// # Errors
    /// The sender cannot be started.
    pub fn send(&self, to: &str, size: u32, seconds: u64) -> Result<Process, GuestsError> {
        let line = format!("udp-send {to} {UDP_PORT} {size} {seconds}");
        Process::start(&traffic_line(&self.traffic, &line))
    }
}

fn traffic_line(traffic: &Path, arguments: &str) -> CommandLine {
    let program = CommandLine(vec![traffic.to_string_lossy().into_owned()]);
    program.with(arguments.split(' '))
}

/// iperf3 3.12 sometimes does not outlive a client, so each gets a new one.
fn keep_iperf(port: u16, is_over: &AtomicBool) {
    let line = CommandLine::words(&format!("iperf3 -s -1 -p {port}"));
    let interrupt = Interrupt::default();
    while !is_over.load(Relaxed) {
        let Ok(mut server) = Process::start(&line) else {
            return;
        };
        while !is_over.load(Relaxed) && matches!(server.wait(LOOK, &interrupt), Ok(false)) {}
        thread::sleep(LOOK); // if it ends at once, not too many
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
