//! The PCI connector: the function through which a guest reaches its bus.
//!
//! BAR 0 holds [`Registers`], BAR 2 the ports of [`port`], BAR 4 the MSI-X table. A verb is a
//! [`Call`] in guest memory that the guest names with one write; events come back on rings whose
//! slots carry an [`event`] each. The text with the rules is `docs/abi.md`.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// PCI vendor: that of AlacrityVM's bridge.
pub const VENDOR_ID: u16 = 0x11da;
/// PCI device: that of AlacrityVM's bridge.
pub const DEVICE_ID: u16 = 0x2000;
/// PCI revision. AlacrityVM's is 2, and its drivers refuse any other.
pub const REVISION: u8 = 3;
/// PCI class: bridge, other.
pub const CLASS: u32 = 0x06_8000;

/// BAR of [`Registers`]: memory.
pub const REGISTERS_BAR: usize = 0;
/// BAR of the doorbells: ports.
pub const PORTS_BAR: usize = 2;
/// BAR of the MSI-X table and its pending bits: memory.
pub const MSIX_BAR: usize = 4;
/// Bytes of BAR [`REGISTERS_BAR`].
pub const REGISTERS_BAR_BYTES: u32 = 4096;
/// Bytes of BAR [`PORTS_BAR`].
pub const PORTS_BAR_BYTES: u32 = 256;

/// First register: `VBPC` as text.
pub const MAGIC: u32 = u32::from_le_bytes(*b"VBPC");
/// Version of the connector, negotiated by [`func::NEGOTIATE`].
pub const VERSION: u32 = 3;
/// Event queues, each for a range of priorities, 0 the least urgent.
pub const NUM_EVENT_QUEUES: u32 = 4;
/// Doorbells: numbers of signals. The first [`NUM_EVENT_QUEUES`] are those of the event queues.
pub const NUM_SIGNALS: u32 = 128;
/// MSI-X vectors.
pub const NUM_VECTORS: u32 = 64;
/// Channels for fast calls, one for each vCPU.
pub const NUM_CHANNELS: u32 = 32;
/// "No signal": in [`Shm::signal_offset`] and [`Shm::signal`].
pub const NO_SIGNAL: u32 = u32::MAX;
/// "No vector of its own": the signal comes as [`event::SIGNAL`].
pub const NO_VECTOR: u32 = u32::MAX;
/// [`Call::status`] before the call: what a guest finds there afterwards was not answered.
pub const STATUS_PENDING: u32 = 0x8000_0000;
/// Bytes of [`DeviceInfo::kind`].
pub const KIND_BYTES: usize = 64;
/// Most bytes of [`DeviceCall::len`].
pub const MAX_CALL_BYTES: u32 = 64 << 10;

/// Bits of [`Registers::capabilities`] and [`Negotiate::capabilities`].
pub mod cap {
    /// An interface whose host is gone is [`super::event::DEVICE_LOST`] and keeps its id if it
    /// returns. Else it is [`super::event::DEVICE_DROPPED`], and what comes later has another id.
    pub const DEVICE_LOST: u64 = 1 << 0;
    /// Each signal has a port of its own: [`super::port::SIGNALS`].
    pub const SIGNAL_PORTS: u64 = 1 << 1;
}

/// BAR 0. All registers but the last two are read-only.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Registers {
    /// [`MAGIC`].
    pub magic: U32,
    /// [`VERSION`].
    pub version: U32,
    /// Capabilities offered: [`cap`].
    pub capabilities: U64,
    /// [`NUM_EVENT_QUEUES`].
    pub num_event_queues: U32,
    /// [`NUM_SIGNALS`].
    pub num_signals: U32,
    /// [`NUM_VECTORS`].
    pub num_vectors: U32,
    /// [`NUM_CHANNELS`].
    pub num_channels: U32,
    /// Resets so far, by whatever cause.
    pub num_resets: U32,
    /// Any write: back to the initial state, all connections closed, before the write returns. The
    /// end of bus mastering does the same.
    pub reset: U32,
    /// Write: address of a [`Call`], as 8 bytes, or as low then high word. The call is done when
    /// the write (of the high word) returns.
    pub call: U64,
}

/// Ports of BAR 2: byte offsets. 32-bit writes, but for [`port::SIGNALS`].
pub mod port {
    /// The data is the number of a signal: wakes the host's end of that shm-signal.
    pub const DOORBELL: u32 = 0;
    /// The data is a channel: does the [`super::Call`] of that channel before the write returns.
    pub const FAST_CALL: u32 = 4;
    /// The first of [`super::NUM_SIGNALS`] ports: a write of any width and data to the one of a signal
    /// does what its number does at [`DOORBELL`]. Only with [`super::cap::SIGNAL_PORTS`].
    pub const SIGNALS: u32 = 128;
}

/// [`Call::func`].
pub mod func {
    /// [`super::Negotiate`]. First of all; `EBUSY` the second time until a reset.
    pub const NEGOTIATE: u32 = 0;
    /// [`super::EventQueue`]. Each queue once.
    pub const EVENT_QUEUE: u32 = 1;
    /// No arguments. Attaches to the bus: events begin. Needs all event queues.
    pub const START: u32 = 2;
    /// [`super::Channel`]. Each channel once.
    pub const CHANNEL: u32 = 3;
    /// [`super::DeviceInfo`].
    pub const DEVICE_INFO: u32 = 4;
    /// [`super::Open`].
    pub const OPEN: u32 = 5;
    /// [`super::DeviceCall`]. The status is the device's.
    pub const DEVICE_CALL: u32 = 6;
    /// [`super::Shm`].
    pub const SHM: u32 = 7;
    /// [`super::Close`].
    pub const CLOSE: u32 = 8;
}

/// What a slot of an event queue returns in `meta[0]`; its `addr` is the id or cookie.
pub mod event {
    /// An interface is on the bus, for the first time or again after [`DEVICE_LOST`]: `addr` is its
    /// id.
    pub const DEVICE_ADDED: u64 = 0;
    /// An interface left the bus, or this guest was cut off from it: `addr` is its id.
    pub const DEVICE_DROPPED: u64 = 1;
    /// A signal without a vector of its own: `addr` is the cookie.
    pub const SIGNAL: u64 = 2;
    /// The host will not touch this shared memory again: `addr` is the cookie.
    pub const SHM_CLOSED: u64 = 3;
    /// The host's end of an interface is gone, and with it all connections: `addr` is its id. It comes
    /// back with [`DEVICE_ADDED`], or ends with [`DEVICE_DROPPED`]. Only with
    /// [`super::cap::DEVICE_LOST`].
    pub const DEVICE_LOST: u64 = 4;
}

/// A call: in guest memory, at a multiple of 64, inside one page.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Call {
    /// One of [`func`].
    pub func: U32,
    /// In: [`STATUS_PENDING`]. Out: a negated errno or a result of at least 0. Written last.
    pub status: U32,
    /// The arguments of `func`, from the first byte on; the rest is zero. Results go to their
    /// places.
    pub args: [u8; 120],
}

/// Arguments of [`func::NEGOTIATE`].
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Negotiate {
    /// [`VERSION`], else `EINVAL`.
    pub version: U32,
    /// Zero.
    pub reserved: U32,
    /// In: wanted. Out: given. [`cap`].
    pub capabilities: U64,
}

/// Arguments of [`func::EVENT_QUEUE`].
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EventQueue {
    /// Which one: 0 to [`NUM_EVENT_QUEUES`] - 1. Events of interfaces use the last, events of
    /// shared memory that of its priority.
    pub queue: U32,
    /// MSI-X vector; several queues may share one.
    pub vector: U32,
    /// Address of its ring, whose empty slots the guest has published or will publish.
    pub addr: U64,
    /// Bytes of the ring.
    pub len: U32,
    /// Zero.
    pub reserved: U32,
}

/// Arguments of [`func::CHANNEL`].
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Channel {
    /// 0 to [`NUM_CHANNELS`] - 1.
    pub channel: U32,
    /// Zero.
    pub reserved: U32,
    /// Address of its [`Call`], which stays there until the reset.
    pub addr: U64,
}

/// Arguments of [`func::DEVICE_INFO`].
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeviceInfo {
    /// Id of an interface on the bus, else `ENOENT`.
    pub id: U32,
    /// Zero.
    pub reserved: U32,
    /// Out: what it speaks, e.g. `virtual-ethernet`, and zeros, at least one.
    pub kind: [u8; KIND_BYTES],
}

/// Arguments of [`func::OPEN`].
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Open {
    /// Id of an interface.
    pub id: U32,
    /// Version of the device's ABI.
    pub version: U32,
    /// Out: never 0, never used again until the reset.
    pub handle: U64,
}

/// Arguments of [`func::DEVICE_CALL`].
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeviceCall {
    /// Of the connection.
    pub handle: U64,
    /// Defined by the device class.
    pub func: U32,
    /// Bytes of data, at most [`MAX_CALL_BYTES`].
    pub len: U32,
    /// Address of the data, which the device may change unless it fails.
    pub addr: U64,
}

/// Arguments of [`func::SHM`].
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Shm {
    /// Of the connection.
    pub handle: U64,
    /// The guest's own number for the memory; comes back in events.
    pub cookie: U64,
    /// Address of the memory: one range of RAM.
    pub addr: U64,
    /// Bytes of the memory.
    pub len: U32,
    /// Which one: defined by the device class.
    pub id: U32,
    /// 0, the lowest, to 7: picks the event queue.
    pub priority: U32,
    /// Byte offset of the signal pair in the memory, or [`NO_SIGNAL`].
    pub signal_offset: U32,
    /// MSI-X vector of the signal, or [`NO_VECTOR`]; several signals may share one.
    pub vector: U32,
    /// Out: what to write to [`port::DOORBELL`], or [`NO_SIGNAL`].
    pub signal: U32,
}

/// Arguments of [`func::CLOSE`].
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Close {
    /// Of the connection.
    pub handle: U64,
}

const _: () = assert!(port::SIGNALS + NUM_SIGNALS == PORTS_BAR_BYTES);
const _: () = assert!(size_of::<Registers>() == 48);
const _: () = assert!(size_of::<Call>() == 128);
