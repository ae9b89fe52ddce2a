//! For tests: which system calls a thread makes.
//!
//! All of them are seen, the one that it is in when counting begins excepted: the thread is traced
//! (`ptrace(2)`). A process cannot trace itself, so a child does, which is a copy of this process that
//! does nothing else and dies with [`Syscalls`]. Calls that never enter the kernel (the clock's, where
//! it has a vDSO) are none.
#![expect(unsafe_code, reason = "a child that is a copy of this process")]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use rustix::process::{PTracer, Signal, kill_process, set_ptracer};

use super::threads;
use crate::memory::{Region, Words};

/// Numbers of system calls are below.
const NUM_CALLS: usize = 1024;
/// What the thread does: 0 before it is traced, then `OUTSIDE`, or in which call it is.
const DOES: usize = 8 * NUM_CALLS;
/// Not in a system call. Call N is `OUTSIDE + 1 + N`.
const OUTSIDE: u64 = 1;
/// Set once the child may begin.
const GO: usize = DOES + 8;
const SHARED_BYTES: usize = GO + 8;
/// No wait lasts longer.
const DEADLINE: Duration = Duration::from_secs(20);
/// A thread that was in the same call for so long sleeps there.
const STILL: Duration = Duration::from_millis(30);

/// Counts the system calls of one thread of this process, until it is dropped.
#[derive(Debug)]
pub struct Syscalls {
    tracer: Pid,
    shared: Region,
}

/// How often each system call was made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Calls(BTreeMap<i64, u64>);

impl Syscalls {
    /// Counts for the thread called `name`.
    ///
    /// # Panics
    /// No thread or several are called that, or it cannot be traced.
    pub fn of_thread(name: &str) -> Self {
        Self::of(threads::tid_of(name))
    }

    /// Counts for the thread that calls this. [`Syscalls::calls`] makes none.
    ///
    /// # Panics
    /// It cannot be traced.
    pub fn of_this_thread() -> Self {
        Self::of(threads::own_tid())
    }

    fn of(tid: i32) -> Self {
        let (shared, _) = Region::new_shared(SHARED_BYTES).expect("there is memory");
        // SAFETY: the child only makes system calls and accesses `shared`: it allocates nothing and
        // takes no lock, which another thread might have held when it was forked.
        let tracer = match unsafe { fork() }.expect("there may be one more process") {
            ForkResult::Child => trace(Pid::from_raw(tid), &shared),
            ForkResult::Parent { child } => child,
        };
        let syscalls = Syscalls { tracer, shared };
        // Where Yama lets parents trace their children only. EINVAL: there is no Yama.
        let pid = rustix::process::Pid::from_raw(tracer.as_raw());
        let _ = set_ptracer(pid.map_or(PTracer::None, PTracer::ProcessID));
        syscalls.shared.store(GO, 1, SeqCst);
        syscalls.wait("thread is traced", |does| does != 0);
        syscalls
    }

    fn wait(&self, what: &str, is_met: impl Fn(u64) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !is_met(self.shared.load(DOES, SeqCst)) {
            let ended = waitpid(self.tracer, Some(WaitPidFlag::WNOHANG));
            assert_eq!(ended, Ok(WaitStatus::StillAlive), "the tracer has ended");
            assert!(Instant::now() < end, "{what}");
            thread::yield_now();
        }
    }

    /// All calls since this was made.
    pub fn calls(&self) -> Calls {
        // Numbers are below 1024.
        let calls = (0_i64..).zip(0..NUM_CALLS);
        let counts = calls.map(|(number, nth)| (number, self.shared.load(8 * nth, SeqCst)));
        Calls(counts.filter(|(_, count)| *count != 0).collect())
    }

    /// Waits until the thread sleeps in one of the system calls `numbers`, with nothing left to do.
    ///
    /// # Panics
    /// It does not.
    pub fn wait_asleep(&self, numbers: &[i64]) {
        let is_asleep = |does: u64| {
            let number = does.wrapping_sub(OUTSIDE + 1);
            numbers.iter().any(|it| u64::try_from(*it) == Ok(number))
        };
        let end = Instant::now() + DEADLINE;
        loop {
            self.wait("thread sleeps", is_asleep);
            let before = self.calls();
            thread::sleep(STILL);
            if self.calls() == before && is_asleep(self.shared.load(DOES, SeqCst)) {
                return;
            }
            assert!(Instant::now() < end, "thread never sleeps: {before}");
        }
    }
}

impl Drop for Syscalls {
    fn drop(&mut self) {
        // Its end sets the thread free.
        if let Some(pid) = rustix::process::Pid::from_raw(self.tracer.as_raw()) {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = waitpid(self.tracer, None);
    }
}

/// The child.
fn trace(tid: Pid, shared: &Region) -> ! {
    while shared.load(GO, SeqCst) == 0 {
        thread::yield_now();
    }
    let _ = follow(tid, shared);
    // SAFETY: it ends this process at once, and with it all that it is a copy of.
    unsafe { libc::_exit(0) }
}

fn follow(tid: Pid, shared: &Region) -> Result<(), Errno> {
    ptrace::seize(tid, ptrace::Options::PTRACE_O_TRACESYSGOOD)?;
    ptrace::interrupt(tid)?;
    loop {
        let signal = match waitpid(tid, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceSyscall(_) => {
                note(tid, shared)?;
                None
            }
            WaitStatus::PtraceEvent(..) => {
                shared.store(DOES, OUTSIDE, SeqCst);
                None
            }
            WaitStatus::Stopped(_, signal) => Some(signal),
            _ => return Ok(()),
        };
        ptrace::syscall(tid, signal)?;
    }
}

/// The thread enters or leaves a system call.
fn note(tid: Pid, shared: &Region) -> Result<(), Errno> {
    let info = ptrace::syscall_info(tid)?;
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        shared.store(DOES, OUTSIDE, SeqCst);
        return Ok(());
    }
    // SAFETY: the operation says that this member was filled.
    let number = unsafe { info.u.entry.nr };
    let nth = usize::try_from(number).unwrap_or(usize::MAX);
    if nth < NUM_CALLS {
        let count = shared.load(8 * nth, Relaxed);
        shared.store(8 * nth, count + 1, SeqCst);
    }
    shared.store(DOES, number.wrapping_add(OUTSIDE + 1), SeqCst);
    Ok(())
}

impl Calls {
    /// What was called after `before`.
    pub fn since(&self, before: &Calls) -> Calls {
        let counts = self.0.iter().map(|(number, count)| {
            let old = before.0.get(number).copied().unwrap_or(0);
            (*number, count - old)
        });
        Calls(counts.filter(|(_, count)| *count != 0).collect())
    }

    /// Calls of the system call `number` (`libc::SYS_…`).
    pub fn of(&self, number: i64) -> u64 {
        self.0.get(&number).copied().unwrap_or(0)
    }

    /// All calls.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

/// As `2 epoll_wait, 128 writev`.
impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (nth, (number, count)) in self.0.iter().enumerate() {
            let comma = if nth == 0 { "" } else { ", " };
            match name(*number) {
                Some(name) => write!(f, "{comma}{count} {name}")?,
                None => write!(f, "{comma}{count} number {number}")?,
            }
        }
        Ok(())
    }
}

/// Names of those that are to be expected on a data path.
fn name(number: i64) -> Option<&'static str> {
    Some(match number {
        libc::SYS_read => "read",
        libc::SYS_write => "write",
        libc::SYS_readv => "readv",
        libc::SYS_writev => "writev",
        libc::SYS_preadv2 => "preadv2",
        libc::SYS_epoll_wait => "epoll_wait",
        libc::SYS_epoll_pwait => "epoll_pwait",
        libc::SYS_epoll_ctl => "epoll_ctl",
        libc::SYS_poll => "poll",
        libc::SYS_ppoll => "ppoll",
        libc::SYS_ioctl => "ioctl",
        libc::SYS_futex => "futex",
        libc::SYS_sched_yield => "sched_yield",
        libc::SYS_clock_gettime => "clock_gettime",
        libc::SYS_mmap => "mmap",
        libc::SYS_brk => "brk",
        _ => return None,
    })
}
