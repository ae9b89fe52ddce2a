//! Memory of a guest that the host takes back, and gives again before anybody misses it.
//!
//! The content of a page never changes under a guest. A page in memory is written to its backing, or
//! proved to equal it, while nobody can write to the page; then its memory is dropped, and whoever
//! accesses it waits until its bytes are there again:
//!
//! ```text
//!            claim          protect, read, store        publish   punch       release
//! Resident ────────> owned ───────────────────────> owned ────> Swapped ────────────> Swapped
//!     ^                │ a write was tried: unprotect                                     │
//!     └────────────────┘                                                                 │
//!     ^                    access: claim, read the slot, fill, release                    │
//!     └───────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A page that was read from or written to a disk, and still has the same bytes, is *dropped* in the same
//! way, without writing anything: it is read from its sectors again.
//!
//! | file | what |
//! |---|---|
//! | [`word`] | the state of each page, and who owns it |
//! | [`ram`] | guest RAM by pages |
//! | [`host`] | what is asked of the host's kernel for both |
//! | [`userfault`] | accesses that wait |
//! | [`backing`] | disks, who depends on them, and what was transferred |
//! | [`swap_file`] | pages that have no other backing |
//! | [`reclaimer`] | what one guest has for all of that |
//! | [`take`] | takes pages |
//! | [`release`] | takes what the guest gives away |
//! | [`drops`] | dropped pages that the guest is to be told of |
//! | [`recent`] | pages that just came back |
//! | [`restore`] | brings them back |
//! | [`faults`] | serves those who access them |
//! | [`visitors`] | other processes that have the memory too |
//! | [`policy`] | which memory to take |
//! | [`census`] | what the pages are, to be drawn |
//!
//! # Invariants
//! - What is in memory is right: only guests and devices write to a page in memory, and a page is
//!   filled only by its owner, as a whole.
//! - A page is punched only by its owner, while it is protected, and after its new state was published.
//! - A page that depends on sectors is rebuilt before they change ([`backing`]).
//! - Between publishing and the hole nobody reads the page: every access to a page of a registered
//!   chunk that needs something waits, and one that meets an owner waits until it lets go.
//! - Whoever has another mapping of the file looks first whether a page is there ([`visitors`]): reading
//!   a hole would make zeros of it.

pub mod backing;
pub mod census;
pub mod drops;
pub mod faults;
pub mod host;
pub mod policy;
pub mod ram;
pub mod recent;
pub mod reclaimer;
pub mod release;
pub mod restore;
pub mod swap_file;
pub mod take;
#[cfg(test)]
mod tests;
pub mod userfault;
pub mod visitors;
pub mod word;
