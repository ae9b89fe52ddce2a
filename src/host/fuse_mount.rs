//! Mounts and unmounts what FUSE serves: as root by itself, without root through `fusermount3`.
//!
//! Not by the library that serves it: its own mounts are unmounted by name when it ends, and by then that
//! may be what somebody else mounted at the place; and a thread that is confined cannot unmount at all.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, unmount};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{getgid, getuid};

use super::mount_table::{self, OUR_TYPE};

/// Part of [`OUR_TYPE`].
const SUBTYPE: &str = "alacrity";
/// The program that mounts and unmounts for users who are not root (`fusermount3(1)`).
const FUSERMOUNT: &str = "fusermount3";

/// Mounts a file system of `source` at `path`, for its owner alone unless `allow_other`; where its
/// requests come from.
///
/// # Errors
/// What the host said, or `fusermount3`.
pub fn mount(source: &str, path: &Path, allow_other: bool) -> io::Result<OwnedFd> {
    let others = if allow_other { ",allow_other" } else { "" };
    let options = format!("default_permissions,subtype={SUBTYPE}{others}");
    match mount_as_root(source, path, &options) {
        Err(Errno::PERM) => mount_as_user(source, path, &options),
        outcome => Ok(outcome?),
    }
}

fn mount_as_root(source: &str, path: &Path, options: &str) -> Result<OwnedFd, Errno> {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    // S_IFDIR: the root is a directory.
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},{options}",
        device.as_raw_fd(),
        getuid().as_raw(),
        getgid().as_raw(),
    );
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount(source, path, "fuse", flags, options.as_c_str())?;
    Ok(device.into())
}

/// `fusermount3` opens the device itself and sends it over a socket whose number it finds in the
/// environment: here its standard input.
fn mount_as_user(source: &str, path: &Path, options: &str) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let output = Command::new(FUSERMOUNT)
        .args(["-o", &format!("fsname={source},noexec,{options}"), "--"])
        .arg(path)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .output()?;
    check(&output)?;
    receive_device(&ours)
}

/// The device that `fusermount3` has sent. It has ended, so this does not wait.
fn receive_device(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut fds = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    recvmsg(socket, &mut parts, &mut fds, RecvFlags::CMSG_CLOEXEC)?;
    let mut received = fds.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let device = received.next().and_then(|mut fds| fds.next());
    device.ok_or_else(|| io::Error::other("fusermount3 sent no device"))
}

/// Unmounts the mount `mount_id` of ours that is seen at `path`, and no other; also while it is in use: it
/// vanishes for everybody who looks anew. That it is not there any more is fine.
///
/// # Errors
/// What the host said, or `fusermount3`.
pub fn detach(path: &Path, mount_id: u64) -> io::Result<()> {
    if !is_at(path, mount_id)? {
        return Ok(());
    }
    // What is at the path can change between a look and the deed, what this descriptor is cannot. With
    // O_PATH nobody who serves a file system is asked.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty())?;
    if mount_id_of(&root)? != mount_id {
        return Ok(());
    }
    let itself = format!("/proc/self/fd/{}", root.as_raw_fd());
    match unmount(itself, UnmountFlags::DETACH) {
        // Somebody was faster.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(Errno::PERM) => detach_as_user(path),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether what is seen at `path` is the mount `mount_id` of ours.
fn is_at(path: &Path, mount_id: u64) -> io::Result<bool> {
    let top = mount_table::topmost_at(path)?;
    Ok(top.is_some_and(|top| top.mount_id == mount_id && top.fs_type == OUR_TYPE))
}

/// Which mount a file is in (`proc_pid_fdinfo(5)`), without asking who serves it.
fn mount_id_of(file: impl AsFd) -> io::Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd());
    let info = fs::read_to_string(path)?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    let id = id.and_then(|id| id.trim().parse().ok());
    id.ok_or_else(|| io::Error::other("/proc does not tell the mount of a file"))
}

/// Without root by the program that may. It goes by the path.
fn detach_as_user(path: &Path) -> io::Result<()> {
    let arguments = ["-u", "-z", "--"].map(OsStr::new);
    let output = Command::new(FUSERMOUNT)
        .args(arguments)
        .arg(path)
        .stdin(Stdio::null())
        .output()?;
    check(&output)
}

/// What it says comes on one line.
fn check(output: &std::process::Output) -> io::Result<()> {
    match output.status.success() {
        true => Ok(()),
        false => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(io::Error::other(text.trim().replace('\n', ", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_that_is_not_there_needs_no_unmount() {
        let dir = tempfile::tempdir().unwrap();

        assert!(detach(dir.path(), 1).is_ok());
        assert!(!is_at(Path::new("/proc"), 1).unwrap());
    }

    #[test]
    fn file_tells_its_mount() {
        let table = mount_table::topmost_at(Path::new("/proc"))
            .unwrap()
            .unwrap();

        let proc = File::open("/proc").unwrap();

        assert_eq!(mount_id_of(&proc).unwrap(), table.mount_id);
    }

    #[test]
    fn device_comes_over_the_socket_or_is_missed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);

        let error = receive_device(&ours).unwrap_err();

        assert!(error.to_string().contains("no device"), "{error}");
    }
}
