//! What a VM shall be: plain data, checked by [`VmConfig::validate`], which opens no file and
//! touches no KVM. The command line and TOML files both end here.

pub mod disk;
pub mod net;
pub mod swap;
#[cfg(test)]
mod tests;
pub mod venet;

use std::collections::HashMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use disk::{DiskConfig, DiskError};
pub use net::{NetBackend, NetConfig, NetError, NetTable};
pub use swap::{SwapConfig, SwapError};
pub use venet::{BusNameError, VenetBackend, VenetConfig, VenetError, VenetTable};

use crate::mac::MacAddr;
use crate::sandbox::Mode;
use crate::size::{self, Size};
use crate::user::UserIds;

/// Most vCPUs of one VM.
pub const MAX_CPUS: u32 = 32;
/// Least guest RAM in bytes: what a stock kernel needs to get to init.
pub const MIN_MEMORY: u64 = 64 << 20;
/// Most guest RAM in bytes.
pub const MAX_MEMORY: u64 = 64 << 30;
/// Guest RAM comes in units of this many bytes, one huge page.
pub const MEMORY_STEP: u64 = 2 << 20;
/// Longest addition to the kernel command line in bytes: x86 Linux takes 2,047
/// (`COMMAND_LINE_SIZE` less the NUL), and 256 are for our own part.
pub const MAX_CMDLINE_BYTES: usize = 1791;
/// Longest name of a VM in bytes, that of a host.
pub const MAX_NAME_BYTES: usize = 63;

/// One virtual machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmConfig {
    /// What `alacrity ps` and others call the VM; at most [`MAX_NAME_BYTES`].
    pub name: Option<String>,
    /// bzImage or ELF vmlinux; `None` means that of the default guest image.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk; with neither kernel nor initrd, that of the default guest image.
    pub initrd: Option<PathBuf>,
    /// Appended to our own kernel command line; at most [`MAX_CMDLINE_BYTES`].
    pub cmdline: String,
    /// vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// Guest RAM in bytes, [`MIN_MEMORY`] to [`MAX_MEMORY`], a multiple of [`MEMORY_STEP`].
    #[serde(with = "size::as_text")]
    pub memory: u64,
    /// Back guest RAM with 2 MiB huge pages from the host's pool.
    pub hugepages: bool,
    /// Virtio disks, in the order the guest finds them (`vda`, `vdb`, …).
    #[serde(rename = "disk")]
    pub disks: Vec<DiskConfig>,
    /// Virtio network interfaces, in the order the guest finds them.
    #[serde(rename = "net")]
    pub nets: Vec<NetConfig>,
    /// Network interfaces on a bus of the VM's own, at most [`venet::MAX_VENETS`]; the guest finds
    /// them behind the virtio ones. Excludes [`VmConfig::bus`].
    #[serde(rename = "venet")]
    pub venets: Vec<VenetConfig>,
    /// Name of the daemon's bus to join; the guest finds what is on it.
    pub bus: Option<String>,
    /// Socket of the daemon that [`VmConfig::bus`] lives in; `None` means the default one.
    pub host: Option<PathBuf>,
    /// Add a virtio balloon with free page reporting.
    pub balloon: Option<BalloonConfig>,
    /// Let the host take back memory that can be had again without writing anything.
    pub hints: bool,
    /// Where the host may write the rest of the guest's memory to; implies [`VmConfig::hints`].
    pub swap: Option<SwapConfig>,
    /// Bytes of host memory that the guest shall take at most, at most [`VmConfig::memory`]; soft. Needs
    /// one of the two above.
    #[serde(with = "size::as_optional_text")]
    pub memory_target: Option<u64>,
    /// Shell command for the guest to run instead of an interactive shell. Only the init of the
    /// default guest image obeys it: an initrd given together with it must be of that kind.
    pub exec: Option<String>,
    /// Where to write the metrics as JSON when the VM ends.
    pub metrics: Option<PathBuf>,
    /// Run even where KVM interprets guest kernel mode.
    pub force: bool,
    /// Whether the VM's process is confined.
    pub sandbox: Mode,
    /// Whom it runs as once all that it names is open; `None` means whoever started it. Excludes
    /// [`VmConfig::bus`].
    pub user: Option<UserIds>,
}

/// A memory balloon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BalloonConfig {
    /// Bytes that the guest shall hand back as soon as it can; at least [`MIN_MEMORY`] must stay.
    #[serde(with = "size::as_text")]
    pub target: u64,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            name: None,
            kernel: None,
            initrd: None,
            cmdline: String::new(),
            cpus: 1,
            memory: 512 << 20,
            hugepages: false,
            disks: Vec::new(),
            nets: Vec::new(),
            venets: Vec::new(),
            bus: None,
            host: None,
            balloon: None,
            hints: false,
            swap: None,
            memory_target: None,
            exec: None,
            metrics: None,
            force: false,
            sandbox: Mode::default(),
            user: None,
        }
    }
}

/// Why no VM can be like this, wherever it runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Outside 1 to [`MAX_CPUS`].
    #[error("{found} vCPUs: a VM has 1 to {MAX_CPUS}; choose with --cpus")]
    Cpus {
        /// What was asked for.
        found: u32,
    },
    /// Outside [`MIN_MEMORY`] to [`MAX_MEMORY`].
    #[error("memory of {}: a VM has {} to {}; choose with --memory", Size(*found), Size(MIN_MEMORY), Size(MAX_MEMORY))]
    MemoryRange {
        /// What was asked for, in bytes.
        found: u64,
    },
    /// Not a multiple of [`MEMORY_STEP`].
    #[error("memory of {}: it comes in steps of {}; take {}", Size(*found), Size(MEMORY_STEP), Size(found.next_multiple_of(MEMORY_STEP)))]
    MemoryStep {
        /// What was asked for, in bytes.
        found: u64,
    },
    /// Above [`MAX_CMDLINE_BYTES`].
    #[error(
        "kernel command line of {len} bytes: at most {MAX_CMDLINE_BYTES} fit beside our own; shorten --cmdline"
    )]
    CmdlineTooLong {
        /// What was asked for, in bytes.
        len: usize,
    },
    /// A process number, or something that is hard to type.
    #[error(
        "--name {name:?} is not a name; use a letter and then letters, digits, `-`, `_` and `.`, {MAX_NAME_BYTES} bytes at most, such as web1"
    )]
    Name {
        /// What was asked for.
        name: String,
    },
    /// A NUL would end the text early.
    #[error("{what} contains a NUL character, which ends it early; remove it")]
    Nul {
        /// `--cmdline` or `--exec`.
        what: &'static str,
    },
    /// A command of nothing.
    #[error(
        "--exec is empty, so the guest has nothing to run; write a shell command, such as --exec 'uname -a'"
    )]
    ExecEmpty,
    /// Nobody in the guest would read the command.
    #[error(
        "--exec has no init to obey it with --kernel alone; leave --kernel out, or add the --initrd of the default guest image"
    )]
    ExecWithoutInitrd,
    /// The guest would be left without memory.
    #[error("balloon target of {}: of {} at least {} must stay with the guest; choose a smaller one", Size(*target), Size(*memory), Size(MIN_MEMORY))]
    BalloonTarget {
        /// What was asked for, in bytes.
        target: u64,
        /// Guest RAM in bytes.
        memory: u64,
    },
    /// A disk is refused for itself.
    #[error("disk{disk_idx}")]
    Disk {
        /// Position among the disks.
        disk_idx: usize,
        /// Why.
        source: DiskError,
    },
    /// An interface is refused for itself.
    #[error("net{net_idx}")]
    Net {
        /// Position among the interfaces.
        net_idx: usize,
        /// Why.
        source: NetError,
    },
    /// Two disks, at least one of them writable, on one file.
    #[error(
        "disk{second}: {path} is already disk{first}, and a writer needs it alone; add ro to both or drop one"
    )]
    SharedDisk {
        /// The file.
        path: String,
        /// Position of the first use.
        first: usize,
        /// Position of the second use.
        second: usize,
    },
    /// Two interfaces share a TAP or a hardware address.
    #[error("{second}: {what} is already taken by {first}; give each interface its own")]
    SharedNet {
        /// The TAP or the address.
        what: String,
        /// The first user, e.g. `net0`.
        first: String,
        /// The second user.
        second: String,
    },
    /// An interface on the VM's own bus is refused for itself.
    #[error("venet{venet_idx}")]
    Venet {
        /// Position among these interfaces.
        venet_idx: usize,
        /// Why.
        source: VenetError,
    },
    /// Above [`venet::MAX_VENETS`].
    #[error("{found} venets: a VM has at most {}; drop some", venet::MAX_VENETS)]
    TooManyVenets {
        /// What was asked for.
        found: usize,
    },
    /// Above [`venet::MAX_SWITCH_PORTS`].
    #[error(
        "switch {name} with more than {} interfaces; spread them over several switches, or drop some",
        venet::MAX_SWITCH_PORTS
    )]
    TooManyPorts {
        /// The switch.
        name: String,
    },
    /// A switch has one MTU.
    #[error("venet{second}: switch {name} has another MTU at venet{first}; give both the same")]
    SwitchMtu {
        /// The switch.
        name: String,
        /// Position of its first interface.
        first: usize,
        /// Position of the other.
        second: usize,
    },
    /// Two buses.
    #[error(
        "--venet and --bus exclude each other: a VM is on one bus; leave --venet out and put its device on the daemon's bus, or leave --bus out"
    )]
    TwoBuses,
    /// Pages of a pool that can run dry under the daemon.
    #[error(
        "--hugepages and --bus exclude each other: the daemon takes no memory of the huge page pool, which could run out under it; leave --hugepages out (the host's kernel uses huge pages by itself where it can)"
    )]
    HugePagesOnBus,
    /// A daemon that would not let it in again.
    #[error(
        "--user and --bus exclude each other: the daemon's socket is for the user who started the daemon, so the VM could not come back after a restart of it; start daemon and VM as that user, or leave one of them out"
    )]
    UserOnBus,
    /// A daemon for nothing.
    #[error("--host without --bus has no meaning; add --bus NAME, or leave it out")]
    HostWithoutBus,
    /// Memory that cannot be reclaimed.
    #[error("{} and {other} exclude each other: {why}; leave one of them out", reclaim_flag(*.is_swap))]
    Reclaim {
        /// It was to be swapped as well.
        is_swap: bool,
        /// The other flag.
        other: &'static str,
        /// What would go wrong.
        why: &'static str,
    },
    /// Nothing could be done for it.
    #[error(
        "--memory-target without --hints or --swap has no meaning; add one of them, or leave it out"
    )]
    TargetWithoutReclaim,
    /// It would say nothing.
    #[error("memory target of {}: the guest has {} in all; choose less with --memory-target", Size(*target), Size(*memory))]
    Target {
        /// What was asked for, in bytes.
        target: u64,
        /// Guest RAM in bytes.
        memory: u64,
    },
    /// The swap file is refused for itself.
    #[error("--swap")]
    Swap(#[source] SwapError),
    /// A bus that cannot be.
    #[error(transparent)]
    BusName(BusNameError),
}

fn reclaim_flag(is_swap: bool) -> &'static str {
    if is_swap { "--swap" } else { "--hints" }
}

/// Why a text is not a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct TomlError {
    /// Line of the mistake, 1-based.
    pub line: usize,
    /// What the parser says, on one line.
    pub message: String,
}

impl TomlError {
    /// What the parser said about `text`.
    pub fn new(text: &str, error: &toml::de::Error) -> Self {
        let offset = error.span().map_or(0, |span| span.start);
        let before = text.get(..offset).unwrap_or(text);
        TomlError {
            line: before.matches('\n').count() + 1,
            message: error.message().replace('\n', ", "),
        }
    }
}

impl VmConfig {
    /// Reads a configuration from TOML. Does not validate it: flags may yet change it.
    ///
    /// # Errors
    /// [`TomlError`] for a syntax error, an unknown field or a value of the wrong kind.
    pub fn from_toml(text: &str) -> Result<Self, TomlError> {
        toml::from_str(text).map_err(|error| TomlError::new(text, &error))
    }

    /// Checks everything that can be said without looking at the host.
    ///
    /// # Errors
    /// The first [`ConfigError`] found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(ConfigError::Cpus { found: self.cpus });
        }
        self.validate_memory()?;
        self.validate_reclaim()?;
        self.validate_texts()?;
        self.validate_disks()?;
        self.validate_nets()?;
        self.validate_venets()?;
        self.validate_bus()
    }

    fn validate_memory(&self) -> Result<(), ConfigError> {
        let found = self.memory;
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&found) {
            return Err(ConfigError::MemoryRange { found });
        }
        if !found.is_multiple_of(MEMORY_STEP) {
            return Err(ConfigError::MemoryStep { found });
        }
        let target = self.balloon.as_ref().map_or(0, |balloon| balloon.target);
        if target > found - MIN_MEMORY {
            return Err(ConfigError::BalloonTarget {
                target,
                memory: found,
            });
        }
        Ok(())
    }

    /// Whether the host may take back memory of the guest.
    pub fn can_reclaim(&self) -> bool {
        self.hints || self.swap.is_some()
    }

    fn validate_reclaim(&self) -> Result<(), ConfigError> {
        let others = [
            (
                self.hugepages,
                "--hugepages",
                "pages of the host's pool cannot be taken in parts",
            ),
            (
                self.balloon.is_some(),
                "--balloon",
                "both would take the same pages, each without the other's knowledge",
            ),
        ];
        if self.can_reclaim()
            && let Some((_, other, why)) = others.into_iter().find(|(is_set, ..)| *is_set)
        {
            return Err(ConfigError::Reclaim {
                is_swap: self.swap.is_some(),
                other,
                why,
            });
        }
        if let Some(target) = self.memory_target {
            if !self.can_reclaim() {
                return Err(ConfigError::TargetWithoutReclaim);
            }
            let memory = self.memory;
            if target > memory {
                return Err(ConfigError::Target { target, memory });
            }
        }
        self.swap
            .as_ref()
            .map_or(Ok(()), SwapConfig::validate)
            .map_err(ConfigError::Swap)
    }

    fn validate_texts(&self) -> Result<(), ConfigError> {
        if let Some(name) = self.name.as_ref().filter(|name| !is_name(name)) {
            return Err(ConfigError::Name { name: name.clone() });
        }
        let len = self.cmdline.len();
        if len > MAX_CMDLINE_BYTES {
            return Err(ConfigError::CmdlineTooLong { len });
        }
        if self.cmdline.contains('\0') {
            return Err(ConfigError::Nul { what: "--cmdline" });
        }
        let Some(command) = &self.exec else {
            return Ok(());
        };
        if command.trim().is_empty() {
            return Err(ConfigError::ExecEmpty);
        }
        if command.contains('\0') {
            return Err(ConfigError::Nul { what: "--exec" });
        }
        if self.kernel.is_some() && self.initrd.is_none() {
            return Err(ConfigError::ExecWithoutInitrd);
        }
        Ok(())
    }

    fn validate_disks(&self) -> Result<(), ConfigError> {
        let mut seen = HashMap::new();
        for (disk_idx, disk) in self.disks.iter().enumerate() {
            disk.validate()
                .map_err(|source| ConfigError::Disk { disk_idx, source })?;
            let &mut (first, ref mut is_read_only) = seen
                .entry(&disk.path)
                .or_insert((disk_idx, disk.is_read_only));
            *is_read_only &= disk.is_read_only;
            if first != disk_idx && !*is_read_only {
                return Err(ConfigError::SharedDisk {
                    path: disk.path.display().to_string(),
                    first,
                    second: disk_idx,
                });
            }
        }
        Ok(())
    }

    fn validate_nets(&self) -> Result<(), ConfigError> {
        let mut seen = HashMap::new();
        let mut take = |user: String, tap: Option<&String>, mac: MacAddr| {
            let tap = tap.map(|name| format!("TAP {name}"));
            for what in tap.into_iter().chain([format!("MAC address {mac}")]) {
                if let Some(first) = seen.insert(what.clone(), user.clone()) {
                    let second = user;
                    return Err(ConfigError::SharedNet {
                        what,
                        first,
                        second,
                    });
                }
            }
            Ok(())
        };
        for (net_idx, net) in self.nets.iter().enumerate() {
            net.validate()
                .map_err(|source| ConfigError::Net { net_idx, source })?;
            let tap = match &net.backend {
                NetBackend::Tap(name) => Some(name),
                NetBackend::User => None,
            };
            take(format!("net{net_idx}"), tap, net.effective_mac(net_idx))?;
        }
        for (venet_idx, venet) in self.venets.iter().enumerate() {
            venet
                .validate()
                .map_err(|source| ConfigError::Venet { venet_idx, source })?;
            let tap = match &venet.backend {
                VenetBackend::Tap(name) => Some(name),
                VenetBackend::Switch(_) | VenetBackend::Loopback => None,
            };
            let mac = venet.effective_mac(venet_idx);
            take(format!("venet{venet_idx}"), tap, mac)?;
        }
        Ok(())
    }

    /// What interfaces on the VM's own bus may not be together.
    fn validate_venets(&self) -> Result<(), ConfigError> {
        let found = self.venets.len();
        if found > venet::MAX_VENETS {
            return Err(ConfigError::TooManyVenets { found });
        }
        let mut switches = HashMap::new();
        for (second, venet) in self.venets.iter().enumerate() {
            let VenetBackend::Switch(name) = &venet.backend else {
                continue;
            };
            let (first, mtu, num_ports) = switches.entry(name).or_insert((second, venet.mtu, 0));
            *num_ports += 1;
            let name = || name.clone();
            if *num_ports > venet::MAX_SWITCH_PORTS {
                return Err(ConfigError::TooManyPorts { name: name() });
            }
            if *mtu != venet.mtu {
                return Err(ConfigError::SwitchMtu {
                    name: name(),
                    first: *first,
                    second,
                });
            }
        }
        Ok(())
    }

    fn validate_bus(&self) -> Result<(), ConfigError> {
        match &self.bus {
            Some(_) if !self.venets.is_empty() => Err(ConfigError::TwoBuses),
            Some(_) if self.hugepages => Err(ConfigError::HugePagesOnBus),
            Some(_) if self.user.is_some() => Err(ConfigError::UserOnBus),
            Some(name) => venet::validate_bus_name(name).map_err(ConfigError::BusName),
            None if self.host.is_some() => Err(ConfigError::HostWithoutBus),
            None => Ok(()),
        }
    }
}

/// True for the name of a VM, which is never that of a process.
fn is_name(name: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    name.len() <= MAX_NAME_BYTES
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(is_inner)
}
