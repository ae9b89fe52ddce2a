//! Where the control sockets of a user's VMs are: `alacrity/vms/PID.sock` in the directory for run-time
//! files.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vbus::server::Listener;

use crate::host::socket;

/// The directory, below that of the daemon's socket.
const DIR_NAME: &str = "vms";

/// Why there is no such directory.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Nothing says where run-time files go.
    #[error(
        "XDG_RUNTIME_DIR is not set, so there is no place for the control sockets of VMs; set it to a directory of your own"
    )]
    NoRuntimeDir,
    /// It cannot be made, or is somebody else's.
    #[error("cannot make the directory {}", dir.display())]
    MakeDir {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be read.
    #[error("cannot look for VMs in {}", dir.display())]
    ReadDir {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A directory of control sockets.
#[derive(Debug, Clone)]
pub struct Place {
    dir: PathBuf,
}

impl Place {
    /// That of this user.
    ///
    /// # Errors
    /// [`PlaceError::NoRuntimeDir`].
    pub fn default_one() -> Result<Self, PlaceError> {
        let dir = socket::runtime_dir().ok_or(PlaceError::NoRuntimeDir)?;
        Ok(Place::new(dir.join(DIR_NAME)))
    }

    /// `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Place { dir }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory and the one above, for us alone.
    ///
    /// # Errors
    /// [`PlaceError::MakeDir`].
    pub fn make(&self) -> Result<(), PlaceError> {
        for dir in self.dir.parent().into_iter().chain([self.dir.as_path()]) {
            socket::make_private_dir(dir).map_err(|source| PlaceError::MakeDir {
                dir: dir.into(),
                source,
            })?;
        }
        Ok(())
    }

    /// The socket of the VM with process `pid`.
    pub fn socket(&self, pid: u32) -> PathBuf {
        self.dir.join(format!("{pid}.sock"))
    }

    /// Removes the sockets of VMs that are gone: one that was killed, or had become another user, left its own.
    pub fn remove_stale(&self) {
        for pid in self.pids().unwrap_or_default() {
            // Refused if somebody listens there, and whatever else is wrong with it is not ours to mend.
            let _ = Listener::remove_stale(&self.socket(pid));
        }
    }

    /// The processes that have, or had, a socket here, in ascending order.
    ///
    /// # Errors
    /// [`PlaceError::ReadDir`]. A directory that does not exist is an empty one.
    pub fn pids(&self) -> Result<Vec<u32>, PlaceError> {
        let read_dir = |source| PlaceError::ReadDir {
            dir: self.dir.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(read_dir)?,
        };
        let mut pids = Vec::new();
        for entry in entries {
            pids.extend(pid_of(Path::new(&entry.map_err(read_dir)?.file_name())));
        }
        pids.sort_unstable();
        Ok(pids)
    }
}

fn pid_of(name: &Path) -> Option<u32> {
    let is_socket = name.extension() == Some(OsStr::new("sock"));
    let pid = name.file_stem().filter(|_| is_socket)?;
    pid.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    #[test]
    fn directory_is_made_private_and_both_times_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path().join("alacrity/vms"));

        place.make().unwrap();
        place.make().unwrap();

        for dir in ["alacrity", "alacrity/vms"].map(|name| dir.path().join(name)) {
            let mode = fs::metadata(&dir).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{}", dir.display());
        }
    }

    #[test]
    fn only_sockets_of_processes_count() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "12.sock",
            "7.sock",
            "x.sock",
            ".sock",
            "12",
            "-1.sock",
            "12.sock.old",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }

        assert_eq!(Place::new(dir.path().into()).pids().unwrap(), [7, 12]);
    }

    #[test]
    fn stale_sockets_are_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path().into());
        drop(UnixListener::bind(place.socket(1)).unwrap()); // The name stays.
        let _alive = UnixListener::bind(place.socket(2)).unwrap();
        fs::write(place.socket(3), "precious").unwrap();

        place.remove_stale();

        assert_eq!(place.pids().unwrap(), [2, 3]);
    }

    #[test]
    fn no_directory_has_no_sockets() {
        let dir = tempfile::tempdir().unwrap();

        assert!(
            Place::new(dir.path().join("none"))
                .pids()
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("alacrity"), "").unwrap();

        let error = Place::new(dir.path().join("alacrity/vms"))
            .make()
            .unwrap_err();

        assert!(error.to_string().ends_with("/alacrity"), "{error}");
    }
}
