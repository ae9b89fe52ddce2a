//! Requests and answers of several threads over one socket, without a thread of its own.
//!
//! A thread that waits for its answer reads the socket, if no other one does, and hands out what is
//! for others. The thread whose answer came leaves the reading to the next.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

use super::ClientError;
use super::inbox::{Device, Inbox};
use crate::abi::wire::{Answer, Hello, MAGIC, VERSION, Welcome, cap, kind};
use crate::eventfd;
use crate::verbs::{Event, Handle, InterfaceId, WakeUp};
use crate::wire::{Packet, Socket, WireError, frame};

/// A connection to a server, for all threads of the client.
pub struct Link {
    socket: Socket,
    state: Mutex<State>,
    /// Notified when answers came, and when nobody reads any more.
    arrived: Condvar,
    /// Readable while events wait.
    has_events: EventFd,
    /// Readable when [`Link::next_event`] has something to do.
    epoll: OwnedFd,
    /// `cap` bits of the server's.
    caps: u64,
    /// How long an answer may take.
    limit: Option<Duration>,
}

#[derive(Default)]
struct State {
    next_request: u64,
    /// Requests without an answer, and answers that nobody took yet.
    waiting: BTreeMap<u64, Option<Reply>>,
    inbox: Inbox,
    /// `None` while a thread reads with it.
    packet: Option<Box<Packet>>,
    /// Threads that wait for the one that reads.
    num_waiters: usize,
    /// Why the connection is of no use any more.
    broken: Option<Errno>,
}

/// What the server answered.
#[derive(Debug)]
pub struct Reply {
    /// The status, or why not.
    pub result: Result<u32, Errno>,
    /// The result, if it is not an error.
    pub body: Vec<u8>,
}

impl Link {
    /// Connects and greets. A request that is not answered within `limit` ends the connection.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(path: &Path, limit: Option<Duration>) -> Result<Arc<Self>, ClientError> {
        let failed = |source| ClientError::Connect {
            path: path.to_owned(),
            source,
        };
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        let flags = SocketFlags::CLOEXEC;
        let fd =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(failed)?;
        for direction in [Timeout::Send, Timeout::Recv] {
            set_socket_timeout(&fd, direction, limit).map_err(failed)?;
        }
        connect(&fd, &address).map_err(failed)?;
        let mut link = Self::new(fd.into(), limit).map_err(failed)?;
        let hello = Hello {
            magic: MAGIC.into(),
            min_version: VERSION.into(),
            max_version: VERSION.into(),
            caps: cap::PLACES.into(),
            ..Hello::default()
        };
        let greeted = |source| ClientError::Greet { source };
        let reply = link
            .exchange(kind::HELLO, &[hello.as_bytes()], &[])
            .map_err(greeted)?;
        reply.result.map_err(greeted)?;
        let (welcome, _) =
            Welcome::read_from_prefix(&reply.body).map_err(|_| greeted(Errno::PROTO))?;
        if welcome.version.get() != VERSION {
            return Err(greeted(Errno::PROTO));
        }
        link.caps = welcome.caps.get();
        Ok(Arc::new(link))
    }

    fn new(socket: Socket, limit: Option<Duration>) -> Result<Self, Errno> {
        let has_events =
            EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(|_| Errno::MFILE)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&epoll, &socket, data, epoll::EventFlags::IN)?;
        let events = eventfd::as_fd(&has_events);
        epoll::add(&epoll, events, data, epoll::EventFlags::IN)?;
        Ok(Link {
            socket,
            state: Mutex::new(State {
                packet: Some(Box::default()),
                ..State::default()
            }),
            arrived: Condvar::new(),
            has_events,
            epoll,
            caps: 0,
            limit,
        })
    }

    /// `cap` bits of the server's.
    pub fn caps(&self) -> u64 {
        self.caps
    }

    /// Readable when there may be an event, or the connection is broken.
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Readable when anything came.
    pub fn socket_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// `ECONNRESET`: the server is gone. `ETIMEDOUT`: it did not answer in time, and the connection is
    /// ended. `EMSGSIZE`: too large. `EPROTO`: it answers nonsense.
    pub fn exchange(
        &self,
        kind: u16,
        body: &[&[u8]],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply, Errno> {
        let body_len = body.iter().map(|part| part.len()).sum();
        let mut state = self.lock();
        if let Some(errno) = state.broken {
            return Err(errno);
        }
        let request = state.next_request;
        let header = frame(kind, request, body_len, fds.len())?;
        state.next_request += 1;
        state.waiting.insert(request, None);
        drop(state);
        match self.socket.send(&header, body, fds, true) {
            // What the server said before it hung up is still to be read.
            Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => self.wait(kind, request),
            Err(errno) => {
                let mut state = self.lock();
                state.waiting.remove(&request);
                // There was no room for as long as an answer may take.
                if errno == Errno::AGAIN {
                    return Err(self.give_up(state));
                }
                Err(errno)
            }
        }
    }

    /// Hangs up on a server that does not answer; the error to all that is asked of it.
    fn give_up(&self, mut state: MutexGuard<'_, State>) -> Errno {
        let mut wake_ups = Vec::new();
        state.fail(Errno::TIMEDOUT, &mut wake_ups);
        drop(state);
        self.hang_up();
        self.arrived.notify_all();
        wake_ups.iter().for_each(|wake_up| wake_up.wake());
        Errno::TIMEDOUT
    }

    fn wait(&self, kind: u16, request: u64) -> Result<Reply, Errno> {
        let deadline = self
            .limit
            .and_then(|limit| Instant::now().checked_add(limit));
        let mut state = self.lock();
        loop {
            if let Some(reply) = state.waiting.get_mut(&request).and_then(Option::take) {
                state.waiting.remove(&request);
                return Ok(reply);
            }
            if let Some(errno) = state.broken {
                state.waiting.remove(&request);
                tracing::trace!("request of kind {kind} is lost: {errno}");
                return Err(errno);
            }
            let time_left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if time_left == Some(Duration::ZERO) {
                state.waiting.remove(&request);
                return Err(self.give_up(state));
            }
            state = match state.packet.take() {
                // Waits for at most the limit: the socket sees to that.
                Some(packet) => self.read(state, packet, true).0,
                None => {
                    state.num_waiters += 1;
                    match time_left {
                        Some(time) => drop(self.arrived.wait_for(&mut state, time)),
                        None => self.arrived.wait(&mut state),
                    }
                    state.num_waiters -= 1;
                    state
                }
            };
        }
    }

    /// Reads a message, if there is one or `is_patient`; true if there was.
    fn read<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        mut packet: Box<Packet>,
        is_patient: bool,
    ) -> (MutexGuard<'a, State>, bool) {
        drop(state);
        let received = self.socket.receive(&mut packet, is_patient);
        let mut state = self.lock();
        let mut wake_ups = Vec::new();
        let had_events = !state.inbox.is_empty();
        let came = match received {
            Ok(came) => {
                if came && !state.take(&packet, &mut wake_ups) {
                    state.fail(Errno::PROTO, &mut wake_ups);
                }
                came
            }
            Err(WireError::Closed) => {
                state.fail(Errno::CONNRESET, &mut wake_ups);
                false
            }
            Err(WireError::Socket { source, .. }) => {
                state.fail(source, &mut wake_ups);
                false
            }
            Err(_) => {
                state.fail(Errno::PROTO, &mut wake_ups);
                false
            }
        };
        state.packet = Some(packet);
        // Neither is for nothing: each is a system call, and calls come one after the other.
        if !had_events && !state.inbox.is_empty() {
            let _ = self.has_events.write(1);
        }
        if state.num_waiters > 0 {
            self.arrived.notify_all();
        }
        wake_ups.iter().for_each(|wake_up| wake_up.wake());
        (state, came)
    }

    /// Ends the connection: whoever waits for an answer gets `ECONNRESET` at once.
    pub fn hang_up(&self) {
        // Fails only if the server has hung up.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }

    /// Takes in what came, without waiting.
    ///
    /// # Errors
    /// As of [`Link::exchange`], and for ever.
    pub fn pump(&self) -> Result<(), Errno> {
        let mut state = self.lock();
        // If another thread reads, it takes in all there is.
        while state.broken.is_none()
            && let Some(packet) = state.packet.take()
        {
            let came;
            (state, came) = self.read(state, packet, false);
            if !came {
                break;
            }
        }
        state.broken.map_or(Ok(()), Err)
    }

    /// The next event, if there is one.
    ///
    /// # Errors
    /// As of [`Link::pump`], once all events were taken.
    pub fn next_event(&self) -> Result<Option<Event>, Errno> {
        let pumped = self.pump();
        let mut state = self.lock();
        let event = state.inbox.pop();
        if state.inbox.is_empty() {
            eventfd::drain(&self.has_events);
        }
        match event {
            Some(event) => Ok(Some(event)),
            None => pumped.map(|()| None),
        }
    }

    /// True once every request fails.
    pub fn is_broken(&self) -> bool {
        self.lock().broken.is_some()
    }

    /// Interfaces that are on the bus.
    pub fn devices(&self) -> Vec<Device> {
        self.lock().inbox.devices()
    }

    /// Remembers which interface a connection is to.
    pub fn opened(&self, handle: Handle, id: InterfaceId) {
        self.lock().inbox.opened(handle, id);
    }

    /// Forgets a connection.
    pub fn closed(&self, handle: Handle) {
        self.lock().inbox.closed(handle);
    }

    /// Remembers whom to wake for shared memory, until it is closed.
    pub fn shared(&self, cookie: u64, handle: Handle, wake_up: Arc<dyn WakeUp>) {
        self.lock().inbox.shared(cookie, handle, wake_up);
    }

    /// Forgets what [`Link::shared`] remembered.
    pub fn unshared(&self, cookie: u64, handle: Handle) {
        self.lock().inbox.unshared(cookie, handle);
    }

    /// True while calls on a connection can succeed.
    ///
    /// # Errors
    /// As of [`Link::pump`].
    pub fn is_open(&self, handle: Handle) -> Result<bool, Errno> {
        let state = self.lock();
        match state.broken {
            Some(errno) => Err(errno),
            None => Ok(state.inbox.is_open(handle)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn fail(&mut self, errno: Errno, wake_ups: &mut Vec<Arc<dyn WakeUp>>) {
        self.broken.get_or_insert(errno);
        wake_ups.extend(self.inbox.wake_ups());
    }

    /// Files a message; false if it is none that a server sends.
    fn take(&mut self, packet: &Packet, wake_ups: &mut Vec<Arc<dyn WakeUp>>) -> bool {
        if packet.kind() & kind::ANSWER == 0 {
            return self.inbox.take(packet.kind(), packet.body(), wake_ups);
        }
        let Ok((answer, body)) = Answer::read_from_prefix(packet.body()) else {
            return false;
        };
        let Some(reply) = self.waiting.get_mut(&packet.request()) else {
            return false;
        };
        let result = match i32::try_from(answer.errno.get()) {
            Ok(0) => Ok(answer.value.get()),
            Ok(errno @ 1..=4095) => Err(Errno::from_raw_os_error(errno)),
            _ => return false,
        };
        *reply = Some(Reply {
            result,
            body: body.to_vec(),
        });
        true
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}
