//! Why a TAP cannot be used, and what the user can do about it.

use std::io;

use super::{MAX_QUEUE_PAIRS, TUN_PATH};

/// Why a TAP cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can have this name.
    #[error(
        "\"{name}\" is not an interface name: want 1 to 15 bytes without spaces, '/', ':' and '%'"
    )]
    BadName {
        /// The name asked for.
        name: String,
    },
    /// The number of queue pairs is out of range.
    #[error("TAP {name} with {num_queue_pairs} queues: want 1 to {MAX_QUEUE_PAIRS}")]
    BadQueueCount {
        /// The name asked for.
        name: String,
        /// The number asked for.
        num_queue_pairs: u16,
    },
    /// The kernel has no TUN/TAP driver, or the device node is missing.
    #[error("there is no {TUN_PATH}; load the driver with: sudo modprobe tun")]
    NoTunDevice,
    /// The device node cannot be opened.
    #[error("cannot open {TUN_PATH}; it should be readable and writable for everybody")]
    OpenTun {
        /// Why.
        source: io::Error,
    },
    /// There is no such interface, and we may not make one.
    #[error(
        "there is no TAP {name}, and making one needs root; let root make it: \
         sudo ip tuntap add {name} {mode} user $USER && sudo ip link set {name} up"
    )]
    CannotMake {
        /// The interface.
        name: String,
        /// The arguments of `ip tuntap add` that fit the number of queues.
        mode: &'static str,
    },
    /// The interface belongs to another user or group.
    #[error(
        "TAP {name} belongs to somebody else; let root make one for you: \
         sudo ip tuntap add NAME mode tap user $USER"
    )]
    NotOwner {
        /// The interface.
        name: String,
    },
    /// Another process has the interface open.
    #[error("TAP {name} is in use, probably by another VM")]
    Busy {
        /// The interface.
        name: String,
    },
    /// The interface is of another kind.
    #[error("interface {name} exists and is not a TAP; choose another name")]
    NotTap {
        /// The interface.
        name: String,
    },
    /// The interface has one queue only.
    #[error(
        "TAP {name} was made for one queue, not {num_queue_pairs}; use queues=1, or make it anew: \
         sudo ip link del {name} && \
         sudo ip tuntap add {name} mode tap multi_queue user $USER"
    )]
    SingleQueue {
        /// The interface.
        name: String,
        /// The number asked for.
        num_queue_pairs: u16,
    },
    /// A setting needs privileges that we lack.
    #[error("setting the {what} of TAP {name} needs root; let root do it: sudo {remedy}")]
    NotPermitted {
        /// The interface.
        name: String,
        /// Which setting.
        what: &'static str,
        /// The command that does it.
        remedy: String,
    },
    /// Another request failed.
    #[error("cannot set the {what} of TAP {name}")]
    Setting {
        /// The interface.
        name: String,
        /// Which setting.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}
