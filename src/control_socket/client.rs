//! The other end of control sockets.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use vbus::server::Listener;

use super::place::{Place, PlaceError};
use super::protocol::{AnswerError, MAX_ANSWER_BYTES};
use super::{Answer, Refusal, Request, VmStat};
use crate::reclaim::census::MemoryMap;
use crate::reclaim::policy::Reclaimed;

/// How long a VM may take for an answer that it has at hand.
pub const SHORT_TIME: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no such VM, or no more.
    #[error("no such VM runs")]
    NoVm,
    /// It is stopped, or has too much to do.
    #[error("it does not answer; is its process stopped?")]
    Silent,
    /// It does not let us.
    #[error("cannot ask it")]
    Io(#[source] io::Error),
    /// It ended, or refused to listen, before it said anything.
    #[error("it hung up; did it end?")]
    HungUp,
    /// It does not want to.
    #[error(transparent)]
    Refused(Refusal),
    /// What it said is no answer.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// It answered another question.
    #[error("its answer is to another question")]
    OtherAnswer,
}

impl From<io::Error> for AskError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AskError::Silent,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => AskError::HungUp,
            _ => AskError::Io(error),
        }
    }
}

/// Asks the VM that listens on `socket`, which may take `limit` for its answer if there is one.
///
/// # Errors
/// [`AskError`].
pub fn ask(socket: &Path, request: &Request, limit: Option<Duration>) -> Result<Answer, AskError> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    let mut stream = connect_to(socket)?;
    let line = request.to_line().map_err(io::Error::from)?;
    stream.set_write_timeout(limit)?;
    stream.write_all(line.as_bytes())?;
    let mut answer = Vec::new();
    let mut part = vec![0; 64 << 10];
    while !answer.ends_with(b"\n") && answer.len() < MAX_ANSWER_BYTES {
        let left = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
        {
            Some(Duration::ZERO) => return Err(AskError::Silent),
            left => left,
        };
        stream.set_read_timeout(left)?;
        match stream.read(&mut part) {
            Ok(0) => return Err(AskError::HungUp),
            Ok(len) => answer.extend_from_slice(part.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Answer::from_line(&answer)?)
}

fn connect_to(socket: &Path) -> Result<UnixStream, AskError> {
    let address = SocketAddrUnix::new(socket).map_err(io::Error::from)?;
    // A `connect` that may wait would wait for ever if nobody accepts.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(io::Error::from)?;
    match connect(&fd, &address) {
        Ok(()) => (),
        Err(Errno::AGAIN) => return Err(AskError::Silent),
        Err(Errno::NOENT) => return Err(AskError::NoVm),
        Err(Errno::CONNREFUSED) => {
            // Whoever made it is gone, and if a new one has come, this does nothing.
            let _ = Listener::remove_stale(socket);
            return Err(AskError::NoVm);
        }
        Err(error) => return Err(AskError::Io(error.into())),
    }
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// A VM that has a socket.
#[derive(Debug)]
pub struct Found {
    /// Its process.
    pub pid: u32,
    /// What it says of itself.
    pub stat: Result<Box<VmStat>, AskError>,
}

/// All VMs in `place`, by process. Removes the sockets of those that are gone.
///
/// # Errors
/// [`PlaceError::ReadDir`].
pub fn list(place: &Place) -> Result<Vec<Found>, PlaceError> {
    let pids = place.pids()?;
    // All at once, so that those that are silent do not add up.
    Ok(std::thread::scope(|scope| {
        let threads: Vec<_> = pids
            .into_iter()
            .map(|pid| (pid, scope.spawn(move || stat(place, pid))))
            .collect();
        let found = threads.into_iter().filter_map(|(pid, thread)| {
            let stat = thread.join().unwrap_or(Err(AskError::Silent));
            let is_gone = matches!(stat, Err(AskError::NoVm | AskError::HungUp));
            (!is_gone).then_some(Found { pid, stat })
        });
        found.collect()
    }))
}

/// What the VM with process `pid` says of itself.
///
/// # Errors
/// [`AskError`].
pub fn stat(place: &Place, pid: u32) -> Result<Box<VmStat>, AskError> {
    match ask(&place.socket(pid), &Request::Stat, Some(SHORT_TIME))? {
        Answer::Stat(stat) => Ok(stat),
        Answer::Refused(refusal) => Err(AskError::Refused(refusal)),
        _ => Err(AskError::OtherAnswer),
    }
}

/// Has the VM with process `pid` give `bytes` back. Takes as long as it takes; the VM stops when we
/// hang up.
///
/// # Errors
/// [`AskError`].
pub fn reclaim(place: &Place, pid: u32, bytes: u64) -> Result<Reclaimed, AskError> {
    match ask(&place.socket(pid), &Request::Reclaim { bytes }, None)? {
        Answer::Reclaimed(reclaimed) => Ok(reclaimed),
        Answer::Refused(refusal) => Err(AskError::Refused(refusal)),
        _ => Err(AskError::OtherAnswer),
    }
}

/// Has the VM with process `pid` take no more than `bytes` of the host's memory from now on.
///
/// # Errors
/// [`AskError`].
pub fn set_target(place: &Place, pid: u32, bytes: Option<u64>) -> Result<(), AskError> {
    let request = Request::Target { bytes };
    match ask(&place.socket(pid), &request, Some(SHORT_TIME))? {
        Answer::Target { .. } => Ok(()),
        Answer::Refused(refusal) => Err(AskError::Refused(refusal)),
        _ => Err(AskError::OtherAnswer),
    }
}

/// What the memory of the VM with process `pid` is, in at most `most_cells`.
///
/// # Errors
/// [`AskError`].
pub fn memory_map(place: &Place, pid: u32, most_cells: u64) -> Result<MemoryMap, AskError> {
    let request = Request::MemoryMap { most_cells };
    match ask(&place.socket(pid), &request, Some(SHORT_TIME))? {
        Answer::MemoryMap(map) => Ok(map),
        Answer::Refused(refusal) => Err(AskError::Refused(refusal)),
        _ => Err(AskError::OtherAnswer),
    }
}
