//! A network interface on the VM's own bus, and the bus of a daemon: data, their shape in files and
//! on the command line, and pure checks.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::net::{MIN_MTU, NetError, validate_tap_name};
use crate::mac::MacAddr;

/// Most interfaces on the VM's own bus.
pub const MAX_VENETS: usize = 16;
/// Most interfaces of one VM on one switch: as many as a switch offers on one bus.
pub const MAX_SWITCH_PORTS: usize = 8;
/// Longest name of a bus or a switch in bytes, as in the control tree.
pub const MAX_BUS_NAME_BYTES: usize = vbus::tree::MAX_NAME_BYTES;

/// Where an interface's frames go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VenetBackend {
    /// A TAP interface of the host, by name.
    Tap(String),
    /// A switch of this VM alone, by name: all interfaces with the same name are on it.
    Switch(String),
    /// Back to where they came from.
    Loopback,
}

/// A network interface on the VM's own bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "VenetTable", into = "VenetTable")]
pub struct VenetConfig {
    /// Where the frames go.
    pub backend: VenetBackend,
    /// Hardware address of the guest's end; see [`VenetConfig::effective_mac`] for `None`.
    pub mac: Option<MacAddr>,
    /// Largest frame payload in bytes, [`MIN_MTU`] to 65,535; `None` keeps the TAP's own.
    pub mtu: Option<u16>,
    /// Address and prefix to give the host's end of the TAP.
    pub host_ip: Option<Ipv4Net>,
    /// Address and prefix that the default guest image gives its end.
    pub guest_ip: Option<Ipv4Net>,
}

/// A [`VenetConfig`] as written: `tap = "tap0"`, `switch = "lan"` or `loopback = true`, the rest
/// optional.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(default)]
pub struct VenetTable {
    /// Name of a TAP interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Name of a switch of this VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switch: Option<String>,
    /// What is sent comes back.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub loopback: bool,
    /// As [`VenetConfig::mac`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// As [`VenetConfig::mtu`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// As [`VenetConfig::host_ip`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<Ipv4Net>,
    /// As [`VenetConfig::guest_ip`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_ip: Option<Ipv4Net>,
}

/// Why an interface on the VM's own bus is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VenetError {
    /// None of `tap`, `switch` and `loopback`.
    #[error("it leads nowhere; add tap=NAME, switch=NAME or loopback")]
    NoBackend,
    /// More than one of them.
    #[error("tap, switch and loopback exclude each other; keep one")]
    ManyBackends,
    /// What an interface of any kind may not be.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The control tree could not show it.
    #[error(
        "switch name {name:?} is not a name; use 1 to {MAX_BUS_NAME_BYTES} bytes of letters, digits, `-` and `_`, such as lan"
    )]
    SwitchName {
        /// What was asked for.
        name: String,
    },
    /// There is no end on the host that could have an address.
    #[error("host_ip is for the host's end of a TAP, and this interface has none; leave it out")]
    HostIp,
}

/// Why a bus is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "--bus {name:?} is not the name of a bus; `alacrity vbus ls config/instances` lists those of the daemon"
)]
pub struct BusNameError {
    /// What was asked for.
    name: String,
}

/// Checks the name of a bus by the rules of the control tree.
///
/// # Errors
/// [`BusNameError`].
pub fn validate_bus_name(name: &str) -> Result<(), BusNameError> {
    match is_tree_name(name) {
        true => Ok(()),
        false => Err(BusNameError { name: name.into() }),
    }
}

fn is_tree_name(name: &str) -> bool {
    let is_bad = |c: char| c == '/' || c.is_control();
    (1..=MAX_BUS_NAME_BYTES).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(is_bad)
}

impl VenetConfig {
    /// The interface's hardware address: the one asked for, or one derived from the TAP's name
    /// (elsewhere from the position among the interfaces), the same on every run.
    pub fn effective_mac(&self, venet_idx: usize) -> MacAddr {
        self.mac.unwrap_or_else(|| match &self.backend {
            VenetBackend::Tap(name) => MacAddr::from_name(name),
            VenetBackend::Switch(_) | VenetBackend::Loopback => {
                MacAddr::from_name(&format!("venet{venet_idx}"))
            }
        })
    }

    /// Checks what can be checked without looking at the host.
    ///
    /// # Errors
    /// [`VenetError`].
    pub fn validate(&self) -> Result<(), VenetError> {
        match &self.backend {
            VenetBackend::Tap(name) => validate_tap_name(name)?,
            VenetBackend::Switch(name) if !is_tree_name(name) => {
                return Err(VenetError::SwitchName { name: name.clone() });
            }
            VenetBackend::Switch(_) | VenetBackend::Loopback if self.host_ip.is_some() => {
                return Err(VenetError::HostIp);
            }
            VenetBackend::Switch(_) | VenetBackend::Loopback => {}
        }
        if let Some(found) = self.mtu
            && found < MIN_MTU
        {
            return Err(NetError::Mtu { found }.into());
        }
        match self.mac {
            Some(mac) if mac.is_zero() || mac.is_multicast() => Err(NetError::Mac { mac }.into()),
            _ => Ok(()),
        }
    }
}

impl TryFrom<VenetTable> for VenetConfig {
    type Error = VenetError;

    fn try_from(table: VenetTable) -> Result<Self, VenetError> {
        let backend = match (table.tap, table.switch, table.loopback) {
            (Some(name), None, false) => VenetBackend::Tap(name),
            (None, Some(name), false) => VenetBackend::Switch(name),
            (None, None, true) => VenetBackend::Loopback,
            (None, None, false) => return Err(VenetError::NoBackend),
            _ => return Err(VenetError::ManyBackends),
        };
        Ok(Self {
            backend,
            mac: table.mac,
            mtu: table.mtu,
            host_ip: table.host_ip,
            guest_ip: table.guest_ip,
        })
    }
}

impl From<VenetConfig> for VenetTable {
    fn from(venet: VenetConfig) -> Self {
        let mut table = Self {
            mac: venet.mac,
            mtu: venet.mtu,
            host_ip: venet.host_ip,
            guest_ip: venet.guest_ip,
            ..Self::default()
        };
        match venet.backend {
            VenetBackend::Tap(name) => table.tap = Some(name),
            VenetBackend::Switch(name) => table.switch = Some(name),
            VenetBackend::Loopback => table.loopback = true,
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn venet(backend: VenetBackend) -> VenetConfig {
        VenetConfig {
            backend,
            mac: None,
            mtu: None,
            host_ip: None,
            guest_ip: None,
        }
    }

    #[test]
    fn table_needs_exactly_one_backend() {
        let two = VenetTable {
            tap: Some("tap0".into()),
            loopback: true,
            ..VenetTable::default()
        };

        assert_eq!(VenetConfig::try_from(two), Err(VenetError::ManyBackends));
        let none = VenetConfig::try_from(VenetTable::default());
        assert_eq!(none, Err(VenetError::NoBackend));
    }

    #[test]
    fn tables_round_trip() {
        for backend in [
            VenetBackend::Tap("tap0".into()),
            VenetBackend::Switch("lan".into()),
            VenetBackend::Loopback,
        ] {
            let before = venet(backend);
            let after = VenetConfig::try_from(VenetTable::from(before.clone()));
            assert_eq!(after, Ok(before));
        }
    }

    #[test]
    fn only_a_tap_has_an_end_for_the_host() {
        let with_host_ip = |backend| VenetConfig {
            host_ip: Some("10.9.0.1/24".parse().unwrap()),
            ..venet(backend)
        };

        let tap = with_host_ip(VenetBackend::Tap("tap0".into()));
        assert_eq!(tap.validate(), Ok(()));
        for backend in [VenetBackend::Loopback, VenetBackend::Switch("lan".into())] {
            let refused = with_host_ip(backend).validate();
            assert_eq!(refused, Err(VenetError::HostIp));
        }
    }

    #[test]
    fn names_addresses_and_mtus_follow_the_rules_of_other_interfaces() {
        let tap = |name: &str| venet(VenetBackend::Tap(name.into()));
        let mac = MacAddr([0xff; 6]);
        let broadcast = VenetConfig {
            mac: Some(mac),
            ..tap("tap0")
        };
        let small = VenetConfig {
            mtu: Some(67),
            ..venet(VenetBackend::Loopback)
        };

        assert!(matches!(tap("a/b").validate(), Err(VenetError::Net(_))));
        assert_eq!(broadcast.validate(), Err(NetError::Mac { mac }.into()));
        assert_eq!(small.validate(), Err(NetError::Mtu { found: 67 }.into()));
    }

    #[test]
    fn names_that_the_control_tree_cannot_show_are_refused() {
        for name in ["", ".", "..", "a/b", "a\nb", &"x".repeat(129)] {
            let switch = venet(VenetBackend::Switch(name.into())).validate();
            assert!(
                matches!(switch, Err(VenetError::SwitchName { .. })),
                "{name:?}"
            );
            assert!(validate_bus_name(name).is_err(), "{name:?}");
        }
        assert_eq!(validate_bus_name("blue bus"), Ok(()));
    }

    #[test]
    fn default_macs_follow_the_tap_name_or_the_position() {
        let tap = venet(VenetBackend::Tap("tap0".into()));
        let loopback = venet(VenetBackend::Loopback);

        assert_eq!(tap.effective_mac(0), tap.effective_mac(3));
        assert_ne!(loopback.effective_mac(0), loopback.effective_mac(1));
    }
}
