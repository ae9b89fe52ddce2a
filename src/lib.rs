//! alacrity: a virtual machine monitor on KVM.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

pub mod boot;
pub mod kvm;
pub mod layout;
pub mod memory;
