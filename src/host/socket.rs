//! Where the daemon's socket is, and the directory for run-time files that it shares with those of VMs.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The directory of the default socket, below the directory for run-time files.
const DIR_NAME: &str = "alacrity";
/// The default socket in it.
const SOCKET_NAME: &str = "vbus.sock";
/// Most bytes of a socket's path, the end included: `sun_path` of `unix(7)`.
const MAX_PATH_BYTES: usize = 108;

/// Why there is no place for the socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Nothing says where run-time files go.
    #[error("XDG_RUNTIME_DIR is not set, so there is no default socket; name one with --socket")]
    NoDefault,
    /// `unix(7)` cannot name it.
    #[error(
        "socket path {} has {} bytes, a socket's path has at most {}; choose a shorter one",
        path.display(), path.as_os_str().len(), MAX_PATH_BYTES - 1
    )]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// The default socket's directory cannot be made, or is somebody else's.
    #[error("cannot make the socket's directory {}; name another socket with --socket", dir.display())]
    MakeDir {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The socket named on the command line, or the default: below `/run` for root, below
/// `XDG_RUNTIME_DIR` for others. Makes nothing.
///
/// # Errors
/// [`SocketError::NoDefault`], [`SocketError::TooLong`].
pub fn path(named: Option<&Path>) -> Result<PathBuf, SocketError> {
    let path = match named {
        Some(path) => path.into(),
        None => runtime_dir()
            .ok_or(SocketError::NoDefault)?
            .join(SOCKET_NAME),
    };
    match path.as_os_str().len() < MAX_PATH_BYTES {
        true => Ok(path),
        false => Err(SocketError::TooLong { path }),
    }
}

/// Where sockets are by default, if anything says so. Makes nothing.
pub fn runtime_dir() -> Option<PathBuf> {
    default_dir(
        rustix::process::geteuid().is_root(),
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
    )
}

/// Root's does not depend on the environment: a service and a shell have to agree on it.
fn default_dir(is_root: bool, runtime_dir: Option<PathBuf>) -> Option<PathBuf> {
    let base = match is_root {
        true => Some(PathBuf::from("/run")),
        false => runtime_dir.filter(|dir| dir.is_absolute()),
    };
    base.map(|dir| dir.join(DIR_NAME))
}

/// Makes the directory of the default socket at `path`, for us alone. The directory of a socket that
/// was named on the command line has to be there.
///
/// # Errors
/// [`SocketError::MakeDir`].
pub fn make_default_dir(path: &Path) -> Result<(), SocketError> {
    let Some(dir) = path.parent() else {
        return Ok(());
    };
    make_private_dir(dir).map_err(|source| SocketError::MakeDir {
        dir: dir.into(),
        source,
    })
}

/// Makes `dir` for us alone, if it is not there.
///
/// # Errors
/// It cannot be made, or belongs to somebody else, who could replace what is in it.
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => (),
    }
    let metadata = fs::symlink_metadata(dir)?;
    if !metadata.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let owner = metadata.uid();
    match owner == rustix::process::geteuid().as_raw() {
        true => Ok(()),
        false => Err(io::Error::other(format!("it belongs to user {owner}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn default_is_in_the_runtime_directory() {
        let dir = default_dir(false, Some("/run/user/1000".into()));

        assert_eq!(dir, Some("/run/user/1000/alacrity".into()));
    }

    #[test]
    fn root_uses_run_and_others_need_a_runtime_directory() {
        let of_root = default_dir(true, Some("/run/user/0".into()));

        assert_eq!(of_root, Some("/run/alacrity".into()));
        assert_eq!(default_dir(false, None), None);
        assert_eq!(default_dir(false, Some("relative".into())), None);
    }

    #[test]
    fn path_that_is_too_long_for_a_socket_is_refused() {
        let longest = "x".repeat(107);
        let too_long = "x".repeat(108);

        assert!(path(Some(Path::new(&longest))).is_ok());
        let error = path(Some(Path::new(&too_long))).unwrap_err();
        assert!(matches!(error, SocketError::TooLong { .. }), "{error}");
    }

    #[test]
    fn directory_is_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("alacrity/vbus.sock");

        make_default_dir(&socket).unwrap();
        make_default_dir(&socket).unwrap();

        let mode = fs::metadata(socket.parent().unwrap())
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o700);
    }

    #[test]
    fn file_in_the_place_of_the_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("alacrity"), "").unwrap();

        let error = make_default_dir(&dir.path().join("alacrity/vbus.sock")).unwrap_err();

        assert!(matches!(error, SocketError::MakeDir { .. }), "{error}");
    }
}
