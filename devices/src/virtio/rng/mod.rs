//! The virtio entropy device (VIRTIO 1.2 §5.4): random bytes of the host for the guest.
//!
//! | file | what lives there |
//! |---|---|
//! | `device` | features, activation and reset |
//! | `handler` | queue → random bytes → used ring |
//! | `event` | event-manager glue of the worker |
//! | `metrics` | counters |
//! | `fuzz` | a hostile driver |
//!
//! The kernel writes `/dev/urandom` straight into guest memory, so no random byte that the guest
//! uses passes through ours.

mod device;
mod event;
#[cfg(any(test, feature = "test-utils"))]
pub mod fuzz;
mod handler;
mod metrics;

pub use device::RngDevice;
pub use metrics::RngMetrics;
