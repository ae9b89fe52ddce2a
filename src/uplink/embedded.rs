//! A bus of the VM's own, with the interfaces of `--venet` and the page hints of `--hints` on it.

use std::sync::Arc;

use alacrity_devices::GuestRam;
use alacrity_devices::hints::{HintsClass, HintsHandle, HintsMetrics, Keeper};
use alacrity_devices::tap::{Tap, TapError};
use alacrity_devices::vbus_pci::{OnLoss, Uplink};
use alacrity_devices::venet::{LoopbackClass, PortMetrics, SwitchClass, TapClass};
use rustix::io::Errno;
use serde::ser::{Serialize, SerializeMap, Serializer};
use vbus::bus::{Host, Member};
use vbus::device::DeviceClass;
use vbus::tree::Tree;
use vbus::verbs::{EventSink, Verbs};

use crate::builder::{BuildError, Machine};
use crate::config::{VenetBackend, VenetConfig};

/// The only bus.
const BUS: &str = "vm";
/// The device of `--hints`.
const HINTS: &str = "hints0";
/// MTU that a guest assumes when nobody tells it.
const DEFAULT_MTU: u32 = 1500;

/// Why there is no such bus.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// A TAP cannot be used.
    #[error("venet{venet_idx}")]
    Tap {
        /// Position among the interfaces.
        venet_idx: usize,
        /// Why.
        source: TapError,
    },
    /// The bus refuses a device, for lack of threads or descriptors above all.
    #[error("cannot put {device} on the VM's bus")]
    Device {
        /// Which one.
        device: String,
        /// Why.
        source: Errno,
    },
}

/// A bus with its devices; they live as long as it.
#[derive(Debug)]
pub struct EmbeddedBus {
    host: Arc<Host>,
    member: Arc<Member>,
    devices: Vec<DeviceCounters>,
}

impl EmbeddedBus {
    /// Makes the bus and all devices for `venets` (validated), opens and sets up their TAPs.
    ///
    /// # Errors
    /// [`EmbeddedError`]; TAPs that were made are gone again.
    pub fn open(venets: &[VenetConfig]) -> Result<Self, EmbeddedError> {
        let mut taps = Vec::new();
        let mut plans = Vec::new();
        for (venet_idx, venet) in venets.iter().enumerate() {
            let plan = match &venet.backend {
                VenetBackend::Tap(name) => {
                    let tap = open_tap(name, venet);
                    let tap = tap.map_err(|source| EmbeddedError::Tap { venet_idx, source })?;
                    let mtu = tap.mtu();
                    let mtu = mtu.map_err(|source| EmbeddedError::Tap { venet_idx, source })?;
                    taps.push(tap);
                    Plan::of_tap(venet_idx, venet, name, mtu)
                }
                VenetBackend::Loopback => Plan::of_loopback(venet_idx, venet),
                VenetBackend::Switch(name) => match Plan::of_switch(name, venets, venet_idx) {
                    Some(plan) => plan,
                    None => continue,
                },
            };
            plans.push(plan);
        }
        let on_bus = |source| EmbeddedError::Device {
            device: "its devices".into(),
            source,
        };
        let host = Host::new();
        let classes: [Arc<dyn DeviceClass>; 3] = [
            Arc::new(LoopbackClass),
            Arc::new(SwitchClass),
            Arc::new(TapClass::with_open(taps)),
        ];
        for class in classes {
            host.register_class(class).map_err(on_bus)?;
        }
        host.create_bus(BUS).map_err(on_bus)?;
        for plan in &plans {
            plan.carry_out(&host)
                .map_err(|source| EmbeddedError::Device {
                    device: plan.device.clone(),
                    source,
                })?;
        }
        let member = host.join(BUS, std::process::id()).map_err(on_bus)?;
        let names = PortMetrics::ALL.map(|(name, _)| name);
        let devices = plans.into_iter().map(|plan| DeviceCounters {
            tree: host.tree(),
            device: plan.device,
            names: names.into(),
        });
        Ok(EmbeddedBus {
            devices: devices.collect(),
            host,
            member: Arc::new(member),
        })
    }

    /// Adds the device `page-hints` for the guest whose memory `keeper` keeps, once.
    ///
    /// # Errors
    /// [`EmbeddedError::Device`].
    pub fn add_hints(&mut self, keeper: Arc<dyn Keeper>) -> Result<HintsHandle, EmbeddedError> {
        let class = HintsClass::new(keeper);
        let handle = class.handle();
        let plan = Plan {
            device: HINTS.into(),
            class: class.name(),
            attributes: Vec::new(),
        };
        let registered = self.host.register_class(Arc::new(class));
        let made = registered.and_then(|()| plan.carry_out(&self.host));
        made.map_err(|source| EmbeddedError::Device {
            device: HINTS.into(),
            source,
        })?;
        self.devices.push(DeviceCounters {
            tree: self.host.tree(),
            device: HINTS.into(),
            names: HintsMetrics::ALL.map(|(name, _)| name).into(),
        });
        Ok(handle)
    }

    /// The way to this bus for a guest with `ram`.
    pub fn uplink(&self, ram: GuestRam) -> Arc<dyn Uplink> {
        Arc::new(EmbeddedUplink {
            member: Arc::clone(&self.member),
            ram,
        })
    }

    /// Plugs a connector called `name` to this bus into `machine`, which shows the counters of all devices.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn plug_into(&self, machine: &mut Machine, name: &str) -> Result<(), BuildError> {
        machine.add_vbus(name, self.uplink(machine.ram().clone()))?;
        for (device, counters) in self.counters() {
            machine.add_counters(&device, counters);
        }
        Ok(())
    }

    /// Names and counters of all devices.
    pub fn counters(&self) -> Vec<(String, Arc<DeviceCounters>)> {
        let devices = self.devices.iter();
        devices
            .map(|counters| (counters.device.clone(), Arc::new(counters.clone())))
            .collect()
    }
}

/// What makes one device.
struct Plan {
    device: String,
    class: &'static str,
    /// In the order in which they are set.
    attributes: Vec<(&'static str, String)>,
}

impl Plan {
    fn of_tap(venet_idx: usize, venet: &VenetConfig, name: &str, mtu: u32) -> Self {
        Plan {
            device: format!("venet{venet_idx}"),
            class: "venet-tap",
            attributes: vec![
                ("client_mac", venet.effective_mac(venet_idx).to_string()),
                ("mtu", mtu.to_string()),
                ("ifname", name.into()),
                ("enabled", "1".into()),
            ],
        }
    }

    fn of_loopback(venet_idx: usize, venet: &VenetConfig) -> Self {
        let mtu = venet.mtu.map_or(DEFAULT_MTU, u32::from);
        Plan {
            device: format!("venet{venet_idx}"),
            class: "venet-loopback",
            attributes: vec![
                ("client_mac", venet.effective_mac(venet_idx).to_string()),
                ("mtu", mtu.to_string()),
            ],
        }
    }

    /// The switch `name` with all of its ports; `None` unless its first one is number `venet_idx`.
    fn of_switch(name: &str, venets: &[VenetConfig], venet_idx: usize) -> Option<Self> {
        let is_port = |venet: &VenetConfig| match &venet.backend {
            VenetBackend::Switch(other) => other == name,
            VenetBackend::Tap(_) | VenetBackend::Loopback => false,
        };
        let venets = venets.iter().enumerate();
        let ports: Vec<_> = venets.filter(|(_, venet)| is_port(venet)).collect();
        let (first_idx, first) = *ports.first()?;
        if first_idx != venet_idx {
            return None;
        }
        let macs = ports.iter().enumerate().map(|(nth, (idx, venet))| {
            let place = match nth {
                0 => BUS.to_owned(),
                nth => format!("{BUS}/{nth}"),
            };
            format!("{place}={}", venet.effective_mac(*idx))
        });
        let mtu = first.mtu.map_or(DEFAULT_MTU, u32::from);
        Some(Plan {
            device: format!("switch-{name}"),
            class: "venet-switch",
            attributes: vec![
                ("mtu", mtu.to_string()),
                ("ports_per_bus", ports.len().to_string()),
                ("port_macs", macs.collect::<Vec<_>>().join(" ")),
            ],
        })
    }

    fn carry_out(&self, host: &Arc<Host>) -> Result<(), Errno> {
        let device = &self.device;
        host.create_device(device)?;
        host.set_type(device, self.class)?;
        let tree = host.tree();
        for (attribute, value) in &self.attributes {
            let path = format!("sys/devices/{device}/{attribute}");
            tree.write(&path, value.as_bytes())?;
        }
        host.link(BUS, device, device)
    }
}

fn open_tap(name: &str, venet: &VenetConfig) -> Result<Tap, TapError> {
    let tap = Tap::open(name, 1)?;
    if let Some(mtu) = venet.mtu {
        tap.set_mtu(mtu)?;
    }
    if let Some(host_ip) = venet.host_ip {
        tap.set_address(host_ip.addr(), host_ip.prefix_len())?;
    }
    tap.bring_up()?;
    Ok(tap)
}

struct EmbeddedUplink {
    member: Arc<Member>,
    ram: GuestRam,
}

impl Uplink for EmbeddedUplink {
    fn attach(
        &self,
        events: Arc<dyn EventSink>,
        _on_loss: OnLoss,
    ) -> Result<Arc<dyn Verbs + Send + Sync>, Errno> {
        let client = self.member.attach(Arc::new(self.ram.clone()), events)?;
        Ok(Arc::new(client))
    }
}

/// Counters of one device, as its directory in the control tree shows them.
#[derive(Debug, Clone)]
pub struct DeviceCounters {
    tree: Tree,
    device: String,
    names: Arc<[&'static str]>,
}

impl Serialize for DeviceCounters {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for name in &*self.names {
            let value = self
                .tree
                .read(&format!("sys/devices/{}/{name}", self.device));
            let value = value.ok().and_then(|text| text.trim().parse::<u64>().ok());
            map.serialize_entry(name, &value)?;
        }
        map.end()
    }
}
