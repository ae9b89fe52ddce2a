//! A network interface: data, its shape in files and on the command line, and pure checks.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::mac::MacAddr;

/// Most queue pairs of one interface.
pub const MAX_QUEUE_PAIRS: u16 = 8;
/// Smallest MTU that carries IPv4 (RFC 791: every host forwards 68 bytes).
pub const MIN_MTU: u16 = 68;
/// Longest interface name in bytes: Linux `IFNAMSIZ` less the NUL.
pub const MAX_TAP_NAME_BYTES: usize = 15;

/// Where a network interface's frames go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetBackend {
    /// A TAP interface of the host, by name (1 to [`MAX_TAP_NAME_BYTES`] bytes).
    Tap(String),
    /// Outgoing connectivity without root, through `passt`.
    User,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "NetTable", into = "NetTable")]
pub struct NetConfig {
    /// Where the frames go.
    pub backend: NetBackend,
    /// Hardware address of the guest's end; see [`NetConfig::effective_mac`] for `None`.
    pub mac: Option<MacAddr>,
    /// Queue pairs, 1 to [`MAX_QUEUE_PAIRS`].
    pub queues: u16,
    /// Largest frame payload in bytes, [`MIN_MTU`] to 65,535; `None` keeps the TAP's own.
    pub mtu: Option<u16>,
    /// Address and prefix to give the host's end of the TAP.
    pub host_ip: Option<Ipv4Net>,
    /// Address and prefix that the default guest image gives its end.
    pub guest_ip: Option<Ipv4Net>,
}

/// A [`NetConfig`] as written: `tap = "tap0"` or `user = true`, the rest optional.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(default)]
pub struct NetTable {
    /// Name of a TAP interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Use `passt`.
    #[serde(skip_serializing_if = "is_false")]
    pub user: bool,
    /// As [`NetConfig::mac`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// As [`NetConfig::queues`]; `None` is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// As [`NetConfig::mtu`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// As [`NetConfig::host_ip`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<Ipv4Net>,
    /// As [`NetConfig::guest_ip`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_ip: Option<Ipv4Net>,
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// Why a network interface is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// Neither `tap` nor `user`.
    #[error("it leads nowhere; add tap=NAME for a TAP interface or user for passt")]
    NoBackend,
    /// Both `tap` and `user`.
    #[error("tap and user exclude each other; keep one")]
    TwoBackends,
    /// The kernel would cut or refuse this name.
    #[error("TAP name `{name}` has {} bytes, at most {MAX_TAP_NAME_BYTES} fit; choose a shorter one", name.len())]
    TapNameTooLong {
        /// What was asked for.
        name: String,
    },
    /// The kernel would refuse this name, or expand it.
    #[error("TAP name {name:?} is not a name; use letters, digits, `-`, `_` and `.`, such as tap0")]
    TapName {
        /// What was asked for.
        name: String,
    },
    /// Outside 1 to [`MAX_QUEUE_PAIRS`].
    #[error(
        "queues={found}: an interface has 1 to {MAX_QUEUE_PAIRS} queue pairs; choose one of those"
    )]
    Queues {
        /// What was asked for.
        found: u16,
    },
    /// Below [`MIN_MTU`].
    #[error("mtu={found}: IPv4 needs {MIN_MTU} to 65535; 1500 is usual")]
    Mtu {
        /// What was asked for.
        found: u16,
    },
    /// Zero or a group address.
    #[error(
        "mac={mac} is no address for one interface; use one that starts with 02, such as 02:00:00:00:00:01"
    )]
    Mac {
        /// What was asked for.
        mac: MacAddr,
    },
    /// A key that only a TAP understands.
    #[error("{key} has no meaning with user, where passt decides; use tap=NAME or leave {key} out")]
    TapOnly {
        /// The offending key.
        key: &'static str,
    },
}

impl NetConfig {
    /// The interface's hardware address: the one asked for, or one derived from the TAP's name
    /// (from the position in the VM with `user`), the same on every run.
    pub fn effective_mac(&self, net_idx: usize) -> MacAddr {
        self.mac.unwrap_or_else(|| match &self.backend {
            NetBackend::Tap(name) => MacAddr::from_name(name),
            NetBackend::User => MacAddr::from_name(&format!("user{net_idx}")),
        })
    }

    /// Checks what can be checked without opening the TAP.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn validate(&self) -> Result<(), NetError> {
        if let NetBackend::Tap(name) = &self.backend {
            validate_tap_name(name)?;
        }
        if !(1..=MAX_QUEUE_PAIRS).contains(&self.queues) {
            return Err(NetError::Queues { found: self.queues });
        }
        if let Some(found) = self.mtu
            && found < MIN_MTU
        {
            return Err(NetError::Mtu { found });
        }
        if let Some(mac) = self.mac
            && (mac.is_zero() || mac.is_multicast())
        {
            return Err(NetError::Mac { mac });
        }
        if self.backend == NetBackend::User {
            let tap_only = [
                ("queues", self.queues != 1),
                ("host_ip", self.host_ip.is_some()),
                ("guest_ip", self.guest_ip.is_some()),
            ];
            if let Some((key, _)) = tap_only.into_iter().find(|(_, is_set)| *is_set) {
                return Err(NetError::TapOnly { key });
            }
        }
        Ok(())
    }
}

/// The rules of Linux `dev_valid_name()`, and no `%`, which would number the interface.
pub(super) fn validate_tap_name(name: &str) -> Result<(), NetError> {
    let name = name.to_owned();
    if name.len() > MAX_TAP_NAME_BYTES {
        return Err(NetError::TapNameTooLong { name });
    }
    let is_bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
    if name.is_empty() || name == "." || name == ".." || name.contains(is_bad) {
        return Err(NetError::TapName { name });
    }
    Ok(())
}

impl TryFrom<NetTable> for NetConfig {
    type Error = NetError;

    fn try_from(table: NetTable) -> Result<Self, NetError> {
        let backend = match (table.tap, table.user) {
            (Some(name), false) => NetBackend::Tap(name),
            (None, true) => NetBackend::User,
            (None, false) => return Err(NetError::NoBackend),
            (Some(_), true) => return Err(NetError::TwoBackends),
        };
        Ok(Self {
            backend,
            mac: table.mac,
            queues: table.queues.unwrap_or(1),
            mtu: table.mtu,
            host_ip: table.host_ip,
            guest_ip: table.guest_ip,
        })
    }
}

impl From<NetConfig> for NetTable {
    fn from(net: NetConfig) -> Self {
        let (tap, user) = match net.backend {
            NetBackend::Tap(name) => (Some(name), false),
            NetBackend::User => (None, true),
        };
        Self {
            tap,
            user,
            mac: net.mac,
            queues: (net.queues != 1).then_some(net.queues),
            mtu: net.mtu,
            host_ip: net.host_ip,
            guest_ip: net.guest_ip,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(name: &str) -> NetConfig {
        NetTable {
            tap: Some(name.into()),
            ..NetTable::default()
        }
        .try_into()
        .unwrap()
    }

    fn user() -> NetConfig {
        NetTable {
            user: true,
            ..NetTable::default()
        }
        .try_into()
        .unwrap()
    }

    #[test]
    fn table_needs_exactly_one_backend() {
        let both = NetTable {
            tap: Some("tap0".into()),
            user: true,
            ..NetTable::default()
        };

        assert_eq!(NetConfig::try_from(both), Err(NetError::TwoBackends));
        assert_eq!(
            NetConfig::try_from(NetTable::default()),
            Err(NetError::NoBackend)
        );
    }

    #[test]
    fn tap_name_of_15_bytes_is_the_longest() {
        assert_eq!(tap("tap012345678901").validate(), Ok(()));
        assert!(matches!(
            tap("tap0123456789012").validate(),
            Err(NetError::TapNameTooLong { .. })
        ));
    }

    #[test]
    fn names_that_the_kernel_refuses_or_expands_are_refused() {
        for name in ["", ".", "..", "a b", "a/b", "a:b", "tap%d", "a\0"] {
            assert!(
                matches!(tap(name).validate(), Err(NetError::TapName { .. })),
                "{name:?}"
            );
        }
    }

    #[test]
    fn queue_pairs_are_1_to_8() {
        let net = |queues| NetConfig {
            queues,
            ..tap("tap0")
        };

        assert_eq!(net(0).validate(), Err(NetError::Queues { found: 0 }));
        assert_eq!(net(8).validate(), Ok(()));
        assert_eq!(net(9).validate(), Err(NetError::Queues { found: 9 }));
    }

    #[test]
    fn mtu_starts_at_68() {
        let net = |mtu| NetConfig {
            mtu: Some(mtu),
            ..tap("tap0")
        };

        assert_eq!(net(67).validate(), Err(NetError::Mtu { found: 67 }));
        assert_eq!(net(68).validate(), Ok(()));
    }

    #[test]
    fn group_and_zero_addresses_are_refused() {
        for mac in [
            MacAddr([0xff; 6]),
            MacAddr([0; 6]),
            MacAddr([1, 0, 0x5e, 0, 0, 1]),
        ] {
            let net = NetConfig {
                mac: Some(mac),
                ..tap("tap0")
            };
            assert_eq!(net.validate(), Err(NetError::Mac { mac }));
        }
    }

    #[test]
    fn user_backend_refuses_what_passt_decides() {
        let net = NetConfig {
            queues: 2,
            ..user()
        };

        assert_eq!(net.validate(), Err(NetError::TapOnly { key: "queues" }));
    }

    #[test]
    fn default_mac_follows_the_tap_name_or_the_position() {
        assert_eq!(tap("tap0").effective_mac(0), tap("tap0").effective_mac(3));
        assert_ne!(user().effective_mac(0), user().effective_mac(1));
    }
}
