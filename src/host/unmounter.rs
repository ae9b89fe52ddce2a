//! A small process that unmounts the control tree when the daemon ends, however it does.
//!
//! A confined process can unmount nothing (Landlock), and one that was killed even less. This one shares
//! no memory with the daemon, has read nothing of any client, and waits for one thing: the end of a socket
//! of which the daemon has the other end. It is this program under the name [`NAME`], so it needs no
//! file beside the daemon's.
//!
//! | it reads | the daemon | it |
//! |---|---|---|
//! | a byte | ends, and waits | unmounts, and removes the directory if the daemon made it |
//! | the end | was killed | unmounts; the next daemon may be about to use the directory |

use std::env::ArgsOs;
use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::thread::{CapabilitySet, set_name};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::fuse_mount;
use crate::exit::ExitStatus;
use crate::sandbox::privileges;

/// The name that the program is called by, and that `ps` shows.
pub const NAME: &str = "alacrity-umount";
/// What is said over the socket: that it is ready, that the daemon ends. No more than the fact counts.
const WORD: &[u8; 1] = b".";

/// The process, seen from the daemon. Dropping it has it unmount, and waits for it.
#[derive(Debug)]
pub struct Unmounter {
    child: Child,
    /// Closed by the kernel when the daemon is no more.
    daemon_lives: UnixStream,
    is_over: bool,
}

impl Unmounter {
    /// Starts it for the mount `mount_id` at `path`, and waits until nothing can keep it from its task.
    ///
    /// # Errors
    /// The host is out of processes or descriptors, or has no `/proc`.
    pub fn start(path: &Path, mount_id: u64, removes_dir: bool) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new("/proc/self/exe")
            .arg0(NAME)
            .args([mount_id.to_string(), removes_dir.to_string()])
            .arg(path)
            .current_dir("/")
            // A signal from the terminal is for the daemon.
            .process_group(0)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        let mut unmounter = Unmounter {
            child,
            daemon_lives: ours,
            is_over: false,
        };
        unmounter.daemon_lives.read_exact(&mut [0])?;
        Ok(unmounter)
    }

    /// Has it unmount and remove the directory.
    ///
    /// # Errors
    /// It could not, and has said why; or it is not there any more.
    pub fn end(mut self) -> io::Result<()> {
        // If nobody takes it, the status tells.
        let _ = self.daemon_lives.write_all(WORD);
        self.wait()
    }

    fn wait(&mut self) -> io::Result<()> {
        self.is_over = true;
        let _ = self.daemon_lives.shutdown(std::net::Shutdown::Both);
        let status = self.child.wait()?;
        match status.success() {
            true => Ok(()),
            false => Err(io::Error::other(format!("{NAME}: {status}"))),
        }
    }
}

impl Drop for Unmounter {
    fn drop(&mut self) {
        if !self.is_over {
            let _ = self.wait();
        }
    }
}

/// Is the process if the program was called by [`NAME`]; `None` otherwise.
pub fn be_one_if_asked(mut args: ArgsOs) -> Option<ExitStatus> {
    if args.next().is_none_or(|name| name != NAME) {
        return None;
    }
    let outcome = Task::parse(args)
        .ok_or_else(|| io::Error::other("this name is for `alacrity host` alone"))
        .and_then(Task::run);
    Some(match outcome {
        Ok(()) => ExitStatus::Success,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{NAME}: {error}");
            ExitStatus::HostError
        }
    })
}

/// What it is there for.
#[derive(Debug, PartialEq, Eq)]
struct Task {
    mount_id: u64,
    removes_dir: bool,
    path: PathBuf,
}

impl Task {
    fn parse(mut args: impl Iterator<Item = OsString>) -> Option<Self> {
        let mut text = || args.next()?.into_string().ok();
        Some(Task {
            mount_id: text()?.parse().ok()?,
            removes_dir: text()?.parse().ok()?,
            path: args.next()?.into(),
        })
    }

    fn run(self) -> io::Result<()> {
        let _ = set_name(&CString::new(NAME)?);
        // Whoever ends all processes of a service means the daemon first; this one then ends by itself.
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            signal_hook::flag::register(signal, Arc::default())?;
        }
        // The directory may be in one of somebody else.
        privileges::reduce_to(CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_OVERRIDE)?;
        let mut daemon_lives = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        // If nobody takes it, the daemon is gone already, as the next line finds.
        let _ = daemon_lives.write_all(WORD);
        let is_told = daemon_lives.read_exact(&mut [0]).is_ok();
        let detached = fuse_mount::detach(&self.path, self.mount_id);
        if is_told && self.removes_dir && detached.is_ok() {
            let _ = fs::remove_dir(&self.path);
        }
        detached.map_err(|error| {
            let place = self.path.display();
            io::Error::new(error.kind(), format!("cannot unmount {place}: {error}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_survives_the_command_line() {
        let parse = |args: &[&str]| Task::parse(args.iter().map(OsString::from));

        assert_eq!(
            parse(&["41", "true", "/run/a b"]),
            Some(Task {
                mount_id: 41,
                removes_dir: true,
                path: "/run/a b".into(),
            })
        );
        assert_eq!(parse(&["41", "true"]), None);
        assert_eq!(parse(&["x", "true", "/run"]), None);
    }
}
