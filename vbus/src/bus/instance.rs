//! A bus: the interfaces on it and the clients that listen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::client::Attachment;
use super::connection::Connection;
use super::identity::{Idents, Stamp};
use super::name;
use super::shell::Shell;
use crate::device::{Interface, InterfaceOffer};
use crate::verbs::{Event, InterfaceId};

/// Most bytes of an interface's name.
const MAX_INTERFACE_NAME_BYTES: usize = 64;

/// A bus.
pub(crate) struct Bus {
    pub name: String,
    /// With [`Bus::NUM_IDENTS`] identities; touched when links change.
    pub stamp: Stamp,
    /// Touched when members change.
    pub members_stamp: Stamp,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next_id: u32,
    interfaces: BTreeMap<InterfaceId, Arc<RegisteredInterface>>,
    next_listener: u64,
    listeners: BTreeMap<u64, Arc<Attachment>>,
}

/// An interface on a bus.
pub(crate) struct RegisteredInterface {
    pub id: InterfaceId,
    pub name: String,
    /// Name of the device's link to this bus.
    pub link: String,
    pub kind: &'static str,
    pub interface: Arc<dyn Interface>,
    pub shell: Arc<Shell>,
    /// With [`RegisteredInterface::NUM_IDENTS`] identities.
    pub stamp: Stamp,
}

impl RegisteredInterface {
    pub const NUM_IDENTS: u64 = 4;

    fn added(&self) -> Event {
        Event::DeviceAdded {
            id: self.id,
            kind: self.kind.to_owned(),
            place: format!("{}/{}", self.link, self.name),
        }
    }
}

impl Bus {
    pub const NUM_IDENTS: u64 = 8;

    pub fn new(name: &str, idents: &Idents) -> Self {
        let ident = idents.allocate(Self::NUM_IDENTS);
        Bus {
            name: name.to_owned(),
            stamp: Stamp::new(ident),
            members_stamp: Stamp::new(ident + 1),
            state: Mutex::default(),
        }
    }

    /// Puts all of a device's interfaces on the bus by its link `link`, or none, and tells every
    /// listener.
    ///
    /// # Errors
    /// `EINVAL`: bad names. `ENOSPC`: ids are used up.
    pub fn register(
        &self,
        shell: &Arc<Shell>,
        link: &str,
        offers: Vec<InterfaceOffer>,
        idents: &Idents,
    ) -> Result<(), Errno> {
        let mut names = BTreeSet::new();
        for offer in &offers {
            name::check(&offer.name)?;
            name::check(offer.kind)?;
            // The tree shows `NAME.BUS` for a device on several buses, in at most 255 bytes.
            let is_bad = offer.name.contains('.') || offer.name.len() > MAX_INTERFACE_NAME_BYTES;
            if is_bad || !names.insert(offer.name.as_str()) {
                return Err(Errno::INVAL);
            }
        }
        let mut guard = self.state.lock();
        let state = &mut *guard;
        // The last id is never given.
        let count = u32::try_from(offers.len()).map_err(|_| Errno::NOSPC)?;
        let next_id = state.next_id.checked_add(count).ok_or(Errno::NOSPC)?;
        for (id, offer) in (state.next_id..next_id).map(InterfaceId).zip(offers) {
            let interface = Arc::new(RegisteredInterface {
                id,
                name: offer.name,
                link: link.to_owned(),
                kind: offer.kind,
                interface: offer.interface,
                shell: Arc::clone(shell),
                stamp: Stamp::new(idents.allocate(RegisteredInterface::NUM_IDENTS)),
            });
            for listener in state.listeners.values() {
                listener.tell(interface.added());
            }
            state.interfaces.insert(id, interface);
        }
        state.next_id = next_id;
        Ok(())
    }

    /// Takes a device's interfaces off the bus and tells every listener. The connections that have
    /// to be closed, which take no more calls.
    pub fn unregister(&self, shell: &Arc<Shell>) -> Vec<Arc<Connection>> {
        let mut doomed = Vec::new();
        // Dropped after the lock: devices own what is in there.
        let mut removed = Vec::new();
        let mut guard = self.state.lock();
        let state = &mut *guard;
        for interface in state.interfaces.values() {
            if Arc::ptr_eq(&interface.shell, shell) {
                removed.push(Arc::clone(interface));
            }
        }
        for interface in &removed {
            state.interfaces.remove(&interface.id);
            for listener in state.listeners.values() {
                listener.drop_interface(interface.id, &mut doomed);
            }
        }
        drop(guard);
        doomed
    }

    /// Tells a new listener of all interfaces, and from then on of every change; its number.
    pub fn attach(&self, listener: Arc<Attachment>) -> u64 {
        let mut state = self.state.lock();
        for interface in state.interfaces.values() {
            listener.tell(interface.added());
        }
        let number = state.next_listener;
        state.next_listener += 1;
        state.listeners.insert(number, listener);
        number
    }

    /// Forgets a listener.
    pub fn detach(&self, number: u64) {
        let listener = self.state.lock().listeners.remove(&number);
        drop(listener);
    }

    /// The interface with this id.
    pub fn interface(&self, id: InterfaceId) -> Option<Arc<RegisteredInterface>> {
        self.state.lock().interfaces.get(&id).map(Arc::clone)
    }

    /// All interfaces, by id in ascending order.
    pub fn interfaces(&self) -> Vec<Arc<RegisteredInterface>> {
        self.state.lock().interfaces.values().cloned().collect()
    }

    /// Runs `then` while the interface cannot leave the bus; `None` if it has.
    ///
    /// `then` must not block, nor run code of a device.
    pub fn if_registered<R>(&self, id: InterfaceId, then: impl FnOnce() -> R) -> Option<R> {
        let state = self.state.lock();
        state.interfaces.contains_key(&id).then(then)
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RegisteredInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisteredInterface")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{DeviceClass, InterfaceOffer};
    use crate::test_utils::EchoClass;

    fn offers(count: usize) -> Vec<InterfaceOffer> {
        let class = EchoClass::new("echo", 1, count);
        class.create("a").unwrap().connect_bus("bus").unwrap()
    }

    #[test]
    fn last_id_is_never_given() {
        let idents = Idents::new();
        let bus = Bus::new("bus", &idents);
        let shell = Arc::new(Shell::new("a", &idents));
        bus.state.lock().next_id = u32::MAX - 1;

        let too_many = bus.register(&shell, "a", offers(2), &idents);

        assert_eq!(too_many, Err(Errno::NOSPC));
        assert!(bus.interfaces().is_empty());
        assert_eq!(bus.register(&shell, "a", offers(1), &idents), Ok(()));
        let full = bus.register(&shell, "a", offers(1), &idents);
        assert_eq!(full, Err(Errno::NOSPC));
        let ids: Vec<_> = bus.interfaces().iter().map(|own| own.id.0).collect();
        assert_eq!(ids, [u32::MAX - 1]);
    }
}
