//! Other processes that have the guest's memory too, and that serve it: the daemon of its bus.
//!
//! How they and we keep out of each other's way is in [`vbus::residency`]. What they use all the time, rings
//! above all, stays in memory for as long as they have it: see [`Lender::keep`].

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;
use vbus::client::Remote;
use vbus::eventfd;
use vbus::memory::Region;
use vbus::residency::{Visit, Wish};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::faults::wait_for_event;
use super::ram::PAGE_BYTES;
use super::reclaimer::Reclaimer;
use super::userfault::{Fault, FaultKind};
use super::word::{Met, PageState};

const PAGE_LEN: u64 = PAGE_BYTES as u64;
/// A section takes as long as a frame: some microseconds, unless its thread has to wait for a processor.
const PATIENCE: Duration = Duration::from_millis(10);

/// Those processes, as far as they are waited for.
#[derive(Debug)]
pub(super) struct Visitors {
    visits: Mutex<Vec<Arc<Visit>>>,
    /// Written by them: there are wishes.
    asked: EventFd,
    /// Written by us: wishes were granted.
    served: EventFd,
}

impl Visitors {
    pub fn new() -> io::Result<Self> {
        Ok(Visitors {
            visits: Mutex::default(),
            asked: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            served: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    fn visits(&self) -> Vec<Arc<Visit>> {
        self.visits.lock().clone()
    }

    /// Waits until nobody accesses pages any more that were owned before this call; false if that takes
    /// too long.
    pub fn wait_until_left(&self) -> bool {
        self.visits().iter().all(|visit| {
            let deadline = Instant::now() + PATIENCE;
            let may_wait = || {
                std::thread::yield_now();
                Instant::now() < deadline
            };
            // One that was killed in a section stays there.
            visit.sections().wait_until_left(may_wait) || !visit.is_lent()
        })
    }

    /// What they wish for now.
    fn take_wishes(&self) -> Vec<Wish> {
        let visits = self.visits().into_iter();
        visits
            .flat_map(|visit| visit.sections().take_wishes())
            .collect()
    }
}

impl Reclaimer {
    /// Brings in what other processes wish for, until `stop` is readable.
    pub(super) fn serve_wishes(&self, stop: &EventFd) {
        loop {
            match wait_for_event(eventfd::as_fd(&self.visitors.asked), stop) {
                Ok(true) => {}
                Ok(false) => return,
                Err(errno) => return self.fail(0, &errno.into()),
            }
            eventfd::drain(&self.visitors.asked);
            let wishes = self.visitors.take_wishes();
            for wish in &wishes {
                self.grant(*wish);
            }
            // Fails only when the counter is full, and then it is readable.
            let _ = self.visitors.served.write(1);
        }
    }

    /// Brings a page in, and makes it writable if that is wished for.
    pub(super) fn grant(&self, wish: Wish) {
        let Wish { page, is_write } = wish;
        loop {
            let claim = match self.words.meet(page, is_write) {
                None => return,
                Some(Met::Owned) => {
                    self.wait_for_release(page);
                    continue;
                }
                Some(Met::Free(claim)) => claim,
            };
            let kind = match claim.state() {
                PageState::Proved(_) if is_write => FaultKind::Protected,
                state if state.is_in_memory() => return,
                _ => FaultKind::Missing { is_write },
            };
            self.metrics.granted.add(1);
            self.recent.set(page);
            if let Err(error) = self.serve_claimed(Fault { page, kind }, claim) {
                self.fail(page, &error);
            }
            return;
        }
    }
}

/// Lets other processes have the memory of a guest that is reclaimed.
#[derive(Debug, Clone)]
pub struct Lender {
    reclaimer: Arc<Reclaimer>,
}

impl Lender {
    pub(super) fn new(reclaimer: Arc<Reclaimer>) -> Self {
        Lender { reclaimer }
    }

    /// Tells the daemon behind `remote` which pages are there. Before it gets the memory.
    ///
    /// # Errors
    /// Those of [`Remote::add_pages`].
    pub fn introduce(&self, remote: &Remote) -> Result<(), Errno> {
        let visitors = &self.reclaimer.visitors;
        let visit = Visit::new().map_err(|_| Errno::NOMEM)?;
        remote.add_pages(
            &self.reclaimer.map,
            &visit,
            (&visitors.asked, &visitors.served),
        )?;
        // It has no memory yet, and so nothing to do in a section.
        let mut visits = visitors.visits.lock();
        visits.retain(|visit| visit.is_lent());
        visits.push(Arc::new(visit));
        Ok(())
    }

    /// Keeps `region` of the guest's RAM in memory until the result is dropped.
    pub fn keep(&self, region: &Region) -> Kept {
        let pages = region.memfd().map_or(0..0, |(_, start)| {
            let end = start + region.len() as u64;
            start / PAGE_LEN..end.div_ceil(PAGE_LEN)
        });
        self.reclaimer.pin(pages.clone());
        Kept {
            reclaimer: Arc::clone(&self.reclaimer),
            pages,
        }
    }
}

/// Pages that stay in memory.
#[derive(Debug)]
pub struct Kept {
    reclaimer: Arc<Reclaimer>,
    pages: Range<u64>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.reclaimer.unpin(self.pages.clone());
    }
}
