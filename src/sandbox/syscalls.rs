//! Which system calls each class of threads may make, as data.
//!
//! A list holds what was seen of a class in all of its uses, and what the C library does on its own at the
//! start and the end of a thread. What carries data is allowed whatever its arguments are: the kernel then
//! answers from a bitmap, without running the filter. `ioctl`, `mmap`, `mprotect`, `prctl` and `socket`
//! say much more with their arguments than with their name, so these count.

use libc::{AF_INET, AF_UNIX, PR_SET_NAME, PR_SET_NO_NEW_PRIVS, PROT_EXEC};
use syscalls::Sysno;
use vbus::threads::ThreadClass;

/// A system call that is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// With any arguments.
    Call(Sysno),
    /// If the first argument is our own process.
    OwnProcess(Sysno),
    /// If argument `arg` (from 0), of 32 bits, is `value` in the bits of `mask`.
    If {
        /// The call.
        call: Sysno,
        /// Which argument.
        arg: u8,
        /// What of it counts.
        mask: u32,
        /// What it must be.
        value: u32,
    },
}

impl Allowed {
    /// The call.
    pub fn call(self) -> Sysno {
        match self {
            Allowed::Call(call) | Allowed::OwnProcess(call) | Allowed::If { call, .. } => call,
        }
    }
}

const fn with(call: Sysno, arg: u8, mask: u32, value: u32) -> Allowed {
    Allowed::If {
        call,
        arg,
        mask,
        value,
    }
}

/// An `ioctl` of the group `group`: bits 8 to 15 of its number.
const fn ioctls(group: u8) -> Allowed {
    with(Sysno::ioctl, 1, 0xff00, (group as u32) << 8)
}

/// A `socket` of family `family`.
const fn sockets(family: i32) -> Allowed {
    with(Sysno::socket, 0, u32::MAX, family.cast_unsigned())
}

/// KVM.
const KVM: Allowed = ioctls(0xae);
/// userfaultfd.
const USERFAULT: Allowed = ioctls(0xaa);
/// TUN and TAP, terminals.
const TUN_AND_TTY: Allowed = ioctls(b'T');
/// Pages of a process: `PAGEMAP_SCAN`.
const PAGES: Allowed = ioctls(b'f');
/// Block devices: their size, discard, zero.
const BLOCK: Allowed = ioctls(0x12);
/// Network interfaces.
const INTERFACES: Allowed = ioctls(0x89);

/// What every thread does to live, to use memory and locks, and to wait and speak through descriptors
/// that it has.
const LIFE: &[Allowed] = &[
    with(Sysno::mmap, 2, PROT_EXEC.cast_unsigned(), 0),
    with(Sysno::mprotect, 2, PROT_EXEC.cast_unsigned(), 0),
    with(Sysno::prctl, 0, u32::MAX, PR_SET_NAME.cast_unsigned()),
    Allowed::Call(Sysno::brk),
    Allowed::Call(Sysno::clock_gettime),
    Allowed::Call(Sysno::clock_nanosleep),
    Allowed::Call(Sysno::close),
    Allowed::Call(Sysno::exit),
    Allowed::Call(Sysno::exit_group),
    Allowed::Call(Sysno::fcntl),
    Allowed::Call(Sysno::futex),
    Allowed::Call(Sysno::getpid),
    Allowed::Call(Sysno::getrandom),
    Allowed::Call(Sysno::gettid),
    Allowed::Call(Sysno::madvise),
    Allowed::Call(Sysno::mremap),
    Allowed::Call(Sysno::munmap),
    Allowed::Call(Sysno::nanosleep),
    // Memory allocation of the C library looks how many processors there are, and how memory is
    // overcommitted. Landlock says what can be opened.
    Allowed::Call(Sysno::openat),
    Allowed::Call(Sysno::poll),
    Allowed::Call(Sysno::ppoll),
    Allowed::Call(Sysno::read),
    Allowed::Call(Sysno::restart_syscall),
    Allowed::Call(Sysno::rseq),
    Allowed::Call(Sysno::rt_sigprocmask),
    Allowed::Call(Sysno::rt_sigreturn),
    Allowed::Call(Sysno::sched_getaffinity),
    Allowed::Call(Sysno::sched_yield),
    Allowed::Call(Sysno::set_robust_list),
    Allowed::Call(Sysno::sigaltstack),
    Allowed::OwnProcess(Sysno::tgkill),
    Allowed::Call(Sysno::write),
];

/// What a loop over events takes, and starting one.
const EVENTS: &[Allowed] = &[
    Allowed::Call(Sysno::epoll_create1),
    Allowed::Call(Sysno::epoll_ctl),
    Allowed::Call(Sysno::epoll_pwait),
    Allowed::Call(Sysno::epoll_wait),
    Allowed::Call(Sysno::eventfd2),
    Allowed::Call(Sysno::timerfd_create),
    Allowed::Call(Sysno::timerfd_settime),
];

/// Transfers through open files.
const TRANSFERS: &[Allowed] = &[
    Allowed::Call(Sysno::fallocate),
    Allowed::Call(Sysno::fdatasync),
    Allowed::Call(Sysno::fsync),
    Allowed::Call(Sysno::fstat),
    Allowed::Call(Sysno::io_uring_enter),
    Allowed::Call(Sysno::io_uring_register),
    Allowed::Call(Sysno::io_uring_setup),
    Allowed::Call(Sysno::lseek),
    Allowed::Call(Sysno::pread64),
    Allowed::Call(Sysno::preadv),
    Allowed::Call(Sysno::preadv2),
    Allowed::Call(Sysno::pwrite64),
    Allowed::Call(Sysno::pwritev),
    Allowed::Call(Sysno::pwritev2),
    Allowed::Call(Sysno::readv),
    Allowed::Call(Sysno::writev),
];

/// Messages through open sockets.
const MESSAGES: &[Allowed] = &[
    Allowed::Call(Sysno::accept4),
    Allowed::Call(Sysno::getsockopt),
    Allowed::Call(Sysno::recvfrom),
    Allowed::Call(Sysno::recvmsg),
    Allowed::Call(Sysno::sendmsg),
    Allowed::Call(Sysno::sendto),
    Allowed::Call(Sysno::setsockopt),
    Allowed::Call(Sysno::shutdown),
];

/// More about files by name. Landlock says which.
const FILES: &[Allowed] = &[
    Allowed::Call(Sysno::access),
    Allowed::Call(Sysno::faccessat2),
    Allowed::Call(Sysno::fstatfs),
    Allowed::Call(Sysno::getdents64),
    Allowed::Call(Sysno::geteuid),
    Allowed::Call(Sysno::getuid),
    Allowed::Call(Sysno::newfstatat),
    Allowed::Call(Sysno::readlink),
    Allowed::Call(Sysno::readlinkat),
    Allowed::Call(Sysno::statfs),
    Allowed::Call(Sysno::statx),
];

/// To make, replace and remove them.
const CHANGES_OF_FILES: &[Allowed] = &[
    Allowed::Call(Sysno::fchmod),
    Allowed::Call(Sysno::fchmodat),
    Allowed::Call(Sysno::flock),
    Allowed::Call(Sysno::ftruncate),
    Allowed::Call(Sysno::linkat),
    Allowed::Call(Sysno::mkdir),
    Allowed::Call(Sysno::mkdirat),
    Allowed::Call(Sysno::rename),
    Allowed::Call(Sysno::renameat),
    Allowed::Call(Sysno::renameat2),
    Allowed::Call(Sysno::rmdir),
    Allowed::Call(Sysno::unlink),
    Allowed::Call(Sysno::unlinkat),
];

/// Shared memory that others will map.
const SHARED_MEMORY: &[Allowed] = &[
    Allowed::Call(Sysno::ftruncate),
    Allowed::Call(Sysno::memfd_create),
    Allowed::Call(Sysno::mlock),
    Allowed::Call(Sysno::munlock),
];

/// Guest memory that goes and comes back.
const RECLAIM: &[Allowed] = &[USERFAULT, PAGES, Allowed::Call(Sysno::process_madvise)];

/// What the main thread alone does: signals, children, the terminal.
const MAIN: &[Allowed] = &[
    KVM,
    TUN_AND_TTY,
    Allowed::Call(Sysno::kill),
    Allowed::Call(Sysno::pidfd_send_signal),
    Allowed::Call(Sysno::rt_sigaction),
    Allowed::Call(Sysno::wait4),
    Allowed::Call(Sysno::waitid),
];

/// What a vCPU does: KVM, and switching on the devices that the guest asks for.
const VCPU: &[Allowed] = &[KVM, TUN_AND_TTY, BLOCK];

/// What a device's worker does besides transfers.
const DEVICE: &[Allowed] = &[KVM, TUN_AND_TTY, BLOCK];

/// What the way to a daemon takes: a new connection, the memory and events that are shared over it.
const UPLINK: &[Allowed] = &[KVM, sockets(AF_UNIX), Allowed::Call(Sysno::connect)];

/// What a daemon's thread does for an administrator: TAPs, mounts.
const BUS: &[Allowed] = &[
    TUN_AND_TTY,
    INTERFACES,
    sockets(AF_UNIX),
    sockets(AF_INET),
    Allowed::Call(Sysno::connect),
];

/// What makes a thread, and what the thread confines itself with.
const FACTORY: &[Allowed] = &[
    Allowed::Call(Sysno::clone),
    Allowed::Call(Sysno::clone3),
    Allowed::Call(Sysno::seccomp),
    with(
        Sysno::prctl,
        0,
        u32::MAX,
        PR_SET_NO_NEW_PRIVS.cast_unsigned(),
    ),
];

/// The lists of `class`.
pub fn of(class: ThreadClass) -> Vec<&'static [Allowed]> {
    match class {
        ThreadClass::Main => vec![
            LIFE,
            EVENTS,
            TRANSFERS,
            FILES,
            CHANGES_OF_FILES,
            RECLAIM,
            MAIN,
        ],
        // Those that it makes inherit what it may do.
        ThreadClass::Factory => {
            let made = ThreadClass::ALL.into_iter().filter(|class| class.is_made());
            made.flat_map(of).chain([FACTORY]).collect()
        }
        ThreadClass::Vcpu => vec![LIFE, EVENTS, TRANSFERS, SHARED_MEMORY, RECLAIM, VCPU],
        ThreadClass::Device => vec![
            LIFE,
            EVENTS,
            TRANSFERS,
            MESSAGES,
            SHARED_MEMORY,
            RECLAIM,
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
            BUS,
        ],
        ThreadClass::State => vec![LIFE, TRANSFERS, FILES, CHANGES_OF_FILES],
    }
}
