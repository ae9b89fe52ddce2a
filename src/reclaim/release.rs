//! Memory that the guest gives away, by the release ring of `page-hints`.
//!
//! The guest owns a block, so nobody has to be shut out of it: whatever its pages were, they are holes
//! afterwards, their slots of the swap file are free, and nothing depends on a disk for them. A page that
//! somebody else works on, or that a transfer is under way for, is left as it is.
//!
//! Most blocks are in chunks that nobody watches yet. There every page that was never in a transfer is
//! called a hole, whatever it is, and needs no more than to be punched: who touches it gets zeros from
//! the kernel. If its chunk begins to be watched meanwhile, that passes over pages with an owner, which
//! is why those that are in memory in the end are called resident.

use std::ops::Range;
use std::sync::Arc;

use alacrity_devices::hints::{Keeper, KnownDisk, NotRam, Released};
use vbus::abi::hints::SERIAL_BYTES;

use super::ram::PAGE_BYTES;
use super::reclaimer::{Reclaimer, Waker};
use super::word::{Claim, PageState};

const PAGE_LEN: u64 = PAGE_BYTES as u64;

/// A disk that words of the guest may name.
#[derive(Debug, Clone, Copy)]
pub struct HintedDisk {
    /// What the guest knows it by, filled up with zeros.
    pub serial: [u8; SERIAL_BYTES],
    /// From [`super::backing::Disks::add`].
    pub number: u8,
    /// Sectors of 512 bytes.
    pub num_sectors: u64,
}

/// The memory of one guest, for its `page-hints`.
#[derive(Debug)]
pub struct GuestMemory {
    reclaimer: Arc<Reclaimer>,
    disks: Vec<HintedDisk>,
}

impl GuestMemory {
    /// What `reclaimer` has. Words may name `disks`; those without a serial number cannot be named.
    pub fn new(reclaimer: Arc<Reclaimer>, disks: Vec<HintedDisk>) -> Self {
        GuestMemory { reclaimer, disks }
    }
}

impl Keeper for GuestMemory {
    fn num_pages(&self) -> u64 {
        self.reclaimer.ram.num_gfns()
    }

    fn release(&self, gpa: u64, len: u64) -> Result<Released, NotRam> {
        let ram = &self.reclaimer.ram;
        let first = ram.page_of_gfn(gpa / PAGE_LEN).ok_or(NotRam)?;
        let end = first.checked_add(len / PAGE_LEN).ok_or(NotRam)?;
        if ram.runs(first..end).next() != Some(first..end) {
            return Err(NotRam);
        }
        let release = || self.reclaimer.release(first..end);
        Ok(self.reclaimer.times.release.time(release))
    }

    fn disk(&self, serial: &[u8; SERIAL_BYTES]) -> Option<KnownDisk> {
        let mut named = self.disks.iter().filter(|disk| disk.serial != [0; _]);
        let disk = named.find(|disk| disk.serial == *serial)?;
        Some(KnownDisk {
            number: disk.number,
            num_sectors: disk.num_sectors,
        })
    }
}

impl Reclaimer {
    /// Makes holes of `pages`, which are mapped as one, whatever they are: their bytes are lost. Pages
    /// with another owner or in a transfer stay.
    pub fn release(&self, pages: Range<u64>) -> Released {
        let num_pages = pages.end - pages.start;
        let can_go = |state| !matches!(state, PageState::Pinned(_) | PageState::Kept);
        let mut released = Counts::default();
        let mut claims = Vec::new();
        for page in pages {
            match self.words.claim(page, can_go) {
                Some(claim) => claims.push(claim),
                None => released.add(self.release_claimed(std::mem::take(&mut claims))),
            }
        }
        released.add(self.release_claimed(claims));
        Released {
            freed_bytes: released.num_freed * PAGE_LEN,
            is_whole: released.num_holes == num_pages,
        }
    }

    /// As [`Reclaimer::release`], of pages that follow each other.
    fn release_claimed(&self, claims: Vec<Claim<'_, Waker>>) -> Counts {
        let (Some(first), Some(last)) = (claims.first(), claims.last()) else {
            return Counts::default();
        };
        let pages = first.page()..last.page() + 1;
        let num_before = self.num_in_memory(pages.clone());
        if let Err(error) = self.ram.punch(pages.clone()) {
            tracing::warn!("cannot free {} pages of a guest: {error}", claims.len());
            return Counts::default();
        }
        // Huge pages that cannot be split stay, as zeros.
        let num_after = self.num_in_memory(pages);
        let num_holes = claims.len() as u64;
        for claim in claims {
            let page = claim.page();
            match claim.state() {
                PageState::Proved(backing) | PageState::Dropped(backing) => {
                    self.disks.forget(backing, page);
                }
                PageState::Swapped(slot) => {
                    if let Some(swap) = &self.swap {
                        swap.free(slot..slot + 1);
                    }
                }
                _ => {}
            }
            self.transfers.set(page, None);
            let is_hole = num_after == 0 || self.num_in_memory(page..page + 1) == 0;
            claim.release(if is_hole {
                PageState::Hole
            } else {
                PageState::Resident
            });
        }
        Counts {
            num_holes,
            num_freed: num_before.saturating_sub(num_after),
        }
    }

    /// Pages that take memory.
    fn num_in_memory(&self, pages: Range<u64>) -> u64 {
        let mut num_pages = 0;
        let mut from = pages.start;
        // Errors are those of a bad descriptor.
        while let Ok(Some(first)) = self.ram.first_in_memory(from..pages.end) {
            let end = self.ram.end_of_memory(first).unwrap_or(pages.end);
            from = end.min(pages.end);
            num_pages += from - first;
        }
        num_pages
    }
}

#[derive(Debug, Default)]
struct Counts {
    /// Pages that read as zeros now.
    num_holes: u64,
    /// Pages of memory that were freed.
    num_freed: u64,
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.num_holes += other.num_holes;
        self.num_freed += other.num_freed;
    }
}
