//! The host's word for each page of guest RAM: what its bytes are, and who works on it.
//!
//! ```text
//! bit  63          16 15       8 7       6        5       4      3     0
//!     | address      | disk     |   | written | waited | owned | state |
//! ```
//!
//! A page has at most one owner. An owner holds a [`Claim`]; everybody else leaves the page alone. A
//! fault that finds an owner marks the word as *waited* and is done: the owner wakes whoever waits for
//! the page when it lets go, and the access is tried again and faults again if it has to. So nobody
//! queues faults, and nobody waits for an owner with a lock held.
//!
//! What makes a drop right is in [`super`]; here is only who may change what:
//!
//! | from | to | by |
//! |---|---|---|
//! | any, not owned | the same, owned | [`Words::claim`], [`Words::meet`], [`Words::pin`] |
//! | owned | the same, *waited*, for a write also *written* | [`Words::meet`], [`Words::pin`] |
//! | owned, not *written* | another state, owned | [`Claim::publish`] |
//! | owned | any state, free | [`Claim::release`], or the state before if the claim is dropped |
//! | resident, not owned | the same with one pin more or less | [`Words::pin`], [`Words::unpin`] |
//!
//! A resident page has no backing, so its word has room for a count of pins: transfers under way, for
//! which it has to stay. [`Words::claim`] leaves a pinned page alone.
//!
//! Words are in memory of the host that no guest can map, and other processes of the host can only read
//! (the numbers of the states that mean something to them are in [`vbus::residency::word`]).

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicU64, Ordering};

use vbus::residency::word::{KEPT, OWNED, PROTECTED, RESIDENT, STATE_MASK};

const WAITED: u64 = 1 << 5;
const WRITTEN: u64 = 1 << 6;
const FLAGS: u64 = OWNED | WAITED | WRITTEN;
const DISK_SHIFT: u32 = 8;
const ADDRESS_SHIFT: u32 = 16;
/// Addresses of a backing are below: sectors of 512 bytes, or slots.
pub const NUM_ADDRESSES: u64 = 1 << (u64::BITS - ADDRESS_SHIFT);

/// Where the bytes of a page are as well as in memory, or instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backing {
    /// Number of the disk.
    pub disk: u8,
    /// First sector, of 512 bytes, below [`NUM_ADDRESSES`].
    pub sector: u64,
}

/// What the bytes of a page are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// Zeros, and no memory is used for them.
    Hole,
    /// What is in memory. Nothing else is known.
    Resident,
    /// The same, and so many transfers are under way, below [`NUM_ADDRESSES`] and above 0.
    Pinned(u64),
    /// What is in memory, which is write-protected and was proved to be the same as the backing.
    Proved(Backing),
    /// Those of the backing; no memory is used.
    Dropped(Backing),
    /// Those of a slot of the swap file, whose number is below [`NUM_ADDRESSES`]; no memory is used.
    Swapped(u64),
    /// What is in memory, which is never taken away.
    Kept,
}

impl PageState {
    const fn encode(self) -> u64 {
        const fn with(state: u64, disk: u8, address: u64) -> u64 {
            state | (disk as u64) << DISK_SHIFT | address << ADDRESS_SHIFT
        }
        match self {
            PageState::Hole => 0,
            PageState::Resident => RESIDENT,
            PageState::Pinned(pins) => with(RESIDENT, 0, pins),
            PageState::Proved(backing) => with(PROTECTED, backing.disk, backing.sector),
            PageState::Dropped(backing) => with(3, backing.disk, backing.sector),
            PageState::Swapped(slot) => with(4, 0, slot),
            PageState::Kept => KEPT,
        }
    }

    const fn decode(word: u64) -> Self {
        let address = word >> ADDRESS_SHIFT;
        let backing = Backing {
            disk: word.to_le_bytes()[1],
            sector: address,
        };
        match word & STATE_MASK {
            0 => PageState::Hole,
            RESIDENT if address == 0 => PageState::Resident,
            RESIDENT => PageState::Pinned(address),
            PROTECTED => PageState::Proved(backing),
            3 => PageState::Dropped(backing),
            4 => PageState::Swapped(address),
            _ => PageState::Kept,
        }
    }

    /// Whether the page takes memory of the host.
    pub fn is_in_memory(self) -> bool {
        match self {
            PageState::Resident | PageState::Pinned(_) | PageState::Proved(_) | PageState::Kept => {
                true
            }
            PageState::Hole | PageState::Dropped(_) | PageState::Swapped(_) => false,
        }
    }
}

/// A 64-bit atomic: the processor's, or that of a model checker.
pub trait Word {
    /// Loads.
    fn load(&self, order: Ordering) -> u64;
    /// Exchanges `current` for `new`, or answers what is there.
    ///
    /// # Errors
    /// Something else than `current`.
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64>;
}

impl Word for AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        #[cfg(test)]
        super::tests::simulation::take_turns();
        AtomicU64::load(self, order)
    }

    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        #[cfg(test)]
        super::tests::simulation::take_turns();
        AtomicU64::compare_exchange(self, current, new, success, failure)
    }
}

/// Lets those go on who wait for a page to have no owner.
pub trait Wake {
    /// Whoever accesses `page` tries again.
    fn wake(&self, page: u64);
}

/// Where words are.
trait Storage<W>: Send + Sync {
    fn words(&self) -> &[W];
}

impl<W, T: Deref<Target: AsRef<[W]>> + Send + Sync> Storage<W> for T {
    fn words(&self) -> &[W] {
        self.deref().as_ref()
    }
}

/// The words of all pages, by page number: the offset in the memory file, in pages.
pub struct Words<K, W = AtomicU64> {
    words: Box<dyn Storage<W>>,
    waker: K,
}

impl<K, W> Words<K, W> {
    fn all(&self) -> &[W] {
        self.words.words()
    }
}

impl<K, W> fmt::Debug for Words<K, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Words")
            .field("num_pages", &self.all().len())
            .finish_non_exhaustive()
    }
}

/// What an access to a page meets.
#[derive(Debug)]
pub enum Met<'a, K: Wake, W: Word> {
    /// Nobody: the page is the caller's.
    Free(Claim<'a, K, W>),
    /// An owner, who will wake those who wait for the page.
    Owned,
}

impl<K: Wake> Words<K> {
    /// Words of `num_pages` holes. Takes 8 bytes of memory for each page once it is written to.
    pub fn new(num_pages: usize, waker: K) -> Self {
        Words::with(
            std::iter::repeat_with(AtomicU64::default)
                .take(num_pages)
                .collect::<Box<[_]>>(),
            waker,
        )
    }
}

impl<K: Wake, W: Word> Words<K, W> {
    /// Words of holes in `words`, which are 0.
    pub fn with(words: impl Deref<Target: AsRef<[W]>> + Send + Sync + 'static, waker: K) -> Self {
        let words = Box::new(words);
        Words { words, waker }
    }

    /// Number of pages.
    pub fn len(&self) -> usize {
        self.all().len()
    }

    /// Whether there is no page.
    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    /// Who wakes.
    pub fn waker(&self) -> &K {
        &self.waker
    }

    /// Whether `page` has an owner who knows that somebody waits. False after [`Met::Owned`] and
    /// [`Pin::Owned`] means that this owner let go; the page may have the next one, who will wake nobody
    /// that does not ask again.
    pub fn is_waited_for(&self, page: u64) -> bool {
        let mark = OWNED | WAITED;
        self.word(page)
            .is_some_and(|word| word.load(Acquire) & mark == mark)
    }

    fn word(&self, page: u64) -> Option<&W> {
        self.all().get(usize::try_from(page).ok()?)
    }

    /// The state of `page` now, for counting and display: it may change any time. `None`: no page.
    pub fn peek(&self, page: u64) -> Option<PageState> {
        Some(PageState::decode(self.word(page)?.load(Relaxed)))
    }

    /// Owns `page` if nobody does and `wants` its state.
    pub fn claim(&self, page: u64, wants: impl Fn(PageState) -> bool) -> Option<Claim<'_, K, W>> {
        let word = self.word(page)?;
        let mut seen = word.load(Relaxed);
        loop {
            let state = PageState::decode(seen);
            if seen & OWNED != 0 || !wants(state) {
                return None;
            }
            match word.compare_exchange(seen, seen | OWNED, AcqRel, Relaxed) {
                Ok(_) => return Some(self.owner(page, word, state)),
                Err(other) => seen = other,
            }
        }
    }

    /// Owns `page`, or leaves word with its owner that somebody waits to read it, or to write to it.
    /// `None`: no such page.
    pub fn meet(&self, page: u64, is_write: bool) -> Option<Met<'_, K, W>> {
        let word = self.word(page)?;
        let mark = WAITED | if is_write { WRITTEN } else { 0 };
        let mut seen = word.load(Relaxed);
        loop {
            let is_owned = seen & OWNED != 0;
            let new = seen | if is_owned { mark } else { OWNED };
            match word.compare_exchange(seen, new, AcqRel, Relaxed) {
                Ok(_) if is_owned => return Some(Met::Owned),
                Ok(_) => {
                    let state = PageState::decode(seen);
                    return Some(Met::Free(self.owner(page, word, state)));
                }
                Err(other) => seen = other,
            }
        }
    }

    /// Keeps `page` where it is until as many calls of [`Words::unpin`]. If it is not plainly in
    /// memory the caller owns it, and makes it [`PageState::Pinned`]. `None`: no such page.
    pub fn pin(&self, page: u64) -> Option<Pin<'_, K, W>> {
        let word = self.word(page)?;
        let mut seen = word.load(Relaxed);
        loop {
            let state = PageState::decode(seen);
            let (new, is_pin) = match state {
                _ if seen & OWNED != 0 => (seen | WAITED | WRITTEN, false),
                PageState::Kept => return Some(Pin::Done),
                PageState::Resident => (PageState::Pinned(1).encode(), true),
                PageState::Pinned(pins) => (PageState::Pinned(pins + 1).encode(), true),
                _ => (seen | OWNED, false),
            };
            match word.compare_exchange(seen, new, AcqRel, Relaxed) {
                Ok(_) if is_pin => return Some(Pin::Done),
                Ok(_) if seen & OWNED != 0 => return Some(Pin::Owned),
                Ok(_) => return Some(Pin::Absent(self.owner(page, word, state))),
                Err(other) => seen = other,
            }
        }
    }

    /// Takes back one [`Words::pin`] of `page`.
    pub fn unpin(&self, page: u64) {
        let Some(word) = self.word(page) else { return };
        let mut seen = word.load(Relaxed);
        while let PageState::Pinned(pins) = PageState::decode(seen) {
            let state = match pins {
                1 => PageState::Resident,
                more => PageState::Pinned(more - 1),
            };
            // Also while somebody owns it, who serves a fault and leaves the state as it is.
            let new = state.encode() | seen & FLAGS;
            match word.compare_exchange(seen, new, AcqRel, Relaxed) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }

    fn owner<'a>(&'a self, page: u64, word: &'a W, state: PageState) -> Claim<'a, K, W> {
        Claim {
            words: self,
            word,
            page,
            state,
            next: None,
        }
    }
}

/// How a page is after [`Words::pin`].
#[derive(Debug)]
pub enum Pin<'a, K: Wake, W: Word> {
    /// It stays.
    Done,
    /// Not pinned: an owner, who will wake those who wait for the page.
    Owned,
    /// Not pinned yet: it is not in memory, or is protected, and the caller's.
    Absent(Claim<'a, K, W>),
}

/// Ownership of a page. Dropping it leaves the state as it is.
pub struct Claim<'a, K: Wake, W: Word = AtomicU64> {
    words: &'a Words<K, W>,
    word: &'a W,
    page: u64,
    state: PageState,
    /// What it becomes, if not what it is.
    next: Option<PageState>,
}

impl<K: Wake, W: Word> fmt::Debug for Claim<'_, K, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("page", &self.page)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl<K: Wake, W: Word> Claim<'_, K, W> {
    /// The page.
    pub fn page(&self) -> u64 {
        self.page
    }

    /// Its state.
    pub fn state(&self) -> PageState {
        self.state
    }

    /// Whether somebody has tried to write to the page since it was claimed.
    pub fn is_written(&self) -> bool {
        self.word.load(Acquire) & WRITTEN != 0
    }

    /// Makes `state` the page's, which stays owned; false, and nothing changes, if somebody has tried
    /// to write to it since it was claimed.
    #[must_use = "a page that is written to keeps its state"]
    pub fn publish(&mut self, state: PageState) -> bool {
        let mut seen = self.word.load(Relaxed);
        loop {
            if seen & WRITTEN != 0 {
                return false;
            }
            let new = state.encode() | seen & FLAGS;
            match self.word.compare_exchange(seen, new, AcqRel, Relaxed) {
                Ok(_) => {
                    self.state = state;
                    return true;
                }
                Err(other) => seen = other,
            }
        }
    }

    /// Makes `state` the page's, lets go of it and wakes whoever waits.
    pub fn release(mut self, state: PageState) {
        self.next = Some(state);
    }
}

impl<K: Wake, W: Word> Drop for Claim<'_, K, W> {
    fn drop(&mut self) {
        let mut seen = self.word.load(Relaxed);
        loop {
            let state = self.next.map_or(seen & !FLAGS, PageState::encode);
            match self.word.compare_exchange(seen, state, AcqRel, Relaxed) {
                Ok(_) => break,
                Err(other) => seen = other,
            }
        }
        if seen & WAITED != 0 {
            self.words.waker.wake(self.page);
        }
    }
}
