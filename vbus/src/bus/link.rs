//! Links: a device on a bus.
//!
//! A device joins and leaves a bus in its own time, without a lock. Until it is done the link's name
//! is taken and both ends cannot be removed, but nobody sees the link.

use std::sync::Arc;

use rustix::io::Errno;

use super::host::Host;
use super::identity::Stamp;
use super::instance::Bus;
use super::name;
use super::registry::Link;
use super::shell::Shell;
use crate::device::Device;

impl Host {
    /// Puts a device on a bus: its interfaces get ids and every client of the bus is told.
    ///
    /// # Errors
    /// `ENOENT`: no such bus or device. `EEXIST`: the bus has a link of this name. `EINVAL`: bad name,
    /// or a device without a type. `EBUSY`: it is on this bus, or on as many as it can be.
    /// `ENOSPC`: the bus gave its last id.
    pub fn link(&self, bus: &str, link: &str, device: &str) -> Result<(), Errno> {
        self.add_link(bus, link, device)?;
        self.changed();
        Ok(())
    }

    pub(crate) fn add_link(&self, bus: &str, link: &str, device: &str) -> Result<(), Errno> {
        name::check(link)?;
        let (bus, shell) = self.reserve_link(bus, link, device)?;
        let result = match shell.typed() {
            Some(typed) => self.connect(&bus, &shell, link, &*typed.device),
            None => Err(Errno::INVAL),
        };
        match result {
            Ok(()) => self.show_link(&bus, link),
            Err(_) => self.forget_link(&bus, link, &shell),
        }
        result
    }

    /// Takes a device off a bus. Open connections take no more calls and are closed by the
    /// housekeeping thread; see [`crate::bus`].
    ///
    /// # Errors
    /// `ENOENT`: no such bus or link. `EBUSY`: the device is not done with joining or leaving.
    pub fn unlink(&self, bus: &str, link: &str) -> Result<(), Errno> {
        let (bus, shell) = {
            let mut registry = self.registry();
            let record = registry.buses.get_mut(bus).ok_or(Errno::NOENT)?;
            let bus = Arc::clone(&record.bus);
            let link = record.links.get_mut(link).ok_or(Errno::NOENT)?;
            if link.is_busy {
                return Err(Errno::BUSY);
            }
            link.is_busy = true;
            (bus, Arc::clone(&link.shell))
        };
        for connection in bus.unregister(&shell) {
            self.jobs().close(connection);
        }
        if let Some(typed) = shell.typed() {
            typed.device.disconnect_bus(&bus.name);
        }
        self.forget_link(&bus, link, &shell);
        self.changed();
        Ok(())
    }

    fn reserve_link(
        &self,
        bus: &str,
        link: &str,
        device: &str,
    ) -> Result<(Arc<Bus>, Arc<Shell>), Errno> {
        let mut guard = self.registry();
        let registry = &mut *guard;
        let record = registry.buses.get_mut(bus).ok_or(Errno::NOENT)?;
        let device = registry.devices.get_mut(device).ok_or(Errno::NOENT)?;
        if record.links.contains_key(link) {
            return Err(Errno::EXIST);
        }
        if device.shell.typed().is_none() {
            return Err(Errno::INVAL);
        }
        let bus = &record.bus;
        if device.is_busy || device.buses.iter().any(|other| Arc::ptr_eq(other, bus)) {
            return Err(Errno::BUSY);
        }
        let reserved = Link {
            shell: Arc::clone(&device.shell),
            stamp: Stamp::new(self.idents().allocate(1)),
            is_busy: true,
        };
        device.buses.push(Arc::clone(bus));
        record.links.insert(link.to_owned(), reserved);
        Ok((Arc::clone(bus), Arc::clone(&device.shell)))
    }

    fn connect(
        &self,
        bus: &Bus,
        shell: &Arc<Shell>,
        link: &str,
        device: &dyn Device,
    ) -> Result<(), Errno> {
        let offers = device.connect_bus(&bus.name)?;
        let result = bus.register(shell, link, offers, self.idents());
        if result.is_err() {
            device.disconnect_bus(&bus.name);
        }
        result
    }

    fn show_link(&self, bus: &Bus, link: &str) {
        let mut registry = self.registry();
        if let Some(record) = registry.buses.get_mut(&bus.name)
            && let Some(link) = record.links.get_mut(link)
        {
            link.is_busy = false;
        }
        bus.stamp.touch();
    }

    fn forget_link(&self, bus: &Arc<Bus>, link: &str, shell: &Shell) {
        let mut registry = self.registry();
        if let Some(record) = registry.buses.get_mut(&bus.name) {
            // Drops a reference to the device, but not the last: `shell` is borrowed from one.
            record.links.remove(link);
        }
        if let Ok(device) = registry.device_mut(&shell.name) {
            device.buses.retain(|other| !Arc::ptr_eq(other, bus));
        }
        bus.stamp.touch();
    }
}
