//! The side of the device that faces whoever wants memory back.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use vbus::abi::hints::{event, feature};
use vbus::ring::{RingFault, Slot};

use super::keeper::Keeper;
use super::metrics::HintsMetrics;
use super::table::{Disks, Hint, Tables, Worth};
use crate::client::{Client, RingEnd};

/// Events that are sent as one batch.
const BATCH_EVENTS: usize = 32;
/// Empty slots that notices of dropped pages leave for other events.
const SPARED_SLOTS: usize = 4;
/// Words that are read with the lock held.
const BATCH_WORDS: u64 = 512;

/// Why the guest did not release what is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotReleased {
    /// No driver in the guest that could, or it went away.
    #[error("the guest has no driver for page hints")]
    NoDriver,
    /// The driver gave no slot for the event: it has not looked at the ones before.
    #[error("the guest takes no events")]
    NoSlot,
    /// No answer yet. It may come, and free more.
    #[error("the guest has not answered in time")]
    Late {
        /// Bytes that were freed meanwhile.
        freed_bytes: u64,
    },
}

/// Asks the guest for memory, and reads what it says of its pages.
///
/// Its rings and tables are guest memory, and a page of them may have been taken: whoever calls owns no
/// page, or could wait for itself.
#[derive(Clone)]
pub struct HintsHandle(pub(super) Arc<Shared>);

/// What a device and its handles share.
pub(super) struct Shared {
    pub(super) keeper: Arc<dyn Keeper>,
    pub(super) metrics: HintsMetrics,
    talk: Mutex<Talk>,
    /// The guest has answered, or is gone.
    answered: Condvar,
}

/// What is said to the guest, and what it says.
#[derive(Default)]
struct Talk {
    /// While a driver has started the device.
    session: Option<Session>,
    /// Number of the last [`event::RELEASE_NOW`], over all sessions.
    last_asked: u64,
    /// Number of the last one that was answered.
    last_answered: u64,
    /// What the scanner is allowed, once somebody said so.
    scan_rate: Option<u64>,
}

impl Talk {
    /// The driver, unless it has broken the rules.
    fn session(&mut self) -> Option<&mut Session> {
        let session = self.session.as_mut();
        session.filter(|session| !session.client.is_cut_off())
    }
}

/// What there is of a client while it is started.
pub(super) struct Session {
    pub(super) client: Arc<Client>,
    pub(super) features: u32,
    pub(super) events: RingEnd,
    pub(super) tables: Tables,
    pub(super) disks: Arc<Disks>,
}

impl Session {
    /// Sends `events`, as many as there are slots for if `num_spared` stay; how many.
    fn tell(&mut self, events: &[Slot], num_spared: usize, metrics: &HintsMetrics) -> usize {
        let mut num_told = 0;
        for batch in events.chunks(BATCH_EVENTS) {
            let num_held = match self.hold(batch.len() + num_spared) {
                Ok(num_held) => num_held,
                Err(fault) => {
                    self.client.cut_off("event", fault);
                    break;
                }
            };
            let num_slots = num_held.saturating_sub(num_spared).min(batch.len());
            let sent = batch.get(..num_slots).unwrap_or_default();
            num_told += self.events.ring.give_back_filled(sent);
            if num_slots < batch.len() {
                break;
            }
        }
        if num_told > 0 && self.events.signal.notify() {
            metrics.signals.add(1);
        }
        metrics.events.add(num_told as u64);
        metrics.events_lost.add((events.len() - num_told) as u64);
        num_told
    }

    /// Takes empty slots until there are `num_slots`, if the guest has published as many; how many
    /// there are.
    fn hold(&mut self, num_slots: usize) -> Result<usize, RingFault> {
        let ring = &mut self.events.ring;
        let num_held = usize::try_from(ring.outstanding()).unwrap_or(usize::MAX);
        let mut slots = [Slot::default(); BATCH_EVENTS + SPARED_SLOTS];
        let missing = slots.get_mut(..num_slots.saturating_sub(num_held));
        Ok(num_held + ring.take(missing.unwrap_or_default())?)
    }
}

/// An event without memory.
fn event(number: u64, argument: u64) -> Slot {
    Slot {
        meta: [number, argument],
        ..Slot::default()
    }
}

impl Shared {
    pub(super) fn new(keeper: Arc<dyn Keeper>) -> Self {
        Shared {
            keeper,
            metrics: HintsMetrics::default(),
            talk: Mutex::default(),
            answered: Condvar::new(),
        }
    }

    /// From now on there is somebody to talk to.
    pub(super) fn start(&self, mut session: Session) {
        let mut talk = self.talk.lock();
        if let Some(rate) = talk.scan_rate {
            session.tell(&[event(event::SCAN_RATE, rate)], 0, &self.metrics);
        }
        talk.session = Some(session);
    }

    /// Nobody any more: when this returns, nothing of the guest is read or written by a handle.
    pub(super) fn stop(&self) -> Option<Session> {
        let session = self.talk.lock().session.take();
        self.answered.notify_all();
        session
    }

    /// The guest has done what event `number` wanted.
    ///
    /// # Errors
    /// `EINVAL`: nobody asked.
    pub(super) fn answer(&self, number: u64) -> Result<(), Errno> {
        let mut talk = self.talk.lock();
        if talk.session.is_none() || !(1..=talk.last_asked).contains(&number) {
            return Err(Errno::INVAL);
        }
        talk.last_answered = talk.last_answered.max(number);
        self.answered.notify_all();
        Ok(())
    }
}

impl HintsHandle {
    /// Tells the guest to release now what is free, and waits for it for up to `timeout`; bytes of
    /// memory that were freed meanwhile.
    ///
    /// # Errors
    /// [`NotReleased`].
    pub fn release_now(&self, timeout: Duration) -> Result<u64, NotReleased> {
        let shared = &*self.0;
        let metrics = &shared.metrics;
        let num_before = metrics.freed_bytes.get();
        let mut talk = shared.talk.lock();
        let number = talk.last_asked + 1;
        let session = talk.session();
        let session = session.filter(|session| session.features & feature::RELEASE != 0);
        let session = session.ok_or(NotReleased::NoDriver)?;
        let num_told = session.tell(&[event(event::RELEASE_NOW, number)], 0, metrics);
        if num_told == 0 {
            return Err(NotReleased::NoSlot);
        }
        talk.last_asked = number;
        metrics.flushes.add(1);
        let is_open = |talk: &mut Talk| talk.session.is_some() && talk.last_answered < number;
        shared.answered.wait_while_for(&mut talk, is_open, timeout);
        let freed_bytes = metrics.freed_bytes.get() - num_before;
        match (&talk.session, talk.last_answered >= number) {
            (_, true) => Ok(freed_bytes),
            (None, false) => Err(NotReleased::NoDriver),
            (Some(_), false) => {
                metrics.flushes_late.add(1);
                Err(NotReleased::Late { freed_bytes })
            }
        }
    }

    /// What the guest says of those pages of `gfns` (numbers of pages by address) that it does not call
    /// stable.
    pub fn hints(&self, gfns: Range<u64>) -> Vec<(u64, Hint)> {
        let mut hints = Vec::new();
        let end = gfns.end.min(self.0.keeper.num_pages());
        let mut start = gfns.start;
        while start < end {
            let batch = start..end.min(start + BATCH_WORDS);
            start = batch.end;
            let mut talk = self.0.talk.lock();
            let Some(session) = talk.session() else { break };
            for gfn in batch {
                if let Some(word) = session.tables.load(gfn) {
                    let hint = Hint::parse(word, &session.disks, &self.0.metrics);
                    if hint.worth != Worth::Stable {
                        hints.push((gfn, hint));
                    }
                }
            }
        }
        hints
    }

    /// Tells the guest that `hint` of the page `gfn` was wrong, if it still says so: its word becomes
    /// stable.
    pub fn refuse(&self, gfn: u64, hint: Hint) {
        let mut talk = self.0.talk.lock();
        let Some(session) = talk.session() else {
            return;
        };
        if session.tables.refuse(gfn, hint.word) {
            self.0.metrics.refused.add(1);
        }
    }

    /// Tells the guest that the pages of `runs` (address and length, in bytes) were dropped, if it wants
    /// to know. What there is no slot for is counted and forgotten.
    pub fn dropped(&self, runs: &[(u64, u32)]) {
        let mut talk = self.0.talk.lock();
        let session = talk.session();
        if let Some(session) = session.filter(|session| session.features & feature::DROPPED != 0) {
            let events = runs.iter().map(|(addr, len)| Slot {
                addr: *addr,
                len: *len,
                meta: [event::DROPPED, 0],
            });
            let events = events.collect::<Vec<_>>();
            session.tell(&events, SPARED_SLOTS, &self.0.metrics);
        }
    }

    /// Allows the guest to look at so many pages in a second for its words, now and whenever a driver
    /// starts. Without that a driver chooses by itself.
    pub fn set_scan_rate(&self, pages_per_second: u64) {
        let mut talk = self.0.talk.lock();
        talk.scan_rate = Some(pages_per_second);
        if let Some(session) = talk.session() {
            let event = event(event::SCAN_RATE, pages_per_second);
            session.tell(&[event], 0, &self.0.metrics);
        }
    }

    /// What was counted.
    pub fn metrics(&self) -> &HintsMetrics {
        &self.0.metrics
    }
}

impl fmt::Debug for HintsHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HintsHandle")
            .field("metrics", &self.0.metrics)
            .finish_non_exhaustive()
    }
}
