//! `alacrity bench`: what alacrity costs on this machine, beside others.
//!
//! [`guests`] measures whole guests. A [`Case`] needs none: it measures one part against something known in rounds that alternate, so that a machine
//! that is slow for a while is slow for both, and gives a [`Report`].

mod bus;
mod call;
mod echo;
mod frames;
pub mod guests;
mod harness;
pub mod instructions;
mod ip;
pub mod over_time;
mod reclaim;
mod report;
pub mod results;
mod ring;
mod tap_pair;
mod transport;
mod virtqueue;

use alacrity_devices::tap::TapError;
use alacrity_devices::venet::driver::DriverError;
use rustix::io::Errno;
use vbus::client::ClientError;
use vbus::server::ServerError;

use ip::IpError;
pub use report::{Comparison, Report, Signals};

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Both ends need a CPU.
    #[error("only one CPU may be used, each end needs one; see `taskset -p $$`")]
    OneCpu,
    /// The host does not let threads be pinned.
    #[error("cannot pin a thread to a CPU")]
    Affinity {
        /// Why.
        source: Errno,
    },
    /// No memory for the buffers.
    #[error("cannot make the memory that both ends share")]
    Ram {
        /// Why.
        source: vm_memory::mmap::FromRangesError,
    },
    /// No eventfd.
    #[error("cannot wake the other end")]
    EventFd {
        /// Why.
        source: std::io::Error,
    },
    /// The ring has no place.
    #[error("cannot place the ring")]
    Region {
        /// Why.
        source: vbus::memory::RegionError,
    },
    /// The signal has no place.
    #[error("cannot place the signal")]
    Signal,
    /// The ring is none.
    #[error("cannot make the ring")]
    Ring {
        /// Why.
        source: vbus::ring::RingError,
    },
    /// One end of the ring broke the rules.
    #[error("the ring is broken")]
    RingFault {
        /// How.
        source: vbus::ring::RingFault,
    },
    /// The virtqueue is none, or the driver broke the rules.
    #[error("the virtqueue is broken")]
    Queue {
        /// How.
        source: virtio_queue::Error,
    },
    /// The virtqueue has no place.
    #[error("cannot place the virtqueue")]
    QueuePlace,
    /// The driver cannot reach the virtqueue.
    #[error("the virtqueue is not in memory")]
    Volatile {
        /// Why.
        source: vm_memory::VolatileMemoryError,
    },
    /// The device cannot reach a buffer.
    #[error("a buffer is not in memory")]
    Copy {
        /// Why.
        source: vm_memory::GuestMemoryError,
    },
    /// More than either end moves at once.
    #[error("a batch of {batch} descriptors is too large")]
    Batch {
        /// Descriptors.
        batch: usize,
    },
    /// Descriptors did not arrive as they were sent, or not in time.
    #[error("descriptors were lost or changed on the way")]
    Lost,
    /// The other end failed; its error tells more.
    #[error("the other end failed")]
    OtherEnd,
    /// The bus of this process refused a step.
    #[error("cannot {what}")]
    Bus {
        /// The step.
        what: &'static str,
        /// Why.
        source: Errno,
    },
    /// The driver of a device gave up.
    #[error("cannot use the device")]
    Driver {
        /// Why.
        source: DriverError,
    },
    /// No daemon's socket.
    #[error("cannot serve the bus")]
    Server {
        /// Why.
        source: ServerError,
    },
    /// No connection to it.
    #[error("cannot join the bus")]
    Client {
        /// Why.
        source: ClientError,
    },
    /// No TAP.
    #[error("cannot make a TAP to compare with")]
    Tap {
        /// Why.
        source: TapError,
    },
    /// `ip` did not do what it was to do.
    #[error(transparent)]
    Ip(#[from] IpError),
    /// Nothing can be taken.
    #[error("cannot take memory")]
    Reclaim {
        /// Why.
        source: crate::reclaim::reclaimer::ReclaimError,
    },
    /// No memory to take from.
    #[error("cannot make the memory that is taken")]
    GuestMemory {
        /// Why.
        source: crate::memory::MemoryError,
    },
    /// The host refused something.
    #[error("cannot {what}")]
    Io {
        /// What.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A bug.
    #[error("a thread of the benchmark panicked")]
    Panic,
}

/// How long to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// A second or two: is it working at all?
    Quick,
    /// Some ten seconds.
    Full,
}

/// One benchmark.
pub trait Case {
    /// Runs it.
    ///
    /// # Errors
    /// [`BenchError`].
    fn run(&self, effort: Effort) -> Result<Report, BenchError>;
}

pub use call::CallCase;
pub use frames::FramesCase;
pub use reclaim::ReclaimCase;
pub use transport::RingCase;
