//! Headers of TCP and UDP packets, and in software what a receiver cannot do itself: completing a
//! checksum, cutting a frame into segments. Pure functions on private copies.

use internet_checksum::Checksum;

/// Bytes that the headers of a frame that is to be segmented have at most: Ethernet, two VLAN tags,
/// IPv4 with options, TCP with options.
pub(super) const MAX_HEADER_BYTES: usize = 14 + 8 + 60 + 60;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// What a packet's payload is carried by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// Where the headers of a frame are, in bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Headers {
    pub(super) is_ipv6: bool,
    pub(super) transport: Transport,
    pub(super) network_start: usize,
    pub(super) transport_start: usize,
    pub(super) payload_start: usize,
}

impl Headers {
    /// Bytes from the start of the transport header to its checksum.
    pub(super) fn checksum_offset(&self) -> usize {
        match self.transport {
            Transport::Tcp => 16,
            Transport::Udp => 6,
        }
    }
}

/// True if `ethertype` starts a VLAN tag.
pub(super) fn is_vlan(ethertype: u16) -> bool {
    matches!(ethertype, 0x8100 | 0x88a8)
}

pub(super) fn be16(bytes: &[u8], offset: usize) -> Option<u16> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes))
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    if let Some(space) = bytes.get_mut(offset..offset + value.len()) {
        space.copy_from_slice(value);
    }
}

/// Finds the headers at the start of a TCP or UDP frame; `None` for any other, for a fragment, and
/// for one with IPv6 extension headers. `payload_start` is at most `head.len()`.
pub(super) fn parse(head: &[u8]) -> Option<Headers> {
    let mut ethertype_at = 12;
    let mut ethertype = be16(head, ethertype_at)?;
    for _ in 0..2 {
        if is_vlan(ethertype) {
            ethertype_at += 4;
            ethertype = be16(head, ethertype_at)?;
        }
    }
    let network_start = ethertype_at + 2;
    let network = head.get(network_start..)?;
    let (network_bytes, protocol, is_ipv6) = match ethertype {
        ETHERTYPE_IPV4 => {
            let first = *network.first()?;
            let len = usize::from(first & 0xf) * 4;
            let fragment = be16(network, 6)? & 0x3fff;
            if first >> 4 != 4 || len < 20 || fragment != 0 {
                return None;
            }
            (len, *network.get(9)?, false)
        }
        ETHERTYPE_IPV6 => {
            if *network.first()? >> 4 != 6 {
                return None;
            }
            (40, *network.get(6)?, true)
        }
        _ => return None,
    };
    let transport_start = network_start + network_bytes;
    let segment = head.get(transport_start..)?;
    let (transport, transport_bytes) = match protocol {
        PROTOCOL_TCP => (Transport::Tcp, usize::from(*segment.get(12)? >> 4) * 4),
        PROTOCOL_UDP => (Transport::Udp, 8),
        _ => return None,
    };
    let is_whole = match transport {
        Transport::Tcp => transport_bytes >= 20,
        Transport::Udp => true,
    };
    if !is_whole || segment.len() < transport_bytes {
        return None;
    }
    Some(Headers {
        is_ipv6,
        transport,
        network_start,
        transport_start,
        payload_start: transport_start + transport_bytes,
    })
}

/// Completes the checksum from `start` on, whose pseudo-header is summed up already, and stores it
/// `offset` bytes further. Nothing happens if that is outside of `frame`.
pub(super) fn complete_checksum(frame: &mut [u8], start: usize, offset: usize) {
    let Some(summed) = frame.get(start..) else {
        return;
    };
    let checksum = not_zero(internet_checksum::checksum(summed));
    put(frame, start + offset, &checksum);
}

/// A computed checksum of 0 is sent as its other form: 0 would mean "none" to UDP (RFC 768).
fn not_zero(checksum: [u8; 2]) -> [u8; 2] {
    match checksum {
        [0, 0] => [0xff, 0xff],
        other => other,
    }
}

/// Cuts `frame` into segments with at most `gso_size` bytes of payload and complete checksums. Each
/// is built in `segment`, which is long enough for one, and given to `emit`.
pub(super) fn segment(
    frame: &[u8],
    headers: &Headers,
    gso_size: usize,
    segment: &mut [u8],
    mut emit: impl FnMut(&[u8]),
) {
    let Some((head, payload)) = frame.split_at_checked(headers.payload_start) else {
        return;
    };
    let num_segments = payload.len().div_ceil(gso_size.max(1));
    for (nth, chunk) in payload.chunks(gso_size.max(1)).enumerate() {
        let len = head.len() + chunk.len();
        let Some(segment) = segment.get_mut(..len) else {
            return;
        };
        put(segment, 0, head);
        put(segment, head.len(), chunk);
        fix_network(segment, headers, nth);
        let position = (nth * gso_size, nth == 0, nth + 1 == num_segments);
        fix_transport(segment, headers, position);
        emit(segment);
    }
}

/// Length, identification and header checksum of the `nth` segment.
#[expect(clippy::cast_possible_truncation, reason = "frames are below 64 KiB")]
fn fix_network(segment: &mut [u8], headers: &Headers, nth: usize) {
    let start = headers.network_start;
    if headers.is_ipv6 {
        let len = (segment.len() - start - 40) as u16;
        put(segment, start + 4, &len.to_be_bytes());
        return;
    }
    let len = (segment.len() - start) as u16;
    put(segment, start + 2, &len.to_be_bytes());
    let id = be16(segment, start + 4).unwrap_or(0);
    put(
        segment,
        start + 4,
        &id.wrapping_add(nth as u16).to_be_bytes(),
    );
    put(segment, start + 10, &[0, 0]);
    if let Some(header) = segment.get(start..headers.transport_start) {
        let checksum = internet_checksum::checksum(header);
        put(segment, start + 10, &checksum);
    }
}

/// Sequence number, flags, length and checksum of a segment at byte `offset` of the payload.
#[expect(clippy::cast_possible_truncation, reason = "frames are below 64 KiB")]
fn fix_transport(
    segment: &mut [u8],
    headers: &Headers,
    (offset, is_first, is_last): (usize, bool, bool),
) {
    let start = headers.transport_start;
    let len = segment.len() - start;
    match headers.transport {
        Transport::Tcp => {
            if let Some(&sequence) = segment.get(start + 4..).and_then(<[u8]>::first_chunk) {
                let sequence = u32::from_be_bytes(sequence).wrapping_add(offset as u32);
                put(segment, start + 4, &sequence.to_be_bytes());
            }
            if let Some(flags) = segment.get_mut(start + 13) {
                if !is_last {
                    *flags &= !(TCP_FIN | TCP_PSH);
                }
                if !is_first {
                    *flags &= !TCP_CWR;
                }
            }
        }
        Transport::Udp => put(segment, start + 4, &(len as u16).to_be_bytes()),
    }
    put(segment, start + headers.checksum_offset(), &[0, 0]);
    let checksum = transport_checksum(segment, headers);
    put(segment, start + headers.checksum_offset(), &checksum);
}

/// The checksum of the TCP or UDP packet in `frame`, whose own field is taken as it is.
pub(super) fn transport_checksum(frame: &[u8], headers: &Headers) -> [u8; 2] {
    let (address_start, address_bytes) = if headers.is_ipv6 {
        (headers.network_start + 8, 32)
    } else {
        (headers.network_start + 12, 8)
    };
    let addresses = frame.get(address_start..address_start + address_bytes);
    let packet = frame.get(headers.transport_start..).unwrap_or_default();
    let protocol = match headers.transport {
        Transport::Tcp => PROTOCOL_TCP,
        Transport::Udp => PROTOCOL_UDP,
    };
    let mut checksum = Checksum::new();
    checksum.add_bytes(addresses.unwrap_or_default());
    // The pseudo-headers of IPv4 and IPv6 sum up to the same.
    checksum.add_bytes(&u64::try_from(packet.len()).unwrap_or(0).to_be_bytes());
    checksum.add_bytes(&[0, protocol]);
    checksum.add_bytes(packet);
    not_zero(checksum.checksum())
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
