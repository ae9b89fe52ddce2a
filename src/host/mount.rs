//! The mount of the control tree: made, watched, and taken away again.
//!
//! A process beside the daemon takes it away, also if the daemon is killed ([`super::unmounter`]). If that
//! was killed as well, the mount stays and answers `Transport endpoint is not connected`; the next daemon
//! replaces it. Nothing is ever unmounted that is not of type [`OUR_TYPE`].

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use fuser::{Session, SessionACL};
use rustix::io::Errno;

use super::daemon_id::DaemonId;
use super::filesystem::ControlFs;
use super::fuse_mount::{self, detach};
use super::mount_table::{self, MountEntry, OUR_TYPE};
use super::unmounter::Unmounter;
use vbus::threads::{self, ThreadClass};
use vbus::tree::Tree;

/// Threads that serve the mount: one slow attribute does not hold up everybody.
const NUM_THREADS: usize = 2;
/// How long a mount may take to answer before it counts as in use by a daemon that is stopped.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);
/// How long users that are in the middle of a request may take once the mount is gone.
const END_DEADLINE: Duration = Duration::from_secs(2);

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Nothing can be mounted there.
    #[error("cannot mount on {} (is it a directory, and may you read it?)", dir.display())]
    Directory {
        /// As on the command line.
        dir: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Files in it would be hidden.
    #[error("mount point {} is not empty; name an empty directory", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// A daemon serves it.
    #[error(
        "another alacrity host is mounted on {}; end it first, or name another directory",
        dir.display()
    )]
    Occupied {
        /// The directory.
        dir: PathBuf,
    },
    /// A mount of a daemon that is gone cannot be taken away.
    #[error(
        "cannot unmount {}, which a daemon that is gone left behind; try `fusermount3 -u {}`",
        dir.display(), dir.display()
    )]
    Stale {
        /// The directory.
        dir: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// FUSE does not work.
    #[error(
        "cannot mount on {} (FUSE needs /dev/fuse and, without root, fusermount3 from the package fuse3); without --mount the tree is served to `alacrity vbus` only",
        dir.display()
    )]
    Fuse {
        /// The directory.
        dir: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// Where a mount goes: a directory that is fit for it, or that can be made.
#[derive(Debug)]
pub struct MountPoint {
    /// Absolute, without links.
    path: PathBuf,
    /// Identity of a mount that a daemon left here.
    stale: Option<u64>,
}

impl MountPoint {
    /// Checks `dir`; changes nothing.
    ///
    /// # Errors
    /// [`MountError::Directory`], [`MountError::NotEmpty`], [`MountError::Occupied`].
    pub fn check(dir: &Path) -> Result<Self, MountError> {
        let refused = |source| MountError::Directory {
            dir: dir.into(),
            source,
        };
        let path = absolute(dir).map_err(refused)?;
        let ours = || {
            let top = mount_table::topmost_at(&path).map_err(refused)?;
            Ok(top.filter(|top| top.fs_type == OUR_TYPE))
        };
        while let Some(top) = ours()? {
            if is_abandoned(&top) {
                return Ok(MountPoint {
                    path,
                    stale: Some(top.mount_id),
                });
            }
            // What unmounts for a daemon that was killed may have done so meanwhile.
            if ours()?.is_some_and(|now| now.mount_id == top.mount_id) {
                return Err(MountError::Occupied { dir: dir.into() });
            }
        }
        match fs::read_dir(&path).map(|mut entries| entries.next().is_some()) {
            Ok(true) => Err(MountError::NotEmpty { dir: dir.into() }),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(refused(error)),
            _ => Ok(MountPoint { path, stale: None }),
        }
    }

    /// True if `path` is below it.
    pub fn hides(&self, path: &Path) -> bool {
        absolute(path).is_ok_and(|path| path.starts_with(&self.path))
    }

    /// Takes away what a daemon that is gone left here, as often as it did.
    ///
    /// # Errors
    /// [`MountError::Stale`], or as [`MountPoint::check`]: there may be something else below.
    pub fn replace_stale(mut self) -> Result<Self, MountError> {
        while let Some(mount_id) = self.stale {
            tracing::warn!(
                "mount: replacing {}, whose daemon is gone",
                self.path.display()
            );
            detach(&self.path, mount_id).map_err(|source| MountError::Stale {
                dir: self.path.clone(),
                source,
            })?;
            self = MountPoint::check(&self.path)?;
        }
        Ok(self)
    }

    /// Mounts `tree`; for its owner alone unless `allow_other`.
    ///
    /// # Errors
    /// [`MountError::Directory`], [`MountError::Fuse`].
    pub fn mount(self, tree: Tree, allow_other: bool) -> Result<Mount, MountError> {
        let path = self.path;
        let is_made = match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(source) => return Err(MountError::Directory { dir: path, source }),
        };
        let started = start(tree, &path, is_made, allow_other);
        if started.is_err() && is_made {
            let _ = fs::remove_dir(&path);
        }
        let (served, unmounter) = started.map_err(|source| MountError::Fuse {
            dir: path.clone(),
            source,
        })?;
        Ok(Mount {
            path,
            unmounter: Some(unmounter),
            served,
        })
    }
}

/// A mounted tree. Dropping it unmounts.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
    unmounter: Option<Unmounter>,
    served: Served,
}

/// What is known of the threads that serve a mount.
#[derive(Debug)]
struct Served {
    /// The end is ours, not somebody else's.
    is_ending: Arc<AtomicBool>,
    /// Closed when nobody serves the mount any more.
    ended: Receiver<()>,
}

impl Mount {
    /// Where: absolute, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.served.is_ending.store(true, Ordering::Relaxed);
        if let Some(Err(error)) = self.unmounter.take().map(Unmounter::end) {
            tracing::error!("mount: {} stays mounted: {error}", self.path.display());
            return;
        }
        // Whoever still has a file open is cut off when the process ends.
        let _ = self.served.ended.recv_timeout(END_DEADLINE);
    }
}

/// Mounts, and serves the mount by threads of its own until it is unmounted.
fn start(
    tree: Tree,
    path: &Path,
    is_made: bool,
    allow_other: bool,
) -> io::Result<(Served, Unmounter)> {
    let mut config = fuser::Config::default();
    config.acl = match allow_other {
        true => SessionACL::All,
        false => SessionACL::Owner,
    };
    config.n_threads = Some(NUM_THREADS);
    let source = DaemonId::own()?.to_string();
    let device = fuse_mount::mount(&source, path, allow_other)?;
    let top = mount_table::topmost_at(path)?;
    let mount_id = top
        .filter(|top| top.fs_type == OUR_TYPE)
        .map(|top| top.mount_id)
        .ok_or_else(|| io::Error::other("it was unmounted at once"))?;
    // From here on whatever ends this unmounts.
    let unmounter =
        Unmounter::start(path, mount_id, is_made).inspect_err(|_| drop(detach(path, mount_id)))?;
    let tree = ControlFs::new(tree, path.into());
    let session = Session::from_fd(tree, device, config.acl, config)?;

    let is_ending = Arc::new(AtomicBool::new(false));
    let (end, ended) = mpsc::channel();
    let (place, is_ours) = (path.to_owned(), Arc::clone(&is_ending));
    threads::spawn(ThreadClass::Mount, "mount", move || {
        let outcome = session.run();
        match outcome {
            _ if is_ours.load(Ordering::Relaxed) => (),
            Ok(()) => tracing::warn!(
                "mount: {} was unmounted from outside; the socket goes on",
                place.display()
            ),
            Err(error) => tracing::error!(
                "mount: {} has failed: {error}; the socket goes on",
                place.display()
            ),
        }
        drop(end);
    })?;
    Ok((Served { is_ending, ended }, unmounter))
}

/// `dir` absolute and without links; its last part need not be there, nor answer.
fn absolute(dir: &Path) -> io::Result<PathBuf> {
    let (Some(name), Some(parent)) = (dir.file_name(), dir.parent()) else {
        return dir.canonicalize();
    };
    let parent = match parent.as_os_str().is_empty() {
        true => Path::new("."),
        false => parent,
    };
    let path = parent.canonicalize()?.join(name);
    // A daemon that is stopped would not even tell whether its mount is a link.
    let is_ours = mount_table::topmost_at(&path)?.is_some_and(|top| top.fs_type == OUR_TYPE);
    match !is_ours && path.is_symlink() {
        true => path.canonicalize(),
        false => Ok(path),
    }
}

/// True if the mount has lost its daemon. It is asked only if its daemon cannot be seen any more, and
/// by a thread of its own: one that is stopped in another PID namespace does not answer at all.
fn is_abandoned(mount: &MountEntry) -> bool {
    let daemon = mount.source.parse::<DaemonId>();
    if daemon.is_ok_and(|daemon| daemon.is_alive()) {
        return false;
    }
    let (answer, answered) = mpsc::channel();
    let place = mount.mount_point.clone();
    let asked = threads::spawn(ThreadClass::Bus, "mount-check", move || {
        let error = fs::read_dir(place).err();
        let _ = answer.send(error.and_then(|error| error.raw_os_error()));
    });
    asked.is_ok()
        && answered.recv_timeout(ANSWER_DEADLINE) == Ok(Some(Errno::NOTCONN.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_or_missing_directory_will_do() {
        let dir = tempfile::tempdir().unwrap();

        let empty = MountPoint::check(dir.path()).unwrap();
        let missing = MountPoint::check(&dir.path().join("new")).unwrap();

        assert!(empty.stale.is_none() && missing.stale.is_none());
        assert!(!dir.path().join("new").exists());
    }

    #[test]
    fn directory_with_files_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();

        let error = MountPoint::check(dir.path()).unwrap_err();

        assert!(matches!(error, MountError::NotEmpty { .. }), "{error}");
    }

    #[test]
    fn file_and_missing_parent_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();

        for place in [file.clone(), file.join("x"), dir.path().join("no/where")] {
            let error = MountPoint::check(&place).unwrap_err();
            assert!(matches!(error, MountError::Directory { .. }), "{error}");
        }
    }

    #[test]
    fn links_on_the_way_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();

        let real = dir.path().canonicalize().unwrap().join("real");
        assert_eq!(absolute(&dir.path().join("link")).unwrap(), real);
        let below = absolute(&dir.path().join("link/new")).unwrap();
        assert_eq!(below, real.join("new"));
    }
}
