//! Which system calls each class of threads may make, as data.
//!
//! A list holds what was seen of a class in all of its uses, and what the C library does on its own at the
//! start and the end of a thread. What carries data is allowed whatever its arguments are: the kernel then
//! answers from a bitmap, without running the filter. `ioctl`, `mmap`, `mprotect`, `prctl` and `socket`
//! say much more with their arguments than with their name, so these count.

use libc::{AF_INET, AF_UNIX, PR_SET_NAME, PR_SET_NO_NEW_PRIVS, PROT_EXEC};
use syscalls::Sysno;
use vbus::threads::ThreadClass;

/// System calls that go together.
#[derive(Debug, Clone, Copy)]
pub struct List {
    /// Those that are allowed with any arguments.
    pub calls: &'static [Sysno],
    /// Those that are allowed with some.
    pub conditions: &'static [Condition],
}

/// A system call that is allowed if argument `arg` (from 0), of 32 bits, is right in the bits of `mask`.
#[derive(Debug, Clone, Copy)]
pub struct Condition {
    /// The call.
    pub call: Sysno,
    /// Which argument.
    pub arg: u8,
    /// What of it counts.
    pub mask: u32,
    /// What it must be.
    pub wanted: Wanted,
}

/// What an argument must be.
#[derive(Debug, Clone, Copy)]
pub enum Wanted {
    /// This.
    Value(u32),
    /// Our own process.
    OwnProcess,
}

const fn with(call: Sysno, arg: u8, mask: u32, value: u32) -> Condition {
    Condition {
        call,
        arg,
        mask,
        wanted: Wanted::Value(value),
    }
}

/// An `ioctl` of the group `group`: bits 8 to 15 of its number.
const fn ioctls(group: u8) -> Condition {
    with(Sysno::ioctl, 1, 0xff00, (group as u32) << 8)
}

/// A `socket` of family `family`.
const fn sockets(family: i32) -> Condition {
    with(Sysno::socket, 0, u32::MAX, family.cast_unsigned())
}

/// KVM.
const KVM: Condition = ioctls(0xae);
/// userfaultfd.
const USERFAULT: Condition = ioctls(0xaa);
/// TUN and TAP, terminals.
const TUN_AND_TTY: Condition = ioctls(b'T');
/// Pages of a process: `PAGEMAP_SCAN`.
const PAGES: Condition = ioctls(b'f');
/// Block devices: their size, discard, zero.
const BLOCK: Condition = ioctls(0x12);
/// Network interfaces.
const INTERFACES: Condition = ioctls(0x89);

/// What every thread does to live, to use memory and locks, and to wait and speak through descriptors
/// that it has.
const LIFE: List = List {
    calls: &[
        Sysno::brk,
        Sysno::clock_gettime,
        Sysno::clock_nanosleep,
        Sysno::close,
        Sysno::exit,
        Sysno::exit_group,
        Sysno::fcntl,
        Sysno::futex,
        Sysno::getpid,
        Sysno::getrandom,
        Sysno::gettid,
        Sysno::madvise,
        Sysno::mremap,
        Sysno::munmap,
        Sysno::nanosleep,
        // Memory allocation of the C library looks how many processors there are, and how memory is
        // overcommitted. Landlock says what can be opened.
        Sysno::open,
        Sysno::openat,
        Sysno::poll,
        Sysno::ppoll,
        Sysno::read,
        Sysno::restart_syscall,
        Sysno::rseq,
        Sysno::rt_sigprocmask,
        Sysno::rt_sigreturn,
        Sysno::sched_getaffinity,
        Sysno::sched_yield,
        // A handler of a signal wakes the main thread so, and it may run in any thread.
        Sysno::sendto,
        Sysno::set_robust_list,
        Sysno::sigaltstack,
        Sysno::write,
    ],
    conditions: &[
        with(Sysno::mmap, 2, PROT_EXEC.cast_unsigned(), 0),
        with(Sysno::mprotect, 2, PROT_EXEC.cast_unsigned(), 0),
        with(Sysno::prctl, 0, u32::MAX, PR_SET_NAME.cast_unsigned()),
        Condition {
            call: Sysno::tgkill,
            arg: 0,
            mask: u32::MAX,
            wanted: Wanted::OwnProcess,
        },
    ],
};

/// What a loop over events takes, and starting one.
const EVENTS: List = List {
    calls: &[
        Sysno::epoll_create1,
        Sysno::epoll_ctl,
        Sysno::epoll_pwait,
        Sysno::epoll_wait,
        Sysno::eventfd2,
        Sysno::timerfd_create,
        Sysno::timerfd_settime,
    ],
    conditions: &[],
};

/// Transfers through open files.
const TRANSFERS: List = List {
    calls: &[
        Sysno::fallocate,
        Sysno::fdatasync,
        Sysno::fsync,
        Sysno::fstat,
        Sysno::fstatfs,
        Sysno::io_uring_enter,
        Sysno::io_uring_register,
        Sysno::io_uring_setup,
        Sysno::lseek,
        Sysno::pread64,
        Sysno::preadv,
        Sysno::preadv2,
        Sysno::pwrite64,
        Sysno::pwritev,
        Sysno::pwritev2,
        Sysno::readv,
        Sysno::writev,
    ],
    conditions: &[],
};

/// Messages through open sockets.
const MESSAGES: List = List {
    calls: &[
        Sysno::accept4,
        Sysno::getsockopt,
        Sysno::recvfrom,
        Sysno::recvmsg,
        Sysno::sendmsg,
        Sysno::setsockopt,
        Sysno::shutdown,
    ],
    conditions: &[],
};

/// Writes to eventfds of clients, which must not block whoever writes.
const POSTS: List = List {
    calls: &[
        Sysno::io_destroy,
        Sysno::io_getevents,
        Sysno::io_setup,
        Sysno::io_submit,
    ],
    conditions: &[],
};

/// More about files by name. Landlock says which.
const FILES: List = List {
    calls: &[
        Sysno::access,
        Sysno::faccessat2,
        Sysno::getdents64,
        Sysno::geteuid,
        Sysno::getuid,
        Sysno::newfstatat,
        Sysno::readlink,
        Sysno::readlinkat,
        Sysno::statfs,
        Sysno::statx,
    ],
    conditions: &[],
};

/// To make, replace and remove them.
const CHANGES_OF_FILES: List = List {
    calls: &[
        Sysno::fchmod,
        Sysno::fchmodat,
        Sysno::flock,
        Sysno::ftruncate,
        Sysno::linkat,
        Sysno::mkdir,
        Sysno::mkdirat,
        Sysno::rename,
        Sysno::renameat,
        Sysno::renameat2,
        Sysno::rmdir,
        Sysno::unlink,
        Sysno::unlinkat,
    ],
    conditions: &[],
};

/// Shared memory that others will map.
const SHARED_MEMORY: List = List {
    calls: &[
        Sysno::ftruncate,
        Sysno::memfd_create,
        Sysno::mlock,
        Sysno::munlock,
    ],
    conditions: &[],
};

/// Guest memory that goes and comes back. A lock says whether a daemon still has a part of it.
const RECLAIM: List = List {
    calls: &[Sysno::flock, Sysno::process_madvise],
    conditions: &[USERFAULT, PAGES],
};

/// What the main thread alone does: signals, children, the terminal. It ends devices as well, and their way to
/// a daemon.
const MAIN: List = List {
    calls: &[
        Sysno::kill,
        Sysno::pidfd_send_signal,
        Sysno::rt_sigaction,
        Sysno::wait4,
        Sysno::waitid,
    ],
    conditions: &[KVM, TUN_AND_TTY],
};

/// What it takes to switch a device on, and to serve it: a vCPU does the former where the guest asks for it,
/// the device's worker the latter, each with what belongs to the device and with KVM.
const DEVICE: List = List {
    calls: &[],
    conditions: &[KVM, TUN_AND_TTY, BLOCK],
};

/// What the way to a daemon takes: a new connection, the memory and events that are shared over it.
const UPLINK: List = List {
    calls: &[Sysno::connect],
    conditions: &[KVM, sockets(AF_UNIX)],
};

/// What a thread does for an administrator of buses: TAPs, a look at who is there, words with VMs.
const BUS: List = List {
    calls: &[Sysno::bind, Sysno::connect, Sysno::pidfd_open],
    conditions: &[
        TUN_AND_TTY,
        INTERFACES,
        sockets(AF_UNIX),
        sockets(AF_INET),
        // No signal: whether a process is there.
        with(Sysno::kill, 1, u32::MAX, 0),
    ],
};

/// What the daemon's main thread does: signals, and the end of the process that unmounts.
const DAEMON: List = List {
    calls: &[Sysno::rt_sigaction, Sysno::wait4, Sysno::waitid],
    conditions: &[TUN_AND_TTY, INTERFACES],
};

/// What makes a thread.
const THREADS: List = List {
    calls: &[Sysno::clone, Sysno::clone3],
    conditions: &[],
};

/// What a thread confines itself with.
const CONFINEMENT: List = List {
    calls: &[Sysno::capget, Sysno::capset, Sysno::seccomp],
    conditions: &[with(
        Sysno::prctl,
        0,
        u32::MAX,
        PR_SET_NO_NEW_PRIVS.cast_unsigned(),
    )],
};

/// The lists of `class`.
pub fn of(class: ThreadClass) -> Vec<List> {
    match class {
        ThreadClass::Main => vec![
            LIFE,
            EVENTS,
            TRANSFERS,
            MESSAGES,
            FILES,
            CHANGES_OF_FILES,
            RECLAIM,
            MAIN,
        ],
        ThreadClass::Daemon => vec![
            LIFE,
            EVENTS,
            TRANSFERS,
            MESSAGES,
            FILES,
            CHANGES_OF_FILES,
            POSTS,
            DAEMON,
        ],
        // Those that it makes inherit what it may do.
        ThreadClass::Factory => {
            let made = ThreadClass::ALL.into_iter().filter(|class| class.is_made());
            made.flat_map(of).chain([THREADS, CONFINEMENT]).collect()
        }
        // A vCPU switches devices on and off, and calls those of a daemon, by itself.
        ThreadClass::Vcpu | ThreadClass::Device => vec![
            LIFE,
            EVENTS,
            TRANSFERS,
            MESSAGES,
            SHARED_MEMORY,
            RECLAIM,
            POSTS,
            DEVICE,
        ],
        ThreadClass::Pager => vec![LIFE, TRANSFERS, RECLAIM],
        ThreadClass::Governor => vec![LIFE, TRANSFERS, FILES, RECLAIM],
        ThreadClass::Control => vec![LIFE, TRANSFERS, MESSAGES, FILES, RECLAIM],
        ThreadClass::Uplink => vec![
            LIFE,
            EVENTS,
            TRANSFERS,
            MESSAGES,
            SHARED_MEMORY,
            RECLAIM,
            UPLINK,
        ],
        ThreadClass::Bus => vec![
            LIFE,
            EVENTS,
            TRANSFERS,
            MESSAGES,
            SHARED_MEMORY,
            FILES,
            CHANGES_OF_FILES,
            POSTS,
            BUS,
        ],
        // The library that serves it makes threads of its own, and they write to the tree as clients do.
        ThreadClass::Mount => of(ThreadClass::Bus).into_iter().chain([THREADS]).collect(),
        ThreadClass::State => vec![LIFE, TRANSFERS, FILES, CHANGES_OF_FILES],
    }
}
