//! `venet-switch`: each bus that it is on is a port; it learns who is behind which.

mod device;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::bucket::Bucket;
use super::mac::MacAddress;
use super::mac_table::{MAX_PORTS, MacTable};
use super::metrics::PortMetrics;
use super::mtu::Mtu;
use super::path::{Backend, Path};
use super::port::Port;
use super::switch_path::SwitchPath;
use super::tap_end::TapEnd;
use super::uplink;
use crate::tap::check_name;
use crate::worker::Worker;

pub use device::SwitchClass;
#[cfg(any(test, feature = "test-utils"))]
pub(super) use device::SwitchDevice;

/// Seconds of silence after which an address is forgotten (IEEE 802.1Q-2018 §8.8.3).
const DEFAULT_AGEING: u32 = 300;
/// Copies per second of frames from one port that go to everybody.
const DEFAULT_FLOOD_RATE: u32 = 100_000;

/// What all ports of a switch share.
pub(super) struct Switch {
    name: String,
    mtu: Mtu,
    ports_per_bus: AtomicU32,
    /// In seconds.
    pub(super) ageing: AtomicU32,
    pub(super) flood_rate: AtomicU32,
    pub(super) table: MacTable,
    ports: Mutex<Vec<Arc<SwitchPort>>>,
    /// Addresses that the administrator chose, by bus.
    chosen: Mutex<BTreeMap<String, MacAddress>>,
    /// Changes whenever `ports` does.
    pub(super) generation: AtomicU64,
    uplink: Mutex<Option<Uplink>>,
    start: Instant,
    /// Counts of the ports that are gone.
    retired: PortMetrics,
}

/// The TAP of a switch, and the thread that reads it.
struct Uplink {
    ifname: String,
    port: Arc<SwitchPort>,
    worker: Worker,
}

/// A port of a switch.
pub(super) struct SwitchPort {
    pub(super) port_idx: u8,
    /// The bus that it is on, as [`place_on`] says it; `None` for the uplink, and when it was taken
    /// off.
    bus: Mutex<Option<String>>,
    pub(super) end: End,
    /// Used by the worker of this port alone.
    pub(super) bucket: Mutex<Bucket>,
}

/// Where frames to a port go.
pub(super) enum End {
    /// To a client.
    Client(Arc<Port>),
    /// To the host.
    Uplink {
        /// Where they go.
        tap: Arc<TapEnd>,
        /// From the switch's point of view: `tx` is what comes in from the TAP.
        metrics: Box<PortMetrics>,
        /// For the log.
        name: String,
    },
}

impl SwitchPort {
    pub(super) fn metrics(&self) -> &PortMetrics {
        match &self.end {
            End::Client(port) => &port.metrics,
            End::Uplink { metrics, .. } => metrics,
        }
    }

    pub(super) fn name(&self) -> &str {
        match &self.end {
            End::Client(port) => port.name(),
            End::Uplink { name, .. } => name,
        }
    }

    fn place(&self) -> String {
        match &self.end {
            End::Client(_) => self.bus.lock().clone().unwrap_or_else(|| "-".into()),
            End::Uplink { .. } => "uplink".into(),
        }
    }
}

impl Switch {
    pub(super) fn new(name: &str, table: MacTable) -> Self {
        Switch {
            name: name.into(),
            mtu: Mtu::default(),
            ports_per_bus: AtomicU32::new(1),
            ageing: AtomicU32::new(DEFAULT_AGEING),
            flood_rate: AtomicU32::new(DEFAULT_FLOOD_RATE),
            table,
            ports: Mutex::default(),
            chosen: Mutex::default(),
            generation: AtomicU64::new(0),
            uplink: Mutex::default(),
            start: Instant::now(),
            retired: PortMetrics::default(),
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// As the table counts.
    pub(super) fn seconds(now_ms: u64) -> u32 {
        u32::try_from(now_ms / 1000).unwrap_or(u32::MAX)
    }

    pub(super) fn mtu(&self) -> u32 {
        self.mtu.get()
    }

    /// All ports by index.
    pub(super) fn ports(&self) -> Vec<Option<Arc<SwitchPort>>> {
        let mut ports = vec![None; MAX_PORTS];
        for port in self.ports.lock().iter() {
            if let Some(place) = ports.get_mut(usize::from(port.port_idx)) {
                *place = Some(Arc::clone(port));
            }
        }
        ports
    }

    /// Adds a port under the first free index.
    fn add(&self, bus: Option<&str>, end: End) -> Result<Arc<SwitchPort>, Errno> {
        let mut ports = self.ports.lock();
        let is_there = |port: &&Arc<SwitchPort>| bus.is_some() && port.bus.lock().as_deref() == bus;
        if ports.iter().any(|port| is_there(&port)) {
            return Err(Errno::BUSY);
        }
        let is_free = |idx: &u8| ports.iter().all(|port| port.port_idx != *idx);
        let port_idx = (0..=u8::MAX).find(is_free).ok_or(Errno::BUSY)?;
        let rate = self.flood_rate.load(Ordering::Relaxed);
        let port = Arc::new(SwitchPort {
            port_idx,
            bus: Mutex::new(bus.map(Into::into)),
            end,
            bucket: Mutex::new(Bucket::new(rate, self.now_ms())),
        });
        if let End::Client(client) = &port.end {
            let chosen = bus.and_then(|bus| self.chosen.lock().get(bus).copied());
            if let Some(mac) = chosen {
                client.set_mac(mac)?;
            }
            self.assign(port_idx, client.mac());
        }
        ports.push(Arc::clone(&port));
        self.generation.fetch_add(1, Ordering::Release);
        Ok(port)
    }

    fn assign(&self, port_idx: u8, mac: MacAddress) {
        if !self.table.assign(mac, port_idx) {
            tracing::warn!("{}: {mac} of port {port_idx} is not protected", self.name);
        }
    }

    /// Notes addresses of `ports` that were another port's until now.
    fn protect(&self, ports: &[Arc<SwitchPort>]) {
        for port in ports {
            if let End::Client(client) = &port.end {
                self.assign(port.port_idx, client.mac());
            }
        }
    }

    /// Removes a port that nothing comes from any more.
    fn remove(&self, port_idx: u8) {
        let mut ports = self.ports.lock();
        let Some(place) = ports.iter().position(|port| port.port_idx == port_idx) else {
            return;
        };
        let port = ports.remove(place);
        self.retired.absorb(port.metrics());
        self.table.forget_port(port_idx);
        self.protect(&ports);
        self.generation.fetch_add(1, Ordering::Release);
        // Idle workers let go of it too.
        for other in ports.iter() {
            if let End::Client(client) = &other.end {
                client.kick();
            }
        }
    }

    /// Removes the port of `client` if it is neither on a bus nor open.
    fn remove_if_unused(&self, client: &Arc<Port>) {
        let is_it = |port: &&Arc<SwitchPort>| match &port.end {
            End::Client(other) => Arc::ptr_eq(other, client),
            End::Uplink { .. } => false,
        };
        let found = self.ports.lock().iter().find(is_it).cloned();
        if let Some(port) = found
            && port.bus.lock().is_none()
            && !client.is_open()
        {
            self.remove(port.port_idx);
        }
    }

    /// Connects the TAP `ifname`, or none if that is empty.
    fn set_uplink(self: &Arc<Self>, ifname: &str) -> Result<(), Errno> {
        let mut uplink = self.uplink.lock();
        if !ifname.is_empty() {
            check_name(ifname).map_err(|_| Errno::INVAL)?;
            if uplink.is_some() {
                return Err(Errno::BUSY);
            }
            let tap = Arc::new(TapEnd::open(&self.name, ifname, self.mtu())?);
            tap.set_caps(&self.name, super::tap_end::all_offloads());
            let end = End::Uplink {
                tap: Arc::clone(&tap),
                metrics: Box::default(),
                name: format!("{}@{ifname}", self.name),
            };
            let port = self.add(None, end)?;
            let path = SwitchPath::new(Arc::clone(self), Arc::clone(&port));
            let worker = match uplink::spawn(&self.name, tap, path, self.mtu()) {
                Ok(worker) => worker,
                Err(errno) => {
                    self.remove(port.port_idx);
                    return Err(errno);
                }
            };
            *uplink = Some(Uplink {
                ifname: ifname.into(),
                port,
                worker,
            });
        } else if let Some(old) = uplink.take() {
            old.worker.stop();
            self.remove(old.port.port_idx);
            let port = old.port;
            if let End::Uplink { tap, .. } = &port.end {
                let tap = Arc::clone(tap);
                drop(port);
                tap.release();
            }
        }
        Ok(())
    }

    /// Chooses the addresses of ports, present and future: `BUS=MAC BUS=MAC…`; all others of future
    /// ports are random.
    fn set_port_macs(&self, text: &str) -> Result<(), Errno> {
        let mut chosen = BTreeMap::new();
        for pair in text.split_ascii_whitespace() {
            let (bus, mac) = pair.rsplit_once('=').ok_or(Errno::INVAL)?;
            let mac: MacAddress = mac.parse()?;
            if !mac.is_station() || chosen.len() == MAX_PORTS {
                return Err(Errno::INVAL);
            }
            chosen.insert(bus.to_owned(), mac);
        }
        let ports = self.ports.lock();
        let mut changes = Vec::new();
        for port in ports.iter() {
            let mac = port.bus.lock().as_ref().and_then(|bus| chosen.get(bus));
            if let (End::Client(client), Some(mac)) = (&port.end, mac.copied())
                && client.mac() != mac
            {
                if client.is_open() {
                    return Err(Errno::BUSY);
                }
                changes.push((port.port_idx, client, mac));
            }
        }
        for (port_idx, client, mac) in changes {
            client.set_mac(mac)?;
            self.table.forget_port(port_idx);
        }
        // Only now is an address free that another port had.
        self.protect(&ports);
        *self.chosen.lock() = chosen;
        Ok(())
    }

    /// The switch's port of a client.
    pub(super) fn port_of(&self, client: &Arc<Port>) -> Option<Arc<SwitchPort>> {
        let is_it = |port: &&Arc<SwitchPort>| match &port.end {
            End::Client(other) => Arc::ptr_eq(other, client),
            End::Uplink { .. } => false,
        };
        self.ports.lock().iter().find(is_it).cloned()
    }
}

impl Backend for Switch {
    fn mtu(&self) -> u32 {
        self.mtu.get()
    }

    fn path(self: Arc<Self>, port: &Arc<Port>) -> Box<dyn Path> {
        Box::new(SwitchPath::of_client(self, port))
    }

    fn closed(&self, port: &Arc<Port>) {
        self.remove_if_unused(port);
    }
}
