//! Hardware addresses of network interfaces.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// First two bytes of the addresses we choose: locally administered, unicast.
const OUR_PREFIX: [u8; 2] = [0x02, 0xa1];

/// A 48-bit hardware address, first byte on the wire first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

/// The text is not a hardware address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a hardware address; write six bytes in hexadecimal, such as 02:00:00:00:00:01"
)]
pub struct MacError {
    text: String,
}

impl MacAddr {
    /// Derives an address from a name (FNV-1a), the same on every run, so that guests of one host
    /// with different names get different addresses without being told.
    pub fn from_name(name: &str) -> Self {
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        let [p, q] = OUR_PREFIX;
        let [a, b, c, d] = hash.to_be_bytes();
        Self([p, q, a, b, c, d])
    }

    /// True for group addresses (broadcast among them), which no interface may own.
    pub fn is_multicast(self) -> bool {
        let Self([first, ..]) = self;
        first & 1 == 1
    }

    /// True for `00:00:00:00:00:00`, which Linux takes for "no address".
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([a, b, c, d, e, g]) = self;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let error = || MacError { text: text.into() };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(error)?;
            if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(error());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(error()),
        }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        let mac: MacAddr = "02:0A:ff:00:00:01".parse().unwrap();

        assert_eq!(mac, MacAddr([2, 10, 255, 0, 0, 1]));
        assert_eq!(mac.to_string(), "02:0a:ff:00:00:01");
    }

    #[test]
    fn other_shapes_are_refused() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn derived_addresses_are_stable_unicast_and_differ_by_name() {
        assert_eq!(MacAddr::from_name("tap0"), MacAddr::from_name("tap0"));
        assert_ne!(MacAddr::from_name("tap0"), MacAddr::from_name("tap1"));
        assert!(!MacAddr::from_name("tap0").is_multicast());
    }
}
