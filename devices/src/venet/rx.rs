//! The receiving end of a connection: buffers that the client posted, filled with frames.

use std::collections::VecDeque;
use std::sync::Arc;

use vbus::abi::venet::{FrameMeta, rx_cap};
use vbus::residency::Access;
use vbus::ring::Slot;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use zerocopy::little_endian::U64;

use super::frame::{Frame, MOST_BYTES, Scratch};
use super::metrics::PortMetrics;
use crate::GuestRam;
use crate::client::{Client, RingEnd};
use crate::iovec::Piece;

/// Most buffers that one frame fills: 64 KiB in buffers for an MTU of 1,500 bytes take 44.
pub(super) const MAX_BUFFERS: usize = 64;
/// Buffers that are taken off the ring at once.
const TAKE_SLOTS: usize = 32;

/// Fills the buffers of one client.
pub(super) struct Receiver {
    end: RingEnd,
    client: Arc<Client>,
    ram: GuestRam,
    caps: u32,
    /// If memory of the client may be away.
    access: Option<Arc<Access>>,
    /// The next buffer is not all in memory, and was wished for.
    is_away: bool,
    /// Taken off the ring and not yet filled, in order; at most as many as the ring has.
    held: VecDeque<Slot>,
    /// How many of the first ones held are known to be in the client's memory.
    num_checked: usize,
    /// Room for the slots of one frame.
    filled: Vec<Slot>,
    has_news: bool,
    /// Most buffers that the client had here at once.
    most_held: usize,
}

/// Why a frame was not put into buffers.
enum NotPut {
    /// No buffer, or too small ones, or they are not in memory.
    NoRoom,
    /// A buffer that is none: the client is cut off.
    BadBuffer,
    /// The client is cut off.
    Fault,
}

/// Whether a frame can be put into buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// It can; or trying is all that is left, because the client gave as many buffers as it ever
    /// did.
    Ready,
    /// The client's doorbell tells when it has given more, or the VM when what it gave is in memory.
    Later,
    /// The client says that it has given more, and that is not there: look again, after others had
    /// their turn.
    Unclear,
}

/// The first buffers held, as room for a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) num_buffers: usize,
    pub(super) num_bytes: u64,
}

impl Receiver {
    pub(super) fn new(end: RingEnd, client: Arc<Client>) -> Self {
        Receiver {
            held: VecDeque::with_capacity(end.ring.num_slots() as usize),
            num_checked: 0,
            filled: Vec::with_capacity(MAX_BUFFERS),
            end,
            client,
            ram: GuestRam::default(),
            caps: 0,
            access: None,
            is_away: false,
            has_news: false,
            most_held: 0,
        }
    }

    /// Sets what holds from the next frame on: the client's memory, bits of [`rx_cap`], and how to look
    /// whether memory is there.
    pub(super) fn configure(&mut self, ram: GuestRam, caps: u32, access: Option<Access>) {
        self.ram = ram;
        self.caps = caps;
        self.access = access.map(Arc::new);
        self.is_away = false;
        self.num_checked = 0;
        self.most_held = 0;
    }

    /// Until it is configured again nothing of the client's memory is accessed.
    pub(super) fn end_access(&mut self) {
        self.access = None;
    }

    pub(super) fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// What to enter before [`Receiver::window`], until its buffers are filled.
    pub(super) fn access(&self) -> Option<Arc<Access>> {
        self.access.clone()
    }

    /// Bits of [`rx_cap`].
    pub(super) fn caps(&self) -> u32 {
        self.caps
    }

    /// Copies `frame` to the client, or what its capabilities make of it. Never waits. How many
    /// frames that were, or would have been.
    pub(super) fn deliver(
        &mut self,
        frame: &Frame<'_>,
        scratch: &mut Scratch,
        metrics: &PortMetrics,
    ) -> u32 {
        frame.for_receiver(self.caps, scratch, |frame| match self.put(frame) {
            Ok(()) => {
                metrics.rx_packets.add(1);
                metrics.rx_bytes.add(frame.len().into());
            }
            Err(reason) => {
                metrics.rx_dropped.add(1);
                metrics.rx_away.add(self.is_away.into());
                if matches!(reason, NotPut::BadBuffer) {
                    metrics.rx_errors.add(1);
                }
            }
        })
    }

    fn put(&mut self, frame: &Frame<'_>) -> Result<(), NotPut> {
        let access = self.access();
        let _section = access.as_deref().map(Access::enter);
        let window = self.gather(frame.len())?;
        if window.num_bytes < u64::from(frame.len()) {
            return Err(NotPut::NoRoom);
        }
        let mut offset = 0;
        for nth in 0..window.num_buffers {
            let Some(buffer) = self.held.get(nth) else {
                return Err(NotPut::NoRoom);
            };
            let left = frame.len() as usize - offset;
            let len = left.min(buffer.len as usize);
            if !fill(&self.ram, frame, offset, buffer.addr, len) {
                // Checked when they were gathered.
                return Err(self.bad_buffer(buffer));
            }
            offset += len;
        }
        self.finish(frame.len(), frame.offload().meta(0));
        Ok(())
    }

    /// Returns the first buffers held, which have `len` bytes of a frame in them. `meta` lacks the
    /// count of slots.
    fn finish(&mut self, len: u32, meta: FrameMeta) {
        self.filled.clear();
        let mut left = len;
        while left > 0 {
            let Some(buffer) = self.pop() else {
                break;
            };
            let len = left.min(buffer.len);
            left -= len;
            self.filled.push(Slot {
                addr: buffer.addr,
                len,
                meta: [0; 2],
            });
        }
        // At most MAX_BUFFERS.
        let count = u16::try_from(self.filled.len()).unwrap_or(0);
        if let Some(first) = self.filled.first_mut() {
            let count = count.into();
            first.meta = meta_words(&FrameMeta { count, ..meta });
        }
        // At once: the client works on this frame while we are at the next one. Larger batches were
        // slower in `alacrity bench frames`.
        self.return_filled();
    }

    fn pop(&mut self) -> Option<Slot> {
        self.num_checked = self.num_checked.saturating_sub(1);
        self.held.pop_front()
    }

    /// Checks the first buffers held, as many as have room for `len` bytes, as far as there are so
    /// many, and as one frame can fill.
    fn gather(&mut self, len: u32) -> Result<Window, NotPut> {
        let most = if self.caps & rx_cap::MERGED != 0 {
            MAX_BUFFERS
        } else {
            1
        };
        let mut window = Window::default();
        self.is_away = false;
        while window.num_buffers < most && window.num_bytes < u64::from(len) {
            let nth = window.num_buffers;
            if nth == self.held.len() && !self.take()? {
                break;
            }
            let Some(buffer) = self.held.get(nth) else {
                break;
            };
            if nth >= self.num_checked {
                if buffer.len == 0 || !piece_of(buffer).is_in(&self.ram) {
                    return Err(self.bad_buffer(buffer));
                }
                self.num_checked = nth + 1;
            }
            // A frame may fill all of the last one.
            let most_filled = buffer.len.min(MOST_BYTES);
            if let Some(access) = &self.access
                && !access.has(&self.ram, buffer.addr, most_filled, true)
            {
                self.is_away = true;
                break;
            }
            window.num_buffers += 1;
            window.num_bytes += u64::from(buffer.len);
        }
        if self.is_away
            && let Some(access) = &self.access
        {
            // Those that follow are likely to be away as well.
            let held = self.held.iter().take(MAX_BUFFERS);
            let ranges = held.map(|buffer| (buffer.addr, buffer.len.min(MOST_BYTES)));
            access.wish(&self.ram, ranges, true);
        }
        Ok(window)
    }

    /// Room for a frame of up to `len` bytes that comes from elsewhere, empty if there are no
    /// buffers.
    pub(super) fn window(&mut self, len: u32, metrics: &PortMetrics) -> Window {
        self.gather(len).unwrap_or_else(|reason| {
            if matches!(reason, NotPut::BadBuffer) {
                metrics.rx_errors.add(1);
            }
            Window::default()
        })
    }

    /// The buffers of a window.
    pub(super) fn pieces(&self, window: Window) -> impl Iterator<Item = Piece> {
        self.held.iter().take(window.num_buffers).map(piece_of)
    }

    /// A frame of `len` bytes is in the first buffers held, which have room for it.
    pub(super) fn filled(&mut self, len: u32, meta: FrameMeta, metrics: &PortMetrics) {
        self.finish(len, meta);
        metrics.rx_packets.add(1);
        metrics.rx_bytes.add(len.into());
    }

    /// Takes buffers off the ring; true if there were any.
    fn take(&mut self) -> Result<bool, NotPut> {
        let mut slots = [Slot::default(); TAKE_SLOTS];
        match self.end.ring.take(&mut slots) {
            Ok(num_taken) => {
                self.held.extend(slots.iter().take(num_taken));
                Ok(num_taken > 0)
            }
            Err(fault) => {
                self.client.cut_off("receive", fault);
                Err(NotPut::Fault)
            }
        }
    }

    /// Takes all buffers that are on the ring: at most as many as it has slots.
    fn take_all(&mut self) {
        while self.take().unwrap_or(false) {}
        self.most_held = self.most_held.max(self.held.len());
    }

    fn bad_buffer(&self, buffer: &Slot) -> NotPut {
        let Slot { addr, len, .. } = buffer;
        let reason = format_args!("buffer of {len} bytes at {addr:#x} is none");
        self.client.cut_off("receive", reason);
        NotPut::BadBuffer
    }

    fn return_empty(&mut self, num_buffers: usize) {
        self.filled.clear();
        for _ in 0..num_buffers.min(MAX_BUFFERS) {
            let Some(buffer) = self.pop() else {
                break;
            };
            self.filled.push(Slot {
                addr: buffer.addr,
                ..Slot::default()
            });
        }
        self.return_filled();
    }

    fn return_filled(&mut self) {
        self.has_news |= self.end.ring.give_back_filled(&self.filled) > 0;
    }

    /// Returns all buffers without a frame.
    pub(super) fn flush(&mut self) {
        // A client that posts buffers meanwhile does not keep us here.
        let mut num_left = self.end.ring.num_slots() as usize;
        while num_left > 0 && !self.client.is_cut_off() {
            if self.held.is_empty() && !self.take().unwrap_or(false) {
                break;
            }
            let num_buffers = self.held.len().min(MAX_BUFFERS);
            self.return_empty(num_buffers);
            num_left = num_left.saturating_sub(num_buffers);
        }
    }

    /// Wakes the client if there is anything new and it wants to know.
    pub(super) fn notify(&mut self, metrics: &PortMetrics) {
        if std::mem::take(&mut self.has_news) && self.end.signal.notify() {
            metrics.signals.add(1);
        }
    }

    /// Looks for buffers for a frame of `len` bytes, at least one.
    pub(super) fn look_for_room(&mut self, len: u32, metrics: &PortMetrics) -> Room {
        if self.most_held == 0 {
            // See how many it gives before the first ones are used.
            self.take_all();
        }
        for _ in 0..2 {
            if self.has_room(len, metrics) {
                return Room::Ready;
            }
            if self.is_away {
                metrics.rx_away.add(1);
                return Room::Later;
            }
            // A client gives again what it knows that it got back.
            self.notify(metrics);
            self.end.signal.receiver.disable();
            self.take_all();
            let has_room = self.has_room(len, metrics);
            if self.is_away {
                metrics.rx_away.add(1);
                return Room::Later;
            }
            if has_room || (!self.held.is_empty() && self.held.len() >= self.most_held) {
                return Room::Ready;
            }
            if self.end.signal.receiver.enable() {
                return Room::Later;
            }
        }
        Room::Unclear
    }

    fn has_room(&mut self, len: u32, metrics: &PortMetrics) -> bool {
        self.window(len, metrics).num_bytes >= u64::from(len)
    }

    pub(super) fn is_cut_off(&self) -> bool {
        self.client.is_cut_off()
    }
}

fn piece_of(buffer: &Slot) -> Piece {
    Piece {
        gpa: GuestAddress(buffer.addr),
        len: buffer.len,
    }
}

/// Copies `len` bytes of `frame` from `offset` on to `addr`.
fn fill(ram: &GuestRam, frame: &Frame<'_>, offset: usize, addr: u64, len: usize) -> bool {
    let mut done = 0;
    for slice in GuestMemoryBackend::get_slices(ram, GuestAddress(addr), len) {
        let Ok(slice) = slice else {
            return false;
        };
        let slice_bytes = slice.len();
        if !frame.copy(offset + done, slice) {
            return false;
        }
        done += slice_bytes;
    }
    true
}

/// As a slot has it.
pub(super) fn meta_words(meta: &FrameMeta) -> [u64; 2] {
    let words: [U64; 2] = zerocopy::transmute!(*meta);
    words.map(U64::get)
}

/// From a slot.
pub(super) fn meta_of(words: [u64; 2]) -> FrameMeta {
    let words: [U64; 2] = words.map(U64::new);
    zerocopy::transmute!(words)
}
