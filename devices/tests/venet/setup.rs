//! Set-up order, negotiation, attributes, close.

use std::sync::Arc;

use alacrity_devices::GuestRam;
use alacrity_devices::venet::driver::Options;
use rustix::io::Errno;
use vbus::abi::RING_SIGNAL_OFFSET;
use vbus::abi::venet::{
    Capabilities, LinkInfo, VERSION, cap_group, event_cap, func, rx_cap, shm_id, tx_cap,
};
use vbus::memory::Region;
use vbus::ring::{Geometry, North};
use vbus::verbs::{Event, InterfaceId, ShmRequest, SignalRequest, Verbs};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;
use zerocopy::IntoBytes;

use crate::fixture::*;

pub fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(BASE), 0x10_0000)]).unwrap()
}

/// A ring to share, and its memory.
pub fn ring(id: u32, num_slots: u32) -> (ShmRequest, North, Region) {
    let geometry = Geometry::new(num_slots).unwrap();
    let region = Region::new_private(geometry.len_bytes()).unwrap();
    let north = North::create(region.clone(), geometry).unwrap();
    let request = ShmRequest {
        id,
        priority: 0,
        cookie: id.into(),
        region: region.clone(),
        signal: Some(SignalRequest {
            offset: RING_SIGNAL_OFFSET as u32,
            doorbell: EventFd::new(0).unwrap(),
            wake_up: Arc::new(EventFd::new(0).unwrap()),
        }),
    };
    (request, north, region)
}

pub fn negotiate(
    bus: &impl Verbs,
    handle: vbus::verbs::Handle,
    group: u32,
    bits: u32,
) -> Result<u32, Errno> {
    let mut caps = Capabilities {
        group: group.into(),
        bits: bits.into(),
    };
    bus.call(handle, func::NEGOTIATE, caps.as_mut_bytes())?;
    Ok(caps.bits.get())
}

#[test]
fn link_goes_up_only_when_all_that_was_negotiated_is_there() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let bus = lab.client("b", ram());
    let handle = bus.open(InterfaceId(0), VERSION).unwrap();
    let link_up = || bus.call(handle, func::LINK_UP, &mut []);
    negotiate(&bus, handle, cap_group::TX, tx_cap::SG).unwrap();
    negotiate(&bus, handle, cap_group::EVENTS, event_cap::LINK_STATE).unwrap();

    assert_eq!(link_up(), Err(Errno::INVAL));
    bus.shm(handle, ring(shm_id::RX_RING, 8).0).unwrap();
    assert_eq!(link_up(), Err(Errno::INVAL));
    bus.shm(handle, ring(shm_id::TX_RING, 8).0).unwrap();
    assert_eq!(link_up(), Err(Errno::INVAL));
    bus.shm(handle, ring(shm_id::EVENT_RING, 8).0).unwrap();
    assert_eq!(link_up(), Err(Errno::INVAL));
    let mut pool = ring(shm_id::TX_SEGMENTS, 8).0;
    pool.signal = None;
    bus.shm(handle, pool).unwrap();

    assert_eq!(link_up(), Ok(0));
    assert_eq!(link_up(), Err(Errno::EXIST));
    let again = bus.shm(handle, ring(shm_id::RX_RING, 8).0);
    assert_eq!(again, Err(Errno::EXIST));
    assert_eq!(negotiate(&bus, handle, cap_group::TX, 0), Err(Errno::BUSY));
    assert_eq!(bus.call(handle, func::LINK_DOWN, &mut []), Ok(0));
    assert_eq!(
        bus.call(handle, func::LINK_DOWN, &mut []),
        Err(Errno::NOENT)
    );
    assert_eq!(link_up(), Ok(0));
}

#[test]
fn shared_memory_that_makes_no_sense_is_refused() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let bus = lab.client("b", ram());
    let handle = bus.open(InterfaceId(0), VERSION).unwrap();
    let share = |request| bus.shm(handle, request).unwrap_err();
    let without_signal = |id| {
        let mut request = ring(id, 8).0;
        request.signal = None;
        request
    };
    let (no_ring, _, region) = ring(shm_id::RX_RING, 8);
    region.write(0, &[0; 16]).unwrap();

    assert_eq!(share(ring(99, 8).0), Errno::INVAL, "unknown");
    assert_eq!(share(without_signal(shm_id::RX_RING)), Errno::INVAL);
    assert_eq!(share(no_ring), Errno::INVAL, "no ring in it");
    let not_negotiated = without_signal(shm_id::TX_SEGMENTS);
    assert_eq!(share(not_negotiated), Errno::INVAL);
    assert_eq!(share(ring(shm_id::EVENT_RING, 8).0), Errno::INVAL);
    negotiate(&bus, handle, cap_group::TX, tx_cap::SG).unwrap();
    let too_many = ring(shm_id::TX_SEGMENTS, 8).0;
    assert_eq!(share(too_many), Errno::INVAL, "a pool has no signal");
    // What was refused can be done right.
    bus.shm(handle, ring(shm_id::RX_RING, 8).0).unwrap();
}

#[test]
fn capabilities_are_what_both_have_and_what_fits_together() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let bus = lab.client("b", ram());
    let handle = bus.open(InterfaceId(0), VERSION).unwrap();
    let ask = |group, bits| negotiate(&bus, handle, group, bits).unwrap();

    assert_eq!(ask(cap_group::TX, u32::MAX), 0x3f);
    assert_eq!(ask(cap_group::RX, u32::MAX), 0x3f);
    assert_eq!(ask(cap_group::EVENTS, u32::MAX), 1);
    assert_eq!(ask(77, u32::MAX), 0);
    assert_eq!(ask(cap_group::TX, tx_cap::TSO4 | tx_cap::SG), tx_cap::SG);
    let ecn = rx_cap::ECN | rx_cap::CSUM;
    assert_eq!(ask(cap_group::RX, ecn), rx_cap::CSUM);
}

#[test]
fn calls_of_wrong_length_or_number_are_refused() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let bus = lab.client("b", ram());
    let handle = bus.open(InterfaceId(0), VERSION).unwrap();

    for (func, len) in [
        (func::LINK_UP, 1),
        (func::LINK_DOWN, 1),
        (func::MAC_QUERY, 5),
        (func::MAC_QUERY, 7),
        (func::NEGOTIATE, 7),
        (func::NEGOTIATE, 9),
        (func::FLUSH_RX, 0),
        (func::LINK_QUERY, size_of::<LinkInfo>() - 1),
        (func::LINK_QUERY, size_of::<LinkInfo>() + 1),
        (6, 0),
    ] {
        let result = bus.call(handle, func, &mut vec![0; len]);
        assert_eq!(result, Err(Errno::INVAL), "{func} with {len} bytes");
    }
}

#[test]
fn one_client_at_a_time_of_the_right_version() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let (one, other) = (lab.client("b", ram()), lab.client("b", ram()));

    assert_eq!(one.open(InterfaceId(0), 1), Err(Errno::INVAL));
    let handle = one.open(InterfaceId(0), VERSION).unwrap();
    assert_eq!(other.open(InterfaceId(0), VERSION), Err(Errno::BUSY));
    one.close(handle).unwrap();
    assert!(other.open(InterfaceId(0), VERSION).is_ok());
}

#[test]
fn all_shared_memory_comes_back_at_close_and_nothing_of_the_connection_stays() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let (bus, log) = lab.client_with_events("b", ram());
    for _ in 0..3 {
        let handle = bus.open(InterfaceId(0), VERSION).unwrap();
        let bits = negotiate(&bus, handle, cap_group::TX, tx_cap::SG).unwrap();
        assert_eq!(bits, tx_cap::SG);
        let mut pool = ring(shm_id::TX_SEGMENTS, 8).0;
        pool.signal = None;
        bus.shm(handle, pool).unwrap();
        bus.shm(handle, ring(shm_id::RX_RING, 8).0).unwrap();
        bus.shm(handle, ring(shm_id::TX_RING, 8).0).unwrap();
        bus.call(handle, func::LINK_UP, &mut []).unwrap();
        log.take();

        bus.close(handle).unwrap();

        let mut closed = Vec::new();
        wait_for("all memory comes back", || {
            closed.extend(log.take().into_iter().filter_map(|event| match event {
                Event::ShmClosed { cookie } => Some(cookie),
                _ => None,
            }));
            closed.len() == 3
        });
        closed.sort_unstable();
        assert_eq!(closed, [0, 1, 2]);
    }
    // Nothing was negotiated in a new connection.
    let handle = bus.open(InterfaceId(0), VERSION).unwrap();
    let mut pool = ring(shm_id::TX_SEGMENTS, 8).0;
    pool.signal = None;
    assert_eq!(bus.shm(handle, pool), Err(Errno::INVAL));
}

#[test]
fn link_state_is_told_when_the_link_goes_up() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let options = Options {
        has_link_events: true,
        ..small()
    };
    let mut station = lab.station("b", options);

    let mut state = None;
    wait_for("the event", || {
        state = station.link_event().unwrap();
        state.is_some()
    });

    assert_eq!(state, Some(true));
    assert_eq!(station.link().unwrap(), (1500, true));
}

#[test]
fn flushed_buffers_come_back_empty_and_are_posted_again() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let mut station = lab.station("b", small());

    station.flush_rx().unwrap();
    assert_eq!(drain(&mut station), []);
    let one = frame(mac(2), mac(1), 60);
    for _ in 0..3 {
        send(&mut station, &[&one[..]; 16]);
        assert_eq!(receive(&mut station, 16).len(), 16);
    }

    assert_eq!(lab.count("rx_dropped"), 0);
}

#[test]
fn frames_stay_where_they_are_while_the_link_is_down() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let mut station = lab.station("b", small());
    let one = frame(mac(2), mac(1), 60);
    station.link_down().unwrap();

    station.send(&[&one]).unwrap();
    assert_eq!(lab.count("tx_packets"), 0);
    station.link_up().unwrap();

    assert_eq!(receive(&mut station, 1)[0].0, one);
}

#[test]
fn close_in_the_middle_of_traffic_leaves_a_working_device() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let one = frame(mac(2), mac(1), 1000);
    for nth in 0..50 {
        let mut station = lab.station("b", small());
        for _ in 0..nth {
            station.send(&[&one[..]; 8]).unwrap();
            station.receive(4, |_, _| ()).unwrap();
        }
        if nth % 2 == 0 {
            station.close().unwrap();
        }
    }
}

#[test]
fn attributes_take_what_is_right_at_the_right_time() {
    let lab = Lab::with("venet-loopback", &["b"]);

    lab.set("client_mac", "02:00:00:00:00:07").unwrap();
    lab.set("mtu", "68").unwrap();
    lab.set("mtu", "65535").unwrap();
    for (attribute, value, errno) in [
        ("client_mac", "01:00:00:00:00:07", Errno::INVAL),
        ("client_mac", "02:00:00:00:07", Errno::INVAL),
        ("client_mac", "00:00:00:00:00:00", Errno::INVAL),
        ("mtu", "67", Errno::INVAL),
        ("mtu", "65536", Errno::INVAL),
        ("mtu", "+99", Errno::INVAL),
        ("rx_packets", "0", Errno::ACCESS),
    ] {
        assert_eq!(lab.set(attribute, value), Err(errno), "{attribute} {value}");
    }
    let station = lab.open("b", small());
    assert_eq!(station.mac().unwrap().to_string(), "02:00:00:00:00:07");
    assert_eq!(station.link().unwrap().0, 65_535);
    let busy = Err(Errno::BUSY);
    assert_eq!(lab.set("client_mac", "02:00:00:00:00:08"), busy);
    assert_eq!(lab.set("mtu", "1500"), busy);
    station.close().unwrap();
    lab.set("mtu", "1500").unwrap();
}
