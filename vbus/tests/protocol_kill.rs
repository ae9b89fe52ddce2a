//! Processes that are killed: clients in the middle of a batch, and the daemon.
//!
//! The other process is this program again, with [`child`] as its only test.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod protocol_lab;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use protocol_lab::{DEADLINE, ECHO, Lab, RING};
use rustix::io::Errno;
use vbus::client::{Connection, Ring, RingRequest, RingWaitError};
use vbus::ring::Slot;
use vbus::test_utils::{ECHO_VERSION, func, wait_until};
use vbus::verbs::Verbs;

const ROLE: &str = "VBUS_TEST_ROLE";
const SOCKET: &str = "VBUS_TEST_SOCKET";
const READY: &str = "child is ready";

/// Tests here count what the process has open, so one runs at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const RING_REQUEST: RingRequest = RingRequest {
    id: 0,
    priority: 0,
    cookie: 1,
    num_slots: 64,
};

/// What the other process does; nothing if this is none.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    match role.as_str() {
        "client" => publish_for_ever(&PathBuf::from(std::env::var(SOCKET).unwrap())),
        _ => serve_for_ever(),
    }
}

/// Publishes batches and reaps what comes back, without an end.
fn publish_for_ever(path: &Path) {
    let bus = Connection::connect(path).unwrap().join("bus0").unwrap();
    bus.add_memory(0, 0x10_000).unwrap();
    let ring = bus.open(RING, 1).unwrap();
    let mut ring = Ring::share_remote(&bus, ring, RING_REQUEST).unwrap();
    let mut returned = [Slot::default(); 64];
    let slot = Slot {
        len: 64,
        ..Slot::default()
    };
    for round in 0u64.. {
        ring.publish(&[slot; 32]);
        let _ = ring.wait(Some(DEADLINE));
        let _ = ring.reap(&mut returned).unwrap();
        if round == 3 {
            println!("{READY}");
        }
    }
}

fn serve_for_ever() {
    let lab = Lab::new();
    println!("{READY} {}", lab.path().display());
    loop {
        std::thread::park();
    }
}

/// Another process, which is killed when this is dropped.
struct Other {
    child: Child,
    /// What it said when it was ready.
    said: String,
    _stdout: BufReader<ChildStdout>,
}

impl Other {
    fn start(role: &str, socket: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(ROLE, role)
            .env(SOCKET, socket)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        while !said.contains(READY) {
            said.clear();
            assert_ne!(stdout.read_line(&mut said).unwrap(), 0, "child died early");
        }
        Other {
            child,
            said,
            _stdout: stdout,
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap(); // SIGKILL
        self.child.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What this process has open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holdings {
    num_fds: usize,
    num_threads: usize,
    num_mappings: usize,
    num_shared_mappings: usize,
}

impl Holdings {
    /// Nothing has come to stay since `before`, when something may still have been about to go.
    fn is_within(&self, before: &Self) -> bool {
        self.num_fds <= before.num_fds
            && self.num_threads <= before.num_threads
            && self.num_shared_mappings <= before.num_shared_mappings
    }

    /// Once all threads have their names, which they give themselves when they first run.
    fn settled() -> Self {
        let mut last = Holdings::now();
        let mut num_equal = 0;
        while num_equal < 10 {
            std::thread::sleep(Duration::from_millis(20));
            let now = Holdings::now();
            num_equal = if now == last { num_equal + 1 } else { 0 };
            last = now;
        }
        last
    }

    fn now() -> Self {
        let count = |path| std::fs::read_dir(path).unwrap().count();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        Holdings {
            num_fds: count("/proc/self/fd"),
            num_threads: std::fs::read_dir("/proc/self/task")
                .unwrap()
                .flatten()
                .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
                .filter(|comm| comm.starts_with("vbus-") || comm.starts_with("ring-echo"))
                .count(),
            num_mappings: maps.lines().count(),
            num_shared_mappings: protocol_lab::num_mappings_named("memfd:vbus")
                + protocol_lab::num_mappings_named("[aio]"),
        }
    }
}

#[test]
fn client_killed_in_a_batch_leaves_nothing_and_others_go_on() {
    let _alone = alone();
    let lab = Lab::new();
    let bus = lab.join();
    let echo = bus.open(ECHO, ECHO_VERSION).unwrap();
    let before = Holdings::settled();
    let other = Other::start("client", &lab.path());
    assert_eq!(lab.server().stats().clients, 2);
    let members = lab.host.tree().list("sys/instances/bus0/members").unwrap();
    assert_eq!(members.len(), 2);

    other.kill();

    wait_until("its membership ends", || {
        lab.host
            .tree()
            .list("sys/instances/bus0/members")
            .unwrap()
            .len()
            == 1
    });
    wait_until("nothing is left", || Holdings::now().is_within(&before));
    assert_eq!(bus.call(echo, func::REVERSE, &mut [1, 2]), Ok(2));
    assert_eq!(lab.server().stats().cut_off, 0);
}

#[test]
fn membership_ends_with_the_process_even_if_its_socket_lives_on() {
    let _alone = alone();
    let lab = Lab::new();
    let other = Other::start("client", &lab.path());
    let pid = other.child.id();
    // Another process takes a copy of its socket and holds it.
    let pidfd = rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(),
        rustix::process::PidfdFlags::empty(),
    )
    .unwrap();
    let socket_fd = socket_of(pid);
    let copy = match rustix::process::pidfd_getfd(
        &pidfd,
        socket_fd,
        rustix::process::PidfdGetfdFlags::empty(),
    ) {
        Ok(copy) => copy,
        Err(error) => {
            println!("SKIPPED: cannot take a descriptor of a child: {error}");
            return;
        }
    };

    other.kill();

    wait_until("membership ends", || lab.server().stats().clients == 0);
    drop(copy);
}

/// The lowest descriptor of a process that is a socket.
fn socket_of(pid: u32) -> i32 {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let sockets = entries.flatten().filter(|entry| {
        let link = std::fs::read_link(entry.path()).unwrap_or_default();
        link.to_string_lossy().starts_with("socket:")
    });
    let numbers = sockets.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.min().unwrap()
}

#[test]
fn hundred_clients_that_are_killed_leave_nothing() {
    let _alone = alone();
    let lab = Lab::new();
    let kill_one = || {
        Other::start("client", &lab.path()).kill();
        wait_until("it is gone", || lab.server().stats().clients == 0);
    };
    // The allocator keeps an arena per thread that was ever alive at once, and so on.
    (0..10).for_each(|_| kill_one());
    let before = Holdings::settled();

    (0..100).for_each(|_| kill_one());

    wait_until("nothing is left", || Holdings::now().is_within(&before));
    let after = Holdings::now();
    assert!(
        after.num_mappings <= before.num_mappings + 8,
        "{before:?} {after:?}"
    );
    assert_eq!(lab.server().stats().accepted, 110);
}

#[test]
fn clients_of_a_daemon_that_is_killed_get_an_error() {
    let _alone = alone();
    let daemon = Other::start("daemon", Path::new(""));
    let path = PathBuf::from(daemon.said.split(READY).nth(1).unwrap().trim());
    let bus = Connection::connect(&path).unwrap().join("bus0").unwrap();
    let handle = bus.open(RING, 1).unwrap();
    let mut ring = Ring::share_remote(&bus, handle, RING_REQUEST).unwrap();
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        let waited = ring.wait(None);
        done.send((
            waited,
            bus.call(handle, 0, &mut []),
            bus.next_event(DEADLINE).is_ok(),
        ))
    });

    daemon.kill();

    let gone = Errno::CONNRESET;
    let (waited, called, has_replay) = is_done.recv_timeout(DEADLINE).unwrap();
    assert_eq!(waited, Err(RingWaitError::Disconnected { source: gone }));
    assert_eq!(called, Err(gone));
    assert!(has_replay, "events that had come are still to be had");
    // And its socket is one that a new server replaces.
    let host = vbus::bus::Host::new();
    assert!(vbus::server::Server::bind(&path, host).is_ok());
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
}
