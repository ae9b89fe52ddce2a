//! The receiving end of a connection: buffers that the client posted, filled with frames.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use vbus::abi::venet::{FrameMeta, rx_cap};
use vbus::device::{FaultReporter, ShmSignal};
use vbus::ring::{RingFault, Slot, South};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use zerocopy::little_endian::U64;

use super::frame::{Frame, Scratch};
use super::metrics::PortMetrics;
use crate::GuestRam;

/// Most buffers that one frame fills: 64 KiB in buffers for an MTU of 1,500 bytes take 44.
const MAX_BUFFERS: usize = 64;
/// Buffers that are taken off the ring at once.
const TAKE_SLOTS: usize = 32;

/// A ring and its signal, as a client shared them.
pub(super) struct RingEnd {
    pub(super) ring: South,
    pub(super) signal: ShmSignal,
}

/// The client of a connection: whether it is still trusted, and whom to tell when not.
pub(super) struct Client {
    faults: Arc<dyn FaultReporter>,
    is_cut_off: AtomicBool,
}

impl Client {
    pub(super) fn new(faults: Arc<dyn FaultReporter>) -> Self {
        Client {
            faults,
            is_cut_off: AtomicBool::new(false),
        }
    }

    /// True from its first fault on: nothing of it is touched any more.
    pub(super) fn is_cut_off(&self) -> bool {
        self.is_cut_off.load(Relaxed)
    }

    /// Cuts it off; reported once.
    pub(super) fn cut_off(&self, ring: &str, fault: RingFault) {
        if !self.is_cut_off.swap(true, Relaxed) {
            self.faults.report(&format_args!("{ring} ring: {fault}"));
        }
    }
}

/// Fills the buffers of one client.
pub(super) struct Receiver {
    end: RingEnd,
    client: Arc<Client>,
    ram: GuestRam,
    caps: u32,
    /// Taken off the ring and not yet returned, in order; at most as many as the ring has.
    held: VecDeque<Slot>,
    /// Room for the slots of one frame.
    filled: Vec<Slot>,
    has_news: bool,
}

/// Why a frame was not put into buffers.
enum NotPut {
    /// No buffer, or too small ones.
    NoRoom,
    /// A buffer that is none; it went back.
    BadBuffer,
    /// The client is cut off.
    Fault,
}

impl Receiver {
    pub(super) fn new(end: RingEnd, client: Arc<Client>) -> Self {
        Receiver {
            held: VecDeque::with_capacity(end.ring.num_slots() as usize),
            filled: Vec::with_capacity(MAX_BUFFERS),
            end,
            client,
            ram: GuestRam::default(),
            caps: 0,
            has_news: false,
        }
    }

    /// Sets what holds from the next frame on: the client's memory and bits of [`rx_cap`].
    pub(super) fn configure(&mut self, ram: GuestRam, caps: u32) {
        self.ram = ram;
        self.caps = caps;
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
                if matches!(reason, NotPut::BadBuffer) {
                    metrics.rx_errors.add(1);
                }
            }
        })
    }

    fn put(&mut self, frame: &Frame<'_>) -> Result<(), NotPut> {
        let num_buffers = self.gather(frame.len())?;
        // At most MAX_BUFFERS.
        let count = u16::try_from(num_buffers).unwrap_or(0);
        self.filled.clear();
        let mut offset = 0;
        for nth in 0..num_buffers {
            let Some(buffer) = self.held.get(nth) else {
                return Err(NotPut::NoRoom);
            };
            let left = frame.len() as usize - offset;
            let len = left.min(buffer.len as usize);
            if !fill(&self.ram, frame, offset, buffer.addr, len) {
                // Checked when they were gathered.
                return Err(self.refuse_buffers(num_buffers));
            }
            offset += len;
            let meta = if nth == 0 {
                meta_words(&frame.offload().meta(count))
            } else {
                [0; 2]
            };
            self.filled.push(Slot {
                addr: buffer.addr,
                // At most `buffer.len`.
                len: u32::try_from(len).unwrap_or(0),
                meta,
            });
        }
        self.return_filled();
        Ok(())
    }

    /// Sees to it that the first buffers held have room for `len` bytes; how many those are.
    fn gather(&mut self, len: u32) -> Result<usize, NotPut> {
        let most = if self.caps & rx_cap::MERGED != 0 {
            MAX_BUFFERS
        } else {
            1
        };
        let mut room = 0;
        for nth in 0..most {
            if nth == self.held.len() && !self.take()? {
                return Err(NotPut::NoRoom);
            }
            let Some(buffer) = self.held.get(nth) else {
                return Err(NotPut::NoRoom);
            };
            let gpa = GuestAddress(buffer.addr);
            if buffer.len == 0 || !self.ram.check_range(gpa, buffer.len as usize) {
                return Err(self.refuse_buffers(nth + 1));
            }
            room += u64::from(buffer.len);
            if room >= u64::from(len) {
                return Ok(nth + 1);
            }
        }
        Err(NotPut::NoRoom)
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

    /// Returns the first buffers without a frame.
    fn refuse_buffers(&mut self, num_buffers: usize) -> NotPut {
        self.return_empty(num_buffers);
        NotPut::BadBuffer
    }

    fn return_empty(&mut self, num_buffers: usize) {
        self.filled.clear();
        self.filled
            .extend(self.held.iter().take(num_buffers).map(|buffer| Slot {
                addr: buffer.addr,
                ..Slot::default()
            }));
        self.return_filled();
    }

    fn return_filled(&mut self) {
        let num_returned = self.end.ring.give_back_filled(&self.filled);
        self.held.drain(..num_returned.min(self.held.len()));
        self.has_news |= num_returned > 0;
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

    /// True if there is no buffer; the client's doorbell then tells when there is one.
    pub(super) fn is_starved(&mut self) -> bool {
        if !self.held.is_empty() {
            return false;
        }
        self.end.signal.receiver.disable();
        if !matches!(self.take(), Ok(false)) {
            return false;
        }
        self.end.signal.receiver.enable()
    }

    pub(super) fn is_cut_off(&self) -> bool {
        self.client.is_cut_off()
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
