//! Who is at the other end, as the kernel says.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::{GetSockOpt, sockopt};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process that connected.
#[derive(Debug)]
pub struct PeerProcess {
    /// Its pid, which means this process for as long as `pidfd` is not readable.
    pub pid: u32,
    /// Its effective user when it connected.
    pub uid: u32,
    /// Readable when it has died.
    pub pidfd: OwnedFd,
}

impl PeerProcess {
    /// Asks the kernel who connected `socket`.
    ///
    /// # Errors
    /// `ESRCH`: it is dead already. `EINVAL`: it has no pid here. Others: out of descriptors.
    pub fn of(socket: &OwnedFd) -> Result<Self, Errno> {
        let creds = socket_peercred(socket)?;
        let uid = creds.uid.as_raw();
        let pidfd = match sockopt::PeerPidfd.get(socket) {
            Ok(pidfd) => pidfd,
            // Before Linux 6.5. A pid can be used again between `connect` and here.
            Err(nix::Error::ENOPROTOOPT) => pidfd_open(creds.pid, PidfdFlags::empty())?,
            Err(error) => {
                let error = std::io::Error::from(error);
                return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
            }
        };
        let pid = u32::try_from(Pid::as_raw(Some(creds.pid))).map_err(|_| Errno::INVAL)?;
        let peer = PeerProcess { pid, uid, pidfd };
        if peer.is_dead() {
            return Err(Errno::SRCH);
        }
        Ok(peer)
    }

    /// True once the process is gone, and its pid may be another's.
    pub fn is_dead(&self) -> bool {
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let pidfd = self.pidfd.as_fd();
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(
            pidfd,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|num_ready| num_ready > 0)
    }

    /// True for whoever may administrate: root, and the user of this process.
    pub fn is_admin(&self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn peer() -> PeerProcess {
        let kind = SocketType::SEQPACKET;
        let flags = SocketFlags::CLOEXEC;
        let (socket, _other) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        PeerProcess::of(&socket).unwrap()
    }

    #[test]
    fn kernel_says_who_it_is() {
        let peer = peer();

        assert_eq!(peer.pid, std::process::id());
        assert!(!peer.is_dead());
        assert!(peer.is_admin());
    }

    #[test]
    fn other_users_may_not_administrate() {
        let mut peer = peer();
        peer.uid = rustix::process::geteuid().as_raw() + 1;

        assert!(!peer.is_admin());
    }
}
