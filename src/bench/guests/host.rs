//! The host's end of networks: a network namespace of this process, in which TAPs, bridge and addresses
//! are. It goes when the last process in it ends, so nothing is left, even if we are killed, and neither
//! addresses nor firewall rules of the machine are in the way.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use super::{GuestsError, io_error};

/// Enters a new network namespace, for the rest of the process. Called before there are other threads,
/// which would stay outside.
///
/// # Errors
/// No privilege to, or no `ip`.
pub fn enter_namespace() -> Result<(), GuestsError> {
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|source| io_error("make a network namespace; run this as root")(source.into()))?;
    ip("link set lo up")
}

/// Runs `ip` with these arguments.
///
/// # Errors
/// It is not there or refuses.
pub fn ip(arguments: &str) -> Result<(), GuestsError> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .map_err(io_error("run `ip`; install iproute2"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(GuestsError::Ip {
        arguments: arguments.to_owned(),
        said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// An interface or bridge. Dropping it removes it.
#[derive(Debug)]
pub struct Link(String);

impl Link {
    /// A TAP as QEMU takes it, with `queues` queues, that is up.
    ///
    /// # Errors
    /// `ip` refuses.
    pub fn tap(name: &str, queues: u32) -> Result<Self, GuestsError> {
        let multi_queue = if queues > 1 { " multi_queue" } else { "" };
        ip(&format!("tuntap add {name} mode tap vnet_hdr{multi_queue}"))?;
        let link = Link(name.to_owned());
        ip(&format!("link set {name} up"))?;
        Ok(link)
    }

    /// A bridge that is up.
    ///
    /// # Errors
    /// `ip` refuses.
    pub fn bridge(name: &str) -> Result<Self, GuestsError> {
        ip(&format!(
            "link add {name} type bridge forward_delay 0 mcast_snooping 0"
        ))?;
        let link = Link(name.to_owned());
        ip(&format!("link set {name} up"))?;
        Ok(link)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The namespace would go with us; this is for the next step.
        let _ = ip(&format!("link del {}", self.0));
    }
}
