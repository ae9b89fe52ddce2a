//! Takes pages of a guest out of memory.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use alacrity_devices::metrics::{Counter, Timer};
use parking_lot::Mutex;
use rustix::io::Errno;
use serde::Serialize;
use vbus::residency::PageMap;

use super::backing::{Disks, TransferMap};
use super::drops::Drops;
use super::host::Accesses;
use super::ram::{PAGE_BYTES, Ram, RamError};
use super::recent::Recent;
use super::swap_file::SwapFile;
use super::take::Room;
use super::userfault::{Userfault, UserfaultError};
use super::visitors::{Lender, Visitors};
use super::word::{PageState, Wake, Words};

/// Accesses are made to wait in units of so many pages, 64 MiB, on first use.
pub(super) use vbus::residency::CHUNK_PAGES;

/// So many are owned at once, at most, while it is found out what they are.
const LOOK_PAGES: u64 = 64;

/// Why a guest's memory cannot be reclaimed.
#[derive(Debug, thiserror::Error)]
pub enum ReclaimError {
    /// Not that memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// Not on this host.
    #[error(transparent)]
    Userfault(#[from] UserfaultError),
    /// Accesses to a chunk cannot be made to wait.
    #[error("cannot watch accesses to guest RAM")]
    Register(#[source] Errno),
    /// The memory file, a disk or the swap file does not work.
    #[error("cannot reclaim a page of guest RAM")]
    Io(#[from] io::Error),
}

/// Counts of pages.
#[derive(Debug, Default, Serialize)]
pub struct ReclaimMetrics {
    /// Proved to equal their backing, and dropped.
    pub dropped: Counter,
    /// Of those: the guest will not be told, as it was not told of so many others yet.
    pub unnoted: Counter,
    /// Written to the swap file and dropped.
    pub swapped_out: Counter,
    /// Found to be zeros and dropped.
    pub zeros_dropped: Counter,
    /// Left alone: they are not what was read from or written to disk last.
    pub unequal: Counter,
    /// Left alone: their sectors are about to change.
    pub changing: Counter,
    /// Left alone for once: somebody accessed them since they came back.
    pub spared: Counter,
    /// Left alone: somebody wrote to them meanwhile.
    pub written_meanwhile: Counter,
    /// Left alone: another process that serves the guest was too long at some page.
    pub visited: Counter,
    /// Left alone: the memory could not be freed.
    pub unpunched: Counter,
    /// Read back from a disk.
    pub refilled: Counter,
    /// Of those: for somebody who wrote. Most of these pages had a new use by then, and nobody wanted
    /// what was read.
    pub refilled_to_write: Counter,
    /// Read back from the swap file.
    pub swapped_in: Counter,
    /// Of those that were read back: before anybody asked, as they follow one that was asked for.
    pub read_ahead: Counter,
    /// Given zeros on first access.
    pub zero_filled: Counter,
    /// Whose writers were let go on.
    pub unprotected: Counter,
    /// Mapped again, which were in memory.
    pub mapped: Counter,
    /// Brought in, or made writable, for another process that serves the guest.
    pub granted: Counter,
    /// Rebuilt before their sectors changed.
    pub rescued: Counter,
    /// Found in memory where a hole should have been, and mended. Always 0.
    pub mended: Counter,
    /// Times that somebody could not have a page back, which ends the VM.
    pub lost: Counter,
}

/// How long its parts take; each may be done for many pages at once.
#[derive(Debug, Default, Serialize)]
pub struct ReclaimTimes {
    /// Making writers of a run of pages wait.
    pub protect: Timer,
    /// Reading such a run.
    pub read_memory: Timer,
    /// Reading from a disk what the pages are compared with.
    pub read_disk: Timer,
    /// Writing pages to the swap file.
    pub swap_out: Timer,
    /// Freeing the memory of a run.
    pub punch: Timer,
    /// Making holes of what the guest gave away.
    pub release: Timer,
    /// Filling a hole, and those after it, for somebody who accesses it.
    pub fill_zeros: Timer,
    /// Reading a page from a disk for somebody who waits for it.
    pub refill: Timer,
    /// The same from the swap file.
    pub swap_in: Timer,
}

/// What may be done with a page that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// It is dropped if it is zeros or equals its backing. Nothing is written.
    Drop,
    /// As well as that, it is written to the swap file if it has no backing.
    Swap,
}

/// Wakes those who wait for a page: those who accessed it, and threads of ours.
pub type Waker = Arc<dyn Accesses>;

impl Wake for Waker {
    fn wake(&self, page: u64) {
        if let Err(errno) = Accesses::wake(&**self, page) {
            tracing::error!("cannot wake those who wait for page {page}: {errno}");
        }
    }
}

/// Ends the VM: it says why.
pub type OnFailure = Box<dyn Fn(&str) + Send + Sync>;

/// Takes memory of one guest, and knows what it took.
pub struct Reclaimer {
    pub(super) ram: Arc<Ram>,
    pub(super) userfault: Arc<dyn Accesses>,
    pub(super) words: Words<Waker>,
    pub(super) disks: Disks,
    pub(super) transfers: TransferMap,
    pub(super) recent: Recent,
    pub(super) drops: Drops,
    pub(super) swap: Option<SwapFile>,
    pub(super) metrics: Arc<ReclaimMetrics>,
    pub(super) times: Arc<ReclaimTimes>,
    /// For those who take pages, who leave it for the next one.
    pub(super) room: Mutex<Vec<Room>>,
    pub(super) visitors: Visitors,
    /// What `words` is in, for them.
    pub(super) map: Arc<PageMap>,
    chunks: Mutex<BTreeSet<u64>>,
    on_failure: OnFailure,
}

impl fmt::Debug for Reclaimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reclaimer")
            .field("ram", &self.ram)
            .field("disks", &self.disks)
            .field("swap", &self.swap)
            .finish_non_exhaustive()
    }
}

impl Reclaimer {
    /// For the guest with `ram` and `disks`; swaps to `swap` if there is one. `on_failure` is called,
    /// from any thread, when a page cannot be given back to a guest that needs it.
    ///
    /// # Errors
    /// [`ReclaimError`].
    pub fn new(
        ram: Ram,
        disks: Disks,
        swap: Option<SwapFile>,
        on_failure: OnFailure,
    ) -> Result<Self, ReclaimError> {
        let ram = Arc::new(ram);
        let userfault = Arc::new(Userfault::new(Arc::clone(&ram))?);
        Reclaimer::with(ram, userfault, disks, swap, on_failure)
    }

    /// The same with `userfault` for the accesses to `ram`.
    pub(super) fn with(
        ram: Arc<Ram>,
        userfault: Arc<dyn Accesses>,
        disks: Disks,
        swap: Option<SwapFile>,
        on_failure: OnFailure,
    ) -> Result<Self, ReclaimError> {
        let num_pages = usize::try_from(ram.num_pages()).map_err(|_| RamError::Layout)?;
        let map = PageMap::new(num_pages).map_err(io::Error::other)?;
        let map = Arc::new(map);
        Ok(Reclaimer {
            words: Words::with(Arc::clone(&map), Arc::clone(&userfault)),
            transfers: TransferMap::new(num_pages),
            recent: Recent::new(num_pages),
            drops: Drops::default(),
            ram,
            userfault,
            disks,
            swap,
            metrics: Arc::default(),
            times: Arc::default(),
            room: Mutex::default(),
            visitors: Visitors::new()?,
            map,
            chunks: Mutex::default(),
            on_failure,
        })
    }

    /// What lets other processes have this memory.
    pub fn lender(self: &Arc<Self>) -> Lender {
        Lender::new(Arc::clone(self))
    }

    /// The guest cannot have `page` back.
    pub(super) fn fail(&self, page: u64, error: &io::Error) {
        self.metrics.lost.add(1);
        let page = page * PAGE_BYTES as u64;
        (self.on_failure)(&format!(
            "cannot bring back the page at {page:#x} of guest RAM's file: {error}"
        ));
    }

    /// What was done.
    pub fn metrics(&self) -> &Arc<ReclaimMetrics> {
        &self.metrics
    }

    /// How long that took.
    pub fn times(&self) -> &Arc<ReclaimTimes> {
        &self.times
    }

    /// Pages of the guest.
    pub fn num_pages(&self) -> u64 {
        self.ram.num_pages()
    }

    /// Whether there is a swap file.
    pub fn can_swap(&self) -> bool {
        self.swap.is_some()
    }

    /// The state of `page` now.
    pub fn state(&self, page: u64) -> Option<PageState> {
        self.words.peek(page)
    }

    /// Addresses and lengths, in the guest's memory and in bytes, of what was dropped since the last
    /// call.
    pub fn noted_drops(&self) -> Vec<(u64, u32)> {
        let address = |run: Range<u64>| {
            let len = (run.end - run.start) * PAGE_BYTES as u64;
            Some((self.ram.gpa_of_page(run.start)?, u32::try_from(len).ok()?))
        };
        let runs = self.drops.take().into_iter();
        runs.flat_map(|run| self.ram.runs(run).collect::<Vec<_>>())
            .filter_map(address)
            .collect()
    }

    /// Takes what it can of `pages` by `means`; the number of pages whose memory was freed.
    ///
    /// # Errors
    /// [`ReclaimError::Register`], [`ReclaimError::Io`] if nothing was freed. All pages have the bytes
    /// that they had.
    pub fn take(&self, pages: Range<u64>, means: Means) -> Result<u64, ReclaimError> {
        self.take_pages(pages, means, false)
    }

    /// The same without pages that had to come back since the last call.
    ///
    /// # Errors
    /// As [`Reclaimer::take`].
    pub fn take_unused(&self, pages: Range<u64>, means: Means) -> Result<u64, ReclaimError> {
        self.take_pages(pages, means, true)
    }

    /// Makes accesses to `chunk` wait for us, and learns what of it is in memory. False: another process
    /// is at it, which may not know yet that it has to look first.
    pub(super) fn watch_chunk(&self, chunk: u64) -> Result<bool, ReclaimError> {
        let mut chunks = self.chunks.lock();
        if chunks.contains(&chunk) {
            return Ok(true);
        }
        let pages = chunk * CHUNK_PAGES..((chunk + 1) * CHUNK_PAGES).min(self.ram.num_pages());
        self.userfault
            .register(pages.clone())
            .map_err(ReclaimError::Register)?;
        self.map.watch(chunk);
        if !self.visitors.wait_until_left() {
            return Ok(false);
        }
        chunks.insert(chunk);
        // From here on a first access waits, so what is a hole now stays one until we fill it.
        let mut start = pages.start;
        while start < pages.end {
            let end = pages.end.min(start + LOOK_PAGES);
            self.find_holes(start..end)?;
            start = end;
        }
        Ok(true)
    }

    /// Tells which of the holes in name are none. All of them are owned meanwhile: one that is given
    /// away after it was looked at would not be in memory any more.
    fn find_holes(&self, pages: Range<u64>) -> Result<(), ReclaimError> {
        let claim = |page| self.words.claim(page, |state| state == PageState::Hole);
        let claims: Vec<_> = pages.clone().filter_map(claim).collect();
        let mut in_memory = pages.start..pages.start;
        for claim in claims {
            let page = claim.page();
            if page >= in_memory.end {
                let first = self.ram.first_in_memory(page..pages.end)?;
                in_memory = match first {
                    Some(first) => first..self.ram.end_of_memory(first)?,
                    None => pages.end..pages.end,
                };
            }
            if in_memory.contains(&page) {
                claim.release(PageState::Resident);
            }
        }
        Ok(())
    }
}
