//! Takes pages of a guest out of memory.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use alacrity_devices::metrics::Counter;
use rustix::io::Errno;

use super::backing::{Disks, TransferMap};
use super::ram::{PAGE_BYTES, Ram, RamError};
use super::swap_file::{PageBuffer, SwapFile};
use super::userfault::{Userfault, UserfaultError};
use super::word::{Claim, PageState, Wake, Words};

/// Accesses are made to wait in units of so many pages, 64 MiB, on first use.
const CHUNK_PAGES: u64 = 1 << 14;
/// Protected and punched at once, at most.
const MAX_RUN_PAGES: u64 = 64;

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
#[derive(Debug, Default)]
pub struct ReclaimMetrics {
    /// Proved to equal their backing, and dropped.
    pub dropped: Counter,
    /// Written to the swap file and dropped.
    pub swapped_out: Counter,
    /// Found to be zeros and dropped.
    pub zeros_dropped: Counter,
    /// Left alone: they are not what was read from or written to disk last.
    pub unequal: Counter,
    /// Left alone: their sectors are about to change.
    pub changing: Counter,
    /// Left alone: somebody wrote to them meanwhile.
    pub written_meanwhile: Counter,
    /// Left alone: the memory could not be freed.
    pub unpunched: Counter,
    /// Read back from a disk.
    pub refilled: Counter,
    /// Read back from the swap file.
    pub swapped_in: Counter,
    /// Given zeros on first access.
    pub zero_filled: Counter,
    /// Whose writers were let go on.
    pub unprotected: Counter,
    /// Mapped again, which were in memory.
    pub mapped: Counter,
    /// Rebuilt before their sectors changed.
    pub rescued: Counter,
    /// Found in memory where a hole should have been, and mended. Always 0.
    pub mended: Counter,
    /// Whose bytes could not be read back, which ends the VM.
    pub lost: Counter,
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
#[derive(Debug)]
pub struct Waker {
    userfault: Arc<Userfault>,
    lock: Mutex<()>,
    released: Condvar,
}

impl Waker {
    /// Waits as long as `is_owned`.
    pub(super) fn wait_while(&self, is_owned: impl Fn() -> bool) {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.released.wait_while(guard, |()| is_owned());
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Wake for Waker {
    fn wake(&self, page: u64) {
        // With the lock: nobody is between its look and its sleep.
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.released.notify_all();
        if let Err(errno) = self.userfault.wake(page) {
            tracing::error!("cannot wake those who wait for page {page}: {errno}");
        }
    }
}

/// Ends the VM: it says why.
pub type OnFailure = Box<dyn Fn(&str) + Send + Sync>;

/// Takes memory of one guest, and knows what it took.
pub struct Reclaimer {
    pub(super) ram: Arc<Ram>,
    pub(super) userfault: Arc<Userfault>,
    pub(super) words: Words<Waker>,
    pub(super) disks: Disks,
    pub(super) transfers: TransferMap,
    pub(super) swap: Option<SwapFile>,
    pub(super) metrics: ReclaimMetrics,
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

/// A page that was taken, and its bytes.
type Taken<'a> = (Claim<'a, Waker>, PageBuffer);

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
        let num_pages = usize::try_from(ram.num_pages()).map_err(|_| RamError::Layout)?;
        let ram = Arc::new(ram);
        let userfault = Arc::new(Userfault::new(Arc::clone(&ram))?);
        let waker = Waker {
            userfault: Arc::clone(&userfault),
            lock: Mutex::default(),
            released: Condvar::new(),
        };
        Ok(Reclaimer {
            words: Words::new(num_pages, waker),
            transfers: TransferMap::new(num_pages),
            ram,
            userfault,
            disks,
            swap,
            metrics: ReclaimMetrics::default(),
            chunks: Mutex::default(),
            on_failure,
        })
    }

    /// The guest cannot have `page` back.
    pub(super) fn fail(&self, page: u64, error: &io::Error) {
        let page = page * PAGE_BYTES as u64;
        (self.on_failure)(&format!(
            "cannot bring back the page at {page:#x} of guest RAM's file: {error}"
        ));
    }

    /// What was done.
    pub fn metrics(&self) -> &ReclaimMetrics {
        &self.metrics
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

    /// Takes what it can of `pages` by `means`; the number of pages whose memory was freed.
    ///
    /// # Errors
    /// [`ReclaimError::Register`], [`ReclaimError::Io`] if nothing was freed. All pages have the bytes
    /// that they had.
    pub fn take(&self, pages: Range<u64>, means: Means) -> Result<u64, ReclaimError> {
        let mut num_freed = 0;
        for run in self.ram.runs(pages) {
            let mut start = run.start;
            while start < run.end {
                self.watch_chunk(start / CHUNK_PAGES)?;
                let chunk_end = (start / CHUNK_PAGES + 1) * CHUNK_PAGES;
                let end = run.end.min(start + MAX_RUN_PAGES).min(chunk_end);
                num_freed += self.take_run(start..end, means)?;
                start = end;
            }
        }
        Ok(num_freed)
    }

    /// Makes accesses to `chunk` wait for us, and learns what of it is in memory.
    fn watch_chunk(&self, chunk: u64) -> Result<(), ReclaimError> {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        if chunks.contains(&chunk) {
            return Ok(());
        }
        let pages = chunk * CHUNK_PAGES..((chunk + 1) * CHUNK_PAGES).min(self.ram.num_pages());
        self.userfault
            .register(pages.clone())
            .map_err(ReclaimError::Register)?;
        chunks.insert(chunk);
        // From here on a first access waits, so what is a hole now stays one until we fill it.
        let mut from = pages.start;
        while let Some(first) = self.ram.first_in_memory(from..pages.end)? {
            let end = self.ram.end_of_memory(first)?.min(pages.end);
            for page in first..end {
                if let Some(claim) = self.words.claim(page, |state| state == PageState::Hole) {
                    claim.release(PageState::Resident);
                }
            }
            from = end;
        }
        Ok(())
    }

    /// As [`Reclaimer::take`], of pages that are mapped as one.
    fn take_run(&self, pages: Range<u64>, means: Means) -> Result<u64, ReclaimError> {
        let mut num_freed = 0;
        let mut claims = Vec::new();
        for page in pages {
            let wants = |state| match state {
                PageState::Proved(_) => true,
                PageState::Resident => means == Means::Swap || self.transfers.get(page).is_some(),
                _ => false,
            };
            match self.words.claim(page, wants) {
                Some(claim) => claims.push(claim),
                None => num_freed += self.take_claimed(std::mem::take(&mut claims), means)?,
            }
        }
        Ok(num_freed + self.take_claimed(claims, means)?)
    }

    /// Takes pages in memory that follow each other.
    fn take_claimed(
        &self,
        claims: Vec<Claim<'_, Waker>>,
        means: Means,
    ) -> Result<u64, ReclaimError> {
        let (Some(first), Some(last)) = (claims.first(), claims.last()) else {
            return Ok(0);
        };
        let pages = first.page()..last.page() + 1;
        self.userfault.protect(pages).map_err(io::Error::from)?;
        let mut taken = Vec::new();
        let mut failed = None;
        for mut claim in claims {
            let mut bytes = PageBuffer::default();
            match self.place(&mut claim, &mut bytes, means) {
                Ok(true) => taken.push((claim, bytes)),
                Ok(false) => self.let_write(claim),
                Err(error) => {
                    failed = Some(error);
                    self.let_write(claim);
                }
            }
        }
        let num_freed = self.punch(taken);
        match failed {
            Some(error) if num_freed == 0 => Err(error.into()),
            _ => Ok(num_freed),
        }
    }

    /// Finds another place for the bytes of a protected page; false if there is none.
    fn place(
        &self,
        claim: &mut Claim<'_, Waker>,
        bytes: &mut PageBuffer,
        means: Means,
    ) -> io::Result<bool> {
        self.ram.read(claim.page(), &mut bytes.0)?;
        if let PageState::Proved(backing) = claim.state() {
            return Ok(self.publish(claim, PageState::Dropped(backing)));
        }
        if bytes.0 == [0; PAGE_BYTES] {
            return Ok(self.publish(claim, PageState::Hole));
        }
        if self.drop_to_backing(claim, bytes) {
            return Ok(true);
        }
        let Some(swap) = self.swap.as_ref().filter(|_| means == Means::Swap) else {
            return Ok(false);
        };
        let Some(slot) = swap.store(bytes)? else {
            return Ok(false);
        };
        let is_published = self.publish(claim, PageState::Swapped(slot));
        if !is_published {
            swap.free(slot);
        }
        Ok(is_published)
    }

    /// Proves that a protected page has the bytes of its backing.
    fn drop_to_backing(&self, claim: &mut Claim<'_, Waker>, bytes: &PageBuffer) -> bool {
        let page = claim.page();
        let Some(backing) = self.transfers.get(page) else {
            return false;
        };
        // Before the bytes are compared: whoever changes them from now on says so first.
        if !self.disks.depend(backing, page) {
            self.metrics.changing.add(1);
            return false;
        }
        let mut backed = PageBuffer::default();
        // If it cannot be read now it could not be later.
        let is_equal = self.disks.read(backing, &mut backed).is_ok() && backed.0 == bytes.0;
        if !is_equal {
            self.metrics.unequal.add(1);
            self.transfers.set(page, None);
        }
        let is_dropped = is_equal && self.publish(claim, PageState::Dropped(backing));
        if !is_dropped {
            self.disks.forget(backing, page);
        }
        is_dropped
    }

    fn publish(&self, claim: &mut Claim<'_, Waker>, state: PageState) -> bool {
        let is_published = claim.publish(state);
        if !is_published {
            self.metrics.written_meanwhile.add(1);
        }
        is_published
    }

    /// Lets go of a page that stays in memory.
    fn let_write(&self, claim: Claim<'_, Waker>) {
        let page = claim.page();
        if let PageState::Proved(backing) | PageState::Dropped(backing) = claim.state() {
            self.disks.forget(backing, page);
        }
        if let Err(errno) = self.userfault.unprotect(page..page + 1) {
            // It is tried again when somebody writes.
            tracing::warn!("cannot let a guest write to page {page}: {errno}");
        }
        claim.release(PageState::Resident);
    }

    /// Frees the memory of pages whose bytes are elsewhere; how many were freed.
    fn punch(&self, taken: Vec<Taken<'_>>) -> u64 {
        let mut num_freed = 0;
        let mut rest = taken.into_iter().peekable();
        while let Some(first) = rest.next() {
            let start = first.0.page();
            let mut end = start + 1;
            let mut run = vec![first];
            while let Some(next) = rest.next_if(|(claim, _)| claim.page() == end) {
                end += 1;
                run.push(next);
            }
            let is_punched = self.ram.punch(start..end).is_ok();
            for taken in run {
                num_freed += u64::from(self.settle(taken, is_punched));
            }
        }
        num_freed
    }

    /// Lets go of a page that was punched; false if it is still in memory, where huge pages that
    /// cannot be split are zeroed instead.
    fn settle(&self, (claim, bytes): Taken<'_>, is_punched: bool) -> bool {
        let (page, state) = (claim.page(), claim.state());
        let is_hole = is_punched && matches!(self.ram.first_in_memory(page..page + 1), Ok(None));
        if is_hole {
            match state {
                PageState::Hole => self.metrics.zeros_dropped.add(1),
                PageState::Dropped(_) => self.metrics.dropped.add(1),
                _ => self.metrics.swapped_out.add(1),
            }
            return true;
        }
        self.metrics.unpunched.add(1);
        match self.ram.write(page, &bytes.0) {
            Ok(()) => {
                if let (PageState::Swapped(slot), Some(swap)) = (state, &self.swap) {
                    swap.free(slot);
                }
                self.let_write(claim);
            }
            // Its bytes are where its state says, and whoever accesses it gets them from there.
            Err(error) => tracing::error!("cannot restore page {page}: {error}"),
        }
        false
    }
}
