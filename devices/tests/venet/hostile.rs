//! Clients that break the rules.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alacrity_devices::GuestRam;
use alacrity_devices::venet::{LoopbackClass, SwitchClass};
use proptest::prelude::*;
use vbus::abi::venet::{
    Capabilities, VERSION, cap_group, event_cap, frame_flag, func, shm_id, tx_cap,
};
use vbus::abi::{RING_SIGNAL_OFFSET, RING_SLOTS_OFFSET};
use vbus::device::{Connection, Device, DeviceClass, FaultReporter, Peer, Shm, ShmSignal};
use vbus::memory::{Region, Words};
use vbus::ring::{Geometry, North, Slot};
use vbus::signal::{self, Side, SignalSender};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::IntoBytes;

use crate::fixture::*;

const MEMORY_BYTES: u64 = 0x4000;
const NUM_SLOTS: u32 = 16;

#[derive(Default)]
struct Faults(AtomicUsize);

impl FaultReporter for Faults {
    fn report(&self, _reason: &dyn fmt::Display) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct RawRing {
    north: North,
    region: Region,
    sender: SignalSender<Region>,
    doorbell: EventFd,
}

impl RawRing {
    fn ring(&self) {
        let _ = self.sender.inject();
        self.doorbell.write(1).unwrap();
    }

    fn publish(&mut self, slots: &[Slot]) -> usize {
        let num_slots = self.north.publish(slots);
        self.ring();
        num_slots
    }
}

/// A client that writes to its rings as it likes.
struct Raw {
    connection: Arc<dyn Connection>,
    rx: RawRing,
    tx: RawRing,
    pool: Region,
    faults: Arc<Faults>,
    memory: GuestRam,
    /// Registered, so that the events ring is served too.
    _events: RawRing,
}

fn raw_ring(connection: &dyn Connection, id: u32) -> RawRing {
    let geometry = Geometry::new(NUM_SLOTS).unwrap();
    let region = Region::new_private(geometry.len_bytes()).unwrap();
    let north = North::create(region.clone(), geometry).unwrap();
    let attach = |side| signal::attach(region.clone(), RING_SIGNAL_OFFSET, side).unwrap();
    let (south_sender, south_receiver) = attach(Side::South);
    let doorbell = EventFd::new(0).unwrap();
    let signal = ShmSignal {
        sender: south_sender,
        receiver: south_receiver,
        doorbell: doorbell.try_clone().unwrap(),
        wake_up: Arc::new(EventFd::new(0).unwrap()),
    };
    let shm = Shm::detached(id, region.clone(), Some(signal));
    connection.shm(shm).unwrap();
    RawRing {
        north,
        sender: attach(Side::North).0,
        region,
        doorbell,
    }
}

fn connect(device: &dyn Device, bus: &str) -> Raw {
    let offer = device.connect_bus(bus).unwrap().remove(0);
    let faults = Arc::new(Faults::default());
    let ranges = [(GuestAddress(BASE), MEMORY_BYTES as usize)];
    let memory = GuestRam::from_ranges(&ranges).unwrap();
    let peer = Peer {
        version: VERSION,
        memory: Arc::new(memory.clone()),
        faults: Arc::clone(&faults) as _,
    };
    let connection = offer.interface.connect(peer).unwrap();
    for (group, bits) in [
        (cap_group::TX, u32::MAX),
        (cap_group::RX, tx_cap::SG),
        (cap_group::EVENTS, event_cap::LINK_STATE),
    ] {
        let mut caps = Capabilities {
            group: group.into(),
            bits: bits.into(),
        };
        connection
            .call(func::NEGOTIATE, caps.as_mut_bytes())
            .unwrap();
    }
    let pool = Region::new_private(4096).unwrap();
    let shm = Shm::detached(shm_id::TX_SEGMENTS, pool.clone(), None);
    connection.shm(shm).unwrap();
    let raw = Raw {
        rx: raw_ring(&*connection, shm_id::RX_RING),
        tx: raw_ring(&*connection, shm_id::TX_RING),
        _events: raw_ring(&*connection, shm_id::EVENT_RING),
        pool,
        faults,
        memory,
        connection,
    };
    raw.connection.call(func::LINK_UP, &mut []).unwrap();
    raw
}

fn loopback() -> Raw {
    connect(&*LoopbackClass.create("dev").unwrap(), "b")
}

impl Raw {
    fn num_faults(&self) -> usize {
        self.faults.0.load(Ordering::SeqCst)
    }

    /// Takes everything back and sends a good frame round.
    fn check_that_it_works(&mut self) {
        self.wait_for_tx();
        self.connection.call(func::FLUSH_RX, &mut []).unwrap();
        self.rx.north.reclaim().unwrap();
        assert_eq!(self.rx.north.room(), NUM_SLOTS);
        let buffer = Slot {
            addr: BASE,
            len: 2048,
            meta: [0; 2],
        };
        self.rx.publish(&[buffer]);
        let good = Slot {
            addr: BASE + 0x1000,
            len: 60,
            meta: [0; 2],
        };
        self.tx.publish(&[good]);
        let mut back = [Slot::default()];
        let rx = &mut self.rx.north;
        wait_for("a good frame comes back", || {
            rx.reap(&mut back).unwrap() == 1
        });
        assert_eq!(back[0].len, 60);
        self.wait_for_tx();
    }

    fn wait_for_tx(&mut self) {
        let tx = &mut self.tx.north;
        wait_for("all slots come back", || {
            tx.reclaim().unwrap();
            tx.outstanding() == 0
        });
    }
}

/// An address inside of the client's memory, at its ends, or anywhere.
fn any_addr() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0..MEMORY_BYTES).prop_map(|offset| BASE + offset),
        Just(BASE + MEMORY_BYTES - 1),
        Just(u64::MAX),
        Just(u64::MAX - 60),
        0..4096u64,
        any::<u64>(),
    ]
}

fn any_len() -> impl Strategy<Value = u32> {
    prop_oneof![0..100u32, 0..70_000u32, Just(u32::MAX), any::<u32>()]
}

/// Words of a `FrameMeta`, mostly close to right ones.
fn any_meta() -> impl Strategy<Value = [u64; 2]> {
    let near = (0..60u64, 0..20u64, 0..2000u64, 0..16u64, 0..5u64, 0..40u64).prop_map(
        |(start, offset, gso_size, flags, gso_type, count)| {
            [
                start | offset << 16 | gso_size << 32,
                flags | gso_type << 16 | count << 32,
            ]
        },
    );
    prop_oneof![Just([0; 2]), near, any::<[u64; 2]>()]
}

fn any_slots() -> impl Strategy<Value = Vec<Slot>> {
    let slot = (any_addr(), any_len(), any_meta());
    let slot = slot.prop_map(|(addr, len, meta)| Slot { addr, len, meta });
    prop::collection::vec(slot, 0..NUM_SLOTS as usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_slot_harms_the_device(
        tx in any_slots(),
        rx in any_slots(),
        segments in prop::collection::vec((any_addr(), any_len()), 0..64),
    ) {
        let mut raw = loopback();
        for (nth, (addr, len)) in segments.iter().enumerate() {
            let mut bytes = addr.to_le_bytes().to_vec();
            bytes.extend(u64::from(*len).to_le_bytes());
            raw.pool.write(nth * 16, &bytes).unwrap();
        }

        raw.rx.publish(&rx);
        raw.tx.publish(&tx);

        let (tx, faults) = (&mut raw.tx.north, &raw.faults.0);
        wait_for("all slots come back, or none will", || {
            tx.reclaim().unwrap();
            tx.outstanding() == 0 || faults.load(Ordering::SeqCst) > 0
        });
        match raw.num_faults() {
            0 => raw.check_that_it_works(),
            num_faults => assert_eq!(num_faults, 1),
        }
        raw.connection.close();
    }

    #[test]
    fn any_word_in_a_ring_cuts_off_or_does_nothing(
        words in prop::collection::vec((any::<bool>(), 0..NUM_SLOTS as usize * 4, any::<u64>()), 1..40),
        tx in any_slots(),
    ) {
        let mut raw = loopback();
        raw.rx.publish(&[Slot { addr: BASE, len: 2048, meta: [0; 2] }; 4]);
        for (is_tx, word, value) in words {
            let ring = if is_tx { &raw.tx } else { &raw.rx };
            ring.region.store(RING_SLOTS_OFFSET + word * 8, value, Ordering::SeqCst);
            ring.ring();
        }
        raw.tx.publish(&tx);
        // Stops the worker, which so has seen all of it, or is in the middle of it.
        raw.connection.close();
        assert!(raw.num_faults() <= 1);
    }
}

fn corrupt(ring: &RawRing) {
    // Turn 0x7777 is none that can be.
    let control = RING_SLOTS_OFFSET + 24;
    for slot_idx in 0..NUM_SLOTS as usize {
        let offset = control + slot_idx * 32;
        ring.region.store(offset, 0x7777 << 48, Ordering::SeqCst);
    }
    ring.ring();
}

/// A slot for a frame in `count` segments, the first at `addr` of the pool.
fn scattered(addr: u64, count: u64) -> Slot {
    Slot {
        addr,
        len: 60,
        meta: [0, u64::from(frame_flag::SG) | count << 32],
    }
}

#[test]
fn frame_that_is_not_all_in_memory_cuts_its_sender_off() {
    let plain = |addr| Slot {
        addr,
        len: 60,
        meta: [0; 2],
    };
    let bad = [
        plain(BASE + MEMORY_BYTES - 59),
        plain(BASE - 1),
        plain(u64::MAX),
        scattered(0, 1),    // a segment of no bytes
        scattered(16, 1),   // one that is not in memory
        scattered(32, 1),   // one with reserved bits
        scattered(48, 2),   // two that sum up to something else
        scattered(4096, 1), // behind the pool
        scattered(0, 33),
    ];
    for slot in bad {
        let mut raw = loopback();
        let end = BASE + MEMORY_BYTES;
        let segments = [0, 0, end, 60, BASE, 60 | 1 << 32, BASE, 60, BASE, 60];
        for (nth, word) in segments.into_iter().enumerate() {
            raw.pool.store(nth * 8, word, Ordering::SeqCst);
        }
        raw.tx.publish(&[slot]);

        wait_for("the report", || raw.num_faults() > 0);
        raw.connection.close();
        assert_eq!(raw.num_faults(), 1, "{slot:?}");
    }
}

#[test]
fn buffer_that_is_not_all_in_memory_cuts_its_owner_off() {
    for (addr, len) in [(BASE - 1, 60), (BASE, 0), (BASE, u32::MAX), (u64::MAX, 60)] {
        let mut raw = loopback();
        let meta = [0; 2];
        raw.rx.publish(&[Slot { addr, len, meta }]);
        raw.tx.publish(&[Slot {
            addr: BASE,
            len: 60,
            meta,
        }]);

        wait_for("the report", || raw.num_faults() > 0);
        raw.connection.close();
        assert_eq!(raw.num_faults(), 1, "{addr:#x}, {len}");
    }
}

#[test]
fn broken_transmit_ring_is_reported_once() {
    let mut raw = loopback();
    raw.check_that_it_works();

    corrupt(&raw.tx);

    wait_for("the report", || raw.num_faults() > 0);
    for _ in 0..100 {
        raw.tx.ring();
    }
    raw.connection.close();
    assert_eq!(raw.num_faults(), 1);
}

#[test]
fn receiver_with_a_broken_ring_is_cut_off_and_the_sender_goes_on() {
    let switch = SwitchClass.create("dev").unwrap();
    let mut sender = connect(&*switch, "a");
    let broken = connect(&*switch, "b");
    let mut healthy = connect(&*switch, "c");
    corrupt(&broken.rx);
    let buffer = Slot {
        addr: BASE,
        len: 2048,
        meta: [0; 2],
    };
    healthy.rx.publish(&[buffer; 8]);
    let one = frame(BROADCAST, mac(1), 60);
    sender.memory.write_slice(&one, GuestAddress(BASE)).unwrap();
    let slot = Slot {
        addr: BASE,
        len: 60,
        meta: [0; 2],
    };

    sender.tx.publish(&[slot; 4]);
    sender.wait_for_tx();

    assert_eq!(broken.num_faults(), 1);
    assert_eq!(sender.num_faults() + healthy.num_faults(), 0);
    let mut back = [Slot::default(); 8];
    assert_eq!(healthy.rx.north.reap(&mut back), Ok(4));
    assert_eq!(back[0].len, 60);
}

#[test]
fn client_that_rings_without_end_is_served_and_stopped() {
    let mut raw = loopback();
    for _ in 0..10_000 {
        raw.tx.ring();
        raw.rx.ring();
    }
    raw.check_that_it_works();
    raw.connection.close();
}
