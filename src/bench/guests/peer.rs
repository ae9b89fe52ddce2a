//! Who is measured: ours and what it is compared with.

use std::fmt;

/// Who.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Ours: venet on a TAP.
    Venet,
    /// Our virtio-net on a TAP.
    Virtio,
    /// QEMU's virtio-net in user space.
    Qemu,
    /// QEMU's virtio-net through vhost-net.
    QemuVhost,
    /// The same with doorbells that are ports, which cost less to exit for than memory.
    QemuVhostPio,
    /// Ours for two guests: the daemon's venet-switch.
    Switch,
    /// Two guests of QEMU with vhost-net on a bridge.
    Bridge,
    /// Ours as a whole: boot and memory.
    Alacrity,
    /// kvmtool.
    Kvmtool,
}

impl Peer {
    /// A guest and its host, ours first.
    pub const OF_HOST: [Peer; 5] = [
        Peer::Venet,
        Peer::Virtio,
        Peer::Qemu,
        Peer::QemuVhost,
        Peer::QemuVhostPio,
    ];
    /// The same at all points of a sweep.
    pub const OF_SWEEP: [Peer; 4] = [Peer::Venet, Peer::Virtio, Peer::Qemu, Peer::QemuVhost];
    /// Two guests, ours first.
    pub const OF_PAIR: [Peer; 2] = [Peer::Switch, Peer::Bridge];
    /// What `--peers` takes.
    pub const CHOICES: [Peer; 6] = [
        Peer::Virtio,
        Peer::Qemu,
        Peer::QemuVhost,
        Peer::QemuVhostPio,
        Peer::Bridge,
        Peer::Kvmtool,
    ];

    /// Its name in raw values and in `--peers`.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Venet => "venet",
            Peer::Virtio => "virtio",
            Peer::Qemu => "qemu",
            Peer::QemuVhost => "qemu-vhost",
            Peer::QemuVhostPio => "qemu-vhost-pio",
            Peer::Switch => "switch",
            Peer::Bridge => "bridge",
            Peer::Alacrity => "alacrity",
            Peer::Kvmtool => "kvmtool",
        }
    }

    /// The peer that `--peers` calls `name`.
    pub fn find(name: &str) -> Option<Self> {
        Self::CHOICES.into_iter().find(|peer| peer.name() == name)
    }

    /// Whether the others are compared with it.
    pub fn is_ours(self) -> bool {
        matches!(self, Peer::Venet | Peer::Switch | Peer::Alacrity)
    }

    /// Whether QEMU runs it.
    pub fn is_qemu(self) -> bool {
        self == Peer::Qemu || self.has_vhost()
    }

    /// Whether it needs `/dev/vhost-net`.
    pub fn has_vhost(self) -> bool {
        matches!(self, Peer::QemuVhost | Peer::QemuVhostPio | Peer::Bridge)
    }

    /// Whether its doorbells are ports.
    pub fn has_pio_notify(self) -> bool {
        self == Peer::QemuVhostPio
    }
}

/// A peer, or ours measured once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    /// Who.
    pub peer: Peer,
    /// The control.
    pub is_again: bool,
}

impl Subject {
    /// `peer`, measured as itself.
    pub fn of(peer: Peer) -> Self {
        Subject {
            peer,
            is_again: false,
        }
    }

    /// The same as a control.
    pub fn again(self) -> Self {
        Subject {
            is_again: true,
            ..self
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.peer.name())?;
        f.write_str(if self.is_again { "-again" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_found_by_name_and_ours_is_none() {
        for peer in Peer::CHOICES {
            assert_eq!(Peer::find(peer.name()), Some(peer));
            assert!(!peer.is_ours());
        }
        assert_eq!(Peer::find("venet"), None);
        assert_eq!(Peer::find("vhost"), None);
    }
}
