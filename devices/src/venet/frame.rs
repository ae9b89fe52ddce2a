//! A frame on its way: checked, and still where its sender has it.
//!
//! The headers are a private copy that was read once; the rest is copied when the frame arrives. So
//! nobody decides by bytes that the receiver does not get. The copy is in memory that the worker keeps
//! for it ([`HeadRoom`]), so that a frame is small enough to be handed around.

use std::fs::File;
use std::io;

use vbus::abi::venet::{
    ETHERNET_HEADER_BYTES, FrameMeta, MAX_FRAME_BYTES, MAX_SEGMENTS, VLAN_TAG_BYTES, gso_type,
    rx_cap,
};
use vm_memory::{Address, GuestMemoryBackend, VolatileSlice};

use super::mac::MacAddress;
use super::offload::Offload;
use super::packet::{self, MAX_HEADER_BYTES};
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

/// What a sender may ask for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bits of [`vbus::abi::venet::tx_cap`].
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
        self.offload = Offload::of(meta, self.head, self.len, limits)?;
        let untagged = limits.mtu.saturating_add(ETHERNET_HEADER_BYTES);
        if self.offload.gso.is_none() && self.len > untagged && !self.has_vlan_tag() {
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

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
