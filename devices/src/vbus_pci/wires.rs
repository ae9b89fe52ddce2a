//! Interrupts and doorbells of a connector, which live as long as it does.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use vbus::abi::pci::{NUM_EVENT_QUEUES, NUM_SIGNALS, NUM_VECTORS, PORTS_BAR, port};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::interrupt::{MsiVector, MsiVectors};
use crate::pci::BarDoorbell;
use crate::pci::msix::VectorOwner;

/// The MSI-X vectors.
pub(super) struct Vectors(Vec<Box<dyn MsiVector>>);

impl Vectors {
    /// # Errors
    /// The host is out of vectors.
    pub fn new(vectors: &dyn MsiVectors) -> io::Result<Self> {
        let vectors = (0..NUM_VECTORS).map(|_| vectors.allocate());
        Ok(Vectors(vectors.collect::<io::Result<_>>()?))
    }

    /// The eventfd that raises `vector`.
    pub fn irqfd(&self, vector: u32) -> Option<&EventFd> {
        let idx = usize::try_from(vector).ok()?;
        self.0.get(idx).map(|vector| vector.irqfd())
    }
}

impl VectorOwner for Vectors {
    fn vectors(&self) -> &[Box<dyn MsiVector>] {
        &self.0
    }
}

/// One eventfd for each number of a signal, rung by the guest through a port: one that takes the
/// number, or one of its own.
///
/// They stay the same for ever: whoever gets a number gets a duplicate of its eventfd. So a number
/// is given again only when its last user has let go.
pub(super) struct Signals {
    /// By number at [`port::DOORBELL`], then by number at [`port::SIGNALS`].
    doorbells: Vec<BarDoorbell>,
    taken: Mutex<Vec<bool>>,
}

impl Signals {
    /// All free but those of the event queues.
    ///
    /// # Errors
    /// The host is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        let events = (0..NUM_SIGNALS).map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new));
        let events = events.collect::<io::Result<Vec<_>>>()?;
        let numbered = || (0..NUM_SIGNALS).zip(&events);
        let bell = |offset: u32, data, event: &Arc<EventFd>| BarDoorbell {
            bar_idx: PORTS_BAR,
            offset: offset.into(),
            data,
            doorbell: Arc::clone(event),
        };
        let by_data = numbered().map(|(number, event)| bell(port::DOORBELL, Some(number), event));
        let by_port = numbered().map(|(number, event)| bell(port::SIGNALS + number, None, event));
        Ok(Signals {
            doorbells: by_data.chain(by_port).collect(),
            taken: Mutex::new(
                (0..NUM_SIGNALS)
                    .map(|number| number < NUM_EVENT_QUEUES)
                    .collect(),
            ),
        })
    }

    pub fn doorbells(&self) -> &[BarDoorbell] {
        &self.doorbells
    }

    /// What a guest rings with `number`.
    pub fn doorbell(&self, number: u32) -> Option<&EventFd> {
        let idx = usize::try_from(number).ok()?;
        let bell = self.doorbells.get(idx).filter(|_| number < NUM_SIGNALS)?;
        Some(&bell.doorbell)
    }

    /// Takes a free number and forgets rings from before.
    pub fn take(&self) -> Option<u32> {
        let idx = {
            let mut taken = self.taken.lock();
            let idx = taken.iter().position(|is_taken| !is_taken)?;
            *taken.get_mut(idx)? = true;
            idx
        };
        let number = u32::try_from(idx).ok()?;
        self.doorbell(number).map(vbus::eventfd::drain);
        Some(number)
    }

    /// Gives a number back.
    pub fn give_back(&self, number: u32) {
        let mut taken = self.taken.lock();
        let slot = usize::try_from(number)
            .ok()
            .and_then(|idx| taken.get_mut(idx));
        if let Some(is_taken) = slot {
            *is_taken = false;
        }
    }

    /// Numbers that are taken, the event queues' included.
    #[cfg(any(test, feature = "test-utils"))]
    pub fn num_taken(&self) -> usize {
        self.taken
            .lock()
            .iter()
            .filter(|is_taken| **is_taken)
            .count()
    }
}
