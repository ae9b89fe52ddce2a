//! Messages of the socket protocol, version 1: the verbs for processes that are no guests.
//!
//! One message is one packet of a `SOCK_SEQPACKET` Unix socket: a [`Header`], the body of its kind,
//! and then, for some kinds, bytes up to the end of the packet. All fields are little-endian and
//! without alignment. Reserved fields are zero. The rules are in `docs/abi-socket.md`.

#![expect(
    missing_debug_implementations,
    reason = "the lint sees hidden types of zerocopy's derive where a macro uses it"
)]

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First field of [`Hello`]: `VBUS` as text.
pub const MAGIC: u32 = u32::from_le_bytes(*b"VBUS");
/// Version of the protocol that this crate speaks.
pub const VERSION: u16 = 1;
/// Most bytes of a message, header included.
pub const MAX_MESSAGE_BYTES: usize = crate::verbs::MAX_CALL_BYTES + 512;
/// Most descriptors with a message.
pub const MAX_FDS: usize = 4;
/// Most bytes of a path or of a value in the control tree.
pub const MAX_TEXT_BYTES: usize = 4096;
/// Most names in all `REPORT`s of one process, directories included.
pub const MAX_REPORT_NAMES: usize = 64;
/// Most bytes of such a name, and of that of its directory.
pub const MAX_REPORT_NAME_BYTES: usize = 32;
/// Most bytes of a value in a `REPORT`.
pub const MAX_REPORT_VALUE_BYTES: usize = 64;

/// Kinds of messages, in [`Header::kind`].
pub mod kind {
    /// [`super::Hello`]; answered by [`super::Welcome`]. The first message, and only that.
    pub const HELLO: u16 = 1;
    /// The name of a bus.
    pub const JOIN: u16 = 2;
    /// [`super::MemAdd`], with a memfd.
    pub const MEM_ADD: u16 = 3;
    /// [`super::MemDrop`].
    pub const MEM_DROP: u16 = 4;
    /// [`super::Open`]; answered by [`super::Opened`].
    pub const OPEN: u16 = 5;
    /// [`super::Call`] and the data; answered by the data.
    pub const CALL: u16 = 6;
    /// [`super::Shm`], with the descriptors that its flags say.
    pub const SHM: u16 = 7;
    /// [`super::Close`].
    pub const CLOSE: u16 = 8;
    /// Lines of `NAME VALUE` or `DIRECTORY/NAME VALUE`: what a VM says about itself. Only with
    /// [`super::cap::REPORT`].
    pub const REPORT: u16 = 9;
    /// [`super::Pages`], with two memfds, the map of pages and the sections, and two eventfds, for wishes
    /// and for those that were granted. Only with [`super::cap::PAGES`].
    pub const PAGES: u16 = 10;

    /// [`super::Texts`]: a directory and the name after which to go on; answered by
    /// [`super::Stat`]s, each with its name. `value` is 1 if there is more.
    pub const TREE_LIST: u16 = 16;
    /// [`super::Texts`]: a path; answered by [`super::Stat`]. Links are not followed at the end.
    pub const TREE_STAT: u16 = 17;
    /// [`super::Texts`]: a path; answered by the value.
    pub const TREE_READ: u16 = 18;
    /// [`super::Texts`]: a path and a value.
    pub const TREE_WRITE: u16 = 19;
    /// [`super::Texts`]: a path.
    pub const TREE_MKDIR: u16 = 20;
    /// [`super::Texts`]: a path.
    pub const TREE_RMDIR: u16 = 21;
    /// [`super::Texts`]: the path of the link and what it leads to.
    pub const TREE_SYMLINK: u16 = 22;
    /// [`super::Texts`]: a path.
    pub const TREE_UNLINK: u16 = 23;
    /// [`super::Texts`]: a path; answered by what the link leads to.
    pub const TREE_READLINK: u16 = 24;

    /// Bit of an answer: the rest is the kind of the request. [`super::Answer`] comes first.
    pub const ANSWER: u16 = 0x8000;

    /// [`super::DeviceAdded`], the kind of the interface, and with [`super::cap::PLACES`] its place.
    pub const EVENT_DEVICE_ADDED: u16 = 0x4000;
    /// [`super::DeviceDropped`].
    pub const EVENT_DEVICE_DROPPED: u16 = 0x4001;
    /// [`super::Cookie`]: a signal without an eventfd of its own.
    pub const EVENT_SIGNAL: u16 = 0x4002;
    /// [`super::Cookie`]: the host will not touch this shared memory again.
    pub const EVENT_SHM_CLOSED: u16 = 0x4003;
}

/// Bits of [`Hello::caps`] and [`Welcome::caps`].
pub mod cap {
    /// The host can write eventfds of clients without ever waiting for them:
    /// [`super::shm_flag::WAKE_UP`] is taken.
    pub const WAKE_UP_EVENTFD: u64 = 1 << 0;
    /// The client may administrate: `TREE_*` is taken.
    pub const ADMIN: u64 = 1 << 1;
    /// `REPORT` is taken.
    pub const REPORT: u64 = 1 << 2;
    /// Both know it: `EVENT_DEVICE_ADDED` tells the place of the interface too.
    pub const PLACES: u64 = 1 << 3;
    /// `PAGES` is taken: a VM may take pages out of memory that it registered.
    pub const PAGES: u64 = 1 << 4;
}

/// Bits of [`Shm::flags`]. Each of the first three stands for a descriptor, in this order.
pub mod shm_flag {
    /// A memfd comes with the message, and `start` is an offset in it. Else `start` is an address
    /// in memory that was registered.
    pub const MEMFD: u32 = 1 << 0;
    /// There is a signal, at `signal_offset`, and an eventfd which is readable when the north has
    /// signalled.
    pub const DOORBELL: u32 = 1 << 1;
    /// An eventfd that the host writes to wake the north; without it, `EVENT_SIGNAL`. Only with
    /// [`DOORBELL`].
    pub const WAKE_UP: u32 = 1 << 2;
}

/// File types of [`Stat::kind`].
pub mod stat_kind {
    /// Has entries.
    pub const DIRECTORY: u16 = 0;
    /// Has a value.
    pub const FILE: u16 = 1;
    /// Leads elsewhere.
    pub const LINK: u16 = 2;
}

/// Declares a layout.
macro_rules! layout {
    ($(#[$doc:meta])* $name:ident, $bytes:literal { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
        )]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $ty,)*
        }
        const _: () = assert!(size_of::<$name>() == $bytes);
    };
}

layout! {
    /// Starts every message.
    Header, 16 {
        /// Bytes of the whole message: those of the packet, neither more nor less.
        len: U32,
        /// [`kind`].
        kind: U16,
        /// Descriptors that come with it, neither more nor less.
        num_fds: U16,
        /// Chosen by the client, comes back in the answer. 0 in events.
        request: U64,
    }
}

layout! {
    /// Body of `HELLO`.
    Hello, 24 {
        /// [`MAGIC`].
        magic: U32,
        /// Oldest version that the client speaks.
        min_version: U16,
        /// Newest version that the client speaks.
        max_version: U16,
        /// [`cap`]: what the client knows. Unknown bits mean nothing.
        caps: U64,
        /// Zero.
        reserved: U64,
    }
}

layout! {
    /// Result of `HELLO`.
    Welcome, 16 {
        /// The version spoken from now on.
        version: U16,
        /// Zero.
        reserved0: U16,
        /// Zero.
        reserved1: U32,
        /// [`cap`]: what this connection can use.
        caps: U64,
    }
}

layout! {
    /// Starts the body of every answer. A result follows only if `errno` is 0.
    Answer, 8 {
        /// 0, or why not: a Linux errno.
        errno: U32,
        /// The status of `CALL`; else 0 unless its kind says more.
        value: U32,
    }
}

layout! {
    /// Body of `PAGES`.
    Pages, 8 {
        /// Pages of 4096 bytes that the map has words for.
        num_pages: U64,
    }
}

layout! {
    /// Body of `MEM_ADD`.
    MemAdd, 24 {
        /// Address that the client gives to it; a multiple of 4096.
        base: U64,
        /// Bytes; a multiple of 4096, not 0.
        len: U64,
        /// Where it starts in the memfd; a multiple of 4096.
        offset: U64,
    }
}

layout! {
    /// Body of `MEM_DROP`.
    MemDrop, 8 {
        /// As in [`MemAdd`].
        base: U64,
    }
}

layout! {
    /// Body of `OPEN`.
    Open, 8 {
        /// From [`DeviceAdded`].
        interface: U32,
        /// Version of the device's ABI that the driver speaks.
        version: U32,
    }
}

layout! {
    /// Result of `OPEN`.
    Opened, 8 {
        /// Names the connection; never 0.
        handle: U64,
    }
}

layout! {
    /// Body of `CALL`, before the data.
    Call, 16 {
        /// From [`Opened`].
        handle: U64,
        /// Function of the device.
        func: U32,
        /// Zero.
        reserved: U32,
    }
}

layout! {
    /// Body of `SHM`.
    Shm, 48 {
        /// From [`Opened`].
        handle: U64,
        /// The client's own number, which comes back in events.
        cookie: U64,
        /// Where the memory starts: see [`shm_flag::MEMFD`]. A multiple of 8, in a memfd of 4096.
        start: U64,
        /// Bytes of memory; not 0.
        len: U64,
        /// Which one: defined by the device class.
        id: U32,
        /// 0, the lowest, to 7.
        priority: U32,
        /// Byte offset of the signal from `start` on; 0 without one.
        signal_offset: U32,
        /// [`shm_flag`].
        flags: U32,
    }
}

layout! {
    /// Body of `CLOSE`.
    Close, 8 {
        /// From [`Opened`].
        handle: U64,
    }
}

layout! {
    /// Body of `TREE_*`, before one or two texts in UTF-8, one behind the other.
    Texts, 8 {
        /// Bytes of the first text.
        first_len: U32,
        /// Bytes of the second text; 0 where there is none.
        second_len: U32,
    }
}

layout! {
    /// A node of the control tree.
    Stat, 32 {
        /// Another one for whatever is made later, under the same name or not.
        ident: U64,
        /// When it was made or changed, in whole seconds since 1970.
        modified_secs: I64,
        /// The rest in nanoseconds.
        modified_nanos: U32,
        /// [`stat_kind`].
        kind: U16,
        /// Permission bits.
        mode: U16,
        /// Bytes of the name behind it, in `TREE_LIST`; else 0.
        name_len: U32,
        /// Zero.
        reserved: U32,
    }
}

layout! {
    /// Body of `EVENT_DEVICE_ADDED`, before the kind of the interface, and with [`cap::PLACES`] its
    /// place, in UTF-8, one behind the other.
    DeviceAdded, 8 {
        /// What to open.
        interface: U32,
        /// Bytes of the place; 0 without [`cap::PLACES`].
        place_len: U32,
    }
}

layout! {
    /// Body of `EVENT_DEVICE_DROPPED`.
    DeviceDropped, 8 {
        /// As in [`DeviceAdded`].
        interface: U32,
        /// Zero.
        reserved: U32,
    }
}

layout! {
    /// Body of `EVENT_SIGNAL` and `EVENT_SHM_CLOSED`.
    Cookie, 8 {
        /// From [`Shm`].
        cookie: U64,
    }
}
