//! Takes clients and gives each a thread.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use zerocopy::IntoBytes;

use super::Shared;
use super::listener::Listener;
use super::peer::PeerProcess;
use super::session::Session;
use crate::abi::wire::{Answer, kind};
use crate::eventfd;
use crate::threads::{self, ThreadClass};
use crate::wire::{Socket, frame};

/// How long nobody is accepted when the host is out of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// The clients' threads.
#[derive(Debug, Default)]
pub struct Clients {
    live: BTreeMap<u64, LiveClient>,
    ended: Vec<JoinHandle<()>>,
    next_id: u64,
}

#[derive(Debug)]
struct LiveClient {
    uid: u32,
    thread: JoinHandle<()>,
}

impl Clients {
    /// Clients that are connected.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    fn num_of(&self, uid: u32) -> usize {
        let clients = self.live.values();
        clients.filter(|client| client.uid == uid).count()
    }

    /// Joins threads that have nothing left to do.
    pub fn join_ended(&mut self) {
        for thread in self.ended.drain(..) {
            // A panic was logged by its own thread.
            let _ = thread.join();
        }
    }
}

/// Tells that a client's thread ends, however it does.
struct Farewell {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("vbus: a client's thread panicked");
        }
        let mut clients = self.shared.clients.lock();
        if let Some(client) = clients.live.remove(&self.id) {
            clients.ended.push(client.thread);
        }
        drop(clients);
        self.shared.left.notify_all();
        let _ = self.shared.ended.write(1);
    }
}

/// Runs until the server stops.
pub fn run(shared: &Arc<Shared>, listener: &Listener) {
    let mut is_paused = false;
    loop {
        let stop = eventfd::as_fd(&shared.stop);
        let ended = eventfd::as_fd(&shared.ended);
        let mut fds = [
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
            PollFd::from_borrowed_fd(ended, PollFlags::IN),
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
        ];
        let pause = Timespec::try_from(PAUSE).ok().filter(|_| is_paused);
        let [stop, ended, incoming] = if is_paused {
            let [stop, ended, _] = &mut fds;
            let mut fds = [stop.clone(), ended.clone()];
            let _ = poll(&mut fds, pause.as_ref());
            let [stop, ended] = fds.map(|fd| !fd.revents().is_empty());
            [stop, ended, true]
        } else {
            let _ = poll(&mut fds, None);
            fds.map(|fd| !fd.revents().is_empty())
        };
        if stop {
            return;
        }
        if ended {
            eventfd::drain(&shared.ended);
            // Its thread is past the lock that is held here, so this waits for next to nothing.
            shared.clients.lock().join_ended();
        }
        is_paused = incoming && take(shared, listener).is_err();
    }
}

/// Accepts one client, if one is there.
///
/// # Errors
/// The host is out of something.
fn take(shared: &Arc<Shared>, listener: &Listener) -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = match accept_with(listener, flags) {
        Ok(fd) => fd,
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(()),
        Err(error) => {
            tracing::warn!("vbus: cannot accept a client: {error}");
            return Err(error);
        }
    };
    if let Err(errno) = admit(shared, fd) {
        shared.counters.refused.fetch_add(1, Relaxed);
        tracing::warn!("vbus: client refused: {errno}");
    }
    Ok(())
}

fn admit(shared: &Arc<Shared>, fd: OwnedFd) -> Result<(), Errno> {
    let peer = match PeerProcess::of(&fd) {
        Ok(peer) => peer,
        Err(errno) => return refuse(fd, errno),
    };
    let mut clients = shared.clients.lock();
    let limits = shared.limits;
    if clients.len() >= limits.clients || clients.num_of(peer.uid) >= limits.clients_per_uid {
        drop(clients);
        return refuse(fd, Errno::DQUOT);
    }
    let (uid, pid) = (peer.uid, peer.pid);
    let session = Session::new(Arc::clone(shared), fd, peer)?;
    let id = clients.next_id;
    clients.next_id += 1;
    let their_shared = Arc::clone(shared);
    // The lock is held until the thread is known, so it cannot be gone before.
    let serve = move || {
        let _farewell = Farewell {
            shared: their_shared,
            id,
        };
        session.run();
    };
    let thread =
        threads::spawn(ThreadClass::Bus, format!("vbus-{pid}"), serve).map_err(|_| Errno::AGAIN)?;
    clients.live.insert(id, LiveClient { uid, thread });
    shared.counters.accepted.fetch_add(1, Relaxed);
    Ok(())
}

/// Answers the greeting that is to come, and hangs up.
fn refuse(fd: OwnedFd, errno: Errno) -> Result<(), Errno> {
    let answer = Answer {
        errno: errno.raw_os_error().unsigned_abs().into(),
        ..Answer::default()
    };
    if let Ok(header) = frame(kind::HELLO | kind::ANSWER, 0, size_of::<Answer>(), 0) {
        let _ = Socket::from(fd).send(&header, &[answer.as_bytes()], &[], false);
    }
    Err(errno)
}
