//! What the control tree and a saved state look at.

use std::sync::Arc;

use super::host::Host;
use super::instance::{Bus, RegisteredInterface};
use super::member::MemberRecord;
use super::registry::{ClassRecord, LinkView};
use super::shell::Shell;

/// All devices and buses at one moment.
pub(crate) struct Snapshot {
    pub devices: Vec<Arc<Shell>>,
    /// Names and links; the linked devices are among the devices.
    pub buses: Vec<(String, Vec<LinkView>)>,
}

impl Host {
    pub(crate) fn classes(&self) -> Vec<Arc<ClassRecord>> {
        self.registry().classes.values().cloned().collect()
    }

    pub(crate) fn class(&self, name: &str) -> Option<Arc<ClassRecord>> {
        self.registry().classes.get(name).cloned()
    }

    pub(crate) fn devices(&self) -> Vec<Arc<Shell>> {
        let registry = self.registry();
        let records = registry.devices.values();
        records.map(|record| Arc::clone(&record.shell)).collect()
    }

    pub(crate) fn device(&self, name: &str) -> Option<Arc<Shell>> {
        let registry = self.registry();
        let record = registry.devices.get(name)?;
        Some(Arc::clone(&record.shell))
    }

    pub(crate) fn buses(&self) -> Vec<Arc<Bus>> {
        let registry = self.registry();
        let records = registry.buses.values();
        records.map(|record| Arc::clone(&record.bus)).collect()
    }

    pub(crate) fn bus(&self, name: &str) -> Option<Arc<Bus>> {
        let registry = self.registry();
        let record = registry.buses.get(name)?;
        Some(Arc::clone(&record.bus))
    }

    /// The whole configuration.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let registry = self.registry();
        let devices = registry.devices.values();
        let buses = registry.buses.iter();
        let buses = buses.map(|(name, record)| (name.clone(), record.links()));
        Snapshot {
            devices: devices.map(|record| Arc::clone(&record.shell)).collect(),
            buses: buses.collect(),
        }
    }

    /// The links of a bus in the order in which they were made; none if it was removed.
    pub(crate) fn links(&self, bus: &Arc<Bus>) -> Vec<LinkView> {
        let registry = self.registry();
        match registry.buses.get(&bus.name) {
            Some(record) if Arc::ptr_eq(&record.bus, bus) => record.links(),
            _ => Vec::new(),
        }
    }

    /// The members of a bus by pid in ascending order.
    pub(crate) fn members(&self, bus: &Arc<Bus>) -> Vec<Arc<MemberRecord>> {
        let registry = self.registry();
        let records = registry.members.values().map(|member| &member.record);
        let records = records.filter(|record| Arc::ptr_eq(&record.bus, bus));
        records.cloned().collect()
    }

    /// The members of all buses that said something about themselves, by pid in ascending order.
    pub(crate) fn reporters(&self) -> Vec<Arc<MemberRecord>> {
        let registry = self.registry();
        let records = registry.members.values().map(|member| &member.record);
        let records = records.filter(|record| !record.report.is_empty());
        records.cloned().collect()
    }

    /// Every interface of a device and the bus that it is on.
    pub(crate) fn interfaces(
        &self,
        shell: &Arc<Shell>,
    ) -> Vec<(Arc<Bus>, Arc<RegisteredInterface>)> {
        let buses = match self.registry().devices.get(&shell.name) {
            Some(record) if Arc::ptr_eq(&record.shell, shell) => record.buses.clone(),
            _ => Vec::new(),
        };
        let mut all = Vec::new();
        for bus in buses {
            let interfaces = bus.interfaces().into_iter();
            let own = interfaces.filter(|interface| Arc::ptr_eq(&interface.shell, shell));
            all.extend(own.map(|interface| (Arc::clone(&bus), interface)));
        }
        all
    }
}
