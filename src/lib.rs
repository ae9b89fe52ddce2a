//! alacrity: a virtual machine monitor on KVM.
//!
//! | module | what lives there |
//! |---|---|
//! | [`cli`] | command line and configuration file → [`config::VmConfig`] |
//! | [`config`] | what a VM shall be: plain data and its pure checks |
//! | [`preflight`] | the checks of a configuration that need to look at the host |
//! | [`check`] | can this host run Linux guests? measured, with remedies |
//! | [`mod@bench`] | `alacrity bench`: guests beside those of others, what parts cost without a guest, and the report of all benchmarks |
//! | [`images`] | where the default guest image is |
//! | [`exec`] | how a command travels into the default guest image |
//! | [`footprint`], [`smaps`] | memory of the process beside guest RAM, kept small; mappings as the kernel tells of them |
//! | [`exit`] | the exit statuses of `alacrity` |
//! | [`host`] | `alacrity host`: the daemon that buses live in, its mount and its state file |
//! | [`vbus_cli`] | `alacrity vbus`: the control tree from the shell, over the daemon's socket |
//! | [`control_socket`] | what others may ask of a running VM |
//! | [`vm_cli`] | `alacrity ps`, `stat` and `reclaim`, which ask |
//! | [`mac`], [`paths`], [`size`] | hardware addresses, names of files and sizes as text |
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

pub mod bench;
pub mod boot;
pub mod builder;
pub mod check;
pub mod cli;
pub mod config;
pub mod console;
pub mod control;
pub mod control_socket;
pub mod event;
pub mod exec;
pub mod exit;
pub mod footprint;
pub mod host;
pub mod images;
pub mod kvm;
pub mod layout;
pub mod mac;
pub mod memmap;
pub mod memory;
pub mod metrics;
pub mod paths;
pub mod preflight;
pub mod reclaim;
pub mod report;
pub mod resources;
pub mod sandbox;
pub mod size;
pub mod smaps;
pub mod uplink;
pub mod user;
pub mod vbus_cli;
pub mod vm_cli;
pub mod vmm;
