//! Packets with descriptors on a socket.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use zerocopy::{FromBytes, IntoBytes};

use super::WireError;
use crate::abi::wire::{Header, MAX_FDS, MAX_MESSAGE_BYTES};

/// Most parts of a message: the header and three more.
const MAX_PARTS: usize = 4;

/// One end of a connection.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for Socket {
    fn from(fd: OwnedFd) -> Self {
        Socket { fd }
    }
}

/// The header of a message with `body_len` bytes behind it.
///
/// # Errors
/// `EMSGSIZE`: more than [`MAX_MESSAGE_BYTES`] or [`MAX_FDS`].
pub fn frame(kind: u16, request: u64, body_len: usize, num_fds: usize) -> Result<Header, Errno> {
    let len = body_len
        .checked_add(size_of::<Header>())
        .filter(|len| *len <= MAX_MESSAGE_BYTES)
        .and_then(|len| u32::try_from(len).ok())
        .ok_or(Errno::MSGSIZE)?;
    let num_fds = u16::try_from(num_fds)
        .ok()
        .filter(|num_fds| usize::from(*num_fds) <= MAX_FDS)
        .ok_or(Errno::MSGSIZE)?;
    Ok(Header {
        len: len.into(),
        kind: kind.into(),
        num_fds: num_fds.into(),
        request: request.into(),
    })
}

impl Socket {
    /// Sends a message of at most three body parts with its descriptors.
    ///
    /// `is_patient`: waits until the kernel has room; else `EAGAIN`.
    ///
    /// # Errors
    /// `EPIPE` or `ECONNRESET`: the other side is gone. `EMSGSIZE`: too large. `EAGAIN`.
    pub fn send(
        &self,
        header: &Header,
        body: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        is_patient: bool,
    ) -> Result<(), Errno> {
        if body.len() >= MAX_PARTS {
            return Err(Errno::MSGSIZE);
        }
        let mut parts = [IoSlice::new(&[]); MAX_PARTS];
        let sources = std::iter::once(header.as_bytes()).chain(body.iter().copied());
        for (part, source) in parts.iter_mut().zip(sources) {
            *part = IoSlice::new(source);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::MSGSIZE);
        }
        let mut flags = SendFlags::NOSIGNAL;
        flags.set(SendFlags::DONTWAIT, !is_patient);
        loop {
            match rustix::net::sendmsg(&self.fd, &parts, &mut control, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Receives the next message into `packet`, with its length and descriptors checked against
    /// its header. False: none is there, and not `is_patient`.
    ///
    /// # Errors
    /// [`WireError`], after which the connection is of no use. Descriptors that came are closed.
    pub fn receive(&self, packet: &mut Packet, is_patient: bool) -> Result<bool, WireError> {
        packet.clear();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut flags = RecvFlags::CMSG_CLOEXEC;
        flags.set(RecvFlags::DONTWAIT, !is_patient);
        let mut was_reset = false;
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut packet.buffer)];
            match rustix::net::recvmsg(&self.fd, &mut parts, &mut control, flags) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                // The other side closed without having read all; what it sent before is still
                // here, behind this error.
                Err(Errno::CONNRESET) if !was_reset => was_reset = true,
                Err(Errno::CONNRESET) => return Err(WireError::Closed),
                Err(source) => {
                    let what = "read from";
                    return Err(WireError::Socket { what, source });
                }
            }
        };
        // All of them first: dropped in whatever way this ends, they are closed.
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                packet.fds.extend(fds);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            let (num_fds, wanted) = (packet.fds.len() + 1, MAX_FDS);
            packet.clear();
            return Err(WireError::BadFds {
                kind: 0,
                num_fds,
                wanted,
            });
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            packet.clear();
            return Err(WireError::TooLong);
        }
        let checked = packet.check(received.bytes);
        if checked.is_err() {
            packet.clear();
        }
        checked.map(|()| true)
    }
}

/// Room for one message, used again for the next.
#[derive(Debug)]
pub struct Packet {
    buffer: Box<[u8]>,
    header: Header,
    /// Bytes of the message; 0 for none.
    len: usize,
    /// Descriptors that came with the message, in its order.
    pub fds: Vec<OwnedFd>,
}

impl Default for Packet {
    fn default() -> Self {
        Packet {
            buffer: vec![0; MAX_MESSAGE_BYTES].into_boxed_slice(),
            header: Header::default(),
            len: 0,
            fds: Vec::with_capacity(MAX_FDS + 1),
        }
    }
}

impl Packet {
    /// Kind of the message.
    pub fn kind(&self) -> u16 {
        self.header.kind.get()
    }

    /// Its request id.
    pub fn request(&self) -> u64 {
        self.header.request.get()
    }

    /// What is behind the header.
    pub fn body(&self) -> &[u8] {
        self.buffer
            .get(size_of::<Header>()..self.len)
            .unwrap_or_default()
    }

    /// What is behind the header.
    pub fn body_mut(&mut self) -> &mut [u8] {
        self.buffer
            .get_mut(size_of::<Header>()..self.len)
            .unwrap_or_default()
    }

    fn clear(&mut self) {
        self.fds.clear();
        self.len = 0;
        self.header = Header::default();
    }

    fn check(&mut self, len: usize) -> Result<(), WireError> {
        if len == 0 {
            return Err(WireError::Closed);
        }
        let bytes = self.buffer.get(..len).unwrap_or_default();
        let (header, _) =
            Header::read_from_prefix(bytes).map_err(|_| WireError::TooShort { kind: 0, len })?;
        let kind = header.kind.get();
        let header_len = header.len.get();
        if header_len as usize != len {
            return Err(WireError::BadLength {
                kind,
                len,
                header_len,
            });
        }
        let (num_fds, wanted) = (self.fds.len(), usize::from(header.num_fds.get()));
        if num_fds != wanted {
            return Err(WireError::BadFds {
                kind,
                num_fds,
                wanted,
            });
        }
        self.header = header;
        self.len = len;
        Ok(())
    }
}
