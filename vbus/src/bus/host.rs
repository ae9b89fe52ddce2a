//! The host: everything by name, and who is a member.

use std::fmt;
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;

use super::housekeeper::{Housekeeper, Jobs};
use super::identity::{Idents, Stamp};
use super::instance::Bus;
use super::member::{Member, MemberRecord};
use super::name;
use super::quota::Limits;
use super::registry::{BusRecord, ClassRecord, DeviceRecord, Membership, Registry};
use super::shell::Shell;
use crate::device::DeviceClass;
use crate::tree::{Tree, VmSource};

type Observer = Arc<dyn Fn() + Send + Sync>;

/// All classes, devices, buses and members. Names are unique among their kind and as
/// [`crate::tree`] can show them: 1 to 128 bytes without `/` and control characters, neither `.` nor
/// `..`; others are refused with `EINVAL`.
pub struct Host {
    registry: Mutex<Registry>,
    idents: Idents,
    observers: Mutex<Vec<Observer>>,
    /// When the host was made, and the sets of its objects last changed.
    pub(crate) stamps: HostStamps,
    housekeeper: Housekeeper,
    vm_source: OnceLock<Arc<dyn VmSource>>,
}

/// Of the sets of objects.
#[derive(Debug)]
pub(crate) struct HostStamps {
    pub started: Stamp,
    pub classes: Stamp,
    pub devices: Stamp,
    pub buses: Stamp,
    /// Members that report.
    pub vms: Stamp,
}

impl Host {
    /// A host with nothing on it, and its housekeeping thread.
    ///
    /// # Panics
    /// No thread can be started.
    pub fn new() -> Arc<Host> {
        Arc::new(Host {
            registry: Mutex::default(),
            idents: Idents::new(),
            observers: Mutex::default(),
            stamps: HostStamps {
                started: Stamp::new(0),
                classes: Stamp::new(0),
                devices: Stamp::new(0),
                buses: Stamp::new(0),
                vms: Stamp::new(0),
            },
            housekeeper: Housekeeper::start(),
            vm_source: OnceLock::new(),
        })
    }

    /// Makes a class known; for good.
    ///
    /// # Errors
    /// `EEXIST`: there is one of this name. `EINVAL`: bad name.
    pub fn register_class(&self, class: Arc<dyn DeviceClass>) -> Result<(), Errno> {
        let class_name = class.name();
        name::check(class_name)?;
        let mut registry = self.registry();
        if registry.classes.contains_key(class_name) {
            return Err(Errno::EXIST);
        }
        let record = ClassRecord {
            class,
            stamp: Stamp::new(self.idents.allocate(1)),
        };
        registry.classes.insert(class_name, Arc::new(record));
        self.stamps.classes.touch();
        Ok(())
    }

    /// Makes a device that has no type yet.
    ///
    /// # Errors
    /// `EEXIST`, `EINVAL`: bad name.
    pub fn create_device(&self, device: &str) -> Result<(), Errno> {
        self.add_device(device)?;
        self.changed();
        Ok(())
    }

    pub(crate) fn add_device(&self, device: &str) -> Result<(), Errno> {
        name::check(device)?;
        let mut registry = self.registry();
        if registry.devices.contains_key(device) {
            return Err(Errno::EXIST);
        }
        let record = DeviceRecord {
            shell: Arc::new(Shell::new(device, &self.idents)),
            is_busy: false,
            buses: Vec::new(),
        };
        registry.devices.insert(device.to_owned(), record);
        self.stamps.devices.touch();
        Ok(())
    }

    /// Gives a device its type, once.
    ///
    /// # Errors
    /// `ENOENT`: no such device or class. `EBUSY`: it has a type. Those of the class.
    pub fn set_type(&self, device: &str, class: &str) -> Result<(), Errno> {
        let shell = Arc::clone(&self.registry().device(device)?.shell);
        self.set_type_of(&shell, class)?;
        self.changed();
        Ok(())
    }

    /// As [`Host::set_type`], of this very device; `ENOENT` if it was removed.
    pub(crate) fn set_type_of(&self, shell: &Arc<Shell>, class: &str) -> Result<(), Errno> {
        let class = {
            let mut registry = self.registry();
            let class = registry.classes.get(class).cloned();
            let record = registry.device_mut(&shell.name)?;
            if !Arc::ptr_eq(&record.shell, shell) {
                return Err(Errno::NOENT);
            }
            if record.is_busy || shell.typed().is_some() {
                return Err(Errno::BUSY);
            }
            let class = class.ok_or(Errno::NOENT)?;
            record.is_busy = true;
            class
        };
        let result = shell.set_type(&*class.class, &self.idents);
        // It cannot have been removed while it was busy.
        if let Ok(record) = self.registry().device_mut(&shell.name) {
            record.is_busy = false;
        }
        result
    }

    /// Removes a device; it lives on until its last connection is closed.
    ///
    /// # Errors
    /// `ENOENT`. `EBUSY`: it is linked, or its class is at work on it.
    pub fn remove_device(&self, device: &str) -> Result<(), Errno> {
        let record = {
            let mut registry = self.registry();
            let record = registry.device(device)?;
            if record.is_busy || !record.buses.is_empty() {
                return Err(Errno::BUSY);
            }
            registry.devices.remove(device)
        };
        drop(record); // Without the lock: the device may end here.
        self.stamps.devices.touch();
        self.changed();
        Ok(())
    }

    /// Makes a bus.
    ///
    /// # Errors
    /// `EEXIST`, `EINVAL`: bad name.
    pub fn create_bus(&self, bus: &str) -> Result<(), Errno> {
        self.add_bus(bus)?;
        self.changed();
        Ok(())
    }

    pub(crate) fn add_bus(&self, bus: &str) -> Result<(), Errno> {
        name::check(bus)?;
        let mut registry = self.registry();
        if registry.buses.contains_key(bus) {
            return Err(Errno::EXIST);
        }
        let record = BusRecord {
            bus: Arc::new(Bus::new(bus, &self.idents)),
            links: Default::default(),
        };
        registry.buses.insert(bus.to_owned(), record);
        self.stamps.buses.touch();
        Ok(())
    }

    /// Removes a bus.
    ///
    /// # Errors
    /// `ENOENT`. `EBUSY`: it has links or members.
    pub fn remove_bus(&self, bus: &str) -> Result<(), Errno> {
        let record = {
            let mut registry = self.registry();
            let record = registry.bus(bus)?;
            if !record.links.is_empty() || registry.has_members(&record.bus) {
                return Err(Errno::BUSY);
            }
            registry.buses.remove(bus)
        };
        drop(record);
        self.stamps.buses.touch();
        self.changed();
        Ok(())
    }

    /// Makes the process `pid` a member of a bus. It may join the same bus again, for another of its
    /// connections.
    ///
    /// # Errors
    /// `ENOENT`: no such bus. `EBUSY`: it is a member of another.
    pub fn join(self: &Arc<Self>, bus: &str, pid: u32) -> Result<Member, Errno> {
        let mut registry = self.registry();
        let bus = Arc::clone(&registry.bus(bus)?.bus);
        let limits = registry.limits;
        let member = registry.members.entry(pid).or_insert_with(|| {
            bus.members_stamp.touch();
            let bus = Arc::clone(&bus);
            Membership {
                record: Arc::new(MemberRecord::new(pid, bus, limits, &self.idents)),
                num_joins: 0,
            }
        });
        if !Arc::ptr_eq(&member.record.bus, &bus) {
            return Err(Errno::BUSY);
        }
        member.num_joins += 1;
        Ok(Member::new(Arc::clone(self), Arc::clone(&member.record)))
    }

    /// Another join of somebody who is a member.
    pub(super) fn join_again(self: &Arc<Self>, record: &Arc<MemberRecord>) -> Member {
        if let Some(member) = self.registry().members.get_mut(&record.pid) {
            member.num_joins += 1;
        }
        Member::new(Arc::clone(self), Arc::clone(record))
    }

    pub(super) fn leave(&self, record: &Arc<MemberRecord>) {
        let mut registry = self.registry();
        let Some(member) = registry.members.get_mut(&record.pid) else {
            return;
        };
        member.num_joins -= 1;
        if member.num_joins == 0 {
            registry.members.remove(&record.pid);
            if !record.report.is_empty() {
                self.stamps.vms.touch();
            }
            record.bus.members_stamp.touch();
        }
    }

    /// Limits of the processes that become members from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.registry().limits = limits;
    }

    /// The control tree of this host.
    pub fn tree(self: &Arc<Self>) -> Tree {
        Tree::new(crate::tree::host_root(self))
    }

    /// Shows what `source` knows, too; the first one for good.
    pub fn show_vms(&self, source: Arc<dyn VmSource>) {
        let _ = self.vm_source.set(source);
    }

    pub(crate) fn vm_source(&self) -> Option<&Arc<dyn VmSource>> {
        self.vm_source.get()
    }

    /// The first of `count` identities in a row, for entries of the tree that others make.
    pub fn allocate_idents(&self, count: u64) -> u64 {
        self.idents.allocate(count)
    }

    /// Has `observer` called after each change of what [`crate::state::State`] describes, without any
    /// lock, by the thread that made it. The host keeps it for as long as it lives, so it must not
    /// own the host.
    pub fn on_change(&self, observer: Box<dyn Fn() + Send + Sync>) {
        self.observers.lock().push(Arc::from(observer));
    }

    pub(crate) fn changed(&self) {
        let observers = self.observers.lock().clone();
        for observer in observers {
            observer();
        }
    }

    pub(super) fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock()
    }

    pub(super) fn idents(&self) -> &Idents {
        &self.idents
    }

    pub(super) fn jobs(&self) -> &Jobs {
        self.housekeeper.jobs()
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}
