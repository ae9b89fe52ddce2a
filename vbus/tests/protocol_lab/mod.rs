//! A server with an echo device and a ring device, and a client that speaks raw messages.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "for tests, each of which uses a part"
)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
};
use vbus::abi::wire::{Answer, Hello, MAGIC, Open, Opened, VERSION, kind};
use vbus::bus::Host;
use vbus::client::{Connection, Remote};
use vbus::server::{Server, ServerLimits};
use vbus::test_utils::ring_echo::RingEchoClass;
use vbus::test_utils::{ECHO_VERSION, EchoCensus, add_echo, echo_host};
use vbus::verbs::InterfaceId;
use vbus::wire::{Packet, Socket, WireError, frame};
use zerocopy::{FromBytes, IntoBytes};

/// The interface of the echo device on `bus0`.
pub const ECHO: InterfaceId = InterfaceId(0);
/// The interface of the ring device on `bus0`.
pub const RING: InterfaceId = InterfaceId(1);
/// How long anything may take.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A server on a socket of its own. `bus0` has an echo and a ring device, `bus1` nothing.
pub struct Lab {
    pub host: Arc<Host>,
    pub census: Arc<EchoCensus>,
    pub server: Option<Server>,
    directory: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
        Self::with(ServerLimits::default())
    }

    pub fn with(limits: ServerLimits) -> Self {
        let (host, census) = echo_host();
        host.register_class(Arc::new(RingEchoClass)).unwrap();
        host.create_bus("bus0").unwrap();
        host.create_bus("bus1").unwrap();
        add_echo(&host, "bus0", "echo0");
        host.create_device("ring0").unwrap();
        host.set_type("ring0", "ring-echo").unwrap();
        host.link("bus0", "ring0", "ring0").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vbus.sock");
        let server = Server::bind_with(&path, Arc::clone(&host), limits).unwrap();
        Lab {
            host,
            census,
            server: Some(server),
            directory,
        }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("vbus.sock")
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    /// A member of `bus0`.
    pub fn join(&self) -> Remote {
        Connection::connect(&self.path())
            .unwrap()
            .join("bus0")
            .unwrap()
    }

    /// A raw member of `bus0`.
    pub fn raw_member(&self) -> RawPeer {
        let mut peer = RawPeer::connect(&self.path());
        peer.hello();
        assert_eq!(peer.request(kind::JOIN, b"bus0", &[]).unwrap().errno, 0);
        peer
    }
}

/// What was answered.
#[derive(Debug)]
pub struct RawAnswer {
    pub errno: i32,
    pub value: u32,
    pub body: Vec<u8>,
}

/// A client that sends whatever it is told.
pub struct RawPeer {
    pub socket: Socket,
    packet: Packet,
    next_request: u64,
    /// Events that came before answers: kind and body.
    pub events: Vec<(u16, Vec<u8>)>,
}

impl RawPeer {
    pub fn connect(path: &Path) -> Self {
        let flags = SocketFlags::CLOEXEC;
        let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        connect(&fd, &SocketAddrUnix::new(path).unwrap()).unwrap();
        RawPeer {
            socket: fd.into(),
            packet: Packet::default(),
            next_request: 100,
            events: Vec::new(),
        }
    }

    pub fn hello(&mut self) {
        let answer = self.greet(VERSION, VERSION).unwrap();
        assert_eq!(answer.errno, 0);
    }

    pub fn greet(&mut self, min: u16, max: u16) -> Option<RawAnswer> {
        let hello = Hello {
            magic: MAGIC.into(),
            min_version: min.into(),
            max_version: max.into(),
            ..Hello::default()
        };
        self.request(kind::HELLO, hello.as_bytes(), &[])
    }

    /// Opens the echo device.
    pub fn open_echo(&mut self) -> u64 {
        let open = Open {
            interface: ECHO.0.into(),
            version: ECHO_VERSION.into(),
        };
        let answer = self.request(kind::OPEN, open.as_bytes(), &[]).unwrap();
        assert_eq!(answer.errno, 0);
        Opened::read_from_bytes(&answer.body).unwrap().handle.get()
    }

    /// Sends bytes as one packet; an error if the server has hung up.
    pub fn send_bytes(&self, bytes: &[u8]) -> Result<usize, rustix::io::Errno> {
        rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL)
    }

    /// Sends a request without waiting for its answer.
    pub fn send(&mut self, kind: u16, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.next_request += 1;
        let header = frame(kind, self.next_request, body.len(), fds.len()).unwrap();
        let _ = self.socket.send(&header, &[body], fds, true);
    }

    /// Sends a request and waits for the answer; `None` if the server hangs up instead.
    pub fn request(&mut self, kind: u16, body: &[u8], fds: &[BorrowedFd<'_>]) -> Option<RawAnswer> {
        self.send(kind, body, fds);
        loop {
            let (got, bytes) = self.receive()?;
            if got & kind::ANSWER != 0 {
                assert_eq!(got, kind | kind::ANSWER);
                assert_eq!(self.packet.request(), self.next_request);
                let (answer, body) = Answer::read_from_prefix(&bytes).unwrap();
                return Some(RawAnswer {
                    errno: i32::try_from(answer.errno.get()).unwrap(),
                    value: answer.value.get(),
                    body: body.to_vec(),
                });
            }
            self.events.push((got, bytes));
        }
    }

    /// The next message; `None` if the server has hung up.
    pub fn receive(&mut self) -> Option<(u16, Vec<u8>)> {
        assert!(
            readable(self.socket.as_fd(), DEADLINE),
            "the server neither answers nor hangs up"
        );
        match self.socket.receive(&mut self.packet, true) {
            Ok(_) => Some((self.packet.kind(), self.packet.body().to_vec())),
            Err(WireError::Closed) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Reads until the server hangs up.
    pub fn assert_cut_off(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        while self.receive().is_some() {
            assert!(Instant::now() < deadline, "the server does not hang up");
        }
    }
}

/// Waits until `fd` is readable or hung up.
pub fn readable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let timeout = Timespec::try_from(timeout).unwrap();
    poll(&mut fds, Some(&timeout)).unwrap() > 0
}

/// A memfd with a name that no other test uses, sealed or not.
pub fn memfd(name: &str, len: u64, is_sealed: bool) -> OwnedFd {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create(name, flags).unwrap();
    ftruncate(&fd, len).unwrap();
    if is_sealed {
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    }
    fd
}

/// Descriptors of this process, the server's included, whose link has `name` in it.
pub fn num_fds_named(name: &str) -> usize {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links
        .filter(|link| link.to_string_lossy().contains(name))
        .count()
}

/// Mappings of this process with `name` in their line.
pub fn num_mappings_named(name: &str) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(name)).count()
}
