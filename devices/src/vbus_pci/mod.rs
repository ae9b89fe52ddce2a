//! The PCI connector: one guest's way to its bus.
//!
//! The layout is in [`vbus::abi::pci`], the rules are in `docs/abi.md`. The connector turns calls of
//! the guest into [`Verbs`], and events of the bus into slots of the guest's event queues. Doorbells
//! and interrupts of rings do not pass through it: it hands the eventfds of both to the bus.
//!
//! | module | what lives there |
//! |---|---|
//! | `function` | the PCI function: configuration space, BARs, registers |
//! | `connector` | the session between two resets, and who may do what when |
//! | `calls` | what each call does |
//! | `mailbox` | a call in guest memory |
//! | `events` | what the bus says, and the shms it can say it of |
//! | `interfaces` | what the guest is to be told of interfaces |
//! | `backlog` | events that wait for an empty slot |
//! | `queue` | one event queue of the guest |
//! | `wires` | interrupts and doorbells |
//!
//! # Threads and locks
//! A call runs in the thread of the vCPU that makes it, and holds the session; a reset excludes all
//! calls, closes all that the session has, and waits until the bus has let go of its memory. The bus
//! tells its events under locks of its own, so the event queues are a leaf: their lock is held for a
//! bounded time and nothing is called under it. One more thread serves the doorbells of the event
//! queues.
//!
//! Order: session → handles → locks of the bus → events → numbers of signals. The lock of the
//! configuration space is held with none of them.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use vbus::verbs::{EventSink, Verbs};

mod backlog;
mod calls;
mod connector;
mod events;
#[cfg(any(test, feature = "test-utils"))]
pub mod fake_guest;
mod function;
#[cfg(any(test, feature = "test-utils"))]
pub mod fuzz;
mod interfaces;
mod mailbox;
mod metrics;
mod queue;
#[cfg(test)]
mod tests;
mod wires;

pub use function::VbusPci;
pub use metrics::VbusPciMetrics;

/// What becomes of the interfaces of a client when the bus goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLoss {
    /// They are dropped. What a bus that came back has on it is new.
    #[default]
    Drop,
    /// They are lost ([`vbus::verbs::Event::DeviceLost`]), and go on under their ids if the bus comes
    /// back with them.
    Keep,
}

/// The bus behind a connector: in this process, or in a daemon.
pub trait Uplink: Send + Sync {
    /// Attaches to the bus as a new client, which is let go by dropping the verbs. Events of that
    /// client go to `events` from before this returns.
    ///
    /// A bus that cannot go away does not look at `on_loss`.
    ///
    /// Ids, handles and cookies of the verbs are never used again by them. Each shm that the bus
    /// took gets its [`vbus::verbs::Event::ShmClosed`], also when the bus goes away: until then the
    /// guest does not use that memory for anything else, and a reset waits for it before it drops the
    /// verbs.
    ///
    /// # Errors
    /// The bus is gone, or takes no more clients. No event follows then.
    fn attach(
        &self,
        events: Arc<dyn EventSink>,
        on_loss: OnLoss,
    ) -> Result<Arc<dyn Verbs + Send + Sync>, Errno>;
}

/// Why a connector cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum VbusPciError {
    /// No interrupt vectors, file descriptors or threads left on the host.
    #[error("cannot make the interrupts and doorbells of {name}")]
    Events {
        /// The connector's name.
        name: String,
        /// What the host said.
        source: io::Error,
    },
}
