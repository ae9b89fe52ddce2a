//! The io_uring engine: many requests under way, one system call per batch.
#![expect(unsafe_code, reason = "submission entries hold raw pointers")]

use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::disk::Disk;
use super::engine::Finished;
use super::request::{Request, Step, Transfer};

/// Requests under way and the ring between us and the kernel.
///
/// A request lives in `slots`, unchanged, from its submission entry to its completion entry, so
/// the pointers of the former stay valid; dropping the engine waits for all completions.
pub(super) struct Uring {
    ring: IoUring,
    disk: Arc<Disk>,
    completion_evt: EventFd,
    /// The position is the request's `user_data`.
    slots: Vec<Option<Request>>,
    free: Vec<usize>,
    /// Slots whose request was done in part; kept to keep the allocation.
    again: Vec<usize>,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("num_in_flight", &self.num_in_flight())
            .finish_non_exhaustive()
    }
}

impl Uring {
    /// A ring for `max_in_flight` requests, a power of two.
    ///
    /// # Errors
    /// `ENOSYS` or `EPERM` where io_uring is missing or forbidden, `ENOMEM`, `EMFILE`.
    pub(super) fn new(disk: Arc<Disk>, max_in_flight: u16) -> io::Result<Self> {
        let ring = IoUring::new(u32::from(max_in_flight))?;
        let completion_evt = EventFd::new(EFD_NONBLOCK)?;
        ring.submitter()
            .register_eventfd(completion_evt.as_raw_fd())?;
        let num_slots = usize::from(max_in_flight);
        Ok(Uring {
            ring,
            disk,
            completion_evt,
            slots: (0..num_slots).map(|_| None).collect(),
            free: (0..num_slots).rev().collect(),
            again: Vec::new(),
        })
    }

    pub(super) fn completion_evt(&self) -> &EventFd {
        &self.completion_evt
    }

    pub(super) fn num_in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Queues `request` for the next [`Uring::submit`].
    ///
    /// # Errors
    /// `max_in_flight` requests are under way already.
    pub(super) fn start(&mut self, request: Request) -> io::Result<()> {
        let slot_idx = self.free.pop().ok_or_else(ring_full)?;
        if let Some(slot) = self.slots.get_mut(slot_idx) {
            *slot = Some(request);
        }
        self.push(slot_idx)
    }

    /// Queues an entry for the request in slot `slot_idx`, which no other entry is for.
    fn push(&mut self, slot_idx: usize) -> io::Result<()> {
        let Some(Some(request)) = self.slots.get(slot_idx) else {
            return Ok(());
        };
        let entry = entry(&self.disk, request).user_data(slot_idx as u64);
        // SAFETY:
        // - the entry points to `request.iovecs`, a heap list in `slots`, which `reap` and `drop`
        //   neither change nor free before the entry's completion.
        // - the list points to guest RAM that `request` itself keeps mapped, and no Rust reference
        //   into that RAM exists.
        // - its file descriptor is open as long as `self.disk`.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            // The kernel never heard of it, so nobody must wait for it.
            if let Some(slot) = self.slots.get_mut(slot_idx) {
                *slot = None;
            }
            self.free.push(slot_idx);
            return Err(ring_full());
        }
        Ok(())
    }

    /// Hands the queued requests to the kernel; false if it is too busy to take them all now.
    pub(super) fn submit(&mut self) -> io::Result<bool> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_busy(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Moves finished requests to `finished` and goes on with those done in part.
    pub(super) fn reap(&mut self, finished: &mut Vec<Finished>) -> io::Result<bool> {
        // Before the look at the ring, so that a completion after the look wakes us again. An
        // error means that nobody wrote it.
        let _ = self.completion_evt.read();
        for completion in self.ring.completion() {
            let Ok(slot_idx) = usize::try_from(completion.user_data()) else {
                continue;
            };
            let Some(slot) = self.slots.get_mut(slot_idx) else {
                continue;
            };
            let Some(mut request) = slot.take() else {
                continue;
            };
            let code = completion.result();
            let result = usize::try_from(code).map_err(|_| io::Error::from_raw_os_error(-code));
            match request.advance(result) {
                Step::Again => {
                    *slot = Some(request);
                    self.again.push(slot_idx);
                }
                Step::Done(result) => {
                    self.free.push(slot_idx);
                    finished.push((request, result));
                }
            }
        }
        while let Some(slot_idx) = self.again.pop() {
            self.push(slot_idx)?;
        }
        self.submit()
    }
}

impl Drop for Uring {
    /// Waits until the kernel is done with guest memory.
    fn drop(&mut self) {
        while self.num_in_flight() > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted || is_busy(&error) => {}
                Err(error) => {
                    // Better a leak than the kernel writing to memory that has a new owner.
                    tracing::error!("cannot wait for disk transfers: {error}");
                    mem::forget(mem::take(&mut self.slots));
                    return;
                }
            }
            for completion in self.ring.completion() {
                let slot_idx = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
                if let Some(slot) = self.slots.get_mut(slot_idx)
                    && slot.take().is_some()
                {
                    self.free.push(slot_idx);
                }
            }
        }
    }
}

/// The submission entry for what is left of `request`.
fn entry(disk: &Disk, request: &Request) -> squeue::Entry {
    let fd = types::Fd(disk.as_raw_fd());
    let iovecs = request.iovecs().as_iovecs();
    #[expect(clippy::cast_possible_truncation, reason = "at most MAX_SEGMENTS")]
    let len = iovecs.len() as u32;
    match request.transfer() {
        Transfer::Read => opcode::Readv::new(fd, iovecs.as_ptr(), len)
            .offset(request.offset())
            .build(),
        Transfer::Write { is_durable } => opcode::Writev::new(fd, iovecs.as_ptr(), len)
            .offset(request.offset())
            .rw_flags(if is_durable { libc::RWF_DSYNC } else { 0 })
            .build(),
        Transfer::Flush => opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
    }
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
}

fn ring_full() -> io::Error {
    io::Error::other("the submission ring is full")
}
