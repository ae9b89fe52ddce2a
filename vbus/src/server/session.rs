//! One client: its requests, one after the other, on its own thread.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::outbox::Outbox;
use super::peer::PeerProcess;
use super::post::Poster;
use super::space::{AddError, AddressSpace};
use super::{CutOff, Shared, admin};
use crate::abi::wire::{Call, Opened, VERSION, Welcome, cap};
use crate::bus::{Client, Member};
use crate::eventfd;
use crate::verbs::Verbs;
use crate::wire::{Packet, Request, Socket, WireError};

/// Requests that are served before the thread looks whether it is to stop.
const MAX_BATCH: u32 = 16;

/// A client's connection.
pub struct Session {
    shared: Arc<Shared>,
    socket: Arc<Socket>,
    outbox: Arc<Outbox>,
    peer: PeerProcess,
    is_greeted: bool,
    /// What the client is on its bus.
    membership: Option<Membership>,
    /// Made with the first eventfd to post to; after `membership`, so that no device is the last
    /// one to hold it.
    poster: Option<Arc<Poster>>,
}

/// Of a bus. Fields are dropped in this order: what is open, then the memory.
pub struct Membership {
    client: Client,
    pub(super) member: Member,
    pub(super) space: Arc<AddressSpace>,
}

/// How a connection ends without a fault.
enum Flow {
    GoOn,
    End,
}

impl Session {
    /// A session with a process that connected.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new(shared: Arc<Shared>, fd: OwnedFd, peer: PeerProcess) -> Result<Self, Errno> {
        let socket = Arc::new(Socket::from(fd));
        let outbox = Outbox::new(Arc::clone(&socket)).map_err(|_| Errno::MFILE)?;
        Ok(Session {
            shared,
            socket,
            outbox,
            peer,
            is_greeted: false,
            membership: None,
            poster: None,
        })
    }

    /// Serves the client until it leaves, dies, breaks the rules, or the server stops.
    pub fn run(mut self) {
        let pid = self.peer.pid;
        tracing::debug!("vbus: client {pid} connected");
        match self.serve() {
            Ok(()) => tracing::debug!("vbus: client {pid} left"),
            Err(CutOff::Message {
                source: WireError::Closed,
            }) => {
                tracing::debug!("vbus: client {pid} left");
            }
            Err(fault) => self.count(&fault),
        }
        // The client hears of it at once, however long its devices take to close.
        self.outbox.close();
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        self.membership = None;
    }

    fn count(&self, fault: &CutOff) {
        let num_cut_off = self.shared.counters.cut_off.fetch_add(1, Relaxed) + 1;
        if num_cut_off.is_power_of_two() {
            let pid = self.peer.pid;
            let source = std::error::Error::source(fault)
                .map(|source| format!(": {source}"))
                .unwrap_or_default();
            tracing::warn!("vbus: client {pid} cut off ({num_cut_off} so far): {fault}{source}");
        }
    }

    fn serve(&mut self) -> Result<(), CutOff> {
        let mut packet = Packet::default();
        loop {
            let has_more = self.outbox.flush().ok_or(CutOff::Overrun)?;
            if let Flow::End = self.wait(has_more)? {
                return Ok(());
            }
            for _ in 0..MAX_BATCH {
                if !self.socket.receive(&mut packet, false)? {
                    break;
                }
                self.handle(&mut packet)?;
            }
        }
    }

    /// Waits for anything to do.
    fn wait(&self, has_more: bool) -> Result<Flow, CutOff> {
        let mut interest = PollFlags::IN;
        interest.set(PollFlags::OUT, has_more);
        let stop = eventfd::as_fd(&self.shared.stop);
        let mut fds = [
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
            PollFd::from_borrowed_fd(self.peer.pidfd.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.socket.as_fd(), interest),
            PollFd::from_borrowed_fd(self.outbox.attention(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(source) => return Err(CutOff::Host { source }),
        }
        let [is_stopped, is_dead, _, is_rung] = fds.map(|fd| !fd.revents().is_empty());
        if is_rung {
            self.outbox.attend();
        }
        Ok(if is_stopped || is_dead {
            Flow::End
        } else {
            Flow::GoOn
        })
    }

    fn handle(&mut self, packet: &mut Packet) -> Result<(), CutOff> {
        let fds = std::mem::take(&mut packet.fds);
        let id = (packet.kind(), packet.request());
        let request = Request::read(packet.kind(), packet.body(), &fds)?;
        if self.is_greeted == matches!(request, Request::Hello { .. }) {
            let kind = packet.kind();
            return Err(WireError::Unexpected { kind }.into());
        }
        let done = |result: Result<(), Errno>| result.map(|()| 0);
        let result = match request {
            Request::Hello {
                min_version,
                max_version,
                caps,
            } => return self.greet(id, (min_version, max_version), caps),
            Request::Tree { op, path, text } if self.peer.is_admin() => {
                let tree = self.shared.host.tree();
                admin::serve(&tree, &self.outbox, (id, op), path, text);
                return Ok(());
            }
            Request::Tree { .. } => Err(Errno::ACCESS),
            Request::Join { bus } => done(self.join(bus)),
            Request::MemAdd { base, len, offset } => {
                done(self.add_memory(id, (base, len, offset), fds)?)
            }
            Request::Pages { num_pages } => done(self.add_pages(id, num_pages, fds)?),
            Request::MemDrop { base } => done(
                self.membership()
                    .and_then(|membership| membership.space.drop_range(base)),
            ),
            Request::Open { interface, version } => {
                let opened = self
                    .membership()
                    .and_then(|membership| membership.client.open(interface, version));
                let body = Opened {
                    handle: opened.map_or(0, |handle| handle.0).into(),
                };
                self.outbox
                    .answer(id, opened.map(|_| 0), [body.as_bytes(), &[]]);
                return Ok(());
            }
            Request::Call { handle, func } => {
                let data = packet
                    .body_mut()
                    .get_mut(size_of::<Call>()..)
                    .unwrap_or_default();
                let result = self
                    .membership()
                    .and_then(|membership| membership.client.call(handle, func, data));
                self.outbox.answer(id, result, [data, &[]]);
                return Ok(());
            }
            Request::Shm(body) => match self.shm_request(id, &body, fds)? {
                Ok(request) => done(
                    self.membership()
                        .and_then(|membership| membership.client.shm(body.handle, request)),
                ),
                Err(errno) => Err(errno),
            },
            Request::Report { text } => done(
                self.membership()
                    .and_then(|membership| membership.member.report(text)),
            ),
            Request::Close { handle } => done(
                self.membership()
                    .and_then(|membership| membership.client.close(handle)),
            ),
        };
        self.outbox.answer(id, result, [&[], &[]]);
        Ok(())
    }

    fn greet(&mut self, id: (u16, u64), (min, max): (u16, u16), known: u64) -> Result<(), CutOff> {
        if !(min..=max).contains(&VERSION) {
            let result = Err(Errno::PROTONOSUPPORT);
            self.outbox.answer(id, result, [&[], &[]]);
            return Err(CutOff::Version { min, max });
        }
        let mut caps = cap::REPORT | cap::PLACES;
        if known & cap::PLACES != 0 {
            self.outbox.tell_places();
        }
        if self.shared.probe.is_some() {
            caps |= cap::WAKE_UP_EVENTFD | cap::PAGES;
        }
        if self.peer.is_admin() {
            caps |= cap::ADMIN;
        }
        let welcome = Welcome {
            version: VERSION.into(),
            caps: caps.into(),
            ..Welcome::default()
        };
        self.is_greeted = true;
        self.outbox.answer(id, Ok(0), [welcome.as_bytes(), &[]]);
        Ok(())
    }

    fn join(&mut self, bus: &str) -> Result<(), Errno> {
        if self.membership.is_some() {
            return Err(Errno::BUSY);
        }
        let member = self.shared.host.join(bus, self.peer.pid)?;
        // Had it died before, the pid could be another's by now. From here on `wait` sees it.
        if self.peer.is_dead() {
            return Err(Errno::SRCH);
        }
        let space = Arc::new(AddressSpace::default());
        let events = Arc::clone(&self.outbox);
        let client = member.attach(Arc::clone(&space) as _, events)?;
        self.membership = Some(Membership {
            client,
            member,
            space,
        });
        Ok(())
    }

    pub(super) fn membership(&self) -> Result<&Membership, Errno> {
        self.membership.as_ref().ok_or(Errno::NOTCONN)
    }

    fn add_memory(
        &self,
        id: (u16, u64),
        range: (u64, u64, u64),
        fds: Vec<OwnedFd>,
    ) -> Result<Result<(), Errno>, CutOff> {
        let (Ok(membership), Some(memfd)) = (self.membership(), fds.into_iter().next()) else {
            return Ok(Err(Errno::NOTCONN));
        };
        match membership.space.add(&membership.member, range, memfd) {
            Ok(()) => Ok(Ok(())),
            Err(AddError::Refused(errno)) => Ok(Err(errno)),
            Err(AddError::Hostile(source)) => Err(self.condemn(id, CutOff::Memory { source })),
        }
    }

    /// Tells the client why it is about to be cut off.
    pub(super) fn condemn(&self, id: (u16, u64), fault: CutOff) -> CutOff {
        self.outbox.answer(id, Err(Errno::INVAL), [&[], &[]]);
        fault
    }

    pub(super) fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// The way to post to the client's eventfds.
    pub(super) fn poster(&mut self) -> Result<Arc<Poster>, Errno> {
        if let Some(poster) = &self.poster {
            return Ok(Arc::clone(poster));
        }
        let poster = Arc::new(Poster::new()?);
        self.poster = Some(Arc::clone(&poster));
        Ok(poster)
    }
}
