//! A kernel that has guest RAM, what waits for it, and its own moods.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard};

use rustix::io::Errno;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::{Condvar, Mutex as SleepLock};

use super::super::super::host::{Accesses, PageFile};
use super::super::super::ram::PageBytes;
use super::super::super::userfault::{Fault, FaultKind};
use super::super::{Arc, PAGE_BYTES, PAGE_LEN};
use super::{RAM_PAGES, take_turns};

/// A page of guest RAM.
#[derive(Debug, Default, Clone)]
struct Page {
    /// None is a hole.
    bytes: Option<Box<PageBytes>>,
    /// Another one each time that the page gets memory.
    frame: u64,
    is_mapped: bool,
    is_protected: bool,
    /// Allocated in advance, and neither mapped nor written to since: it has memory, but whoever seeks
    /// data finds a hole.
    is_blank: bool,
}

impl Page {
    fn is_data(&self) -> bool {
        self.bytes.is_some() && !self.is_blank
    }
}

#[derive(Debug)]
struct State {
    pages: Vec<Page>,
    /// What the pages of a machine would be from which nothing is taken.
    expected: Vec<PageBytes>,
    /// These may be zeros as well.
    given_away: BTreeSet<u64>,
    num_frames: u64,
    /// Accesses wait when they need something.
    is_watched: bool,
    /// Those who wait, by number, and whether that was told.
    waiting: BTreeMap<u64, (Fault, bool)>,
    num_waits: u64,
    /// The VM ended.
    is_lost: bool,
    /// Nobody accesses anything any more.
    is_over: bool,
}

/// What goes wrong, in percent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mood {
    /// Punches that fail, huge pages that are not split, and protections that fail.
    pub contrary: u32,
    /// Disks that are full.
    pub full: u32,
    /// Reads that fail, and memory that is short: the VM ends if that happens to what it needs.
    pub deadly: u32,
}

/// The VM ended.
#[derive(Debug)]
pub struct Lost;

#[derive(Debug)]
pub struct Kernel {
    state: Mutex<State>,
    mood: Mood,
    lock: SleepLock<()>,
    woken: Condvar,
}

fn happens(percent: u32) -> bool {
    percent > 0 && thread_rng().gen_ratio(percent, 100)
}

fn index(page: u64) -> usize {
    page as usize
}

impl Kernel {
    pub fn new(mood: Mood) -> Self {
        let num_pages = index(RAM_PAGES);
        Kernel {
            state: Mutex::new(State {
                pages: vec![Page::default(); num_pages],
                expected: vec![[0; PAGE_BYTES]; num_pages],
                given_away: BTreeSet::new(),
                num_frames: 0,
                is_watched: false,
                waiting: BTreeMap::new(),
                num_waits: 0,
                is_lost: false,
                is_over: false,
            }),
            mood,
            lock: SleepLock::new(()),
            woken: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Something has changed that others may sleep for.
    pub fn notify(&self) {
        drop(self.lock.lock().unwrap());
        self.woken.notify_all();
    }

    /// Waits as long as `is_wanted`, which is asked again whenever anything happens.
    pub fn sleep_while(&self, is_wanted: impl Fn() -> bool) {
        let mut guard = self.lock.lock().unwrap();
        while is_wanted() {
            guard = self.woken.wait(guard).unwrap();
        }
    }

    pub fn lose(&self) {
        self.state().is_lost = true;
        self.notify();
    }

    pub fn is_lost(&self) -> bool {
        self.state().is_lost
    }

    pub fn end(&self) {
        self.state().is_over = true;
        self.notify();
    }

    pub fn is_over(&self) -> bool {
        let state = self.state();
        state.is_over || state.is_lost
    }

    pub fn has_faults(&self) -> bool {
        let state = self.state();
        state.waiting.values().any(|(_, is_told)| !is_told)
    }

    /// What a processor or a system call does to `page`; the frame that it found. It waits as long as
    /// it has to. Before `act` changes what it has and what it should have alike, they are the same.
    pub fn access(
        &self,
        page: u64,
        is_write: bool,
        act: impl Fn(&mut PageBytes),
    ) -> Result<u64, Lost> {
        self.reach(page, is_write, |state| state.act(page, &act))
    }

    /// A read of a page that others give away at that moment.
    pub fn touch(&self, page: u64) -> Result<u64, Lost> {
        self.reach(page, false, |_| {})
    }

    fn reach(&self, page: u64, is_write: bool, act: impl Fn(&mut State)) -> Result<u64, Lost> {
        loop {
            take_turns();
            let number = {
                let mut state = self.state();
                if state.is_lost {
                    return Err(Lost);
                }
                let Some(kind) = state.fault(page, is_write) else {
                    act(&mut state);
                    return Ok(state.pages[index(page)].frame);
                };
                let number = state.num_waits;
                state.num_waits += 1;
                state.waiting.insert(number, (Fault { page, kind }, false));
                number
            };
            self.notify();
            self.sleep_while(|| {
                let state = self.state();
                state.waiting.contains_key(&number) && !state.is_lost
            });
        }
    }

    /// What a device does that got `frame` for `page` before: it asks nobody.
    pub fn transfer(&self, page: u64, frame: u64, act: impl Fn(&mut PageBytes)) {
        assert_eq!(
            self.frame(page),
            Some(frame),
            "page {page} went during a transfer"
        );
        self.state().act(page, act);
    }

    /// The memory that `page` has.
    pub fn frame(&self, page: u64) -> Option<u64> {
        take_turns();
        let state = self.state();
        let found = &state.pages[index(page)];
        found.bytes.as_ref().map(|_| found.frame)
    }

    /// `page` was given away by its only user: it is zeros if it went, else what the next access finds
    /// of the two.
    pub fn give_away(&self, page: u64, is_gone: bool) {
        let mut state = self.state();
        if is_gone {
            state.expected[index(page)] = [0; PAGE_BYTES];
        } else {
            state.given_away.insert(page);
        }
    }

    /// The host's kernel has reasons of its own.
    pub fn unmap(&self, page: u64) {
        take_turns();
        let mut state = self.state();
        if state.is_watched {
            state.pages[index(page)].is_mapped = false;
        }
    }

    pub fn is_hole(&self, page: u64) -> bool {
        self.state().pages[index(page)].bytes.is_none()
    }

    fn is_data(&self, page: u64) -> bool {
        self.state().pages[index(page)].is_data()
    }

    pub fn is_protected(&self, page: u64) -> bool {
        self.state().pages[index(page)].is_protected
    }

    pub fn expected(&self, page: u64) -> PageBytes {
        self.state().expected[index(page)]
    }
}

impl State {
    /// What keeps an access from going on.
    fn fault(&mut self, page: u64, is_write: bool) -> Option<FaultKind> {
        let is_watched = self.is_watched;
        let found = &mut self.pages[index(page)];
        match &found.bytes {
            None if is_watched => Some(FaultKind::Missing { is_write }),
            None => {
                self.give(page, Box::new([0; PAGE_BYTES]));
                self.pages[index(page)].is_mapped = true;
                None
            }
            Some(_) if is_watched && !found.is_mapped => Some(FaultKind::Unmapped),
            Some(_) if is_watched && is_write && found.is_protected => Some(FaultKind::Protected),
            Some(_) => {
                (found.is_mapped, found.is_blank) = (true, false);
                None
            }
        }
    }

    fn act(&mut self, page: u64, act: impl Fn(&mut PageBytes)) {
        let expected = &mut self.expected[index(page)];
        let found = self.pages[index(page)].bytes.as_deref_mut().unwrap();
        if self.given_away.remove(&page) && *found == [0; PAGE_BYTES] {
            *expected = *found;
        }
        assert!(found == expected, "page {page} has other bytes");
        act(expected);
        act(found);
    }

    fn give(&mut self, page: u64, bytes: Box<PageBytes>) {
        self.num_frames += 1;
        let found = &mut self.pages[index(page)];
        found.bytes = Some(bytes);
        found.frame = self.num_frames;
        found.is_blank = false;
    }

    fn wake(&mut self, page: u64) {
        self.waiting.retain(|_, (fault, _)| fault.page != page);
    }
}

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        unreachable!("nobody polls here")
    }
}

impl Accesses for Kernel {
    fn register(&self, _pages: Range<u64>) -> Result<(), Errno> {
        take_turns();
        self.state().is_watched = true;
        Ok(())
    }

    fn protect(&self, pages: Range<u64>) -> Result<(), Errno> {
        for page in pages {
            take_turns();
            if happens(self.mood.contrary) {
                return Err(Errno::AGAIN);
            }
            self.state().pages[index(page)].is_protected = true;
        }
        Ok(())
    }

    fn unprotect(&self, pages: Range<u64>) -> Result<(), Errno> {
        for page in pages {
            take_turns();
            let mut state = self.state();
            state.pages[index(page)].is_protected = false;
            state.wake(page);
        }
        self.notify();
        Ok(())
    }

    fn fill(&self, page: u64, bytes: &PageBytes, protect: bool) -> Result<bool, Errno> {
        take_turns();
        {
            let mut state = self.state();
            assert!(state.is_watched);
            if state.pages[index(page)].bytes.is_some() {
                return Ok(false);
            }
            state.give(page, Box::new(*bytes));
            let found = &mut state.pages[index(page)];
            (found.is_mapped, found.is_protected) = (true, protect);
            state.wake(page);
        }
        self.notify();
        Ok(true)
    }

    fn map(&self, pages: Range<u64>, protect: bool) -> Result<(), Errno> {
        take_turns();
        let first = pages.start;
        for page in pages {
            let mut state = self.state();
            if !state.is_watched {
                return Err(Errno::NOENT);
            }
            let found = &mut state.pages[index(page)];
            let result = match (&found.bytes, found.is_mapped) {
                (None, _) => Err(Errno::FAULT),
                (_, true) => Err(Errno::EXIST),
                _ => Ok(()),
            };
            if result.is_err() {
                drop(state);
                self.notify();
                return if page == first {
                    result
                } else {
                    Err(Errno::AGAIN)
                };
            }
            (found.is_mapped, found.is_protected) = (true, protect);
            found.is_blank = false;
            state.wake(page);
        }
        self.notify();
        Ok(())
    }

    fn wake(&self, page: u64) -> Result<(), Errno> {
        self.state().wake(page);
        self.notify();
        Ok(())
    }

    fn wait_while(&self, is_waited_for: &dyn Fn() -> bool) {
        self.sleep_while(|| is_waited_for() && !self.is_lost());
    }

    fn faults(&self) -> Result<Vec<Fault>, Errno> {
        take_turns();
        let mut state = self.state();
        let untold = state.waiting.values_mut().filter(|(_, told)| !told);
        let faults = untold.take(2).map(|(fault, told)| {
            *told = true;
            *fault
        });
        Ok(faults.collect())
    }
}

/// The file of guest RAM.
#[derive(Debug)]
pub struct RamFile(pub Arc<Kernel>);

fn pages(offset: u64, len: u64) -> Range<u64> {
    assert!(offset.is_multiple_of(PAGE_LEN) && len.is_multiple_of(PAGE_LEN));
    offset / PAGE_LEN..(offset + len) / PAGE_LEN
}

impl PageFile for RamFile {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let pages = pages(offset, bytes.len() as u64);
        for (page, to) in pages.zip(bytes.chunks_exact_mut(PAGE_BYTES)) {
            take_turns();
            match &self.0.state().pages[index(page)].bytes {
                Some(from) => to.copy_from_slice(&from[..]),
                None => to.fill(0),
            }
        }
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let pages = pages(offset, bytes.len() as u64);
        for (page, from) in pages.zip(bytes.chunks_exact(PAGE_BYTES)) {
            take_turns();
            let from: &PageBytes = from.try_into().unwrap();
            let mut state = self.0.state();
            let found = &mut state.pages[index(page)];
            found.is_blank = false;
            match &mut found.bytes {
                Some(to) => **to = *from,
                None => state.give(page, Box::new(*from)),
            }
        }
        Ok(())
    }

    /// It unmaps everything first. What is part of a huge page that cannot be split becomes zeros.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        take_turns();
        if happens(self.0.mood.contrary) {
            return Err(Errno::AGAIN.into());
        }
        for page in pages(offset, len) {
            take_turns();
            let mut state = self.0.state();
            let found = &mut state.pages[index(page)];
            found.is_mapped = false;
            if happens(self.0.mood.contrary)
                && let Some(bytes) = &mut found.bytes
            {
                **bytes = [0; PAGE_BYTES];
            } else {
                found.bytes = None;
            }
            // Marks of what is protected stay or go, as the kernel likes.
            found.is_protected &= happens(50);
        }
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        for page in pages(offset, len) {
            take_turns();
            if happens(self.0.mood.deadly) {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            let mut state = self.0.state();
            if state.pages[index(page)].bytes.is_none() {
                state.give(page, Box::new([0; PAGE_BYTES]));
                state.pages[index(page)].is_blank = true;
            }
        }
        Ok(())
    }

    fn data_from(&self, offset: u64) -> io::Result<Option<u64>> {
        take_turns();
        let page = (offset / PAGE_LEN..RAM_PAGES).find(|page| self.0.is_data(*page));
        Ok(page.map(|page| page * PAGE_LEN))
    }

    fn hole_from(&self, offset: u64) -> io::Result<u64> {
        take_turns();
        let page = (offset / PAGE_LEN..RAM_PAGES).find(|page| !self.0.is_data(*page));
        Ok(page.unwrap_or(RAM_PAGES) * PAGE_LEN)
    }
}

/// A swap file, or a disk: sectors that are written one after the other.
#[derive(Debug)]
pub struct Sectors {
    bytes: Mutex<Vec<u8>>,
    mood: Mood,
}

/// Bytes that are transferred as one.
const UNIT: usize = 512;

impl Sectors {
    pub fn new(num_pages: u64, mood: Mood) -> Self {
        Sectors {
            bytes: Mutex::new(vec![0; index(num_pages) * PAGE_BYTES]),
            mood,
        }
    }

    /// Each page with bytes of its own.
    pub fn fill(&self) {
        let mut bytes = self.bytes.lock().unwrap();
        for (page, bytes) in bytes.chunks_mut(PAGE_BYTES).enumerate() {
            bytes.fill(page as u8);
        }
    }

    pub fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        if happens(self.mood.deadly) {
            return Err(io::Error::other("broken"));
        }
        for (at, to) in (index(offset)..).step_by(UNIT).zip(bytes.chunks_mut(UNIT)) {
            take_turns();
            let found = self.bytes.lock().unwrap();
            let from = found.get(at..at + to.len());
            to.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        }
        Ok(())
    }

    pub fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        for (at, from) in (index(offset)..).step_by(UNIT).zip(bytes.chunks(UNIT)) {
            take_turns();
            if happens(self.mood.full) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let mut found = self.bytes.lock().unwrap();
            found[at..at + from.len()].copy_from_slice(from);
        }
        Ok(())
    }
}

impl PageFile for Sectors {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(bytes, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write(bytes, offset)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        take_turns();
        self.bytes.lock().unwrap()[index(offset)..index(offset + len)].fill(0);
        Ok(())
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn data_from(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(Some(offset))
    }

    fn hole_from(&self, offset: u64) -> io::Result<u64> {
        Ok(offset)
    }
}
