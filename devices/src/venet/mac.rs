//! Ethernet addresses.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::str::FromStr;

use rustix::io::Errno;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// A random address of the range that nobody assigns: unicast, locally administered.
    pub fn random() -> Self {
        // A new `RandomState` has random keys, so what it hashes makes no difference.
        let [_, _, b, c, d, e, f, g] = RandomState::new().hash_one(0).to_be_bytes();
        MacAddress([b & 0xfc | 0x02, c, d, e, f, g])
    }

    /// True if it names a group of stations, or all of them.
    pub fn is_multicast(self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 1
    }

    /// True if a station can have it.
    pub fn is_station(self) -> bool {
        !self.is_multicast() && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddress {
    type Err = Errno;

    /// Takes exactly `xx:xx:xx:xx:xx:xx`; anything else is `EINVAL`.
    fn from_str(text: &str) -> Result<Self, Errno> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or(Errno::INVAL)?;
            // `from_str_radix` takes a sign as well.
            if part.len() != 2 || !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(Errno::INVAL);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| Errno::INVAL)?;
        }
        match parts.next() {
            None => Ok(MacAddress(octets)),
            Some(_) => Err(Errno::INVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_the_same_as_text_and_back() {
        let mac: MacAddress = "02:00:aB:ff:10:09".parse().unwrap();

        assert_eq!(mac, MacAddress([2, 0, 0xab, 0xff, 0x10, 9]));
        assert_eq!(mac.to_string(), "02:00:ab:ff:10:09");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:0",
            "02:00:00:00:00:0g",
            "+2:00:00:00:00:00",
            "02-00-00-00-00-00",
        ] {
            assert_eq!(text.parse::<MacAddress>(), Err(Errno::INVAL), "{text}");
        }
    }

    #[test]
    fn random_addresses_are_local_stations_and_differ() {
        let (one, other) = (MacAddress::random(), MacAddress::random());

        assert_ne!(one, other);
        for mac in [one, other] {
            assert!(mac.is_station(), "{mac}");
            assert_eq!(mac.0[0] & 2, 2, "{mac}");
        }
    }
}
