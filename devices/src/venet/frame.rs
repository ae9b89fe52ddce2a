//! A frame on its way: checked, and still where its sender has it.
//!
//! The headers are a private copy that was read once; the rest is copied when the frame arrives. So
//! nobody decides by bytes that the receiver does not get. The copy is in memory that the worker keeps
//! for it ([`HeadRoom`]), so that a frame is small enough to be handed around.

use std::fs::File;
use std::io;

use vbus::abi::venet::{
    ETHERNET_HEADER_BYTES, FrameMeta, MAX_FRAME_BYTES, MAX_GSO_SEGMENTS, MAX_SEGMENTS,
    VLAN_TAG_BYTES, frame_flag, gso_type, rx_cap, tx_cap,
};
use vm_memory::{Address, GuestMemoryBackend, VolatileSlice};

use super::mac::MacAddress;
use super::packet::{self, Headers, MAX_HEADER_BYTES, Transport};
use crate::GuestRam;
use crate::iovec::{MixedIoVecs, Piece};

/// Most bytes of a frame.
pub(super) const MOST_BYTES: u32 = MAX_FRAME_BYTES + VLAN_TAG_BYTES;
/// Bytes that are read of a frame that is not to be segmented: addresses, EtherType or VLAN tag.
const PLAIN_HEAD_BYTES: usize = 14;

/// Why a frame from a client is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadFrame {
    #[error("frame of {len} bytes, want {ETHERNET_HEADER_BYTES} to {most}")]
    Length { len: u32, most: u32 },
    #[error("frame is not all in the client's memory")]
    Address,
    #[error("bad list of segments")]
    Segments,
    #[error("flags {flags:#x} or type {gso_type} that are unknown or were not negotiated")]
    Flags { flags: u16, gso_type: u8 },
    #[error("checksum of a frame of {len} bytes at {start} + {offset}")]
    Checksum { start: u16, offset: u16, len: u32 },
    #[error("frame of {len} bytes cannot be cut into segments of {gso_size}")]
    Segmentation { gso_size: u16, len: u32 },
}

impl BadFrame {
    /// True if no client that follows the rules sends it, whatever others make it send: it is cut
    /// off. The rest is what a guest's own guests and programs may ask for in vain.
    pub(super) fn is_fault(self) -> bool {
        matches!(self, BadFrame::Address | BadFrame::Segments)
    }
}

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

/// What a sender may ask for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bits of [`tx_cap`].
    pub(super) caps: u32,
    /// Most bytes of payload.
    pub(super) mtu: u32,
}

/// Room for the headers of a frame.
pub(super) type HeadRoom = [u8; MAX_HEADER_BYTES];

/// A checked frame.
pub(super) struct Frame<'a> {
    /// The first bytes, as they were checked.
    head: &'a [u8],
    len: u32,
    body: Body<'a>,
    offload: Offload,
}

#[derive(Clone, Copy)]
enum Body<'a> {
    /// In one place, which was looked up.
    Slice(VolatileSlice<'a>),
    /// In several, all of which are memory.
    Ram {
        ram: &'a GuestRam,
        pieces: &'a [Piece],
    },
    Bytes(&'a [u8]),
}

impl<'a> Frame<'a> {
    /// The frame of `len` bytes in `pieces`, whose lengths sum up to it, as `meta` describes it. `room`
    /// is for its headers.
    pub(super) fn in_ram(
        ram: &'a GuestRam,
        pieces: &'a [Piece],
        len: u32,
        meta: &FrameMeta,
        limits: Limits,
        room: &'a mut HeadRoom,
    ) -> Result<Self, BadFrame> {
        let body = match pieces {
            [piece] => piece.slice(ram),
            _ => None,
        };
        let body = match body {
            Some(slice) => Body::Slice(slice),
            // Or it crosses from one region to the next.
            None => {
                if !pieces.iter().all(|piece| piece.is_in(ram)) {
                    return Err(BadFrame::Address);
                }
                Body::Ram { ram, pieces }
            }
        };
        let mut frame = Frame::unchecked(body, len);
        let head_bytes = head_bytes(meta, len);
        frame.check_length(meta, limits)?;
        let head = room.get_mut(..head_bytes).ok_or(BadFrame::Address)?;
        if !frame.copy(0, VolatileSlice::from(&mut *head)) {
            return Err(BadFrame::Address);
        }
        frame.head = head;
        frame.checked(meta, limits)
    }

    /// The frame in `bytes`, a private copy, as `meta` describes it.
    pub(super) fn in_bytes(
        bytes: &'a [u8],
        meta: &FrameMeta,
        limits: Limits,
    ) -> Result<Self, BadFrame> {
        let mut frame = Frame::complete(bytes);
        frame.check_length(meta, limits)?;
        let head_bytes = head_bytes(meta, frame.len);
        frame.head = bytes.get(..head_bytes).unwrap_or_default();
        frame.checked(meta, limits)
    }

    /// A frame with nothing left to do, from whoever made it.
    fn complete(bytes: &'a [u8]) -> Self {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Frame::unchecked(Body::Bytes(bytes), len)
    }

    fn unchecked(body: Body<'a>, len: u32) -> Self {
        Frame {
            head: &[],
            len,
            body,
            offload: Offload::default(),
        }
    }

    fn check_length(&self, meta: &FrameMeta, limits: Limits) -> Result<(), BadFrame> {
        let most = if meta.gso_type != gso_type::NONE {
            MAX_FRAME_BYTES
        } else {
            let untagged = limits.mtu.saturating_add(ETHERNET_HEADER_BYTES);
            untagged.saturating_add(VLAN_TAG_BYTES).min(MOST_BYTES)
        };
        if self.len < ETHERNET_HEADER_BYTES || self.len > most {
            return Err(BadFrame::Length {
                len: self.len,
                most,
            });
        }
        Ok(())
    }

    /// Checks the rest, once the headers are there.
    fn checked(mut self, meta: &FrameMeta, limits: Limits) -> Result<Self, BadFrame> {
        check_flags(meta, limits.caps)?;
        let offload = &mut self.offload;
        offload.checksum = checksum_of(meta, self.len)?;
        offload.is_checksum_known_right = meta.flags.get() & frame_flag::DATA_VALID != 0;
        let untagged = limits.mtu.saturating_add(ETHERNET_HEADER_BYTES);
        if meta.gso_type != gso_type::NONE {
            self.offload.gso = Some(self.gso(meta, limits.mtu)?);
        } else if self.len > untagged && !self.has_vlan_tag() {
            return Err(BadFrame::Length {
                len: self.len,
                most: untagged,
            });
        }
        Ok(self)
    }

    fn has_vlan_tag(&self) -> bool {
        packet::be16(self.head, 12).is_some_and(packet::is_vlan)
    }

    /// Checks what is to be segmented against the headers that are really there.
    fn gso(&self, meta: &FrameMeta, mtu: u32) -> Result<Gso, BadFrame> {
        let size = meta.gso_size.get();
        let bad = BadFrame::Segmentation {
            gso_size: size,
            len: self.len,
        };
        let headers = packet::parse(self.head).ok_or(bad)?;
        let gso = Gso {
            size,
            has_ecn: meta.flags.get() & frame_flag::ECN != 0,
            headers,
        };
        let expected = (headers.transport_start, headers.checksum_offset());
        let has_checksum = self
            .offload
            .checksum
            .is_some_and(|(start, offset)| (start.into(), offset.into()) == expected);
        let payload_bytes = self.len as usize - headers.payload_start;
        let segment_bytes = headers.payload_start - headers.network_start + usize::from(size);
        let is_right = gso.gso_type() == meta.gso_type
            && !(gso.has_ecn && headers.transport != Transport::Tcp)
            && has_checksum
            && size > 0
            && payload_bytes.div_ceil(usize::from(size)) <= MAX_GSO_SEGMENTS as usize
            && segment_bytes <= mtu as usize;
        if is_right { Ok(gso) } else { Err(bad) }
    }

    /// Bytes of the frame.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn offload(&self) -> &Offload {
        &self.offload
    }

    /// To whom it goes.
    pub(super) fn destination(&self) -> MacAddress {
        self.address_at(0)
    }

    /// Where it comes from.
    pub(super) fn source(&self) -> MacAddress {
        self.address_at(6)
    }

    fn address_at(&self, offset: usize) -> MacAddress {
        let bytes = self.head.get(offset..).and_then(<[u8]>::first_chunk);
        // A checked frame has both.
        MacAddress(bytes.copied().unwrap_or_default())
    }

    /// Copies bytes from `offset` on until `to` is full, which is inside the frame; false if it
    /// cannot.
    pub(super) fn copy(&self, offset: usize, to: VolatileSlice<'_>) -> bool {
        self.try_copy(offset, to).is_some()
    }

    fn try_copy(&self, offset: usize, to: VolatileSlice<'_>) -> Option<()> {
        let mut done = 0;
        if let Some(head) = self.head.get(offset..) {
            done = head.len().min(to.len());
            to.copy_from(head.get(..done)?);
        }
        let (ram, pieces) = match self.body {
            Body::Bytes(bytes) => {
                let left = to.len() - done;
                let bytes = bytes.get(offset + done..)?.get(..left)?;
                to.offset(done).ok()?.copy_from(bytes);
                return Some(());
            }
            Body::Slice(slice) => {
                let rest = slice.subslice(offset + done, to.len() - done).ok()?;
                rest.copy_to_volatile_slice(to.offset(done).ok()?);
                return Some(());
            }
            Body::Ram { ram, pieces } => (ram, pieces),
        };
        let mut skip = offset + done;
        for piece in pieces {
            let piece_bytes = piece.len as usize;
            if done == to.len() {
                break;
            }
            if skip >= piece_bytes {
                skip -= piece_bytes;
                continue;
            }
            let len = (piece_bytes - skip).min(to.len() - done);
            let gpa = piece.gpa.checked_add(skip as u64)?;
            for slice in GuestMemoryBackend::get_slices(ram, gpa, len) {
                let slice = slice.ok()?;
                slice.copy_to_volatile_slice(to.offset(done).ok()?);
                done += slice.len();
            }
            skip = 0;
        }
        (done == to.len()).then_some(())
    }

    /// Writes `prefix` and the frame to `file` with one system call; bytes written. The headers are
    /// those that were checked, the rest is what its sender has there now.
    ///
    /// # Errors
    /// That of `writev(2)`.
    pub(super) fn write_to(
        &self,
        file: &File,
        prefix: &[u8],
        list: &mut MixedIoVecs,
    ) -> io::Result<usize> {
        let head = self.head;
        match self.body {
            Body::Bytes(bytes) => list.write_private(file, &[prefix, bytes]),
            Body::Slice(slice) => {
                let rest = slice.offset(head.len()).map_err(io::Error::other)?;
                list.write_slice(file, &[prefix, head], rest)
            }
            Body::Ram { ram, pieces } => {
                // A head is far shorter than 4 GiB.
                let mut skip = u32::try_from(head.len()).unwrap_or(u32::MAX);
                let rest = pieces.iter().filter_map(|piece| {
                    let skipped = skip.min(piece.len);
                    skip -= skipped;
                    let len = piece.len - skipped;
                    let gpa = piece.gpa.checked_add(skipped.into())?;
                    (len > 0).then_some(Piece { gpa, len })
                });
                list.write(file, &[prefix, head], ram, rest)
            }
        }
    }

    /// Copies the whole frame to the start of `space`; the copy, `None` if there is no room.
    pub(super) fn copy_whole<'s>(&self, space: &'s mut [u8]) -> Option<&'s mut [u8]> {
        let space = space.get_mut(..self.len as usize)?;
        self.copy(0, VolatileSlice::from(&mut *space))
            .then_some(space)
    }

    /// Gives `emit` frames that need of their receiver nothing but `caps`: this one, or what is made
    /// of it in `scratch`. How many those are.
    pub(super) fn for_receiver(
        &self,
        caps: u32,
        scratch: &mut Scratch,
        mut emit: impl FnMut(&Frame<'_>),
    ) -> u32 {
        let mut num_frames = 0;
        let mut emit_complete = |bytes: &[u8]| {
            num_frames += 1;
            emit(&Frame::complete(bytes));
        };
        match self.offload.gso {
            Some(gso) if gso.caps() & !caps != 0 => {
                if let Some(bytes) = self.copy_whole(&mut scratch.frame) {
                    let (size, out) = (gso.size.into(), &mut scratch.segment);
                    packet::segment(bytes, &gso.headers, size, out, emit_complete);
                }
                return num_frames;
            }
            _ => {}
        }
        match self.offload.checksum {
            Some((start, offset)) if caps & rx_cap::CSUM == 0 => {
                if let Some(bytes) = self.copy_whole(&mut scratch.frame) {
                    packet::complete_checksum(bytes, start.into(), offset.into());
                    emit_complete(bytes);
                }
                num_frames
            }
            _ => {
                emit(self);
                1
            }
        }
    }
}

/// Room for a worker to rebuild frames in.
pub(super) struct Scratch {
    /// A whole frame.
    pub(super) frame: Box<[u8]>,
    segment: Box<[u8]>,
    /// For frames that go to a TAP.
    pub(super) list: MixedIoVecs,
}

impl Scratch {
    pub(super) fn new() -> Self {
        let room = || vec![0; MAX_FRAME_BYTES as usize + 64].into_boxed_slice();
        Scratch {
            frame: room(),
            segment: room(),
            list: MixedIoVecs::with_capacity(2 * usize::from(MAX_SEGMENTS)),
        }
    }
}

/// Bytes at the start of a frame that are looked at.
fn head_bytes(meta: &FrameMeta, len: u32) -> usize {
    let most = match meta.gso_type {
        gso_type::NONE => PLAIN_HEAD_BYTES,
        _ => MAX_HEADER_BYTES,
    };
    most.min(len as usize)
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

/// Outside of what can be negotiated: the sender is a kernel that says which checksums are right.
pub(super) const CAP_DATA_VALID: u32 = 1 << 31;

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

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
