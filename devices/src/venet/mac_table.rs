//! Who is behind which port: a table that all ports read and write without a lock.
//!
//! Sets of [`WAYS`] entries; an entry is one word, so a reader finds all of it or nothing. Which set
//! an address falls into depends on a secret, so nobody can aim at a set.
//!
//! No port pushes out what another has learned: it replaces only what is too old, its own, or the
//! oldest of a port that has several entries in the same set; and it has at most
//! [`MAX_MACS_PER_PORT`]. The addresses that the ports were assigned stay, and nobody takes them.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::mac::MacAddress;

const SETS: usize = 1024;
const WAYS: usize = 4;
/// 2⁶⁴ divided by the golden ratio: its multiples are far apart.
const MIXER: u64 = 0x9e37_79b9_7f4a_7c15;
/// Most ports, uplink included.
pub(super) const MAX_PORTS: usize = 256;
/// Most addresses learned at one port.
pub(super) const MAX_MACS_PER_PORT: u32 = 512;

const MAC_BITS: u32 = 48;
const PORT_BITS: u32 = 8;
const ASSIGNED: u64 = 1 << (MAC_BITS + PORT_BITS);
const IN_USE: u64 = 1 << (MAC_BITS + PORT_BITS + 1);
const _: () = assert!(MAX_PORTS == 1 << PORT_BITS);

#[derive(Debug, Default)]
struct Way {
    /// Address, port and flags; 0 if free.
    entry: AtomicU64,
    /// Second in which it was seen last.
    seen: AtomicU32,
}

/// The table of a switch.
#[derive(Debug)]
pub(super) struct MacTable {
    ways: Vec<Way>,
    counts: Vec<AtomicU32>,
    secret: u64,
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Learned {
    pub(super) mac: MacAddress,
    pub(super) port_idx: u8,
    pub(super) is_assigned: bool,
    /// Seconds since it was seen last.
    pub(super) age: u32,
}

/// Whether a frame may come from where it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Learned now or before, or there is no room.
    Good,
    /// The address was assigned to another port.
    Forged,
}

fn number(mac: MacAddress) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

fn entry_of(mac: MacAddress, port_idx: u8) -> u64 {
    IN_USE | u64::from(port_idx) << MAC_BITS | number(mac)
}

fn port_of(entry: u64) -> u8 {
    let [_, port_idx, ..] = entry.to_be_bytes();
    port_idx
}

fn is_for(entry: u64, mac: MacAddress) -> bool {
    entry & IN_USE != 0 && entry & ((1 << MAC_BITS) - 1) == number(mac)
}

impl MacTable {
    pub(super) fn new() -> Self {
        // The keys of a new `RandomState` are random.
        Self::with_secret(RandomState::new().hash_one(0))
    }

    /// A table whose addresses fall into the sets that `secret` says.
    pub(super) fn with_secret(secret: u64) -> Self {
        MacTable {
            ways: (0..SETS * WAYS).map(|_| Way::default()).collect(),
            counts: (0..MAX_PORTS).map(|_| AtomicU32::new(0)).collect(),
            // Odd, so that nothing is lost.
            secret: secret | 1,
        }
    }

    fn set(&self, mac: MacAddress) -> &[Way] {
        // The high bits of a product depend on all bits below. Of the first one not enough: with one
        // secret of a thousand, neighbours would all be in one set.
        let product = number(mac).wrapping_mul(self.secret);
        let hash = (product ^ product >> 32).wrapping_mul(MIXER) >> (64 - SETS.trailing_zeros());
        let start = usize::try_from(hash).unwrap_or(0) * WAYS;
        self.ways.get(start..start + WAYS).unwrap_or_default()
    }

    fn count(&self, entry: u64) -> Option<&AtomicU32> {
        self.counts.get(usize::from(port_of(entry)))
    }

    /// Replaces `old`, unless another was faster.
    fn replace(&self, way: &Way, old: u64, new: u64, now: u32) -> bool {
        if way
            .entry
            .compare_exchange(old, new, Relaxed, Relaxed)
            .is_err()
        {
            return false;
        }
        way.seen.store(now, Relaxed);
        for (entry, change) in [(old, u32::MAX), (new, 1)] {
            if entry & IN_USE != 0
                && entry & ASSIGNED == 0
                && let Some(count) = self.count(entry)
            {
                count.fetch_add(change, Relaxed);
            }
        }
        true
    }

    /// The port that `mac` is behind, if it was seen in the last `ageing` seconds.
    pub(super) fn lookup(&self, mac: MacAddress, now: u32, ageing: u32) -> Option<u8> {
        for way in self.set(mac) {
            let entry = way.entry.load(Relaxed);
            if is_for(entry, mac) {
                let is_fresh = now.saturating_sub(way.seen.load(Relaxed)) <= ageing;
                return (entry & ASSIGNED != 0 || is_fresh).then_some(port_of(entry));
            }
        }
        None
    }

    /// Notes that a frame from `mac` came in at `port_idx`.
    pub(super) fn learn(&self, mac: MacAddress, port_idx: u8, now: u32, ageing: u32) -> Source {
        let set = self.set(mac);
        for way in set {
            let entry = way.entry.load(Relaxed);
            if !is_for(entry, mac) {
                continue;
            }
            if port_of(entry) == port_idx {
                // Written once a second, so that others who read it are not disturbed.
                if way.seen.load(Relaxed) != now {
                    way.seen.store(now, Relaxed);
                }
            } else if entry & ASSIGNED != 0 {
                return Source::Forged;
            } else if self.has_room(port_idx) {
                self.replace(way, entry, entry_of(mac, port_idx), now);
            }
            return Source::Good;
        }
        if self.has_room(port_idx)
            && let Some(way) = place(set, port_idx, now, ageing)
        {
            let old = way.entry.load(Relaxed);
            self.replace(way, old, entry_of(mac, port_idx), now);
        }
        Source::Good
    }

    fn has_room(&self, port_idx: u8) -> bool {
        self.counts
            .get(usize::from(port_idx))
            .is_some_and(|count| count.load(Relaxed) < MAX_MACS_PER_PORT)
    }

    /// Notes that `mac` belongs to `port_idx` until it is forgotten; false if there is no place, or if it
    /// belongs to another.
    pub(super) fn assign(&self, mac: MacAddress, port_idx: u8) -> bool {
        let set = self.set(mac);
        let new = entry_of(mac, port_idx) | ASSIGNED;
        let same = |way: &&Way| is_for(way.entry.load(Relaxed), mac);
        let learned = |way: &&Way| way.entry.load(Relaxed) & ASSIGNED == 0;
        let Some(way) = set.iter().find(same).or_else(|| set.iter().find(learned)) else {
            return false;
        };
        let old = way.entry.load(Relaxed);
        old == new || (old & ASSIGNED == 0 && self.replace(way, old, new, 0))
    }

    /// Forgets all that is behind `port_idx`.
    pub(super) fn forget_port(&self, port_idx: u8) {
        for way in &self.ways {
            let entry = way.entry.load(Relaxed);
            if entry & IN_USE != 0 && port_of(entry) == port_idx {
                self.replace(way, entry, 0, 0);
            }
        }
    }

    /// All entries that are not too old, in no order.
    pub(super) fn all(&self, now: u32, ageing: u32) -> Vec<Learned> {
        let line = |way: &Way| {
            let entry = way.entry.load(Relaxed);
            let is_assigned = entry & ASSIGNED != 0;
            let age = now.saturating_sub(way.seen.load(Relaxed));
            let [_, _, mac @ ..] = (entry & ((1 << MAC_BITS) - 1)).to_be_bytes();
            let is_there = entry & IN_USE != 0 && (is_assigned || age <= ageing);
            is_there.then_some(Learned {
                mac: MacAddress(mac),
                port_idx: port_of(entry),
                is_assigned,
                age: if is_assigned { 0 } else { age },
            })
        };
        self.ways.iter().filter_map(line).collect()
    }
}

/// Where in `set` the port may put a new entry.
fn place(set: &[Way], port_idx: u8, now: u32, ageing: u32) -> Option<&Way> {
    let entry = |way: &Way| way.entry.load(Relaxed);
    let seen = |way: &Way| way.seen.load(Relaxed);
    let free = set.iter().find(|way| entry(way) & IN_USE == 0);
    let learned = || set.iter().filter(|way| entry(way) & ASSIGNED == 0);
    let old = || learned().find(|way| now.saturating_sub(seen(way)) > ageing);
    let own = || {
        learned()
            .filter(|way| port_of(entry(way)) == port_idx)
            .min_by_key(|way| seen(way))
    };
    let of_the_greedy = || {
        learned()
            .filter(|way| {
                let port_idx = port_of(entry(way));
                let same = |other: &&Way| port_of(entry(other)) == port_idx;
                learned().filter(same).count() > 1
            })
            .min_by_key(|way| seen(way))
    };
    free.or_else(old).or_else(own).or_else(of_the_greedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGEING: u32 = 300;

    fn mac(n: u32) -> MacAddress {
        let [a, b, c, d] = n.to_be_bytes();
        MacAddress([2, 0, a, b, c, d])
    }

    #[test]
    fn address_is_found_where_it_was_seen_last() {
        let table = MacTable::new();

        table.learn(mac(1), 3, 0, AGEING);
        assert_eq!(table.lookup(mac(1), 0, AGEING), Some(3));
        table.learn(mac(1), 4, 1, AGEING);

        assert_eq!(table.lookup(mac(1), 1, AGEING), Some(4));
        assert_eq!(table.lookup(mac(2), 1, AGEING), None);
        assert_eq!(table.counts[3].load(Relaxed), 0);
        assert_eq!(table.counts[4].load(Relaxed), 1);
    }

    #[test]
    fn neighbours_find_a_place_whatever_the_secret() {
        for secret in [1, 3, u64::MAX, 1 << 63, 1 << 32] {
            let table = MacTable::with_secret(secret);

            for n in 0..64 {
                assert!(table.assign(mac(n), 1), "{secret:#x}, {n}");
            }
        }
    }

    #[test]
    fn address_that_is_silent_for_too_long_is_forgotten() {
        let table = MacTable::new();
        table.learn(mac(1), 3, 10, AGEING);

        assert_eq!(table.lookup(mac(1), 310, AGEING), Some(3));
        assert_eq!(table.lookup(mac(1), 311, AGEING), None);

        table.learn(mac(1), 3, 311, AGEING);
        assert_eq!(table.lookup(mac(1), 311, AGEING), Some(3));
    }

    #[test]
    fn port_learns_no_more_than_its_share() {
        let table = MacTable::new();

        for n in 0..100_000 {
            table.learn(mac(n), 1, 0, AGEING);
        }

        let num_learned = table.all(0, AGEING).len();
        assert_eq!(num_learned, MAX_MACS_PER_PORT as usize);
    }

    #[test]
    fn no_flood_of_addresses_pushes_others_out() {
        let table = MacTable::new();
        for port_idx in 1..=9 {
            table.learn(mac(u32::from(port_idx)), port_idx, 0, AGEING);
        }

        for n in 0..100_000 {
            table.learn(mac(1000 + n), 0, 1, AGEING);
        }

        for port_idx in 1..=9 {
            let found = table.lookup(mac(u32::from(port_idx)), 1, AGEING);
            assert_eq!(found, Some(port_idx));
        }
    }

    #[test]
    fn full_table_has_room_for_a_port_that_has_little() {
        let table = MacTable::new();
        for port_idx in 0..=200 {
            for n in 0..MAX_MACS_PER_PORT {
                table.learn(mac(u32::from(port_idx) << 16 | n), port_idx, 0, AGEING);
            }
        }
        assert!(table.all(0, AGEING).len() > SETS * WAYS * 9 / 10);

        let new = mac(0xffff_0000);
        let has_room = place(table.set(new), 255, 1, AGEING).is_some();
        table.learn(new, 255, 1, AGEING);

        // In a set of four ports with one entry each, all are as entitled as the new one.
        assert_eq!(table.lookup(new, 1, AGEING).is_some(), has_room);
    }

    #[test]
    fn assigned_address_is_nobody_elses_and_never_old() {
        let table = MacTable::new();
        assert!(table.assign(mac(1), 3));

        assert_eq!(table.learn(mac(1), 4, 0, AGEING), Source::Forged);
        assert_eq!(table.learn(mac(1), 3, 0, AGEING), Source::Good);
        assert_eq!(table.lookup(mac(1), 9999, AGEING), Some(3));
        assert!(!table.assign(mac(1), 4));
        assert!(table.assign(mac(1), 3));

        table.forget_port(3);
        assert_eq!(table.lookup(mac(1), 0, AGEING), None);
        assert!(table.counts.iter().all(|count| count.load(Relaxed) == 0));
    }
}
