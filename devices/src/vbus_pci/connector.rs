//! The session between two resets.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use event_manager::{EventOps, Events as Ready, MutEventSubscriber};
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use rustix::io::Errno;
use vbus::abi::pci::{NUM_CHANNELS, NUM_EVENT_QUEUES, func};
use vbus::verbs::{Handle, Verbs};
use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::events::{Events, Surroundings};
use super::mailbox::{self, Mailbox, Place};
use super::metrics::VbusPciMetrics;
use super::wires::{Signals, Vectors};
use super::{OnLoss, Uplink};
use crate::GuestRam;

/// Connections of one session at a time.
pub(super) const MAX_HANDLES: usize = 256;
/// How long the end of a session waits for devices to let go of memory: a device that needs longer
/// is broken, and the guest's CPU stands still meanwhile.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// All of the connector but its PCI registers.
pub(super) struct Connector {
    pub ram: GuestRam,
    pub around: Surroundings,
    uplink: Arc<dyn Uplink>,
    num_resets: AtomicU32,
    /// Our cookies towards the bus, which never repeat, unlike the guest's.
    next_cookie: AtomicU64,
    session: RwLock<Session>,
    /// Those of the session.
    events: Mutex<Arc<Events>>,
}

/// What a guest did since the last reset.
pub(super) struct Session {
    pub phase: Phase,
    /// As negotiated.
    pub on_loss: OnLoss,
    pub events: Arc<Events>,
    /// Once it is started.
    pub verbs: Option<Arc<dyn Verbs + Send + Sync>>,
    pub handles: Mutex<Handles>,
    pub channels: Vec<Option<Channel>>,
}

/// Where the calls of a channel are.
pub(super) struct Channel {
    pub addr: u64,
    /// Looked up once and for all; `None` if no call can be there, or not with the rest of its page.
    pub place: Option<Place>,
}

/// How far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Initial,
    Negotiated,
    Started,
}

/// Connections of a session.
#[derive(Debug, Default)]
pub(super) struct Handles {
    open: BTreeSet<u64>,
    num_opening: usize,
}

impl Handles {
    /// Reserves a place.
    ///
    /// # Errors
    /// `EDQUOT`: too many.
    pub fn reserve(&mut self) -> Result<(), Errno> {
        if self.open.len() + self.num_opening >= MAX_HANDLES {
            return Err(Errno::DQUOT);
        }
        self.num_opening += 1;
        Ok(())
    }

    /// Ends a reservation, with a handle or without.
    pub fn settle(&mut self, handle: Option<Handle>) {
        self.num_opening -= 1;
        self.open.extend(handle.map(|handle| handle.0));
    }

    /// # Errors
    /// `ENOENT`: not of this session.
    pub fn check(&self, handle: u64) -> Result<Handle, Errno> {
        match self.open.contains(&handle) {
            true => Ok(Handle(handle)),
            false => Err(Errno::NOENT),
        }
    }

    /// # Errors
    /// `ENOENT`: not of this session.
    pub fn remove(&mut self, handle: u64) -> Result<Handle, Errno> {
        match self.open.remove(&handle) {
            true => Ok(Handle(handle)),
            false => Err(Errno::NOENT),
        }
    }
}

impl Session {
    fn new(around: &Surroundings) -> Self {
        Session {
            phase: Phase::Initial,
            on_loss: OnLoss::default(),
            events: Events::new(around.clone()),
            verbs: None,
            handles: Mutex::default(),
            channels: (0..NUM_CHANNELS).map(|_| None).collect(),
        }
    }
}

impl Connector {
    /// # Errors
    /// The host is out of file descriptors.
    pub fn new(
        name: &str,
        uplink: Arc<dyn Uplink>,
        ram: GuestRam,
        vectors: Arc<Vectors>,
    ) -> io::Result<Self> {
        let around = Surroundings {
            name: name.into(),
            vectors,
            signals: Arc::new(Signals::new()?),
            metrics: Arc::new(VbusPciMetrics::default()),
            fault_evt: Arc::new(EventFd::new(EFD_NONBLOCK)?),
        };
        let session = Session::new(&around);
        let events = Mutex::new(Arc::clone(&session.events));
        Ok(Connector {
            ram,
            around,
            uplink,
            num_resets: AtomicU32::new(0),
            next_cookie: AtomicU64::new(1),
            session: RwLock::new(session),
            events,
        })
    }

    pub fn num_resets(&self) -> u32 {
        self.num_resets.load(Relaxed)
    }

    pub fn uplink(&self) -> &dyn Uplink {
        &*self.uplink
    }

    #[cfg(test)]
    pub fn events(&self) -> Arc<Events> {
        Arc::clone(&self.session().events)
    }

    /// A cookie that the bus has not seen from us.
    pub fn new_cookie(&self) -> u64 {
        self.next_cookie.fetch_add(1, Relaxed)
    }

    fn session(&self) -> RwLockReadGuard<'_, Session> {
        self.session.read()
    }

    fn session_alone(&self) -> RwLockWriteGuard<'_, Session> {
        self.session.write()
    }

    /// Does the call of a channel.
    pub fn fast_call(&self, channel: u32) {
        self.around.metrics.fast_calls.add(1);
        let session = self.session();
        let channel = usize::try_from(channel).unwrap_or(usize::MAX);
        match session.channels.get(channel) {
            Some(&Some(Channel { addr, .. })) => self.serve(session, addr, Some(channel)),
            _ => self.cannot_answer("a channel that is not registered"),
        }
    }

    /// Does the call at `addr`.
    pub fn call(&self, addr: u64) {
        self.serve(self.session(), addr, None);
    }

    /// Does the call at `addr`, which is that of `channel`. It is answered under the lock that it is
    /// done under, so that a reset ends all that we write to guest memory.
    fn serve(&self, session: RwLockReadGuard<'_, Session>, addr: u64, channel: Option<usize>) {
        let channel = channel.and_then(|idx| session.channels.get(idx)?.as_ref());
        let near = channel.and_then(|channel| channel.place.as_ref());
        let slice = match near {
            Some(near) => near.call(),
            None => mailbox::slice(&self.ram, addr),
        };
        let Some(slice) = slice else {
            self.cannot_answer("an address where no call can be");
            return;
        };
        let mut mailbox = Mailbox::read(&slice);
        self.around.metrics.calls.add(1);
        match mailbox.func {
            func::NEGOTIATE | func::EVENT_QUEUE | func::START | func::CHANNEL => {
                drop(session);
                let mut session = self.session_alone();
                let result = check_health(&session)
                    .and_then(|()| self.set_up(&mut session, mailbox.func, &mut mailbox.args));
                // What the channel knows of its place may be gone with its session.
                if let Some(slice) = mailbox::slice(&self.ram, addr) {
                    self.answer(&mailbox, &slice, result);
                }
            }
            _ => {
                let result = check_health(&session)
                    .and_then(|()| self.work(&session, mailbox.func, &mut mailbox.args, near));
                self.answer(&mailbox, &slice, result);
            }
        }
    }

    fn answer(&self, mailbox: &Mailbox, slice: &VolatileSlice<'_>, result: Result<u32, Errno>) {
        if result.is_err() {
            self.around.metrics.failed_calls.add(1);
        }
        mailbox.answer(slice, result);
    }

    /// Counts a call without an answer.
    pub fn cannot_answer(&self, why: &str) {
        if self.around.metrics.unanswered_calls.count_sparsely() {
            tracing::warn!("{}: the guest made a call with {why}", self.around.name);
        }
    }

    /// Back to the initial state. When it returns, the bus has let go of all memory.
    pub fn reset(&self) {
        let mut session = self.session_alone();
        self.end(&mut session);
        *session = Session::new(&self.around);
        *self.events.lock() = Arc::clone(&session.events);
        self.around.metrics.resets.add(1);
        self.num_resets.fetch_add(1, Relaxed);
    }

    /// Ends the session for good.
    pub fn shut_down(&self) {
        self.end(&mut self.session_alone());
    }

    /// Ends a session whose guest broke the rules, if it has not been reset meanwhile.
    fn stop_faulted(&self) {
        let mut session = self.session_alone();
        if session.events.is_faulted() {
            self.end(&mut session);
        }
    }

    /// Closes all connections, and waits until the memory is let go.
    fn end(&self, session: &mut Session) {
        // A fault stays to be seen; its queues are gone already.
        if !session.events.is_faulted() {
            session.events.finish();
        }
        let Some(verbs) = session.verbs.take() else {
            return;
        };
        let handles = std::mem::take(&mut *session.handles.lock());
        for handle in handles.open {
            // Fails if the bus is gone, and then all is closed.
            let _ = verbs.close(Handle(handle));
        }
        // Before the verbs are dropped: nothing is told of a client that is gone.
        if !session.events.wait_until_let_go(MAX_WAIT)
            && self.around.metrics.late_closes.count_sparsely()
        {
            tracing::warn!("{}: the bus has not let go of memory", self.around.name);
        }
    }

    /// The guest rang for event queue `number`.
    fn look_at_events(&self, number: u32) {
        let events = Arc::clone(&self.events.lock());
        events.look(number);
    }
}

/// # Errors
/// `EIO`: the guest broke the rules since the last reset.
fn check_health(session: &Session) -> Result<(), Errno> {
    match session.events.is_faulted() {
        true => Err(Errno::IO),
        false => Ok(()),
    }
}

/// The thread that serves the doorbells of the event queues, and stops a connector whose guest
/// broke the rules.
pub(super) struct Service(pub Arc<Connector>);

impl Service {
    fn doorbells(&self) -> impl Iterator<Item = (u32, &EventFd)> {
        let bells = self.0.around.signals.doorbells().iter();
        (0..NUM_EVENT_QUEUES).zip(bells.map(|bell| &*bell.doorbell))
    }
}

impl MutEventSubscriber for Service {
    fn process(&mut self, events: Ready, _ops: &mut EventOps<'_>) {
        let number = events.data();
        if let Some((_, doorbell)) = self.doorbells().find(|(queue, _)| *queue == number) {
            vbus::eventfd::drain(doorbell);
            self.0.look_at_events(number);
        } else {
            vbus::eventfd::drain(&self.0.around.fault_evt);
            self.0.stop_faulted();
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let fault = (NUM_EVENT_QUEUES, &*self.0.around.fault_evt);
        for (data, evt) in self.doorbells().chain([fault]) {
            if let Err(error) = ops.add(Ready::with_data(evt, data, EventSet::IN)) {
                let name = &self.0.around.name;
                tracing::error!("{name}: cannot watch the doorbells of its events: {error}");
            }
        }
    }
}
