//! Guests whose memory is taken while they run, and hosts that take it.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use alacrity::control_socket::client::AskError;
use alacrity::control_socket::{Place, client};
use alacrity::reclaim::policy::Reclaimed;
use alacrity::smaps;
use serde_json::Value;

use super::guest::{Outcome, Running, Vm};
use super::host::Host;

const MIB: u64 = 1 << 20;
/// More than any guest here has.
pub const EVERYTHING: u64 = 1 << 40;

/// A guest at its shell, whose memory can be taken.
pub struct Guest<'a> {
    pub host: &'a Host,
    pub vm: Running,
    pub pid: u32,
}

impl<'a> Guest<'a> {
    /// Of 192 MiB, unless `args` say otherwise.
    pub fn start(host: &'a Host, args: &[&str]) -> Self {
        let metrics = host.file("metrics");
        let mut flags = [args, &["--metrics", metrics.to_str().unwrap()]].concat();
        if !args.contains(&"--memory") {
            flags.extend(["--memory", "192M"]);
        }
        let vm = Vm::new(host, &flags).start();
        vm.wait_for_shell();
        let pid = vm.id();
        Guest { host, vm, pid }
    }

    /// With a disk of 64 MiB.
    pub fn with_disk(host: &'a Host, args: &[&str]) -> (Self, String) {
        let image = host.image("disk", 64 << 20);
        let disk = format!("path={image}");
        (
            Self::start(host, &[&["--disk", &disk], args].concat()),
            image,
        )
    }

    /// From now on the host knows only what it sees, and the guest keeps in its cache what is dropped.
    pub fn remove_hints_module(&mut self) {
        self.vm.shell("rmmod hints");
    }

    /// Takes all that can be taken.
    pub fn take_all(&self) -> Reclaimed {
        let taken = take(self.pid, EVERYTHING).unwrap();
        println!("taken: {taken:?}");
        taken
    }

    pub fn metrics(&self) -> Value {
        client::stat(&Place::default_one().unwrap(), self.pid)
            .unwrap()
            .metrics
    }

    pub fn num_disk_reads(&self) -> u64 {
        count(&self.metrics(), "/devices/blk0/reads")
    }

    /// Prints what was done, and checks that nothing went wrong; the counters of pages.
    pub fn assert_well(&self) -> Value {
        let metrics = self.metrics();
        let pages = &metrics["reclaim"]["pages"];
        println!("pages: {pages}");
        assert_eq!(count(pages, "/lost"), 0);
        assert_eq!(count(pages, "/mended"), 0);
        pages.clone()
    }

    /// What the process of the VM has of the host, beside the guest's RAM.
    pub fn upkeep(&self) -> Upkeep {
        Upkeep::of(self.pid)
    }

    /// Without a deadline but the test's: much of what it needs for that may be away.
    pub fn power_off(mut self) -> Outcome {
        self.vm.send("poweroff\n");
        self.vm.wait()
    }
}

/// What a VM costs the host.
#[derive(Debug, Clone, Copy)]
pub struct Upkeep {
    pub num_fds: usize,
    pub num_threads: usize,
    /// Anonymous memory, in KiB.
    pub kib: u64,
}

impl Upkeep {
    /// That of process `pid`.
    #[track_caller]
    pub fn of(pid: u32) -> Self {
        let entries = |name| {
            let entries = fs::read_dir(format!("/proc/{pid}/{name}"));
            entries.unwrap().count()
        };
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        Upkeep {
            num_fds: entries("fd"),
            num_threads: entries("task"),
            kib: smaps::parse(&smaps)[0].anonymous_kib,
        }
    }

    /// Checks that nothing has grown since `before`, but for `kib` of memory.
    #[track_caller]
    pub fn assert_bounded(self, before: Self, kib: u64) {
        println!("upkeep: {before:?}, then {self:?}");
        // Connections and workers of the kernel come and go.
        assert!(self.num_fds <= before.num_fds + 4, "{before:?} {self:?}");
        assert!(
            self.num_threads <= before.num_threads + 4,
            "{before:?} {self:?}"
        );
        assert!(self.kib <= before.kib + kib, "{before:?} {self:?}");
    }
}

pub fn take(pid: u32, bytes: u64) -> Result<Reclaimed, AskError> {
    client::reclaim(&Place::default_one().unwrap(), pid, bytes)
}

/// Takes memory again and again, in parts and with pauses that let the guest get on, however slow it
/// is here.
pub struct Taker {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Taker {
    /// Leaves the guest most of the time.
    pub fn start(pid: u32) -> Self {
        Self::with(pid, 4 * MIB, 10)
    }

    /// Takes up to `bytes` each time, and pauses `pause` times as long as that took.
    pub fn with(pid: u32, bytes: u64, pause: u32) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&is_over);
        let thread = thread::spawn(move || {
            let mut num_bytes = 0;
            let process = format!("/proc/{pid}/fd");
            // Until the VM is gone, at the latest.
            while !stopped.load(Ordering::Relaxed) && fs::exists(&process).unwrap() {
                let took = match take(pid, bytes) {
                    Ok(taken) => {
                        num_bytes += taken.total_bytes();
                        taken.took
                    }
                    Err(error) => {
                        println!("not taken: {error}");
                        Duration::ZERO
                    }
                };
                thread::sleep(Duration::from_millis(100) + pause * took);
            }
            num_bytes
        });
        Taker { is_over, thread }
    }

    /// How much was taken, in bytes.
    pub fn stop(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        let num_bytes = self.thread.join().unwrap();
        println!("taken while it ran: {} KiB", num_bytes >> 10);
        num_bytes
    }
}

#[track_caller]
pub fn count(metrics: &Value, pointer: &str) -> u64 {
    let value = metrics.pointer(pointer).and_then(Value::as_u64);
    value.unwrap_or_else(|| panic!("no {pointer} in {metrics}"))
}
