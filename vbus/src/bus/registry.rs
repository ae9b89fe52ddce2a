//! What the host knows by name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rustix::io::Errno;

use super::identity::Stamp;
use super::instance::Bus;
use super::member::MemberRecord;
use super::quota::Limits;
use super::shell::Shell;
use crate::device::DeviceClass;

/// All names, under the registry lock.
#[derive(Debug, Default)]
pub(super) struct Registry {
    pub classes: BTreeMap<&'static str, Arc<ClassRecord>>,
    pub devices: BTreeMap<String, DeviceRecord>,
    pub buses: BTreeMap<String, BusRecord>,
    pub members: BTreeMap<u32, Membership>,
    pub limits: Limits,
}

/// A class.
pub(crate) struct ClassRecord {
    pub class: Arc<dyn DeviceClass>,
    pub stamp: Stamp,
}

impl fmt::Debug for ClassRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClassRecord")
            .field(&self.class.name())
            .finish()
    }
}

/// A device and where it is linked.
#[derive(Debug)]
pub(super) struct DeviceRecord {
    pub shell: Arc<Shell>,
    /// Its class is at work.
    pub is_busy: bool,
    /// Buses that it is on, or is about to join or leave.
    pub buses: Vec<Arc<Bus>>,
}

/// A bus and its links.
#[derive(Debug)]
pub(super) struct BusRecord {
    pub bus: Arc<Bus>,
    pub links: BTreeMap<String, Link>,
}

/// A device on a bus.
#[derive(Debug)]
pub(super) struct Link {
    pub shell: Arc<Shell>,
    pub stamp: Stamp,
    /// The device is not done with joining or leaving: not to be seen.
    pub is_busy: bool,
}

/// A link as others see it.
#[derive(Debug, Clone)]
pub(crate) struct LinkView {
    pub name: String,
    pub device: String,
    pub ident: u64,
    pub modified: std::time::SystemTime,
}

/// A process on a bus.
#[derive(Debug)]
pub(super) struct Membership {
    pub record: Arc<MemberRecord>,
    /// How often it joined and did not leave.
    pub num_joins: usize,
}

impl Registry {
    pub fn bus(&self, name: &str) -> Result<&BusRecord, Errno> {
        self.buses.get(name).ok_or(Errno::NOENT)
    }

    pub fn device(&self, name: &str) -> Result<&DeviceRecord, Errno> {
        self.devices.get(name).ok_or(Errno::NOENT)
    }

    pub fn device_mut(&mut self, name: &str) -> Result<&mut DeviceRecord, Errno> {
        self.devices.get_mut(name).ok_or(Errno::NOENT)
    }

    pub fn has_members(&self, bus: &Arc<Bus>) -> bool {
        let mut members = self.members.values();
        members.any(|member| Arc::ptr_eq(&member.record.bus, bus))
    }
}

impl BusRecord {
    /// The links that can be seen, in the order in which they were made.
    pub fn links(&self) -> Vec<LinkView> {
        let links = self.links.iter().filter(|(_, link)| !link.is_busy);
        let mut links: Vec<LinkView> = links.map(|(name, link)| link.view(name)).collect();
        links.sort_by_key(|link| link.ident);
        links
    }
}

impl Link {
    pub fn view(&self, name: &str) -> LinkView {
        LinkView {
            name: name.to_owned(),
            device: self.shell.name.clone(),
            ident: self.stamp.ident(),
            modified: self.stamp.modified(),
        }
    }
}
