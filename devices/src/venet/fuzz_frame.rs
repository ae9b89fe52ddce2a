//! Frames on bytes of a fuzzer.

use vbus::abi::venet::{ETHERNET_HEADER_BYTES, FrameMeta, MAX_FRAME_BYTES, frame_flag, gso_type};

use super::mac::MacAddress;
use crate::fuzz_ring::{byte, cut, half};

/// What a frame that is shorter than it says is filled with.
const FILLER: u8 = 0xa5;

/// A frame with headers that make sense, or with anything; how it is described may be wrong in any case.
pub(super) fn frame(to: MacAddress, from: MacAddress, bytes: &mut &[u8]) -> (Vec<u8>, FrameMeta) {
    let choice = byte(bytes);
    let len = usize::from(half(bytes)).max(1) + usize::from(byte(bytes) % 64);
    let mut frame = [to.0, from.0].concat();
    let mut meta = FrameMeta::default();
    let mut start = 14;
    if choice & 8 != 0 {
        frame.extend([0x81, 0, 0, 5]);
        start += 4;
    }
    let (gso_type, transport) = match choice % 4 {
        1 => {
            frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6]);
            (gso_type::TCP4, 20)
        }
        2 => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 17, 64]);
            (gso_type::UDP, 40)
        }
        3 => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 6, 64]);
            (gso_type::TCP6, 40)
        }
        _ => (gso_type::NONE, 0),
    };
    if gso_type != gso_type::NONE {
        let transport = start + transport;
        frame.resize(usize::from(transport) + 12, 0);
        frame.push(0x50);
        let offset = if gso_type == gso_type::UDP { 6 } else { 16 };
        meta.flags = frame_flag::NEEDS_CSUM.into();
        meta.csum_start = transport.into();
        meta.csum_offset = offset.into();
    }
    if choice & 16 != 0 {
        meta.gso_type = gso_type;
        meta.gso_size = half(bytes).into();
    }
    if choice & 32 != 0 {
        meta.flags = (meta.flags.get() ^ u16::from(byte(bytes))).into();
        meta.gso_type ^= byte(bytes) % 8;
        meta.csum_start = (meta.csum_start.get() ^ half(bytes)).into();
        meta.csum_offset = (meta.csum_offset.get() ^ u16::from(byte(bytes))).into();
        meta.count = u16::from(byte(bytes)).into();
    }
    let num_given = usize::from(byte(bytes)) % 64;
    frame.extend(cut(bytes, num_given));
    frame.resize(
        len.min((MAX_FRAME_BYTES + ETHERNET_HEADER_BYTES) as usize),
        FILLER,
    );
    (frame, meta)
}
