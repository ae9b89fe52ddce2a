//! A client of a device on the virtual bus: what it shared, and whether it is still trusted.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use event_manager::EventSet;
use rustix::io::Errno;
use vbus::device::{FaultReporter, Shm, ShmSignal};
use vbus::ring::South;
use vmm_sys_util::eventfd::EventFd;

/// A ring and its signal, as a client shared them.
pub(crate) struct RingEnd {
    pub(crate) ring: South,
    pub(crate) signal: ShmSignal,
}

impl RingEnd {
    /// The ring in `shm`, and its doorbell for a worker to watch: it comes from the client and is never
    /// read, since a read could block.
    ///
    /// # Errors
    /// `EINVAL`: no signal, or no ring. `EMFILE`.
    pub(crate) fn take(shm: &mut Shm) -> Result<(Self, Arc<EventFd>), Errno> {
        let signal = shm.signal.take().ok_or(Errno::INVAL)?;
        let doorbell = signal.doorbell.try_clone().map_err(|_| Errno::MFILE)?;
        let ring = South::attach(shm.region.clone()).map_err(|error| {
            tracing::debug!("shared memory {} is refused: {error}", shm.id);
            Errno::INVAL
        })?;
        Ok((RingEnd { ring, signal }, Arc::new(doorbell)))
    }
}

/// The client of a connection: whether it is still trusted, and whom to tell when not.
pub(crate) struct Client {
    faults: Arc<dyn FaultReporter>,
    is_cut_off: AtomicBool,
}

impl Client {
    pub(crate) fn new(faults: Arc<dyn FaultReporter>) -> Self {
        Client {
            faults,
            is_cut_off: AtomicBool::new(false),
        }
    }

    /// True from its first fault on: nothing of it is touched any more.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.is_cut_off.load(Relaxed)
    }

    /// Cuts it off; reported once.
    pub(crate) fn cut_off(&self, ring: &str, fault: impl fmt::Display) {
        if !self.is_cut_off.swap(true, Relaxed) {
            self.faults.report(&format_args!("{ring} ring: {fault}"));
        }
    }
}

/// What doorbells are watched for.
pub(crate) fn readable() -> EventSet {
    EventSet::IN | EventSet::EDGE_TRIGGERED
}
