//! A ring with everything that belongs to it.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use super::link::Link;
use super::remote::{Remote, wait_readable};
use crate::abi::{RING_SIGNAL_OFFSET, SignalPair};
use crate::eventfd;
use crate::memory::{Region, RegionError};
use crate::ring::{Geometry, North, RingError, RingFault, Slot};
use crate::signal::{self, Side, SignalReceiver, SignalSender};
use crate::verbs::{Handle, ShmRequest, SignalRequest, Verbs, WakeUp};

const SIGNAL_OFFSET: u32 = 128;
const _: () = assert!(SIGNAL_OFFSET as usize == RING_SIGNAL_OFFSET);
const _: () = assert!(RING_SIGNAL_OFFSET.is_multiple_of(8) && size_of::<SignalPair>() == 128);

/// A ring to be shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingRequest {
    /// Which one: defined by the device class.
    pub id: u32,
    /// 0, the lowest, to 7.
    pub priority: u32,
    /// The client's own number for it, which comes back in events.
    pub cookie: u64,
    /// A power of two up to [`crate::abi::RING_MAX_SLOTS`].
    pub num_slots: u32,
}

/// Why a ring is not shared.
#[derive(Debug, thiserror::Error)]
pub enum RingSetupError {
    /// Bad number of slots, or the memory is too short.
    #[error("cannot make the ring")]
    Ring {
        /// What is wrong.
        source: RingError,
    },
    /// This host is out of memory.
    #[error("no memory for the ring")]
    Memory {
        /// What is wrong.
        source: RegionError,
    },
    /// This host is out of descriptors.
    #[error("no eventfd for the ring")]
    Eventfd {
        /// What the kernel said.
        source: std::io::Error,
    },
    /// As of [`Verbs::shm`].
    #[error("device does not take the ring")]
    Share {
        /// Why.
        source: Errno,
    },
}

/// Why waiting for a ring makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingWaitError {
    /// The device broke the rules of the ring.
    #[error("device broke the ring")]
    Fault {
        /// How.
        source: RingFault,
    },
    /// The connection is closed, or its device left the bus.
    #[error("device of the ring is gone")]
    Dropped,
    /// The daemon is gone (`ECONNRESET`), or the kernel refuses to wait.
    #[error("daemon is gone")]
    Disconnected {
        /// What happened.
        source: Errno,
    },
}

/// The north's end of a ring, its signals and its eventfds.
///
/// It follows the rules of [`crate::signal`] by itself: [`Ring::publish`] signals, [`Ring::wait`]
/// looks again after it asked to be woken, and [`Ring::reap`] stays awake. For an event loop,
/// [`Ring::arm`] until it is true, then wait for the descriptor to be readable, then reap.
#[derive(Debug)]
pub struct Ring {
    north: North,
    sender: SignalSender<Region>,
    receiver: SignalReceiver<Region>,
    doorbell: EventFd,
    wake_up: Arc<EventFd>,
    /// A slot that was reaped to see whether there is one.
    stash: Option<Slot>,
    is_armed: bool,
    handle: Handle,
    /// Knows whether the device is still there.
    link: Option<Arc<Link>>,
}

impl Ring {
    /// Makes a ring in memory of its own and shares it with a device of a daemon.
    ///
    /// # Errors
    /// [`RingSetupError`].
    pub fn share_remote(
        remote: &Remote,
        handle: Handle,
        request: RingRequest,
    ) -> Result<Self, RingSetupError> {
        let mut ring = Self::share(remote, handle, request)?;
        ring.link = Some(Arc::clone(remote.link()));
        Ok(ring)
    }

    /// As [`Ring::share_remote`], at the start of `region`: memory that was registered.
    ///
    /// # Errors
    /// [`RingSetupError`].
    pub fn share_remote_in(
        remote: &Remote,
        handle: Handle,
        request: RingRequest,
        region: Region,
    ) -> Result<Self, RingSetupError> {
        let mut ring = Self::share_in(remote, handle, request, region)?;
        ring.link = Some(Arc::clone(remote.link()));
        Ok(ring)
    }

    /// Makes a ring and shares it with a device by any verbs, e.g. of this process. Nobody then
    /// tells [`Ring::wait`] that the device is gone: give it a timeout.
    ///
    /// # Errors
    /// [`RingSetupError`].
    pub fn share(
        verbs: &dyn Verbs,
        handle: Handle,
        request: RingRequest,
    ) -> Result<Self, RingSetupError> {
        let geometry =
            Geometry::new(request.num_slots).map_err(|source| RingSetupError::Ring { source })?;
        let (region, _) = Region::new_shared(geometry.len_bytes())
            .map_err(|source| RingSetupError::Memory { source })?;
        Self::share_in(verbs, handle, request, region)
    }

    fn share_in(
        verbs: &dyn Verbs,
        handle: Handle,
        request: RingRequest,
        region: Region,
    ) -> Result<Self, RingSetupError> {
        let bad = |source| RingSetupError::Ring { source };
        let geometry = Geometry::new(request.num_slots).map_err(bad)?;
        let region = region
            .subregion(0, geometry.len_bytes())
            .map_err(|source| RingSetupError::Memory { source })?;
        let north = North::create(region.clone(), geometry).map_err(bad)?;
        let too_short = RingSetupError::Ring {
            source: RingError::TooShort {
                num_slots: request.num_slots,
                len: region.len(),
                needed: geometry.len_bytes(),
            },
        };
        let (sender, receiver) =
            signal::attach(region.clone(), RING_SIGNAL_OFFSET, Side::North).ok_or(too_short)?;
        let no_eventfd = |source| RingSetupError::Eventfd { source };
        let new_eventfd = || EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        let doorbell = new_eventfd().map_err(no_eventfd)?;
        let wake_up = Arc::new(new_eventfd().map_err(no_eventfd)?);
        let signal = SignalRequest {
            offset: SIGNAL_OFFSET,
            doorbell: doorbell.try_clone().map_err(no_eventfd)?,
            wake_up: Arc::clone(&wake_up) as Arc<dyn WakeUp>,
        };
        let shm = ShmRequest {
            id: request.id,
            priority: request.priority,
            cookie: request.cookie,
            region,
            signal: Some(signal),
        };
        verbs
            .shm(handle, shm)
            .map_err(|source| RingSetupError::Share { source })?;
        Ok(Ring {
            north,
            sender,
            receiver,
            doorbell,
            wake_up,
            stash: None,
            is_armed: false,
            handle,
            link: None,
        })
    }

    /// Number of slots.
    pub fn num_slots(&self) -> u32 {
        self.north.num_slots()
    }

    /// Slots that are out: published and not reaped.
    pub fn outstanding(&self) -> u32 {
        self.north.outstanding() + u32::from(self.stash.is_some())
    }

    /// Slots that can be published now.
    pub fn room(&self) -> u32 {
        self.north.room()
    }

    /// Number in the ring of the slot that is published next: the key to what belongs to it.
    pub fn next_slot_idx(&self) -> u32 {
        self.north.next_slot_idx()
    }

    /// Hands `slots` to the device as one batch, as far as there is room, and wakes it if it
    /// sleeps; how many that were.
    pub fn publish(&mut self, slots: &[Slot]) -> usize {
        let num_published = self.north.publish(slots);
        if num_published > 0 && self.sender.inject() {
            // Fails only when the counter is full, and then it is readable.
            let _ = self.doorbell.write(1);
        }
        num_published
    }

    /// Takes back slots that the device returned, oldest first, with what is in them; how many.
    ///
    /// # Errors
    /// [`RingFault`], after which the ring is not usable.
    pub fn reap(&mut self, slots: &mut [Slot]) -> Result<usize, RingFault> {
        self.disarm();
        let Some((first, rest)) = slots.split_first_mut() else {
            return Ok(0);
        };
        match self.stash.take() {
            Some(slot) => {
                *first = slot;
                Ok(1 + self.north.reap(rest)?)
            }
            None => self.north.reap(slots),
        }
    }

    /// Takes back all slots that the device returned, without a look at what is in them; how many.
    ///
    /// # Errors
    /// As of [`Ring::reap`].
    pub fn reclaim(&mut self) -> Result<u32, RingFault> {
        self.disarm();
        let num_stashed = u32::from(self.stash.take().is_some());
        Ok(num_stashed + self.north.reclaim()?)
    }

    /// Asks to be woken through the descriptor. False: do not sleep but reap, something is or may be
    /// there.
    ///
    /// # Errors
    /// As of [`Ring::reap`].
    pub fn arm(&mut self) -> Result<bool, RingFault> {
        if self.is_armed {
            return Ok(true);
        }
        // Clears what was said before the look; what is said after it, `enable` finds.
        self.receiver.disable();
        if self.look()? {
            return Ok(false);
        }
        self.is_armed = self.receiver.enable();
        if !self.is_armed {
            self.receiver.disable();
        }
        Ok(self.is_armed)
    }

    /// Sleeps until the device has returned something; false after `timeout`.
    ///
    /// # Errors
    /// [`RingWaitError`].
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<bool, RingWaitError> {
        let fault = |source| RingWaitError::Fault { source };
        let disconnected = |source| RingWaitError::Disconnected { source };
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            self.disarm();
            let is_armed = self.arm().map_err(fault)?;
            if self.stash.is_some() {
                return Ok(true);
            }
            if let Some(link) = &self.link {
                link.pump().map_err(disconnected)?;
                if !link.is_open(self.handle).map_err(disconnected)? {
                    return Err(RingWaitError::Dropped);
                }
            }
            if !is_armed {
                continue;
            }
            let wake_up = eventfd::as_fd(&self.wake_up);
            let is_ready = match &self.link {
                Some(link) => wait_readable(&[wake_up, link.socket_fd()], deadline),
                None => wait_readable(&[wake_up], deadline),
            };
            if !is_ready.map_err(disconnected)? {
                self.disarm();
                return self.look().map_err(fault);
            }
        }
    }

    /// Stays awake from now on.
    fn disarm(&mut self) {
        if self.is_armed {
            self.receiver.disable();
            eventfd::drain(&self.wake_up);
            self.is_armed = false;
        }
    }

    fn look(&mut self) -> Result<bool, RingFault> {
        if self.stash.is_none() {
            let mut slot = [Slot::default()];
            let num_slots = self.north.reap(&mut slot)?;
            let [slot] = slot;
            self.stash = (num_slots > 0).then_some(slot);
        }
        Ok(self.stash.is_some())
    }
}

/// Readable when the device woke an armed ring, see [`Ring::arm`]. That a device is gone comes as an
/// event of [`Remote`], and wakes the ring as well once somebody takes events.
impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        eventfd::as_fd(&self.wake_up)
    }
}
