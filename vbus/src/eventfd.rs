//! Eventfds that a process shares with one that it does not trust.
//!
//! `O_NONBLOCK` belongs to the open file, which both have: the other side can clear it at any time,
//! and then take the count away before a `read`, or fill it up before a `write`, which then sleeps.
//! So neither is used on a shared eventfd. [`drain`] reads with `RWF_NOWAIT`, which no flag of the
//! file overrides; writing is what [`crate::server`] has a way of its own for.
#![expect(unsafe_code, reason = "EventFd knows no BorrowedFd and no OwnedFd")]

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use rustix::io::{Errno, ReadWriteFlags, preadv2};
use vmm_sys_util::eventfd::EventFd;

/// `offset` of `preadv2` for files that have none.
const NO_OFFSET: u64 = u64::MAX;

/// Borrows the descriptor.
pub fn as_fd(eventfd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: an `EventFd` keeps its descriptor open for as long as it lives, which the result
    // borrows.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}

/// Takes over a descriptor that is known to be an eventfd.
pub fn from_owned(fd: OwnedFd) -> EventFd {
    // SAFETY: `into_raw_fd` gives up the ownership of an open descriptor, which the result takes.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

/// Takes what was counted; 0 if there is nothing. Never waits, whatever the other side does.
pub fn drain(eventfd: &EventFd) -> u64 {
    let mut count = [0; 8];
    let mut parts = [IoSliceMut::new(&mut count)];
    match preadv2(
        as_fd(eventfd),
        &mut parts,
        NO_OFFSET,
        ReadWriteFlags::NOWAIT,
    ) {
        Ok(8) => u64::from_ne_bytes(count),
        _ => 0,
    }
}

/// Checks a descriptor of somebody who is not trusted: an eventfd that one read empties.
///
/// # Errors
/// `EINVAL`: something else, an eventfd with `EFD_SEMAPHORE` (it would stay readable for up to 2⁶⁴
/// reads), or a kernel before 5.13, which cannot read it without waiting.
pub fn check(fd: OwnedFd) -> Result<EventFd, Errno> {
    let path = |what| format!("/proc/self/{what}/{}", fd.as_raw_fd());
    let link = rustix::fs::readlink(path("fd"), Vec::new())?;
    if link.as_bytes() != b"anon_inode:[eventfd]" {
        return Err(Errno::INVAL);
    }
    let info = std::fs::read_to_string(path("fdinfo")).map_err(|_| Errno::INVAL)?;
    let is_semaphore = info.lines().any(|line| {
        line.strip_prefix("eventfd-semaphore:")
            .is_some_and(|value| value.trim() != "0")
    });
    // Too short for a count: refused with EINVAL, after the flag was understood.
    let mut too_short = [0; 4];
    let mut parts = [IoSliceMut::new(&mut too_short)];
    let probe = preadv2(&fd, &mut parts, NO_OFFSET, ReadWriteFlags::NOWAIT);
    if is_semaphore || probe != Err(Errno::INVAL) {
        return Err(Errno::INVAL);
    }
    Ok(from_owned(fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    #[test]
    fn drain_of_a_blocking_eventfd_does_not_wait() {
        let eventfd = EventFd::new(0).unwrap();
        eventfd.write(3).unwrap();

        assert_eq!(drain(&eventfd), 3);
        assert_eq!(drain(&eventfd), 0);
    }

    #[test]
    fn kernel_has_no_write_to_an_eventfd_that_never_waits() {
        // Why the server posts through AIO: were this supported, it would be simpler.
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let one = 1u64.to_ne_bytes();
        let parts = [std::io::IoSlice::new(&one)];

        let result = rustix::io::pwritev2(&eventfd, &parts, NO_OFFSET, ReadWriteFlags::NOWAIT);

        assert_eq!(result, Err(Errno::OPNOTSUPP));
    }

    #[test]
    fn only_plain_eventfds_pass() {
        let flags = EventfdFlags::CLOEXEC;
        assert!(check(eventfd(0, flags).unwrap()).is_ok());

        let semaphore = eventfd(0, flags | EventfdFlags::SEMAPHORE).unwrap();
        assert_eq!(check(semaphore).unwrap_err(), Errno::INVAL);
        let file = tempfile::tempfile().unwrap();
        assert_eq!(check(file.into()).unwrap_err(), Errno::INVAL);
    }
}
