use std::time::Instant;

use alacrity_devices::venet::driver::{Options, Outgoing};
use vbus::abi::venet::{FrameMeta, tx_cap};

use crate::fixture::*;

#[test]
fn frames_of_all_sizes_come_back_as_they_were() {
    let lab = Lab::with("venet-loopback", &["b"]);
    lab.set("mtu", "9000").unwrap();
    let mut station = lab.station("b", jumbo());

    let all = frame(mac(2), mac(1), 9014);
    for len in 14..=9014 {
        assert_eq!(station.send(&[&all[..len]]).unwrap(), 1);
        assert_eq!(receive(&mut station, 1)[0].0, all[..len], "{len} bytes");
    }

    assert_eq!(lab.count("tx_packets"), 9001);
    assert_eq!(lab.count("rx_packets"), 9001);
    assert_eq!(lab.count("rx_bytes"), (14..=9014).sum::<u64>());
    assert_eq!(lab.count("rx_dropped") + lab.count("tx_errors"), 0);
}

#[test]
fn frames_that_are_too_short_or_too_long_are_dropped_and_their_slots_come_back() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let mut station = lab.station("b", jumbo());
    let long = frame(mac(2), mac(1), 2000);
    let mut tagged = long.clone();
    tagged[12..14].copy_from_slice(&[0x81, 0]);

    for bad in [&long[..1], &long[..13], &long[..1515], &tagged[..1519]] {
        send(&mut station, &[bad]);
    }
    send(&mut station, &[&long[..1514], &tagged[..1518]]);

    let lengths: Vec<usize> = receive(&mut station, 2)
        .iter()
        .map(|one| one.0.len())
        .collect();
    assert_eq!(lengths, [1514, 1518]);
    assert_eq!(lab.count("tx_errors"), 4);
}

#[test]
fn scattered_frames_arrive_whole() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let options = Options {
        tx_caps: tx_cap::SG,
        ..small()
    };
    let mut station = lab.station("b", options);
    let whole = frame(mac(2), mac(1), 1500);

    for part_bytes in [1495, 700, 100, 47] {
        let parts: Vec<&[u8]> = whole.chunks(part_bytes).collect();
        let outgoing = Outgoing {
            parts: &parts,
            meta: FrameMeta::default(),
        };
        assert_eq!(station.send_all([outgoing]).unwrap(), 1);
        assert_eq!(receive(&mut station, 1)[0].0, whole, "{}", parts.len());
    }
}

#[test]
fn many_frames_go_round_in_order_at_full_speed() {
    const NUM_FRAMES: u32 = 100_000;
    let lab = Lab::with("venet-loopback", &["b"]);
    let mut station = lab.station("b", Options::default());
    let template = frame(mac(2), mac(1), 64);
    let (mut num_sent, mut num_received) = (0, 0);
    let start = Instant::now();

    while num_received < NUM_FRAMES {
        // Never more than there are receive buffers, so that none is lost.
        let num_new = (NUM_FRAMES - num_sent)
            .min(32)
            .min(256 - (num_sent - num_received));
        let frames: Vec<Vec<u8>> = (num_sent..num_sent + num_new)
            .map(|n| {
                let mut frame = template.clone();
                frame[14..18].copy_from_slice(&n.to_be_bytes());
                frame
            })
            .collect();
        let frames: Vec<&[u8]> = frames.iter().map(|frame| &frame[..]).collect();
        num_sent += station.send(&frames).unwrap() as u32;
        let num_new = station
            .receive(64, |bytes, _| {
                assert_eq!(bytes[14..18], num_received.to_be_bytes());
                num_received += 1;
            })
            .unwrap();
        if num_new == 0 {
            station.wait_receive(DEADLINE).unwrap();
        }
        assert!(start.elapsed() < DEADLINE, "{num_received}");
    }

    assert_eq!(lab.count("rx_dropped"), 0);
    assert_eq!(lab.count("tx_packets"), u64::from(NUM_FRAMES));
}

#[test]
fn receiver_without_buffers_loses_frames_and_nothing_waits() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let mut station = lab.station("b", small());
    let one = frame(mac(2), mac(1), 60);

    for _ in 0..10 {
        send(&mut station, &[&one[..]; 10]);
    }

    assert_eq!(drain(&mut station).len(), 16);
    assert_eq!(lab.count("rx_dropped"), 84);
    send(&mut station, &[&one]);
    assert_eq!(receive(&mut station, 1).len(), 1);
}

#[test]
fn device_goes_on_one_bus_only() {
    let lab = Lab::with("venet-loopback", &["a"]);
    lab.host.create_bus("b").unwrap();

    assert_eq!(
        lab.host.link("b", "net", "dev"),
        Err(rustix::io::Errno::BUSY)
    );
    lab.host.unlink("a", "net").unwrap();
    lab.host.link("b", "net", "dev").unwrap();
}
