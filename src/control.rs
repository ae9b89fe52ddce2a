//! What the VM's threads tell the main loop: how the VM ends, and when it got where.
//!
//! vCPU threads call in through [`GuestEventSink`] and [`VcpuObserver`]; the first end wins. The
//! main loop waits on [`Control::wake_evt`].

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use alacrity_devices::legacy::{GuestEvent, GuestEventSink};
use parking_lot::Mutex;
use serde::{Serialize, Serializer};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::kvm::vcpu::{VcpuError, VcpuObserver};

/// How a VM ends.
#[derive(Debug)]
pub enum End {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's CPU gave up: a way to reset, or a crash.
    TripleFault,
    /// The guest's kernel panicked.
    Panic,
    /// A vCPU cannot go on.
    Failed(VcpuError),
    /// Memory that was taken from the guest cannot be given back, for this reason; threads may wait
    /// for it until the process ends.
    MemoryLost(String),
    /// The user typed the escape sequence.
    Escape,
    /// This signal, and the guest had its chance.
    Signal(u8),
}

/// When the VM got where, since the program started.
#[derive(Debug, Default, Serialize)]
pub struct Timeline {
    /// Guest RAM, kernel and devices are ready.
    pub memory_ready_us: Mark,
    /// The boot vCPU enters the guest.
    pub first_run_us: Mark,
    /// The guest image's init reported.
    pub guest_init_us: Mark,
    /// The guest image starts the `--exec` command.
    pub command_us: Mark,
    /// The VM ended.
    pub end_us: Mark,
}

/// A moment that comes at most once; JSON microseconds, or null.
#[derive(Debug, Default)]
pub struct Mark(OnceLock<Duration>);

impl Mark {
    /// The moment, if it has come.
    pub fn get(&self) -> Option<Duration> {
        self.0.get().copied()
    }
}

impl Serialize for Mark {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.get()
            .map(|at| u64::try_from(at.as_micros()).unwrap_or(u64::MAX))
            .serialize(serializer)
    }
}

/// Shared by all threads of the VM.
#[derive(Debug)]
pub struct Control {
    started: Instant,
    timeline: Timeline,
    is_stopping: AtomicBool,
    end: Mutex<Option<End>>,
    command_status: OnceLock<u8>,
    wake_evt: EventFd,
}

impl Control {
    /// For a program that started at `started`.
    ///
    /// # Errors
    /// The host is out of file descriptors.
    pub fn new(started: Instant) -> io::Result<Self> {
        Ok(Control {
            started,
            timeline: Timeline::default(),
            is_stopping: AtomicBool::new(false),
            end: Mutex::default(),
            command_status: OnceLock::new(),
            wake_evt: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Signalled whenever something here changed.
    pub fn wake_evt(&self) -> &EventFd {
        &self.wake_evt
    }

    /// Since the program started.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// When the VM got where.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Exit status of the `--exec` command, once it ended.
    pub fn command_status(&self) -> Option<u8> {
        self.command_status.get().copied()
    }

    /// Guest RAM, kernel and devices are ready.
    pub fn memory_ready(&self) {
        self.mark(&self.timeline.memory_ready_us);
    }

    /// Ends the VM like this, unless it is ending already; true if this is how it ends.
    pub fn end(&self, end: End) -> bool {
        let mut how = self.end.lock();
        let is_first = !self.is_stopping.load(Ordering::Relaxed);
        if is_first {
            *how = Some(end);
            self.mark(&self.timeline.end_us);
            self.is_stopping.store(true, Ordering::Release);
        }
        drop(how);
        self.wake();
        is_first
    }

    /// How the VM ended; at most once.
    pub fn take_end(&self) -> Option<End> {
        self.end.lock().take()
    }

    fn mark(&self, mark: &Mark) {
        mark.0.get_or_init(|| self.started.elapsed());
    }

    fn wake(&self) {
        // Fails only when the counter is full, and then the main loop is awake.
        let _ = self.wake_evt.write(1);
    }
}

impl GuestEventSink for Control {
    fn guest_event(&self, event: GuestEvent) {
        let end = match event {
            GuestEvent::PowerOff => Some(End::PowerOff),
            GuestEvent::Reset => Some(End::Reset),
            GuestEvent::TripleFault => Some(End::TripleFault),
            GuestEvent::Panic => Some(End::Panic),
            GuestEvent::InitStarted => {
                self.mark(&self.timeline.guest_init_us);
                None
            }
            GuestEvent::CommandStarted => {
                self.mark(&self.timeline.command_us);
                None
            }
            GuestEvent::CommandEnded(status) => {
                self.command_status.get_or_init(|| status);
                None
            }
        };
        if let Some(end) = end {
            self.end(end);
        }
        self.wake();
    }
}

impl VcpuObserver for Control {
    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    fn vcpu_failed(&self, error: VcpuError) {
        self.end(End::Failed(error));
    }

    fn first_run(&self) {
        self.mark(&self.timeline.first_run_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_end_wins() {
        let control = Control::new(Instant::now()).unwrap();

        control.guest_event(GuestEvent::Panic);
        control.guest_event(GuestEvent::Reset);

        assert!(matches!(control.take_end(), Some(End::Panic)));
        assert!(control.is_stopping());
        assert!(control.take_end().is_none());
    }

    #[test]
    fn marks_and_statuses_keep_their_first_value() {
        let control = Control::new(Instant::now()).unwrap();
        control.guest_event(GuestEvent::InitStarted);
        let first = control.timeline().guest_init_us.get();

        control.guest_event(GuestEvent::InitStarted);
        control.guest_event(GuestEvent::CommandEnded(7));
        control.guest_event(GuestEvent::CommandEnded(8));

        assert_eq!(control.timeline().guest_init_us.get(), first);
        assert_eq!(control.command_status(), Some(7));
        assert_eq!(control.wake_evt().read().unwrap(), 4);
    }
}
