//! From a TAP straight into the buffers of a client.
//!
//! Nobody knows how long the next frame is before it is read. So one `readv` gets the buffers that a
//! frame like the last ones needs, and behind them private room for what does not fit: the kernel
//! never cuts a frame off, and small ones do not pay for long scatter lists. A frame that ended in
//! private room is put together there and delivered as if it came from anywhere else; if the client
//! has no buffers for it, it waits for them, as those behind it wait in the TAP.

use vbus::abi::venet::{
    ETHERNET_HEADER_BYTES, FrameMeta, VLAN_TAG_BYTES, frame_flag, gso_type, rx_cap,
};
use vbus::residency::Access;
use vm_memory::{Address, Bytes};

use super::frame::{Frame, MOST_BYTES, Scratch};
use super::metrics::PortMetrics;
use super::rx::{MAX_BUFFERS, Receiver, Room, Window};
use super::tap_end::{self, FrameSource, TapFrame};
use super::tx::Progress;
use crate::iovec::MixedIoVecs;

/// Frames per turn; then others have theirs.
const BUDGET_FRAMES: u32 = 256;
/// Bytes per turn: some 16 of the largest frames.
const BUDGET_BYTES: u64 = 1 << 20;
/// Frames, and bytes, after which the client is woken, so that it works while we do.
const NOTIFY_FRAMES: u32 = 32;
const NOTIFY_BYTES: u64 = 64 << 10;
/// How many frames the scatter list stays long after the last large frame.
const LARGE_FRAMES: u32 = 16;

/// Reads a TAP for one client.
pub(super) struct TapFetch {
    list: MixedIoVecs,
    /// What found no room in buffers, with room for a whole frame.
    room: Box<[u8]>,
    /// A frame in `room`, bytes and description, that waits for buffers.
    waiting: Option<(u32, FrameMeta)>,
    /// How many more frames get buffers for a large one.
    num_large_left: u32,
    /// The last frame came alone.
    was_alone: bool,
}

/// What became of one frame.
enum Fetched {
    /// It is delivered, or it was dropped; its bytes.
    Done(u32),
    /// It waits.
    Waits,
    /// There was none.
    Nothing,
}

impl TapFetch {
    pub(super) fn new() -> Self {
        TapFetch {
            list: MixedIoVecs::with_capacity(2 * MAX_BUFFERS),
            room: vec![0; MOST_BYTES as usize].into_boxed_slice(),
            waiting: None,
            num_large_left: 0,
            was_alone: false,
        }
    }

    /// Fills buffers of `receiver` until there are no more of them or of frames, or it is the turn
    /// of others. What is filled has to be [`Receiver::notify`]ed of.
    pub(super) fn serve(
        &mut self,
        tap: &impl FrameSource,
        mtu: u32,
        receiver: &mut Receiver,
        scratch: &mut Scratch,
        metrics: &PortMetrics,
    ) -> Progress {
        let (mut num_frames, mut num_bytes) = (0, 0);
        let (mut notified_frames, mut notified_bytes) = (0, 0);
        while num_frames < BUDGET_FRAMES && num_bytes < BUDGET_BYTES {
            if receiver.is_cut_off() {
                return Progress::Idle;
            }
            let wanted = self.waiting.map_or(1, |(len, _)| len);
            match receiver.look_for_room(wanted, metrics) {
                Room::Ready => {}
                Room::Later => return Progress::Idle,
                Room::Unclear => return Progress::More,
            }
            let fetched = match self.waiting.take() {
                Some((len, meta)) => {
                    self.deliver(len, &meta, mtu, receiver, scratch, metrics);
                    Fetched::Done(len)
                }
                None => self.fetch(tap, mtu, receiver, scratch, metrics),
            };
            num_frames += 1;
            match fetched {
                Fetched::Done(len) => num_bytes += u64::from(len),
                Fetched::Waits => {}
                Fetched::Nothing => {
                    if num_frames > 1 {
                        self.was_alone = num_frames == 2;
                    }
                    return Progress::Idle;
                }
            }
            // Another one alone: its client need not wait until the TAP says that it is empty.
            if num_frames == 1 && self.was_alone {
                receiver.notify(metrics);
            }
            if num_frames - notified_frames >= NOTIFY_FRAMES
                || num_bytes - notified_bytes >= NOTIFY_BYTES
            {
                (notified_frames, notified_bytes) = (num_frames, num_bytes);
                receiver.notify(metrics);
            }
        }
        Progress::More
    }

    fn fetch(
        &mut self,
        tap: &impl FrameSource,
        mtu: u32,
        receiver: &mut Receiver,
        scratch: &mut Scratch,
        metrics: &PortMetrics,
    ) -> Fetched {
        let plain_bytes = mtu.saturating_add(ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES);
        let wanted = match self.num_large_left {
            0 => plain_bytes.min(MOST_BYTES),
            _ => MOST_BYTES,
        };
        let access = receiver.access();
        let section = access.as_deref().map(Access::enter);
        let window = receiver.window(wanted, metrics);
        // What a window has beyond the longest frame stays empty.
        let window_bytes = u32::try_from(window.num_bytes).unwrap_or(u32::MAX);
        let tail_start = (window_bytes as usize).min(self.room.len());
        let tail = self.room.get_mut(tail_start..).unwrap_or_default();
        let pieces = receiver.pieces(window);
        let Some(TapFrame { meta, len }) =
            tap.read_into(&mut self.list, receiver.ram(), pieces, tail)
        else {
            return Fetched::Nothing;
        };
        self.num_large_left = match len > plain_bytes {
            true => LARGE_FRAMES,
            false => self.num_large_left.saturating_sub(1),
        };
        let Some(mut meta) = meta else {
            metrics.rx_dropped.add(1);
            return Fetched::Done(len);
        };
        let is_gso = meta.gso_type != gso_type::NONE;
        let most = if is_gso { MOST_BYTES } else { plain_bytes };
        if len < ETHERNET_HEADER_BYTES || len > most {
            metrics.rx_dropped.add(1);
            return Fetched::Done(len);
        }
        let is_wanted = needed_caps(&meta) & !receiver.caps() == 0;
        if is_wanted && len <= window_bytes {
            if is_gso {
                meta.hdr_len = header_bytes(receiver, window, &meta, len).into();
            }
            receiver.filled(len, meta, metrics);
            return Fetched::Done(len);
        }
        if !self.make_whole(receiver, window, len.min(window_bytes)) {
            metrics.rx_dropped.add(1);
            return Fetched::Done(len);
        }
        if is_wanted {
            self.waiting = Some((len, meta));
            return Fetched::Waits;
        }
        drop(section);
        // It was in the TAP when this client came, which cannot do so much.
        self.deliver(len, &meta, mtu, receiver, scratch, metrics);
        Fetched::Done(len)
    }

    /// Copies the first `len` bytes of a frame from the buffers that they are in.
    fn make_whole(&mut self, receiver: &Receiver, window: Window, len: u32) -> bool {
        let mut done = 0;
        for piece in receiver.pieces(window) {
            let more = (len as usize - done).min(piece.len as usize);
            let Some(space) = self.room.get_mut(done..done + more) else {
                return false;
            };
            if receiver.ram().read_slice(space, piece.gpa).is_err() {
                return false;
            }
            done += more;
        }
        done == len as usize
    }

    /// Delivers the frame of `len` bytes in `room`.
    fn deliver(
        &self,
        len: u32,
        meta: &FrameMeta,
        mtu: u32,
        receiver: &mut Receiver,
        scratch: &mut Scratch,
        metrics: &PortMetrics,
    ) {
        let bytes = self.room.get(..len as usize).unwrap_or_default();
        match Frame::in_bytes(bytes, meta, tap_end::limits(mtu)) {
            Ok(frame) => {
                receiver.deliver(&frame, scratch, metrics);
            }
            // A client that rewrites its buffers while we copy them harms itself.
            Err(_) => metrics.rx_dropped.add(1),
        }
    }
}

/// Bits of [`rx_cap`] that a receiver of this frame needs.
fn needed_caps(meta: &FrameMeta) -> u32 {
    let flags = meta.flags.get();
    let mut caps = match meta.gso_type {
        gso_type::TCP4 => rx_cap::TSO4,
        gso_type::TCP6 => rx_cap::TSO6,
        gso_type::UDP => rx_cap::USO,
        _ => 0,
    };
    if flags & frame_flag::NEEDS_CSUM != 0 {
        caps |= rx_cap::CSUM;
    }
    if flags & frame_flag::ECN != 0 {
        caps |= rx_cap::ECN;
    }
    caps
}

/// Bytes of all headers of a frame to be segmented: the kernel tells how much of it is in one piece
/// on its side. A byte that the client has changed meanwhile misleads nobody but the client.
fn header_bytes(receiver: &Receiver, window: Window, meta: &FrameMeta, len: u32) -> u16 {
    let start = meta.csum_start.get();
    let transport_bytes = match meta.gso_type {
        gso_type::UDP => 8,
        _ => {
            let at = u32::from(start) + 12;
            let data_offset = byte_at(receiver, window, at).unwrap_or(0) >> 4;
            u16::from(data_offset.max(5)) * 4
        }
    };
    let most = u16::try_from(len).unwrap_or(u16::MAX);
    start.saturating_add(transport_bytes).min(most)
}

fn byte_at(receiver: &Receiver, window: Window, offset: u32) -> Option<u8> {
    let mut skip = offset;
    for piece in receiver.pieces(window) {
        if skip < piece.len {
            let gpa = piece.gpa.checked_add(skip.into())?;
            return receiver.ram().read_obj(gpa).ok();
        }
        skip -= piece.len;
    }
    None
}

#[cfg(test)]
#[path = "tap_fetch_tests.rs"]
mod tests;
