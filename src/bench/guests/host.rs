//! The host's end of networks: a network namespace of this process, in which TAPs, bridge and addresses
//! are. It goes when the last process in it ends, so nothing is left, even if we are killed, and neither
//! addresses nor firewall rules of the machine are in the way.

use nix::sched::{CloneFlags, unshare};

use super::{GuestsError, io_error};
use crate::bench::ip::{IpError, ip};

/// Enters a new network namespace, for the rest of the process. Called before there are other threads,
/// which would stay outside.
///
/// # Errors
/// No privilege to, or no `ip`.
pub fn enter_namespace() -> Result<(), GuestsError> {
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|source| io_error("make a network namespace; run this as root")(source.into()))?;
    ip("link set lo up")?;
    Ok(())
}

/// An interface or bridge. Dropping it removes it.
#[derive(Debug)]
pub struct Link(String);

impl Link {
    /// A TAP as QEMU takes it, with `queues` queues, that is up.
    ///
    /// # Errors
    /// `ip` refuses.
    pub fn tap(name: &str, queues: u32) -> Result<Self, IpError> {
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
    pub fn bridge(name: &str) -> Result<Self, IpError> {
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
