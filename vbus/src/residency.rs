//! Which pages of a VM are in memory, for a process that has its memory as well.
//!
//! A VM that gives memory back makes holes of pages, and brings them back for whoever accesses its own
//! mapping. Another process finds zeros in a hole, and makes them the guest's. So it looks first whether
//! a page is there, and while it looks and accesses it is in a *section*, which the VM waits for:
//!
//! ```text
//! process (a device's worker)            VM (takes a page)
//! enter: turn becomes odd                word of the page becomes owned
//! fence                                  fence
//! is the word plainly in memory?         wait until each turn that is odd has changed
//! access the page                        compare, punch
//! leave: turn becomes even
//! ```
//!
//! One of both sees the other. A page that is not there is wished for: the VM brings it in, and says so.
//! Nobody waits meanwhile: frames stay on their ring, or are dropped if they came from elsewhere. The VM
//! waits for the end of a section, which takes one frame, and leaves its pages alone if that takes long.
//!
//! | memory | who writes | what |
//! |---|---|---|
//! | [`PageMap`] | the VM | a word for each page, and one for each chunk of pages |
//! | [`Sections`] | both | turns and wishes |

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use parking_lot::Mutex;
use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::io::Errno;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::loan;
use crate::memory::{GuestRam, Region, RegionError, Words};
use crate::verbs::WakeUp;

/// Bits of a page's word that other processes go by. The rest is the VM's own.
pub mod word {
    /// One of the states below, or another one of a page that is not in memory.
    pub const STATE_MASK: u64 = 0xf;
    /// In memory; may be read and written.
    pub const RESIDENT: u64 = 1;
    /// In memory; may be read.
    pub const PROTECTED: u64 = 2;
    /// In memory for good; may be read and written.
    pub const KEPT: u64 = 5;
    /// Somebody is about to change what the state says.
    pub const OWNED: u64 = 1 << 4;
}

/// Pages of a chunk. Of one whose word is 0 nothing was ever taken, and no word of its pages counts.
pub const CHUNK_PAGES: u64 = 1 << 14;
const PAGE_BYTES: u64 = 4096;

const NUM_SECTIONS: usize = 128;
const NUM_WISHES: usize = 63;
/// A turn and the wishes of one section: its own cache lines.
const SECTION_BYTES: usize = 8 * (1 + NUM_WISHES);
/// Bytes of [`Sections`].
pub const SECTIONS_BYTES: usize = NUM_SECTIONS * SECTION_BYTES;

/// Bytes of the map of `num_pages`; `None`: no VM has so many.
pub fn map_bytes(num_pages: u64) -> Option<usize> {
    let num_words = num_pages.checked_add(num_pages.div_ceil(CHUNK_PAGES))?;
    usize::try_from(num_words.checked_mul(8)?).ok()
}

/// Where word `nth` is in a map, counted from word `first` on.
fn offset_of_word(first: u64, nth: u64) -> Option<usize> {
    usize::try_from(first.checked_add(nth)?.checked_mul(8)?).ok()
}

/// The words of a VM's pages, by place in the file of its RAM. Others can map them to read only.
#[derive(Debug)]
pub struct PageMap {
    region: Region,
    num_pages: usize,
    file: File,
}

impl PageMap {
    /// Of so many pages; all words are 0.
    ///
    /// # Errors
    /// [`RegionError`]: the host is out of memory or descriptors.
    pub fn new(num_pages: usize) -> Result<Self, RegionError> {
        let len = map_bytes(num_pages as u64).ok_or(RegionError::OutOfRange {
            start: 0,
            len: num_pages,
        })?;
        let (region, fd) = Region::new_unsealed(len)?;
        // After it was mapped: this one may be written to.
        fcntl_add_seals(&fd, SealFlags::FUTURE_WRITE | SealFlags::SEAL).map_err(|source| {
            RegionError::File {
                what: "seal",
                source,
            }
        })?;
        Ok(PageMap {
            region,
            num_pages,
            file: File::from(fd),
        })
    }

    /// From now on the words of the pages in `chunk` count.
    pub fn watch(&self, chunk: u64) {
        let num_chunks = self.num_pages().div_ceil(CHUNK_PAGES);
        if let Some(offset) = offset_of_word(self.num_pages(), chunk).filter(|_| chunk < num_chunks)
        {
            self.region.store(offset, 1, Release);
        }
    }

    /// How many pages.
    pub fn num_pages(&self) -> u64 {
        self.num_pages as u64
    }
}

impl AsRef<[AtomicU64]> for PageMap {
    /// The words of the pages.
    fn as_ref(&self) -> &[AtomicU64] {
        self.region.words(self.num_pages)
    }
}

impl AsFd for PageMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A page that somebody lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Its place in the file of the RAM, in pages.
    pub page: u64,
    /// It is to be written to.
    pub is_write: bool,
}

impl Wish {
    const fn encode(self) -> u64 {
        self.page << 2 | (self.is_write as u64) << 1 | 1
    }

    const fn decode(word: u64) -> Self {
        Wish {
            page: word >> 2,
            is_write: word & 2 != 0,
        }
    }
}

/// Turns and wishes, in memory that a VM shares with one process.
#[derive(Debug, Clone)]
pub struct Sections<M = Region> {
    memory: M,
}

impl<M: Words> Sections<M> {
    /// In `memory` of [`SECTIONS_BYTES`].
    pub fn new(memory: M) -> Self {
        Sections { memory }
    }

    /// Begins a section of whoever owns the number `nth`.
    pub fn enter(&self, nth: usize) {
        let turn = self.memory.load(turn_at(nth), Relaxed);
        // Whatever the VM wrote there, it is odd now.
        self.memory
            .store(turn_at(nth), turn.wrapping_add(1) | 1, Relaxed);
        self.memory.fence();
    }

    /// Ends it.
    pub fn leave(&self, nth: usize) {
        let turn = self.memory.load(turn_at(nth), Relaxed);
        self.memory
            .store(turn_at(nth), turn.wrapping_add(1) & !1, Release);
    }

    /// Waits until all sections are over that began before a word was changed, or until `may_wait` says
    /// no, and then answers false.
    pub fn wait_until_left(&self, mut may_wait: impl FnMut() -> bool) -> bool {
        self.memory.fence();
        (0..NUM_SECTIONS).all(|nth| {
            let turn = self.memory.load(turn_at(nth), Acquire);
            while turn % 2 == 1 && self.memory.load(turn_at(nth), Acquire) == turn {
                if !may_wait() {
                    return false;
                }
            }
            true
        })
    }

    /// Wishes for pages, as many as there is room for. Whether the VM has to be told: it has not been told
    /// of all of them, or there are none, and then it says that they are granted at once.
    pub fn wish(&self, nth: usize, wishes: impl Iterator<Item = Wish>) -> bool {
        let mut places = 0..NUM_WISHES;
        let mut num_known = 0;
        let mut num_wishes = 0;
        for wish in wishes {
            let wish = wish.encode();
            let Some(place) = places.find(|place| {
                let there = self.memory.load(wish_at(nth, *place), Relaxed);
                there == 0 || there == wish
            }) else {
                break;
            };
            // The VM may have taken the same one since: then it has to be told of this one.
            let before = self.memory.swap(wish_at(nth, place), wish, AcqRel);
            num_wishes += 1;
            num_known += u64::from(before == wish);
        }
        num_wishes == 0 || num_known < num_wishes
    }

    /// Takes all wishes.
    pub fn take_wishes(&self) -> Vec<Wish> {
        let in_use = |nth: &usize| self.memory.load(turn_at(*nth), Relaxed) != 0;
        let places = (0..NUM_SECTIONS).filter(in_use).flat_map(|nth| {
            let places = 0..NUM_WISHES;
            places.map(move |place| wish_at(nth, place))
        });
        let is_wish = |offset: &usize| self.memory.load(*offset, Relaxed) != 0;
        let take = |offset| Wish::decode(self.memory.swap(offset, 0, AcqRel));
        places.filter(is_wish).map(take).collect()
    }
}

const fn turn_at(nth: usize) -> usize {
    nth * SECTION_BYTES
}

const fn wish_at(nth: usize, place: usize) -> usize {
    turn_at(nth) + 8 * (1 + place)
}

/// What a VM shares with one process, which it waits for.
#[derive(Debug)]
pub struct Visit {
    sections: Sections,
    file: File,
}

impl Visit {
    /// Nobody is in a section yet.
    ///
    /// # Errors
    /// [`RegionError`]: the host is out of memory or descriptors.
    pub fn new() -> Result<Self, RegionError> {
        let (region, fd) = Region::new_shared(SECTIONS_BYTES)?;
        Ok(Visit {
            sections: Sections::new(region),
            file: File::from(fd),
        })
    }

    /// The sections.
    pub fn sections(&self) -> &Sections {
        &self.sections
    }

    /// The file to give away.
    ///
    /// # Errors
    /// The host is out of descriptors, or has no `/proc`.
    pub fn lend(&self) -> Result<OwnedFd, Errno> {
        loan::lend(&self.file)
    }

    /// Whether a process has them still, once they were lent. It may be in a section for ever if not.
    pub fn is_lent(&self) -> bool {
        loan::is_file_lent(&self.file)
    }
}

/// The pages of a VM, as another process sees them.
pub struct Residency {
    map: Region,
    num_pages: u64,
    sections: Sections,
    /// Numbers of sections that nobody has.
    free: Mutex<Vec<usize>>,
    /// Tells the VM that there are wishes.
    asked: Arc<dyn WakeUp>,
    served: Arc<EventFd>,
}

impl std::fmt::Debug for Residency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Residency")
            .field("num_pages", &self.num_pages)
            .finish_non_exhaustive()
    }
}

impl Residency {
    /// From the files of the [`PageMap`] of `num_pages` and of the [`Visit`]. `asked` is how to tell the
    /// VM of wishes; it makes `served` readable after it has brought pages in.
    ///
    /// # Errors
    /// [`RegionError`]: one of the files is none that can be mapped without danger, or is too short.
    pub fn new(
        num_pages: u64,
        (map, sections): (OwnedFd, OwnedFd),
        asked: Arc<dyn WakeUp>,
        served: EventFd,
    ) -> Result<Arc<Self>, RegionError> {
        let start = num_pages;
        let len = map_bytes(num_pages).ok_or(RegionError::OutOfRange { start, len: 0 })?;
        Ok(Arc::new(Residency {
            map: Region::from_memfd_to_read(map, len)?,
            num_pages,
            sections: Sections::new(Region::from_memfd(sections, SECTIONS_BYTES)?),
            free: Mutex::new((0..NUM_SECTIONS).rev().collect()),
            asked,
            served: Arc::new(served),
        }))
    }

    /// A section for one that accesses the memory; `None`: all are in use.
    pub fn access(self: &Arc<Self>) -> Option<Access> {
        let nth = self.free.lock().pop()?;
        // The VM looks for wishes where there was a section.
        self.sections.enter(nth);
        self.sections.leave(nth);
        Some(Access {
            residency: Arc::clone(self),
            nth,
        })
    }

    /// Readable after wishes were granted. It is the VM's, and never read, since a read could block.
    pub fn served(&self) -> &Arc<EventFd> {
        &self.served
    }

    fn has(&self, wish: Wish) -> bool {
        let Wish { page, is_write } = wish;
        let chunk = offset_of_word(self.num_pages, page / CHUNK_PAGES);
        let (Some(word), Some(chunk), true) =
            (offset_of_word(0, page), chunk, page < self.num_pages)
        else {
            return true; // other memory
        };
        if self.map.load(chunk, Acquire) == 0 {
            return true;
        }
        let word = self.map.load(word, Acquire);
        match word & (word::STATE_MASK | word::OWNED) {
            word::RESIDENT | word::KEPT => true,
            word::PROTECTED => !is_write,
            _ => false,
        }
    }
}

/// The right to access the memory of a VM now and then, for one thread at a time.
#[derive(Debug)]
pub struct Access {
    residency: Arc<Residency>,
    nth: usize,
}

impl Access {
    /// Begins a section: pages that [`Access::has`] finds in memory stay there until the result is
    /// dropped. One at a time.
    pub fn enter(&self) -> Inside<'_> {
        self.residency.sections.enter(self.nth);
        Inside { access: self }
    }

    /// Asks the VM to bring in those pages of `ranges` that are not there, as far as there is room for
    /// wishes. Ranges are an address and a length.
    pub fn wish(&self, ram: &GuestRam, ranges: impl Iterator<Item = (u64, u32)>, is_write: bool) {
        let pages = ranges.flat_map(|(gpa, len)| pages(ram, gpa, len));
        // Buffers that follow each other are often in one page.
        let mut last = None;
        let pages = pages.filter(|page| last.replace(*page) != Some(*page));
        let wishes = pages.map(|page| Wish { page, is_write });
        let lacking = wishes.filter(|wish| !self.residency.has(*wish));
        if self.residency.sections.wish(self.nth, lacking) {
            self.residency.asked.wake();
        }
    }

    /// Whether all pages of the `len` bytes from `gpa` on are in memory, and if `is_write` can be written
    /// to. Addresses of no memory are. That holds until the end of the section in which it is asked.
    pub fn has(&self, ram: &GuestRam, gpa: u64, len: u32, is_write: bool) -> bool {
        pages(ram, gpa, len).all(|page| self.residency.has(Wish { page, is_write }))
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        self.residency.free.lock().push(self.nth);
    }
}

/// A section.
#[derive(Debug)]
pub struct Inside<'a> {
    access: &'a Access,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.access.residency.sections.leave(self.access.nth);
    }
}

/// The pages of the `len` bytes, which are no more than a frame or a buffer has, from `gpa` on, by place
/// in their file.
fn pages(ram: &GuestRam, gpa: u64, len: u32) -> impl Iterator<Item = u64> {
    let last = gpa.saturating_add(u64::from(len)).saturating_sub(1);
    let frames = gpa / PAGE_BYTES..=last / PAGE_BYTES;
    frames.filter_map(|frame| {
        let (region, offset) = ram.to_region_addr(GuestAddress(frame * PAGE_BYTES))?;
        Some((region.file_offset()?.start() + offset.0) / PAGE_BYTES)
    })
}

#[cfg(test)]
mod tests;
