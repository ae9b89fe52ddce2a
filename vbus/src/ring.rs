//! Rings: slots that travel from north to south and back, in order, without a lock and without an
//! index in shared memory.
//!
//! The north owns the memory. It *publishes* slots, the south *takes* and later *returns* them, and
//! the north *reaps* them: a full slot to transmit or an empty one to receive into, which is all the
//! difference between the two directions. Slots go round in order, so either end knows by itself
//! which slot comes next, and looks at nothing but that slot.
//!
//! Whose a slot is says its `turn`: 2 × lap + 1 from the north, 2 × lap + 2 from the south, where
//! the lap counts how often the ring was gone round. Odd means south's. A slot that was never
//! touched has turn 0.
//!
//! A batch changes hands at its first slot: everything else is written before, and the other end
//! comes to the other slots only after it found the first one its own. So
//!
//! - a batch of any size is published or returned by one store that the other end watches;
//! - slots that the south returns without a change (what was transmitted) are not written at all:
//!   the first one says how many come back with it, and the others keep their odd turn of this lap,
//!   which nobody takes for one of the next.
//!
//! | store (release) | load (acquire) on the other side |
//! |---|---|
//! | `control` of a batch's first slot in [`North::publish`] | [`South::take`] |
//! | `control` of a batch's first slot in [`South::give_back`], [`South::give_back_filled`] | [`North::reap`], [`North::reclaim`] |
//!
//! Neither end trusts the other: a turn that is none of the possible ones, or a batch larger than
//! what is out, is a [`RingFault`], after which the ring is not usable. Positions are counted
//! privately, so a peer that rewrites slots changes only what it says itself. `tests/loom_ring.rs`
//! checks the order of accesses, `tests/ring_model.rs` long random conversations.

mod layout;
mod north;
mod south;

pub use layout::{Geometry, RingError, RingFault, Slot};
pub use north::North;
pub use south::South;

#[cfg(test)]
mod tests;
