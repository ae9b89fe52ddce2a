//! How pages go: proved, published, punched, in runs.
//!
//! A run is protected, read, compared with what a disk has, and punched by one system call each, or
//! one for each part of it that is in one place on a disk: what a page costs is mostly the copy of its
//! bytes. Runs do not cross multiples of 2 MiB, so that a huge page goes as a whole if it can.

use std::io;
use std::ops::Range;

use super::backing::PAGE_SECTORS;
use super::ram::PAGE_BYTES;
use super::reclaimer::{CHUNK_PAGES, Means, ReclaimError, Reclaimer, Waker};
use super::swap_file::PageBuffer;
use super::word::{Backing, Claim, PageState};

/// Protected and punched at once, at most.
const RUN_PAGES: usize = 512;
/// Read from a disk and compared at once, at most; so much stays in a processor's cache.
const COMPARED_PAGES: usize = 64;

/// Room for the bytes of a run, in memory and on disk.
#[derive(Debug)]
pub(super) struct Room {
    memory: Vec<PageBuffer>,
    disk: Vec<PageBuffer>,
}

impl Default for Room {
    fn default() -> Self {
        Room {
            memory: vec![PageBuffer::default(); RUN_PAGES],
            disk: vec![PageBuffer::default(); COMPARED_PAGES],
        }
    }
}

impl PageBuffer {
    fn is_zero(&self) -> bool {
        self.0 == [0; PAGE_BYTES]
    }
}

/// What is `num_pages` after `backing`, on the same disk.
pub(super) fn after(backing: Backing, num_pages: u64) -> Backing {
    Backing {
        sector: backing.sector + num_pages * PAGE_SECTORS,
        ..backing
    }
}

impl Reclaimer {
    pub(super) fn take_pages(
        &self,
        pages: Range<u64>,
        means: Means,
        spares_recent: bool,
    ) -> Result<u64, ReclaimError> {
        let mut room = self.room.lock().pop().unwrap_or_default();
        let run_pages = RUN_PAGES as u64;
        let mut num_freed = 0;
        for run in self.ram.runs(pages) {
            let mut start = run.start;
            while start < run.end {
                let end = run.end.min((start / run_pages + 1) * run_pages);
                if !self.watch_chunk(start / CHUNK_PAGES)? {
                    self.metrics.visited.add(end - start);
                    start = end;
                    continue;
                }
                num_freed += self.take_run(start..end, means, spares_recent, &mut room)?;
                start = end;
            }
        }
        self.room.lock().push(room);
        Ok(num_freed)
    }

    /// As [`Reclaimer::take`], of pages that are mapped as one.
    fn take_run(
        &self,
        pages: Range<u64>,
        means: Means,
        spares_recent: bool,
        room: &mut Room,
    ) -> Result<u64, ReclaimError> {
        let mut num_freed = 0;
        let zeros = match means {
            Means::Drop => self.zeros(pages.clone(), room),
            Means::Swap => Vec::new(),
        };
        let mut zeros = zeros.into_iter().peekable();
        let mut claims = Vec::new();
        for page in pages {
            let is_zero = zeros.next_if_eq(&page).is_some();
            let wants = |state| match state {
                PageState::Proved(_) => true,
                PageState::Resident => {
                    is_zero || means == Means::Swap || self.transfers.get(page).is_some()
                }
                _ => false,
            };
            // The chance of a page that is not wanted now is not used up.
            let is_spared =
                spares_recent && self.words.peek(page).is_some_and(wants) && self.recent.take(page);
            self.metrics.spared.add(is_spared.into());
            let claim = (!is_spared).then(|| self.words.claim(page, wants));
            match claim.flatten() {
                Some(claim) => claims.push(claim),
                None => {
                    num_freed += self.take_claimed(std::mem::take(&mut claims), means, room)?;
                }
            }
        }
        Ok(num_freed + self.take_claimed(claims, means, room)?)
    }

    /// Those of `pages` in memory that have no backing and were zero a moment ago.
    fn zeros(&self, pages: Range<u64>, room: &mut Room) -> Vec<u64> {
        let is_candidate = |page: &u64| {
            self.state(*page) == Some(PageState::Resident) && self.transfers.get(*page).is_none()
        };
        let candidates: Vec<u64> = pages.filter(is_candidate).collect();
        let mut zeros = Vec::new();
        for run in candidates.chunk_by(|page, next| page + 1 == *next) {
            if let (Some(first), Some(memory)) = (run.first(), room.memory.get_mut(..run.len()))
                && self.ram.read(*first, memory).is_ok()
            {
                let bytes = run.iter().zip(memory);
                zeros.extend(bytes.filter_map(|(page, bytes)| bytes.is_zero().then_some(page)));
            }
        }
        zeros
    }

    /// Takes pages in memory that follow each other.
    fn take_claimed(
        &self,
        mut claims: Vec<Claim<'_, Waker>>,
        means: Means,
        room: &mut Room,
    ) -> Result<u64, ReclaimError> {
        let (Some(first), Some(last)) = (claims.first(), claims.last()) else {
            return Ok(0);
        };
        let pages = first.page()..last.page() + 1;
        let memory = room.memory.get_mut(..claims.len());
        let memory = memory.ok_or(ReclaimError::Io(io::ErrorKind::InvalidInput.into()))?;
        // Whoever looks at these pages from now on finds an owner.
        if !self.visitors.wait_until_left() {
            self.metrics.visited.add(pages.end - pages.start);
            return Ok(0);
        }
        let times = &self.times;
        let protect = || self.userfault.protect(pages.clone());
        times.protect.time(protect).map_err(io::Error::from)?;
        let read = || self.ram.read(pages.start, memory);
        let placed = times.read_memory.time(read).and_then(|()| {
            self.drop_zeros_and_proved(&mut claims, memory);
            self.drop_to_backings(&mut claims, memory, &mut room.disk);
            match means {
                Means::Drop => Ok(()),
                Means::Swap => self.swap_out(&mut claims, memory),
            }
        });
        let mut num_freed = 0;
        let mut memory = &*memory;
        let mut rest = claims.into_iter().peekable();
        while let Some(first) = rest.next() {
            let is_placed = is_placed(&first);
            let mut run = vec![first];
            while let Some(next) = rest.next_if(|next| self::is_placed(next) == is_placed) {
                run.push(next);
            }
            let (bytes, after) = memory.split_at(run.len());
            memory = after;
            if is_placed {
                num_freed += self.punch(run, bytes);
            } else {
                self.let_write(run);
            }
        }
        match placed {
            Err(error) if num_freed == 0 => Err(error.into()),
            _ => Ok(num_freed),
        }
    }

    /// Places what needs nothing else: pages of zeros, and those that were proved before.
    fn drop_zeros_and_proved(&self, claims: &mut [Claim<'_, Waker>], memory: &[PageBuffer]) {
        for (claim, bytes) in claims.iter_mut().zip(memory) {
            if let PageState::Proved(backing) = claim.state() {
                self.publish(claim, PageState::Dropped(backing));
            } else if bytes.is_zero() {
                self.publish(claim, PageState::Hole);
            }
        }
    }

    /// Places what has the bytes of its backing.
    fn drop_to_backings(
        &self,
        claims: &mut [Claim<'_, Waker>],
        memory: &[PageBuffer],
        disk: &mut [PageBuffer],
    ) {
        let mut idx = 0;
        while let (Some(claims), Some(memory)) = (claims.get_mut(idx..), memory.get(idx..))
            && !claims.is_empty()
        {
            let Some(backing) = self.begin_to_depend(claims.first(), None) else {
                idx += 1;
                continue;
            };
            // Before the bytes are compared: whoever changes them from now on says so first.
            let follows = |(claim, num): &(&Claim<'_, Waker>, u64)| {
                self.begin_to_depend(Some(claim), Some(after(backing, *num)))
                    .is_some()
            };
            let following = claims.iter().take(disk.len()).zip(0..).skip(1);
            let num = 1 + following.take_while(follows).count();
            let disk = disk.get_mut(..num).unwrap_or_default();
            let read = || self.disks.read(backing, disk);
            let is_read = self.times.read_disk.time(read).is_ok();
            let pages = claims.iter_mut().zip(memory).zip(disk);
            for (((claim, memory), disk), num) in pages.zip(0..) {
                let backing = after(backing, num);
                // If it cannot be read now it could not be later.
                let is_read =
                    is_read || self.disks.read(backing, std::slice::from_mut(disk)).is_ok();
                self.drop_if_equal(claim, backing, is_read && memory.0 == disk.0);
            }
            idx += num;
        }
    }

    /// The backing of a page that nothing was found for yet, which depends on it from now on; if
    /// `expected` is given, only that.
    fn begin_to_depend(
        &self,
        claim: Option<&Claim<'_, Waker>>,
        expected: Option<Backing>,
    ) -> Option<Backing> {
        let claim = claim.filter(|claim| is_open(claim))?;
        let backing = self.transfers.get(claim.page())?;
        if expected.is_some_and(|expected| expected != backing) {
            return None;
        }
        let is_dependent = self.disks.depend(backing, claim.page());
        // A page that does not go with those before it is asked for again.
        if !is_dependent && expected.is_none() {
            self.metrics.changing.add(1);
        }
        is_dependent.then_some(backing)
    }

    fn drop_if_equal(&self, claim: &mut Claim<'_, Waker>, backing: Backing, is_equal: bool) {
        let page = claim.page();
        if !is_equal {
            self.metrics.unequal.add(1);
            self.transfers.set(page, None);
        }
        if !is_equal || !self.publish(claim, PageState::Dropped(backing)) {
            self.disks.forget(backing, page);
        }
    }

    /// Writes what nothing else was found for to the swap file.
    fn swap_out(&self, claims: &mut [Claim<'_, Waker>], memory: &[PageBuffer]) -> io::Result<()> {
        let Some(swap) = &self.swap else {
            return Ok(());
        };
        let mut idx = 0;
        while let (Some(claims), Some(memory)) = (claims.get_mut(idx..), memory.get(idx..))
            && let Some(first) = claims.first()
        {
            if !is_open(first) {
                idx += 1;
                continue;
            }
            let num = claims.iter().take_while(|claim| is_open(claim)).count();
            let store = || swap.store(memory.get(..num).unwrap_or_default());
            let slots = self.times.swap_out.time(store)?;
            if slots.is_empty() {
                return Ok(());
            }
            for (claim, slot) in claims.iter_mut().zip(slots) {
                idx += 1;
                if !self.publish(claim, PageState::Swapped(slot)) {
                    swap.free(slot..slot + 1);
                }
            }
        }
        Ok(())
    }

    fn publish(&self, claim: &mut Claim<'_, Waker>, state: PageState) -> bool {
        let is_published = claim.publish(state);
        if !is_published {
            self.metrics.written_meanwhile.add(1);
        }
        is_published
    }

    /// Lets go of pages that follow each other and stay in memory.
    fn let_write(&self, claims: Vec<Claim<'_, Waker>>) {
        let (Some(first), Some(last)) = (claims.first(), claims.last()) else {
            return;
        };
        let pages = first.page()..last.page() + 1;
        for claim in &claims {
            if let PageState::Proved(backing) | PageState::Dropped(backing) = claim.state() {
                self.disks.forget(backing, claim.page());
            }
        }
        if let Err(errno) = self.userfault.unprotect(pages.clone()) {
            // It is tried again when somebody writes.
            tracing::warn!("cannot let a guest write to pages {pages:?}: {errno}");
        }
        for claim in claims {
            claim.release(PageState::Resident);
        }
    }

    /// Frees the memory of pages that follow each other, whose bytes are elsewhere; how many were freed.
    fn punch(&self, claims: Vec<Claim<'_, Waker>>, bytes: &[PageBuffer]) -> u64 {
        let (Some(first), Some(last)) = (claims.first(), claims.last()) else {
            return 0;
        };
        let pages = first.page()..last.page() + 1;
        let punch = || self.ram.punch(pages.clone());
        let is_punched = self.times.punch.time(punch).is_ok();
        let is_hole = |pages| is_punched && matches!(self.ram.first_in_memory(pages), Ok(None));
        let is_all_hole = is_hole(pages);
        let mut num_freed = 0;
        for (claim, bytes) in claims.into_iter().zip(bytes) {
            let page = claim.page();
            let is_hole = is_all_hole || is_hole(page..page + 1);
            self.settle(claim, bytes, is_hole);
            num_freed += u64::from(is_hole);
        }
        num_freed
    }

    /// Lets go of a page that was punched. If it is no hole it is still in memory, where huge pages
    /// that cannot be split are zeroed instead.
    fn settle(&self, claim: Claim<'_, Waker>, bytes: &PageBuffer, is_hole: bool) {
        let (page, state) = (claim.page(), claim.state());
        if is_hole {
            match state {
                PageState::Hole => self.metrics.zeros_dropped.add(1),
                PageState::Dropped(_) => {
                    self.metrics.dropped.add(1);
                    self.metrics.unnoted.add((!self.drops.note(page)).into());
                }
                _ => self.metrics.swapped_out.add(1),
            }
            return;
        }
        self.metrics.unpunched.add(1);
        match self.ram.write(page, &bytes.0) {
            Ok(()) => {
                if let (PageState::Swapped(slot), Some(swap)) = (state, &self.swap) {
                    swap.free(slot..slot + 1);
                }
                self.let_write(vec![claim]);
            }
            // Its bytes are where its state says, and whoever accesses it gets them from there.
            Err(error) => tracing::error!("cannot restore page {page}: {error}"),
        }
    }
}

/// Whether the bytes of a page are elsewhere as well.
fn is_placed(claim: &Claim<'_, Waker>) -> bool {
    !claim.state().is_in_memory()
}

/// Whether there is still a place to be found for a page.
fn is_open(claim: &Claim<'_, Waker>) -> bool {
    claim.state() == PageState::Resident && !claim.is_written()
}
