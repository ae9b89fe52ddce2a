//! The device of the kind `page-hints` on the virtual bus: a guest tells what its pages are worth.
//!
//! | module | what lives there |
//! |---|---|
//! | [`Keeper`] | the seam to what keeps the guest's memory |
//! | [`HintsHandle`] | the seam to whoever wants memory back: asks the guest, reads its words |
//! | `connection` | set-up order, negotiation, rings and tables of one client |
//! | `release` | blocks that the guest gives away, on a worker of their own |
//! | `table` | words, and what they say |
//! | `device`, `metrics` | what the administrator sees |
//!
//! Blocks of the release ring are the only memory that a guest loses by what it says. Words choose what
//! is looked at first. A guest may give away its own rings and tables: what the host finds there then
//! are zeros, and these are no slots.

mod connection;
mod device;
#[cfg(any(test, feature = "test-utils"))]
pub mod fuzz;
mod handle;
mod keeper;
mod metrics;
mod release;
mod table;
#[cfg(test)]
mod tests;

pub use device::HintsClass;
pub use handle::{HintsHandle, NotReleased};
pub use keeper::{Keeper, KnownDisk, NotRam, Released};
pub use metrics::HintsMetrics;
pub use table::{Hint, Place, Worth};
