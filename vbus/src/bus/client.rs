//! A client: the verbs of one connector that serves a member.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::connection::{Connection, Reporter};
use super::housekeeper::Jobs;
use super::member::{Member, MemberRecord};
use super::notice::ClosedNotice;
use super::quota::Charge;
use crate::device::{Peer, Shm, ShmSignal};
use crate::memory::{MemoryContext, Region};
use crate::signal::{self, Side};
use crate::verbs::{
    Event, EventSink, Handle, InterfaceId, MAX_CALL_BYTES, ShmRequest, SignalRequest, Verbs,
};

/// Highest priority of shared memory.
const MAX_PRIORITY: u32 = crate::abi::NUM_PRIORITIES - 1;

/// A client of a bus. Dropping it closes all that it has open.
pub struct Client {
    attachment: Arc<Attachment>,
    listener: u64,
    jobs: Jobs,
    _charge: Charge,
    /// Last: the process stays a member until the connections are closed.
    _member: Member,
}

/// The part of a client that its bus and its connections know.
pub(crate) struct Attachment {
    record: Arc<MemberRecord>,
    memory: Arc<dyn MemoryContext>,
    events: Arc<dyn EventSink>,
    state: Mutex<State>,
}

struct State {
    next_handle: u64,
    slots: BTreeMap<Handle, Slot>,
    /// Interfaces on the bus that this client cannot open, since it broke the rules there.
    cut_off: BTreeSet<InterfaceId>,
}

struct Slot {
    connection: Arc<Connection>,
    _charge: Charge,
}

impl Attachment {
    pub fn record(&self) -> &MemberRecord {
        &self.record
    }

    /// Passes an event on.
    pub fn tell(&self, event: Event) {
        let _order = self.state.lock();
        self.events.event(event);
    }

    /// Tells the client that an interface left the bus, unless it knows. Adds the connections that
    /// are to be closed.
    pub fn drop_interface(&self, id: InterfaceId, doomed: &mut Vec<Arc<Connection>>) {
        let mut state = self.state.lock();
        if !state.cut_off.remove(&id) {
            state.drop_connections(id, doomed);
            self.events.event(Event::DeviceDropped { id });
        }
    }

    /// Cuts this client off from the interface of `culprit`: the connections to be closed, or
    /// `None` if that has happened. Called while the interface cannot leave the bus.
    pub fn cut_off(&self, culprit: &Arc<Connection>) -> Option<Vec<Arc<Connection>>> {
        let id = culprit.interface;
        let mut state = self.state.lock();
        if !culprit.drop_calls() {
            return None;
        }
        // Not in the table if the device is still connecting it.
        let mut doomed = vec![Arc::clone(culprit)];
        state.drop_connections(id, &mut doomed);
        state.cut_off.insert(id);
        self.events.event(Event::DeviceDropped { id });
        Some(doomed)
    }

    fn connection(&self, handle: Handle) -> Result<Arc<Connection>, Errno> {
        let state = self.state.lock();
        let slot = state.slots.get(&handle).ok_or(Errno::NOENT)?;
        Ok(Arc::clone(&slot.connection))
    }

    /// Gives an established connection its handle.
    fn admit(&self, connection: &Arc<Connection>, charge: Charge) -> Result<Handle, Errno> {
        let mut state = self.state.lock();
        if state.cut_off.contains(&connection.interface) || !connection.open() {
            return Err(Errno::NODEV);
        }
        let handle = Handle(state.next_handle);
        state.next_handle += 1;
        let slot = Slot {
            connection: Arc::clone(connection),
            _charge: charge,
        };
        state.slots.insert(handle, slot);
        Ok(handle)
    }
}

impl State {
    fn drop_connections(&self, id: InterfaceId, doomed: &mut Vec<Arc<Connection>>) {
        for slot in self.slots.values() {
            if slot.connection.interface == id && slot.connection.drop_calls() {
                doomed.push(Arc::clone(&slot.connection));
            }
        }
    }
}

impl Client {
    pub(super) fn attach(
        member: Member,
        memory: Arc<dyn MemoryContext>,
        events: Arc<dyn EventSink>,
    ) -> Result<Self, Errno> {
        let record = Arc::clone(member.record());
        let charge = record.clients.charge(1)?;
        let attachment = Arc::new(Attachment {
            record,
            memory,
            events,
            state: Mutex::new(State {
                next_handle: 1,
                slots: BTreeMap::new(),
                cut_off: BTreeSet::new(),
            }),
        });
        let listener = member.record().bus.attach(Arc::clone(&attachment));
        Ok(Client {
            attachment,
            listener,
            jobs: member.jobs().clone(),
            _charge: charge,
            _member: member,
        })
    }
}

impl Client {
    /// Accounts for a verb to the member.
    fn count_verb(&self) {
        self.attachment.record.verbs.fetch_add(1, Relaxed);
    }
}

impl Verbs for Client {
    fn open(&self, id: InterfaceId, version: u32) -> Result<Handle, Errno> {
        self.count_verb();
        let attachment = &self.attachment;
        let bus = &attachment.record.bus;
        let interface = bus.interface(id).ok_or(Errno::NOENT)?;
        if attachment.state.lock().cut_off.contains(&id) {
            return Err(Errno::NODEV);
        }
        let charge = attachment.record.connections.charge(1)?;
        let connection = Connection::new(
            id,
            Arc::clone(&interface.shell),
            Arc::downgrade(attachment),
            self.jobs.clone(),
        );
        let peer = Peer {
            version,
            memory: Arc::clone(&attachment.memory),
            faults: Arc::new(Reporter(Arc::downgrade(&connection))),
        };
        match interface.interface.connect(peer) {
            Ok(established) => connection.establish(established),
            Err(error) => {
                connection.close(); // Lets go of the device.
                return Err(error);
            }
        }
        // Either the interface is still there and a later unlink finds the connection in the table,
        // or it left meanwhile and took this client for one without a connection.
        let admitted = bus
            .if_registered(id, || attachment.admit(&connection, charge))
            .unwrap_or(Err(Errno::NOENT));
        if admitted.is_err() {
            connection.close();
        }
        admitted
    }

    fn call(&self, handle: Handle, func: u32, data: &mut [u8]) -> Result<u32, Errno> {
        self.count_verb();
        let connection = self.attachment.connection(handle)?;
        if data.len() > MAX_CALL_BYTES {
            return Err(Errno::INVAL);
        }
        connection.run(|device| device.call(func, data))
    }

    fn shm(&self, handle: Handle, request: ShmRequest) -> Result<(), Errno> {
        self.count_verb();
        let connection = self.attachment.connection(handle)?;
        let record = &self.attachment.record;
        connection.run(|device| {
            let signal = match request.signal {
                Some(signal) => Some(attach_signal(&request.region, signal)?),
                None => None,
            };
            let charges = vec![
                record.shms.charge(1)?,
                record.shared_bytes.charge(request.region.len() as u64)?,
            ];
            let events = Arc::clone(&self.attachment.events);
            let (notice, promise) = ClosedNotice::new(events, request.cookie, charges);
            let shm = Shm {
                id: request.id,
                priority: request.priority.min(MAX_PRIORITY),
                region: request.region,
                signal,
                closed: Some(notice),
            };
            let result = device.shm(shm);
            promise.settle(result.is_ok());
            result
        })
    }

    fn close(&self, handle: Handle) -> Result<(), Errno> {
        self.count_verb();
        let slot = self.attachment.state.lock().slots.remove(&handle);
        slot.ok_or(Errno::NOENT)?.connection.close();
        Ok(())
    }
}

/// The south's end of a signal.
fn attach_signal(region: &Region, request: SignalRequest) -> Result<ShmSignal, Errno> {
    let offset = usize::try_from(request.offset).map_err(|_| Errno::INVAL)?;
    let (sender, receiver) =
        signal::attach(region.clone(), offset, Side::South).ok_or(Errno::INVAL)?;
    Ok(ShmSignal {
        sender,
        receiver,
        doorbell: request.doorbell,
        wake_up: request.wake_up,
    })
}

impl Drop for Client {
    fn drop(&mut self) {
        self.attachment.record.bus.detach(self.listener);
        let slots = std::mem::take(&mut self.attachment.state.lock().slots);
        for slot in slots.into_values() {
            slot.connection.close();
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("pid", &self.attachment.record.pid)
            .field("bus", &self.attachment.record.bus.name)
            .finish_non_exhaustive()
    }
}
