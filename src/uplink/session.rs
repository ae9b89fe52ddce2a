//! One client of a daemon's bus, which outlives the daemon: ids and handles are its own.
//!
//! An interface that the daemon takes away with it is lost, if the guest can do with that, and keeps
//! its id. A daemon that comes back tells of everything on the bus before it admits us; what is in the
//! same place then and of the same kind goes on under the same id, and the rest is dropped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alacrity_devices::vbus_pci::OnLoss;
use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;
use vbus::client::{Device, Remote};
use vbus::verbs::{Event, EventSink, Handle, InterfaceId, ShmRequest, Verbs};

use crate::reclaim::visitors::{Kept, Lender};

/// A client of the bus for as long as the guest wants to be one, however often the daemon goes and
/// comes back.
///
/// Events are told by one thread only, the one that serves the session, and without its lock.
pub(super) struct Session {
    events: Arc<dyn EventSink>,
    on_loss: OnLoss,
    lender: Option<Lender>,
    has_begun: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The guest has had enough.
    is_over: bool,
    /// While there is a daemon.
    remote: Option<Arc<Remote>>,
    next_id: u32,
    /// Interfaces by our id.
    interfaces: BTreeMap<u32, Interface>,
    next_handle: u64,
    /// Connections by our handle, with the daemon's; `None` once that daemon is gone.
    handles: BTreeMap<u64, Option<Handle>>,
    /// Memory that the daemon has or is about to get, by cookie; it is kept in memory meanwhile.
    shms: BTreeMap<u64, Option<Kept>>,
}

/// Memory that a daemon which is gone had, and may still write to.
#[derive(Default)]
pub(super) struct Shared(BTreeMap<u64, Option<Kept>>);

/// An interface that the guest knows.
struct Interface {
    /// The daemon's id; `None` while it is lost.
    theirs: Option<InterfaceId>,
    kind: String,
    /// As of [`Event::DeviceAdded`].
    place: String,
}

impl Session {
    /// `lender` is there if memory of the guest may be away.
    pub fn new(events: Arc<dyn EventSink>, on_loss: OnLoss, lender: Option<Lender>) -> Arc<Self> {
        Arc::new(Session {
            lender,
            events,
            on_loss,
            has_begun: AtomicBool::new(false),
            state: Mutex::new(State {
                next_handle: 1,
                ..State::default()
            }),
        })
    }

    /// Uses `remote` from now on, and tells what is on its bus.
    ///
    /// # Errors
    /// `ECONNRESET`: the daemon is gone again.
    pub fn begin(&self, remote: Arc<Remote>) -> Result<(), Errno> {
        let devices = remote.placed_devices()?;
        self.lock().remote = Some(remote);
        for Device { id, kind, place } in devices {
            self.on_event(Event::DeviceAdded { id, kind, place });
        }
        let missing = self.lock().take_missing();
        for id in missing {
            self.events.event(Event::DeviceDropped { id });
        }
        self.has_begun.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether what is on the bus has been told once.
    pub fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Acquire)
    }

    /// Passes on what the daemon said, with our ids.
    pub fn on_event(&self, event: Event) {
        let event = {
            let mut state = self.lock();
            match event {
                Event::DeviceAdded { id, kind, place } => {
                    let id = state.add_interface(id, &kind, &place);
                    id.map(|id| Event::DeviceAdded { id, kind, place })
                }
                // Daemons do not say it.
                Event::DeviceLost { .. } => None,
                Event::DeviceDropped { id } => {
                    let ours = state.our_id(id);
                    ours.map(|ours| {
                        state.interfaces.remove(&ours.0);
                        Event::DeviceDropped { id: ours }
                    })
                }
                Event::ShmClosed { cookie } => {
                    let shared = state.shms.remove(&cookie);
                    shared.map(|_| Event::ShmClosed { cookie })
                }
                event @ Event::Signal { .. } => Some(event),
            }
        };
        if let Some(event) = event {
            self.events.event(event);
        }
    }

    /// The daemon is gone, and with it all that it had: every interface is lost or dropped. The
    /// result is for [`Session::tell_closed`].
    pub fn lose(&self) -> Shared {
        let (ids, shms) = {
            let mut state = self.lock();
            state.remote = None;
            state.handles.values_mut().for_each(|handle| *handle = None);
            let mut ids = Vec::new();
            for (id, interface) in &mut state.interfaces {
                // None: it has been lost since the daemon before this one.
                ids.extend(interface.theirs.take().map(|_| InterfaceId(*id)));
            }
            if self.on_loss == OnLoss::Drop {
                state.interfaces.clear();
            }
            (ids, Shared(std::mem::take(&mut state.shms)))
        };
        for id in ids {
            self.events.event(match self.on_loss {
                OnLoss::Keep => Event::DeviceLost { id },
                OnLoss::Drop => Event::DeviceDropped { id },
            });
        }
        shms
    }

    /// Gives the guest its memory back.
    pub fn tell_closed(&self, shms: Shared) {
        for (cookie, _) in shms.0 {
            self.events.event(Event::ShmClosed { cookie });
        }
    }

    /// Ends it: the daemon is let go of.
    pub fn end(&self) {
        let mut state = self.lock();
        state.is_over = true;
        let remote = state.remote.take();
        drop(state);
        drop(remote);
    }

    /// The daemon, while there is one.
    pub fn remote(&self) -> Option<Arc<Remote>> {
        self.lock().remote.clone()
    }

    pub fn is_over(&self) -> bool {
        self.lock().is_over
    }

    /// The daemon and its handle for `handle`.
    fn connection(&self, handle: Handle) -> Result<(Arc<Remote>, Handle), Errno> {
        let state = self.lock();
        let theirs = state.handles.get(&handle.0).ok_or(Errno::NOENT)?;
        let remote = state.remote.clone().ok_or(Errno::NODEV)?;
        Ok((remote, theirs.ok_or(Errno::NODEV)?))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    /// Our id for the daemon's: that of the interface which was lost in this place, else the same
    /// number, unless that was given before. `None` for an interface that is known.
    fn add_interface(
        &mut self,
        theirs: InterfaceId,
        kind: &str,
        place: &str,
    ) -> Option<InterfaceId> {
        if self.our_id(theirs).is_some() {
            return None;
        }
        let returns = |lost: &Interface| {
            lost.theirs.is_none() && lost.kind == kind && lost.place == place && !place.is_empty()
        };
        let mut interfaces = self.interfaces.iter_mut();
        if let Some((ours, lost)) = interfaces.find(|(_, interface)| returns(interface)) {
            lost.theirs = Some(theirs);
            return Some(InterfaceId(*ours));
        }
        let ours = theirs.0.max(self.next_id);
        // The last number is never given, as on any bus.
        self.next_id = ours.checked_add(1)?;
        let interface = Interface {
            theirs: Some(theirs),
            kind: kind.to_owned(),
            place: place.to_owned(),
        };
        self.interfaces.insert(ours, interface);
        Some(InterfaceId(ours))
    }

    fn our_id(&self, theirs: InterfaceId) -> Option<InterfaceId> {
        let mut interfaces = self.interfaces.iter();
        let (ours, _) = interfaces.find(|(_, interface)| interface.theirs == Some(theirs))?;
        Some(InterfaceId(*ours))
    }

    /// Takes out what is lost.
    fn take_missing(&mut self) -> Vec<InterfaceId> {
        let mut missing = Vec::new();
        self.interfaces.retain(|id, interface| {
            if interface.theirs.is_none() {
                missing.push(InterfaceId(*id));
            }
            interface.theirs.is_some()
        });
        missing
    }

    fn uses(&self, remote: &Arc<Remote>) -> bool {
        let current = self.remote.as_ref();
        current.is_some_and(|current| Arc::ptr_eq(current, remote))
    }
}

/// What a guest does not need to know: to it, a daemon that is gone is a device that is gone.
fn as_dropped(errno: Errno) -> Errno {
    match errno {
        Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN | Errno::TIMEDOUT => Errno::NODEV,
        errno => errno,
    }
}

impl Verbs for Session {
    fn open(&self, id: InterfaceId, version: u32) -> Result<Handle, Errno> {
        let (remote, theirs) = {
            let state = self.lock();
            let interface = state.interfaces.get(&id.0).ok_or(Errno::NOENT)?;
            let remote = state.remote.clone().ok_or(Errno::NODEV)?;
            (remote, interface.theirs.ok_or(Errno::NODEV)?)
        };
        let opened = remote.open(theirs, version).map_err(as_dropped)?;
        let mut state = self.lock();
        if !state.uses(&remote) {
            return Err(Errno::NODEV);
        }
        let handle = state.next_handle;
        state.next_handle += 1;
        state.handles.insert(handle, Some(opened));
        Ok(Handle(handle))
    }

    fn call(&self, handle: Handle, func: u32, data: &mut [u8]) -> Result<u32, Errno> {
        let (remote, handle) = self.connection(handle)?;
        remote.call(handle, func, data).map_err(as_dropped)
    }

    fn shm(&self, handle: Handle, request: ShmRequest) -> Result<(), Errno> {
        let (remote, handle) = self.connection(handle)?;
        let cookie = request.cookie;
        // Not with the lock: it may have to be brought in.
        let kept = self.lender.as_ref();
        let kept = kept.map(|lender| lender.keep(&request.region));
        {
            let mut state = self.lock();
            if !state.uses(&remote) {
                return Err(Errno::NODEV);
            }
            // Before it is shared: its end can overtake the answer.
            state.shms.insert(cookie, kept);
        }
        match remote.shm(handle, request) {
            // Nobody knows whether the daemon has it, so it counts as shared: its end is told with the
            // others', once the daemon cannot have it any more.
            Err(_) if remote.is_broken() => Ok(()),
            Err(errno) => {
                self.lock().shms.remove(&cookie);
                Err(as_dropped(errno))
            }
            Ok(()) => Ok(()),
        }
    }

    fn close(&self, handle: Handle) -> Result<(), Errno> {
        let (remote, theirs) = {
            let mut state = self.lock();
            let theirs = state.handles.remove(&handle.0).ok_or(Errno::NOENT)?;
            (state.remote.clone(), theirs)
        };
        if let (Some(remote), Some(theirs)) = (remote, theirs) {
            // It is closed in any case: if not by this, by the end of the daemon.
            let _ = remote.close(theirs);
        }
        Ok(())
    }
}
