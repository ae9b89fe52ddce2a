//! `venet-loopback`: what is sent comes back on the same connection.

use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;
use vbus::abi::venet::KIND;
use vbus::device::{Device, DeviceClass, InterfaceOffer};

use super::attributes;
use super::connection::VenetInterface;
use super::frame::{Frame, Scratch};
use super::mtu::{self, Mtu};
use super::path::{Backend, Path};
use super::port::Port;
use crate::attributes::Attributes;

/// The class `venet-loopback`.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoopbackClass;

impl DeviceClass for LoopbackClass {
    fn name(&self) -> &'static str {
        "venet-loopback"
    }

    fn create(&self, name: &str) -> Result<Arc<dyn Device>, Errno> {
        Ok(Arc::new(Loopback {
            port: Arc::new(Port::new(name.into())?),
            backend: Arc::default(),
            bus: Mutex::new(None),
        }))
    }
}

struct Loopback {
    port: Arc<Port>,
    backend: Arc<LoopbackBackend>,
    bus: Mutex<Option<String>>,
}

#[derive(Default)]
struct LoopbackBackend {
    mtu: Mtu,
}

impl Device for Loopback {
    fn attributes(&self) -> Attributes {
        let port = Arc::clone(&self.port);
        let is_busy = move |_: &LoopbackBackend| port.is_open();
        let mtu = mtu::attribute(&self.backend, |backend| &backend.mtu, is_busy);
        let mut attributes = attributes::of_port(&self.port);
        attributes.push(("mtu", mtu));
        attributes
    }

    fn connect_bus(&self, bus: &str) -> Result<Vec<InterfaceOffer>, Errno> {
        take_bus(&self.bus, bus)?;
        let backend = Arc::clone(&self.backend);
        Ok(vec![offer(&self.port, backend)])
    }

    fn disconnect_bus(&self, bus: &str) {
        leave_bus(&self.bus, bus);
    }
}

/// The interface `default` of a device: its `port` with `backend` behind it.
pub(super) fn offer(port: &Arc<Port>, backend: Arc<dyn Backend>) -> InterfaceOffer {
    InterfaceOffer {
        name: "default".into(),
        kind: KIND,
        interface: Arc::new(VenetInterface {
            port: Arc::clone(port),
            backend,
        }),
    }
}

/// Puts a device that can be on one bus on `bus`.
pub(super) fn take_bus(place: &Mutex<Option<String>>, bus: &str) -> Result<(), Errno> {
    let mut place = place.lock();
    if place.is_some() {
        return Err(Errno::BUSY);
    }
    *place = Some(bus.into());
    Ok(())
}

/// Takes it off again.
pub(super) fn leave_bus(place: &Mutex<Option<String>>, bus: &str) {
    let mut place = place.lock();
    if place.as_deref() == Some(bus) {
        *place = None;
    }
}

impl Backend for LoopbackBackend {
    fn mtu(&self) -> u32 {
        self.mtu.get()
    }

    fn path(self: Arc<Self>, port: &Arc<Port>) -> Box<dyn Path> {
        Box::new(LoopbackPath {
            port: Arc::clone(port),
        })
    }
}

struct LoopbackPath {
    port: Arc<Port>,
}

impl Path for LoopbackPath {
    fn name(&self) -> &str {
        self.port.name()
    }

    fn send(&mut self, frame: &Frame<'_>, scratch: &mut Scratch) -> u32 {
        self.port.deliver(frame, scratch)
    }

    fn flush(&mut self) {
        self.port.flush();
    }
}
