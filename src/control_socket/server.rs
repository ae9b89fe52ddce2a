//! The socket of one VM, and the threads that answer there.
//!
//! A few threads wait for clients; each serves one at a time, for a bounded time. The VM's own threads
//! never wait for a client, nor does the end of the VM.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use alacrity_devices::metrics::Counter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read, write};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{SocketFlags, SocketType, accept_with};
use vbus::eventfd;
use vbus::server::{BindError, Listener};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::place::{Place, PlaceError};
use super::protocol::{MAX_CELLS, MAX_REQUEST_BYTES};
use super::{Answer, Refusal, Request, VmControl};
use vbus::threads::{self, ThreadClass};

/// Clients that are served at once. The others wait.
const NUM_THREADS: usize = 4;
/// How long a client may take to ask, and again to take the answer.
const CLIENT_TIME: Duration = Duration::from_secs(2);
/// How long nobody is accepted when the host is out of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlSocketError {
    /// No place for it.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Nobody could connect.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The host is out of threads or descriptors.
    #[error(transparent)]
    Start(#[from] io::Error),
}

/// What the threads share.
struct Shared {
    vm: Arc<dyn VmControl>,
    listener: Listener,
    /// Readable from when the VM ends.
    stop: EventFd,
    is_reclaiming: AtomicBool,
    strangers: Counter,
    client_time: Duration,
}

/// The control socket of a VM. Dropping it removes its name and ends whatever goes on there.
pub struct ControlSocket {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for ControlSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlSocket")
            .field("path", &self.shared.listener.path())
            .finish_non_exhaustive()
    }
}

impl ControlSocket {
    /// Answers for `vm`, which is this process, in `place`.
    ///
    /// # Errors
    /// [`ControlSocketError`].
    pub fn open(place: &Place, vm: Arc<dyn VmControl>) -> Result<Self, ControlSocketError> {
        place.make()?;
        place.remove_stale();
        Self::listen(&place.socket(std::process::id()), vm, CLIENT_TIME)
    }

    pub(super) fn listen(
        path: &Path,
        vm: Arc<dyn VmControl>,
        client_time: Duration,
    ) -> Result<Self, ControlSocketError> {
        let mut socket = ControlSocket {
            shared: Arc::new(Shared {
                vm,
                listener: Listener::bind(path, SocketType::STREAM)?,
                stop: EventFd::new(EFD_NONBLOCK)?,
                is_reclaiming: AtomicBool::new(false),
                strangers: Counter::default(),
                client_time,
            }),
            threads: Vec::new(),
        };
        for idx in 0..NUM_THREADS {
            let shared = Arc::clone(&socket.shared);
            let name = format!("control{idx}");
            let thread = threads::spawn(ThreadClass::Control, name, move || shared.serve())?;
            socket.threads.push(thread);
        }
        Ok(socket)
    }

    /// Removes its name, and waits for nobody: the process is about to end.
    pub fn abandon(self) {
        self.shared.listener.remove();
        std::mem::forget(self);
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.shared.listener.remove();
        // Fails only when it was stopped before.
        let _ = self.shared.stop.write(1);
        for thread in self.threads.drain(..) {
            // A panic ended the process.
            let _ = thread.join();
        }
    }
}

/// Nobody is there to be answered: the client hung up or is too slow, or the VM ends.
struct Gone;

impl Shared {
    /// Serves clients until the VM ends.
    fn serve(&self) {
        while self.wait(&self.listener, PollFlags::IN, None).is_ok() {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match accept_with(&self.listener, flags) {
                Ok(client) => {
                    let _ = self.answer(&client);
                }
                // Another thread was faster, or the client has left.
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => (),
                Err(error) => {
                    tracing::warn!("control: cannot accept a client: {error}");
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    fn answer(&self, client: &OwnedFd) -> Result<(), Gone> {
        let uid = socket_peercred(client).map_err(|_| Gone)?.uid;
        if !uid.is_root() && uid != rustix::process::geteuid() {
            if self.strangers.count_sparsely() {
                tracing::warn!("control: user {} may not ask", uid.as_raw());
            }
            return Err(Gone);
        }
        let answer = match self.request(client)? {
            Ok(request) => self.obey(&request, client),
            Err(refusal) => Answer::Refused(refusal),
        };
        let line = answer.into_line().map_err(|_| Gone)?;
        self.send(client, line.as_bytes())
    }

    fn obey(&self, request: &Request, client: &OwnedFd) -> Answer {
        match request {
            Request::Stat => Answer::Stat(Box::new(self.vm.stat())),
            Request::Reclaim { .. } if self.is_reclaiming.swap(true, Ordering::AcqRel) => {
                Answer::Refused(Refusal::Busy)
            }
            Request::Reclaim { bytes } => {
                let reclaimed = self.vm.reclaim(*bytes, &|| self.is_waited_for(client));
                self.is_reclaiming.store(false, Ordering::Release);
                reclaimed.map_or_else(Answer::Refused, Answer::Reclaimed)
            }
            Request::Target { bytes } => {
                let set = self.vm.set_target(*bytes);
                let target = Answer::Target { bytes: *bytes };
                set.map_or_else(Answer::Refused, |()| target)
            }
            Request::MemoryMap { most_cells } => {
                let map = self.vm.memory_map((*most_cells).min(MAX_CELLS));
                map.map_or_else(Answer::Refused, Answer::MemoryMap)
            }
        }
    }

    /// The request of `client`: its first line.
    fn request(&self, client: &OwnedFd) -> Result<Result<Request, Refusal>, Gone> {
        let deadline = Instant::now() + self.client_time;
        let mut line = Vec::with_capacity(MAX_REQUEST_BYTES);
        loop {
            self.wait(client, PollFlags::IN, Some(deadline))?;
            let mut part = [0; MAX_REQUEST_BYTES];
            let part = match read(client, &mut part) {
                Ok(0) if line.is_empty() => return Err(Gone),
                Ok(len) => part.get(..len).unwrap_or_default(),
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Err(_) => return Err(Gone),
            };
            let end = part.iter().position(|byte| *byte == b'\n');
            line.extend(part.iter().take(end.unwrap_or(part.len())));
            if line.len() >= MAX_REQUEST_BYTES {
                let reason = format!("it has more than {MAX_REQUEST_BYTES} bytes");
                return Ok(Err(Refusal::BadRequest { reason }));
            }
            // The end of what the client has to say is the end of a line as well.
            if end.is_some() || part.is_empty() {
                return Ok(Request::from_line(&line));
            }
        }
    }

    fn send(&self, client: &OwnedFd, mut line: &[u8]) -> Result<(), Gone> {
        let deadline = Instant::now() + self.client_time;
        while !line.is_empty() {
            self.wait(client, PollFlags::OUT, Some(deadline))?;
            match write(client, line) {
                Ok(len) => line = line.get(len..).unwrap_or_default(),
                Err(Errno::AGAIN | Errno::INTR) => (),
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }

    /// Waits until `fd` is ready for `events`, or for an error to be told.
    fn wait(
        &self,
        fd: &impl AsFd,
        events: PollFlags,
        deadline: Option<Instant>,
    ) -> Result<(), Gone> {
        loop {
            let left =
                match deadline.map(|deadline| deadline.checked_duration_since(Instant::now())) {
                    Some(None) => return Err(Gone),
                    Some(Some(left)) => Timespec::try_from(left).ok(),
                    None => None,
                };
            let stop = eventfd::as_fd(&self.stop);
            let mut fds = [
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
                PollFd::new(fd, events),
            ];
            let polled = poll(&mut fds, left.as_ref());
            let [is_stopping, is_ready] = fds.map(|fd| !fd.revents().is_empty());
            match polled {
                Err(Errno::INTR) | Ok(0) => (),
                Ok(_) if is_stopping => return Err(Gone),
                Ok(_) if is_ready => return Ok(()),
                _ => return Err(Gone),
            }
        }
    }

    /// False once `client` has hung up or the VM ends.
    fn is_waited_for(&self, client: &OwnedFd) -> bool {
        let now = Timespec::default();
        let stop = eventfd::as_fd(&self.stop);
        let mut fds = [
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
            // Told of in any case: POLLHUP.
            PollFd::new(client, PollFlags::empty()),
        ];
        !matches!(poll(&mut fds, Some(&now)), Ok(1..))
    }
}
