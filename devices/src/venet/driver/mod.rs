//! The driver of a `virtual-ethernet` device, for host processes, tests and benchmarks.
//!
//! A [`Venet`] works over any [`Verbs`]: a client in this process or one behind a socket. Buffers lie
//! in one region that the device finds at [`Buffers::base`] in the client's memory: first one receive
//! buffer per slot, then one transmit buffer per slot. Nothing is allocated while frames flow.
//!
//! ```no_run
//! use alacrity_devices::venet::driver::{Buffers, Options, Venet};
//! use std::time::Duration;
//! use vbus::memory::Region;
//! use vbus::verbs::{InterfaceId, Verbs};
//!
//! # fn run(client: impl Verbs, region: Region) -> Result<(), Box<dyn std::error::Error>> {
//! // `region` was registered with the client at address 0.
//! let buffers = Buffers { region, base: 0 };
//! let mut venet = Venet::open(client, InterfaceId(0), buffers, Options::default())?;
//! venet.link_up()?;
//! venet.send(&[&[0xff; 60]])?;
//! while venet.receive(64, |frame, _meta| println!("{} bytes", frame.len()))? == 0 {
//!     venet.wait_receive(Duration::from_secs(1))?;
//! }
//! venet.close()?;
//! # Ok(())
//! # }
//! ```

mod error;
mod options;
mod setup;

use std::fmt;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use rustix::io::Errno;
use vbus::abi::venet::{
    FrameMeta, LinkInfo, MAX_SEGMENTS, Segment, VERSION, event, frame_flag, func, tx_cap,
};
use vbus::client::Ring;
use vbus::memory::{Region, RegionError};
use vbus::ring::{RingFault, Slot};
use vbus::verbs::{Handle, InterfaceId, Verbs};
use vmm_sys_util::epoll::{Epoll, EpollEvent};
use zerocopy::{FromZeros, IntoBytes};

use super::mac::MacAddress;
use super::rx::{meta_of, meta_words};
pub use error::DriverError;
pub use options::{Buffers, Options, Outgoing};
use setup::Parts;

/// Slots that are reaped at once.
const REAP_SLOTS: usize = 64;
/// Slots of the event ring.
const NUM_EVENTS: u32 = 8;
/// Bytes of one frame's segments in the pool.
const POOL_STRIDE: usize = MAX_SEGMENTS as usize * size_of::<Segment>();

/// An open `virtual-ethernet` device.
pub struct Venet<V: Verbs> {
    bus: V,
    handle: Handle,
    is_open: bool,
    options: Options,
    buffers: Buffers,
    rx: Ring,
    tx: Ring,
    events: Option<Ring>,
    pool: Option<Region>,
    epoll: Epoll,
    tx_caps: u32,
    rx_caps: u32,
    /// Number of the next receive slot to come back.
    next_rx_idx: u32,
    /// A frame that came in part: its bytes, and slots that are missing.
    partial: (Vec<u8>, FrameMeta, u16),
    /// Room for slots on their way.
    slots: Vec<Slot>,
}

impl<V: Verbs> fmt::Debug for Venet<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Venet")
            .field("handle", &self.handle)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

fn refused(what: &'static str) -> impl Fn(Errno) -> DriverError {
    move |source| DriverError::Refused { what, source }
}

fn memory(source: RegionError) -> DriverError {
    DriverError::Memory { source }
}

fn fault(source: RingFault) -> DriverError {
    DriverError::Fault { source }
}

impl<V: Verbs> Venet<V> {
    /// Opens the interface `id`, negotiates, shares the rings and posts all receive buffers. The link
    /// is down afterwards.
    ///
    /// # Errors
    /// [`DriverError`]; the connection is closed then.
    pub fn open(
        bus: V,
        id: InterfaceId,
        buffers: Buffers,
        options: Options,
    ) -> Result<Self, DriverError> {
        let (len, needed) = (buffers.region.len(), options.buffer_bytes());
        if len < needed {
            return Err(DriverError::TooLittleMemory { len, needed });
        }
        let handle = bus.open(id, VERSION).map_err(refused("open the device"))?;
        match Parts::new(&bus, handle, &options) {
            Ok(parts) => {
                let num_slots = options.num_slots as usize;
                let mut venet = Venet {
                    bus,
                    handle,
                    is_open: true,
                    options,
                    buffers,
                    rx: parts.rx,
                    tx: parts.tx,
                    events: parts.events,
                    pool: parts.pool,
                    epoll: parts.epoll,
                    tx_caps: parts.tx_caps,
                    rx_caps: parts.rx_caps,
                    next_rx_idx: 0,
                    partial: Default::default(),
                    slots: Vec::with_capacity(num_slots),
                };
                venet.post(options.num_slots);
                venet.post_events()?;
                Ok(venet)
            }
            Err(error) => {
                // What failed first counts.
                let _ = bus.close(handle);
                Err(error)
            }
        }
    }

    /// The bus that the device is on.
    pub fn bus(&self) -> &V {
        &self.bus
    }

    /// The open connection, for calls of the caller's own.
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// Slots of each ring.
    pub fn num_slots(&self) -> u32 {
        self.options.num_slots
    }

    /// What was negotiated: bits of [`vbus::abi::venet::tx_cap`] and of
    /// [`vbus::abi::venet::rx_cap`].
    pub fn caps(&self) -> (u32, u32) {
        (self.tx_caps, self.rx_caps)
    }

    /// The interface's own address.
    ///
    /// # Errors
    /// [`DriverError::Refused`].
    pub fn mac(&self) -> Result<MacAddress, DriverError> {
        let mut mac = [0; 6];
        self.call("ask for the address", func::MAC_QUERY, &mut mac)?;
        Ok(MacAddress(mac))
    }

    /// MTU in bytes, and whether there is a link.
    ///
    /// # Errors
    /// [`DriverError::Refused`].
    pub fn link(&self) -> Result<(u32, bool), DriverError> {
        let mut info = LinkInfo::default();
        self.call("ask for the link", func::LINK_QUERY, info.as_mut_bytes())?;
        Ok((info.mtu.get(), info.is_up.get() != 0))
    }

    /// Lets frames flow.
    ///
    /// # Errors
    /// [`DriverError::Refused`] with `EEXIST` if they do.
    pub fn link_up(&self) -> Result<(), DriverError> {
        self.call("set the link up", func::LINK_UP, &mut [])
    }

    /// Stops frames.
    ///
    /// # Errors
    /// [`DriverError::Refused`] with `ENOENT` if none flow.
    pub fn link_down(&self) -> Result<(), DriverError> {
        self.call("set the link down", func::LINK_DOWN, &mut [])
    }

    /// Asks for all receive buffers back; [`Venet::receive`] posts them again.
    ///
    /// # Errors
    /// [`DriverError::Refused`] with `EINVAL` while the link is down.
    pub fn flush_rx(&self) -> Result<(), DriverError> {
        self.call("flush receive buffers", func::FLUSH_RX, &mut [])
    }

    fn call(&self, what: &'static str, func: u32, data: &mut [u8]) -> Result<(), DriverError> {
        let result = self.bus.call(self.handle, func, data);
        result.map(drop).map_err(refused(what))
    }

    /// Sends whole frames as one batch; how many there was room for.
    ///
    /// # Errors
    /// [`DriverError`]; none of them was sent then.
    pub fn send(&mut self, frames: &[&[u8]]) -> Result<usize, DriverError> {
        let frames = frames.iter().map(std::slice::from_ref);
        self.send_all(frames.map(|parts| Outgoing {
            parts,
            meta: FrameMeta::default(),
        }))
    }

    /// Sends frames as one batch; how many there was room for.
    ///
    /// # Errors
    /// [`DriverError`]; none of them was sent then.
    pub fn send_all<'f>(
        &mut self,
        frames: impl IntoIterator<Item = Outgoing<'f>>,
    ) -> Result<usize, DriverError> {
        self.tx.reclaim().map_err(fault)?;
        let mut slots = std::mem::take(&mut self.slots);
        slots.clear();
        let first_idx = self.tx.next_slot_idx();
        let room = self.tx.room();
        let mut result = Ok(());
        for (nth, frame) in (0..room).zip(frames) {
            let slot_idx = (first_idx + nth) & (self.options.num_slots - 1);
            match self.fill(slot_idx, &frame) {
                Ok(slot) => slots.push(slot),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if result.is_ok() {
            self.tx.publish(&slots);
        }
        let num_sent = slots.len();
        self.slots = slots;
        result.map(|()| num_sent)
    }

    /// Copies a frame to the transmit buffer `slot_idx`; the slot that describes it.
    fn fill(&self, slot_idx: u32, frame: &Outgoing<'_>) -> Result<Slot, DriverError> {
        let most = self.options.tx_buffer_bytes as usize;
        let len = frame.parts.iter().map(|part| part.len()).sum();
        let is_scattered = frame.parts.len() > 1 && self.tx_caps & tx_cap::SG != 0;
        if len > most || (is_scattered && frame.parts.len() > usize::from(MAX_SEGMENTS)) {
            return Err(DriverError::TooLong {
                len,
                num_parts: frame.parts.len(),
                most,
            });
        }
        let rx_bytes = self.options.num_slots as usize * self.options.rx_buffer_bytes as usize;
        let start = rx_bytes + slot_idx as usize * most;
        let mut segments = [Segment::new_zeroed(); MAX_SEGMENTS as usize];
        let mut offset = start;
        for (nth, part) in frame.parts.iter().enumerate() {
            self.buffers.region.write(offset, part).map_err(memory)?;
            if let Some(segment) = segments.get_mut(nth) {
                segment.addr = (self.buffers.base + offset as u64).into();
                // At most `most`, a u32.
                segment.len = u32::try_from(part.len()).unwrap_or(0).into();
            }
            offset += part.len();
        }
        let mut meta = frame.meta;
        let mut addr = self.buffers.base + start as u64;
        if let Some(pool) = self.pool.as_ref().filter(|_| is_scattered) {
            let pool_offset = slot_idx as usize * POOL_STRIDE;
            let used = segments.get(..frame.parts.len()).unwrap_or_default();
            pool.write(pool_offset, used.as_bytes()).map_err(memory)?;
            addr = pool_offset as u64;
            meta.flags = (meta.flags.get() | frame_flag::SG).into();
            // At most MAX_SEGMENTS.
            meta.count = u16::try_from(used.len()).unwrap_or(0).into();
        }
        Ok(Slot {
            addr,
            len: u32::try_from(len).unwrap_or(0),
            meta: meta_words(&meta),
        })
    }

    /// Frames that can be sent now.
    ///
    /// # Errors
    /// [`DriverError::Fault`].
    pub fn room(&mut self) -> Result<u32, DriverError> {
        self.tx.reclaim().map_err(fault)?;
        Ok(self.tx.room())
    }

    /// Hands up to about `most` received frames to `take`, and posts their buffers again; how many.
    ///
    /// # Errors
    /// [`DriverError::Fault`], [`DriverError::Overlong`].
    pub fn receive(
        &mut self,
        most: usize,
        mut take: impl FnMut(&[u8], &FrameMeta),
    ) -> Result<usize, DriverError> {
        let mut num_frames = 0;
        while num_frames < most {
            let mut slots = [Slot::default(); REAP_SLOTS];
            let most_slots = (most - num_frames).min(REAP_SLOTS);
            let space = slots.get_mut(..most_slots).unwrap_or_default();
            let num_reaped = self.rx.reap(space).map_err(fault)?;
            for slot in slots.iter().take(num_reaped) {
                if self.take_slot(slot)? {
                    num_frames += 1;
                    let (bytes, meta, _) = &self.partial;
                    take(bytes, meta);
                }
            }
            // At most REAP_SLOTS.
            self.post(u32::try_from(num_reaped).unwrap_or(0));
            if num_reaped == 0 {
                break;
            }
        }
        Ok(num_frames)
    }

    /// Copies what is in the next receive buffer behind what is there; true if the frame is complete.
    fn take_slot(&mut self, slot: &Slot) -> Result<bool, DriverError> {
        let slot_idx = self.next_rx_idx;
        self.next_rx_idx = (slot_idx + 1) & (self.options.num_slots - 1);
        let most = self.options.rx_buffer_bytes;
        if slot.len > most {
            return Err(DriverError::Overlong {
                len: slot.len,
                most,
            });
        }
        let (bytes, meta, num_missing) = &mut self.partial;
        if *num_missing == 0 {
            *meta = meta_of(slot.meta);
            *num_missing = meta.count.get();
            bytes.clear();
        }
        if *num_missing == 0 {
            return Ok(false); // It came back without a frame.
        }
        let start = bytes.len();
        bytes.resize(start + slot.len as usize, 0);
        let space = bytes.get_mut(start..).unwrap_or_default();
        let offset = slot_idx as usize * most as usize;
        self.buffers.region.read(offset, space).map_err(memory)?;
        *num_missing -= 1;
        Ok(*num_missing == 0)
    }

    /// Posts the next `num_buffers` receive buffers.
    fn post(&mut self, num_buffers: u32) {
        let first_idx = self.rx.next_slot_idx();
        self.slots.clear();
        for nth in 0..num_buffers {
            let slot_idx = (first_idx + nth) & (self.options.num_slots - 1);
            let offset = u64::from(slot_idx) * u64::from(self.options.rx_buffer_bytes);
            self.slots.push(Slot {
                addr: self.buffers.base + offset,
                len: self.options.rx_buffer_bytes,
                meta: [0; 2],
            });
        }
        self.rx.publish(&self.slots);
    }

    /// Posts the slots that events come back in.
    fn post_events(&mut self) -> Result<(), DriverError> {
        if let Some(events) = &mut self.events {
            events.publish(&[Slot::default(); NUM_EVENTS as usize]);
            // Nothing is in it yet.
            events.arm().map_err(fault)?;
        }
        Ok(())
    }

    /// What the link has become since the last time, if that was negotiated and anything happened.
    ///
    /// # Errors
    /// [`DriverError::Fault`].
    pub fn link_event(&mut self) -> Result<Option<bool>, DriverError> {
        let Some(events) = &mut self.events else {
            return Ok(None);
        };
        let mut state = None;
        loop {
            let mut slots = [Slot::default(); NUM_EVENTS as usize];
            let num_reaped = events.reap(&mut slots).map_err(fault)?;
            for slot in slots.iter().take(num_reaped) {
                let [what, argument] = slot.meta;
                if what == event::LINK_STATE {
                    state = Some(argument != 0);
                }
            }
            let empty = [Slot::default(); NUM_EVENTS as usize];
            events.publish(empty.get(..num_reaped).unwrap_or_default());
            // Armed all the time, so that whoever polls the descriptor hears of it.
            if events.arm().map_err(fault)? {
                return Ok(state);
            }
        }
    }

    /// Waits until there may be something to receive, or an event; false if nothing came in `timeout`.
    ///
    /// # Errors
    /// [`DriverError::Events`], [`DriverError::Fault`].
    pub fn wait_receive(&mut self, timeout: Duration) -> Result<bool, DriverError> {
        if !self.arm_receive()? {
            return Ok(true);
        }
        self.wait(timeout)
    }

    /// Waits until there may be room to send; false if there was none in `timeout`.
    ///
    /// # Errors
    /// [`DriverError::Events`], [`DriverError::Fault`].
    pub fn wait_send(&mut self, timeout: Duration) -> Result<bool, DriverError> {
        if self.room()? > 0 || !self.tx.arm().map_err(fault)? {
            return Ok(true);
        }
        self.wait(timeout)
    }

    /// Makes the descriptor of this driver readable when something comes in; false if it is there
    /// already, and then receive it.
    ///
    /// # Errors
    /// [`DriverError::Fault`].
    pub fn arm_receive(&mut self) -> Result<bool, DriverError> {
        self.rx.arm().map_err(fault)
    }

    fn wait(&self, timeout: Duration) -> Result<bool, DriverError> {
        let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        let mut events = [EpollEvent::default(); 3];
        match self.epoll.wait(timeout_ms, &mut events) {
            Ok(num_events) => Ok(num_events > 0),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(true),
            Err(source) => Err(DriverError::Events { source }),
        }
    }

    /// Closes the connection.
    ///
    /// # Errors
    /// [`DriverError::Refused`].
    pub fn close(mut self) -> Result<(), DriverError> {
        self.is_open = false;
        self.bus
            .close(self.handle)
            .map_err(refused("close the device"))
    }
}

impl<V: Verbs> Drop for Venet<V> {
    fn drop(&mut self) {
        if self.is_open {
            // Nobody is left to be told.
            let _ = self.bus.close(self.handle);
        }
    }
}

/// Readable when something came in after [`Venet::arm_receive`]; [`Venet::wait_receive`] with a
/// timeout of 0 makes it unreadable again.
impl<V: Verbs> AsRawFd for Venet<V> {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
