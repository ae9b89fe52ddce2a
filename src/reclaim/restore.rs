//! Brings pages back into memory: for those who access them, for transfers, and before the sectors
//! that they depend on change.

use std::io;
use std::ops::Range;
use std::slice;
use std::sync::Arc;

use alacrity_devices::virtio::blk::TransferWatch;
use rustix::io::Errno;
use vm_memory::GuestAddress;

use super::backing::SECTOR_BYTES;
use super::ram::PAGE_BYTES;
use super::reclaimer::{Reclaimer, Waker};
use super::swap_file::PageBuffer;
use super::word::{Backing, Claim, Met, PageState, Pin};

const PAGE_LEN: u64 = PAGE_BYTES as u64;

impl Reclaimer {
    /// Makes what `claim` owns a page in memory that can be written to, and wakes those who wait for
    /// that. The caller lets go of it as resident or pinned.
    pub(super) fn bring_in(&self, claim: &Claim<'_, Waker>) -> io::Result<()> {
        let page = claim.page();
        match claim.state() {
            PageState::Hole => {
                self.ram.fill_with_zeros(page..page + 1)?;
                self.metrics.zero_filled.add(1);
                self.map_or_wake(page, false)
            }
            PageState::Proved(backing) => {
                self.metrics.unprotected.add(1);
                self.userfault.unprotect(page..page + 1)?;
                self.disks.forget(backing, page);
                Ok(())
            }
            PageState::Dropped(backing) => {
                self.refill(page, backing, false)?;
                self.disks.forget(backing, page);
                Ok(())
            }
            PageState::Swapped(slot) => self.swap_in(page, slot),
            PageState::Resident | PageState::Pinned(_) | PageState::Kept => Ok(()),
        }
    }

    /// Reads a dropped page from its backing again; with `protect` the next write waits.
    pub(super) fn refill(&self, page: u64, backing: Backing, protect: bool) -> io::Result<()> {
        self.times.refill.time(|| {
            let mut bytes = PageBuffer::default();
            self.disks.read(backing, slice::from_mut(&mut bytes))?;
            self.refill_with(page, &bytes, protect)
        })
    }

    /// The same with what was read.
    pub(super) fn refill_with(
        &self,
        page: u64,
        bytes: &PageBuffer,
        protect: bool,
    ) -> io::Result<()> {
        self.metrics.refilled.add(1);
        self.fill(page, bytes, protect)
    }

    fn swap_in(&self, page: u64, slot: u64) -> io::Result<()> {
        let swap = self.swap.as_ref().ok_or(io::ErrorKind::NotFound)?;
        self.times.swap_in.time(|| {
            let mut bytes = PageBuffer::default();
            swap.load(slot, slice::from_mut(&mut bytes))?;
            self.swap_in_with(page, &bytes)
        })?;
        swap.free(slot..slot + 1);
        Ok(())
    }

    /// The same with what was read; the slot remains to be freed.
    pub(super) fn swap_in_with(&self, page: u64, bytes: &PageBuffer) -> io::Result<()> {
        self.fill(page, bytes, false)?;
        self.metrics.swapped_in.add(1);
        Ok(())
    }

    fn fill(&self, page: u64, bytes: &PageBuffer, protect: bool) -> io::Result<()> {
        if self.userfault.fill(page, &bytes.0, protect)? {
            return Ok(());
        }
        // Somebody made a page of the hole, through another mapping of the file.
        self.metrics.mended.add(1);
        self.ram.write(page, &bytes.0)?;
        self.map_or_wake(page, protect)
    }

    /// Maps a page that is in memory, unless somebody else did, who need not have woken all.
    pub(super) fn map_or_wake(&self, page: u64, protect: bool) -> io::Result<()> {
        match self.userfault.map(page..page + 1, protect) {
            Err(Errno::EXIST) => Ok(self.userfault.wake(page)?),
            // Nobody is made to wait in that chunk.
            Err(Errno::NOENT) => Ok(()),
            result => Ok(result?),
        }
    }

    pub(super) fn wait_for_release(&self, page: u64) {
        let waker = self.words.waker();
        waker.wait_while(&|| self.words.is_waited_for(page));
    }

    /// Keeps `pages` in memory until [`Reclaimer::unpin`].
    pub fn pin(&self, pages: Range<u64>) {
        for page in pages {
            loop {
                match self.words.pin(page) {
                    None | Some(Pin::Done) => break,
                    Some(Pin::Owned) => self.wait_for_release(page),
                    Some(Pin::Absent(claim)) => {
                        match self.bring_in(&claim) {
                            Ok(()) => claim.release(PageState::Pinned(1)),
                            Err(error) => self.fail(page, &error),
                        }
                        break;
                    }
                }
            }
        }
    }

    /// Ends what [`Reclaimer::pin`] began.
    pub fn unpin(&self, pages: Range<u64>) {
        for page in pages {
            self.words.unpin(page);
        }
    }

    /// Makes `page` independent of its backing, which is about to change.
    fn rescue(&self, page: u64) {
        loop {
            match self.words.meet(page, true) {
                None => return,
                Some(Met::Owned) => self.wait_for_release(page),
                Some(Met::Free(claim)) => {
                    if !matches!(claim.state(), PageState::Proved(_) | PageState::Dropped(_)) {
                        return;
                    }
                    match self.bring_in(&claim) {
                        Ok(()) => {
                            self.metrics.rescued.add(1);
                            claim.release(PageState::Resident);
                        }
                        Err(error) => self.fail(page, &error),
                    }
                    return;
                }
            }
        }
    }
}

/// Tells a reclaimer of the transfers of one disk.
#[derive(Debug)]
pub struct DiskWatch {
    reclaimer: Arc<Reclaimer>,
    disk: u8,
}

impl DiskWatch {
    /// Of the disk with that number.
    pub fn new(reclaimer: Arc<Reclaimer>, disk: u8) -> Self {
        DiskWatch { reclaimer, disk }
    }

    /// The pages that the bytes are in; they are in one part of RAM, or nowhere.
    fn pages(&self, gpa: GuestAddress, len: u32) -> Range<u64> {
        let Some(last) = gpa.0.checked_add(u64::from(len)).filter(|_| len > 0) else {
            return 0..0;
        };
        let ram = &self.reclaimer.ram;
        let first = ram.page_of_gfn(gpa.0 / PAGE_LEN);
        let last = ram.page_of_gfn((last - 1) / PAGE_LEN);
        match (first, last) {
            (Some(first), Some(last)) => first..last + 1,
            _ => 0..0,
        }
    }
}

impl TransferWatch for DiskWatch {
    fn pin(&self, gpa: GuestAddress, len: u32) {
        self.reclaimer.pin(self.pages(gpa, len));
    }

    fn unpin(&self, gpa: GuestAddress, len: u32) {
        self.reclaimer.unpin(self.pages(gpa, len));
    }

    fn begin_change(&self, offset: u64, len: u64) {
        let bytes = offset..offset.saturating_add(len);
        for page in self.reclaimer.disks.begin_change(self.disk, bytes) {
            self.reclaimer.rescue(page);
        }
    }

    fn end_change(&self, offset: u64, len: u64) {
        let bytes = offset..offset.saturating_add(len);
        self.reclaimer.disks.end_change(self.disk, &bytes);
    }

    fn transferred(&self, gpa: GuestAddress, len: u32, offset: u64) {
        let end = gpa.0.saturating_add(u64::from(len));
        for page in self.pages(gpa, len) {
            let Some(first) = self.reclaimer.ram.gpa_of_page(page) else {
                continue;
            };
            let is_whole = gpa.0 <= first && first + PAGE_LEN <= end;
            let at = offset + first.saturating_sub(gpa.0);
            let backing = (is_whole && at.is_multiple_of(SECTOR_BYTES)).then_some(Backing {
                disk: self.disk,
                sector: at / SECTOR_BYTES,
            });
            self.reclaimer.transfers.set(page, backing);
        }
    }
}
