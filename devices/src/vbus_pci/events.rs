//! What the bus tells the guest of one session, and the shms that it can be about.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use vbus::abi::NUM_PRIORITIES;
use vbus::abi::pci::{NUM_EVENT_QUEUES, event};
use vbus::ring::{RingFault, Slot};
use vbus::verbs::{Event, EventSink, WakeUp};
use vmm_sys_util::eventfd::EventFd;

use super::backlog::{Backlog, Entry};
use super::interfaces::Interfaces;
use super::metrics::VbusPciMetrics;
use super::queue::{BATCH, EventQueue};
use super::wires::{Signals, Vectors};

/// Shms of one session at a time, with those whose end the guest has not been told yet.
pub(super) const MAX_SHMS: usize = 512;
/// Queue of events of interfaces.
const DEVICES_QUEUE: u32 = NUM_EVENT_QUEUES - 1;
/// Looks at a queue whose guest rings all the time, before others get their turn.
const MAX_LOOKS: u32 = 8;

/// What the event queues share with the rest of the connector.
#[derive(Clone)]
pub(super) struct Surroundings {
    /// The connector's, for the log.
    pub name: Arc<str>,
    pub vectors: Arc<Vectors>,
    pub signals: Arc<Signals>,
    pub metrics: Arc<VbusPciMetrics>,
    /// Written when the guest broke the rules: whoever reads it stops the connector.
    pub fault_evt: Arc<EventFd>,
}

/// Where the bus's events of one session go.
pub(super) struct Events {
    around: Surroundings,
    state: Mutex<State>,
    /// As the phase says: each call asks.
    is_faulted: AtomicBool,
    /// A shm was let go.
    closed: Condvar,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Events are told.
    Open,
    /// The guest broke the rules: nothing is told any more.
    Faulted,
    /// The session is over, likewise.
    Over,
}

struct State {
    phase: Phase,
    lanes: Vec<Lane>,
    interfaces: Interfaces,
    /// By our cookie.
    shms: BTreeMap<u64, ShmRecord>,
}

/// One event queue, with what waits for it.
#[derive(Default)]
struct Lane {
    queue: Option<EventQueue>,
    backlog: Backlog,
}

/// Memory that the guest shares.
#[derive(Debug)]
struct ShmRecord {
    guest_cookie: u64,
    /// Index of the lane of its events.
    lane_idx: usize,
    /// Number of its doorbell.
    signal: Option<u32>,
    is_signal_waiting: bool,
    /// The bus let go; the guest does not know yet.
    is_closed: bool,
}

/// Index of the event queue for `priority`.
fn lane_of(priority: u32) -> usize {
    let queue = priority.min(NUM_PRIORITIES - 1) * NUM_EVENT_QUEUES / NUM_PRIORITIES;
    usize::try_from(queue).unwrap_or(0)
}

impl Events {
    /// No queues yet, nothing to tell.
    pub fn new(around: Surroundings) -> Arc<Self> {
        Arc::new(Events {
            around,
            state: Mutex::new(State {
                phase: Phase::Open,
                lanes: (0..NUM_EVENT_QUEUES).map(|_| Lane::default()).collect(),
                interfaces: Interfaces::default(),
                shms: BTreeMap::new(),
            }),
            is_faulted: AtomicBool::new(false),
            closed: Condvar::new(),
        })
    }

    /// Uses `queue` as number `number`, which exists.
    ///
    /// # Errors
    /// `EBUSY`: there is one.
    pub fn add_queue(&self, number: u32, queue: EventQueue) -> Result<(), Errno> {
        let mut state = self.state.lock();
        let lane = usize::try_from(number)
            .ok()
            .and_then(|idx| state.lanes.get_mut(idx));
        let lane = lane.ok_or(Errno::INVAL)?;
        if lane.queue.is_some() {
            return Err(Errno::BUSY);
        }
        lane.queue = Some(queue);
        Ok(())
    }

    /// True if all queues are there.
    pub fn has_all_queues(&self) -> bool {
        let state = self.state.lock();
        state.lanes.iter().all(|lane| lane.queue.is_some())
    }

    /// The guest broke the rules.
    pub fn is_faulted(&self) -> bool {
        self.is_faulted.load(Relaxed)
    }

    /// What the interface `id` speaks.
    pub fn kind(&self, id: u32) -> Option<String> {
        let state = self.state.lock();
        state.interfaces.kind(id).map(str::to_owned)
    }

    /// The guest rang for queue `number`: there may be empty slots.
    pub fn look(&self, number: u32) {
        let Ok(lane_idx) = usize::try_from(number) else {
            return;
        };
        self.flush(&mut self.state.lock(), lane_idx);
    }

    /// Remembers memory before it is shared: the bus may tell something of it at once. With a
    /// signal it gets a number, which is in the result.
    ///
    /// # Errors
    /// `EDQUOT`: too many, or no number is left.
    pub fn add_shm(
        &self,
        cookie: u64,
        guest_cookie: u64,
        priority: u32,
        has_signal: bool,
    ) -> Result<Option<u32>, Errno> {
        let mut state = self.state.lock();
        if state.shms.len() >= MAX_SHMS {
            return Err(Errno::DQUOT);
        }
        let signal = match has_signal {
            true => Some(self.around.signals.take().ok_or(Errno::DQUOT)?),
            false => None,
        };
        let record = ShmRecord {
            guest_cookie,
            lane_idx: lane_of(priority),
            signal,
            is_signal_waiting: false,
            is_closed: false,
        };
        state.shms.insert(cookie, record);
        Ok(signal)
    }

    /// Forgets memory that the bus refused, also a signal that waits.
    pub fn remove_shm(&self, cookie: u64) {
        let mut state = self.state.lock();
        let Some(shm) = state.shms.remove(&cookie) else {
            return;
        };
        if let Some(number) = shm.signal {
            self.around.signals.give_back(number);
        }
        if let Some(lane) = state.lanes.get_mut(shm.lane_idx) {
            lane.backlog.take_back(Entry::Signal(cookie));
        }
    }

    #[cfg(test)]
    pub fn backlog_len(&self, lane_idx: usize) -> usize {
        self.state.lock().lanes[lane_idx].backlog.len()
    }

    /// Tells nothing from here on, and lets go of the queues.
    pub fn finish(&self) {
        self.shut(&mut self.state.lock(), Phase::Over);
    }

    /// Waits until the bus has let go of all memory; false if it has not within `timeout`.
    pub fn wait_until_let_go(&self, timeout: Duration) -> bool {
        let holds = |state: &mut State| state.shms.values().any(|shm| !shm.is_closed);
        let mut state = self.state.lock();
        self.closed.wait_while_for(&mut state, holds, timeout);
        !holds(&mut state)
    }

    fn shut(&self, state: &mut State, phase: Phase) {
        state.phase = phase;
        self.is_faulted.store(phase == Phase::Faulted, Relaxed);
        state.lanes.clear();
        state.interfaces.clear();
        state.shms.retain(|_, shm| !shm.is_closed);
        self.closed.notify_all();
    }

    fn signalled(&self, cookie: u64) {
        let mut state = self.state.lock();
        if state.phase != Phase::Open {
            return;
        }
        let Some(shm) = state.shms.get_mut(&cookie).filter(|shm| !shm.is_closed) else {
            return;
        };
        let lane_idx = shm.lane_idx;
        if std::mem::replace(&mut shm.is_signal_waiting, true) {
            self.around.metrics.coalesced_events.add(1);
            return;
        }
        self.push(&mut state, lane_idx, Entry::Signal(cookie));
    }

    fn shm_closed(&self, cookie: u64) {
        let mut state = self.state.lock();
        let Some(shm) = state.shms.get_mut(&cookie).filter(|shm| !shm.is_closed) else {
            return;
        };
        shm.is_closed = true;
        let lane_idx = shm.lane_idx;
        if let Some(number) = shm.signal.take() {
            self.around.signals.give_back(number);
        }
        self.closed.notify_all();
        if state.phase == Phase::Open {
            self.push(&mut state, lane_idx, Entry::Closed(cookie));
        } else {
            state.shms.remove(&cookie);
        }
    }

    /// Makes a change to the interfaces, which answers how many events it left out.
    fn change(&self, change: impl FnOnce(&mut Interfaces, &mut Backlog) -> u64) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let lane_idx = usize::try_from(DEVICES_QUEUE).unwrap_or(0);
        // None once it is over.
        if let Some(lane) = state.lanes.get_mut(lane_idx) {
            let num_left_out = change(&mut state.interfaces, &mut lane.backlog);
            self.around.metrics.coalesced_events.add(num_left_out);
            self.flush(state, lane_idx);
        }
    }

    fn push(&self, state: &mut State, lane_idx: usize, entry: Entry) {
        if let Some(lane) = state.lanes.get_mut(lane_idx) {
            lane.backlog.push(entry);
            self.flush(state, lane_idx);
        }
    }

    /// Tells what waits for a queue, as far as there are empty slots.
    fn flush(&self, state: &mut State, lane_idx: usize) {
        if let Err(fault) = self.try_flush(state, lane_idx) {
            self.shut(state, Phase::Faulted);
            if self.around.metrics.faults.count_sparsely() {
                let name = &self.around.name;
                tracing::warn!("{name}: event queue {lane_idx}: {fault}; stopped until a reset");
            }
            // Fails only when the counter is full, and then it is readable.
            let _ = self.around.fault_evt.write(1);
        }
    }

    fn try_flush(&self, state: &mut State, lane_idx: usize) -> Result<(), RingFault> {
        let State {
            lanes,
            interfaces,
            shms,
            ..
        } = state;
        let Some(lane) = lanes.get_mut(lane_idx) else {
            return Ok(());
        };
        let Lane { queue, backlog } = lane;
        let Some(queue) = queue else { return Ok(()) };
        queue.stop_asking();
        let mut num_looks = 0;
        while !backlog.is_empty() {
            let mut slots = [Slot::default(); BATCH];
            let mut num_slots = 0;
            for (slot, entry) in slots.iter_mut().zip(backlog.first(BATCH)) {
                *slot = as_slot(entry, shms);
                num_slots += 1;
            }
            let delivery = queue.tell(slots.get(..num_slots).unwrap_or_default())?;
            for entry in backlog.pop(delivery.num_told) {
                self.told(entry, interfaces, shms);
            }
            if delivery.must_interrupt
                && let Some(irqfd) = self.around.vectors.irqfd(queue.vector)
            {
                self.around.metrics.event_interrupts.add(1);
                let _ = irqfd.write(1); // When it is full, an interrupt is pending.
            }
            if delivery.num_told == 0 {
                self.around.metrics.full_event_queues.add(1);
                if queue.ask() {
                    break;
                }
                queue.stop_asking();
                num_looks += 1;
                if num_looks == MAX_LOOKS {
                    // A guest that rings without end; our own thread goes on with it.
                    let number = u32::try_from(lane_idx).unwrap_or(0);
                    if let Some(doorbell) = self.around.signals.doorbell(number) {
                        let _ = doorbell.write(1);
                    }
                    break;
                }
            }
        }
        Ok(())
    }

    /// An entry left the backlog.
    fn told(&self, entry: Entry, interfaces: &mut Interfaces, shms: &mut BTreeMap<u64, ShmRecord>) {
        let metrics = &self.around.metrics;
        match entry {
            Entry::Added(id) => {
                metrics.devices_added.add(1);
                interfaces.told(id);
            }
            Entry::Lost(_) => metrics.devices_lost.add(1),
            Entry::Dropped(_) => metrics.devices_dropped.add(1),
            Entry::Signal(cookie) => {
                metrics.signals.add(1);
                if let Some(shm) = shms.get_mut(&cookie) {
                    shm.is_signal_waiting = false;
                }
            }
            Entry::Closed(cookie) => {
                metrics.shms_closed.add(1);
                shms.remove(&cookie);
            }
        }
    }
}

/// An event as the guest finds it.
fn as_slot(entry: Entry, shms: &BTreeMap<u64, ShmRecord>) -> Slot {
    let guest_cookie = |cookie| shms.get(&cookie).map_or(0, |shm| shm.guest_cookie);
    let (kind, addr) = match entry {
        Entry::Added(id) => (event::DEVICE_ADDED, id.into()),
        Entry::Lost(id) => (event::DEVICE_LOST, id.into()),
        Entry::Dropped(id) => (event::DEVICE_DROPPED, id.into()),
        Entry::Signal(cookie) => (event::SIGNAL, guest_cookie(cookie)),
        Entry::Closed(cookie) => (event::SHM_CLOSED, guest_cookie(cookie)),
    };
    Slot {
        addr,
        len: 0,
        meta: [kind, 0],
    }
}

impl EventSink for Events {
    fn event(&self, event: Event) {
        match event {
            Event::DeviceAdded { id, kind, .. } => {
                self.change(|interfaces, backlog| interfaces.add(id.0, kind, backlog))
            }
            Event::DeviceLost { id } => {
                self.change(|interfaces, backlog| interfaces.lose(id.0, backlog));
            }
            Event::DeviceDropped { id } => {
                self.change(|interfaces, backlog| interfaces.remove(id.0, backlog));
            }
            Event::Signal { cookie } => self.signalled(cookie),
            Event::ShmClosed { cookie } => self.shm_closed(cookie),
        }
    }
}

/// The wake-up of a signal without a vector of its own.
pub(super) struct EventWakeUp {
    pub events: Arc<Events>,
    /// Ours.
    pub cookie: u64,
}

impl WakeUp for EventWakeUp {
    fn wake(&self) {
        self.events.signalled(self.cookie);
    }
}
