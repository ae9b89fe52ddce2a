//! Gives pages back to whoever accesses them.
//!
//! Two threads serve the faults of a guest. They access guest RAM through its file only, so they never
//! wait for themselves.
//!
//! - One takes all faults, and reads nothing. Whoever transfers to or from an image may hold a lock of
//!   its file system, and meet a fault that needs no more than a page to be mapped: if that waited for a
//!   read of the same image, both would wait for ever.
//! - The other one reads pages back, from disks and the swap file.
//!
//! A third one does the same for processes that have the memory too ([`super::visitors`]).

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::reclaimer::{Reclaimer, Waker};
use super::swap_file::PageBuffer;
use super::take::after;
use super::userfault::{Fault, FaultKind};
use super::word::{Claim, Met, PageState};
use vbus::threads::{self, ThreadClass};

/// Holes are filled in units of so many pages, 256 KiB, at most: what a guest releases at least.
const BLOCK_PAGES: u64 = 64;
/// So many pages are read ahead of those who access one after the other, at least and at most.
const MIN_AHEAD_PAGES: u64 = 4;
const MAX_AHEAD_PAGES: u64 = 64;

/// The threads that serve the faults of a guest; dropping it ends them, which is only right when
/// nothing accesses the memory any more.
#[derive(Debug)]
pub struct FaultServer {
    stop: Arc<EventFd>,
    threads: Vec<JoinHandle<()>>,
}

impl FaultServer {
    /// Serves the faults of `reclaimer`.
    ///
    /// # Errors
    /// Those of making a thread.
    pub fn start(reclaimer: Arc<Reclaimer>) -> io::Result<Self> {
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let stopped = [Arc::clone(&stop), Arc::clone(&stop)];
        let [fault_stop, wish_stop] = stopped;
        let reader = Arc::clone(&reclaimer);
        let granter = Arc::clone(&reclaimer);
        let (to_read, reads) = mpsc::channel();
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            threads::spawn(ThreadClass::Pager, name, run)
        };
        // It ends with the other one, which has the sender.
        let reading = spawn("page-reads", Box::new(move || reader.serve_reads(&reads)))?;
        let granting = spawn(
            "page-wishes",
            Box::new(move || granter.serve_wishes(&wish_stop)),
        )?;
        let serving = move || reclaimer.serve_faults(&fault_stop, &to_read);
        let serving = spawn("page-faults", Box::new(serving))?;
        Ok(FaultServer {
            stop,
            threads: vec![serving, reading, granting],
        })
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        // Fails only when the counter is full, and then it is readable.
        let _ = self.stop.write(1);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Waits until there may be something to read from `events`; false once `stop` is readable.
///
/// # Errors
/// Those of `poll`.
pub(super) fn wait_for_event(events: BorrowedFd<'_>, stop: &EventFd) -> Result<bool, Errno> {
    let mut fds = [
        PollFd::from_borrowed_fd(events, PollFlags::IN),
        PollFd::from_borrowed_fd(vbus::eventfd::as_fd(stop), PollFlags::IN),
    ];
    match poll(&mut fds, None) {
        Err(Errno::INTR) => Ok(true),
        result => result.map(|_| fds[1].revents().is_empty()),
    }
}

/// What is read ahead of those who access one page after the other.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// The page that they need next.
    next: u64,
    /// So many pages the last time.
    num_pages: u64,
}

impl Reclaimer {
    fn serve_faults(&self, stop: &EventFd, to_read: &Sender<Fault>) {
        loop {
            let faults = match wait_for_event(self.userfault.as_fd(), stop) {
                Ok(true) => self.userfault.faults(),
                Ok(false) => return,
                Err(errno) => Err(errno),
            };
            match faults {
                Ok(faults) => faults
                    .into_iter()
                    .for_each(|fault| self.serve_or_queue(fault, to_read)),
                Err(errno) => return self.fail(0, &errno.into()),
            }
        }
    }

    pub(super) fn serve_or_queue(&self, fault: Fault, to_read: &Sender<Fault>) {
        match self.serve(fault, false) {
            Ok(true) => {}
            // At most one for each thread that accesses guest RAM.
            Ok(false) => drop(to_read.send(fault)),
            Err(error) => self.fail(fault.page, &error),
        }
    }

    fn serve_reads(&self, faults: &Receiver<Fault>) {
        let mut ahead = Ahead::default();
        for fault in faults {
            self.serve_read(fault, &mut ahead);
        }
    }

    pub(super) fn serve_read(&self, fault: Fault, ahead: &mut Ahead) {
        let page = fault.page;
        ahead.num_pages = if page == ahead.next {
            (ahead.num_pages * 2).clamp(MIN_AHEAD_PAGES, MAX_AHEAD_PAGES)
        } else {
            0
        };
        let state = self.words.peek(page);
        if let Err(error) = self.serve(fault, true) {
            return self.fail(page, &error);
        }
        ahead.next = match state {
            Some(state) => self.read_ahead(page, state, ahead.num_pages),
            None => page + 1,
        };
    }

    /// Serves one fault, unless the page has an owner, who lets the access be tried again. Whoever may
    /// read does nothing else; false if that takes a read and `may_read` is not.
    fn serve(&self, fault: Fault, may_read: bool) -> io::Result<bool> {
        let is_write = match fault.kind {
            FaultKind::Missing { is_write } => is_write,
            FaultKind::Protected => true,
            FaultKind::Unmapped => false,
        };
        let Some(Met::Free(claim)) = self.words.meet(fault.page, is_write) else {
            return Ok(true);
        };
        let is_away = matches!(claim.state(), PageState::Dropped(_) | PageState::Swapped(_));
        if is_away && !may_read {
            return Ok(false);
        }
        if may_read && !is_away {
            // It came back while this one waited for its turn, and may be gone for good by now: who
            // still needs something says so again.
            drop(claim);
            self.userfault.wake(fault.page)?;
            return Ok(true);
        }
        self.recent.set(fault.page);
        self.serve_claimed(fault, claim)?;
        Ok(true)
    }

    /// Serves a fault on a page that is the caller's.
    pub(super) fn serve_claimed(&self, fault: Fault, claim: Claim<'_, Waker>) -> io::Result<()> {
        // A fault may be old by now: what the page is counts, and not what the access met.
        let page = fault.page;
        match (fault.kind, claim.state()) {
            (FaultKind::Protected, PageState::Proved(_)) => {
                self.bring_in(&claim)?;
                claim.release(PageState::Resident);
                Ok(())
            }
            // What was protected together with others.
            (FaultKind::Protected, _) => {
                self.metrics.unprotected.add(1);
                Ok(self.userfault.unprotect(page..page + 1)?)
            }
            (_, PageState::Hole) => self.times.fill_zeros.time(|| self.fill_block(claim)),
            (FaultKind::Missing { is_write: false }, PageState::Dropped(backing)) => {
                self.refill(page, backing, true)?;
                claim.release(PageState::Proved(backing));
                Ok(())
            }
            (_, PageState::Dropped(_) | PageState::Swapped(_)) => {
                self.bring_in(&claim)?;
                if matches!(claim.state(), PageState::Dropped(_)) {
                    self.metrics.refilled_to_write.add(1);
                }
                claim.release(PageState::Resident);
                Ok(())
            }
            (FaultKind::Unmapped, state) => {
                self.metrics.mapped.add(1);
                self.map_or_wake(page, matches!(state, PageState::Proved(_)))
            }
            (FaultKind::Missing { .. }, _) => self.map_filled(&claim),
        }
    }

    /// Reads up to `num_pages` more that follow `page`, which was in `state`, in memory and on disk
    /// alike; the page after the last one. Nobody waits for these, so an error is not one yet.
    fn read_ahead(&self, page: u64, state: PageState, num_pages: u64) -> u64 {
        let at = |ahead| match state {
            PageState::Dropped(backing) => Some(PageState::Dropped(after(backing, ahead))),
            PageState::Swapped(slot) => Some(PageState::Swapped(slot + ahead)),
            _ => None,
        };
        let claim = |ahead| {
            let wanted = at(ahead)?;
            self.words.claim(page + ahead, |state| state == wanted)
        };
        let claims: Vec<_> = (1..=num_pages).map_while(claim).collect();
        let mut pages = vec![PageBuffer::default(); claims.len()];
        let read = match (at(1), &self.swap) {
            (Some(PageState::Dropped(first)), _) => self.disks.read(first, &mut pages),
            (Some(PageState::Swapped(first)), Some(swap)) => swap.load(first, &mut pages),
            _ => return page + 1,
        };
        let mut next = page + 1;
        if read.is_ok() {
            for (claim, bytes) in claims.into_iter().zip(&pages) {
                if self.put_back(claim, bytes).is_err() {
                    break;
                }
                self.metrics.read_ahead.add(1);
                next += 1;
            }
        }
        next
    }

    /// Puts the bytes of a dropped or swapped page, which were read, into memory.
    fn put_back(&self, claim: Claim<'_, Waker>, bytes: &PageBuffer) -> io::Result<()> {
        let page = claim.page();
        match claim.state() {
            PageState::Dropped(backing) => {
                self.refill_with(page, bytes, true)?;
                claim.release(PageState::Proved(backing));
            }
            PageState::Swapped(slot) => {
                self.swap_in_with(page, bytes)?;
                if let Some(swap) = &self.swap {
                    swap.free(slot..slot + 1);
                }
                claim.release(PageState::Resident);
            }
            _ => {}
        }
        Ok(())
    }

    /// Two accesses to a hole make two faults, and the first one fills it, but need not have mapped it.
    /// Whether it is there is a question to the mapping only: a page that was allocated and not touched
    /// since is a hole to `SEEK_DATA`.
    fn map_filled(&self, claim: &Claim<'_, Waker>) -> io::Result<()> {
        let state = claim.state();
        match self.map_or_wake(claim.page(), matches!(state, PageState::Proved(_))) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::FAULT) => {
                Err(io::Error::other(format!("not in memory, but {state:?}")))
            }
            result => result,
        }
    }

    /// Fills the hole and those after it.
    fn fill_block(&self, first: Claim<'_, Waker>) -> io::Result<()> {
        let start = first.page();
        let mut claims = vec![first];
        for page in start + 1..(start / BLOCK_PAGES + 1) * BLOCK_PAGES {
            let Some(claim) = self.words.claim(page, |state| state == PageState::Hole) else {
                break;
            };
            claims.push(claim);
        }
        let pages = self.same_part(start..start + claims.len() as u64);
        self.ram.fill_with_zeros(pages.clone())?;
        self.metrics.zero_filled.add(pages.end - pages.start);
        match self.userfault.map(pages.clone(), false) {
            // One is mapped: a chunk that begins to be watched has holes in name that are none, until
            // they were looked at. Those that are not mapped will say so.
            Err(Errno::EXIST | Errno::AGAIN) => {}
            result => result?,
        }
        for claim in claims {
            let page = claim.page();
            let state = if pages.contains(&page) {
                PageState::Resident
            } else {
                claim.state()
            };
            claim.release(state);
        }
        self.userfault.wake(start)?;
        Ok(())
    }

    /// What of `pages` is mapped as one with the first.
    fn same_part(&self, pages: Range<u64>) -> Range<u64> {
        let first = self.ram.runs(pages.clone()).next();
        first.unwrap_or(pages)
    }
}
