//! A switch as the administrator and buses have it: attributes, and ports for each bus.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use vbus::device::{Device, DeviceClass, InterfaceOffer};

use super::{End, Switch, SwitchPort};
use crate::attributes::{Attributes, number, read_only, read_write};
use crate::metrics::Counter;
use crate::venet::loopback::offer;
use crate::venet::mac_table::MacTable;
use crate::venet::metrics::PortMetrics;
use crate::venet::mtu;
use crate::venet::port::Port;

/// Most ports on one bus.
const MAX_PORTS_PER_BUS: u32 = 8;

/// The class `venet-switch`.
///
/// | attribute | value |
/// |---|---|
/// | `ports_per_bus` | ports, 1 to 8, on each bus that it is put on from then on |
/// | `mtu` | 68 to 65535; `EBUSY` while a port is open or there is an uplink |
/// | `ageing` | seconds after which a silent address is forgotten |
/// | `flood_rate` | copies per second and port of frames to everybody; 0 for none |
/// | `ports` | a line per port: bus or `uplink`, address, `up` or `down`, counters |
/// | `port_macs` | addresses of ports, `BUS=MAC BUS=MAC…`, also of those to come; `BUS/1` is the second on a bus |
/// | `macs` | a line per known address: address, port, its age in seconds or `assigned` |
/// | `uplink` | the TAP that it is connected to; written empty: none; `EBUSY` if there is another |
/// | counters | sums over all ports there have been |
#[derive(Debug, Clone, Copy, Default)]
pub struct SwitchClass;

impl DeviceClass for SwitchClass {
    fn name(&self) -> &'static str {
        "venet-switch"
    }

    fn create(&self, name: &str) -> Result<Arc<dyn Device>, Errno> {
        let switch = Switch::new(name, MacTable::new());
        Ok(Arc::new(SwitchDevice(Arc::new(switch))))
    }
}

pub(in crate::venet) struct SwitchDevice(pub(in crate::venet) Arc<Switch>);

/// What the `nth` port on a bus is called. No bus has a slash in its name.
fn place_on(bus: &str, nth: u32) -> String {
    match nth {
        0 => bus.into(),
        nth => format!("{bus}/{nth}"),
    }
}

/// What the attributes say.
impl Switch {
    /// The addresses of all ports that are there, and those that were chosen for others.
    fn port_macs(&self) -> String {
        let mut macs = self.chosen.lock().clone();
        for port in self.ports.lock().iter() {
            if let (End::Client(client), Some(bus)) = (&port.end, port.bus.lock().clone()) {
                macs.insert(bus, client.mac());
            }
        }
        let pairs: Vec<String> = macs
            .iter()
            .map(|(bus, mac)| format!("{bus}={mac}"))
            .collect();
        pairs.join(" ")
    }

    /// A line per port.
    fn port_table(&self) -> String {
        let line = |port: &Arc<SwitchPort>| {
            let (mac, state) = match &port.end {
                End::Client(client) if client.is_link_up() => (client.mac().to_string(), "up"),
                End::Client(client) => (client.mac().to_string(), "down"),
                End::Uplink { tap, .. } => (
                    tap.mac().map_or_else(|_| "-".into(), |mac| mac.to_string()),
                    if tap.is_gone() { "down" } else { "up" },
                ),
            };
            let mut line = format!("{} {mac} {state}", port.place());
            for (name, pick) in PortMetrics::ALL {
                line.push_str(&format!(" {name}={}", pick(port.metrics()).get()));
            }
            line
        };
        let lines: Vec<String> = self.ports.lock().iter().map(line).collect();
        lines.join("\n")
    }

    /// A line per address.
    fn mac_table(&self) -> String {
        let ports = self.ports();
        let ageing = self.ageing.load(Ordering::Relaxed);
        let mut lines: Vec<String> = Vec::new();
        for learned in self.table.all(Self::seconds(self.now_ms()), ageing) {
            let port = ports.get(usize::from(learned.port_idx));
            let place = port
                .and_then(Option::as_ref)
                .map_or_else(|| "-".into(), |port| port.place());
            let age = if learned.is_assigned {
                "assigned".into()
            } else {
                learned.age.to_string()
            };
            lines.push(format!("{} {place} {age}", learned.mac));
        }
        lines.sort();
        lines.join("\n")
    }

    /// What all ports counted together, those that are gone too.
    fn sum(&self, pick: fn(&PortMetrics) -> &Counter) -> u64 {
        let ports = self.ports.lock();
        let of_ports: u64 = ports.iter().map(|port| pick(port.metrics()).get()).sum();
        of_ports + pick(&self.retired).get()
    }
}

impl Device for SwitchDevice {
    fn attributes(&self) -> Attributes {
        let switch = || Arc::clone(&self.0);
        let is_busy = |switch: &Switch| {
            switch.uplink.lock().is_some()
                || switch.ports.lock().iter().any(|port| match &port.end {
                    End::Client(client) => client.is_open(),
                    End::Uplink { .. } => true,
                })
        };
        let ports_reader = switch();
        let (port_macs_reader, port_macs_writer) = (switch(), switch());
        let (uplink_reader, uplink_writer) = (switch(), switch());
        let macs_reader = switch();
        let setting = |field: fn(&Switch) -> &AtomicU32, least, most| {
            let (reader, writer) = (switch(), switch());
            read_write(
                move || Ok(field(&reader).load(Ordering::Relaxed).to_string()),
                move |text| {
                    let value = number(text, least, most)?;
                    field(&writer).store(value, Ordering::Relaxed);
                    Ok(())
                },
            )
        };
        let mut attributes: Attributes = vec![
            (
                "mtu",
                mtu::attribute(&self.0, |switch| &switch.mtu, is_busy),
            ),
            (
                "ports_per_bus",
                setting(|switch| &switch.ports_per_bus, 1, MAX_PORTS_PER_BUS),
            ),
            ("ageing", setting(|switch| &switch.ageing, 1, 86_400)),
            (
                "flood_rate",
                setting(|switch| &switch.flood_rate, 0, 10_000_000),
            ),
            ("ports", read_only(move || Ok(ports_reader.port_table()))),
            (
                "port_macs",
                read_write(
                    move || Ok(port_macs_reader.port_macs()),
                    move |text| port_macs_writer.set_port_macs(text),
                ),
            ),
            ("macs", read_only(move || Ok(macs_reader.mac_table()))),
            (
                "uplink",
                read_write(
                    move || {
                        let uplink = uplink_reader.uplink.lock();
                        let name = uplink.as_ref().map(|uplink| uplink.ifname.clone());
                        Ok(name.unwrap_or_default())
                    },
                    move |name| uplink_writer.set_uplink(name),
                ),
            ),
        ];
        for (name, pick) in PortMetrics::ALL {
            let switch = switch();
            let counter = read_only(move || Ok(switch.sum(pick).to_string()));
            attributes.push((name, counter));
        }
        attributes
    }

    fn connect_bus(&self, bus: &str) -> Result<Vec<InterfaceOffer>, Errno> {
        let mut offers = Vec::new();
        for nth in 0..self.0.ports_per_bus.load(Ordering::Relaxed) {
            let place = place_on(bus, nth);
            let added = Port::new(format!("{}@{place}", self.0.name)).and_then(|port| {
                let port = Arc::new(port);
                self.0.add(Some(&place), End::Client(Arc::clone(&port)))?;
                Ok(port)
            });
            match added {
                Ok(port) => {
                    let backend = Arc::clone(&self.0);
                    let mut offer = offer(&port, backend);
                    if nth > 0 {
                        offer.name = format!("port{nth}");
                    }
                    offers.push(offer);
                }
                Err(errno) => {
                    // The first port shows that all those on this bus are ours.
                    if nth > 0 {
                        drop(offers);
                        self.disconnect_bus(bus);
                    }
                    return Err(errno);
                }
            }
        }
        Ok(offers)
    }

    fn disconnect_bus(&self, bus: &str) {
        let is_there = |place: Option<&str>| {
            let place = place.map(|place| place.split('/').next());
            place == Some(Some(bus))
        };
        let mut found = self.0.ports.lock().clone();
        found.retain(|port| is_there(port.bus.lock().as_deref()));
        for port in found {
            *port.bus.lock() = None;
            if let End::Client(client) = &port.end {
                self.0.remove_if_unused(client);
            }
        }
    }
}

impl Drop for SwitchDevice {
    fn drop(&mut self) {
        // The uplink's thread holds the switch.
        let _ = self.0.set_uplink("");
    }
}
