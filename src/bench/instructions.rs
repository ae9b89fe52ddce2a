//! A clock that counts executed instructions: what work costs, whatever else the machine does meanwhile.
//!
//! In `scripts/lab --instructions` a plugin of QEMU counts what every processor of the lab executes, in the
//! host and in guests (`scripts/lab-instructions.c` has the layout). A NOP that nobody else has a use for
//! tells it to write the counts to the memory of a PCI device, which is mapped here: reading takes no system
//! call. Hardware is not asked: there is no clock where there is no such device.

pub mod command;

use std::fs::{self, OpenOptions};
use std::io;
use std::ops::Sub;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::mmap::MmapRegionError;
use vm_memory::volatile_memory::{Error as VolatileMemoryError, VolatileMemory};
use vm_memory::{Bytes, FileOffset, MmapRegion};

use super::report::Spread;

/// Where the host lists its PCI devices.
const DEVICES: &str = "/sys/bus/pci/devices";
/// Vendor and device of shared memory of QEMU, ivshmem-plain.
const IVSHMEM: [&str; 2] = ["0x1af4", "0x1110"];
/// Bytes of the page, `PAGE_BYTES` of the plugin.
const PAGE_BYTES: usize = 8192;
/// First word of the page: "alcinsns".
const MAGIC: u64 = u64::from_le_bytes(*b"alcinsns");
/// Bytes of the header, and of the counts of a processor.
const LINE_BYTES: usize = 64;

/// Why the counts cannot be read although they are there.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// No access to the memory of the device.
    #[error("cannot open {}; are you root?", path.display())]
    Open {
        /// Of the device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not to be had in this process.
    #[error("cannot map {}", path.display())]
    Map {
        /// Of the device.
        path: PathBuf,
        /// Why.
        source: MmapRegionError,
    },
}

/// What was executed since the lab started, or between two readings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Instructions {
    /// By programs of the host: the VMM among them.
    pub host_user: u64,
    /// By the host's kernel.
    pub host_kernel: u64,
    /// By programs of guests.
    pub guest_user: u64,
    /// By kernels of guests.
    pub guest_kernel: u64,
    /// How often a guest was entered: as often as it was left.
    pub entries: u64,
}

impl Instructions {
    /// Of the host and of guests.
    pub fn all(&self) -> u64 {
        self.host_user + self.host_kernel + self.guest_user + self.guest_kernel
    }
}

impl Sub for Instructions {
    type Output = Self;

    /// Since an earlier reading.
    fn sub(self, earlier: Self) -> Self {
        Instructions {
            host_user: self.host_user.saturating_sub(earlier.host_user),
            host_kernel: self.host_kernel.saturating_sub(earlier.host_kernel),
            guest_user: self.guest_user.saturating_sub(earlier.guest_user),
            guest_kernel: self.guest_kernel.saturating_sub(earlier.guest_kernel),
            entries: self.entries.saturating_sub(earlier.entries),
        }
    }
}

/// The counter of a lab.
#[derive(Debug)]
pub struct InstructionClock {
    page: MmapRegion,
}

impl InstructionClock {
    /// The counter of this machine; None if it has none: on hardware, and in a lab without
    /// `--instructions`.
    pub fn open() -> Option<Self> {
        Self::find().unwrap_or_default()
    }

    /// Like [`Self::open`], but tells why a counter that is there cannot be used.
    ///
    /// # Errors
    /// [`ClockError`].
    pub fn find() -> Result<Option<Self>, ClockError> {
        let Ok(devices) = fs::read_dir(DEVICES) else {
            return Ok(None);
        };
        for device in devices.flatten() {
            if let Some(clock) = Self::of_device(&device.path())? {
                return Ok(Some(clock));
            }
        }
        Ok(None)
    }

    /// The counter in the memory of the PCI device at `path`, if that has one.
    fn of_device(path: &Path) -> Result<Option<Self>, ClockError> {
        let is = |file: &str, value: &str| {
            fs::read_to_string(path.join(file)).is_ok_and(|text| text.trim() == value)
        };
        let [vendor, device] = IVSHMEM;
        if !is("vendor", vendor) || !is("device", device) {
            return Ok(None);
        }
        let path = path.join("resource2");
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = match file {
            Ok(file) => file,
            Err(source) => return Err(ClockError::Open { path, source }),
        };
        match MmapRegion::from_file(FileOffset::new(file, 0), PAGE_BYTES) {
            Ok(page) => Ok(Self::of_page(page)),
            Err(source) => Err(ClockError::Map { path, source }),
        }
    }

    /// The counter in `page`, if there is one.
    fn of_page(page: MmapRegion) -> Option<Self> {
        let clock = InstructionClock { page };
        (clock.word(0) == MAGIC).then_some(clock)
    }

    /// All instructions that were executed so far, of the host and of guests, except on the lab's first
    /// processor, which runs nothing but its own tick.
    pub fn read(&self) -> u64 {
        self.counts().all()
    }

    /// The same, by who executed them.
    pub fn counts(&self) -> Instructions {
        mark();
        let mut sum = Instructions::default();
        let num_cpus = usize::try_from(self.word(8)).unwrap_or(usize::MAX);
        for line in (1..num_cpus.min(PAGE_BYTES / LINE_BYTES - 1)).map(|cpu| LINE_BYTES * (1 + cpu))
        {
            sum.host_user += self.word(line);
            sum.host_kernel += self.word(line + 8);
            sum.guest_user += self.word(line + 16);
            sum.guest_kernel += self.word(line + 24);
            sum.entries += self.word(line + 32);
        }
        sum
    }

    /// What this machine and its guests execute in a second while there is nothing to do, if that is now:
    /// ticks, mostly. The median of five counts of half a second.
    ///
    /// Taking that away from a count, for the time that it took, makes counts alike that took longer on a
    /// busy machine: the lab's ticks go by real time.
    pub fn rest_per_second(&self) -> f64 {
        let rates = (0..5).map(|_| {
            let (started, before) = (Instant::now(), self.read());
            thread::sleep(Duration::from_millis(500));
            let executed = self.read().saturating_sub(before);
            #[allow(clippy::cast_precision_loss)] // far below 2^53 in half a second
            let rate = executed as f64 / started.elapsed().as_secs_f64();
            rate
        });
        Spread::of(rates.collect::<Vec<_>>()).median
    }

    /// The word at `offset`, which another processor may just be writing; 0 beyond the end.
    fn word(&self, offset: usize) -> u64 {
        let word: Result<u64, VolatileMemoryError> = self
            .page
            .as_volatile_slice()
            .load(offset, Ordering::Relaxed);
        word.map(u64::from_le).unwrap_or_default()
    }
}

/// Tells the plugin to write the counts, and does nothing elsewhere.
#[allow(unsafe_code)] // an instruction that no safe function has
fn mark() {
    // SAFETY: a NOP of one operand, whose memory is not accessed: it changes neither registers nor flags.
    // That it may change memory, as this says, is what the plugin does.
    unsafe { std::arch::asm!("nop dword ptr [rax + rax + 0x6b636c61]", options(nostack)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page with `words` at these offsets.
    fn page(words: &[(usize, u64)]) -> MmapRegion {
        let page = MmapRegion::new(PAGE_BYTES).unwrap();
        for &(offset, word) in words {
            page.as_volatile_slice()
                .store(word.to_le(), offset, Ordering::Relaxed)
                .unwrap();
        }
        page
    }

    #[test]
    fn memory_of_something_else_is_no_clock() {
        assert!(InstructionClock::of_page(page(&[(8, 3)])).is_none());
    }

    #[test]
    fn counts_are_those_of_all_processors_but_the_first() {
        let words = [
            (0, MAGIC),
            (8, 3),
            (64, 1 << 40),
            (128, 1),
            (136, 20),
            (144, 300),
            (152, 4000),
            (160, 7),
            (192, 5),
            (200, 60),
            (208, 700),
            (216, 8000),
            (224, 9),
            (256, 1 << 41),
        ];
        let clock = InstructionClock::of_page(page(&words)).unwrap();
        let counts = clock.counts();
        assert_eq!(counts.host_user, 6);
        assert_eq!(counts.host_kernel, 80);
        assert_eq!(counts.guest_user, 1000);
        assert_eq!(counts.guest_kernel, 12000);
        assert_eq!(counts.entries, 16);
        assert_eq!(clock.read(), 13086);
    }

    #[test]
    fn number_of_processors_is_not_trusted() {
        let clock =
            InstructionClock::of_page(page(&[(0, MAGIC), (8, u64::MAX), (PAGE_BYTES - 64, 3)]));
        assert_eq!(clock.unwrap().read(), 3);
    }

    #[test]
    fn device_without_the_right_numbers_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vendor"), "0x1af4\n").unwrap();
        fs::write(dir.path().join("device"), "0x1000\n").unwrap();
        assert!(InstructionClock::of_device(dir.path()).unwrap().is_none());
    }

    #[test]
    fn device_that_may_not_be_opened_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vendor"), "0x1af4\n").unwrap();
        fs::write(dir.path().join("device"), "0x1110\n").unwrap();
        let error = InstructionClock::of_device(dir.path()).unwrap_err();
        assert!(error.to_string().contains("resource2"), "{error}");
        let file = fs::File::create(dir.path().join("resource2")).unwrap();
        file.set_len(PAGE_BYTES as u64).unwrap();
        assert!(InstructionClock::of_device(dir.path()).unwrap().is_none());
    }
}
