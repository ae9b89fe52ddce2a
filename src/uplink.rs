//! The bus behind a VM's PCI connector.
//!
//! | module | the bus is |
//! |---|---|
//! | [`embedded`] | in this process, made for this VM: `--venet` |
//! | [`daemon`] | in `alacrity host`, for many VMs: `--bus` |
//!
//! The guest cannot tell which: both are [`alacrity_devices::vbus_pci::Uplink`]s.

pub mod daemon;
pub mod embedded;
mod follower;
mod session;
#[cfg(test)]
mod tests;

pub use daemon::{DaemonBus, DaemonError, HangUp};
pub use embedded::{EmbeddedBus, EmbeddedError};
