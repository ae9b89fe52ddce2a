//! PCI: configuration space, MSI-X, and a root complex with one bus reached through ECAM.
//!
//! | module | what lives there |
//! |---|---|
//! | [`config`] | one function's configuration space: ids, BARs, capabilities, what the guest may write |
//! | [`msix`] | the MSI-X table and its capability |
//! | [`mapped_bar`] | a BAR where the guest placed it, its doorbells onto ioeventfds |
//! | [`root`] | which function answers where, BARs onto the buses |
//!
//! There is no port I/O access to configuration space: a stock kernel finds the ECAM window in the
//! ACPI MCFG table, and an ECAM access takes one VM exit where ports `0xcf8`/`0xcfc` take two.

pub mod config;
pub mod mapped_bar;
pub mod msix;
pub mod root;

pub use config::{Bar, BarKind, ConfigSpace, PciIds};
pub use mapped_bar::BarDoorbell;
pub use msix::MsixTable;
pub use root::{PciFunction, PciRoot};
