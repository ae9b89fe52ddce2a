//! The network interface `virtual-ethernet`, version 2.
//!
//! A frame is one slot of a ring: length, checksum and segmentation are in the slot itself. A frame
//! to transmit that is scattered has its segments in a pool that was shared once; a frame that is
//! received may fill several slots, if that was negotiated.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What interfaces of this ABI have as their kind.
pub const KIND: &str = "virtual-ethernet";
/// Version of this ABI, as given to `open`.
pub const VERSION: u32 = 2;

/// Shared memory of a connection, by its id.
pub mod shm_id {
    /// Ring of empty buffers to receive into; with a signal.
    pub const RX_RING: u32 = 0;
    /// Ring of frames to transmit; with a signal.
    pub const TX_RING: u32 = 1;
    /// Pool of [`super::Segment`]s for scattered frames; without a signal. Needs
    /// [`super::tx_cap::SG`].
    pub const TX_SEGMENTS: u32 = 2;
    /// Ring of empty slots that come back as events in `meta`; with a signal. Needs
    /// [`super::event_cap::LINK_STATE`].
    pub const EVENT_RING: u32 = 3;
}

/// Functions of `call`.
pub mod func {
    /// Starts: frames flow. No data. `EINVAL` without both rings, or without what was negotiated:
    /// the pool for [`super::tx_cap::SG`], the event ring for [`super::event_cap::LINK_STATE`].
    /// `EEXIST` if up.
    pub const LINK_UP: u32 = 0;
    /// Stops: rings and buffers stay where they are, for the next [`LINK_UP`]. No data. `ENOENT` if
    /// down.
    pub const LINK_DOWN: u32 = 1;
    /// The interface's own address: 6 bytes out.
    pub const MAC_QUERY: u32 = 2;
    /// Negotiates a group of capabilities: [`super::Capabilities`] in and out. What comes out
    /// replaces what the group had. Segmentation is not given without checksums, nor ECN without
    /// TCP segmentation. `EBUSY` if up.
    pub const NEGOTIATE: u32 = 3;
    /// Returns all receive buffers that the device has, empty, with `len` and `count` 0. No data.
    /// `EINVAL` if down.
    pub const FLUSH_RX: u32 = 4;
    /// [`super::LinkInfo`] out.
    pub const LINK_QUERY: u32 = 5;
}

/// Groups of capabilities.
pub mod cap_group {
    /// What the driver may leave to the device: [`super::tx_cap`].
    pub const TX: u32 = 0;
    /// Which events there are: [`super::event_cap`].
    pub const EVENTS: u32 = 1;
    /// What the device may leave to the driver: [`super::rx_cap`].
    pub const RX: u32 = 2;
}

/// Bits of [`cap_group::TX`].
pub mod tx_cap {
    /// Scattered frames.
    pub const SG: u32 = 1 << 0;
    /// TCP over IPv4 to be segmented.
    pub const TSO4: u32 = 1 << 1;
    /// TCP over IPv6 to be segmented.
    pub const TSO6: u32 = 1 << 2;
    /// TCP with explicit congestion notification to be segmented.
    pub const ECN: u32 = 1 << 3;
    /// UDP to be segmented.
    pub const USO: u32 = 1 << 4;
    /// Checksums to be completed.
    pub const CSUM: u32 = 1 << 5;
}

/// Bits of [`cap_group::EVENTS`].
pub mod event_cap {
    /// [`super::event::LINK_STATE`].
    pub const LINK_STATE: u32 = 1 << 0;
}

/// Bits of [`cap_group::RX`]: the numbers of [`tx_cap`] where they mean the same.
pub mod rx_cap {
    /// Frames that fill several slots.
    pub const MERGED: u32 = 1 << 0;
    /// TCP over IPv4 that was not segmented; needs [`MERGED`] unless buffers hold 64 KiB.
    pub const TSO4: u32 = 1 << 1;
    /// TCP over IPv6 that was not segmented.
    pub const TSO6: u32 = 1 << 2;
    /// TCP with explicit congestion notification that was not segmented.
    pub const ECN: u32 = 1 << 3;
    /// UDP that was not segmented.
    pub const USO: u32 = 1 << 4;
    /// Checksums that are not complete.
    pub const CSUM: u32 = 1 << 5;
}

/// Events in `meta[0]` of a slot of the event ring; `meta[1]` is the argument.
pub mod event {
    /// The link is down (0) or up (1).
    pub const LINK_STATE: u64 = 0;
}

/// Flags of [`FrameMeta::flags`].
pub mod frame_flag {
    /// The checksum from `csum_start` on is to be stored at `csum_start + csum_offset`.
    pub const NEEDS_CSUM: u16 = 1 << 0;
    /// Checksums are known to be right. To receive only.
    pub const DATA_VALID: u16 = 1 << 1;
    /// `addr` is a byte offset into the pool of segments, `count` their number. To transmit only.
    pub const SG: u16 = 1 << 2;
    /// The TCP segments carry ECN.
    pub const ECN: u16 = 1 << 3;
}

/// Values of [`FrameMeta::gso_type`].
pub mod gso_type {
    /// One frame as it is.
    pub const NONE: u8 = 0;
    /// To be segmented as TCP over IPv4.
    pub const TCP4: u8 = 1;
    /// To be segmented as TCP over IPv6.
    pub const TCP6: u8 = 2;
    /// To be segmented as UDP.
    pub const UDP: u8 = 3;
}

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER_BYTES: u32 = 14;
/// Bytes that a frame may have more than its MTU and header if it has a VLAN tag (EtherType 0x8100
/// or 0x88a8).
pub const VLAN_TAG_BYTES: u32 = 4;
/// Most segments that a frame to be segmented makes; one that makes more is dropped.
pub const MAX_GSO_SEGMENTS: u32 = 1024;
/// Most bytes of a frame, header included, segmented or not.
pub const MAX_FRAME_BYTES: u32 = 65_535 + ETHERNET_HEADER_BYTES;
/// Most segments of a scattered frame.
pub const MAX_SEGMENTS: u16 = 32;
/// Most bytes of the pool of segments.
pub const MAX_SEGMENT_POOL_BYTES: u32 = 2 << 20;

/// `meta` of a slot that carries a frame.
#[repr(C, align(8))]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FrameMeta {
    /// Byte of the frame where the checksum starts.
    pub csum_start: U16,
    /// Where to store it, from `csum_start` on.
    pub csum_offset: U16,
    /// Payload bytes of each segment, which fits the MTU with its headers.
    pub gso_size: U16,
    /// Bytes of all headers, Ethernet to TCP or UDP; to transmit a hint, the device reads the frame.
    pub hdr_len: U16,
    /// [`frame_flag`].
    pub flags: U16,
    /// [`gso_type`]. All but [`gso_type::NONE`] need [`frame_flag::NEEDS_CSUM`] at the TCP or UDP
    /// header.
    pub gso_type: u8,
    /// Zero.
    pub reserved0: u8,
    /// To transmit, with [`frame_flag::SG`]: segments. Received: slots that the frame fills, in the
    /// first of them; 0 in the others, and in a buffer that comes back without a frame.
    pub count: U16,
    /// Zero.
    pub reserved1: U16,
}

/// A part of a scattered frame.
#[repr(C, align(8))]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Segment {
    /// Address in the memory context of the connection.
    pub addr: U64,
    /// Bytes.
    pub len: U32,
    /// Zero.
    pub reserved: U32,
}

/// Data of [`func::NEGOTIATE`].
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Capabilities {
    /// [`cap_group`]; an unknown one has no capabilities.
    pub group: U32,
    /// In: what the driver wants. Out: what it gets.
    pub bits: U32,
}

/// Data of [`func::LINK_QUERY`].
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct LinkInfo {
    /// Bytes of payload that a frame has at most, unless it is segmented later.
    pub mtu: U32,
    /// 1 while the backend has a link.
    pub is_up: U32,
}

const _: () = assert!(size_of::<FrameMeta>() == 16);
const _: () = assert!(size_of::<Segment>() == 16);
