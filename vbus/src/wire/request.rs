//! What a client asks for.

use std::os::fd::OwnedFd;

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::{WireError, split_texts};
use crate::abi::wire::{
    Call, Close, Hello, MAGIC, MAX_TEXT_BYTES, MemAdd, MemDrop, Open, Pages, Shm as ShmLayout,
    kind, shm_flag,
};
use crate::tree::MAX_NAME_BYTES;
use crate::verbs::{Handle, InterfaceId, MAX_CALL_BYTES};

/// A request whose form is right: lengths, number of descriptors, text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// The first message: a range of versions.
    Hello {
        /// Oldest.
        min_version: u16,
        /// Newest.
        max_version: u16,
        /// What the client knows: [`crate::abi::wire::cap`].
        caps: u64,
    },
    /// Becomes a member of a bus.
    Join {
        /// Its name.
        bus: &'a str,
    },
    /// Registers memory.
    MemAdd {
        /// Its address.
        base: u64,
        /// Its length in bytes.
        len: u64,
        /// Where it starts in the memfd.
        offset: u64,
    },
    /// Takes memory back.
    MemDrop {
        /// Its address.
        base: u64,
    },
    /// [`crate::verbs::Verbs::open`].
    Open {
        /// What to open.
        interface: InterfaceId,
        /// Version of the device's ABI.
        version: u32,
    },
    /// [`crate::verbs::Verbs::call`]; the data are behind [`Call`] in the body.
    Call {
        /// The connection.
        handle: Handle,
        /// Function of the device.
        func: u32,
    },
    /// [`crate::verbs::Verbs::shm`].
    Shm(ShmBody),
    /// [`crate::verbs::Verbs::close`].
    Close {
        /// The connection.
        handle: Handle,
    },
    /// What a VM says about itself.
    Report {
        /// Lines of names and values.
        text: &'a str,
    },
    /// Says which pages of the memory are there: see [`crate::residency`].
    Pages {
        /// Pages that the map has words for.
        num_pages: u64,
    },
    /// An operation on the control tree.
    Tree {
        /// One of `TREE_*`.
        op: u16,
        /// First text: a path.
        path: &'a str,
        /// Second text; empty where there is none.
        text: &'a str,
    },
}

/// Shares memory: the fields of [`ShmLayout`], with flags that go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShmBody {
    /// The connection.
    pub handle: Handle,
    /// Which one: defined by the device class.
    pub id: u32,
    /// 0 to 7; larger ones count as 7.
    pub priority: u32,
    /// The client's own number.
    pub cookie: u64,
    /// Offset in the memfd or address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Offset of the signal, if there is one.
    pub signal_offset: u32,
    /// [`shm_flag`].
    pub flags: u32,
}

/// Number of descriptors that flags of a `SHM` stand for.
pub fn shm_fds(flags: u32) -> usize {
    let all = shm_flag::MEMFD | shm_flag::DOORBELL | shm_flag::WAKE_UP;
    (flags & all).count_ones() as usize
}

impl<'a> Request<'a> {
    /// Reads the request of `kind` from the bytes behind the header.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn read(kind: u16, body: &'a [u8], fds: &[OwnedFd]) -> Result<Self, WireError> {
        let request = Self::read_body(kind, body)?;
        let wanted = match request {
            Request::MemAdd { .. } => 1,
            Request::Shm(ShmBody { flags, .. }) => shm_fds(flags),
            Request::Pages { .. } => 4,
            _ => 0,
        };
        if fds.len() != wanted {
            return Err(WireError::BadFds {
                kind,
                num_fds: fds.len(),
                wanted,
            });
        }
        Ok(request)
    }

    fn read_body(kind: u16, body: &'a [u8]) -> Result<Self, WireError> {
        let bad = |field| WireError::BadField { kind, field };
        Ok(match kind {
            kind::HELLO => {
                let hello: Hello = whole(kind, body)?;
                if hello.magic.get() != MAGIC {
                    return Err(bad("magic"));
                }
                Request::Hello {
                    min_version: hello.min_version.get(),
                    max_version: hello.max_version.get(),
                    caps: hello.caps.get(),
                }
            }
            kind::JOIN if body.len() > MAX_NAME_BYTES => return Err(bad("bus name")),
            kind::JOIN => Request::Join {
                bus: std::str::from_utf8(body).map_err(|_| bad("bus name"))?,
            },
            kind::MEM_ADD => {
                let memory: MemAdd = whole(kind, body)?;
                Request::MemAdd {
                    base: memory.base.get(),
                    len: memory.len.get(),
                    offset: memory.offset.get(),
                }
            }
            kind::MEM_DROP => Request::MemDrop {
                base: whole::<MemDrop>(kind, body)?.base.get(),
            },
            kind::OPEN => {
                let open: Open = whole(kind, body)?;
                Request::Open {
                    interface: InterfaceId(open.interface.get()),
                    version: open.version.get(),
                }
            }
            kind::CALL => {
                let (call, data) =
                    Call::read_from_prefix(body).map_err(|_| too_short(kind, body))?;
                if data.len() > MAX_CALL_BYTES {
                    return Err(bad("length of the data"));
                }
                Request::Call {
                    handle: Handle(call.handle.get()),
                    func: call.func.get(),
                }
            }
            kind::SHM => Request::Shm(read_shm(kind, body)?),
            kind::CLOSE => Request::Close {
                handle: Handle(whole::<Close>(kind, body)?.handle.get()),
            },
            kind::REPORT if body.len() > MAX_TEXT_BYTES => return Err(bad("length")),
            kind::REPORT => Request::Report {
                text: std::str::from_utf8(body).map_err(|_| bad("text"))?,
            },
            kind::PAGES => Request::Pages {
                num_pages: whole::<Pages>(kind, body)?.num_pages.get(),
            },
            kind::TREE_LIST..=kind::TREE_READLINK => {
                let (path, text) = split_texts(kind, body)?;
                let has_text = matches!(
                    kind,
                    kind::TREE_LIST | kind::TREE_WRITE | kind::TREE_SYMLINK
                );
                if !has_text && !text.is_empty() {
                    return Err(bad("second text"));
                }
                Request::Tree {
                    op: kind,
                    path,
                    text,
                }
            }
            _ => return Err(WireError::Unexpected { kind }),
        })
    }
}

fn read_shm(kind: u16, body: &[u8]) -> Result<ShmBody, WireError> {
    let shm: ShmLayout = whole(kind, body)?;
    let flags = shm.flags.get();
    let known = shm_flag::MEMFD | shm_flag::DOORBELL | shm_flag::WAKE_UP;
    let has_doorbell = flags & shm_flag::DOORBELL != 0;
    if flags & !known != 0 || (flags & shm_flag::WAKE_UP != 0 && !has_doorbell) {
        return Err(WireError::BadField {
            kind,
            field: "flags",
        });
    }
    Ok(ShmBody {
        handle: Handle(shm.handle.get()),
        id: shm.id.get(),
        priority: shm.priority.get(),
        cookie: shm.cookie.get(),
        start: shm.start.get(),
        len: shm.len.get(),
        signal_offset: shm.signal_offset.get(),
        flags,
    })
}

fn too_short(kind: u16, body: &[u8]) -> WireError {
    let len = body.len();
    WireError::TooShort { kind, len }
}

/// A body that is one layout and no more.
fn whole<T: FromBytes + KnownLayout + Immutable>(kind: u16, body: &[u8]) -> Result<T, WireError> {
    let (value, rest) = T::read_from_prefix(body).map_err(|_| too_short(kind, body))?;
    if !rest.is_empty() {
        let field = "length";
        return Err(WireError::BadField { kind, field });
    }
    Ok(value)
}
