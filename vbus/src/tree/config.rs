//! `config`: where the administrator makes devices and buses.

use std::sync::Arc;

use rustix::io::Errno;

use super::fixed::Fixed;
use super::host::entry;
use super::{Directory, Entry, Node};
use crate::attribute::Attribute;
use crate::bus::{Bus, Host, LinkView, Shell};

/// Where links lead to.
const DEVICES: &str = "config/devices/";

/// `config` itself.
pub(super) fn directory(
    host: &Arc<Host>,
    devices_ident: u64,
    instances_ident: u64,
) -> Arc<dyn Directory> {
    let host = Arc::clone(host);
    Arc::new(Fixed(move || {
        let devices = Node::Directory(Arc::new(Devices(Arc::clone(&host))));
        let instances = Node::Directory(Arc::new(Instances(Arc::clone(&host))));
        let stamps = &host.stamps;
        vec![
            entry("devices", devices_ident, stamps.devices.modified(), devices),
            entry(
                "instances",
                instances_ident,
                stamps.buses.modified(),
                instances,
            ),
        ]
    }))
}

/// `config/devices`.
struct Devices(Arc<Host>);

impl Devices {
    fn entry(&self, shell: Arc<Shell>) -> Entry {
        Entry {
            ident: shell.stamp.ident(),
            modified: shell.stamp.modified(),
            node: Node::Directory(device_directory(&self.0, shell)),
        }
    }
}

impl Directory for Devices {
    fn lookup(&self, name: &str) -> Option<Entry> {
        self.0.device(name).map(|shell| self.entry(shell))
    }

    fn list(&self) -> Vec<(String, Entry)> {
        let shells = self.0.devices().into_iter();
        let named = shells.map(|shell| (shell.name.clone(), self.entry(shell)));
        named.collect()
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn mkdir(&self, name: &str) -> Result<(), Errno> {
        self.0.create_device(name)
    }

    fn rmdir(&self, name: &str) -> Result<(), Errno> {
        self.0.remove_device(name)
    }
}

/// `config/devices/NAME`.
fn device_directory(host: &Arc<Host>, shell: Arc<Shell>) -> Arc<dyn Directory> {
    let host = Arc::clone(host);
    Arc::new(Fixed(move || {
        let file = Node::File(Arc::new(TypeFile {
            host: Arc::clone(&host),
            shell: Arc::clone(&shell),
        }));
        let stamp = &shell.type_stamp;
        vec![entry("type", stamp.ident(), stamp.modified(), file)]
    }))
}

/// `config/devices/NAME/type`.
struct TypeFile {
    host: Arc<Host>,
    shell: Arc<Shell>,
}

impl Attribute for TypeFile {
    fn read(&self) -> Result<String, Errno> {
        let class = self.shell.typed().map(|typed| typed.class_name);
        Ok(class.unwrap_or_default().to_owned())
    }

    fn write(&self, value: &str) -> Result<(), Errno> {
        self.host.set_type_of(&self.shell, value)?;
        self.host.changed();
        Ok(())
    }

    fn is_writable(&self) -> bool {
        true
    }
}

/// `config/instances`.
struct Instances(Arc<Host>);

impl Instances {
    fn entry(&self, bus: Arc<Bus>) -> Entry {
        Entry {
            ident: bus.stamp.ident(),
            modified: bus.stamp.modified(),
            node: Node::Directory(Arc::new(Instance {
                host: Arc::clone(&self.0),
                bus,
            })),
        }
    }
}

impl Directory for Instances {
    fn lookup(&self, name: &str) -> Option<Entry> {
        self.0.bus(name).map(|bus| self.entry(bus))
    }

    fn list(&self) -> Vec<(String, Entry)> {
        let buses = self.0.buses().into_iter();
        let named = buses.map(|bus| (bus.name.clone(), self.entry(bus)));
        named.collect()
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn mkdir(&self, name: &str) -> Result<(), Errno> {
        self.0.create_bus(name)
    }

    fn rmdir(&self, name: &str) -> Result<(), Errno> {
        self.0.remove_bus(name)
    }
}

/// `config/instances/BUS`.
struct Instance {
    host: Arc<Host>,
    bus: Arc<Bus>,
}

impl Instance {
    /// `ENOENT` for a directory that somebody holds open while its bus was removed.
    fn check_alive(&self) -> Result<(), Errno> {
        match self.host.bus(&self.bus.name) {
            Some(bus) if Arc::ptr_eq(&bus, &self.bus) => Ok(()),
            _ => Err(Errno::NOENT),
        }
    }
}

fn link_entry(link: &LinkView) -> Entry {
    Entry {
        ident: link.ident,
        modified: link.modified,
        node: Node::Link(format!("../../devices/{}", link.device)),
    }
}

impl Directory for Instance {
    fn lookup(&self, name: &str) -> Option<Entry> {
        let mut entries = self.list().into_iter();
        entries.find(|(own, _)| own == name).map(|(_, entry)| entry)
    }

    fn list(&self) -> Vec<(String, Entry)> {
        let links = self.host.links(&self.bus);
        let mut entries: Vec<_> = links
            .iter()
            .map(|link| (link.name.clone(), link_entry(link)))
            .collect();
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn symlink(&self, name: &str, target: &str) -> Result<(), Errno> {
        let device = target.strip_prefix(DEVICES).ok_or(Errno::INVAL)?;
        if device.contains('/') {
            return Err(Errno::INVAL);
        }
        self.check_alive()?;
        self.host.link(&self.bus.name, name, device)
    }

    fn unlink(&self, name: &str) -> Result<(), Errno> {
        self.check_alive()?;
        self.host.unlink(&self.bus.name, name)
    }
}
