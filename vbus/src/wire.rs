//! The verbs as messages on a Unix socket: what server and client share.
//!
//! The socket is `SOCK_SEQPACKET`: the kernel keeps messages whole and in order, and descriptors
//! stay with the message they came with. So there is no half message to wait for, no state between
//! two reads and nothing to put together. What a reader has no room for, the kernel cuts and says
//! so; that is a [`WireError`] like any other.
//!
//! Layouts are in [`crate::abi::wire`], the rules in `docs/abi-socket.md`.

mod request;
mod socket;
mod text;

pub use request::{Request, ShmBody, shm_fds};
pub use socket::{Packet, Socket, frame};
pub use text::{split_texts, texts};

use rustix::io::Errno;

/// Why what came over the socket is no message. The connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Shorter than a header, or than the body of its kind.
    #[error("message of kind {kind:#x} with {len} bytes is too short")]
    TooShort {
        /// 0 if not even the header is there.
        kind: u16,
        /// Bytes that came.
        len: usize,
    },
    /// Longer than any message, and cut by the kernel.
    #[error("message is longer than {max} bytes", max = crate::abi::wire::MAX_MESSAGE_BYTES)]
    TooLong,
    /// The header says another length.
    #[error("message of kind {kind:#x} has {len} bytes, its header says {header_len}")]
    BadLength {
        /// Its kind.
        kind: u16,
        /// Bytes that came.
        len: usize,
        /// What the header says.
        header_len: u32,
    },
    /// More or fewer descriptors than its kind has, or than its header says.
    #[error("message of kind {kind:#x} came with {num_fds} descriptors, want {wanted}")]
    BadFds {
        /// Its kind; 0 if there were more than any message has.
        kind: u16,
        /// Descriptors that came (at least).
        num_fds: usize,
        /// What there should be.
        wanted: usize,
    },
    /// A kind that this side does not take, or not now.
    #[error("message of kind {kind:#x} is not expected")]
    Unexpected {
        /// Its kind.
        kind: u16,
    },
    /// A field with an impossible value.
    #[error("message of kind {kind:#x}: bad {field}")]
    BadField {
        /// Its kind.
        kind: u16,
        /// Name of the field.
        field: &'static str,
    },
    /// The other side is gone.
    #[error("connection is closed by the other side")]
    Closed,
    /// The kernel refuses.
    #[error("cannot {what} the socket")]
    Socket {
        /// The operation.
        what: &'static str,
        /// What the kernel said.
        source: Errno,
    },
}

#[cfg(test)]
mod tests;
