//! Real TAPs, where the machine allows it.

use std::net::UdpSocket;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use alacrity_devices::tap::Tap;
use alacrity_devices::venet::driver::Options;
use rustix::io::Errno;
use vbus::abi::venet::{Capabilities, VERSION, cap_group, frame_flag, func, rx_cap};
use vbus::verbs::{InterfaceId, Verbs};
use zerocopy::IntoBytes;

use crate::fixture::*;
use crate::setup::ram;

/// Says why a test cannot run, or fails if it must.
macro_rules! require_root {
    () => {
        if let Err(error) = Tap::open("vnprobe", 1)
            && !matches!(error, alacrity_devices::tap::TapError::Busy { .. })
        {
            assert!(
                std::env::var_os("REQUIRE_KVM").is_none_or(|value| value != "1"),
                "a TAP is required: {error}"
            );
            println!("SKIPPED: {error}");
            return;
        }
    };
}

fn ip(args: &str) -> bool {
    let status = Command::new("ip").args(args.split(' ')).status();
    status.unwrap().success()
}

fn is_there(name: &str) -> bool {
    std::path::Path::new("/sys/class/net").join(name).exists()
}

/// An ARP request of 198.51.`net`.`from` for 198.51.`net`.`to`.
fn arp(station: &Station, net: u8, from: u8, to: u8) -> Vec<u8> {
    let own = station.mac().unwrap().0;
    let mut arp = [0xff; 6].to_vec();
    arp.extend(own);
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend(own);
    arp.extend([198, 51, net, from]);
    arp.extend([0; 6]);
    arp.extend([198, 51, net, to]);
    arp
}

/// The next frame with this EtherType: the host sends others of its own.
fn receive_type(station: &mut Station, ethertype: [u8; 2]) -> Received {
    loop {
        let one = receive(station, 1).remove(0);
        if one.0[12..14] == ethertype {
            return one;
        }
    }
}

#[test]
fn device_without_a_tap_cannot_be_opened_and_stays_usable() {
    let lab = Lab::with("venet-tap", &["b"]);
    let bus = lab.client("b", ram());

    assert_eq!(bus.open(InterfaceId(0), VERSION), Err(Errno::NXIO));
    assert_eq!(bus.open(InterfaceId(0), VERSION), Err(Errno::NXIO));

    assert_eq!(lab.get("ifname"), "dev");
    assert_eq!(lab.get("enabled"), "0");
    lab.set("mtu", "1400").unwrap();
    lab.set("client_mac", "02:00:00:00:00:07").unwrap();
    assert_eq!(lab.set("ifname", "a name"), Err(Errno::INVAL));
    assert_eq!(lab.set("enabled", "2"), Err(Errno::INVAL));
    lab.set("ifname", "lo").unwrap();
}

#[test]
fn host_answers_through_the_tap() {
    require_root!();
    let lab = Lab::with("venet-tap", &["b"]);
    lab.set("ifname", "vntap0").unwrap();
    lab.set("mtu", "1400").unwrap();
    lab.set("enabled", "1").unwrap();
    assert!(is_there("vntap0"));
    assert_eq!(lab.set("ifname", "other"), Err(Errno::BUSY));
    assert!(ip("addr add 198.51.1.1/24 dev vntap0"));
    let mut station = lab.station("b", small());

    let request = arp(&station, 1, 2, 1);
    send(&mut station, &[&request]);

    let (reply, _) = receive_type(&mut station, [8, 6]);
    assert_eq!(reply[..6], station.mac().unwrap().0);
    let host_mac: String = lab.get("host_mac");
    let from: Vec<String> = reply[6..12]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(from.join(":"), host_mac);
    assert_eq!(station.link().unwrap(), (1400, true));
    lab.set("enabled", "0").unwrap();
    assert_eq!(station.link().unwrap(), (1400, false));
    station.close().unwrap();
    assert!(!is_there("vntap0"), "made here, so it vanishes");
}

#[test]
fn checksums_are_left_to_who_wants_them() {
    require_root!();
    let lab = Lab::with("venet-tap", &["b"]);
    lab.set("ifname", "vntap1").unwrap();
    lab.set("enabled", "1").unwrap();
    assert!(ip("addr add 198.51.2.1/24 dev vntap1"));
    for (rx_caps, wanted) in [(rx_cap::CSUM, frame_flag::NEEDS_CSUM), (0, 0)] {
        let options = Options { rx_caps, ..small() };
        let mut station = lab.station("b", options);
        let mac = station.mac().unwrap();
        assert!(ip(&format!(
            "neigh replace 198.51.2.2 lladdr {mac} dev vntap1"
        )));
        // From now on the worker has told the TAP what this station can do.
        send(&mut station, &[&frame(BROADCAST, mac, 60)]);
        let socket = UdpSocket::bind("198.51.2.1:0").unwrap();

        socket.send_to(b"hello", "198.51.2.2:9").unwrap();

        let meta = loop {
            let (bytes, meta) = receive_type(&mut station, [8, 0]);
            if bytes.get(42..47) == Some(b"hello") {
                break meta;
            }
        };
        assert_eq!(meta.flags.get() & frame_flag::NEEDS_CSUM, wanted);
        station.close().unwrap();
    }
}

#[test]
fn frames_wait_in_the_tap_for_buffers() {
    require_root!();
    let lab = Lab::with("venet-tap", &["b"]);
    lab.set("ifname", "vntap2").unwrap();
    lab.set("enabled", "1").unwrap();
    assert!(ip("addr add 198.51.3.1/24 dev vntap2"));
    let mut station = lab.station("b", small());
    let mac = station.mac().unwrap();
    assert!(ip(&format!(
        "neigh replace 198.51.3.2 lladdr {mac} dev vntap2"
    )));
    let socket = UdpSocket::bind("198.51.3.1:0").unwrap();

    for n in 0..100u8 {
        socket.send_to(&[n], "198.51.3.2:9").unwrap();
    }

    let mut wanted = 0;
    while wanted < 100 {
        let (bytes, _) = receive_type(&mut station, [8, 0]);
        if bytes[23] == 17 {
            assert_eq!(bytes[42], wanted);
            wanted += 1;
        }
    }
    assert_eq!(lab.count("rx_dropped"), 0);
}

#[test]
fn link_events_follow_the_tap() {
    require_root!();
    let lab = Lab::with("venet-tap", &["b"]);
    lab.set("ifname", "vntap3").unwrap();
    lab.set("enabled", "1").unwrap();
    let options = Options {
        has_link_events: true,
        ..small()
    };
    let mut station = lab.station("b", options);
    let mut wait_for_state = |wanted: bool| {
        wait_for("the event", || {
            station.link_event().unwrap() == Some(wanted)
        });
    };

    wait_for_state(true);
    lab.set("enabled", "0").unwrap();
    wait_for_state(false);
    lab.set("enabled", "1").unwrap();
    wait_for_state(true);
    assert!(ip("link del vntap3"));
    wait_for_state(false);
}

#[test]
fn switch_has_the_host_behind_its_uplink() {
    require_root!();
    let lab = Lab::with("venet-switch", &["a", "b"]);
    let (mut a, mut b) = (lab.station("a", small()), lab.station("b", small()));
    assert_eq!(lab.set("uplink", "a name"), Err(Errno::INVAL));
    lab.set("uplink", "vntap4").unwrap();
    assert_eq!(lab.set("uplink", "other"), Err(Errno::BUSY));
    assert_eq!(lab.get("uplink"), "vntap4");
    assert!(ip("addr add 198.51.4.1/24 dev vntap4"));

    let request = arp(&a, 4, 2, 1);
    send(&mut a, &[&request]);

    let reply = loop {
        let (reply, _) = receive_type(&mut a, [8, 6]);
        // The host may announce itself to all.
        if reply[..6] == a.mac().unwrap().0 {
            break reply;
        }
    };
    assert_eq!(reply[20..22], [0, 2]);
    let seen = receive_type(&mut b, [8, 6]).0;
    assert_eq!(seen[..6], [0xff; 6]);
    lab.set("uplink", "").unwrap();
    assert!(!is_there("vntap4"));
    assert_eq!(lab.get("ports").lines().count(), 2);
}

#[test]
fn packet_of_60000_bytes_fills_many_buffers() {
    require_root!();
    let lab = Lab::with("venet-tap", &["b"]);
    lab.set("ifname", "vntap5").unwrap();
    lab.set("mtu", "65521").unwrap();
    lab.set("enabled", "1").unwrap();
    assert!(ip("addr add 198.51.5.1/24 dev vntap5"));
    let options = Options {
        num_slots: 64,
        rx_caps: rx_cap::MERGED,
        ..Options::default()
    };
    let mut station = lab.station("b", options);
    let mac = station.mac().unwrap();
    assert!(ip(&format!(
        "neigh replace 198.51.5.2 lladdr {mac} dev vntap5"
    )));
    let socket = UdpSocket::bind("198.51.5.1:0").unwrap();
    let payload: Vec<u8> = (0..60_000).map(|n| (n % 251) as u8).collect();

    for _ in 0..20 {
        socket.send_to(&payload, "198.51.5.2:9").unwrap();

        let bytes = loop {
            let (bytes, _) = receive_type(&mut station, [8, 0]);
            if bytes[23] == 17 {
                break bytes;
            }
        };
        assert_eq!(bytes[42..], payload);
    }
    assert_eq!(lab.count("rx_dropped"), 0);
}

#[test]
fn tap_that_goes_away_under_traffic_takes_the_link_and_nothing_else() {
    require_root!();
    let lab = Lab::with("venet-tap", &["b"]);
    lab.set("ifname", "vntap6").unwrap();
    lab.set("enabled", "1").unwrap();
    let options = Options {
        has_link_events: true,
        ..small()
    };
    let mut station = lab.station("b", options);
    let own = station.mac().unwrap();
    let one = frame(BROADCAST, own, 60);
    let start = Instant::now();
    for round in 0..6 {
        let mut is_away = false;
        let mut num_sent = 0;
        while station.link().unwrap().1 {
            num_sent += station.send(&[one.as_slice(); 4]).unwrap();
            drain(&mut station);
            if num_sent > 200 && !is_away {
                is_away = true;
                if round % 2 == 0 {
                    assert!(ip("link del vntap6"));
                } else {
                    lab.set("enabled", "0").unwrap();
                }
            }
            assert!(start.elapsed() < DEADLINE);
        }
        wait_for("the link is told to be down", || {
            station.link_event().unwrap() == Some(false)
        });
        // What is sent now is lost, and its slots come back.
        settle(&mut station);
        lab.set("enabled", "0").unwrap();
        lab.set("enabled", "1").unwrap();
        wait_for("the link is told to be up", || {
            station.link_event().unwrap() == Some(true)
        });
    }
    station.close().unwrap();
}

#[test]
fn link_goes_down_and_up_with_other_capabilities_under_traffic() {
    require_root!();
    let lab = Lab::with("venet-tap", &["b"]);
    lab.set("ifname", "vntap7").unwrap();
    lab.set("enabled", "1").unwrap();
    assert!(ip("addr add 198.51.7.1/24 dev vntap7"));
    let options = Options {
        num_slots: 64,
        rx_caps: rx_cap::MERGED | rx_cap::CSUM,
        ..Options::default()
    };
    let mut station = lab.open("b", options);
    let mac = station.mac().unwrap();
    assert!(ip(&format!(
        "neigh replace 198.51.7.2 lladdr {mac} dev vntap7"
    )));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let socket = UdpSocket::bind("198.51.7.1:0").unwrap();
            while !is_over.load(Relaxed) {
                let _ = socket.send_to(&[7; 1000], "198.51.7.2:9");
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        for round in 0..40 {
            let wants_csum = round % 2 == 0;
            let csum = if wants_csum { rx_cap::CSUM } else { 0 };
            let mut caps = Capabilities {
                group: cap_group::RX.into(),
                bits: (rx_cap::MERGED | csum).into(),
            };
            let handle = station.handle();
            station
                .bus()
                .call(handle, func::NEGOTIATE, caps.as_mut_bytes())
                .unwrap();
            station.link_up().unwrap();
            let mut num_seen = 0;
            while num_seen < 20 {
                let (bytes, meta) = receive_type(&mut station, [8, 0]);
                if bytes[23] == 17 {
                    assert_eq!(bytes[42..], [7; 1000]);
                    num_seen += 1;
                    let needs_csum = meta.flags.get() & frame_flag::NEEDS_CSUM != 0;
                    assert!(wants_csum || !needs_csum, "round {round}");
                }
            }
            station.link_down().unwrap();
            // With what was negotiated before.
            drain(&mut station);
        }
        is_over.store(true, Relaxed);
    });
    station.close().unwrap();
}
