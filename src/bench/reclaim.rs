//! `alacrity bench reclaim`: pages that go and come back, without a guest.
//!
//! A page that a disk has as well is dropped after it was compared; any other page has to be written
//! to the swap file. Both files are in one directory, and the disk is in the host's cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use alacrity_devices::GuestRam;
use alacrity_devices::virtio::blk::TransferWatch;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::report::{Comparison, Report};
use super::{BenchError, Case, Effort};
use crate::memory;
use crate::reclaim::backing::{Disks, PageSource};
use crate::reclaim::faults::FaultServer;
use crate::reclaim::ram::Ram;
use crate::reclaim::reclaimer::{Means, Reclaimer};
use crate::reclaim::restore::DiskWatch;
use crate::reclaim::swap_file::{PageBuffer, SwapFile};

/// Bytes of a page.
const PAGE_LEN: u64 = 4096;
/// Read-ahead cannot guess an order in such steps.
const STEP: u64 = 521;

/// Pages dropped and refilled beside pages swapped out and in.
#[derive(Debug)]
pub struct ReclaimCase;

impl Case for ReclaimCase {
    fn run(&self, effort: Effort) -> Result<Report, BenchError> {
        let (num_rounds, num_pages) = match effort {
            Effort::Quick => (2, 1 << 11),
            Effort::Full => (9, 1 << 14),
        };
        let mut out = comparison("a page goes, in runs", None);
        let mut back = comparison("a page comes back, any order", Some(1.0));
        let dropped = Memory::on_disk(num_pages)?;
        let swapped = Memory::on_swap(num_pages)?;
        for _ in 0..num_rounds {
            for (memory, is_ours) in [
                (&dropped, true),
                (&swapped, false),
                (&swapped, false),
                (&dropped, true),
            ] {
                let (out_ns, back_ns) = memory.out_and_back()?;
                for (comparison, ns) in [(&mut out, out_ns), (&mut back, back_ns)] {
                    let values = match is_ours {
                        true => &mut comparison.ours,
                        false => &mut comparison.theirs,
                    };
                    values.push(ns);
                }
            }
        }
        Ok(Report {
            case: "reclaim",
            what: "a page that is dropped, beside one that is swapped; ns per page",
            comparisons: vec![out, back],
            signals: Vec::new(),
        })
    }
}

fn comparison(name: &str, goal: Option<f64>) -> Comparison {
    Comparison {
        name: name.to_owned(),
        unit: "ns",
        is_control: false,
        goal,
        ours_name: "dropped",
        theirs_name: "swapped",
        ours: Vec::new(),
        theirs: Vec::new(),
    }
}

/// A disk in a file.
#[derive(Debug)]
struct FileDisk(File);

impl PageSource for FileDisk {
    fn read_page(&self, offset: u64, bytes: &mut PageBuffer) -> io::Result<()> {
        self.0.read_exact_at(&mut bytes.0, offset)
    }

    fn read_pages(&self, offset: u64, pages: &mut [PageBuffer]) -> io::Result<()> {
        self.0.read_exact_at(pages.as_mut_bytes(), offset)
    }
}

/// What would be a guest's.
struct Memory {
    ram: GuestRam,
    num_pages: u64,
    means: Means,
    reclaimer: Arc<Reclaimer>,
    _faults: FaultServer,
    has_failed: Arc<AtomicBool>,
}

impl Memory {
    /// Each page is the same as one of a disk.
    fn on_disk(num_pages: u64) -> Result<Self, BenchError> {
        let file = tempfile::tempfile_in(".").map_err(io_error("make a disk"))?;
        for page in 0..num_pages {
            file.write_all_at(&bytes_of(page), page * PAGE_LEN)
                .map_err(io_error("write to a disk"))?;
        }
        let mut disks = Disks::default();
        disks.add(Box::new(FileDisk(file)));
        let memory = Memory::new(num_pages, disks, None)?;
        let watch = DiskWatch::new(Arc::clone(&memory.reclaimer), 0);
        for page in 0..num_pages {
            let at = page * PAGE_LEN;
            watch.transferred(GuestAddress(at), 4096, at);
        }
        Ok(memory)
    }

    /// No page is anywhere else.
    fn on_swap(num_pages: u64) -> Result<Self, BenchError> {
        let swap = SwapFile::create(".".as_ref(), num_pages * PAGE_LEN)
            .map_err(io_error("make a swap file"))?;
        Memory::new(num_pages, Disks::default(), Some(swap))
    }

    fn new(num_pages: u64, disks: Disks, swap: Option<SwapFile>) -> Result<Self, BenchError> {
        let ram = memory::allocate(num_pages * PAGE_LEN, false)
            .map_err(|source| BenchError::GuestMemory { source })?;
        for page in 0..num_pages {
            ram.write_slice(&bytes_of(page), GuestAddress(page * PAGE_LEN))
                .map_err(|source| BenchError::Copy { source })?;
        }
        let has_failed = Arc::new(AtomicBool::new(false));
        let on_failure = {
            let has_failed = Arc::clone(&has_failed);
            Box::new(move |_: &str| has_failed.store(true, Relaxed))
        };
        let means = match swap {
            Some(_) => Means::Swap,
            None => Means::Drop,
        };
        let file = Ram::new(&ram).map_err(|source| refused(source.into()))?;
        let reclaimer = Reclaimer::new(file, disks, swap, on_failure).map_err(refused)?;
        let reclaimer = Arc::new(reclaimer);
        let faults = FaultServer::start(Arc::clone(&reclaimer))
            .map_err(io_error("start a thread that serves faults"))?;
        Ok(Memory {
            ram,
            num_pages,
            means,
            reclaimer,
            _faults: faults,
            has_failed,
        })
    }

    /// Takes all pages, and has each again by a write, which leaves it as it was; how many nanoseconds
    /// a page took for each.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn out_and_back(&self) -> Result<(f64, f64), BenchError> {
        let start = Instant::now();
        let num_taken = self.reclaimer.take(0..self.num_pages, self.means);
        let out = start.elapsed();
        let num_taken = num_taken.map_err(refused)?;
        let start = Instant::now();
        for idx in 0..self.num_pages {
            let page = idx * STEP % self.num_pages;
            self.ram
                .write_obj(page + 1, GuestAddress(page * PAGE_LEN))
                .map_err(|source| BenchError::Copy { source })?;
        }
        let back = start.elapsed();
        if num_taken != self.num_pages || self.has_failed.load(Relaxed) {
            return Err(BenchError::Lost);
        }
        let per_page = |time: std::time::Duration| time.as_nanos() as f64 / num_taken as f64;
        Ok((per_page(out), per_page(back)))
    }
}

/// A page that begins with its number plus one.
fn bytes_of(page: u64) -> [u8; 4096] {
    let mut bytes = [0x5a; 4096];
    if let Some(first) = bytes.first_chunk_mut() {
        *first = (page + 1).to_ne_bytes();
    }
    bytes
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> BenchError {
    move |source| BenchError::Io { what, source }
}

fn refused(source: crate::reclaim::reclaimer::ReclaimError) -> BenchError {
    BenchError::Reclaim { source }
}
