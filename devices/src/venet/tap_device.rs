//! `venet-tap`: an interface of the host is at the other end.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;
use vbus::device::{Device, DeviceClass, InterfaceOffer};

use super::attributes;
use super::frame::{Frame, Scratch};
use super::loopback::{leave_bus, offer, take_bus};
use super::mtu::{self, Mtu};
use super::path::{Backend, Path};
use super::port::Port;
use super::rx::Receiver;
use super::tap_end::TapEnd;
use super::tap_fetch::TapFetch;
use super::tx::Progress;
use crate::attributes::{Attributes, read_only, read_write};
use crate::tap::{Tap, check_name};

/// The class `venet-tap`.
///
/// | attribute | value |
/// |---|---|
/// | `client_mac` | address of the client; `EBUSY` while it is connected |
/// | `mtu` | 68 to 65535; `EBUSY` while enabled or open |
/// | `ifname` | the TAP to take or to make; `EBUSY` while enabled |
/// | `enabled` | 1: the TAP is ours; 0: it is released, and vanishes if it was made here |
/// | `host_mac` | address of the host's end; `ENXIO` while not enabled |
/// | counters | see [`super::PortMetrics`] |
#[derive(Debug, Default)]
pub struct TapClass {
    num_made: AtomicU64,
    opened: Opened,
}

/// TAPs that were opened for devices of this class.
type Opened = Arc<Mutex<Vec<Tap>>>;

impl TapClass {
    /// A class whose devices find `taps` open already, with one queue, their MTU and their addresses
    /// set, and on: the device that gets the `ifname` of one takes it when it is enabled, once.
    pub fn with_open(taps: Vec<Tap>) -> Self {
        TapClass {
            num_made: AtomicU64::new(0),
            opened: Arc::new(Mutex::new(taps)),
        }
    }
}

impl DeviceClass for TapClass {
    fn name(&self) -> &'static str {
        "venet-tap"
    }

    fn create(&self, name: &str) -> Result<Arc<dyn Device>, Errno> {
        let nth = self.num_made.fetch_add(1, Ordering::Relaxed);
        let ifname = match check_name(name) {
            Ok(()) => name.into(),
            Err(_) => format!("vbus{nth}"),
        };
        let port = Arc::new(Port::new(name.into())?);
        let backend = TapBackend {
            port: Arc::clone(&port),
            mtu: Mtu::default(),
            end: Mutex::new(End { ifname, tap: None }),
            generation: AtomicU64::new(0),
            opened: Arc::clone(&self.opened),
        };
        Ok(Arc::new(TapDevice {
            port,
            backend: Arc::new(backend),
            bus: Mutex::new(None),
        }))
    }
}

struct TapDevice {
    port: Arc<Port>,
    backend: Arc<TapBackend>,
    bus: Mutex<Option<String>>,
}

struct TapBackend {
    port: Arc<Port>,
    mtu: Mtu,
    end: Mutex<End>,
    /// Changes whenever `end` does.
    generation: AtomicU64,
    /// Of the class.
    opened: Opened,
}

struct End {
    ifname: String,
    /// While enabled.
    tap: Option<Arc<TapEnd>>,
}

impl TapBackend {
    fn set_ifname(&self, name: &str) -> Result<(), Errno> {
        check_name(name).map_err(|_| Errno::INVAL)?;
        let mut end = self.end.lock();
        if end.tap.is_some() {
            return Err(Errno::BUSY);
        }
        end.ifname = name.into();
        Ok(())
    }

    fn set_enabled(&self, is_enabled: bool) -> Result<(), Errno> {
        let mut end = self.end.lock();
        if end.tap.is_some() == is_enabled {
            return Ok(());
        }
        let old = if is_enabled {
            let tap = match self.take_opened(&end.ifname) {
                Some(tap) => TapEnd::of(tap)?,
                None => TapEnd::open(self.port.name(), &end.ifname, self.mtu.get())?,
            };
            end.tap.replace(Arc::new(tap))
        } else {
            end.tap.take()
        };
        drop(end);
        self.generation.fetch_add(1, Ordering::Release);
        self.port.kick();
        if let Some(tap) = old {
            tap.release();
        }
        Ok(())
    }

    fn take_opened(&self, ifname: &str) -> Option<Tap> {
        let mut opened = self.opened.lock();
        let place = opened.iter().position(|tap| tap.name() == ifname)?;
        Some(opened.swap_remove(place))
    }

    fn tap(&self) -> Option<Arc<TapEnd>> {
        self.end.lock().tap.clone()
    }
}

impl Device for TapDevice {
    fn attributes(&self) -> Attributes {
        let backend = || Arc::clone(&self.backend);
        let (name_reader, name_writer) = (backend(), backend());
        let (state_reader, state_writer) = (backend(), backend());
        let mac_reader = backend();
        let is_busy = |backend: &TapBackend| backend.tap().is_some() || backend.port.is_open();
        let mut attributes = attributes::of_port(&self.port);
        attributes.push((
            "mtu",
            mtu::attribute(&self.backend, |backend| &backend.mtu, is_busy),
        ));
        attributes.push((
            "ifname",
            read_write(
                move || Ok(name_reader.end.lock().ifname.clone()),
                move |name| name_writer.set_ifname(name),
            ),
        ));
        attributes.push((
            "enabled",
            read_write(
                move || Ok(u8::from(state_reader.tap().is_some()).to_string()),
                move |text| match text {
                    "0" => state_writer.set_enabled(false),
                    "1" => state_writer.set_enabled(true),
                    _ => Err(Errno::INVAL),
                },
            ),
        ));
        let host_mac = read_only(move || {
            let tap = mac_reader.tap().ok_or(Errno::NXIO)?;
            Ok(tap.mac()?.to_string())
        });
        attributes.push(("host_mac", host_mac));
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

impl Backend for TapBackend {
    fn check_open(&self) -> Result<(), Errno> {
        match self.tap() {
            Some(_) => Ok(()),
            None => Err(Errno::NXIO),
        }
    }

    fn mtu(&self) -> u32 {
        self.mtu.get()
    }

    fn is_link_up(&self) -> bool {
        self.tap().is_some_and(|tap| !tap.is_gone())
    }

    fn path(self: Arc<Self>, port: &Arc<Port>) -> Box<dyn Path> {
        Box::new(TapPath {
            port: Arc::clone(port),
            tap: None,
            generation: None,
            caps: 0,
            fetch: TapFetch::new(),
            backend: self,
        })
    }
}

struct TapPath {
    port: Arc<Port>,
    backend: Arc<TapBackend>,
    tap: Option<Arc<TapEnd>>,
    /// Of `tap`; `None` until it was looked for.
    generation: Option<u64>,
    caps: u32,
    fetch: TapFetch,
}

impl Path for TapPath {
    fn name(&self) -> &str {
        self.port.name()
    }

    fn refresh(&mut self) {
        let generation = self.backend.generation.load(Ordering::Acquire);
        if self.generation == Some(generation) {
            return;
        }
        self.generation = Some(generation);
        self.tap = self.backend.tap();
        if let Some(tap) = &self.tap {
            tap.set_caps(self.port.name(), self.caps);
        }
    }

    fn send(&mut self, frame: &Frame<'_>, scratch: &mut Scratch) -> u32 {
        let is_sent = self
            .tap
            .as_ref()
            .is_some_and(|tap| tap.send(frame, scratch));
        if !is_sent {
            self.port.metrics.tx_dropped.add(1);
            // The kernel tells of the end before it has come: who looks at once may not see it.
            self.look_at_tap();
        }
        1
    }

    fn flush(&mut self) {}

    fn source(&self) -> Option<RawFd> {
        self.tap.as_ref().map(|tap| tap.fd())
    }

    fn set_caps(&mut self, caps: u32) {
        self.caps = caps;
    }

    fn check_source(&mut self) {
        if let Some(tap) = &self.tap {
            tap.check();
        }
        self.look_at_tap();
    }

    fn receive(&mut self, receiver: &mut Receiver, scratch: &mut Scratch) -> Progress {
        let Some(tap) = &self.tap else {
            return Progress::Idle;
        };
        let (mtu, metrics) = (self.backend.mtu(), &self.port.metrics);
        let progress = self.fetch.serve(&**tap, mtu, receiver, scratch, metrics);
        self.look_at_tap();
        progress
    }
}

impl TapPath {
    /// Lets go of a TAP that is gone.
    fn look_at_tap(&mut self) {
        if self.tap.as_ref().is_some_and(|tap| tap.is_gone()) {
            // The link is down now: say so.
            self.tap = None;
            self.port.kick();
        }
    }
}
