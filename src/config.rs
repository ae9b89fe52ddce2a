//! What a VM shall be: plain data, checked by [`VmConfig::validate`], which opens no file and
//! touches no KVM. The command line and TOML files both end here.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One virtual machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmConfig {
    /// bzImage or ELF vmlinux; `None` means the default guest image.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk; with neither kernel nor initrd, that of the default guest image.
    pub initrd: Option<PathBuf>,
    /// Appended to our own kernel command line.
    pub cmdline: String,
    /// vCPUs, 1 to 32.
    pub cpus: u32,
    /// Guest RAM in bytes, 64 MiB to 64 GiB, a multiple of 2 MiB.
    #[serde(with = "crate::size::as_text")]
    pub memory: u64,
    /// Back guest RAM with 2 MiB huge pages from the host's pool.
    pub hugepages: bool,
    /// Virtio disks, in the order the guest finds them (`vda`, `vdb`, …).
    #[serde(rename = "disk")]
    pub disks: Vec<DiskConfig>,
    /// Virtio network interfaces, in the order the guest finds them.
    #[serde(rename = "net")]
    pub nets: Vec<NetConfig>,
    /// Add a virtio balloon with free page reporting.
    pub balloon: Option<BalloonConfig>,
    /// Shell command to run in the default guest image instead of an interactive shell.
    pub exec: Option<String>,
    /// Where to write the metrics as JSON when the VM ends.
    pub metrics: Option<PathBuf>,
    /// Run even where KVM interprets guest kernel mode.
    pub force: bool,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Raw image file or block device.
    pub path: PathBuf,
    /// The guest may not write.
    #[serde(default, rename = "ro")]
    pub is_read_only: bool,
    /// Serial number the guest sees, at most 20 bytes.
    #[serde(default)]
    pub serial: Option<String>,
}

/// Where a network interface's frames go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetBackend {
    /// A TAP interface of the host, by name (at most 15 bytes).
    Tap(String),
    /// Outgoing connectivity without root, through `passt`.
    User,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Where the frames go.
    #[serde(flatten)]
    pub backend: NetBackend,
    /// Hardware address; `None` derives a stable one from the interface's position.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// Queue pairs, 1 to 8.
    #[serde(default = "one")]
    pub queues: u16,
    /// Largest frame payload in bytes, 68 to 65,535; `None` keeps the TAP's own.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Address and prefix to give the host's end of the TAP.
    #[serde(default)]
    pub host_ip: Option<Ipv4Net>,
    /// Address and prefix that the default guest image gives its end.
    #[serde(default)]
    pub guest_ip: Option<Ipv4Net>,
}
