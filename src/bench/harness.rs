//! Two threads on two CPUs, one for each end of a transport, and the statistics of what they took.

use std::hint::spin_loop;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use vbus::memory::GuestRam;
use vbus::ring::Slot;
use vmm_sys_util::eventfd::EventFd;

use super::BenchError;

/// Slots of a ring, descriptors of a virtqueue.
pub const NUM_SLOTS: u16 = 256;
/// Most descriptors that either end moves at once.
pub const MAX_BATCH: usize = 32;
/// Where buffers are; rings and queues are below.
const BUFFERS_GPA: u64 = 1 << 20;
/// Bytes from one buffer to the next.
const BUFFER_BYTES: u64 = 2048;
/// Bytes of RAM that [`Transport::connect`] gets: a buffer for each slot, and what is below them.
pub const RAM_BYTES: usize = 2 << 20;
/// A run that takes longer has lost something.
const DEADLINE: Duration = Duration::from_secs(30);

/// What the north has handed over.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    /// Descriptors.
    pub count: usize,
    /// The south has to be woken.
    pub is_wake_up_due: bool,
}

/// The driver's end.
pub trait NorthEnd: Send {
    /// Publishes all of `slots` as one batch, or none if there is no room for all.
    ///
    /// # Errors
    /// The memory is not there.
    fn send(&mut self, slots: &[Slot]) -> Result<Sent, BenchError>;
    /// Takes back what the south has returned; how many.
    ///
    /// # Errors
    /// The south broke the rules.
    fn reclaim(&mut self) -> Result<usize, BenchError>;
}

/// The device's end.
pub trait SouthEnd: Send {
    /// Takes as many descriptors as `slots` has room for; how many.
    ///
    /// # Errors
    /// The north broke the rules.
    fn take(&mut self, slots: &mut [Slot]) -> Result<usize, BenchError>;
    /// Returns what [`SouthEnd::take`] took last as one batch.
    ///
    /// # Errors
    /// The memory is not there.
    fn give_back(&mut self) -> Result<(), BenchError>;
    /// Wants no wake-ups from here on.
    ///
    /// # Errors
    /// The memory is not there.
    fn stay_awake(&mut self) -> Result<(), BenchError>;
    /// Wants to be woken; true if it may sleep.
    ///
    /// # Errors
    /// The memory is not there.
    fn fall_asleep(&mut self) -> Result<bool, BenchError>;
}

/// A way to hand over descriptors.
pub trait Transport {
    /// The driver's end.
    type North: NorthEnd;
    /// The device's end.
    type South: SouthEnd;

    /// Both ends of a new one at the start of `ram`, which is zero.
    ///
    /// # Errors
    /// It does not fit.
    fn connect(ram: &GuestRam) -> Result<(Self::North, Self::South), BenchError>;
}

/// How the south spends its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SouthMode {
    /// It polls and does nothing with what it gets.
    Poll,
    /// It copies `frame_bytes` out of each buffer, and sleeps on an eventfd when there is nothing.
    CopyAndSleep {
        /// Bytes, at most 2048, which is the size of a buffer.
        frame_bytes: usize,
    },
}

/// When the north takes back what the south has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reclaim {
    /// After each batch that it sends, and all the time when there is no room.
    EachBatch,
    /// When there is no room. It then stays off what the south is about to write.
    WhenFull,
}

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Descriptors in all; a multiple of `batch`.
    pub num_descriptors: usize,
    /// Descriptors that the north publishes at once, and the most that the south takes at once.
    pub batch: usize,
    /// What the north does.
    pub reclaim: Reclaim,
    /// What the south does.
    pub mode: SouthMode,
}

/// What a run gave.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// From the first descriptor's publication to the last one's return.
    pub ns_per_descriptor: f64,
    /// Wake-ups of the south.
    pub wake_ups: u64,
}

/// Runs `load` over a new `T`, the north on the first CPU of this process and the south on the second.
///
/// # Errors
/// [`BenchError`].
pub fn run<T: Transport>(load: Load) -> Result<Outcome, BenchError> {
    let ram = GuestRam::from_ranges(&[(vm_memory::GuestAddress(0), RAM_BYTES)])
        .map_err(|source| BenchError::Ram { source })?;
    let (north, south) = T::connect(&ram)?;
    let [north_cpu, south_cpu] = two_cpus()?;
    let doorbell = EventFd::new(0).map_err(|source| BenchError::EventFd { source })?;
    let shared = Shared {
        load,
        ram: &ram,
        doorbell: &doorbell,
        start: Barrier::new(2),
        has_failed: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        let device = scope.spawn(|| shared.fail_together(south_cpu, |s| s.run_south(south)));
        let driver = scope.spawn(|| shared.fail_together(north_cpu, |s| s.run_north(north)));
        let driver = driver.join().map_err(|_| BenchError::Panic)?;
        let device = device.join().map_err(|_| BenchError::Panic)?;
        // A failure of one end is why the other one gave up.
        match (driver, device) {
            (Err(BenchError::OtherEnd), Err(error)) => Err(error),
            (outcome, device) => device.and(outcome),
        }
    })
}

/// The first two CPUs that this process may use.
pub fn two_cpus() -> Result<[usize; 2], BenchError> {
    let set = sched_getaffinity(None).map_err(|source| BenchError::Affinity { source })?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu));
    match (cpus.next(), cpus.next()) {
        (Some(first), Some(second)) => Ok([first, second]),
        _ => Err(BenchError::OneCpu),
    }
}

/// Lets this thread, and those that it starts, run on `cpu` only.
pub fn pin(cpu: usize) -> Result<(), BenchError> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|source| BenchError::Affinity { source })
}

struct Shared<'a> {
    load: Load,
    ram: &'a GuestRam,
    doorbell: &'a EventFd,
    start: Barrier,
    has_failed: AtomicBool,
}

impl Shared<'_> {
    /// Runs one end on `cpu` and tells the other end if it fails.
    fn fail_together<R>(
        &self,
        cpu: usize,
        run: impl FnOnce(&Self) -> Result<R, BenchError>,
    ) -> Result<R, BenchError> {
        let pinned = pin(cpu);
        self.start.wait();
        let result = pinned.and_then(|()| run(self));
        if result.is_err() {
            self.has_failed.store(true, Relaxed);
            // Wakes it if it sleeps; fails only if the eventfd is readable anyway.
            let _ = self.doorbell.write(1);
        }
        result
    }

    fn run_north(&self, mut north: impl NorthEnd) -> Result<Outcome, BenchError> {
        let Load {
            num_descriptors,
            batch,
            reclaim,
            ..
        } = self.load;
        let mut slots = [Slot::default(); MAX_BATCH];
        let slots = slots.get_mut(..batch).ok_or(BenchError::Batch { batch })?;
        let (mut num_sent, mut num_back) = (0, 0);
        let mut wake_ups = 0;
        let mut patience = Patience::new(self);
        let start = Instant::now();
        while num_back < num_descriptors {
            let mut sent = Sent::default();
            if num_sent < num_descriptors {
                for (nth, slot) in slots.iter_mut().enumerate() {
                    *slot = descriptor(num_sent + nth);
                }
                sent = north.send(slots)?;
                num_sent += sent.count;
                if sent.is_wake_up_due {
                    wake_ups += 1;
                    self.doorbell
                        .write(1)
                        .map_err(|source| BenchError::EventFd { source })?;
                }
            }
            let count = match reclaim == Reclaim::EachBatch || sent.count == 0 {
                true => north.reclaim()?,
                false => 0,
            };
            num_back += count;
            patience.check(count + sent.count != 0)?;
        }
        let ns = start.elapsed().as_nanos();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let ns_per_descriptor = ns as f64 / num_descriptors as f64;
        Ok(Outcome {
            ns_per_descriptor,
            wake_ups,
        })
    }

    fn run_south(&self, mut south: impl SouthEnd) -> Result<(), BenchError> {
        let Load {
            num_descriptors,
            batch,
            mode,
            ..
        } = self.load;
        let mut slots = [Slot::default(); MAX_BATCH];
        let slots = slots.get_mut(..batch).ok_or(BenchError::Batch { batch })?;
        let mut frame = [0; 2048];
        let (mut num_served, mut sum) = (0, 0_u64);
        let mut patience = Patience::new(self);
        south.stay_awake()?;
        while num_served < num_descriptors {
            let count = south.take(slots)?;
            for slot in slots.iter().take(count) {
                sum = sum.wrapping_add(slot.addr ^ u64::from(slot.len));
                if let SouthMode::CopyAndSleep { frame_bytes } = mode {
                    self.copy(slot, &mut frame, frame_bytes)?;
                }
            }
            if count != 0 {
                south.give_back()?;
                num_served += count;
            } else if mode != SouthMode::Poll {
                if south.fall_asleep()? {
                    // The counter's value does not matter.
                    self.doorbell
                        .read()
                        .map_err(|source| BenchError::EventFd { source })?;
                }
                south.stay_awake()?;
            }
            patience.check(count != 0)?;
        }
        std::hint::black_box(&frame);
        let want = (0..num_descriptors)
            .map(descriptor)
            .map(|slot| slot.addr ^ u64::from(slot.len))
            .fold(0, u64::wrapping_add);
        match sum == want && num_served == num_descriptors {
            true => Ok(()),
            false => Err(BenchError::Lost),
        }
    }

    fn copy(&self, slot: &Slot, frame: &mut [u8], len: usize) -> Result<(), BenchError> {
        use vm_memory::{Bytes, GuestAddress};
        let frame = frame.get_mut(..len).unwrap_or_default();
        self.ram
            .read_slice(frame, GuestAddress(slot.addr))
            .map_err(|source| BenchError::Copy { source })
    }
}

/// The `nth` descriptor of a run: buffers in turn, a length that tells them apart.
fn descriptor(nth: usize) -> Slot {
    let nth = nth as u64;
    Slot {
        addr: BUFFERS_GPA + nth % u64::from(NUM_SLOTS) * BUFFER_BYTES,
        len: 60 + (nth & 1023) as u32,
        meta: [nth, 0],
    }
}

/// Waiting for the other end, but not for ever.
struct Patience<'a> {
    has_failed: &'a AtomicBool,
    num_idle: u32,
    since: Instant,
}

impl<'a> Patience<'a> {
    fn new(shared: &'a Shared<'_>) -> Self {
        Patience {
            has_failed: &shared.has_failed,
            num_idle: 0,
            since: Instant::now(),
        }
    }

    #[inline]
    fn check(&mut self, has_progress: bool) -> Result<(), BenchError> {
        if has_progress {
            return Ok(());
        }
        spin_loop();
        self.num_idle = self.num_idle.wrapping_add(1);
        if self.num_idle.is_multiple_of(4096) {
            if self.has_failed.load(Relaxed) {
                return Err(BenchError::OtherEnd);
            }
            if self.since.elapsed() > DEADLINE {
                return Err(BenchError::Lost);
            }
        }
        Ok(())
    }
}
