//! System calls that the backends need and std has no safe form of.
//!
//! Each function here is safe to call with any arguments; the kernel checks them.
#![expect(unsafe_code, reason = "readv on a scatter list, pre_exec")]

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::iovec::{GuestIoVecs, MAX_SEGMENTS};

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
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
