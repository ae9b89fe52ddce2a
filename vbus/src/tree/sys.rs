//! `sys`: what there is, and how it is doing.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rustix::io::Errno;

use super::fixed::{Fixed, Shown};
use super::host::entry;
use super::{Directory, Entry, Node};
use crate::attribute::Attribute;
use crate::bus::{Bus, ClassRecord, Host, MemberRecord, RegisteredInterface, Shell};

/// Name of a counter, and how to read it of its owner.
type Counter<T> = (&'static str, fn(&T) -> u64);

fn shown(value: impl Fn() -> String + Send + Sync + 'static) -> Node {
    Node::File(Arc::new(Shown(value)))
}

fn fixed(entries: impl Fn() -> Vec<(String, Entry)> + Send + Sync + 'static) -> Node {
    Node::Directory(Arc::new(Fixed(entries)))
}

/// `sys/deviceclass`.
pub(super) struct Classes(pub Arc<Host>);

fn class_entry(class: &ClassRecord) -> Entry {
    Entry {
        ident: class.stamp.ident(),
        modified: class.stamp.modified(),
        node: fixed(Vec::new),
    }
}

impl Directory for Classes {
    fn lookup(&self, name: &str) -> Option<Entry> {
        self.0.class(name).map(|class| class_entry(&class))
    }

    fn list(&self) -> Vec<(String, Entry)> {
        let classes = self.0.classes().into_iter();
        let named = classes.map(|class| (class.class.name().to_owned(), class_entry(&class)));
        named.collect()
    }
}

/// `sys/devices`.
pub(super) struct Devices(pub Arc<Host>);

impl Devices {
    fn entry(&self, shell: Arc<Shell>) -> Entry {
        let host = Arc::clone(&self.0);
        Entry {
            ident: shell.stamp.ident() + 2,
            modified: shell.stamp.modified(),
            node: fixed(move || device_entries(&host, &shell)),
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
}

/// `sys/devices/NAME`. An attribute of the class hides a counter of the same name.
fn device_entries(host: &Arc<Host>, shell: &Arc<Shell>) -> Vec<(String, Entry)> {
    let ident = shell.stamp.ident();
    let modified = shell.stamp.modified();
    let mut entries = Vec::new();
    if let Some(typed) = shell.typed() {
        let class = Node::Link(format!("../../deviceclass/{}", typed.class_name));
        let type_modified = shell.type_stamp.modified();
        entries.push(entry("class", ident + 3, type_modified, class));
        for (idx, attribute) in typed.attributes.iter().enumerate() {
            let file = Node::File(Arc::new(DeviceAttribute {
                host: Arc::clone(host),
                shell: Arc::clone(shell),
                idx,
            }));
            let stamp = &attribute.stamp;
            entries.push(entry(attribute.name, stamp.ident(), stamp.modified(), file));
        }
    }
    let interfaces = {
        let (host, shell) = (Arc::clone(host), Arc::clone(shell));
        fixed(move || interface_links(&host, &shell))
    };
    entries.push(entry("interfaces", ident + 4, modified, interfaces));
    let counters: [Counter<Shell>; 2] = [
        ("connections", |shell| shell.connections.used()),
        ("faults", |shell| shell.faults.get()),
    ];
    for (counter_ident, (name, read)) in (ident + 5..).zip(counters) {
        if entries.iter().all(|(other, _)| other != name) {
            let shell = Arc::clone(shell);
            let file = shown(move || read(&shell).to_string());
            entries.push(entry(name, counter_ident, modified, file));
        }
    }
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    entries
}

/// `sys/devices/NAME/interfaces`: `INTERFACE` while the device is on one bus, `INTERFACE.BUS` while
/// it is on several. Names of interfaces have no `.`, so what is before the first one is the name.
fn interface_links(host: &Host, shell: &Arc<Shell>) -> Vec<(String, Entry)> {
    let interfaces = host.interfaces(shell);
    let is_on_several = match interfaces.first() {
        Some((first, _)) => interfaces.iter().any(|(bus, _)| !Arc::ptr_eq(bus, first)),
        None => false,
    };
    let link = |(bus, interface): &(Arc<Bus>, Arc<RegisteredInterface>)| {
        let name = if is_on_several {
            format!("{}.{}", interface.name, bus.name)
        } else {
            interface.name.clone()
        };
        let target = format!("../../../instances/{}/devices/{}", bus.name, interface.id);
        let stamp = &interface.stamp;
        entry(
            &name,
            stamp.ident() + 3,
            stamp.modified(),
            Node::Link(target),
        )
    };
    let mut links: Vec<_> = interfaces.iter().map(link).collect();
    links.sort_by(|(a, _), (b, _)| a.cmp(b));
    links
}

/// An attribute of a device's class. Writing it is a change of the configuration.
struct DeviceAttribute {
    host: Arc<Host>,
    shell: Arc<Shell>,
    idx: usize,
}

impl DeviceAttribute {
    fn of_device(&self) -> Result<&crate::bus::ShellAttribute, Errno> {
        let typed = self.shell.typed().ok_or(Errno::NOENT)?;
        typed.attributes.get(self.idx).ok_or(Errno::NOENT)
    }
}

impl Attribute for DeviceAttribute {
    fn read(&self) -> Result<String, Errno> {
        self.of_device()?.attribute.read()
    }

    fn write(&self, value: &str) -> Result<(), Errno> {
        let own = self.of_device()?;
        own.attribute.write(value)?;
        own.stamp.touch();
        self.host.changed();
        Ok(())
    }

    fn is_writable(&self) -> bool {
        self.of_device()
            .is_ok_and(|own| own.attribute.is_writable())
    }
}

/// `sys/instances`.
pub(super) struct Instances(pub Arc<Host>);

impl Instances {
    fn entry(&self, bus: Arc<Bus>) -> Entry {
        let host = Arc::clone(&self.0);
        Entry {
            ident: bus.stamp.ident() + 2,
            modified: bus.stamp.modified(),
            node: fixed(move || bus_entries(&host, &bus)),
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
}

/// `sys/instances/BUS`.
fn bus_entries(host: &Arc<Host>, bus: &Arc<Bus>) -> Vec<(String, Entry)> {
    let ident = bus.stamp.ident();
    let devices = {
        let bus = Arc::clone(bus);
        fixed(move || interface_entries(&bus))
    };
    let members = {
        let (host, bus) = (Arc::clone(host), Arc::clone(bus));
        fixed(move || member_entries(&host, &bus))
    };
    vec![
        entry("devices", ident + 3, bus.stamp.modified(), devices),
        entry("members", ident + 4, bus.members_stamp.modified(), members),
    ]
}

/// `sys/instances/BUS/devices`: what a client of the bus sees.
fn interface_entries(bus: &Bus) -> Vec<(String, Entry)> {
    let interfaces = bus.interfaces().into_iter();
    let mut entries: Vec<_> = interfaces
        .map(|interface| {
            let (ident, modified) = (interface.stamp.ident(), interface.stamp.modified());
            let name = interface.id.to_string();
            let directory = fixed(move || {
                let device = Node::Link(format!("../../../../devices/{}", interface.shell.name));
                let kind = interface.kind;
                vec![
                    entry("device", ident + 1, modified, device),
                    entry("type", ident + 2, modified, shown(|| kind.to_owned())),
                ]
            });
            entry(&name, ident, modified, directory)
        })
        .collect();
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    entries
}

/// `sys/instances/BUS/members`.
fn member_entries(host: &Host, bus: &Arc<Bus>) -> Vec<(String, Entry)> {
    let members = host.members(bus).into_iter();
    let mut entries: Vec<_> = members
        .map(|member| {
            let (ident, modified) = (member.stamp.ident(), member.stamp.modified());
            let name = member.pid.to_string();
            let directory = fixed(move || figures(&member));
            entry(&name, ident, modified, directory)
        })
        .collect();
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    entries
}

/// `sys/instances/BUS/members/PID`.
fn figures(member: &Arc<MemberRecord>) -> Vec<(String, Entry)> {
    let figures: [Counter<MemberRecord>; 5] = [
        ("connections", |member| member.connections.used()),
        ("faults", |member| member.faults.load(Relaxed)),
        ("shared_bytes", |member| member.shared_bytes.used()),
        ("shms", |member| member.shms.used()),
        ("verbs", |member| member.verbs.load(Relaxed)),
    ];
    let idents = member.stamp.ident() + 1..;
    let files = idents.zip(figures).map(|(ident, (name, read))| {
        let (modified, member) = (member.stamp.modified(), Arc::clone(member));
        let file = shown(move || read(&member).to_string());
        entry(name, ident, modified, file)
    });
    files.collect()
}

/// `sys/vms`: those that report, and those that somebody else knows.
pub(super) fn vm_entries(host: &Host) -> Vec<(String, Entry)> {
    let source = host.vm_source();
    let mut known = source.map(|source| source.vms()).unwrap_or_default();
    let members = host.reporters().into_iter();
    let mut entries: Vec<_> = members
        .map(|member| {
            let stamp = &member.report.stamp;
            let (ident, modified) = (stamp.ident(), stamp.modified());
            let name = member.pid.to_string();
            let position = known.iter().position(|vm| vm.pid == member.pid);
            let added = position.map_or(Vec::new(), |at| known.swap_remove(at).entries);
            let directory = fixed(move || with(report_entries(&member, None), &added));
            entry(&name, ident, modified, directory)
        })
        .collect();
    entries.extend(known.into_iter().map(|vm| {
        let directory = fixed(move || vm.entries.clone());
        entry(&vm.pid.to_string(), vm.ident, vm.modified, directory)
    }));
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    entries
}

/// `entries` with those that are `added` in the place of others of their names.
fn with(mut entries: Vec<(String, Entry)>, added: &[(String, Entry)]) -> Vec<(String, Entry)> {
    entries.retain(|(name, _)| added.iter().all(|(other, _)| other != name));
    entries.extend(added.iter().cloned());
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    entries
}

/// `sys/vms/PID`, and directories in it.
fn report_entries(member: &Arc<MemberRecord>, directory: Option<&str>) -> Vec<(String, Entry)> {
    let modified = member.report.stamp.modified();
    let entries = member.report.entries(directory).into_iter();
    let shown_entries = entries.map(|node| {
        let shown_node = match node.value {
            Some(value) => shown(move || value.clone()),
            None => {
                let (member, name) = (Arc::clone(member), node.name.clone());
                fixed(move || report_entries(&member, Some(&name)))
            }
        };
        entry(&node.name, node.ident, modified, shown_node)
    });
    shown_entries.collect()
}
