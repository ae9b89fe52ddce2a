//! A TAP as one end of the paths of frames.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use vbus::abi::venet::{FrameMeta, MAX_FRAME_BYTES, VLAN_TAG_BYTES, frame_flag, gso_type, rx_cap};
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::frame::{Frame, Limits, Scratch};
use super::mac::MacAddress;
use super::offload::CAP_DATA_VALID;
use crate::GuestRam;
use crate::error::chain;
use crate::iovec::{MixedIoVecs, Piece};
use crate::tap::{HEADER_BYTES, Tap, TapError};

/// `struct virtio_net_hdr_v1`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub(super) struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: U16,
    gso_size: U16,
    csum_start: U16,
    csum_offset: U16,
    num_buffers: U16,
}
const _: () = assert!(size_of::<Header>() == HEADER_BYTES as usize);

/// Values of its fields (VIRTIO 1.2 §5.1.6).
mod header {
    pub(super) const NEEDS_CSUM: u8 = 1;
    pub(super) const DATA_VALID: u8 = 2;
    pub(super) const GSO_NONE: u8 = 0;
    pub(super) const GSO_TCPV4: u8 = 1;
    pub(super) const GSO_TCPV6: u8 = 4;
    pub(super) const GSO_UDP_L4: u8 = 5;
    pub(super) const GSO_ECN: u8 = 0x80;
}

/// The header's types and ours.
const GSO_TYPES: [(u8, u8); 4] = [
    (header::GSO_NONE, gso_type::NONE),
    (header::GSO_TCPV4, gso_type::TCP4),
    (header::GSO_TCPV6, gso_type::TCP6),
    (header::GSO_UDP_L4, gso_type::UDP),
];

/// How long workers have to let go of a TAP; a turn of theirs takes far less.
const RELEASE_MS: u32 = 500;

/// An open TAP. Any thread may send; one at a time receives.
pub(super) struct TapEnd {
    tap: Tap,
    file: Arc<File>,
    is_gone: AtomicBool,
}

/// A frame that was read from a TAP.
pub(super) struct TapFrame {
    /// As a receiver finds it, but with the kernel's idea of the headers' length, and without a
    /// count of slots; `None` if it makes no sense.
    pub(super) meta: Option<FrameMeta>,
    /// Bytes of the frame.
    pub(super) len: u32,
}

/// Room for one frame from a TAP.
pub(super) type TapBuffer = Box<[u8]>;

impl TapEnd {
    /// Opens the TAP `name`, or makes it, with `mtu` bytes of payload, and switches it on.
    ///
    /// # Errors
    /// What fits the [`TapError`], which is logged.
    pub(super) fn open(device: &str, name: &str, mtu: u32) -> Result<Self, Errno> {
        let open = || {
            let tap = Tap::open(name, 1)?;
            tap.set_mtu(u16::try_from(mtu).unwrap_or(u16::MAX))?;
            tap.bring_up()?;
            Ok(tap)
        };
        let tap: Tap = open().map_err(|error: TapError| {
            tracing::warn!("{device}: {}", chain(&error));
            errno(&error)
        })?;
        Self::of(tap)
    }

    /// A TAP that is open and on.
    ///
    /// # Errors
    /// `EIO`: it has no queue.
    pub(super) fn of(tap: Tap) -> Result<Self, Errno> {
        let file = tap.queues().first().map(Arc::clone).ok_or(Errno::IO)?;
        Ok(TapEnd {
            tap,
            file,
            is_gone: AtomicBool::new(false),
        })
    }

    /// Lets go of a TAP that workers were told to let go of, and gives them a moment to do so, for
    /// whoever wants the interface next.
    pub(super) fn release(self: Arc<Self>) {
        for _ in 0..RELEASE_MS {
            if Arc::strong_count(&self) == 1 {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The address of the host's end.
    pub(super) fn mac(&self) -> Result<MacAddress, Errno> {
        self.tap
            .mac()
            .map(MacAddress)
            .map_err(|error| errno(&error))
    }

    /// True once somebody deleted the interface.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.load(Relaxed)
    }

    pub(super) fn new_buffer() -> TapBuffer {
        vec![0; (HEADER_BYTES + MAX_FRAME_BYTES + VLAN_TAG_BYTES) as usize].into_boxed_slice()
    }

    /// Lets the kernel leave to us what a receiver with `caps`, bits of [`rx_cap`], does itself.
    pub(super) fn set_caps(&self, device: &str, caps: u32) {
        let mut offloads = 0;
        for (cap, offload) in [
            (rx_cap::CSUM, libc::TUN_F_CSUM),
            (rx_cap::TSO4, libc::TUN_F_TSO4),
            (rx_cap::TSO6, libc::TUN_F_TSO6),
            (rx_cap::ECN, libc::TUN_F_TSO_ECN),
        ] {
            if caps & cap != 0 {
                offloads |= offload;
            }
        }
        if caps & rx_cap::USO != 0 && self.tap.has_uso() {
            offloads |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
        }
        if let Err(error) = self.tap.set_offloads(offloads) {
            tracing::warn!("{device}: offloads of {}: {error}", self.tap.name());
        }
    }

    /// Gives a frame to the host, straight from where its sender has it; false if the host does not
    /// take it.
    pub(super) fn send(&self, frame: &Frame<'_>, scratch: &mut Scratch) -> bool {
        let header = header_of(&frame.offload().meta(1));
        match frame.write_to(&self.file, header.as_bytes(), &mut scratch.list) {
            Ok(_) => true,
            Err(error) => {
                self.look_at(&error);
                false
            }
        }
    }

    /// Looks whether the interface is still there.
    pub(super) fn check(&self) {
        if let Err(error) = self.tap.check() {
            self.look_at(&error);
        }
    }

    /// Reads the next frame; `None` if there is none. What makes no sense is skipped.
    pub(super) fn receive<'b>(
        &self,
        buffer: &'b mut [u8],
        limits: Limits,
    ) -> Option<Result<Frame<'b>, ()>> {
        let len = match (&*self.file).read(buffer) {
            Ok(len) => len,
            Err(error) => {
                self.look_at(&error);
                return None;
            }
        };
        Some(parse(buffer, len, limits).ok_or(()))
    }

    fn look_at(&self, error: &io::Error) {
        if means_gone(error) && !self.is_gone.swap(true, Relaxed) {
            tracing::warn!("TAP {}: {error}", self.tap.name());
        }
    }
}

/// True if the interface itself is gone. All other errors are of one frame, which is lost: the
/// interface is down (`EIO`), the frame is refused (`EINVAL`), its memory is none (`EFAULT`), there is
/// no memory. A client that provokes them loses its own frames.
fn means_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBADFD | libc::EBADF | libc::ENODEV | libc::ENXIO)
    )
}

/// Where frames of a TAP come from.
pub(super) trait FrameSource {
    /// Reads the next frame into `pieces` of `ram`, and what does not fit there into `tail`; what
    /// came, `None` if there is nothing.
    fn read_into(
        &self,
        list: &mut MixedIoVecs,
        ram: &GuestRam,
        pieces: impl IntoIterator<Item = Piece>,
        tail: &mut [u8],
    ) -> Option<TapFrame>;
}

impl FrameSource for TapEnd {
    fn read_into(
        &self,
        list: &mut MixedIoVecs,
        ram: &GuestRam,
        pieces: impl IntoIterator<Item = Piece>,
        tail: &mut [u8],
    ) -> Option<TapFrame> {
        let frame = read_frame(&self.file, list, ram, pieces, tail);
        frame.inspect_err(|error| self.look_at(error)).ok()
    }
}

/// A socket in place of the TAP: it keeps the bounds of frames as well.
#[cfg(any(test, feature = "test-utils"))]
impl FrameSource for File {
    fn read_into(
        &self,
        list: &mut MixedIoVecs,
        ram: &GuestRam,
        pieces: impl IntoIterator<Item = Piece>,
        tail: &mut [u8],
    ) -> Option<TapFrame> {
        read_frame(self, list, ram, pieces, tail).ok()
    }
}

/// One `readv` of a frame behind its virtio header.
///
/// # Errors
/// That of `readv(2)`.
fn read_frame(
    file: &File,
    list: &mut MixedIoVecs,
    ram: &GuestRam,
    pieces: impl IntoIterator<Item = Piece>,
    tail: &mut [u8],
) -> io::Result<TapFrame> {
    let mut header = Header::new_zeroed();
    let num_bytes = list.read(file, header.as_mut_bytes(), ram, pieces, tail)?;
    let num_bytes = u32::try_from(num_bytes).unwrap_or(u32::MAX);
    Ok(TapFrame {
        meta: meta_of(&header),
        len: num_bytes.saturating_sub(HEADER_BYTES),
    })
}

/// All that a TAP may leave to us.
pub(super) fn limits(mtu: u32) -> Limits {
    Limits {
        caps: CAP_DATA_VALID | all_offloads(),
        mtu,
    }
}

/// Bits of [`rx_cap`] about offloads.
pub(super) fn all_offloads() -> u32 {
    rx_cap::CSUM | rx_cap::TSO4 | rx_cap::TSO6 | rx_cap::ECN | rx_cap::USO
}

/// The frame in the first `len` bytes of `buffer`, behind its header; `None` if it makes no sense.
pub(super) fn parse(buffer: &[u8], len: usize, limits: Limits) -> Option<Frame<'_>> {
    let bytes = buffer.get(..len)?;
    let (header, bytes) = Header::read_from_prefix(bytes).ok()?;
    Frame::in_bytes(bytes, &meta_of(&header)?, limits).ok()
}

/// As a TAP takes and gives it.
pub(super) fn header_of(meta: &FrameMeta) -> Header {
    let mut header = Header::new_zeroed();
    let flags = meta.flags.get();
    if flags & frame_flag::NEEDS_CSUM != 0 {
        header.flags |= header::NEEDS_CSUM;
        header.csum_start = meta.csum_start;
        header.csum_offset = meta.csum_offset;
    } else if flags & frame_flag::DATA_VALID != 0 {
        header.flags |= header::DATA_VALID;
    }
    let pair = GSO_TYPES.iter().find(|(_, ours)| *ours == meta.gso_type);
    header.gso_type = pair.map_or(0, |(theirs, _)| *theirs);
    if flags & frame_flag::ECN != 0 {
        header.gso_type |= header::GSO_ECN;
    }
    header.gso_size = meta.gso_size;
    header.hdr_len = meta.hdr_len;
    header
}

fn meta_of(header: &Header) -> Option<FrameMeta> {
    let theirs = header.gso_type & !header::GSO_ECN;
    let (_, gso_type) = GSO_TYPES.iter().find(|(known, _)| *known == theirs)?;
    let mut flags = 0;
    if header.flags & header::NEEDS_CSUM != 0 {
        flags |= frame_flag::NEEDS_CSUM;
    }
    if header.flags & header::DATA_VALID != 0 {
        flags |= frame_flag::DATA_VALID;
    }
    if header.gso_type & header::GSO_ECN != 0 {
        flags |= frame_flag::ECN;
    }
    Some(FrameMeta {
        csum_start: header.csum_start,
        csum_offset: header.csum_offset,
        gso_size: header.gso_size,
        hdr_len: header.hdr_len,
        flags: flags.into(),
        gso_type: *gso_type,
        ..FrameMeta::default()
    })
}

fn errno(error: &TapError) -> Errno {
    let of_source = |source: &io::Error| {
        source
            .raw_os_error()
            .map_or(Errno::IO, Errno::from_raw_os_error)
    };
    match error {
        TapError::BadName { .. }
        | TapError::BadQueueCount { .. }
        | TapError::NotTap { .. }
        | TapError::SingleQueue { .. } => Errno::INVAL,
        TapError::NoTunDevice => Errno::NODEV,
        TapError::CannotMake { .. } | TapError::NotOwner { .. } | TapError::NotPermitted { .. } => {
            Errno::PERM
        }
        TapError::Busy { .. } => Errno::BUSY,
        TapError::OpenTun { source } | TapError::Setting { source, .. } => of_source(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_the_same_on_both_sides() {
        let flags = [
            0,
            frame_flag::NEEDS_CSUM,
            frame_flag::DATA_VALID,
            frame_flag::NEEDS_CSUM | frame_flag::ECN,
        ];
        for flags in flags {
            for (_, gso_type) in GSO_TYPES {
                let needs_csum = flags & frame_flag::NEEDS_CSUM != 0;
                let meta = FrameMeta {
                    csum_start: if needs_csum { 34 } else { 0 }.into(),
                    csum_offset: if needs_csum { 16 } else { 0 }.into(),
                    gso_size: 1448.into(),
                    hdr_len: 54.into(),
                    flags: flags.into(),
                    gso_type,
                    ..FrameMeta::default()
                };
                assert_eq!(meta_of(&header_of(&meta)), Some(meta));
            }
        }
    }

    #[test]
    fn only_an_interface_that_is_gone_takes_the_link() {
        for errno in [libc::EBADFD, libc::ENODEV] {
            assert!(means_gone(&io::Error::from_raw_os_error(errno)));
        }
        for errno in [libc::EAGAIN, libc::EIO, libc::EINVAL, libc::EFAULT] {
            assert!(!means_gone(&io::Error::from_raw_os_error(errno)));
        }
        assert!(
            !means_gone(&io::ErrorKind::InvalidInput.into()),
            "a bad list"
        );
    }

    #[test]
    fn unknown_segmentation_is_refused() {
        let mut header = Header::new_zeroed();
        header.gso_type = 3; // UFO, which nobody asked for.

        assert_eq!(meta_of(&header), None);
    }

    #[test]
    fn short_read_is_no_frame() {
        assert!(parse(&[0; 100], 11, limits(1500)).is_none());
        assert!(parse(&[0; 100], 12, limits(1500)).is_none());
        assert!(parse(&[0; 100], 26, limits(1500)).is_some());
    }
}
