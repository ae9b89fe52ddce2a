//! The whole reclaimer on a kernel, disks and a swap file that are made up, in any order of what happens.
//!
//! Guests, devices, a hostile guest's words, the servers of faults and whoever takes memory are threads of
//! `shuttle`, of which one runs at a time. At each access to a word, to memory and to a disk it is drawn
//! by lot who goes on, and what goes wrong. All of it comes from a seed: when a test fails it prints the
//! seed, and `SHUTTLE_RANDOM_SEED=SEED cargo test simulation` does the same again.
//!
//! Each access compares the whole page with that of a machine from which nothing is taken. In the end the
//! words, memory, disks and the swap file have to agree, and nobody may wait for ever. Time has no part in
//! what the reclaimer decides, so there is no clock.

mod kernel;

use std::cell::Cell;
use std::sync::mpsc::{self, Receiver, Sender};

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::RandomScheduler;
use shuttle::thread;
use shuttle::{Config, Runner};

use self::kernel::{Kernel, Lost, Mood, RamFile, Sectors};
use super::super::faults::Ahead;
use super::super::host::Accesses;
use super::super::userfault::Fault;
use super::super::word::Backing;
use super::*;

/// Pages that two guests and two devices share, and pages of one guest only, which it gives away.
const SHARED_PAGES: u64 = 8;
const OWN_PAGES: u64 = 4;
const RAM_PAGES: u64 = SHARED_PAGES + OWN_PAGES;
const DISK_PAGES: u64 = 6;
const SWAP_PAGES: u64 = 6;
const NUM_DISKS: u8 = 2;
const SECTOR: u64 = 512;

thread_local! {
    static IS_SIMULATED: Cell<bool> = const { Cell::new(false) };
}

/// In a simulation, lets others go first. Everywhere else it does nothing.
pub fn take_turns() {
    if IS_SIMULATED.get() && !std::thread::panicking() {
        thread::yield_now();
    }
}

#[derive(Debug)]
struct Disk(Arc<Sectors>);

impl PageSource for Disk {
    fn read_page(&self, offset: u64, bytes: &mut PageBuffer) -> io::Result<()> {
        self.0.read(&mut bytes.0, offset)
    }
}

/// A number below `end`.
fn draw(end: u64) -> u64 {
    thread_rng().gen_range(0..end)
}

#[derive(Debug)]
struct World {
    kernel: Arc<Kernel>,
    reclaimer: Arc<Reclaimer>,
    disks: Vec<(Arc<Sectors>, DiskWatch)>,
    mood: Mood,
}

impl World {
    fn new(ram: &GuestRam) -> Self {
        let rate = |percent| if draw(2) == 0 { 0 } else { percent };
        let mood = Mood {
            contrary: rate(10),
            full: rate(2),
            deadly: if draw(8) == 0 { 1 } else { 0 },
        };
        let kernel = Arc::new(Kernel::new(mood));
        let file = RamFile(Arc::clone(&kernel));
        let file = Ram::new(ram).unwrap().with_file(Box::new(file));
        let mut disks = Disks::default();
        let sectors: Vec<_> = (0..NUM_DISKS)
            .map(|_| {
                let sectors = Arc::new(Sectors::new(DISK_PAGES, mood));
                sectors.fill();
                disks.add(Box::new(Disk(Arc::clone(&sectors)))).unwrap();
                sectors
            })
            .collect();
        let swap = Sectors::new(SWAP_PAGES, mood);
        let swap = SwapFile::new(Box::new(swap), SWAP_PAGES * PAGE_LEN);
        let lost = Arc::clone(&kernel);
        let reclaimer = Reclaimer::with(
            Arc::new(file),
            Arc::clone(&kernel) as Arc<dyn Accesses>,
            disks,
            Some(swap),
            Box::new(move |why| {
                assert!(mood.deadly > 0, "a VM ended: {why}");
                lost.lose();
            }),
        );
        let reclaimer = Arc::new(reclaimer.unwrap());
        let watch = |(sectors, disk)| (sectors, DiskWatch::new(Arc::clone(&reclaimer), disk));
        World {
            kernel,
            disks: sectors.into_iter().zip(0..NUM_DISKS).map(watch).collect(),
            reclaimer,
            mood,
        }
    }

    /// A processor that reads and writes.
    fn use_memory(&self, first: u64, num_pages: u64) -> Result<(), Lost> {
        let page = first + draw(num_pages);
        match draw(10) {
            0..6 => self.kernel.access(page, false, |_| {})?,
            6 => self.kernel.access(page, true, |bytes| bytes.fill(0))?,
            _ => {
                let (at, value) = (draw(PAGE_LEN) as usize, draw(3) as u8);
                self.kernel.access(page, true, |bytes| bytes[at] = value)?
            }
        };
        Ok(())
    }

    /// A guest that gives pages away, which nobody else accesses.
    fn give_away(&self) {
        let order = draw(3);
        let start = SHARED_PAGES + (draw(OWN_PAGES) >> order << order);
        let pages = start..start + (1 << order);
        let is_whole = self.reclaimer.release(pages.clone()).is_whole;
        for page in pages {
            self.kernel.give_away(page, is_whole);
        }
    }

    /// A device that reads or writes a disk for its guest.
    fn transfer(&self) -> Result<(), Lost> {
        let (disk, watch) = &self.disks[draw(NUM_DISKS.into()) as usize];
        let is_write = draw(3) == 0;
        let len = [SECTOR, PAGE_LEN, PAGE_LEN, 2 * PAGE_LEN][draw(4) as usize];
        let start = draw(SHARED_PAGES - 1) * PAGE_LEN + if draw(6) == 0 { SECTOR } else { 0 };
        let len = len.min(SHARED_PAGES * PAGE_LEN - start);
        let offset = draw((DISK_PAGES * PAGE_LEN - len) / SECTOR + 1) * SECTOR;
        // Whole pages more often.
        let offset = if draw(2) == 0 {
            offset / PAGE_LEN * PAGE_LEN
        } else {
            offset
        };
        let (gpa, num_bytes) = (GuestAddress(start), len as u32);
        watch.pin(gpa, num_bytes);
        if is_write {
            watch.begin_change(offset, len);
        }
        let result = self.transfer_pinned(disk, start..start + len, offset, is_write);
        if let Ok(true) = result {
            watch.transferred(gpa, num_bytes, offset);
        }
        if is_write {
            watch.end_change(offset, len);
        }
        watch.unpin(gpa, num_bytes);
        result.map(drop)
    }

    /// First it gets the pages, then it asks for no permission any more. False if the disk failed.
    fn transfer_pinned(
        &self,
        disk: &Sectors,
        ram: std::ops::Range<u64>,
        offset: u64,
        is_write: bool,
    ) -> Result<bool, Lost> {
        let pages = ram.start / PAGE_LEN..ram.end.div_ceil(PAGE_LEN);
        let mut frames = Vec::new();
        for page in pages.clone() {
            frames.push(self.kernel.access(page, !is_write, |_| {})?);
        }
        for at in ram.clone().step_by(SECTOR as usize) {
            let page = at / PAGE_LEN;
            let frame = frames[(page - pages.start) as usize];
            let place = (at % PAGE_LEN) as usize..(at % PAGE_LEN + SECTOR) as usize;
            let on_disk = offset + (at - ram.start);
            let mut sector = [0; SECTOR as usize];
            let result = if is_write {
                let from = Cell::new(sector);
                self.kernel.transfer(page, frame, |bytes| {
                    from.set(bytes[place.clone()].try_into().unwrap());
                });
                disk.write(&from.get(), on_disk)
            } else {
                let result = disk.read(&mut sector, on_disk);
                self.kernel.transfer(page, frame, |bytes| {
                    bytes[place.clone()].copy_from_slice(&sector);
                });
                result
            };
            if result.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whoever wants memory.
    fn take(&self) {
        let start = draw(RAM_PAGES);
        let pages = start..start + 1 + draw(RAM_PAGES - start);
        let means = [Means::Drop, Means::Swap][draw(2) as usize];
        let result = match draw(3) {
            0 => self.reclaimer.take_unused(pages, means),
            _ => self.reclaimer.take(pages, means),
        };
        assert!(result.is_ok() || self.mood.contrary + self.mood.full + self.mood.deadly > 0);
    }

    /// A guest that uses what it gives away at that moment: its bytes are its own affair, but what is in
    /// a transfer stays.
    fn meddle(&self) -> Result<(), Lost> {
        let page = SHARED_PAGES + draw(OWN_PAGES);
        if draw(2) == 0 {
            return self.kernel.touch(page).map(drop);
        }
        self.reclaimer.pin(page..page + 1);
        if self.kernel.is_lost() {
            return Err(Lost);
        }
        let frame = self.kernel.frame(page);
        assert!(frame.is_some(), "page {page} is pinned and away");
        for _ in 0..draw(8) {
            assert_eq!(
                self.kernel.frame(page),
                frame,
                "page {page} is pinned and went"
            );
        }
        self.reclaimer.unpin(page..page + 1);
        Ok(())
    }

    /// A guest whose words are lies, and a kernel that unmaps what it likes.
    fn disturb(&self) {
        for _ in 0..3 {
            self.kernel.unmap(draw(RAM_PAGES));
        }
        let page = draw(RAM_PAGES);
        let backing = Backing {
            disk: draw(u64::from(NUM_DISKS) + 1) as u8,
            sector: draw((DISK_PAGES + 1) * PAGE_LEN / SECTOR),
        };
        if self.reclaimer.transfers.get(page).is_none() {
            self.reclaimer.transfers.set(page, Some(backing));
        }
    }

    /// Reads all of memory, and has all of it unmapped.
    fn read_back(&self) -> Result<(), Lost> {
        for page in 0..RAM_PAGES {
            self.kernel.access(page, false, |_| {})?;
            self.kernel.unmap(page);
        }
        Ok(())
    }

    fn serve_faults(&self, to_read: &Sender<Fault>) {
        let kernel = &self.kernel;
        while !kernel.is_over() {
            for fault in kernel.faults().unwrap() {
                self.reclaimer.serve_or_queue(fault, to_read);
            }
            kernel.notify(); // the reader
            kernel.sleep_while(|| !kernel.has_faults() && !kernel.is_over());
        }
    }

    fn serve_reads(&self, faults: &Receiver<Fault>) {
        let kernel = &self.kernel;
        let mut ahead = Ahead::default();
        while !kernel.is_over() {
            let next = Cell::new(None);
            kernel.sleep_while(|| {
                next.set(faults.try_recv().ok());
                next.get().is_none() && !kernel.is_over()
            });
            if let Some(fault) = next.get() {
                self.reclaimer.serve_read(fault, &mut ahead);
            }
        }
    }

    /// Everything is where its word says, and there only.
    fn check(&self) {
        let (mut num_dependents, mut num_swapped) = (0, 0);
        for page in 0..RAM_PAGES {
            let state = self.reclaimer.state(page).unwrap();
            drop(self.reclaimer.words.claim(page, |_| true).unwrap());
            match state {
                PageState::Hole | PageState::Resident => {}
                PageState::Proved(_) => assert!(self.kernel.is_protected(page), "{page}"),
                PageState::Dropped(_) | PageState::Swapped(_) => {}
                other => panic!("page {page} is {other:?}"),
            }
            if state != PageState::Hole {
                assert_eq!(
                    self.kernel.is_hole(page),
                    !state.is_in_memory(),
                    "{page} {state:?}"
                );
            }
            num_swapped += u64::from(matches!(state, PageState::Swapped(_)));
            if let PageState::Proved(backing) | PageState::Dropped(backing) = state {
                num_dependents += 1;
                let mut bytes = PageBuffer::default();
                let (disk, _) = &self.disks[usize::from(backing.disk)];
                if disk.read(&mut bytes.0, backing.sector * SECTOR).is_ok() {
                    assert!(bytes.0 == self.kernel.expected(page), "{page} {state:?}");
                }
            }
        }
        assert_eq!(self.reclaimer.disks.num_dependents(), num_dependents);
        let swap = self.reclaimer.swap.as_ref().unwrap();
        assert_eq!(swap.num_used(), num_swapped);
        assert_eq!(self.reclaimer.metrics().mended.get(), 0);
    }
}

/// One run, of which everything is drawn by lot.
fn simulate(ram: &GuestRam) -> Arc<World> {
    let world = Arc::new(World::new(ram));
    let spawn = |run: Box<dyn FnOnce(&World) + Send>| {
        let world = Arc::clone(&world);
        thread::spawn(move || run(&world))
    };
    let (to_read, reads) = mpsc::channel();
    let servers = [
        spawn(Box::new(move |world| world.serve_faults(&to_read))),
        spawn(Box::new(move |world| world.serve_reads(&reads))),
    ];
    let repeat = |num: u64, act: fn(&World) -> Result<(), Lost>| {
        spawn(Box::new(move |world| {
            (0..num).try_for_each(|_| act(world)).unwrap_or_default();
        }))
    };
    let users = [
        repeat(30, |world| world.use_memory(0, SHARED_PAGES)),
        repeat(30, |world| world.use_memory(0, SHARED_PAGES)),
        repeat(8, World::transfer),
        repeat(8, World::transfer),
        repeat(16, |world| {
            if draw(3) == 0 {
                world.give_away();
            }
            world.use_memory(SHARED_PAGES, OWN_PAGES)
        }),
        repeat(16, |world| {
            world.take();
            Ok(())
        }),
        repeat(12, World::meddle),
        repeat(16, |world| {
            world.disturb();
            Ok(())
        }),
    ];
    for user in users {
        user.join().unwrap();
    }
    if draw(2) == 0 {
        world.take();
    }
    let is_alive = (0..draw(3)).all(|_| world.read_back().is_ok());
    world.kernel.end();
    for server in servers {
        server.join().unwrap();
    }
    if is_alive && !world.kernel.is_lost() {
        world.check();
    }
    world
}

#[test]
fn guests_never_notice_whatever_happens() {
    let ram = memory::allocate(RAM_PAGES * PAGE_LEN, false).unwrap();
    let mut config = Config::new();
    config.stack_size = 1 << 18;
    let seen: Arc<[AtomicU64; 8]> = Arc::default();
    let counts = Arc::clone(&seen);
    IS_SIMULATED.set(true);
    let runner = Runner::new(RandomScheduler::new_from_seed(1, NUM_RUNS), config);
    let num_runs = runner.run(move || {
        let world = simulate(&ram);
        let metrics = world.reclaimer.metrics();
        for (count, num) in counts.iter().zip([
            &metrics.dropped,
            &metrics.swapped_out,
            &metrics.zeros_dropped,
            &metrics.changing,
            &metrics.written_meanwhile,
            &metrics.unpunched,
            &metrics.rescued,
            &metrics.read_ahead,
        ]) {
            count.fetch_add(num.get(), Ordering::Relaxed);
        }
    });
    IS_SIMULATED.set(false);
    // What is looked for does happen.
    eprintln!("{num_runs} runs: {seen:?}");
    assert!(
        seen.iter().all(|count| count.load(Ordering::Relaxed) > 0),
        "{seen:?}"
    );
}

/// So many seeds; a second or two in a build without optimization.
const NUM_RUNS: usize = 1500;
