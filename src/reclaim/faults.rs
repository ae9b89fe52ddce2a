//! Gives pages back to whoever accesses them.
//!
//! One thread serves all faults of a guest. It accesses guest RAM through its file only, so it never
//! waits for itself, and waits for nothing but the disk of the swap file.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::reclaimer::{Reclaimer, Waker};
use super::userfault::{Fault, FaultKind};
use super::word::{Claim, Met, PageState};

/// Holes are filled in units of so many pages, 2 MiB, at most.
const BLOCK_PAGES: u64 = 512;

/// The thread that serves the faults of a guest; dropping it ends the thread, which is only right
/// when nothing accesses the memory any more.
#[derive(Debug)]
pub struct FaultServer {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl FaultServer {
    /// Serves the faults of `reclaimer`.
    ///
    /// # Errors
    /// Those of making a thread.
    pub fn start(reclaimer: Arc<Reclaimer>) -> io::Result<Self> {
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("page-faults".to_owned())
            .spawn(move || reclaimer.serve_faults(&stopped))?;
        Ok(FaultServer {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        // Fails only when the counter is full, and then it is readable.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Reclaimer {
    fn serve_faults(&self, stop: &EventFd) {
        loop {
            let mut fds = [
                PollFd::new(&*self.userfault, PollFlags::IN),
                PollFd::from_borrowed_fd(vbus::eventfd::as_fd(stop), PollFlags::IN),
            ];
            let faults = match poll(&mut fds, None) {
                Err(errno) if errno != Errno::INTR => Err(errno),
                _ => self.userfault.faults(),
            };
            if stop.read().is_ok() {
                return;
            }
            match faults {
                Ok(faults) => faults.into_iter().for_each(|fault| {
                    if let Err(error) = self.serve(fault) {
                        self.fail(fault.page, &error);
                    }
                }),
                Err(errno) => return self.fail(0, &errno.into()),
            }
        }
    }

    /// Serves one fault, unless the page has an owner, who lets the access be tried again.
    fn serve(&self, fault: Fault) -> io::Result<()> {
        let is_write = match fault.kind {
            FaultKind::Missing { is_write } => is_write,
            FaultKind::Protected => true,
            FaultKind::Unmapped => false,
        };
        let Some(Met::Free(claim)) = self.words.meet(fault.page, is_write) else {
            return Ok(());
        };
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
            (_, PageState::Hole) => self.fill_block(claim),
            (FaultKind::Missing { is_write: false }, PageState::Dropped(backing)) => {
                self.refill(page, backing, true)?;
                claim.release(PageState::Proved(backing));
                Ok(())
            }
            (_, PageState::Dropped(_) | PageState::Swapped(_)) => {
                self.bring_in(&claim)?;
                claim.release(PageState::Resident);
                Ok(())
            }
            (FaultKind::Unmapped, state) => {
                self.metrics.mapped.add(1);
                self.map_or_wake(page, matches!(state, PageState::Proved(_)))
            }
            (FaultKind::Missing { .. }, _) => self.is_there(&claim),
        }
    }

    /// Two accesses to a hole make two faults, and the first one fills it.
    fn is_there(&self, claim: &Claim<'_, Waker>) -> io::Result<()> {
        let page = claim.page();
        match self.ram.first_in_memory(page..page + 1)? {
            Some(_) => Ok(self.userfault.wake(page)?),
            None => Err(io::Error::other(format!(
                "not in memory, but {:?}",
                claim.state()
            ))),
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
            Err(Errno::EXIST) => {} // those that are not mapped will say so
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
