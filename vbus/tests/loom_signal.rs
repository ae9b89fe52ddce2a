//! Shm-signals in every order of accesses that the C11 memory model allows, by `loom`.
//!
//! With at most three preemptions, and exhaustive within that: without the bound a model takes many
//! minutes. Each mistake that was tried needs two at most. To know that the models can fail, each fence and the release of *dirty* is taken away in turn: each of these
//! tests has to panic.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::cell::Cell;
use std::mem::{offset_of, size_of};
use std::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, AtomicUsize, fence};
use vbus::abi::{SignalFlags, SignalPair};
use vbus::memory::Words;
use vbus::signal::{Side, SignalReceiver, SignalSender, attach};

/// What is taken away from the protocol, by its name in `signal.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Nothing,
    F1,
    F2,
    F3,
    F4,
    ReleaseOfDirty,
}

/// The access before a fence, which tells the fences apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Other,
    SwapDirty,
    ClearDirty,
    SetEnabled,
}

/// The flags towards the south in loom's atomics.
#[derive(Clone)]
struct Flags {
    enabled: Arc<AtomicU64>,
    dirty: Arc<AtomicU64>,
    /// Touched before each fence: loom lets another thread run before an access to something that
    /// both touch, and not before a fence. Relaxed, it orders nothing that fences do not.
    before_fence: Arc<AtomicU64>,
    missing: Missing,
    last: Cell<Access>,
}

impl Flags {
    fn new(missing: Missing) -> Self {
        Flags {
            enabled: Arc::new(AtomicU64::new(0)),
            dirty: Arc::new(AtomicU64::new(0)),
            before_fence: Arc::new(AtomicU64::new(0)),
            missing,
            last: Cell::new(Access::Other),
        }
    }

    fn is_dirty(offset: usize) -> bool {
        let flags = offset - offset_of!(SignalPair, to_south);
        assert!(
            [
                offset_of!(SignalFlags, dirty),
                offset_of!(SignalFlags, enabled)
            ]
            .contains(&flags)
        );
        flags == offset_of!(SignalFlags, dirty)
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        match Self::is_dirty(offset) {
            true => &self.dirty,
            false => &self.enabled,
        }
    }
}

impl Words for Flags {
    fn len_bytes(&self) -> usize {
        size_of::<SignalPair>()
    }

    fn load(&self, offset: usize, order: Ordering) -> u64 {
        self.last.set(Access::Other);
        self.word(offset).load(order)
    }

    fn store(&self, offset: usize, value: u64, order: Ordering) {
        let is_dirty = Self::is_dirty(offset);
        self.last.set(match is_dirty {
            true => Access::ClearDirty,
            false => Access::SetEnabled,
        });
        let order = match self.missing {
            Missing::ReleaseOfDirty if is_dirty => Relaxed,
            _ => order,
        };
        self.word(offset).store(value, order);
    }

    fn swap(&self, offset: usize, value: u64, order: Ordering) -> u64 {
        self.last.set(Access::SwapDirty);
        self.word(offset).swap(value, order)
    }

    fn fence(&self) {
        let name = match self.last.replace(Access::Other) {
            Access::Other => Missing::F1,
            Access::ClearDirty => Missing::F2,
            Access::SwapDirty => Missing::F3,
            Access::SetEnabled => Missing::F4,
        };
        if name != self.missing {
            self.before_fence.fetch_add(1, Relaxed);
            fence(Ordering::SeqCst);
        }
    }
}

fn sender(flags: &Flags) -> SignalSender<Flags> {
    attach(flags.clone(), 0, Side::North).unwrap().0
}

fn receiver(flags: &Flags) -> SignalReceiver<Flags> {
    attach(flags.clone(), 0, Side::South).unwrap().1
}

/// Data that is published, relaxed: nothing but the signal orders it.
type Data = Arc<AtomicU64>;
/// Wake-ups that were sent and not taken, as in an eventfd.
type Doorbell = Arc<AtomicUsize>;

fn send(data: &Data, value: u64, signal: &SignalSender<Flags>, doorbell: &Doorbell) {
    data.store(value, Relaxed);
    if signal.inject() {
        doorbell.fetch_add(1, AcqRel);
    }
}

/// Disables, looks, enables and sleeps, again and again; true if it saw all of `want`, false if it
/// went to sleep with no wake-up under way.
fn receive_until_asleep(
    data: &[Data],
    want: &[u64],
    signal: &SignalReceiver<Flags>,
    doorbell: &Doorbell,
) -> bool {
    loop {
        signal.disable();
        let seen: Vec<u64> = data.iter().map(|data| data.load(Relaxed)).collect();
        if seen == want {
            return true;
        }
        if signal.enable() && doorbell.swap(0, AcqRel) == 0 {
            return false;
        }
    }
}

/// One sender for each of `batches`, which publishes so many times.
fn nothing_is_missed(missing: Missing, batches: &'static [u64]) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let flags = Flags::new(missing);
        let doorbell = Doorbell::new(AtomicUsize::new(0));
        let data: Vec<Data> = batches
            .iter()
            .map(|_| Data::new(AtomicU64::new(0)))
            .collect();
        let threads: Vec<_> = batches
            .iter()
            .zip(&data)
            .map(|(&batches, data)| {
                let (data, doorbell) = (data.clone(), doorbell.clone());
                let signal = sender(&flags);
                loom::thread::spawn(move || {
                    for value in 1..=batches {
                        send(&data, value, &signal, &doorbell);
                    }
                })
            })
            .collect();
        let has_seen_all = receive_until_asleep(&data, batches, &receiver(&flags), &doorbell);
        for thread in threads {
            thread.join().unwrap();
        }
        let is_woken = doorbell.load(Acquire) != 0;
        assert!(has_seen_all || is_woken, "a lost wake-up");
    });
}

/// Wake-ups are at most as many as times of being enabled. (With several senders, one that was slow
/// may bring its own in a later time; the sum holds.)
fn wake_ups_are_few(missing: Missing, batches: &'static [u64], num_enabled: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let flags = Flags::new(missing);
        let num_wake_ups = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let signal = receiver(&flags);
        // Before there are senders: the models stay small.
        assert!(signal.enable());
        let threads: Vec<_> = batches
            .iter()
            .map(|&batches| {
                let signal = sender(&flags);
                let num_wake_ups = num_wake_ups.clone();
                loom::thread::spawn(move || {
                    for _ in 0..batches {
                        if signal.inject() {
                            num_wake_ups.fetch_add(1, Relaxed);
                        }
                    }
                })
            })
            .collect();
        signal.disable();
        for _ in 1..num_enabled {
            let _ = signal.enable();
            signal.disable();
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(
            num_wake_ups.load(Relaxed) <= num_enabled,
            "a wake-up too many"
        );
    });
}

#[test]
fn nothing_is_missed_from_one_sender() {
    nothing_is_missed(Missing::Nothing, &[2]);
}

#[test]
fn nothing_is_missed_from_two_senders() {
    nothing_is_missed(Missing::Nothing, &[1, 1]);
}

#[test]
fn each_time_of_being_enabled_brings_at_most_one_wake_up() {
    wake_ups_are_few(Missing::Nothing, &[2], 1);
    wake_ups_are_few(Missing::Nothing, &[3], 2);
}

#[test]
fn two_senders_wake_no_more_often_than_one() {
    wake_ups_are_few(Missing::Nothing, &[1, 1], 1);
}

#[test]
fn no_wake_up_follows_a_disable_that_the_sender_knows_of() {
    loom::model(|| {
        let flags = Flags::new(Missing::Nothing);
        let is_awake = Arc::new(AtomicUsize::new(0));
        let thread = {
            let (signal, is_awake) = (sender(&flags), is_awake.clone());
            loom::thread::spawn(move || {
                let _ = signal.inject();
                let knows = is_awake.load(Acquire) == 1;
                let is_woken = signal.inject();
                assert!(!(knows && is_woken));
            })
        };
        let signal = receiver(&flags);
        let _ = signal.enable();
        signal.disable();
        is_awake.store(1, Ordering::Release);
        thread.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "a lost wake-up")]
fn wake_ups_get_lost_without_f1() {
    nothing_is_missed(Missing::F1, &[2]);
}

#[test]
#[should_panic(expected = "a lost wake-up")]
fn wake_ups_get_lost_without_f2() {
    nothing_is_missed(Missing::F2, &[2]);
}

#[test]
#[should_panic(expected = "a lost wake-up")]
fn wake_ups_get_lost_without_f3() {
    nothing_is_missed(Missing::F3, &[2]);
}

#[test]
#[should_panic(expected = "a lost wake-up")]
fn wake_ups_get_lost_without_f4() {
    nothing_is_missed(Missing::F4, &[2]);
}

#[test]
#[should_panic(expected = "a wake-up too many")]
fn wake_ups_are_too_many_without_the_release_of_dirty() {
    wake_ups_are_few(Missing::ReleaseOfDirty, &[2], 1);
}
