//! What a VM uses of the host: disk images, TAP interfaces, `passt`, a bus.
//!
//! All of it is opened before the VM is made, so that a refusal leaves nothing behind, and given to
//! the machine as devices afterwards. What we made ourselves goes away when it is dropped.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alacrity_devices::hints::HintsHandle;
use alacrity_devices::virtio::balloon::{BalloonDevice, BalloonMetrics};
use alacrity_devices::virtio::blk::{self, BlkDevice, BlkMetrics, Disk, Serial, SerialError};
use alacrity_devices::virtio::net::{Backend, NetDevice, Passt, PasstError, Tap, TapError};
use alacrity_devices::virtio::rng::{RngDevice, RngMetrics};
use rustix::mm::{MlockAllFlags, mlockall};

use crate::builder::{BuildError, Machine};
use crate::config::{DiskConfig, NetBackend, NetConfig, SwapConfig, VmConfig};
use crate::reclaim::backing::Disks;
use crate::reclaim::policy::Policy;
use crate::reclaim::ram::Ram;
use crate::reclaim::reclaimer::{OnFailure, ReclaimError, Reclaimer};
use crate::reclaim::release::{GuestMemory, HintedDisk};
use crate::reclaim::restore::DiskWatch;
use crate::reclaim::swap_file::SwapFile;
use crate::reclaim::visitors::Lender;
use crate::uplink::{DaemonBus, DaemonError, EmbeddedBus, EmbeddedError};

/// Name of the connector to the bus.
const CONNECTOR: &str = "vbus0";
/// Name of that to the VM's own bus, if the other one is a daemon's.
const OWN_CONNECTOR: &str = "vbus1";
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
    /// The swap file cannot be made.
    #[error(
        "--swap: cannot make a file in {} (it takes a directory that you may write to, on a disk with a \
         file system such as ext4, XFS or btrfs)",
        dir.display()
    )]
    Swap {
        /// Where.
        dir: PathBuf,
        /// What the host said.
        source: io::Error,
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
    disks: Vec<OpenDisk>,
    nets: Vec<NetDevice>,
    rng: (RngDevice, Arc<RngMetrics>),
    balloon: Option<(BalloonDevice, Arc<BalloonMetrics>)>,
    bus: Option<VmBus>,
    reclaim: Option<Reclaim>,
}

/// A disk, and the device that it will be.
#[derive(Debug)]
struct OpenDisk {
    disk: Arc<Disk>,
    serial: Serial,
    device: BlkDevice,
    metrics: Arc<BlkMetrics>,
}

impl OpenDisk {
    /// The same for the guest's hints, as the disk with that number.
    fn hinted(&self, number: u8) -> HintedDisk {
        HintedDisk {
            serial: self.serial.bytes(),
            number,
            num_sectors: self.disk.num_sectors(),
        }
    }
}

/// What reclaim of the guest's memory takes.
#[derive(Debug)]
struct Reclaim {
    swap: Option<SwapFile>,
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
        // The guest tells on its bus what its pages are worth.
        if config.venets.is_empty() && !config.can_reclaim() {
            return Ok(None);
        }
        let made = EmbeddedBus::open(&config.venets)?;
        Ok(Some(VmBus::Embedded(made)))
    }

    /// Plugs it into `machine`, with a device for hints about the pages that are `hinted` at.
    fn plug_into(
        self,
        machine: &mut Machine,
        hinted: Option<(Arc<GuestMemory>, Lender)>,
    ) -> Result<Option<HintsHandle>, BuildError> {
        let ram = machine.ram().clone();
        let mut hints = None;
        match self {
            VmBus::Embedded(mut bus) => {
                if let Some((keeper, _)) = hinted {
                    hints = Some(bus.add_hints(keeper)?);
                }
                bus.plug_into(machine, CONNECTOR)?;
            }
            VmBus::Daemon(bus) => {
                let report = machine.report();
                let report = Box::new(move || report.text());
                let lender = hinted.as_ref().map(|(_, lender)| lender.clone());
                let uplink = bus.uplink(ram.clone(), lender, report)?;
                let counters = uplink.metrics();
                machine.hang_up_at_end(uplink.hang_up());
                machine.add_vbus(CONNECTOR, Arc::new(uplink))?;
                machine.add_counters(&format!("{CONNECTOR}.uplink"), counters);
                // The daemon does not know what is in the guest's memory.
                if let Some((keeper, _)) = hinted {
                    let mut own = EmbeddedBus::open(&[])?;
                    hints = Some(own.add_hints(keeper)?);
                    own.plug_into(machine, OWN_CONNECTOR)?;
                }
            }
        }
        Ok(hints)
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
                .map(|(idx, disk)| open_disk(idx, disk, config.can_reclaim()))
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
            reclaim: open_reclaim(config)?,
        })
    }

    /// Plugs all of it into `machine`: networks first, then disks, the random source, the balloon,
    /// the bus. `on_failure` is called when memory that was taken from the guest cannot be given back.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn plug_into(self, machine: &mut Machine, on_failure: OnFailure) -> Result<(), BuildError> {
        let reclaimer = match self.reclaim {
            Some(reclaim) => Some(reclaim.start(machine, &self.disks, on_failure)?),
            None => None,
        };
        let disks = (0..).zip(&self.disks);
        let hinted = disks.map(|(number, open)| open.hinted(number)).collect();
        let hinted = reclaimer.as_ref().map(|reclaimer| {
            let keeper = GuestMemory::new(Arc::clone(reclaimer), hinted);
            (Arc::new(keeper), reclaimer.lender())
        });
        for (idx, net) in self.nets.into_iter().enumerate() {
            let metrics = net.metrics();
            machine.add_virtio(&format!("net{idx}"), Box::new(net), metrics)?;
        }
        for (idx, open) in self.disks.into_iter().enumerate() {
            let mut device = open.device;
            if let Some(reclaimer) = &reclaimer
                && let Ok(number) = u8::try_from(idx)
            {
                let watch = DiskWatch::new(Arc::clone(reclaimer), number);
                device = device.with_watch(Arc::new(watch));
            }
            machine.add_virtio(&format!("blk{idx}"), Box::new(device), open.metrics)?;
        }
        let (rng, metrics) = self.rng;
        machine.add_virtio("rng0", Box::new(rng), metrics)?;
        if let Some((balloon, metrics)) = self.balloon {
            machine.add_virtio("balloon0", Box::new(balloon), metrics)?;
        }
        let hints = match self.bus {
            Some(bus) => bus.plug_into(machine, hinted)?,
            None => None,
        };
        if let Some(reclaimer) = reclaimer {
            machine.set_policy(Policy::new(reclaimer, hints));
        }
        Ok(())
    }
}

impl Reclaim {
    /// Makes what takes memory of `machine`, and gives it back, before any disk is used.
    fn start(
        self,
        machine: &mut Machine,
        opened: &[OpenDisk],
        on_failure: OnFailure,
    ) -> Result<Arc<Reclaimer>, BuildError> {
        let mut disks = Disks::default();
        for open in opened {
            disks.add(Box::new(Arc::clone(&open.disk)));
        }
        let ram = Ram::new(machine.ram()).map_err(ReclaimError::from)?;
        let reclaimer = Arc::new(Reclaimer::new(ram, disks, self.swap, on_failure)?);
        machine.add_reclaim(&reclaimer)?;
        Ok(reclaimer)
    }
}

fn open_reclaim(config: &VmConfig) -> Result<Option<Reclaim>, ResourceError> {
    if !config.can_reclaim() {
        return Ok(None);
    }
    keep_code_in_memory();
    let open = |swap: &SwapConfig| {
        let bytes = if swap.size == 0 {
            config.memory
        } else {
            swap.size
        };
        let dir = swap.dir();
        if is_tmpfs(dir) {
            tracing::warn!(
                "--swap {}: a tmpfs takes the memory that it should spare",
                dir.display()
            );
        }
        SwapFile::create(dir, bytes).map_err(|source| ResourceError::Swap {
            dir: dir.to_owned(),
            source,
        })
    };
    let swap = config.swap.as_ref().map(open).transpose()?;
    Ok(Some(Reclaim { swap }))
}

/// Keeps what is mapped now, which is not guest RAM yet, in memory once it is used. In a cgroup at its
/// limit our code is all that the kernel can take, and whoever needs it back is made to wait, those who
/// would free memory among them.
fn keep_code_in_memory() {
    if let Err(errno) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::ONFAULT) {
        tracing::info!("cannot keep our own code in memory: {errno}");
    }
}

/// Whether files in `dir` are in memory.
fn is_tmpfs(dir: &Path) -> bool {
    let statfs = rustix::fs::statfs(dir);
    statfs.is_ok_and(|statfs| statfs.f_type == libc::TMPFS_MAGIC)
}

fn open_disk(
    disk_idx: usize,
    config: &DiskConfig,
    has_hints: bool,
) -> Result<OpenDisk, ResourceError> {
    let disk = Disk::open(&config.path, config.is_read_only)
        .map_err(|source| ResourceError::Disk { disk_idx, source })?;
    let disk = Arc::new(disk);
    let serial = match &config.serial {
        Some(text) => {
            Serial::new(text).map_err(|source| ResourceError::Serial { disk_idx, source })?
        }
        // Hints name disks by their serial numbers.
        None if has_hints => Serial::new(&format!("disk{disk_idx}"))
            .map_err(|source| ResourceError::Serial { disk_idx, source })?,
        None => Serial::default(),
    };
    let metrics = Arc::new(BlkMetrics::default());
    let name = format!("blk{disk_idx}");
    let device = BlkDevice::new(name, Arc::clone(&disk), serial, Arc::clone(&metrics));
    Ok(OpenDisk {
        disk,
        serial,
        device,
        metrics,
    })
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
