//! What a client was told without having asked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use zerocopy::FromBytes;

use crate::abi::wire::{Cookie, DeviceAdded, DeviceDropped, kind};
use crate::verbs::{Event, Handle, InterfaceId, WakeUp};

/// Events that wait, and what follows from those that came.
#[derive(Default)]
pub struct Inbox {
    events: VecDeque<Event>,
    devices: BTreeMap<InterfaceId, String>,
    connections: BTreeMap<Handle, InterfaceId>,
    /// Connections whose interface left the bus.
    dropped: Vec<Handle>,
    wake_ups: BTreeMap<u64, (Handle, Arc<dyn WakeUp>)>,
}

impl Inbox {
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub fn pop(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub fn devices(&self) -> Vec<(InterfaceId, String)> {
        let devices = self.devices.iter();
        devices.map(|(id, kind)| (*id, kind.clone())).collect()
    }

    pub fn opened(&mut self, handle: Handle, id: InterfaceId) {
        self.connections.insert(handle, id);
        if !self.devices.contains_key(&id) {
            self.dropped.push(handle); // It left while the answer was on its way.
        }
    }

    pub fn closed(&mut self, handle: Handle) {
        self.connections.remove(&handle);
        self.dropped.retain(|dropped| *dropped != handle);
    }

    pub fn is_open(&self, handle: Handle) -> bool {
        self.connections.contains_key(&handle) && !self.dropped.contains(&handle)
    }

    pub fn shared(&mut self, cookie: u64, handle: Handle, wake_up: Arc<dyn WakeUp>) {
        self.wake_ups.insert(cookie, (handle, wake_up));
    }

    pub fn unshared(&mut self, cookie: u64, handle: Handle) {
        if self
            .wake_ups
            .get(&cookie)
            .is_some_and(|(of, _)| *of == handle)
        {
            self.wake_ups.remove(&cookie);
        }
    }

    /// All there are.
    pub fn wake_ups(&self) -> impl Iterator<Item = Arc<dyn WakeUp>> {
        self.wake_ups
            .values()
            .map(|(_, wake_up)| Arc::clone(wake_up))
    }

    /// Files an event and adds whom to wake; false if it is none.
    pub fn take(&mut self, kind: u16, body: &[u8], wake_ups: &mut Vec<Arc<dyn WakeUp>>) -> bool {
        let cookie = || Cookie::read_from_bytes(body).map(|body| body.cookie.get());
        let event = match kind {
            kind::EVENT_DEVICE_ADDED => {
                let Ok((head, kind)) = DeviceAdded::read_from_prefix(body) else {
                    return false;
                };
                let Ok(kind) = std::str::from_utf8(kind) else {
                    return false;
                };
                let (id, kind) = (InterfaceId(head.interface.get()), kind.to_owned());
                self.devices.insert(id, kind.clone());
                Event::DeviceAdded { id, kind }
            }
            kind::EVENT_DEVICE_DROPPED => {
                let Ok(body) = DeviceDropped::read_from_bytes(body) else {
                    return false;
                };
                let id = InterfaceId(body.interface.get());
                self.drop_device(id, wake_ups);
                Event::DeviceDropped { id }
            }
            kind::EVENT_SIGNAL => {
                let Ok(cookie) = cookie() else { return false };
                if let Some((_, wake_up)) = self.wake_ups.get(&cookie) {
                    wake_ups.push(Arc::clone(wake_up));
                    return true;
                }
                Event::Signal { cookie }
            }
            kind::EVENT_SHM_CLOSED => {
                let Ok(cookie) = cookie() else { return false };
                let known = self.wake_ups.remove(&cookie);
                wake_ups.extend(known.map(|(_, wake_up)| wake_up));
                Event::ShmClosed { cookie }
            }
            _ => return false,
        };
        self.events.push_back(event);
        true
    }

    fn drop_device(&mut self, id: InterfaceId, wake_ups: &mut Vec<Arc<dyn WakeUp>>) {
        self.devices.remove(&id);
        let connections = self.connections.iter().filter(|(_, of)| **of == id);
        let lost: Vec<Handle> = connections.map(|(handle, _)| *handle).collect();
        let concerned = self.wake_ups.values().filter(|(of, _)| lost.contains(of));
        wake_ups.extend(concerned.map(|(_, wake_up)| Arc::clone(wake_up)));
        self.dropped.extend(lost);
    }
}
