//! Two switches on bytes of a fuzzer, without a thread: stations come and go, frames have any header,
//! time passes. Who gets a frame is known without a look at the table of the switch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use vbus::abi::venet::{FrameMeta, frame_flag, gso_type};
use vbus::device::Device;

use super::frame::Scratch;
use super::fuzz_frame::frame;
use super::mac::MacAddress;
use super::mac_table::{MacTable, Source};
use super::path::{Backend, Path};
use super::switch::{End, Switch, SwitchDevice, SwitchPort};
use crate::fuzz_ring::{byte, cut, half};

mod station;

use station::Guest;

/// Buses that each switch can be put on.
const NUM_BUSES: u8 = 4;
/// No port: most that a switch has here is two on each bus.
const NO_PORT: u8 = 255;
/// Spreads neighbours: the addresses below are never too many for their set.
const SECRET: u64 = 0x9e37_79b9_7f4a_7c15;

/// The `number`th address of those that frames are from and for: everybody, none, a group, stations.
fn mac(number: u8) -> MacAddress {
    match number % 16 {
        0 => MacAddress([0xff; 6]),
        1 => MacAddress([0; 6]),
        2 => MacAddress([1, 0, 0x5e, 0, 0, 1]),
        n => MacAddress([2, 0, 0, 0, 0, n]),
    }
}

/// Who is to get a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// It is from an address that it must not be from.
    Forged,
    /// Where it came from.
    Nobody,
    One(u8),
    /// All others, or nobody if there was too much of that.
    All,
}

/// One switch, and what is known of it.
struct Side {
    device: SwitchDevice,
    stations: Vec<Station>,
    /// Where addresses that belong to no port were seen last, and in which second.
    seen: BTreeMap<MacAddress, (u8, u32)>,
    num_sent: u64,
    num_received: u64,
    bytes_received: u64,
}

/// A port, and while it is open its client.
struct Station {
    port: Arc<SwitchPort>,
    guest: Option<Guest>,
}

impl Station {
    fn mac(&self) -> Option<MacAddress> {
        match &self.port.end {
            End::Client(port) => Some(port.mac()),
            End::Uplink { .. } => None,
        }
    }

    /// Frames that arrived, frames that found no room.
    fn counts(&self) -> (u64, u64) {
        let metrics = self.port.metrics();
        (metrics.rx_packets.get(), metrics.rx_dropped.get())
    }
}

impl Side {
    fn new() -> Self {
        let switch = Switch::new("fuzz", MacTable::with_secret(SECRET));
        let side = Side {
            device: SwitchDevice(Arc::new(switch)),
            stations: Vec::new(),
            seen: BTreeMap::new(),
            num_sent: 0,
            num_received: 0,
            bytes_received: 0,
        };
        side.set("port_macs", &port_macs(|nth| nth + 3));
        side
    }

    fn switch(&self) -> &Arc<Switch> {
        &self.device.0
    }

    fn set(&self, name: &str, text: &str) {
        for (other, attribute) in self.device.attributes() {
            if other == name {
                // Refusing is a correct answer.
                let _ = attribute.write(text);
            }
        }
    }

    fn read(&self, name: &str) -> u64 {
        let attributes = self.device.attributes();
        let found = attributes.iter().find(|(other, _)| *other == name);
        let text = found.and_then(|(_, attribute)| attribute.read().ok());
        text.and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
    }

    /// Finds the ports that are there now. No address of theirs can be taken by another.
    fn look(&mut self, now: u32) {
        let ports = self.switch().ports();
        let is_there =
            |port: &Arc<SwitchPort>| ports.iter().flatten().any(|other| Arc::ptr_eq(other, port));
        self.stations.retain(|station| is_there(&station.port));
        for port in ports.iter().flatten() {
            let is_known = |station: &Station| Arc::ptr_eq(&station.port, port);
            if !self.stations.iter().any(is_known) {
                self.stations.push(Station {
                    port: Arc::clone(port),
                    guest: None,
                });
            }
        }
        let of_port = |idx: u8| self.stations.iter().any(|one| one.port.port_idx == idx);
        self.seen.retain(|_, (idx, _)| of_port(*idx));
        for station in &self.stations {
            let Some(mac) = station.mac() else { continue };
            self.seen.remove(&mac);
            let ageing = self.switch().ageing.load(Relaxed);
            let source = self.switch().table.learn(mac, NO_PORT, now, ageing);
            assert_eq!(source, Source::Forged, "{mac} is protected");
        }
    }

    fn owners(&self, mac: MacAddress) -> impl Iterator<Item = u8> {
        let owners = self.stations.iter();
        owners
            .filter(move |station| station.mac() == Some(mac))
            .map(|station| station.port.port_idx)
    }

    /// Who is to get a frame that the port `own` sends; `None` if two ports have one of its addresses.
    fn expected(&self, own: u8, to: MacAddress, from: MacAddress, now: u32) -> Option<Expected> {
        let num_owners = |mac| self.owners(mac).count();
        if num_owners(to) > 1 || num_owners(from) > 1 {
            return None;
        }
        if !from.is_station() || self.owners(from).any(|owner| owner != own) {
            return Some(Expected::Forged);
        }
        let ageing = self.switch().ageing.load(Relaxed);
        let seen = || self.seen.get(&to);
        let fresh = || seen().filter(|(_, second)| now.saturating_sub(*second) <= ageing);
        // It is learned before anybody looks for its destination.
        let is_to_itself = to == from;
        let port_idx = match self.owners(to).next() {
            Some(owner) => Some(owner),
            None if is_to_itself => Some(own),
            None => fresh().map(|(port_idx, _)| *port_idx),
        };
        Some(match port_idx {
            Some(port_idx) if port_idx == own => Expected::Nobody,
            Some(port_idx) => Expected::One(port_idx),
            None => Expected::All,
        })
    }

    fn open_or_close(&mut self, nth: u8, caps: (u8, u8)) {
        let switch = Arc::clone(self.switch());
        let nth = usize::from(nth) % self.stations.len().max(1);
        let Some(station) = self.stations.get_mut(nth) else {
            return;
        };
        let End::Client(port) = &station.port.end else {
            return;
        };
        match station.guest.take() {
            Some(guest) => {
                drop(port.set_receiver(None));
                drop(guest);
                port.close();
                switch.closed(port);
            }
            None if port.open().is_ok() => {
                station.guest = Some(Guest::new(&switch, port, caps));
            }
            None => {}
        }
    }
}

/// The addresses of all ports that there can be.
fn port_macs(mut number: impl FnMut(u8) -> u8) -> String {
    let pairs = (0..NUM_BUSES).flat_map(|bus| [format!("b{bus}"), format!("b{bus}/1")]);
    let pairs = (0..).zip(pairs);
    let pairs: Vec<String> = pairs
        .map(|(nth, place)| format!("{place}={}", mac(number(nth))))
        .collect();
    pairs.join(" ")
}

/// Does what `bytes` say to two switches and checks who gets which frame.
///
/// # Panics
/// A frame went astray, an address is not protected, or counters disagree.
pub fn drive(bytes: &[u8]) {
    let mut bytes = bytes;
    let mut sides = [Side::new(), Side::new()];
    let mut scratch = Scratch::new();
    let mut now_ms = 0;
    while !bytes.is_empty() {
        let act = byte(&mut bytes);
        let [first, second] = &mut sides;
        let (side, other) = match act & 0x80 {
            0 => (first, second),
            _ => (second, first),
        };
        let now = Switch::seconds(now_ms);
        match act % 8 {
            0..=2 => send(side, other, &mut scratch, now_ms, &mut bytes),
            3 => {
                let bus = byte(&mut bytes) % NUM_BUSES;
                let _ = side.device.connect_bus(&format!("b{bus}"));
            }
            4 => {
                let bus = byte(&mut bytes) % NUM_BUSES;
                side.device.disconnect_bus(&format!("b{bus}"));
            }
            5 => {
                let nth = byte(&mut bytes);
                side.open_or_close(nth, (byte(&mut bytes), byte(&mut bytes)));
            }
            6 => now_ms += u64::from(half(&mut bytes)) * 100,
            _ => set(side, &mut bytes),
        }
        side.look(now);
    }
    for side in &mut sides {
        end(side);
    }
}

fn set(side: &mut Side, bytes: &mut &[u8]) {
    match byte(bytes) % 8 {
        0 => side.set("mtu", &half(bytes).to_string()),
        1 => side.set("ageing", &byte(bytes).to_string()),
        2 => side.set("flood_rate", &byte(bytes).to_string()),
        3 => side.set("ports_per_bus", &(byte(bytes) % 3).to_string()),
        4 => {
            let len = usize::from(byte(bytes)) % 64;
            let text = String::from_utf8_lossy(cut(bytes, len)).into_owned();
            side.set("port_macs", &text);
        }
        5 => {
            let nth = byte(bytes);
            let nth = usize::from(nth) % side.stations.len().max(1);
            if let Some(guest) = side
                .stations
                .get_mut(nth)
                .and_then(|one| one.guest.as_mut())
            {
                guest.has_bad_buffers = true;
            }
        }
        _ => {
            let before: Vec<_> = side.stations.iter().map(Station::mac).collect();
            side.set("port_macs", &port_macs(|_| byte(bytes)));
            // What was learned at a port is forgotten with its address.
            for (station, before) in side.stations.iter().zip(before) {
                if station.mac() != before {
                    let idx = station.port.port_idx;
                    side.seen.retain(|_, (port_idx, _)| *port_idx != idx);
                }
            }
        }
    }
}

/// Sends one frame from a station of `side`, and looks where it went.
fn send(side: &mut Side, other: &mut Side, scratch: &mut Scratch, now_ms: u64, bytes: &mut &[u8]) {
    let [nth, to, from] = [byte(bytes), byte(bytes), byte(bytes)];
    let nth = usize::from(nth) % side.stations.len().max(1);
    let (to, from) = (mac(to), mac(from));
    let (sent, meta) = frame(to, from, bytes);
    let Some(station) = side.stations.get_mut(nth) else {
        return;
    };
    let Some(mut guest) = station.guest.take() else {
        return;
    };
    let port = Arc::clone(&station.port);
    let (own, now) = (port.port_idx, Switch::seconds(now_ms));
    let expected = side.expected(own, to, from, now);
    let before: Vec<_> = side.stations.iter().map(Station::counts).collect();
    let others: Vec<_> = other.stations.iter().map(Station::counts).collect();
    let dropped_before = port.metrics().tx_dropped.get();
    guest.path.refresh();
    guest.path.now_ms = now_ms;
    let outcome = guest.send(&sent, &meta, scratch, port.metrics());
    if let Some(station) = side.stations.get_mut(nth) {
        station.guest = Some(guest);
    }
    if outcome.is_sent_or_refused() {
        side.num_sent += 1;
    }
    let is_dropped = port.metrics().tx_dropped.get() != dropped_before;
    let expected = match outcome.is_sent {
        true => expected,
        false => Some(Expected::Nobody),
    };
    if outcome.is_sent {
        let rate = side.switch().flood_rate.load(Relaxed);
        match expected {
            Some(Expected::Forged) => assert!(is_dropped, "{from} is another's"),
            Some(Expected::All) => assert!(is_dropped || rate > 0),
            Some(_) => assert!(!is_dropped),
            None => {}
        }
        let is_owned = side.owners(from).next().is_some();
        if from.is_station() && !is_owned {
            side.seen.insert(from, (own, now));
        }
    }
    for (station, before) in side.stations.iter().zip(before) {
        let (packets, dropped) = station.counts();
        let num_copies = packets + dropped - before.0 - before.1;
        let idx = station.port.port_idx;
        let is_for = match expected {
            Some(Expected::One(port_idx)) => Some(port_idx == idx),
            Some(Expected::All) => Some(!is_dropped && idx != own),
            Some(_) => Some(false),
            None => None,
        };
        // One to be segmented is none if it has no payload.
        let has_number = meta.gso_type == gso_type::NONE;
        match is_for {
            Some(true) if has_number => assert_eq!(num_copies, 1, "to port {idx}"),
            Some(false) => assert_eq!(num_copies, 0, "{expected:?}, but to port {idx}"),
            _ => {}
        }
    }
    let same: Vec<_> = other.stations.iter().map(Station::counts).collect();
    assert_eq!(same, others, "nothing goes to another switch");
    receive(side, &sent, &meta);
}

/// Looks at what has arrived: nothing but `sent`, or parts of it.
fn receive(side: &mut Side, sent: &[u8], meta: &FrameMeta) {
    let is_as_it_was = meta.flags.get() & frame_flag::NEEDS_CSUM == 0;
    for station in &mut side.stations {
        let Some(guest) = &mut station.guest else {
            continue;
        };
        for received in guest.receive() {
            side.num_received += 1;
            side.bytes_received += received.len() as u64;
            assert!(received.len() <= sent.len(), "longer than it was");
            assert_eq!(received.get(..12), sent.get(..12), "its addresses");
            assert!(!is_as_it_was || received == sent, "its bytes");
        }
    }
}

/// All counters agree, and nothing is left of ports that are gone.
fn end(side: &mut Side) {
    for nth in 0..NUM_BUSES {
        side.device.disconnect_bus(&format!("b{nth}"));
    }
    while let Some(nth) = side.stations.iter().position(|one| one.guest.is_some()) {
        side.open_or_close(u8::try_from(nth).unwrap_or(0), (0, 0));
        side.look(0);
    }
    assert!(side.switch().ports().iter().all(Option::is_none));
    assert_eq!(side.switch().table.all(0, u32::MAX), []);
    assert_eq!(side.read("rx_packets"), side.num_received);
    assert_eq!(side.read("rx_bytes"), side.bytes_received);
    let num_taken = side.read("tx_packets") + side.read("tx_errors");
    assert_eq!(num_taken, side.num_sent);
}

#[cfg(test)]
mod tests;
