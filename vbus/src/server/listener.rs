//! The socket that clients connect to, and its name in the file system.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, chmod, flock, lstat, open, statat,
    unlink,
};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Why a socket cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A server answers there.
    #[error("another server is listening: stop it, or take another path")]
    InUse,
    /// Something that is no socket has this name.
    #[error("it exists and is no socket: remove it, or take another path")]
    NotSocket,
    /// The kernel refuses.
    #[error("cannot {what}")]
    System {
        /// The operation.
        what: &'static str,
        /// What the kernel said.
        source: Errno,
    },
}

fn system(what: &'static str) -> impl Fn(Errno) -> BindError {
    move |source| BindError::System { what, source }
}

/// A socket that listens. Dropping it removes its name.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    path: PathBuf,
    /// Device and inode of the name that is ours.
    identity: (u64, u64),
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Listener {
    /// Listens on `path`, with mode 0600, for clients of sockets of `kind`.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(path: &Path, kind: SocketType) -> Result<Self, BindError> {
        let address = SocketAddrUnix::new(path).map_err(system("use the path"))?;
        let _directory = lock_directory(path)?;
        remove_dead(path, &address)?;
        let fd = new_socket(kind).map_err(system("make a socket"))?;
        bind(&fd, &address).map_err(system("bind the socket"))?;
        // Nobody can connect before `listen`.
        chmod(path, Mode::RUSR | Mode::WUSR).map_err(system("set the mode"))?;
        let stat = lstat(path).map_err(system("look at the socket"))?;
        listen(&fd, BACKLOG).map_err(system("listen"))?;
        Ok(Listener {
            fd,
            path: path.to_owned(),
            identity: identity(&stat),
        })
    }

    /// Removes the socket at `path` if whoever listened there is no more.
    ///
    /// # Errors
    /// [`BindError`]; [`BindError::InUse`] if somebody does listen.
    pub fn remove_stale(path: &Path) -> Result<(), BindError> {
        let address = SocketAddrUnix::new(path).map_err(system("use the path"))?;
        let _directory = lock_directory(path)?;
        remove_dead(path, &address)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the name, if it is still this socket's.
    pub fn remove(&self) {
        let is_ours = statat(rustix::fs::CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| identity(&stat) == self.identity);
        if is_ours {
            let _ = unlink(&self.path);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.remove();
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn new_socket(kind: SocketType) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, kind, flags, None)
}

/// Locks the directory of `path`. Held from `bind` to `listen`: whoever has the lock finds a socket
/// alive or dead, but never one that is about to live.
fn lock_directory(path: &Path) -> Result<OwnedFd, BindError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = open(directory, flags, Mode::empty()).map_err(system("open its directory"))?;
    flock(&directory, FlockOperation::LockExclusive).map_err(system("lock its directory"))?;
    Ok(directory)
}

/// Removes what a server left that is no more. The directory is locked.
fn remove_dead(path: &Path, address: &SocketAddrUnix) -> Result<(), BindError> {
    let stat = match lstat(path) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(source) => return Err(system("look at the path")(source)),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(BindError::NotSocket);
    }
    // Of any kind: that of a living one is told apart below.
    let probe = new_socket(SocketType::SEQPACKET).map_err(system("make a socket"))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => unlink(path).map_err(system("remove the stale socket")),
        // EAGAIN: its backlog is full. EPROTOTYPE: it speaks something else. Alive in any case.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(BindError::InUse),
        Err(source) => Err(system("connect to the socket that is there")(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vbus.sock");
        (directory, path)
    }

    #[test]
    fn socket_is_private_and_vanishes_with_the_listener() {
        let (_directory, path) = path();
        let listener = Listener::bind(&path, SocketType::SEQPACKET).unwrap();

        assert_eq!(lstat(&path).unwrap().st_mode & 0o7777, 0o600);
        drop(listener);

        assert!(!path.exists());
    }

    #[test]
    fn live_socket_is_not_taken_over() {
        let (_directory, path) = path();
        let _listener = Listener::bind(&path, SocketType::SEQPACKET).unwrap();

        let error = Listener::bind(&path, SocketType::SEQPACKET).unwrap_err();

        assert!(matches!(error, BindError::InUse), "{error}");
    }

    #[test]
    fn live_socket_of_another_type_is_not_taken_over() {
        let (_directory, path) = path();
        let _stream = std::os::unix::net::UnixListener::bind(&path).unwrap();

        let error = Listener::bind(&path, SocketType::SEQPACKET).unwrap_err();

        assert!(matches!(error, BindError::InUse), "{error}");
    }

    #[test]
    fn stale_socket_is_replaced() {
        let (_directory, path) = path();
        let fd = new_socket(SocketType::SEQPACKET).unwrap();
        bind(&fd, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        drop(fd); // The name stays.

        assert!(Listener::bind(&path, SocketType::SEQPACKET).is_ok());
    }

    #[test]
    fn stale_socket_of_another_type_is_removed_and_a_live_one_is_not() {
        let (_directory, path) = path();
        let listener = Listener::bind(&path, SocketType::STREAM).unwrap();

        let alive = Listener::remove_stale(&path).unwrap_err();
        assert!(matches!(alive, BindError::InUse), "{alive}");
        drop(listener);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap()); // The name stays.

        Listener::remove_stale(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn file_is_not_replaced() {
        let (_directory, path) = path();
        std::fs::write(&path, "precious").unwrap();

        let error = Listener::bind(&path, SocketType::SEQPACKET).unwrap_err();

        assert!(matches!(error, BindError::NotSocket), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn successor_keeps_its_name() {
        let (_directory, path) = path();
        let first = Listener::bind(&path, SocketType::SEQPACKET).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _second = Listener::bind(&path, SocketType::SEQPACKET).unwrap();

        drop(first);

        assert!(path.exists());
    }
}
