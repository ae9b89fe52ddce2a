//! The virtio network device (VIRTIO 1.2 §5.1) and what carries its frames.
//!
//! | module | what lives there |
//! |---|---|
//! | [`device`] | features, configuration space, activation and reset |
//! | [`backend`] | where frames go: [`crate::tap`] (an interface of the host) or [`passt`] (no root needed) |
//! | `event` | one queue pair on its worker: which descriptor is ready, what to serve |
//! | `rx`, `tx`, `batch` | the data path of one queue each, and how much of it at a time |
//! | `window` | receive buffers gathered ahead of the frames |
//! | `control` | the control queue: filter, MAC address, queue pairs, offloads |
//! | `filter` | which frames the driver wants to see |
//! | `state` | what the threads of one device share |
//! | `queue` | descriptor chains and used buffers of one virtqueue |
//! | `sys` | system calls without a safe wrapper |
//! | [`metrics`] | counters |
//!
//! Frames cross without a copy: a TAP reads from and writes to guest memory, the 12-byte virtio
//! header included, which is the layout the TAP driver itself uses. Each queue pair has its own
//! thread; the control queue is served by the thread of the first pair.
//!
//! What the driver may do wrong falls in two classes. A frame that makes no sense (bad header, bad
//! length) is dropped and counted. A broken queue (bad chain, bad address, index that jumps) stops
//! the whole device until the driver resets it.

pub mod backend;
mod batch;
mod control;
pub mod device;
mod event;
#[cfg(any(test, feature = "test-utils"))]
mod fake_driver;
mod filter;
#[cfg(any(test, feature = "test-utils"))]
pub mod fuzz;
#[cfg(test)]
mod hostile_tests;
pub mod metrics;
pub mod passt;
mod queue;
mod rx;
#[cfg(any(test, feature = "test-utils"))]
pub mod rx_fuzz;
mod state;
mod sys;
mod tap_port;
mod tx;
mod window;

pub use backend::Backend;
pub use device::NetDevice;
pub use metrics::NetMetrics;
pub use passt::{Passt, PasstError};

pub use crate::tap::{MAX_QUEUE_PAIRS, Tap, TapError};

pub(crate) use crate::tap::HEADER_BYTES;

/// Offset in bytes of `num_buffers` in that header, a little-endian `u16`.
const NUM_BUFFERS_OFFSET: u32 = 10;

/// Most bytes of one frame with its header: the largest IP packet, an Ethernet header and a VLAN
/// tag. No backend delivers more, and what a driver sends beyond it is dropped.
const MAX_FRAME_BYTES: u32 = HEADER_BYTES + 14 + 4 + 65_535;
