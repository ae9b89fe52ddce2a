//! Shm-signals: who is awake is written in shared memory, so that busy sides need no wake-ups.
//!
//! Each direction has a receiver and one or more senders, and two flags ([`SignalFlags`]):
//! *enabled*, written by the receiver alone, and *dirty*, set by senders and cleared by the
//! receiver. A wake-up (doorbell, interrupt, eventfd) is due only when a sender turns *dirty* from
//! 0 to 1 while *enabled* is 1.
//!
//! ```text
//! sender                              receiver
//! (publish data)                      disable:  enabled := 0
//! F1                                            dirty := 0   (release)
//! dirty = 1? done                               F2
//! dirty := 1  (acquire-release)       (look at all data)
//! F3                                  enable:   enabled := 1
//! enabled = 1? wake                             F4
//!                                               dirty = 1? not asleep: disable, look again
//! ```
//!
//! Each F is a sequentially consistent fence; AlacrityVM had write barriers there, which order no
//! store before a later load. What each is for:
//!
//! | fences | without them |
//! |---|---|
//! | F1 with F2 | the sender sees the old *dirty* and the receiver the old data: a lost wake-up |
//! | F3 with F4 | the sender sees the old *enabled* and the receiver the old *dirty*: a lost wake-up |
//!
//! The release of `dirty := 0` after `enabled := 0` makes whoever finds *dirty* 0 also find
//! *enabled* 0 or what came later, so that no wake-up follows a disable that the sender knows of, and
//! there are at most as many wake-ups as times of being enabled: only the receiver clears *dirty*, and
//! only while disabled. (With several senders, one that was slow may bring the wake-up of one time in
//! a later one; a receiver takes a wake-up for a reason to look, no more.) `tests/loom_signal.rs`
//! checks this, and that each fence is needed.
//!
//! A hostile peer can send no wake-ups or too many, and no more: the flags decide nothing else.
//!
//! # Source
//! AlacrityVM `lib/shm_signal.c`, whose third flag, *pending*, is gone.

use std::mem::offset_of;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::abi::{SignalFlags, SignalPair};
use crate::memory::Words;

/// The two ends of a connection. Either is named as the place where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The owner of the shared memory: a guest, a client.
    North,
    /// The host, the device.
    South,
}

const ENABLED: usize = offset_of!(SignalFlags, enabled);
const DIRTY: usize = offset_of!(SignalFlags, dirty);

/// The sender's end of one direction.
#[derive(Debug, Clone)]
pub struct SignalSender<M> {
    words: M,
    flags_offset: usize,
}

/// The receiver's end of one direction.
#[derive(Debug, Clone)]
pub struct SignalReceiver<M> {
    words: M,
    flags_offset: usize,
}

/// Both ends that `side` has of the [`SignalPair`] at `offset` of `words`; `None` if it does not fit
/// there or `offset` is no multiple of 8.
pub fn attach<M: Words + Clone>(
    words: M,
    offset: usize,
    side: Side,
) -> Option<(SignalSender<M>, SignalReceiver<M>)> {
    let end = offset.checked_add(size_of::<SignalPair>())?;
    if end > words.len_bytes() || !offset.is_multiple_of(8) {
        return None;
    }
    let to_south = offset + offset_of!(SignalPair, to_south);
    let to_north = offset + offset_of!(SignalPair, to_north);
    let (outgoing, incoming) = match side {
        Side::North => (to_south, to_north),
        Side::South => (to_north, to_south),
    };
    let sender = SignalSender {
        words: words.clone(),
        flags_offset: outgoing,
    };
    let receiver = SignalReceiver {
        words,
        flags_offset: incoming,
    };
    Some((sender, receiver))
}

impl<M: Words> SignalSender<M> {
    /// Tells the receiver that something has changed; true if it has to be woken.
    ///
    /// Call it once after each batch that was published. Any number of threads may.
    #[must_use = "a receiver that sleeps has to be woken"]
    #[inline]
    pub fn inject(&self) -> bool {
        self.words.fence(); // F1
        if self.words.load(self.flags_offset + DIRTY, Relaxed) != 0 {
            return false; // It is told already, and has not begun to look.
        }
        if self.words.swap(self.flags_offset + DIRTY, 1, AcqRel) != 0 {
            return false; // Another sender was faster.
        }
        self.words.fence(); // F3
        self.words.load(self.flags_offset + ENABLED, Relaxed) != 0
    }
}

impl<M: Words> SignalReceiver<M> {
    /// Stays awake: no wake-up is sent from here on. Look at all data afterwards.
    #[inline]
    pub fn disable(&self) {
        self.words.store(self.flags_offset + ENABLED, 0, Relaxed);
        self.words.store(self.flags_offset + DIRTY, 0, Release);
        self.words.fence(); // F2
    }

    /// Asks to be woken. False if something changed since [`SignalReceiver::disable`]: then do not
    /// sleep, but disable and look again.
    #[must_use = "false means that there is work now, and nobody will tell"]
    #[inline]
    pub fn enable(&self) -> bool {
        self.words.store(self.flags_offset + ENABLED, 1, Relaxed);
        self.words.fence(); // F4
        self.words.load(self.flags_offset + DIRTY, Acquire) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Region;

    /// Sender in the north, receiver in the south.
    fn direction() -> (SignalSender<Region>, SignalReceiver<Region>) {
        let region = Region::new_private(size_of::<SignalPair>()).unwrap();
        let (sender, _) = attach(region.clone(), 0, Side::North).unwrap();
        let (_, receiver) = attach(region, 0, Side::South).unwrap();
        (sender, receiver)
    }

    #[test]
    fn nobody_is_woken_at_the_start() {
        let (sender, _) = direction();

        assert!(!sender.inject());
    }

    #[test]
    fn sleeper_is_woken_once() {
        let (sender, receiver) = direction();
        assert!(receiver.enable());

        assert!(sender.inject());
        assert!(!sender.inject());
    }

    #[test]
    fn change_while_awake_keeps_the_receiver_awake() {
        let (sender, receiver) = direction();
        receiver.disable();
        assert!(!sender.inject());

        assert!(!receiver.enable());

        receiver.disable();
        assert!(receiver.enable());
        assert!(sender.inject());
    }

    #[test]
    fn directions_do_not_meet() {
        let region = Region::new_private(size_of::<SignalPair>()).unwrap();
        let (to_south, from_south) = attach(region.clone(), 0, Side::North).unwrap();
        let (to_north, from_north) = attach(region, 0, Side::South).unwrap();
        assert!(from_south.enable());

        assert!(!to_south.inject());
        assert!(to_north.inject());
        assert!(!from_north.enable());
    }

    #[test]
    fn pair_that_does_not_fit_is_refused() {
        let region = Region::new_private(256).unwrap();

        assert!(attach(region.clone(), 128, Side::South).is_some());
        for offset in [136, 4, usize::MAX - 7] {
            assert!(attach(region.clone(), offset, Side::South).is_none());
        }
    }
}
