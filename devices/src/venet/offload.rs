//! What the sender of a frame left to be done: a checksum, segments.

use vbus::abi::venet::{
    ETHERNET_HEADER_BYTES, FrameMeta, MAX_GSO_SEGMENTS, frame_flag, gso_type, rx_cap, tx_cap,
};

use super::frame::{BadFrame, Limits};
use super::packet::{self, Headers, Transport};

/// Outside of what can be negotiated: the sender is a kernel that says which checksums are right.
pub(super) const CAP_DATA_VALID: u32 = 1 << 31;

/// What the sender left to be done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Offload {
    /// Where the checksum starts, and where it is stored from there.
    pub(super) checksum: Option<(u16, u16)>,
    pub(super) is_checksum_known_right: bool,
    pub(super) gso: Option<Gso>,
}

/// A frame that is to be segmented, with headers as they were found in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gso {
    pub(super) size: u16,
    pub(super) has_ecn: bool,
    pub(super) headers: Headers,
}

impl Gso {
    /// Checks what is to be segmented against the headers that are really there.
    fn of(
        meta: &FrameMeta,
        head: &[u8],
        len: u32,
        mtu: u32,
        checksum: Option<(u16, u16)>,
    ) -> Result<Self, BadFrame> {
        let size = meta.gso_size.get();
        let bad = BadFrame::Segmentation {
            gso_size: size,
            len,
        };
        let headers = packet::parse(head).ok_or(bad)?;
        let gso = Gso {
            size,
            has_ecn: meta.flags.get() & frame_flag::ECN != 0,
            headers,
        };
        let expected = (headers.transport_start, headers.checksum_offset());
        let has_checksum =
            checksum.is_some_and(|(start, offset)| (start.into(), offset.into()) == expected);
        let payload_bytes = len as usize - headers.payload_start;
        let segment_bytes = headers.payload_start - headers.network_start + usize::from(size);
        let is_right = gso.gso_type() == meta.gso_type
            && !(gso.has_ecn && headers.transport != Transport::Tcp)
            && has_checksum
            && size > 0
            && payload_bytes.div_ceil(usize::from(size)) <= MAX_GSO_SEGMENTS as usize
            && segment_bytes <= mtu as usize;
        if is_right { Ok(gso) } else { Err(bad) }
    }

    pub(super) fn gso_type(&self) -> u8 {
        match (self.headers.transport, self.headers.is_ipv6) {
            (Transport::Udp, _) => gso_type::UDP,
            (Transport::Tcp, false) => gso_type::TCP4,
            (Transport::Tcp, true) => gso_type::TCP6,
        }
    }

    /// Bits of [`rx_cap`] that its receiver needs.
    pub(super) fn caps(&self) -> u32 {
        let ecn = if self.has_ecn { rx_cap::ECN } else { 0 };
        ecn | match self.gso_type() {
            gso_type::TCP4 => rx_cap::TSO4,
            gso_type::TCP6 => rx_cap::TSO6,
            _ => rx_cap::USO,
        }
    }
}

impl Offload {
    /// What `meta` asks for, of a frame of `len` bytes that begins with `head`.
    ///
    /// # Errors
    /// It was not negotiated, or it does not fit the frame.
    pub(super) fn of(
        meta: &FrameMeta,
        head: &[u8],
        len: u32,
        limits: Limits,
    ) -> Result<Self, BadFrame> {
        check_flags(meta, limits.caps)?;
        let checksum = checksum_of(meta, len)?;
        let gso = match meta.gso_type {
            gso_type::NONE => None,
            _ => Some(Gso::of(meta, head, len, limits.mtu, checksum)?),
        };
        Ok(Offload {
            checksum,
            is_checksum_known_right: meta.flags.get() & frame_flag::DATA_VALID != 0,
            gso,
        })
    }

    /// As a receiver finds it in its slot.
    pub(super) fn meta(&self, count: u16) -> FrameMeta {
        let mut meta = FrameMeta {
            count: count.into(),
            ..FrameMeta::default()
        };
        let mut flags = 0;
        if let Some((start, offset)) = self.checksum {
            flags |= frame_flag::NEEDS_CSUM;
            meta.csum_start = start.into();
            meta.csum_offset = offset.into();
        } else if self.is_checksum_known_right {
            flags |= frame_flag::DATA_VALID;
        }
        if let Some(gso) = self.gso {
            meta.gso_type = gso.gso_type();
            meta.gso_size = gso.size.into();
            // Headers are at most MAX_HEADER_BYTES.
            let hdr_len = u16::try_from(gso.headers.payload_start).unwrap_or(0);
            meta.hdr_len = hdr_len.into();
            if gso.has_ecn {
                flags |= frame_flag::ECN;
            }
        }
        meta.flags = flags.into();
        meta
    }
}

/// Refuses what is unknown, reserved, or was not negotiated.
fn check_flags(meta: &FrameMeta, caps: u32) -> Result<(), BadFrame> {
    let flags = meta.flags.get();
    let mut allowed = 0;
    for (cap, flag) in [
        (tx_cap::SG, frame_flag::SG),
        (tx_cap::CSUM, frame_flag::NEEDS_CSUM),
        (tx_cap::ECN, frame_flag::ECN),
        (CAP_DATA_VALID, frame_flag::DATA_VALID),
    ] {
        if caps & cap != 0 {
            allowed |= flag;
        }
    }
    let cap = match meta.gso_type {
        gso_type::NONE => Some(0),
        gso_type::TCP4 => Some(tx_cap::TSO4),
        gso_type::TCP6 => Some(tx_cap::TSO6),
        gso_type::UDP => Some(tx_cap::USO),
        _ => None,
    };
    let is_type_allowed = cap.is_some_and(|cap| caps & cap == cap);
    let has_reserved = meta.reserved0 != 0 || meta.reserved1.get() != 0;
    if flags & !allowed != 0 || !is_type_allowed || has_reserved {
        return Err(BadFrame::Flags {
            flags,
            gso_type: meta.gso_type,
        });
    }
    Ok(())
}

fn checksum_of(meta: &FrameMeta, len: u32) -> Result<Option<(u16, u16)>, BadFrame> {
    if meta.flags.get() & frame_flag::NEEDS_CSUM == 0 {
        return Ok(None);
    }
    let (start, offset) = (meta.csum_start.get(), meta.csum_offset.get());
    // Both bytes of the checksum are in the frame, behind the Ethernet header.
    if u32::from(start) < ETHERNET_HEADER_BYTES || u32::from(start) + u32::from(offset) + 2 > len {
        return Err(BadFrame::Checksum { start, offset, len });
    }
    Ok(Some((start, offset)))
}
