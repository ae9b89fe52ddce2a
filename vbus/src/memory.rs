//! Guest memory as every device sees it.

/// All RAM of one guest: shared mappings of a sealed memfd, indexed by guest-physical address.
///
/// Cloning is cheap (it copies a few `Arc`s) and keeps the mappings alive.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;
