//! Buses in this process, for what is measured through them.

use std::sync::Arc;

use alacrity_devices::venet::driver::{Buffers, Options, Venet};
use alacrity_devices::venet::{LoopbackClass, SwitchClass};
use rustix::io::Errno;
use vbus::bus::{Client, Host};
use vbus::device::DeviceClass;
use vbus::memory::{GuestRam, Region};
use vbus::verbs::{Event, EventSink, InterfaceId};
use vm_memory::GuestAddress;

use super::BenchError;

/// Nobody listens to events here.
struct NoEvents;

impl EventSink for NoEvents {
    fn event(&self, _event: Event) {}
}

/// A host with one device on one or more buses.
pub struct Bench {
    pub host: Arc<Host>,
}

/// A driver in this process.
pub type Driver = Venet<Client>;

pub fn refused(what: &'static str) -> impl Fn(Errno) -> BenchError {
    move |source| BenchError::Bus { what, source }
}

impl Bench {
    /// A device of `class` on buses `bus0` and so on.
    pub fn new(class: Arc<dyn DeviceClass>, num_buses: usize) -> Result<Self, BenchError> {
        let host = Host::new();
        let name = class.name();
        host.register_class(class).map_err(refused("add a class"))?;
        host.create_device("bench")
            .map_err(refused("add a device"))?;
        host.set_type("bench", name)
            .map_err(refused("type a device"))?;
        for bus in (0..num_buses).map(|nth| format!("bus{nth}")) {
            host.create_bus(&bus).map_err(refused("add a bus"))?;
            host.link(&bus, "bench", "bench")
                .map_err(refused("link a device"))?;
        }
        Ok(Bench { host })
    }

    pub fn loopback() -> Result<Self, BenchError> {
        Self::new(Arc::new(LoopbackClass), 1)
    }

    pub fn switch() -> Result<Self, BenchError> {
        Self::new(Arc::new(SwitchClass), 2)
    }

    /// A client of bus `nth`, whose memory is `ram`.
    pub fn client(&self, nth: u32, ram: GuestRam) -> Result<Client, BenchError> {
        // One member a bus; any number tells them apart.
        let member = self
            .host
            .join(&format!("bus{nth}"), 1 + nth)
            .map_err(refused("join a bus"))?;
        member
            .attach(Arc::new(ram), Arc::new(NoEvents))
            .map_err(refused("attach to a bus"))
    }

    /// The device on bus `nth` with its link up.
    pub fn driver(&self, nth: u32) -> Result<Driver, BenchError> {
        let options = Options::default();
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), options.buffer_bytes())])
            .map_err(|source| BenchError::Ram { source })?;
        let region = Region::from_ram(&ram, GuestAddress(0), options.buffer_bytes())
            .map_err(|source| BenchError::Region { source })?;
        let client = self.client(nth, ram)?;
        let driver = Venet::open(client, InterfaceId(0), Buffers { region, base: 0 }, options)
            .map_err(|source| BenchError::Driver { source })?;
        driver
            .link_up()
            .map_err(|source| BenchError::Driver { source })?;
        Ok(driver)
    }
}
