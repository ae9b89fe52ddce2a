//! What goes to one client: straight into the socket, or into a bounded queue while that is full.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;
use zerocopy::IntoBytes;

use crate::abi::wire::{Answer, Cookie, DeviceAdded, DeviceDropped, Header, kind};
use crate::eventfd;
use crate::verbs::{Event, EventSink, WakeUp};
use crate::wire::{Socket, frame};

/// Most messages that wait.
pub const MAX_QUEUED_MESSAGES: usize = 4096;
/// Most bytes that wait.
pub const MAX_QUEUED_BYTES: usize = 1 << 20;

/// The way to one client, for all threads. Nothing here ever waits.
pub struct Outbox {
    socket: Arc<Socket>,
    /// Readable when the client's thread has to look: something waits, or the client is cut off.
    attention: EventFd,
    /// The client knows `cap::PLACES`.
    tells_places: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Message>,
    num_bytes: usize,
    /// Signals in the queue: each is there once.
    signals: BTreeSet<u64>,
    is_closed: bool,
    is_overrun: bool,
}

struct Message {
    bytes: Box<[u8]>,
    signal: Option<u64>,
}

impl Outbox {
    /// An empty queue before `socket`.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new(socket: Arc<Socket>) -> Result<Arc<Self>, std::io::Error> {
        Ok(Arc::new(Outbox {
            socket,
            attention: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            tells_places: AtomicBool::new(false),
            state: Mutex::default(),
        }))
    }

    /// Readable when [`Outbox::flush`] is due.
    pub fn attention(&self) -> BorrowedFd<'_> {
        eventfd::as_fd(&self.attention)
    }

    /// Tells places of interfaces from now on.
    pub fn tell_places(&self) {
        self.tells_places.store(true, Relaxed);
    }

    /// Makes [`Outbox::attention`] unreadable; call [`Outbox::flush`] afterwards.
    pub fn attend(&self) {
        eventfd::drain(&self.attention);
    }

    /// Answers a request, with up to two parts of a result.
    pub fn answer(&self, request: (u16, u64), result: Result<u32, Errno>, parts: [&[u8]; 2]) {
        let (kind, id) = request;
        let (answer, parts) = match result {
            Ok(value) => ((0, value), parts),
            Err(errno) => ((errno.raw_os_error().unsigned_abs(), 0), [&[][..]; 2]),
        };
        let answer = Answer {
            errno: answer.0.into(),
            value: answer.1.into(),
        };
        let [first, second] = parts;
        let body = [answer.as_bytes(), first, second];
        self.send(kind | kind::ANSWER, id, &body, None);
    }

    fn send(&self, kind: u16, request: u64, body: &[&[u8]], signal: Option<u64>) {
        let body_len = body.iter().map(|part| part.len()).sum();
        let mut state = self.lock();
        let Ok(header) = frame(kind, request, body_len, 0) else {
            state.is_overrun = true; // Not reached: every sender keeps to the limit.
            return;
        };
        if state.is_closed {
            return;
        }
        if state.queue.is_empty() {
            match self.socket.send(&header, body, &[], false) {
                Ok(()) => return,
                Err(Errno::AGAIN) => {}
                Err(_) => {
                    // The reader finds out why.
                    state.close();
                    return;
                }
            }
        }
        if let Some(cookie) = signal
            && !state.signals.insert(cookie)
        {
            return;
        }
        state.push(&header, body, signal);
        drop(state);
        let _ = self.attention.write(1);
    }

    /// Sends what waits, as far as there is room; true if there is more. `None` if the client has
    /// left too much unread and is to be cut off.
    pub fn flush(&self) -> Option<bool> {
        let mut state = self.lock();
        if state.is_overrun {
            return None;
        }
        while let Some(message) = state.queue.front() {
            let sent = rustix::net::send(
                &self.socket,
                &message.bytes,
                rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL,
            );
            match sent {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Some(true),
                Err(_) => {
                    state.close();
                    return Some(false);
                }
            }
            state.pop();
        }
        Some(false)
    }

    /// Sends nothing from now on, and forgets what waits.
    pub fn close(&self) {
        self.lock().close();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn push(&mut self, header: &Header, body: &[&[u8]], signal: Option<u64>) {
        let len = header.len.get() as usize;
        let num_bytes = self.num_bytes + len;
        if self.queue.len() >= MAX_QUEUED_MESSAGES || num_bytes > MAX_QUEUED_BYTES {
            self.close();
            self.is_overrun = true;
            return;
        }
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(header.as_bytes());
        body.iter().for_each(|part| bytes.extend_from_slice(part));
        self.num_bytes = num_bytes;
        self.queue.push_back(Message {
            bytes: bytes.into_boxed_slice(),
            signal,
        });
    }

    fn pop(&mut self) {
        if let Some(message) = self.queue.pop_front() {
            self.num_bytes -= message.bytes.len();
            if let Some(cookie) = message.signal {
                self.signals.remove(&cookie);
            }
        }
    }

    fn close(&mut self) {
        self.is_closed = true;
        self.queue = VecDeque::new();
        self.signals.clear();
        self.num_bytes = 0;
    }
}

impl EventSink for Outbox {
    fn event(&self, event: Event) {
        match event {
            Event::DeviceAdded { id, kind, place } => {
                let is_told = self.tells_places.load(Relaxed);
                let place = if is_told { place.as_str() } else { "" };
                let head = DeviceAdded {
                    interface: id.0.into(),
                    // Names are short.
                    place_len: u32::try_from(place.len()).unwrap_or(0).into(),
                };
                let body = [head.as_bytes(), kind.as_bytes(), place.as_bytes()];
                self.send(kind::EVENT_DEVICE_ADDED, 0, &body, None);
            }
            Event::DeviceDropped { id } => {
                let body = DeviceDropped {
                    interface: id.0.into(),
                    ..DeviceDropped::default()
                };
                self.send(kind::EVENT_DEVICE_DROPPED, 0, &[body.as_bytes()], None);
            }
            // Nobody can say it of the bus that this is a part of.
            Event::DeviceLost { .. } => {}
            Event::Signal { cookie } => self.cookie(kind::EVENT_SIGNAL, cookie),
            Event::ShmClosed { cookie } => self.cookie(kind::EVENT_SHM_CLOSED, cookie),
        }
    }
}

impl Outbox {
    fn cookie(&self, kind: u16, cookie: u64) {
        let body = Cookie {
            cookie: cookie.into(),
        };
        let signal = (kind == kind::EVENT_SIGNAL).then_some(cookie);
        self.send(kind, 0, &[body.as_bytes()], signal);
    }
}

/// Wakes a client with a message.
pub struct MessageWakeUp {
    /// Where to.
    pub outbox: Arc<Outbox>,
    /// Of the shared memory.
    pub cookie: u64,
}

impl WakeUp for MessageWakeUp {
    fn wake(&self) {
        let cookie = self.cookie;
        self.outbox.event(Event::Signal { cookie });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::InterfaceId;
    use crate::wire::Packet;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn outbox() -> (Arc<Outbox>, Socket) {
        let kind = SocketType::SEQPACKET;
        let (a, b) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        (Outbox::new(Arc::new(a.into())).unwrap(), b.into())
    }

    /// Fills the socket until messages wait.
    fn fill(outbox: &Outbox) {
        while outbox.lock().queue.is_empty() {
            outbox.answer((kind::CALL, 1), Ok(0), [&[0; 8192], &[]]);
        }
    }

    #[test]
    fn signals_that_wait_are_one() {
        let (outbox, _peer) = outbox();
        fill(&outbox);

        for cookie in [5, 6, 5, 5, 6] {
            outbox.event(Event::Signal { cookie });
        }

        assert_eq!(outbox.lock().queue.len(), 1 + 2);
    }

    #[test]
    fn place_is_told_to_those_who_know_it() {
        let (outbox, peer) = outbox();
        let added = Event::DeviceAdded {
            id: InterfaceId(7),
            kind: "kind".into(),
            place: "link/default".into(),
        };
        let told = || {
            outbox.event(added.clone());
            let mut packet = Packet::default();
            peer.receive(&mut packet, false).unwrap();
            packet.body().to_vec()
        };

        assert_eq!(told(), b"\x07\0\0\0\0\0\0\0kind");
        outbox.tell_places();
        assert_eq!(told(), b"\x07\0\0\0\x0c\0\0\0kindlink/default");
    }

    #[test]
    fn what_waited_arrives_in_order() {
        let (outbox, peer) = outbox();
        fill(&outbox);
        outbox.event(Event::Signal { cookie: 5 });
        outbox.event(Event::ShmClosed { cookie: 5 });
        assert_eq!(outbox.flush(), Some(true));

        let mut packet = Packet::default();
        let mut kinds = Vec::new();
        for _ in 0..1000 {
            while peer.receive(&mut packet, false).unwrap() {
                kinds.push(packet.kind());
            }
            if outbox.flush() == Some(false) && kinds.last() == Some(&kind::EVENT_SHM_CLOSED) {
                break;
            }
        }

        let tail = &kinds[kinds.len() - 2..];
        assert_eq!(tail, [kind::EVENT_SIGNAL, kind::EVENT_SHM_CLOSED]);
        assert!(outbox.lock().signals.is_empty());
    }

    #[test]
    fn reader_that_never_reads_is_cut_off_and_its_queue_given_back() {
        let (outbox, _peer) = outbox();

        for cookie in 0..100_000 {
            outbox.event(Event::ShmClosed { cookie });
        }

        assert_eq!(outbox.flush(), None);
        assert_eq!(outbox.lock().queue.capacity(), 0);
    }
}
