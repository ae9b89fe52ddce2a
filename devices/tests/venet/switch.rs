use std::sync::Barrier;
use std::time::Instant;

use rustix::io::Errno;

use crate::fixture::*;

fn three() -> (Lab, [Station; 3]) {
    let lab = Lab::with("venet-switch", &["a", "b", "c"]);
    let stations = ["a", "b", "c"].map(|bus| lab.station(bus, small()));
    (lab, stations)
}

#[test]
fn unknown_goes_to_all_and_known_to_one_and_nothing_back() {
    let (lab, [mut a, mut b, mut c]) = three();

    send(&mut a, &[&frame(mac(2), mac(1), 60)]);
    assert_eq!(receive(&mut b, 1)[0].0, frame(mac(2), mac(1), 60));
    assert_eq!(receive(&mut c, 1)[0].0, frame(mac(2), mac(1), 60));
    assert_eq!(drain(&mut a), [], "nothing is reflected");

    send(&mut b, &[&frame(mac(1), mac(2), 60)]);
    send(&mut a, &[&frame(mac(2), mac(1), 70)]);
    send(&mut a, &[&frame(mac(1), mac(9), 80)]);
    send(&mut c, &[&frame(BROADCAST, mac(3), 90)]);

    let lengths = |station: &mut Station, num_frames| {
        let frames = receive(station, num_frames);
        frames.iter().map(|one| one.0.len()).collect::<Vec<_>>()
    };
    assert_eq!(lengths(&mut a, 2), [60, 90]);
    assert_eq!(lengths(&mut b, 2), [70, 90]);
    assert_eq!(drain(&mut c), []);
    assert_eq!(lab.count("tx_packets"), 5);
    assert_eq!(lab.port_count("a", "tx_packets"), 3);
    assert_eq!(lab.port_count("a", "rx_packets"), 2);
    let macs = lab.get("macs");
    assert!(macs.contains("02:00:00:00:01:02 b 0"), "{macs}");
}

#[test]
fn assigned_addresses_are_known_from_the_start_and_cannot_be_taken() {
    let (lab, [mut a, mut b, mut c]) = three();
    let [mac_a, mac_b] = [a.mac().unwrap(), b.mac().unwrap()];

    send(&mut c, &[&frame(mac(1), mac_a, 60)]);
    assert_eq!(lab.port_count("c", "tx_dropped"), 1);
    send(&mut b, &[&frame(mac_a, mac_b, 61)]);

    assert_eq!(receive(&mut a, 1)[0].0.len(), 61);
    assert_eq!(drain(&mut c), []);
    assert_eq!(lab.port_count("b", "tx_dropped"), 0);
}

#[test]
fn frames_from_a_group_are_dropped() {
    let (lab, [mut a, mut b, _c]) = three();

    send(&mut a, &[&frame(BROADCAST, BROADCAST, 60)]);

    assert_eq!(lab.port_count("a", "tx_dropped"), 1);
    assert_eq!(drain(&mut b), []);
}

#[test]
fn flooding_is_limited_and_the_rest_is_not() {
    let (lab, [mut a, mut b, mut c]) = three();
    send(&mut b, &[&frame(BROADCAST, mac(2), 60)]);
    receive(&mut a, 1);
    receive(&mut c, 1);
    lab.set("flood_rate", "0").unwrap();

    for _ in 0..10 {
        send(&mut a, &[&frame(BROADCAST, mac(1), 60)]);
        send(&mut a, &[&frame(mac(2), mac(1), 60)]);
    }

    assert_eq!(receive(&mut b, 10).len(), 10);
    assert_eq!(drain(&mut c), []);
    assert_eq!(lab.port_count("a", "tx_dropped"), 10);
}

#[test]
fn port_that_never_drains_loses_only_its_own_frames() {
    let (lab, [mut a, mut b, c]) = three();
    let [mac_a, mac_b, mac_c] = [&a, &b, &c].map(|one| one.mac().unwrap());

    for _ in 0..1000 {
        let (to_b, to_c) = (frame(mac_b, mac_a, 60), frame(mac_c, mac_a, 60));
        send(&mut a, &[&to_b, &to_c]);
        assert_eq!(receive(&mut b, 1).len(), 1);
    }

    assert_eq!(lab.port_count("b", "rx_packets"), 1000);
    assert_eq!(lab.port_count("b", "rx_dropped"), 0);
    assert_eq!(lab.port_count("c", "rx_packets"), 16);
    assert_eq!(lab.port_count("c", "rx_dropped"), 984);
    assert_eq!(lab.port_count("a", "tx_dropped"), 0);
}

#[test]
fn broadcast_reaches_all_of_64_ports() {
    let names: Vec<String> = (0..64).map(|n| format!("bus{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let lab = Lab::with("venet-switch", &names);
    let mut stations: Vec<Station> = names.iter().map(|bus| lab.station(bus, small())).collect();

    send(&mut stations[7], &[&frame(BROADCAST, mac(7), 60)]);

    for (nth, station) in stations.iter_mut().enumerate() {
        let num_frames = usize::from(nth != 7);
        assert_eq!(receive(station, num_frames).len(), num_frames);
    }
    assert_eq!(drain(&mut stations[7]), []);
    assert_eq!(lab.get("ports").lines().count(), 64);
}

#[test]
fn all_send_to_all_at_once_and_every_frame_is_counted() {
    const NUM_FRAMES: u64 = 2000;
    let names = ["a", "b", "c", "d"];
    let lab = Lab::with("venet-switch", &names);
    let mut stations = names.map(|bus| lab.station(bus, small()));
    let macs = stations.each_ref().map(|one| one.mac().unwrap());
    let start = Barrier::new(names.len());

    std::thread::scope(|scope| {
        for (nth, station) in stations.iter_mut().enumerate() {
            let (macs, start) = (&macs, &start);
            scope.spawn(move || {
                start.wait();
                let begin = Instant::now();
                let mut num_sent = 0;
                while num_sent < NUM_FRAMES {
                    let to = macs[(nth + 1 + num_sent as usize % 3) % 4];
                    let one = frame(to, macs[nth], 200);
                    num_sent += station.send(&[&one]).unwrap() as u64;
                    station
                        .receive(16, |bytes, _| {
                            assert_eq!(bytes.len(), 200);
                            assert_eq!(bytes[..6], macs[nth].0);
                        })
                        .unwrap();
                    assert!(begin.elapsed() < DEADLINE);
                }
                settle(station);
            });
        }
    });

    assert_eq!(lab.count("tx_packets"), 4 * NUM_FRAMES);
    let arrived = lab.count("rx_packets") + lab.count("rx_dropped");
    assert_eq!(arrived, 4 * NUM_FRAMES);
}

#[test]
fn port_goes_with_its_bus_and_the_counts_stay() {
    let (lab, [mut a, mut b, c]) = three();
    send(&mut a, &[&frame(BROADCAST, mac(1), 60)]);
    receive(&mut b, 1);
    drop(c);
    lab.host.unlink("c", "net").unwrap();
    wait_for("the port leaves", || lab.get("ports").lines().count() == 2);

    send(&mut a, &[&frame(BROADCAST, mac(1), 60)]);

    assert_eq!(receive(&mut b, 1).len(), 1);
    assert_eq!(
        lab.count("rx_packets"),
        3,
        "one of them at the port that left"
    );
    assert!(!lab.get("macs").contains(" c "));
}

#[test]
fn open_connection_of_a_port_that_leaves_is_closed() {
    let (lab, [mut a, b, c]) = three();
    lab.host.unlink("c", "net").unwrap();

    wait_for("the port leaves", || lab.get("ports").lines().count() == 2);
    assert!(c.link().is_err());
    send(&mut a, &[&frame(BROADCAST, mac(1), 60)]);

    lab.host.link("c", "net", "dev").unwrap();
    assert_eq!(lab.get("ports").lines().count(), 3);
    drop(b);
}

#[test]
fn addresses_of_ports_are_chosen_before_or_after_they_are_there() {
    let lab = Lab::with("venet-switch", &["a"]);
    let table = "a=02:00:00:00:00:0a b=02:00:00:00:00:0b";
    lab.set("port_macs", table).unwrap();
    lab.host.create_bus("b").unwrap();
    lab.host.link("b", "net", "dev").unwrap();

    let (a, b) = (lab.open("a", small()), lab.open("b", small()));

    assert_eq!(a.mac().unwrap().to_string(), "02:00:00:00:00:0a");
    assert_eq!(b.mac().unwrap().to_string(), "02:00:00:00:00:0b");
    assert_eq!(lab.get("port_macs"), table);
    lab.set("port_macs", table).unwrap();
    let other = lab.set("port_macs", "a=02:00:00:00:00:0c");
    assert_eq!(other, Err(Errno::BUSY));
    let multicast = lab.set("port_macs", "z=03:00:00:00:00:0c");
    assert_eq!(multicast, Err(Errno::INVAL));
}

/// Whether the switch knows `mac` as the address of the port on `bus`.
fn is_protected(lab: &Lab, mac: &str, bus: &str) -> bool {
    let line = format!("{mac} {bus} assigned");
    lab.get("macs").lines().any(|other| other == line)
}

#[test]
fn addresses_that_ports_exchange_are_protected() {
    let lab = Lab::with("venet-switch", &["a", "b"]);
    let [one, two] = ["02:00:00:00:00:0a", "02:00:00:00:00:0b"];
    lab.set("port_macs", &format!("a={one} b={two}")).unwrap();

    lab.set("port_macs", &format!("a={two} b={one}")).unwrap();

    assert!(is_protected(&lab, one, "b"));
    assert!(is_protected(&lab, two, "a"));
}

#[test]
fn address_of_two_ports_is_protected_for_the_one_that_stays() {
    let lab = Lab::with("venet-switch", &["a", "b"]);
    let mac = "02:00:00:00:00:0a";
    lab.set("port_macs", &format!("a={mac} b={mac}")).unwrap();

    lab.host.unlink("a", "net").unwrap();

    assert!(is_protected(&lab, mac, "b"));
}

#[test]
fn bus_with_several_ports_has_that_many_stations() {
    let lab = Lab::new();
    lab.host.create_device("dev").unwrap();
    lab.host.set_type("dev", "venet-switch").unwrap();
    assert_eq!(lab.set("ports_per_bus", "9"), Err(Errno::INVAL));
    lab.set("ports_per_bus", "3").unwrap();
    let chosen = "a=02:00:00:00:00:01 a/2=02:00:00:00:00:03";
    lab.set("port_macs", chosen).unwrap();
    for bus in ["a", "b"] {
        lab.host.create_bus(bus).unwrap();
        lab.host.link(bus, "net", "dev").unwrap();
    }
    let macs = lab.get("port_macs");
    assert!(chosen.split(' ').all(|pair| macs.contains(pair)), "{macs}");
    let path = "sys/instances/a/devices";
    assert_eq!(lab.host.tree().list(path).unwrap().len(), 3);
    assert_eq!(lab.get("ports").lines().count(), 6);

    let mut b = lab.station("b", small());
    send(&mut b, &[&frame(BROADCAST, mac(9), 60)]);
    lab.host.unlink("a", "net").unwrap();

    assert_eq!(lab.get("ports").lines().count(), 3);
    assert_eq!(lab.port_count("b/1", "tx_packets"), 0);
    lab.host.link("a", "net", "dev").unwrap();
    assert_eq!(lab.get("ports").lines().count(), 6);
}
