//! One connection on its worker: what is ready, what to serve.
//!
//! Everything is watched edge-triggered and no doorbell is ever read: it comes from the client, and
//! a read could block.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use parking_lot::Mutex;
use vbus::abi::venet::event;
use vbus::ring::{RingFault, Slot};
use vmm_sys_util::eventfd::EventFd;

use super::frame::Scratch;
use super::path::{Backend, Path};
use super::poll::{Next, Poll};
use super::port::Port;
use super::tx::{Progress, Rest, Sender};
use crate::client::{Client, RingEnd, readable};

const RX_DOORBELL: u32 = 0;
const TX_DOORBELL: u32 = 1;
const EVENT_DOORBELL: u32 = 2;
const KICK: u32 = 3;
const SOURCE: u32 = 4;
const SERVED: u32 = 5;

/// Frames to send per turn; then the others have theirs.
const BUDGET: u32 = 256;

/// Tells a client what happened, in slots of its event ring.
pub(super) struct EventQueue {
    end: RingEnd,
    /// What the client was told last.
    told: Option<bool>,
}

impl EventQueue {
    pub(super) fn new(end: RingEnd) -> Self {
        EventQueue { end, told: None }
    }

    /// Forgets what the client was told: it is told again.
    pub(super) fn start(&mut self) {
        self.told = None;
    }

    /// Tells the state of the link if the client does not know it. Without a slot that is done when
    /// the doorbell says that there is one.
    fn tell(&mut self, is_up: bool) -> Result<bool, RingFault> {
        if self.told == Some(is_up) {
            return Ok(false);
        }
        let mut slot = [Slot::default()];
        self.end.signal.receiver.disable();
        let mut num_taken = self.end.ring.take(&mut slot)?;
        if num_taken == 0 && !self.end.signal.receiver.enable() {
            // Posted in between. If not, the next doorbell brings us back: "dirty" alone is no slot.
            num_taken = self.end.ring.take(&mut slot)?;
        }
        if num_taken == 0 {
            return Ok(false);
        }
        let [slot] = &mut slot;
        slot.len = 0;
        slot.meta = [event::LINK_STATE, is_up.into()];
        self.end.ring.give_back_filled(&[*slot]);
        self.told = Some(is_up);
        Ok(self.end.signal.notify())
    }
}

/// The doorbells of a connection.
pub(super) struct Doorbells {
    pub(super) rx: Arc<EventFd>,
    pub(super) tx: Arc<EventFd>,
    pub(super) event: Option<Arc<EventFd>>,
    /// The VM's, for pages that were wished for.
    pub(super) served: Option<Arc<EventFd>>,
}

/// Serves one connection while its link is up.
pub(super) struct Handler {
    pub(super) port: Arc<Port>,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) client: Arc<Client>,
    pub(super) sender: Arc<Mutex<Sender>>,
    pub(super) events: Option<Arc<Mutex<EventQueue>>>,
    pub(super) doorbells: Doorbells,
    pub(super) path: Box<dyn Path>,
    pub(super) scratch: Scratch,
    /// What of [`Path::source`] is watched.
    pub(super) source: Option<RawFd>,
    /// How long to stay awake without work.
    pub(super) poll: Poll,
    /// Whether this turn ended before all was done.
    pub(super) has_more: bool,
}

impl Handler {
    fn serve(&mut self, what: u32) {
        match what {
            RX_DOORBELL => {
                self.port.metrics.doorbells.add(1);
                self.serve_source();
            }
            TX_DOORBELL => {
                self.port.metrics.doorbells.add(1);
                self.serve_tx(Rest::Awake);
            }
            EVENT_DOORBELL => {
                self.port.metrics.doorbells.add(1);
                self.tell_events();
            }
            SOURCE => self.serve_source(),
            SERVED => {
                self.serve_tx(Rest::Awake);
                self.serve_source();
            }
            _ => {
                self.tell_events();
                self.serve_tx(Rest::Awake);
                self.serve_source();
            }
        }
    }

    fn serve_tx(&mut self, rest: Rest) {
        if self.transmit(rest) == Progress::More {
            self.kick();
        }
    }

    /// There is more to do than one turn may take.
    fn kick(&mut self) {
        self.has_more = true;
        self.port.kick();
    }

    fn transmit(&mut self, rest: Rest) -> Progress {
        let mut sender = self.sender.lock();
        let (path, metrics) = (&mut *self.path, &self.port.metrics);
        let result = sender.serve(path, &mut self.scratch, metrics, BUDGET, rest);
        result.unwrap_or_else(|fault| {
            self.client.cut_off("transmit", fault);
            Progress::Idle
        })
    }

    fn serve_source(&mut self) {
        if self.receive() == Progress::More {
            self.kick();
        }
    }

    fn receive(&mut self) -> Progress {
        if self.source.is_none() {
            return Progress::Idle;
        }
        let (path, scratch) = (&mut self.path, &mut self.scratch);
        let metrics = &self.port.metrics;
        let progress = self.port.with_receiver(|receiver| {
            let progress = path.receive(receiver, scratch);
            receiver.notify(metrics);
            progress
        });
        progress.unwrap_or(Progress::Idle)
    }

    /// Looks for more work until there is none, without asking for doorbells. `num_before` is what
    /// was moved when the worker was woken.
    fn look_around(&mut self, num_before: u64) {
        if self.has_more {
            return;
        }
        let mut num_moved = self.num_moved();
        let num_frames = num_moved.wrapping_sub(num_before);
        let mut look = self.poll.look(Instant::now(), num_frames);
        while !self.has_more && !self.client.is_cut_off() {
            match look.next() {
                Next::Look => {}
                Next::Sleep => break,
                Next::Later => {
                    self.kick();
                    break;
                }
            }
            // Whoever else wants this CPU gets it.
            thread::yield_now();
            self.path.refresh();
            self.serve_tx(Rest::Awake);
            // A source tells by itself that it has frames; to ask it is a system call.
            if look.is_waiting() || self.num_moved() != num_moved {
                self.serve_source();
            }
            let num_before = std::mem::replace(&mut num_moved, self.num_moved());
            look.looked(Instant::now(), num_moved != num_before);
        }
        self.poll.has_looked(&look);
    }

    /// Frames that this worker has moved so far, from the client and from the source.
    fn num_moved(&self) -> u64 {
        let metrics = &self.port.metrics;
        let num_received = match self.source {
            Some(_) => metrics.rx_packets.get(),
            None => 0,
        };
        metrics.tx_packets.get().wrapping_add(num_received)
    }

    fn tell_events(&mut self) {
        let Some(events) = &self.events else {
            return;
        };
        match events.lock().tell(self.backend.is_link_up()) {
            Ok(true) => self.port.metrics.signals.add(1),
            Ok(false) => {}
            Err(fault) => self.client.cut_off("event", fault),
        }
    }

    fn watched(&self) -> impl Iterator<Item = (&EventFd, u32)> {
        let doorbells = &self.doorbells;
        [
            (self.port.kick_evt(), KICK),
            (&*doorbells.tx, TX_DOORBELL),
            (&*doorbells.rx, RX_DOORBELL),
        ]
        .into_iter()
        .chain(
            doorbells
                .event
                .iter()
                .map(|event| (&**event, EVENT_DOORBELL)),
        )
        .chain(doorbells.served.iter().map(|served| (&**served, SERVED)))
    }

    /// Watches the source that the path has now.
    fn watch_source(&mut self, ops: &mut EventOps<'_>) {
        let wanted = self.path.source();
        if self.source == wanted {
            return;
        }
        if let Some(fd) = self.source.take() {
            // An error means that it is closed, and so not watched.
            let _ = ops.remove(Events::empty_raw(fd));
        }
        if let Some(fd) = wanted {
            let events = Events::with_data_raw(fd, SOURCE, readable());
            match ops.add(events) {
                Ok(()) => self.source = Some(fd),
                Err(error) => {
                    tracing::error!("{}: cannot watch the TAP: {error}", self.port.name());
                }
            }
        }
    }

    /// Watches nothing any more.
    fn stop(&mut self, ops: &mut EventOps<'_>) {
        // Errors mean that it was not watched.
        for (doorbell, _) in self.watched() {
            let _ = ops.remove(Events::empty(doorbell));
        }
        if let Some(fd) = self.source.take() {
            let _ = ops.remove(Events::empty_raw(fd));
        }
    }
}

impl MutEventSubscriber for Handler {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if !self.client.is_cut_off() {
            self.poll.woken(Instant::now());
            self.has_more = false;
            self.path.refresh();
            self.watch_source(ops);
            let is_lost = events
                .event_set()
                .intersects(EventSet::ERROR | EventSet::HANG_UP);
            if is_lost && events.data() == SOURCE {
                // Find out even if there is no buffer for a frame.
                self.path.check_source();
            }
            // From here on nobody rings for frames to send, whatever it was that woke us.
            self.sender.lock().stay_awake();
            let num_before = self.num_moved();
            self.serve(events.data());
            self.look_around(num_before);
            if !self.has_more {
                self.serve_tx(Rest::Asleep);
            }
            if !self.has_more {
                self.poll.sleeps(Instant::now());
            }
        }
        if self.client.is_cut_off() {
            self.stop(ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (doorbell, data) in self.watched() {
            if let Err(error) = ops.add(Events::with_data(doorbell, data, readable())) {
                // It comes from the client: not worth more than it can repeat without harm.
                tracing::debug!("{}: cannot watch a doorbell: {error}", self.port.name());
            }
        }
        // The client may have filled its rings before anybody listened.
        self.port.kick();
    }
}
