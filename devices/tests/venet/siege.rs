//! Attackers at full speed, on several threads each, and neighbours on the same switch whose frames all
//! arrive as they were sent.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vbus::abi::venet::{VERSION, cap_group, frame_flag, func, rx_cap, shm_id, tx_cap};
use vbus::abi::{RING_SIGNAL_OFFSET, RING_SLOTS_OFFSET};
use vbus::memory::{Region, Words};
use vbus::ring::{North, Slot};
use vbus::signal::{self, Side, SignalSender};
use vbus::test_utils::EventLog;
use vbus::verbs::{Event, Handle, InterfaceId, ShmRequest, Verbs};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::fixture::*;
use crate::setup::{negotiate, ram, ring};

const NUM_SLOTS: u32 = 64;
/// Times that each attacker comes, is cut off or goes.
const NUM_ROUNDS: u64 = 30;
/// Deeds of each of its threads each time.
const NUM_DEEDS: u64 = 2000;
/// Frames between the neighbours.
const NUM_FRAMES: u64 = 3000;
const MEMORY_BYTES: u64 = 0x10_0000;

/// Numbers without end, the same ones each time (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// An address in the memory, at its ends, or anywhere.
    fn addr(&mut self) -> u64 {
        match self.below(16) {
            0 => BASE + MEMORY_BYTES - self.below(100),
            1 => BASE - self.below(100),
            2 => 0_u64.wrapping_sub(self.below(100)),
            3 => self.next(),
            _ => BASE + self.below(MEMORY_BYTES / 2),
        }
    }
}

/// A ring, with all that its owner can do wrong with it.
struct Weapon {
    region: Region,
    sender: SignalSender<Region>,
    doorbell: EventFd,
}

impl Weapon {
    fn forge(id: u32) -> (Self, North, ShmRequest) {
        let (request, north, region) = ring(id, NUM_SLOTS);
        let attached = signal::attach(region.clone(), RING_SIGNAL_OFFSET, Side::North);
        let doorbell = &request.signal.as_ref().unwrap().doorbell;
        let weapon = Weapon {
            region,
            sender: attached.unwrap().0,
            doorbell: doorbell.try_clone().unwrap(),
        };
        (weapon, north, request)
    }

    fn ring(&self) {
        let _ = self.sender.inject();
        self.doorbell.write(1).unwrap();
    }

    /// Writes anything anywhere, and rings without end.
    fn wield(&self, random: &mut Random, is_over: &AtomicBool) {
        let num_words = (self.region.len() / 8) as u64;
        for _ in 0..NUM_DEEDS {
            if is_over.load(Relaxed) {
                return;
            }
            match random.below(8) {
                0 => {
                    let word = random.below(num_words) as usize * 8;
                    self.region.store(word, random.next(), Relaxed);
                }
                1 => {
                    // The turn is right at least in the first lap.
                    let slot = random.below(NUM_SLOTS.into()) as usize;
                    let offset = RING_SLOTS_OFFSET + slot * 32;
                    self.region.store(offset, random.addr(), Relaxed);
                    let control = random.below(70_000) | 1 << 48;
                    self.region.store(offset + 24, control, Relaxed);
                }
                _ => self.ring(),
            }
        }
    }
}

/// One life of an attacker: comes by the rules, sends frames good and bad, while its other threads
/// write to its rings. True if it was cut off.
fn attack(lab: &Lab, bus: &str, random: &mut Random) -> bool {
    let memory = ram();
    let (client, events) = lab.client_with_events(bus, memory.clone());
    let mut handle = Handle(0);
    // The one before may still be on its way out.
    wait_for("the interface is free", || {
        client
            .open(InterfaceId(0), VERSION)
            .map(|opened| handle = opened)
            != Err(Errno::BUSY)
    });
    let is_over = AtomicBool::new(false);
    let (tx, mut north, tx_request) = Weapon::forge(shm_id::TX_RING);
    let (rx, mut buffers, rx_request) = Weapon::forge(shm_id::RX_RING);
    let pool = Region::new_private(4096).unwrap();
    let pool_request = ShmRequest {
        id: shm_id::TX_SEGMENTS,
        priority: 0,
        cookie: shm_id::TX_SEGMENTS.into(),
        region: pool.clone(),
        signal: None,
    };
    negotiate(&client, handle, cap_group::TX, tx_cap::SG | tx_cap::CSUM).unwrap();
    negotiate(&client, handle, cap_group::RX, rx_cap::MERGED).unwrap();
    for request in [tx_request, rx_request, pool_request] {
        client.shm(handle, request).unwrap();
    }
    buffers.publish(&vec![buffer(BASE + MEMORY_BYTES / 2); 32]);
    client.call(handle, func::LINK_UP, &mut []).unwrap();

    let mut is_cut_off = false;
    thread::scope(|scope| {
        let seeds = [random.next() | 1, random.next() | 1];
        let is_over = &is_over;
        // They hold back at first, so that frames flow before the end.
        let hold_back = Duration::from_micros(random.below(2000));
        for (weapon, seed) in [&tx, &rx].into_iter().zip(seeds) {
            scope.spawn(move || {
                thread::sleep(hold_back);
                weapon.wield(&mut Random(seed), is_over);
            });
        }
        for _ in 0..NUM_DEEDS {
            let one = frame(
                any_mac(random),
                mac(random.below(8) as u8),
                60 + random.below(1400) as usize,
            );
            memory.write_slice(&one, GuestAddress(BASE)).unwrap();
            let mut slot = buffer(BASE);
            slot.len = one.len() as u32;
            if random.below(64) == 0 {
                let words = [random.addr(), random.below(2000)];
                for (nth, word) in words.into_iter().enumerate() {
                    pool.store(nth * 8, word, Relaxed);
                }
                slot.addr = random.below(300);
                slot.meta[1] = u64::from(frame_flag::SG) | random.below(40) << 32;
            }
            let _ = north.reclaim();
            north.publish(&[slot]);
            tx.ring();
            is_cut_off = was_cut_off(&events);
            if is_cut_off {
                break;
            }
        }
        is_over.store(true, Relaxed);
    });
    end(&client, handle, random);
    is_cut_off || was_cut_off(&events)
}

fn buffer(addr: u64) -> Slot {
    Slot {
        addr,
        len: 2048,
        meta: [0; 2],
    }
}

fn any_mac(random: &mut Random) -> alacrity_devices::venet::MacAddress {
    match random.below(4) {
        0 => BROADCAST,
        _ => mac(random.below(8) as u8),
    }
}

/// Closes, or just goes.
fn end(client: &impl Verbs, handle: Handle, random: &mut Random) {
    if random.below(2) == 0 {
        client.close(handle).unwrap();
        assert!(client.close(handle).is_err());
    }
}

/// True if the events that came since the last time say so.
fn was_cut_off(events: &EventLog) -> bool {
    let is_drop = |event: &Event| matches!(event, Event::DeviceDropped { .. });
    events.take().iter().any(is_drop)
}

/// The frame number `n` of the neighbours.
fn numbered(to: &Station, from: &Station, n: u64) -> Vec<u8> {
    let mut bytes = frame(
        to.mac().unwrap(),
        from.mac().unwrap(),
        64 + n as usize % 1400,
    );
    bytes[14..22].copy_from_slice(&n.to_le_bytes());
    bytes
}

#[test]
fn neighbours_of_attackers_get_all_their_frames_intact() {
    let attackers = ["x0", "x1", "x2"];
    let lab = Lab::with("venet-switch", &[&attackers[..], &["a", "b"]].concat());
    let [mut a, mut b] = ["a", "b"].map(|bus| lab.station(bus, small()));
    let num_cut_off = AtomicU64::new(0);

    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (nth, bus) in attackers.iter().enumerate() {
            let (lab, num_cut_off) = (&lab, &num_cut_off);
            threads.push(scope.spawn(move || {
                let mut random = Random(0x9e37_79b9_7f4a_7c15 + nth as u64);
                for _ in 0..NUM_ROUNDS {
                    num_cut_off.fetch_add(attack(lab, bus, &mut random).into(), Relaxed);
                }
            }));
        }
        // Until all have had their say, and all frames arrived.
        let start = Instant::now();
        let mut n = 0;
        while n < NUM_FRAMES || !threads.iter().all(|thread| thread.is_finished()) {
            let wanted = numbered(&b, &a, n);
            let mut has_come = false;
            while !has_come {
                assert_eq!(a.send(&[&wanted]).unwrap(), 1);
                settle(&mut a);
                // What others sent to all may have taken the buffers: then it is sent again.
                has_come = drain(&mut b).iter().any(|one| one.0 == wanted);
                drain(&mut a);
                assert!(start.elapsed() < 10 * DEADLINE, "frame {n}");
            }
            n += 1;
        }
    });

    let num_cut_off = num_cut_off.into_inner();
    let most = attackers.len() as u64 * NUM_ROUNDS;
    assert!((most / 3..=most).contains(&num_cut_off), "{num_cut_off}");
    assert!(lab.count("faults") >= num_cut_off);
    for bus in ["a", "b"] {
        assert_eq!(lab.port_count(bus, "rx_errors"), 0);
        assert_eq!(lab.port_count(bus, "tx_errors"), 0);
    }
    wait_for("attackers are gone", || lab.count("connections") == 2);
}
