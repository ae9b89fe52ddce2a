//! What moves data between the disk and the guest: io_uring, or system calls where it is missing.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::disk::Disk;
use super::metrics::EngineKind;
use super::request::{Request, Step, Transfer};
use super::uring::Uring;

/// A request that an engine has finished with, and how it went.
pub(super) type Finished = (Request, io::Result<()>);

/// The engine of one disk.
#[derive(Debug)]
pub(super) enum Engine {
    Uring(Box<Uring>),
    Sync(Arc<Disk>),
}

impl Engine {
    /// The engine of `kind`; without a kind, io_uring if the host offers it. At most
    /// `max_in_flight` requests, a power of two, are under way at once.
    ///
    /// # Errors
    /// io_uring was asked for by name and the host refuses it.
    pub(super) fn new(
        name: &str,
        disk: Arc<Disk>,
        kind: Option<EngineKind>,
        max_in_flight: u16,
    ) -> io::Result<Self> {
        let uring = || Uring::new(Arc::clone(&disk), max_in_flight);
        Engine::choose(name, Arc::clone(&disk), kind, uring)
    }

    /// [`Engine::new`] on a host whose io_uring is what `uring` says.
    pub(super) fn choose(
        name: &str,
        disk: Arc<Disk>,
        kind: Option<EngineKind>,
        uring: impl FnOnce() -> io::Result<Uring>,
    ) -> io::Result<Self> {
        if kind == Some(EngineKind::Sync) {
            return Ok(Engine::Sync(disk));
        }
        match uring() {
            Ok(uring) => {
                tracing::debug!("{name}: engine io_uring");
                Ok(Engine::Uring(Box::new(uring)))
            }
            Err(error) if kind.is_none() => {
                tracing::debug!("{name}: engine sync, as io_uring is not available: {error}");
                Ok(Engine::Sync(disk))
            }
            Err(error) => Err(error),
        }
    }

    /// Which engine this is.
    pub(super) fn kind(&self) -> EngineKind {
        match self {
            Engine::Uring(_) => EngineKind::IoUring,
            Engine::Sync(_) => EngineKind::Sync,
        }
    }

    /// Readable when [`Engine::reap`] has something to find.
    pub(super) fn completion_evt(&self) -> Option<&EventFd> {
        match self {
            Engine::Uring(uring) => Some(uring.completion_evt()),
            Engine::Sync(_) => None,
        }
    }

    /// Requests under way.
    pub(super) fn num_in_flight(&self) -> usize {
        match self {
            Engine::Uring(uring) => uring.num_in_flight(),
            Engine::Sync(_) => 0,
        }
    }

    /// Starts a request that was begun; a result if it is finished already. The caller keeps to
    /// `max_in_flight`.
    ///
    /// # Errors
    /// The engine is broken.
    pub(super) fn start(&mut self, request: Request) -> io::Result<Option<Finished>> {
        match self {
            Engine::Uring(uring) => uring.start(request).map(|()| None),
            Engine::Sync(disk) => Ok(Some(run(disk, request))),
        }
    }

    /// Hands the started requests to the host. False if the host is too busy to take them all now.
    ///
    /// # Errors
    /// The engine is broken.
    pub(super) fn submit(&mut self) -> io::Result<bool> {
        match self {
            Engine::Uring(uring) => uring.submit(),
            Engine::Sync(_) => Ok(true),
        }
    }

    /// Moves the requests that have finished since to `finished`. False as for
    /// [`Engine::submit`], which it calls for the rest of requests that were done in part.
    ///
    /// # Errors
    /// The engine is broken.
    pub(super) fn reap(&mut self, finished: &mut Vec<Finished>) -> io::Result<bool> {
        match self {
            Engine::Uring(uring) => uring.reap(finished),
            Engine::Sync(_) => Ok(true),
        }
    }
}

/// Runs `request` to its end on this thread.
fn run(disk: &Disk, mut request: Request) -> Finished {
    loop {
        let result = match request.transfer() {
            Transfer::Read => request.iovecs().read_from_at(disk, request.offset()),
            Transfer::Write { .. } => request.iovecs().write_to_at(disk, request.offset()),
            Transfer::Flush => disk.flush().map(|()| 0),
        };
        match request.advance(result) {
            Step::Again => {}
            Step::Done(Ok(())) if request.transfer() == (Transfer::Write { is_durable: true }) => {
                let result = disk.flush();
                return (request, result);
            }
            Step::Done(result) => return (request, result),
        }
    }
}
