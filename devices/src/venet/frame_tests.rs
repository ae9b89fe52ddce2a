//! Frames in a memory of two regions that touch.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use vbus::abi::venet::{frame_flag, tx_cap};
use vm_memory::{Bytes, GuestAddress};

use super::*;

const SEAM: u64 = 0x1000;
const LIMITS: Limits = Limits { caps: 0, mtu: 1500 };

fn ram() -> GuestRam {
    let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(SEAM), 0x1000)];
    let ram = GuestRam::from_ranges(&ranges).unwrap();
    for n in 0..0x2000_u64 {
        ram.write_obj((n % 251) as u8, GuestAddress(n)).unwrap();
    }
    ram
}

fn piece(gpa: u64, len: u32) -> Piece {
    Piece {
        gpa: GuestAddress(gpa),
        len,
    }
}

fn bytes_at(gpa: u64, len: u32) -> Vec<u8> {
    (gpa..gpa + u64::from(len))
        .map(|n| (n % 251) as u8)
        .collect()
}

fn in_ram<'a>(
    ram: &'a GuestRam,
    pieces: &'a [Piece],
    room: &'a mut HeadRoom,
) -> Result<Frame<'a>, BadFrame> {
    let len = pieces.iter().map(|piece| piece.len).sum();
    Frame::in_ram(ram, pieces, len, &FrameMeta::default(), LIMITS, room)
}

#[test]
fn pieces_are_joined_across_regions() {
    let ram = ram();
    let pieces = [piece(0x100, 9), piece(SEAM - 20, 40), piece(0x1800, 60)];
    let mut wanted = bytes_at(0x100, 9);
    wanted.extend(bytes_at(SEAM - 20, 40));
    wanted.extend(bytes_at(0x1800, 60));
    let mut room = [0; MAX_HEADER_BYTES];
    let frame = in_ram(&ram, &pieces, &mut room).unwrap();

    let mut space = [0; 200];
    assert_eq!(frame.copy_whole(&mut space).unwrap(), wanted);
    for offset in 0..wanted.len() {
        let mut part = vec![0; (wanted.len() - offset).min(33)];
        assert!(frame.copy(offset, VolatileSlice::from(&mut part[..])));
        assert_eq!(part, wanted[offset..offset + part.len()]);
    }
}

#[test]
fn copy_past_the_end_is_refused() {
    let ram = ram();
    let pieces = [piece(0, 100)];
    let mut room = [0; MAX_HEADER_BYTES];
    let frame = in_ram(&ram, &pieces, &mut room).unwrap();

    let mut space = [0; 20];
    assert!(frame.copy(80, VolatileSlice::from(&mut space[..])));
    assert!(!frame.copy(81, VolatileSlice::from(&mut space[..])));
    assert!(!frame.copy(usize::MAX - 30, VolatileSlice::from(&mut space[..])));
    assert!(frame.copy_whole(&mut space).is_none());
}

#[test]
fn addresses_outside_of_memory_are_refused() {
    let ram = ram();

    for (gpa, len) in [(0x2000 - 59, 60), (u64::MAX - 30, 60), (1 << 40, 60)] {
        let mut room = [0; MAX_HEADER_BYTES];
        let result = in_ram(&ram, &[piece(0, 20), piece(gpa, len)], &mut room).map(|_| ());
        assert_eq!(result, Err(BadFrame::Address), "{gpa:#x}");
    }
}

#[test]
fn sender_that_rewrites_its_headers_does_not_change_what_was_checked() {
    let ram = ram();
    let pieces = [piece(0, 100)];
    let mut room = [0; MAX_HEADER_BYTES];
    let frame = in_ram(&ram, &pieces, &mut room).unwrap();
    let before = frame.destination();

    ram.write_slice(&[0xff; 100], GuestAddress(0)).unwrap();

    let mut space = [0; 100];
    let bytes = frame.copy_whole(&mut space).unwrap();
    assert_eq!(bytes[..6], before.0);
    assert_eq!(bytes[12..15], [12, 13, 0xff], "only the rest is theirs");
}

#[test]
fn what_was_not_negotiated_is_refused() {
    for (flags, gso_type) in [
        (frame_flag::NEEDS_CSUM, 0),
        (frame_flag::SG, 0),
        (frame_flag::DATA_VALID, 0),
        (frame_flag::ECN, 0),
        (0, gso_type::TCP4),
        (0, 200),
    ] {
        let meta = FrameMeta {
            flags: flags.into(),
            gso_type,
            ..FrameMeta::default()
        };
        let result = Frame::in_bytes(&[0; 60], &meta, LIMITS).map(|_| ());
        assert_eq!(result, Err(BadFrame::Flags { flags, gso_type }));
    }
}

#[test]
fn checksum_lies_inside_of_the_frame() {
    let limits = Limits {
        caps: tx_cap::CSUM,
        mtu: 1500,
    };
    let check = |start: u16, offset: u16| {
        let meta = FrameMeta {
            flags: frame_flag::NEEDS_CSUM.into(),
            csum_start: start.into(),
            csum_offset: offset.into(),
            ..FrameMeta::default()
        };
        Frame::in_bytes(&[0; 60], &meta, limits).is_ok()
    };

    assert!(check(14, 0) && check(34, 24) && check(58, 0));
    assert!(!check(13, 0) && !check(34, 25) && !check(59, 0) && !check(60, 0));
    assert!(!check(u16::MAX, u16::MAX));
}

fn written(frame: &Frame<'_>, prefix: &[u8]) -> Vec<u8> {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    let ours = File::from(OwnedFd::from(ours));
    let mut list = MixedIoVecs::default();
    let len = frame.write_to(&ours, prefix, &mut list).unwrap();
    let mut bytes = vec![0; 70_000];
    let num_read = File::from(OwnedFd::from(theirs)).read(&mut bytes).unwrap();
    assert_eq!(num_read, len);
    bytes.truncate(len);
    bytes
}

#[test]
fn frame_is_written_in_one_piece_wherever_it_is() {
    let ram = ram();
    // The head ends inside of the second piece.
    let pieces = [piece(0x100, 9), piece(SEAM - 20, 40), piece(0x1800, 60)];
    let mut wanted = b"header".to_vec();
    wanted.extend(bytes_at(0x100, 9));
    wanted.extend(bytes_at(SEAM - 20, 40));
    wanted.extend(bytes_at(0x1800, 60));

    let mut room = [0; MAX_HEADER_BYTES];
    let frame = in_ram(&ram, &pieces, &mut room).unwrap();
    assert_eq!(written(&frame, b"header"), wanted);

    let bytes = bytes_at(0x100, 300);
    let private = Frame::in_bytes(&bytes, &FrameMeta::default(), LIMITS).unwrap();
    assert_eq!(written(&private, b""), bytes);
    assert_eq!(written(&Frame::complete(&bytes), b""), bytes);
}

#[test]
fn sender_that_rewrites_its_headers_sends_those_that_were_checked() {
    let ram = ram();
    let pieces = [piece(0x100, 100)];
    let wanted = bytes_at(0x100, 100);
    let mut room = [0; MAX_HEADER_BYTES];
    let frame = in_ram(&ram, &pieces, &mut room).unwrap();

    ram.write_slice(&[0xff; 100], GuestAddress(0x100)).unwrap();

    let sent = written(&frame, b"");
    assert_eq!(sent[..14], wanted[..14]);
    assert_eq!(sent[14..], [0xff; 86]);
    assert_eq!(frame.destination().0, wanted[..6]);
}
