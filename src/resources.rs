//! What a VM uses of the host: disk images, TAP interfaces, `passt`, a bus.
//!
//! All of it is opened before the VM is made, so that a refusal leaves nothing behind, and given to
//! the machine as devices afterwards. What we made ourselves goes away when it is dropped.

use std::io;
use std::sync::Arc;

use alacrity_devices::virtio::balloon::{BalloonDevice, BalloonMetrics};
use alacrity_devices::virtio::blk::{self, BlkDevice, BlkMetrics, Disk, Serial, SerialError};
use alacrity_devices::virtio::net::{Backend, NetDevice, Passt, PasstError, Tap, TapError};
use alacrity_devices::virtio::rng::{RngDevice, RngMetrics};

use crate::builder::{BuildError, Machine};
use crate::config::{DiskConfig, NetBackend, NetConfig, VmConfig};
use crate::uplink::{DaemonBus, DaemonError, EmbeddedBus, EmbeddedError};

/// Name of the connector to the bus.
const CONNECTOR: &str = "vbus0";
/// MTU that a guest assumes when nobody tells it.
const DEFAULT_MTU: u32 = 1500;

/// Why the host does not give the VM what it wants.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// A disk cannot be used.
    #[error("disk{disk_idx}")]
    Disk {
        /// Position among the disks.
        disk_idx: usize,
        /// Why.
        source: blk::DiskError,
    },
    /// A disk's serial number is refused.
    #[error("disk{disk_idx}")]
    Serial {
        /// Position among the disks.
        disk_idx: usize,
        /// Why.
        source: SerialError,
    },
    /// A TAP cannot be used.
    #[error("net{net_idx}")]
    Tap {
        /// Position among the interfaces.
        net_idx: usize,
        /// Why.
        source: TapError,
    },
    /// `passt` does not run.
    #[error("net{net_idx}")]
    Passt {
        /// Position among the interfaces.
        net_idx: usize,
        /// Why.
        source: PasstError,
    },
    /// The VM's own bus cannot be made.
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    /// The daemon's bus cannot be joined.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The host is out of file descriptors.
    #[error("cannot make {device}")]
    Device {
        /// Which device.
        device: String,
        /// What the host said.
        source: io::Error,
    },
}

/// Everything opened, and nothing running yet but `passt`.
#[derive(Debug)]
pub struct HostResources {
    disks: Vec<(BlkDevice, Arc<BlkMetrics>)>,
    nets: Vec<NetDevice>,
    rng: (RngDevice, Arc<RngMetrics>),
    balloon: Option<(BalloonDevice, Arc<BalloonMetrics>)>,
    bus: Option<VmBus>,
}

/// The bus of a VM.
#[derive(Debug)]
enum VmBus {
    Embedded(EmbeddedBus),
    Daemon(DaemonBus),
}

impl VmBus {
    /// The bus that `config` wants, if it wants one.
    fn open(config: &VmConfig) -> Result<Option<Self>, ResourceError> {
        if let Some(bus) = &config.bus {
            let joined = DaemonBus::join(bus, config.host.as_deref())?;
            return Ok(Some(VmBus::Daemon(joined)));
        }
        if config.venets.is_empty() {
            return Ok(None);
        }
        let made = EmbeddedBus::open(&config.venets)?;
        Ok(Some(VmBus::Embedded(made)))
    }

    fn plug_into(self, machine: &mut Machine) -> Result<(), BuildError> {
        let ram = machine.ram().clone();
        match self {
            VmBus::Embedded(bus) => {
                machine.add_vbus(CONNECTOR, bus.uplink(ram))?;
                for (device, counters) in bus.counters() {
                    machine.add_counters(&device, counters);
                }
            }
            VmBus::Daemon(bus) => {
                let report = machine.report();
                let uplink = bus.uplink(ram, Box::new(move || report.text()))?;
                let counters = uplink.metrics();
                machine.hang_up_at_end(uplink.hang_up());
                machine.add_vbus(CONNECTOR, Arc::new(uplink))?;
                machine.add_counters(&format!("{CONNECTOR}.uplink"), counters);
            }
        }
        Ok(())
    }
}

impl HostResources {
    /// Opens what `config` names.
    ///
    /// # Errors
    /// [`ResourceError`]; what was made before it is gone again.
    pub fn open(config: &VmConfig) -> Result<Self, ResourceError> {
        let disks = config.disks.iter().enumerate();
        let nets = config.nets.iter().enumerate();
        let rng_metrics = Arc::new(RngMetrics::default());
        let rng = RngDevice::new("rng0".into(), Arc::clone(&rng_metrics)).map_err(|source| {
            ResourceError::Device {
                device: "rng0".into(),
                source,
            }
        })?;
        Ok(HostResources {
            disks: disks
                .map(|(idx, disk)| open_disk(idx, disk))
                .collect::<Result<_, _>>()?,
            nets: nets
                .map(|(idx, net)| open_net(idx, net))
                .collect::<Result<_, _>>()?,
            rng: (rng, rng_metrics),
            balloon: config.balloon.as_ref().map(|balloon| {
                let metrics = Arc::new(BalloonMetrics::default());
                let device = BalloonDevice::new("balloon0".into(), Arc::clone(&metrics));
                device.handle().set_target(balloon.target);
                (device, metrics)
            }),
            bus: VmBus::open(config)?,
        })
    }

    /// Plugs all of it into `machine`: networks first, then disks, the random source, the balloon,
    /// the bus.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn plug_into(self, machine: &mut Machine) -> Result<(), BuildError> {
        for (idx, net) in self.nets.into_iter().enumerate() {
            let metrics = net.metrics();
            machine.add_virtio(&format!("net{idx}"), Box::new(net), metrics)?;
        }
        for (idx, (disk, metrics)) in self.disks.into_iter().enumerate() {
            machine.add_virtio(&format!("blk{idx}"), Box::new(disk), metrics)?;
        }
        let (rng, metrics) = self.rng;
        machine.add_virtio("rng0", Box::new(rng), metrics)?;
        if let Some((balloon, metrics)) = self.balloon {
            machine.add_virtio("balloon0", Box::new(balloon), metrics)?;
        }
        if let Some(bus) = self.bus {
            bus.plug_into(machine)?;
        }
        Ok(())
    }
}

fn open_disk(
    disk_idx: usize,
    config: &DiskConfig,
) -> Result<(BlkDevice, Arc<BlkMetrics>), ResourceError> {
    let disk = Disk::open(&config.path, config.is_read_only)
        .map_err(|source| ResourceError::Disk { disk_idx, source })?;
    let serial = match &config.serial {
        Some(text) => {
            Serial::new(text).map_err(|source| ResourceError::Serial { disk_idx, source })?
        }
        None => Serial::default(),
    };
    let metrics = Arc::new(BlkMetrics::default());
    let name = format!("blk{disk_idx}");
    let device = BlkDevice::new(name, Arc::new(disk), serial, Arc::clone(&metrics));
    Ok((device, metrics))
}

fn open_net(net_idx: usize, config: &NetConfig) -> Result<NetDevice, ResourceError> {
    let mac = config.effective_mac(net_idx).0;
    let (backend, mtu) = match &config.backend {
        NetBackend::Tap(name) => {
            let tap =
                open_tap(name, config).map_err(|source| ResourceError::Tap { net_idx, source })?;
            let own_mtu = tap
                .mtu()
                .map_err(|source| ResourceError::Tap { net_idx, source })?;
            let own_mtu = u16::try_from(own_mtu)
                .ok()
                .filter(|_| own_mtu != DEFAULT_MTU);
            (Backend::Tap(tap), config.mtu.or(own_mtu))
        }
        NetBackend::User => {
            let mut passt =
                Passt::spawn().map_err(|source| ResourceError::Passt { net_idx, source })?;
            passt
                .check()
                .map_err(|source| ResourceError::Passt { net_idx, source })?;
            (Backend::Passt(passt), config.mtu)
        }
    };
    let name = format!("net{net_idx}");
    NetDevice::new(name.clone(), backend, mac, mtu).map_err(|source| ResourceError::Device {
        device: name,
        source,
    })
}

fn open_tap(name: &str, config: &NetConfig) -> Result<Tap, TapError> {
    let tap = Tap::open(name, config.queues)?;
    if let Some(mtu) = config.mtu {
        tap.set_mtu(mtu)?;
    }
    if let Some(host_ip) = config.host_ip {
        tap.set_address(host_ip.addr(), host_ip.prefix_len())?;
    }
    tap.bring_up()?;
    Ok(tap)
}
