//! What a receiver cannot do is done for it.

use alacrity_devices::venet::driver::{Options, Outgoing};
use internet_checksum::{Checksum, checksum};
use vbus::abi::venet::{FrameMeta, frame_flag, gso_type, rx_cap, tx_cap};

use crate::fixture::*;

const ALL_TX: u32 =
    tx_cap::CSUM | tx_cap::TSO4 | tx_cap::TSO6 | tx_cap::ECN | tx_cap::USO | tx_cap::SG;
const ALL_RX: u32 = rx_cap::CSUM | rx_cap::TSO4 | rx_cap::TSO6 | rx_cap::ECN | rx_cap::USO;
const HEADERS: usize = 54;

/// TCP over IPv4 with `payload`; its checksum is that of the pseudo-header, as a stack leaves it.
pub fn tcp4(payload: &[u8]) -> Vec<u8> {
    let mut frame = mac(2).0.to_vec();
    frame.extend(mac(1).0);
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((40 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    let header_sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&header_sum);
    frame.extend([
        0x12, 0x34, 0, 80, 0, 0, 0, 0, 0, 0, 0, 1, 0x50, 0x18, 1, 0, 0, 0, 0, 0,
    ]);
    frame.extend(payload);
    let mut pseudo = Checksum::new();
    pseudo.add_bytes(&frame[26..34]);
    pseudo.add_bytes(&[0, 6]);
    pseudo.add_bytes(&(20 + payload.len() as u16).to_be_bytes());
    let [high, low] = pseudo.checksum();
    frame[50..52].copy_from_slice(&[!high, !low]);
    frame
}

fn is_right(frame: &[u8]) -> bool {
    let len = u16::from_be_bytes([frame[16], frame[17]]);
    let mut sum = Checksum::new();
    sum.add_bytes(&frame[26..34]);
    sum.add_bytes(&[0, 6]);
    sum.add_bytes(&(len - 20).to_be_bytes());
    sum.add_bytes(&frame[34..]);
    usize::from(len) + 14 == frame.len()
        && checksum(&frame[14..34]) == [0, 0]
        && sum.checksum() == [0, 0]
}

fn gso_meta(gso_size: u16) -> FrameMeta {
    FrameMeta {
        csum_start: 34.into(),
        csum_offset: 16.into(),
        gso_size: gso_size.into(),
        hdr_len: 0.into(),
        flags: frame_flag::NEEDS_CSUM.into(),
        gso_type: gso_type::TCP4,
        ..FrameMeta::default()
    }
}

fn options(rx_caps: u32) -> Options {
    Options {
        num_slots: 128,
        rx_buffer_bytes: 2048,
        tx_buffer_bytes: 66_000,
        tx_caps: ALL_TX,
        rx_caps,
        ..Options::default()
    }
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 / 5) as u8).collect()
}

#[test]
fn frame_of_64_kib_fills_many_buffers_if_the_receiver_can_take_it() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let mut station = lab.station("b", options(ALL_RX | rx_cap::MERGED));
    let frame = tcp4(&payload(65_000));
    let parts: Vec<&[u8]> = frame.chunks(3000).collect();

    for _ in 0..20 {
        let outgoing = Outgoing {
            parts: &parts,
            meta: gso_meta(1448),
        };
        station.send_all([outgoing]).unwrap();
        let (bytes, meta) = receive(&mut station, 1).remove(0);
        assert!(bytes == frame);
        assert_eq!(meta.count.get(), 32);
        assert_eq!(meta.hdr_len.get(), HEADERS as u16, "as it really is");
        let wanted = FrameMeta {
            count: 32.into(),
            hdr_len: meta.hdr_len,
            ..gso_meta(1448)
        };
        assert_eq!(meta, wanted);
    }
}

#[test]
fn frame_of_64_kib_crosses_a_switch_whole_to_whom_can_take_it_so() {
    let lab = Lab::with("venet-switch", &["a", "b", "c"]);
    let mut sender = lab.station("a", options(0));
    let mut whole = lab.station("b", options(ALL_RX | rx_cap::MERGED));
    let mut segments = lab.station("c", options(0));
    let frame = tcp4(&payload(65_000));
    let outgoing = Outgoing {
        parts: &[&frame],
        meta: gso_meta(1448),
    };

    // Nobody knows the receiver, so both get it.
    sender.send_all([outgoing]).unwrap();

    let (bytes, meta) = receive(&mut whole, 1).remove(0);
    assert!(bytes == frame);
    assert_eq!((meta.gso_type, meta.gso_size.get()), (gso_type::TCP4, 1448));
    let segments = receive(&mut segments, 65_000_usize.div_ceil(1448));
    assert!(segments.iter().all(|(bytes, _)| is_right(bytes)));
    assert_eq!(lab.port_count("b", "rx_packets"), 1);
    assert_eq!(drain(&mut whole).len(), 0);
}

#[test]
fn receiver_without_offloads_gets_segments_with_right_checksums() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let mut station = lab.station("b", options(0));
    let data = payload(65_000);
    let frame = tcp4(&data);
    let outgoing = Outgoing {
        parts: &[&frame],
        meta: gso_meta(1448),
    };

    station.send_all([outgoing]).unwrap();

    let segments = receive(&mut station, 65_000_usize.div_ceil(1448));
    let mut joined = Vec::new();
    for (nth, (bytes, meta)) in segments.iter().enumerate() {
        assert!(is_right(bytes), "segment {nth}");
        assert_eq!(bytes[38..42], (nth as u32 * 1448).to_be_bytes());
        assert_eq!((meta.flags.get(), meta.gso_type), (0, gso_type::NONE));
        joined.extend_from_slice(&bytes[HEADERS..]);
    }
    assert!(joined == data);
}

#[test]
fn checksum_is_completed_for_a_receiver_that_cannot() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let mut station = lab.station("b", options(0));
    let frame = tcp4(&payload(777));
    let meta = FrameMeta {
        gso_type: gso_type::NONE,
        gso_size: 0.into(),
        ..gso_meta(0)
    };
    let outgoing = Outgoing {
        parts: &[&frame],
        meta,
    };

    station.send_all([outgoing]).unwrap();

    let (bytes, meta) = receive(&mut station, 1).remove(0);
    assert!(!is_right(&frame) && is_right(&bytes));
    assert_eq!(meta.flags.get(), 0);
}

#[test]
fn frame_larger_than_a_buffer_needs_merged_buffers() {
    let lab = Lab::with("venet-loopback", &["b"]);
    lab.set("mtu", "9000").unwrap();
    let long = frame(mac(2), mac(1), 9014);
    let mut station = lab.station("b", options(rx_cap::MERGED));
    send(&mut station, &[&long]);
    assert!(receive(&mut station, 1)[0].0 == long);
    station.close().unwrap();
    let mut station = lab.station("b", options(0));

    send(&mut station, &[&long, &long[..100]]);

    assert_eq!(receive(&mut station, 1)[0].0, long[..100]);
    assert_eq!(lab.count("rx_dropped"), 1);
}

#[test]
fn segmentation_that_makes_no_sense_is_refused() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let mut station = lab.station("b", options(ALL_RX | rx_cap::MERGED));
    let frame = tcp4(&payload(20_000));
    let flags = |flags: u16| FrameMeta {
        flags: flags.into(),
        ..gso_meta(1448)
    };
    let bad = [
        gso_meta(0),
        gso_meta(1461),
        gso_meta(19),
        FrameMeta {
            gso_type: gso_type::TCP6,
            ..gso_meta(1448)
        },
        FrameMeta {
            gso_type: 9,
            ..gso_meta(1448)
        },
        FrameMeta {
            csum_start: 36.into(),
            ..gso_meta(1448)
        },
        FrameMeta {
            csum_offset: 6.into(),
            ..gso_meta(1448)
        },
        FrameMeta {
            reserved0: 1,
            ..gso_meta(1448)
        },
        flags(0),
        flags(frame_flag::NEEDS_CSUM | frame_flag::DATA_VALID),
        flags(frame_flag::NEEDS_CSUM | 1 << 15),
        FrameMeta {
            csum_start: u16::MAX.into(),
            csum_offset: u16::MAX.into(),
            gso_type: gso_type::NONE,
            ..gso_meta(0)
        },
    ];

    for meta in bad {
        let outgoing = Outgoing {
            parts: &[&frame],
            meta,
        };
        station.send_all([outgoing]).unwrap();
        settle(&mut station);
    }

    assert_eq!(lab.count("tx_errors"), 12);
    assert_eq!(drain(&mut station), []);
    let good = Outgoing {
        parts: &[&frame],
        meta: gso_meta(20),
    };
    station.send_all([good]).unwrap();
    assert_eq!(receive(&mut station, 1).len(), 1);
}
