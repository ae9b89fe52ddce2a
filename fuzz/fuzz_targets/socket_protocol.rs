//! Messages and descriptors of a process on the socket of a bus with an echo device: the server goes
//! on, hangs up or answers, and lets go of everything that the client had.
#![no_main]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, OnceLock};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, shutdown,
    socket_with,
};
use vbus::abi::wire::{Header, MAX_FDS, kind};
use vbus::residency::SECTIONS_BYTES;
use vbus::server::Server;
use vbus::test_utils::{EchoCensus, add_echo, echo_host, wait_until};
use vbus::wire::{Packet, Socket};

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Fd {
    Sealed,
    Unsealed,
    Eventfd,
    /// Sealed, and large enough for the sections of `PAGES`.
    Sections,
}

/// A message. Small numbers reach further than random ones: handles, pages, ids.
#[derive(Debug, Arbitrary)]
enum Body {
    Open {
        interface: u8,
        version: u8,
    },
    Call {
        handle: u8,
        func: u8,
        data: Vec<u8>,
    },
    Memory {
        base: u8,
        len: u8,
        offset: u8,
    },
    Forget {
        base: u8,
    },
    Shm {
        handle: u8,
        start: u16,
        len: u16,
        offset: u16,
        id: u8,
        flags: u8,
    },
    Close {
        handle: u8,
    },
    Pages {
        num_pages: u16,
    },
    /// Anything at all.
    Wild {
        kind: u16,
        bytes: Vec<u8>,
    },
}

impl Body {
    fn encode(&self) -> (u16, Vec<u8>) {
        let word = |value: u64| value.to_le_bytes();
        let pages = |count: u8| word(u64::from(count % 8) * 4096);
        let half = |value: u16| u32::from(value).to_le_bytes();
        match self {
            Body::Open { interface, version } => {
                let fields = [half(u16::from(interface % 2)), half(u16::from(version % 3))];
                (kind::OPEN, fields.concat())
            }
            Body::Call { handle, func, data } => {
                let func = half(u16::from(func % 5));
                let head = [&word(u64::from(handle % 4))[..], &func, &[0; 4]].concat();
                (kind::CALL, [head, data.clone()].concat())
            }
            Body::Memory { base, len, offset } => {
                let fields = [pages(*base), pages(*len), pages(*offset)];
                (kind::MEM_ADD, fields.concat())
            }
            Body::Forget { base } => (kind::MEM_DROP, pages(*base).to_vec()),
            Body::Shm {
                handle,
                start,
                len,
                offset,
                id,
                flags,
            } => {
                let words = [
                    u64::from(handle % 4),
                    u64::from(*start),
                    u64::from(*start),
                    u64::from(*len),
                ];
                let halves = [u16::from(id % 4), 9, *offset, u16::from(flags % 9)];
                let bytes = [words.map(word).concat(), halves.map(half).concat()];
                (kind::SHM, bytes.concat())
            }
            Body::Close { handle } => (kind::CLOSE, word(u64::from(handle % 4)).to_vec()),
            Body::Pages { num_pages } => (kind::PAGES, word(u64::from(*num_pages)).to_vec()),
            Body::Wild { kind, bytes } => (*kind, bytes.clone()),
        }
    }
}

#[derive(Debug, Arbitrary)]
struct Message {
    body: Body,
    fds: Vec<Fd>,
    /// What makes the header wrong, of its length and number of descriptors.
    lie: Option<(u32, u16)>,
}

struct Lab {
    server: Server,
    census: Arc<EchoCensus>,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

/// One server for all runs: what one of them leaves behind, the next ones find.
fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let (host, census) = echo_host();
        host.create_bus("bus0").expect("a bus");
        add_echo(&host, "bus0", "echo0");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("vbus.sock");
        let server = Server::bind(&path, host).expect("a server");
        Lab {
            server,
            census,
            path,
            _directory: directory,
        }
    })
}

fn open(fd: &Fd) -> OwnedFd {
    if let Fd::Eventfd = fd {
        let flags = rustix::event::EventfdFlags::CLOEXEC;
        return rustix::event::eventfd(0, flags).expect("an eventfd");
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = memfd_create(c"fuzz", flags).expect("a memfd");
    let len = match fd {
        Fd::Sections => SECTIONS_BYTES as u64,
        _ => 0x4000,
    };
    ftruncate(&memfd, len).expect("its size");
    if let Fd::Sealed | Fd::Sections = fd {
        fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW).expect("its seals");
    }
    memfd
}

fn send(socket: &Socket, kind: u16, lie: (u32, u16), body: &[u8], fds: &[Fd]) -> bool {
    let fds: Vec<OwnedFd> = fds.iter().take(MAX_FDS).map(open).collect();
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let header = Header {
        len: (16 + body.len() as u32).wrapping_add(lie.0).into(),
        kind: kind.into(),
        num_fds: (fds.len() as u16).wrapping_add(lie.1).into(),
        request: 1.into(),
    };
    socket.send(&header, &[body], &fds, true).is_ok()
}

fn num_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fuzz_target!(|messages: Vec<Message>| {
    let lab = lab();
    let before = num_fds();
    let flags = SocketFlags::CLOEXEC;
    let fd =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket");
    connect(&fd, &SocketAddrUnix::new(&lab.path).expect("a path")).expect("a live server");
    let socket = Socket::from(fd);
    let hello = [&b"VBUS"[..], &[1, 0, 1, 0], &[0; 16]].concat();
    assert!(send(&socket, kind::HELLO, (0, 0), &hello, &[]));
    assert!(send(&socket, kind::JOIN, (0, 0), b"bus0", &[]));
    for message in messages.iter().take(64) {
        let (kind, body) = message.body.encode();
        // Descriptors as they should be for half of the messages that take some.
        let wanted = match kind {
            kind::MEM_ADD => 1,
            kind::SHM => body.get(44).map_or(0, |flags| (flags & 7).count_ones()),
            _ => 0,
        };
        let fds = match message.lie {
            None if kind == kind::PAGES => {
                vec![Fd::Sealed, Fd::Sections, Fd::Eventfd, Fd::Eventfd]
            }
            None => (0..wanted)
                .map(|idx| {
                    if idx == 0 && body.get(44).is_none_or(|flags| flags & 1 != 0) {
                        Fd::Sealed
                    } else {
                        Fd::Eventfd
                    }
                })
                .collect(),
            Some(_) => message.fds.clone(),
        };
        // Not the tree: it would take the bus away from the runs that follow.
        let is_tree = (kind::TREE_LIST..=kind::TREE_READLINK).contains(&kind);
        let lie = message.lie.unwrap_or_default();
        if !is_tree && !send(&socket, kind, lie, &body, &fds) {
            break;
        }
    }
    let _ = shutdown(&socket, Shutdown::Write);
    let mut packet = Packet::default();
    while socket.receive(&mut packet, true).is_ok() {}
    drop(socket);

    wait_until("the client has left", || lab.server.stats().clients == 0);
    wait_until("its descriptors are closed", || num_fds() <= before);
    assert_eq!(lab.census.connections.load(SeqCst), 0);
    assert_eq!(lab.census.calls_after_close.load(SeqCst), 0);
});
