//! Frames built by hand; checksums are verified by summing to zero.

use super::*;

/// Ethernet and IPv4 with a TCP or UDP header and `payload`, all checksums absent.
pub(in super::super) fn ipv4(transport: Transport, payload: &[u8]) -> Vec<u8> {
    let header: &[u8] = match transport {
        Transport::Tcp => &[
            0x12, 0x34, 0, 80, 0, 0, 0x10, 0, 0, 0, 0, 1, 0x50, 0x99, 1, 0, 0, 0, 0, 0,
        ],
        Transport::Udp => &[0x12, 0x34, 0, 53, 0, 0, 0, 0],
    };
    let protocol = match transport {
        Transport::Tcp => PROTOCOL_TCP,
        Transport::Udp => PROTOCOL_UDP,
    };
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let len = u16::try_from(20 + header.len() + payload.len()).unwrap();
    frame.extend([0x45, 0]);
    frame.extend(len.to_be_bytes());
    frame.extend([0xff, 0xff, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend([192, 0, 2, 1, 192, 0, 2, 2]);
    frame.extend(header);
    frame.extend(payload);
    frame
}

fn ipv6(payload: &[u8]) -> Vec<u8> {
    let v4 = ipv4(Transport::Tcp, payload);
    let mut frame = v4[..12].to_vec();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend(u16::try_from(20 + payload.len()).unwrap().to_be_bytes());
    frame.extend([PROTOCOL_TCP, 64]);
    frame.extend([0x20; 16]);
    frame.extend([0x30; 16]);
    frame.extend(&v4[34..]);
    frame
}

fn segments(frame: &[u8], gso_size: usize) -> Vec<Vec<u8>> {
    let headers = parse(frame).unwrap();
    let mut scratch = vec![0; 70_000];
    let mut all = Vec::new();
    segment(frame, &headers, gso_size, &mut scratch, |one| {
        all.push(one.to_vec())
    });
    all
}

/// A packet with a right checksum sums up to zero, which is sent as its other form.
fn has_right_checksums(frame: &[u8]) -> bool {
    let headers = parse(frame).unwrap();
    let is_network_right = headers.is_ipv6
        || internet_checksum::checksum(&frame[headers.network_start..headers.transport_start])
            == [0, 0];
    is_network_right && transport_checksum(frame, &headers) == [0xff, 0xff]
}

#[test]
fn headers_are_found_behind_vlan_tags_and_options() {
    let plain = ipv4(Transport::Tcp, b"data");
    let mut tagged = plain[..12].to_vec();
    tagged.extend([0x88, 0xa8, 0, 1, 0x81, 0, 0, 2]);
    tagged.extend(&plain[12..]);

    assert_eq!(parse(&plain).unwrap().payload_start, 54);
    assert_eq!(parse(&tagged).unwrap().payload_start, 62);
    assert_eq!(parse(&ipv6(b"")).unwrap().payload_start, 74);
}

#[test]
fn what_is_no_whole_tcp_or_udp_header_is_refused() {
    let frame = ipv4(Transport::Tcp, b"");
    let changed = |offset: usize, value: u8| {
        let mut frame = frame.clone();
        frame[offset] = value;
        parse(&frame)
    };

    assert_eq!(parse(&frame[..53]), None, "cut");
    assert_eq!(parse(&[]), None);
    assert_eq!(changed(14, 0x44), None, "IPv4 header of 16 bytes");
    assert_eq!(changed(14, 0x4f), None, "options beyond the end");
    assert_eq!(changed(20, 0x20), None, "fragment");
    assert_eq!(changed(23, 1), None, "ICMP");
    assert_eq!(changed(46, 0x40), None, "TCP header of 16 bytes");
    assert_eq!(changed(12, 9), None, "unknown EtherType");
}

#[test]
fn tcp_is_cut_into_segments_that_a_receiver_accepts() {
    let payload: Vec<u8> = (0..2500u32).map(|n| n as u8).collect();

    for frame in [ipv4(Transport::Tcp, &payload), ipv6(&payload)] {
        let headers = parse(&frame).unwrap();
        let segments = segments(&frame, 1000);

        assert_eq!(segments.len(), 3);
        let flags: Vec<u8> = segments
            .iter()
            .map(|one| one[headers.transport_start + 13])
            .collect();
        assert_eq!(flags, [0x90, 0x10, 0x19], "CWR first, PSH and FIN last");
        let mut joined: Vec<u8> = Vec::new();
        for (nth, one) in segments.iter().enumerate() {
            assert!(has_right_checksums(one));
            let sequence = &one[headers.transport_start + 4..headers.transport_start + 8];
            assert_eq!(sequence, (0x1000 + nth as u32 * 1000).to_be_bytes());
            joined.extend(&one[headers.payload_start..]);
        }
        assert_eq!(joined, payload);
    }
}

#[test]
fn identifications_and_lengths_of_ipv4_segments_follow() {
    let segments = segments(&ipv4(Transport::Tcp, &[0; 150]), 100);

    assert_eq!(be16(&segments[0], 16), Some(140));
    assert_eq!(be16(&segments[1], 16), Some(90));
    assert_eq!(be16(&segments[0], 18), Some(0xffff));
    assert_eq!(be16(&segments[1], 18), Some(0));
}

#[test]
fn udp_segments_have_their_own_length() {
    let segments = segments(&ipv4(Transport::Udp, &[7; 150]), 100);

    assert!(segments.iter().all(|one| has_right_checksums(one)));
    assert_eq!(be16(&segments[0], 38), Some(108));
    assert_eq!(be16(&segments[1], 38), Some(58));
}

#[test]
fn checksum_is_completed_over_the_pseudo_header_sum() {
    let mut frame = ipv4(Transport::Udp, b"odd");
    frame[39] = 11;
    let headers = parse(&frame).unwrap();
    // The stack stores the sum of the pseudo-header, not inverted.
    let mut pseudo = Checksum::new();
    pseudo.add_bytes(&frame[26..34]);
    pseudo.add_bytes(&[0, 17, 0, 11]);
    let [high, low] = pseudo.checksum();
    put(&mut frame, 40, &[!high, !low]);

    complete_checksum(&mut frame, 34, 6);

    assert_eq!(transport_checksum(&frame, &headers), [0xff, 0xff]);
}
