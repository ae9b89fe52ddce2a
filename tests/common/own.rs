//! What processes of ours cost the host, and threads of theirs that a test holds still.

use std::fs;
use std::marker::PhantomData;
use std::path::Path;

use alacrity::smaps;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What the mapping of guest RAM is called, in the VM and in a daemon.
const GUEST_RAM: &str = "alacrity-guest-ram";

/// Memory of a process in KiB, its share of what it shares (PSS), without guest RAM.
#[derive(Debug, Clone, Copy)]
pub struct OwnMemory {
    /// All of it.
    pub pss_kib: u64,
    /// Of it the heap, stacks and other memory that no file is behind.
    pub anonymous_kib: u64,
    /// Of it the program itself.
    pub program_kib: u64,
}

impl OwnMemory {
    /// That of process `pid`.
    #[track_caller]
    pub fn of(pid: u32) -> Self {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
        let mut own = OwnMemory {
            pss_kib: 0,
            anonymous_kib: 0,
            program_kib: 0,
        };
        for mapping in smaps::parse(&smaps) {
            if mapping.name.contains(GUEST_RAM) {
                continue;
            }
            own.pss_kib += mapping.pss_kib;
            own.anonymous_kib += mapping.anonymous_kib;
            if program == Path::new(&mapping.name) {
                own.program_kib += mapping.pss_kib;
            }
        }
        own
    }

    /// Checks that it is at most 4 MiB, as `docs/benchmarks.md` says. Of a program that was not
    /// optimized, which is ten times as large, only what is not the program itself: at most 2 MiB.
    #[track_caller]
    pub fn assert_small(&self) {
        let rest_kib = self.pss_kib - self.program_kib;
        assert!(rest_kib <= 2 << 10, "{rest_kib} KiB: {self:?}");
        assert!(
            cfg!(debug_assertions) || self.pss_kib <= 4 << 10,
            "{self:?}"
        );
    }
}

/// What `/proc/PID/task/TID/status` says of each thread of process `pid`.
pub fn thread_statuses(pid: u32) -> impl Iterator<Item = String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // One that ended meanwhile has none any more.
    tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok())
}

/// A thread that stands still until this is dropped.
#[derive(Debug)]
pub struct Frozen {
    tid: Pid,
    /// Only the thread that stopped it can let it go on.
    not_send: PhantomData<*const ()>,
}

impl Frozen {
    /// Stops the thread of process `pid` that is called `name`.
    #[track_caller]
    pub fn thread(pid: u32, name: &str) -> Self {
        let is_it = |task: &Path| {
            fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        let task = fs::read_dir(format!("/proc/{pid}/task"))
            .unwrap()
            .map(|task| task.unwrap().path())
            .find(|task| is_it(task))
            .unwrap_or_else(|| panic!("process {pid} has no thread {name}"));
        let tid = task.file_name().unwrap().to_str().unwrap();
        let tid = Pid::from_raw(tid.parse().unwrap());
        ptrace::seize(tid, Options::empty()).unwrap();
        ptrace::interrupt(tid).unwrap();
        let status = waitpid(tid, Some(WaitPidFlag::__WALL)).unwrap();
        assert!(
            matches!(status, WaitStatus::PtraceEvent(..)),
            "{name}: {status:?}"
        );
        Frozen {
            tid,
            not_send: PhantomData,
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It fails if the thread has ended.
        let _ = ptrace::detach(self.tid, None);
    }
}

/// Clock ticks that process `pid` has taken of the processors.
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = fields.split(' ').collect();
    // utime and stime, which proc(5) counts from the process's number on.
    fields[11..13]
        .iter()
        .map(|it| it.parse::<u64>().unwrap())
        .sum()
}
