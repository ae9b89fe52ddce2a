//! The PCI connector: one guest's way to its bus.
//!
//! The layout is in [`vbus::abi::pci`], the rules are in `docs/abi.md`. The connector turns calls of
//! the guest into [`Verbs`], and events of the bus into slots of the guest's event queues. Doorbells
//! and interrupts of rings do not pass through it: it hands the eventfds of both to the bus.

use std::sync::Arc;

use rustix::io::Errno;
use vbus::verbs::{EventSink, Verbs};

/// The bus behind a connector: in this process, or in a daemon.
pub trait Uplink: Send + Sync {
    /// Attaches to the bus as a new client, which is let go by dropping the verbs. Events of that
    /// client go to `events` from before this returns.
    ///
    /// Ids, handles and cookies of the verbs are never used again by them.
    ///
    /// # Errors
    /// The bus is gone, or takes no more clients.
    fn attach(&self, events: Arc<dyn EventSink>) -> Result<Arc<dyn Verbs + Send + Sync>, Errno>;
}
