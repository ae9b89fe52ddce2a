//! Which received frames the driver wants to see (VIRTIO 1.2 §5.1.6.5.1, §5.1.6.5.2).
//!
//! Linux can filter in the TAP itself, but that filter outlives us on a persistent TAP when we are
//! killed, so it is done here: one look at six bytes of a frame that is in guest memory already.

/// Most addresses per list; a longer list means "all of that kind".
pub(super) const MAX_ADDRESSES: usize = 64;

/// Destination addresses to let through. Starts promiscuous, as the driver expects before its
/// first command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MacFilter {
    pub(super) mac: [u8; 6],
    pub(super) is_promiscuous: bool,
    pub(super) is_all_multicast: bool,
    unicast: AddressList,
    multicast: AddressList,
}

/// A short list of addresses, or all there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct AddressList {
    addresses: Vec<[u8; 6]>,
    has_overflowed: bool,
}

impl AddressList {
    fn new(addresses: &[[u8; 6]]) -> Self {
        let has_overflowed = addresses.len() > MAX_ADDRESSES;
        AddressList {
            addresses: if has_overflowed {
                Vec::new()
            } else {
                addresses.to_vec()
            },
            has_overflowed,
        }
    }

    fn contains(&self, address: &[u8; 6]) -> bool {
        self.has_overflowed || self.addresses.contains(address)
    }
}

impl MacFilter {
    /// A filter that lets everything through until the driver says otherwise.
    pub(super) fn new(mac: [u8; 6]) -> Self {
        MacFilter {
            mac,
            is_promiscuous: true,
            is_all_multicast: false,
            unicast: AddressList::default(),
            multicast: AddressList::default(),
        }
    }

    /// Replaces the tables of further addresses.
    pub(super) fn set_tables(&mut self, unicast: &[[u8; 6]], multicast: &[[u8; 6]]) {
        self.unicast = AddressList::new(unicast);
        self.multicast = AddressList::new(multicast);
    }

    /// Whether a frame to `destination` reaches the guest.
    pub(super) fn accepts(&self, destination: &[u8; 6]) -> bool {
        let [first, ..] = destination;
        if self.is_promiscuous {
            true
        } else if first & 1 == 1 {
            *destination == [0xff; 6]
                || self.is_all_multicast
                || self.multicast.contains(destination)
        } else {
            *destination == self.mac || self.unicast.contains(destination)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];

    fn strict() -> MacFilter {
        MacFilter {
            is_promiscuous: false,
            ..MacFilter::new(OWN)
        }
    }

    #[test]
    fn new_filter_accepts_everything() {
        assert!(MacFilter::new(OWN).accepts(&OTHER));
        assert!(MacFilter::new(OWN).accepts(&GROUP));
    }

    #[test]
    fn strict_filter_accepts_only_its_own_address_and_broadcast() {
        assert!(strict().accepts(&OWN));
        assert!(strict().accepts(&[0xff; 6]));
        assert!(!strict().accepts(&OTHER));
        assert!(!strict().accepts(&GROUP));
    }

    #[test]
    fn tables_add_addresses_of_their_kind() {
        let mut filter = strict();
        filter.set_tables(&[OTHER], &[GROUP]);

        assert!(filter.accepts(&OTHER));
        assert!(filter.accepts(&GROUP));
        assert!(!filter.accepts(&[2, 0, 0, 0, 0, 3]));
    }

    #[test]
    fn overlong_table_accepts_all_of_its_kind() {
        let mut filter = strict();
        filter.set_tables(&[], &[GROUP; MAX_ADDRESSES + 1]);

        assert!(filter.accepts(&[1, 0, 0x5e, 9, 9, 9]));
        assert!(!filter.accepts(&OTHER));
    }

    #[test]
    fn all_multicast_leaves_unicast_strict() {
        let mut filter = strict();
        filter.is_all_multicast = true;

        assert!(filter.accepts(&GROUP));
        assert!(!filter.accepts(&OTHER));
    }
}
