//! One event queue: a ring whose empty slots the guest publishes, and that return as events.

use rustix::io::Errno;
use vbus::abi::RING_SIGNAL_OFFSET;
use vbus::memory::Region;
use vbus::ring::{RingFault, Slot, South};
use vbus::signal::{self, Side, SignalReceiver, SignalSender};

/// What became of events that were offered to a queue.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delivery {
    /// How many were told.
    pub num_told: usize,
    /// The guest sleeps: interrupt it.
    pub must_interrupt: bool,
}

/// The south's end.
pub(super) struct EventQueue {
    ring: South,
    sender: SignalSender<Region>,
    receiver: SignalReceiver<Region>,
    /// The guest was asked to ring when there are empty slots.
    is_asking: bool,
    /// MSI-X vector.
    pub vector: u32,
}

/// Slots that are filled at a time.
pub(super) const BATCH: usize = 16;

impl EventQueue {
    /// Attaches to the ring that the guest made in `region`.
    ///
    /// # Errors
    /// `EINVAL`: there is none.
    pub fn attach(region: Region, vector: u32) -> Result<Self, Errno> {
        let (sender, receiver) =
            signal::attach(region.clone(), RING_SIGNAL_OFFSET, Side::South).ok_or(Errno::INVAL)?;
        let ring = South::attach(region).map_err(|_| Errno::INVAL)?;
        Ok(EventQueue {
            ring,
            sender,
            receiver,
            is_asking: false,
            vector,
        })
    }

    /// Tells as many of `events`, at most [`BATCH`], as there are empty slots, oldest first.
    ///
    /// # Errors
    /// The guest broke the rules of rings.
    pub fn tell(&mut self, events: &[Slot]) -> Result<Delivery, RingFault> {
        let mut slots = [Slot::default(); BATCH];
        let wanted = slots.iter_mut().zip(events).count();
        let num_taken = self
            .ring
            .take(slots.get_mut(..wanted).unwrap_or_default())?;
        let events = events.get(..num_taken).unwrap_or_default();
        let num_told = self.ring.give_back_filled(events);
        Ok(Delivery {
            num_told,
            must_interrupt: num_told > 0 && self.sender.inject(),
        })
    }

    /// From now on the guest need not ring.
    pub fn stop_asking(&mut self) {
        if self.is_asking {
            self.receiver.disable();
            self.is_asking = false;
        }
    }

    /// Asks the guest to ring when it publishes; false if it did meanwhile: look again.
    pub fn ask(&mut self) -> bool {
        self.is_asking = true;
        self.receiver.enable()
    }
}
