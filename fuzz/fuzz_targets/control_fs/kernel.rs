//! The kernel's end of a FUSE session (`linux/fuse.h`, version 7.40).

use std::os::fd::OwnedFd;

use rustix::io::retry_on_intr;

use super::{RecvFlags, SendFlags};

pub const ROOT: u64 = 1;

const IN_HEADER_BYTES: usize = 40;
const OUT_HEADER_BYTES: usize = 16;
const O_APPEND: u32 = 0o2000;

pub struct Kernel {
    socket: OwnedFd,
    last_request: u64,
    room: Vec<u8>,
}

/// What the answer to a lookup tells.
pub struct Entry {
    pub node: u64,
    pub ino: u64,
    pub mode: u32,
}

fn word(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("8 bytes"))
}

fn half(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("4 bytes"))
}

/// Entries of a directory, each with the place of the one that follows.
pub fn check_entries(bytes: &[u8], offset: u64) {
    let (mut bytes, mut offset) = (bytes, offset);
    while !bytes.is_empty() {
        let (ino, next) = (word(bytes, 0), word(bytes, 8));
        let name_bytes = half(bytes, 16) as usize;
        assert_ne!(ino, 0);
        assert!(next > offset, "it goes on");
        let name = &bytes[24..24 + name_bytes];
        assert!(!name.is_empty() && !name.contains(&b'/'));
        let entry_bytes = (24 + name_bytes).next_multiple_of(8);
        bytes = &bytes[entry_bytes..];
        offset = next;
    }
}

impl Kernel {
    pub fn new(socket: OwnedFd) -> Self {
        Kernel {
            socket,
            last_request: 0,
            room: vec![0; 2 << 20],
        }
    }

    fn send(&mut self, opcode: u32, node: u64, parts: &[&[u8]]) {
        self.last_request += 2;
        let body = parts.concat();
        let len = (IN_HEADER_BYTES + body.len()) as u32;
        let mut message = Vec::with_capacity(len as usize);
        message.extend(len.to_le_bytes());
        message.extend(opcode.to_le_bytes());
        message.extend(self.last_request.to_le_bytes());
        message.extend(node.to_le_bytes());
        message.extend([0; 16]);
        message.extend(body);
        let send = || rustix::net::send(&self.socket, &message, SendFlags::NOSIGNAL);
        let sent = retry_on_intr(send);
        assert_eq!(sent, Ok(message.len()), "the session goes on");
    }

    /// The body of the answer, or an errno.
    fn receive(&mut self) -> Result<Vec<u8>, i32> {
        let (socket, room) = (&self.socket, &mut self.room);
        let receive = || rustix::net::recv(socket, &mut room[..], RecvFlags::empty());
        // The fuzzer has a timer.
        let received = retry_on_intr(receive);
        let (_, len) = received.expect("the session goes on");
        let message = &self.room[..len];
        assert!(len >= OUT_HEADER_BYTES);
        assert_eq!(half(message, 0) as usize, len, "all of it");
        assert_eq!(word(message, 8), self.last_request, "to this request");
        match half(message, 4).cast_signed() {
            0 => Ok(message[OUT_HEADER_BYTES..].into()),
            error => {
                assert!((-133..0).contains(&error), "an errno");
                assert_eq!(len, OUT_HEADER_BYTES);
                Err(-error)
            }
        }
    }

    fn ask(&mut self, opcode: u32, node: u64, parts: &[&[u8]]) -> Result<Vec<u8>, i32> {
        self.send(opcode, node, parts);
        self.receive()
    }

    pub fn send_init(&mut self) {
        let version = [7_u32, 40, 1 << 17, 0].map(u32::to_le_bytes);
        self.send(26, 0, &[&version.concat(), &[0; 48]]);
    }

    pub fn receive_init(&mut self) {
        self.receive().expect("it is a version that both know");
    }

    /// A request of a fixed part and of names.
    pub fn names(
        &mut self,
        opcode: u32,
        node: u64,
        fixed: &[u8],
        names: &[&[u8]],
    ) -> Result<Vec<u8>, i32> {
        let mut parts = vec![fixed];
        for name in names {
            parts.extend([name, &b"\0"[..]]);
        }
        self.ask(opcode, node, &parts)
    }

    /// The same, with a node for an answer.
    pub fn entry(
        &mut self,
        opcode: u32,
        node: u64,
        fixed: &[u8],
        names: &[&[u8]],
    ) -> Result<Entry, i32> {
        let answer = self.names(opcode, node, fixed, names)?;
        assert_eq!(answer.len(), 128);
        Ok(Entry {
            node: word(&answer, 0),
            ino: word(&answer, 40),
            mode: half(&answer, 100),
        })
    }

    /// Number and mode of a node.
    pub fn getattr(&mut self, node: u64) -> Result<(u64, u32), i32> {
        let answer = self.ask(3, node, &[&[0; 16]])?;
        assert_eq!(answer.len(), 104);
        Ok((word(&answer, 16), half(&answer, 76)))
    }

    pub fn setattr(&mut self, node: u64, valid: u8, size: u64) -> Result<Vec<u8>, i32> {
        let mut fixed = [0; 88];
        fixed[0] = valid & 0x7f;
        fixed[16..24].copy_from_slice(&size.to_le_bytes());
        self.ask(4, node, &[&fixed])
    }

    pub fn open(&mut self, is_directory: bool, node: u64, flags: u32) -> Result<u64, i32> {
        let opcode = if is_directory { 27 } else { 14 };
        let answer = self.ask(opcode, node, &[&flags.to_le_bytes(), &[0; 4]])?;
        Ok(word(&answer, 0))
    }

    pub fn read(
        &mut self,
        is_directory: bool,
        node: u64,
        handle: u64,
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>, i32> {
        let opcode = if is_directory { 28 } else { 15 };
        let words = [handle, offset, size.into(), 0, 0].map(u64::to_le_bytes);
        self.ask(opcode, node, &[&words.concat()])
    }

    pub fn write(
        &mut self,
        node: u64,
        handle: u64,
        offset: u64,
        is_append: bool,
        data: &[u8],
    ) -> Result<u32, i32> {
        let flags = if is_append { O_APPEND | 1 } else { 1 };
        let words = [handle, offset, data.len() as u64, 0, flags.into()];
        let answer = self.ask(16, node, &[&words.map(u64::to_le_bytes).concat(), data])?;
        Ok(half(&answer, 0))
    }

    pub fn release(&mut self, is_directory: bool, node: u64, handle: u64) {
        let opcode = if is_directory { 29 } else { 18 };
        let answer = self.ask(opcode, node, &[&handle.to_le_bytes(), &[0; 16]]);
        answer.expect("what is open can be closed");
    }

    /// Has no answer.
    pub fn forget(&mut self, node: u64, count: u64) {
        self.send(2, node, &[&count.to_le_bytes()]);
    }
}
