//! What a client was told without having asked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use zerocopy::FromBytes;

use crate::abi::wire::{Cookie, DeviceAdded, DeviceDropped, kind};
use crate::verbs::{Event, Handle, InterfaceId, WakeUp};

/// An interface on the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// What to open.
    pub id: InterfaceId,
    /// What it speaks.
    pub kind: String,
    /// See [`Event::DeviceAdded`].
    pub place: String,
}

/// Events that wait, and what follows from those that came.
#[derive(Default)]
pub struct Inbox {
    events: VecDeque<Event>,
    devices: BTreeMap<InterfaceId, Device>,
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

    pub fn devices(&self) -> Vec<Device> {
        self.devices.values().cloned().collect()
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
                let Some(device) = read_device(body) else {
                    return false;
                };
                self.devices.insert(device.id, device.clone());
                let Device { id, kind, place } = device;
                Event::DeviceAdded { id, kind, place }
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

/// The body of `EVENT_DEVICE_ADDED`.
fn read_device(body: &[u8]) -> Option<Device> {
    let (head, texts) = DeviceAdded::read_from_prefix(body).ok()?;
    let place_len = usize::try_from(head.place_len.get()).ok()?;
    let (kind, place) = texts.split_at_checked(texts.len().checked_sub(place_len)?)?;
    let text = |bytes| std::str::from_utf8(bytes).map(str::to_owned).ok();
    Some(Device {
        id: InterfaceId(head.interface.get()),
        kind: text(kind)?,
        place: text(place)?,
    })
}
