//! System calls that the TAP and passt backends need and std has no safe form of.
//!
//! Each function here is safe to call with any arguments; the kernel checks them.
#![expect(unsafe_code, reason = "ioctls, readv on a scatter list, pre_exec")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::iovec::{GuestIoVecs, MAX_SEGMENTS};

/// Bytes of an interface name with its final zero (`IFNAMSIZ`).
pub(super) const IF_NAME_BYTES: usize = 16;

/// `struct ifreq`: an interface's name and a request's argument, as plain bytes.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct IfReq {
    name: [u8; IF_NAME_BYTES],
    argument: [u8; 24],
}

const _: () = assert!(size_of::<IfReq>() == size_of::<libc::ifreq>());
const _: () = assert!(align_of::<IfReq>() == align_of::<libc::ifreq>());

impl IfReq {
    /// A request about the interface `name`; a name of 16 bytes or more is cut.
    pub(super) fn new(name: &str) -> Self {
        let mut request = IfReq::default();
        for (to, from) in request.name[..IF_NAME_BYTES - 1]
            .iter_mut()
            .zip(name.bytes())
        {
            *to = from;
        }
        request
    }

    /// Puts `bytes` (at most 24) into the argument.
    pub(super) fn with(mut self, bytes: &[u8]) -> Self {
        for (to, from) in self.argument.iter_mut().zip(bytes) {
            *to = *from;
        }
        self
    }

    /// The argument as the kernel left it.
    pub(super) fn argument(&self) -> &[u8; 24] {
        &self.argument
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// An interface ioctl (`SIOC*`, `TUNSETIFF`, `TUNSETQUEUE`): the kernel reads and writes one
/// `struct ifreq`.
pub(super) fn ioctl_ifreq(
    file: &impl AsRawFd,
    request: libc::Ioctl,
    argument: &mut IfReq,
) -> io::Result<()> {
    // SAFETY: `argument` is a live, exclusive `struct ifreq` (size and alignment are asserted
    // above), and requests of this kind touch nothing else.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(argument)) })
}

/// An ioctl whose argument is a number (`TUNSETOFFLOAD`).
pub(super) fn ioctl_value(
    file: &impl AsRawFd,
    request: libc::Ioctl,
    value: libc::c_ulong,
) -> io::Result<()> {
    // SAFETY: the argument is a number, so no memory of ours is involved.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, value) })
}

/// An ioctl whose argument points to an `int` that the kernel reads (`TUNSETVNETHDRSZ`).
pub(super) fn ioctl_int(
    file: &impl AsRawFd,
    request: libc::Ioctl,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the argument is a live `int` for the whole call, and the kernel reads no more.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_ref(&value)) })
}

/// One `readv` from `fd` into `buffers`, leaving out the first `num_skipped` entries.
///
/// # Errors
/// That of `readv(2)`.
pub(super) fn readv(fd: RawFd, buffers: &GuestIoVecs, num_skipped: usize) -> io::Result<usize> {
    let iovecs = buffers.as_iovecs().get(num_skipped..).unwrap_or(&[]);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "GuestIoVecs holds at most 1024"
    )]
    let count = iovecs.len() as libc::c_int;
    // SAFETY:
    // - `iovecs` is a live slice of `count` entries.
    // - each entry lies in guest RAM that `buffers` keeps mapped read-write (its invariant), and no
    //   Rust reference into that RAM exists.
    let n = unsafe { libc::readv(fd, iovecs.as_ptr(), count) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// As [`readv`], with one more byte of room that is ours: a result beyond the buffers' length says
/// that a datagram did not fit them.
pub(super) fn readv_and_probe(
    fd: RawFd,
    buffers: &GuestIoVecs,
    num_skipped: usize,
) -> io::Result<usize> {
    let mut spare = 0_u8;
    let mut iovecs = buffers
        .as_iovecs()
        .get(num_skipped..)
        .unwrap_or(&[])
        .to_vec();
    iovecs.truncate(MAX_SEGMENTS - 1);
    iovecs.push(libc::iovec {
        iov_base: std::ptr::from_mut(&mut spare).cast(),
        iov_len: 1,
    });
    #[expect(clippy::cast_possible_truncation, reason = "at most 1024")]
    let count = iovecs.len() as libc::c_int;
    // SAFETY:
    // - `iovecs` is a live slice of `count` entries.
    // - all but the last lie in guest RAM that `buffers` keeps mapped read-write (its invariant), and
    //   no Rust reference into that RAM exists; the last one is `spare`, alive and borrowed by nobody.
    let n = unsafe { libc::readv(fd, iovecs.as_ptr(), count) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Makes the child of `command` die when the thread that starts it ends.
pub(super) fn die_with_parent(command: &mut Command) {
    let set = || {
        // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) })
    };
    // SAFETY: between fork and exec `set` makes one system call and reads errno, both
    // async-signal-safe; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(set) };
}
