//! What others may ask of a running VM: its state and counters, and memory back.
//!
//! `alacrity run` listens on a Unix socket that only its user and root may use; `alacrity ps`, `stat`,
//! `reclaim`, `target` and `memmap` ask there.
//!
//! | file | what |
//! |---|---|
//! | [`protocol`] | requests and answers |
//! | [`place`] | where the sockets are |
//! | [`server`] | who answers there |
//! | [`vm`] | the VM that is told of |
//! | [`client`] | who asks |
//!
//! A VM that was killed leaves its socket behind, and so does one that became another user; whoever comes
//! across it removes it, the next VM at the latest. It is known by a refused connection, with the directory
//! locked against VMs that are about to listen.

pub mod client;
pub mod place;
pub mod protocol;
pub mod server;
#[cfg(test)]
mod tests;
pub mod vm;

pub use place::{Place, PlaceError};
pub use protocol::{Answer, PageCounts, Refusal, Request, VmStat, VmState};
pub use server::{ControlSocket, ControlSocketError};
pub use vm::{RunningVm, VmIdentity};

use crate::reclaim::census::MemoryMap;
use crate::reclaim::policy::Reclaimed;

/// A VM, as those see it who ask. Called from several threads.
pub trait VmControl: Send + Sync {
    /// What there is to say about it now. Takes no lock for long.
    fn stat(&self) -> VmStat;

    /// Gives `bytes` of memory back to the host, or what there is, for as long as `is_wanted`.
    ///
    /// # Errors
    /// [`Refusal::ReclaimDisabled`], [`Refusal::ReclaimFailed`].
    fn reclaim(&self, bytes: u64, is_wanted: &dyn Fn() -> bool) -> Result<Reclaimed, Refusal>;

    /// From now on it takes no more than `bytes` of the host's memory, or what it likes.
    ///
    /// # Errors
    /// [`Refusal::ReclaimDisabled`].
    fn set_target(&self, bytes: Option<u64>) -> Result<(), Refusal>;

    /// What its memory is, in at most `most_cells`.
    ///
    /// # Errors
    /// [`Refusal::ReclaimDisabled`], [`Refusal::ReclaimFailed`].
    fn memory_map(&self, most_cells: u64) -> Result<MemoryMap, Refusal>;
}
