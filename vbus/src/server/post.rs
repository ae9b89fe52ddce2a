//! Posts to eventfds of clients, without ever waiting.
//!
//! `write` on an eventfd waits while its count is full, unless `O_NONBLOCK` is set, and whoever
//! shares the file can fill the one and clear the other at any time. `RWF_NOWAIT` is not supported
//! for writes to an eventfd, and asking `poll` first leaves a gap. What never waits is the kernel's
//! own way to signal an eventfd (`eventfd_signal`), which asynchronous I/O uses for
//! `IOCB_FLAG_RESFD`: a full count just stays full. So a post is a request that is complete at once,
//! to poll an eventfd of ours that can always be written.
//!
//! # Source
//! Linux `fs/eventfd.c`, `fs/aio.c` (`aio_poll`), `eventfd(2)`: "KAIO".
#![expect(unsafe_code, reason = "asynchronous I/O has no safe wrapper")]

use std::ffi::c_long;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use crate::verbs::WakeUp;

/// Completions that a context holds at least. They are taken out only when it is full.
const MAX_COMPLETIONS: usize = 64;
/// Attempts to find room among other threads that post. Each makes room for 64.
const MAX_ATTEMPTS: u32 = 64;

/// `struct iocb`.
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    num_bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}
const _: () = assert!(size_of::<Request>() == 64);

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Completion {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

const IOCB_CMD_POLL: u16 = 5;
const IOCB_FLAG_RESFD: u32 = 1;
const POLLOUT: u64 = 4;

/// A context of asynchronous I/O, for one client.
#[derive(Debug)]
pub struct Poster {
    context: c_long,
    /// An eventfd that nobody else has, with a count of 0: poll finds it ready.
    ready: OwnedFd,
}

impl Poster {
    /// A new context.
    ///
    /// # Errors
    /// `EAGAIN`: `fs.aio-max-nr` is reached. `ENOSYS`, `EPERM`: this host has no asynchronous I/O.
    pub fn new() -> Result<Self, Errno> {
        let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut context: c_long = 0;
        let num_completions = MAX_COMPLETIONS as c_long;
        // SAFETY: `context` is a writable `aio_context_t` of value 0, as the call wants.
        let result =
            unsafe { libc::syscall(libc::SYS_io_setup, num_completions, &raw mut context) };
        if result != 0 {
            return Err(last_error());
        }
        Ok(Poster { context, ready })
    }

    /// Makes `eventfd` readable.
    fn post(&self, eventfd: &EventFd) {
        let (Ok(fd), Ok(resfd)) = (
            u32::try_from(self.ready.as_raw_fd()),
            u32::try_from(eventfd.as_raw_fd()),
        ) else {
            return;
        };
        let mut request = Request {
            opcode: IOCB_CMD_POLL,
            fd,
            buffer: POLLOUT,
            flags: IOCB_FLAG_RESFD,
            eventfd: resfd,
            ..Request::default()
        };
        for _ in 0..MAX_ATTEMPTS {
            let requests = [&raw mut request];
            // SAFETY:
            // - `requests` is one pointer to a whole `struct iocb`, which lives through the call;
            //   the kernel copies it.
            // - the request has no buffer: what is in its place is a poll mask.
            let result =
                unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, requests.as_ptr()) };
            if result == 1 || last_error() != Errno::AGAIN {
                return;
            }
            self.make_room();
        }
    }

    /// Takes completions out, without waiting.
    fn make_room(&self) {
        let mut completions = [Completion::default(); MAX_COMPLETIONS];
        let no_time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `completions` has room for the number given; both pointers live through the call.
        unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0,
                MAX_COMPLETIONS as c_long,
                completions.as_mut_ptr(),
                &raw const no_time,
            )
        };
    }
}

impl Drop for Poster {
    fn drop(&mut self) {
        // SAFETY: made by `new` and used by nobody else. All requests are complete.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Wakes a client through its own eventfd.
#[derive(Debug)]
pub struct PostedWakeUp {
    /// Where to.
    pub eventfd: EventFd,
    /// How.
    pub poster: Arc<Poster>,
}

impl WakeUp for PostedWakeUp {
    fn wake(&self) {
        self.poster.post(&self.eventfd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventfd;

    fn wake_up(eventfd: &EventFd) -> PostedWakeUp {
        PostedWakeUp {
            eventfd: eventfd.try_clone().unwrap(),
            poster: Arc::new(Poster::new().unwrap()),
        }
    }

    #[test]
    fn post_is_counted_by_the_eventfd() {
        let eventfd = EventFd::new(0).unwrap();
        let wake_up = wake_up(&eventfd);

        wake_up.wake();
        wake_up.wake();

        assert_eq!(eventfd::drain(&eventfd), 2);
    }

    #[test]
    fn full_blocking_eventfd_stops_nobody() {
        let eventfd = EventFd::new(0).unwrap(); // Without O_NONBLOCK: a write would wait here.
        eventfd.write(u64::MAX - 1).unwrap();
        let wake_up = wake_up(&eventfd);

        for _ in 0..3 {
            wake_up.wake();
        }

        assert_eq!(eventfd::drain(&eventfd), u64::MAX);
    }

    #[test]
    fn more_posts_than_completions_fit_all_arrive() {
        let eventfd = EventFd::new(0).unwrap();
        let wake_up = Arc::new(wake_up(&eventfd));

        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5000).for_each(|_| wake_up.wake()));
            }
        });

        assert_eq!(eventfd::drain(&eventfd), 20_000);
    }
}
