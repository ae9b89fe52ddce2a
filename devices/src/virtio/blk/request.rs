//! Descriptor chain → request, and how far a request has come. Touches guest memory, no file.

use std::io;
use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError};

use super::segments::Segments;
use super::watch::Watched;
use crate::GuestRam;
use crate::iovec::{GuestIoVecs, IoVecError};

/// Most data descriptors of a request: what is left of a chain of 256 after header and status.
pub(super) const SEG_MAX: u32 = 254;

/// Longest chain, direct or indirect: the queue size (VIRTIO 1.2 §2.7.5.3.1).
pub(super) const MAX_DESCRIPTORS: usize = SEG_MAX as usize + 2;

/// Size of `struct virtio_blk_req` before its data: type, reserved (4 bytes each), sector (8).
const HEADER_BYTES: usize = 16;

/// Tries without progress before a transfer that the host interrupts counts as failed.
const MAX_RETRIES: u32 = 16;

/// How a chain breaks the structure of VIRTIO 1.2 §2.7.4.2 and §5.2.6.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChainError {
    #[error("longer than {MAX_DESCRIPTORS} descriptors")]
    TooLong,
    #[error("4 GiB or more")]
    TooLarge,
    #[error("ends at a descriptor that cannot be read")]
    Truncated,
    #[error("a readable descriptor follows a writable one")]
    Order,
    #[error("{len} readable bytes, want a header of {HEADER_BYTES}")]
    NoHeader { len: usize },
    #[error("cannot read the readable part")]
    NotReadable { source: GuestMemoryError },
    #[error("no writable byte for the status")]
    NoStatus,
    #[error("status at GPA {gpa:#x} is not RAM")]
    StatusNotRam { gpa: u64 },
    #[error("cannot write the writable part")]
    NotWritable { source: GuestMemoryError },
    #[error("cannot use the data")]
    Data { source: IoVecError },
}

/// What an engine does for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transfer {
    /// Disk to guest.
    Read,
    /// Guest to disk; durable when done if asked for.
    Write { is_durable: bool },
    /// Make what was written durable.
    Flush,
}

/// What to do after a system call for a request.
#[derive(Debug)]
pub(super) enum Step {
    /// Another one, for the rest.
    Again,
    /// Nothing: the transfer succeeded or failed.
    Done(io::Result<()>),
}

/// One request, from the chain to the status byte. Reused, to keep its allocations.
#[derive(Debug)]
pub(super) struct Request {
    /// First descriptor of the chain.
    pub(super) head: u16,
    /// `VIRTIO_BLK_T_*`, as the guest wrote it.
    pub(super) op: u32,
    /// First sector, as the guest wrote it.
    pub(super) sector: u64,
    /// Where the status byte goes; RAM.
    pub(super) status: GuestAddress,
    /// What the guest sent after the header.
    pub(super) readable: Segments,
    /// What the guest wants filled before the status byte.
    pub(super) writable: Segments,
    transfer: Transfer,
    /// Position on the disk in bytes of the transfer's first byte.
    offset: u64,
    /// Bytes transferred so far.
    done: u32,
    num_retries: u32,
    /// What is left of the data. Not touched while an engine works on it.
    iovecs: GuestIoVecs,
    /// While an engine works on it, if somebody wants to know.
    pub(super) watched: Option<Watched>,
}

impl Request {
    /// A request to be filled by [`Request::parse`].
    pub(super) fn new(ram: GuestRam) -> Self {
        Request {
            head: 0,
            op: 0,
            sector: 0,
            status: GuestAddress(0),
            readable: Segments::default(),
            writable: Segments::default(),
            transfer: Transfer::Flush,
            offset: 0,
            done: 0,
            num_retries: 0,
            iovecs: GuestIoVecs::new(ram),
            watched: None,
        }
    }

    /// Takes `chain` apart. Header and data may share descriptors or be split over several, as
    /// drivers of `VIRTIO_F_VERSION_1` devices may do (VIRTIO 1.2 §2.7.4).
    ///
    /// # Errors
    /// [`ChainError`]; the request is of no use then.
    pub(super) fn parse<M>(
        &mut self,
        mut chain: DescriptorChain<M>,
        ram: &GuestRam,
    ) -> Result<(), ChainError>
    where
        M: Deref,
        M::Target: GuestMemory,
    {
        self.head = chain.head_index();
        self.done = 0;
        self.num_retries = 0;
        self.readable.clear();
        self.writable.clear();
        let mut num_descriptors = 0;
        let mut has_next = true;
        for descriptor in chain.by_ref() {
            num_descriptors += 1;
            if num_descriptors > MAX_DESCRIPTORS {
                return Err(ChainError::TooLong);
            }
            has_next = descriptor.has_next();
            let part = if descriptor.is_write_only() {
                &mut self.writable
            } else if self.writable.len_bytes() == 0 {
                &mut self.readable
            } else {
                return Err(ChainError::Order);
            };
            if !part.push(descriptor.addr(), descriptor.len()) {
                return Err(ChainError::TooLarge);
            }
        }
        if has_next {
            // The iterator stopped at an index, table or length that it did not like.
            return Err(ChainError::Truncated);
        }
        self.parse_header(ram)?;
        let gpa = self.writable.pop_last_byte().ok_or(ChainError::NoStatus)?;
        if !GuestMemoryBackend::check_range(ram, gpa, 1) {
            return Err(ChainError::StatusNotRam { gpa: gpa.0 });
        }
        self.status = gpa;
        Ok(())
    }

    fn parse_header(&mut self, ram: &GuestRam) -> Result<(), ChainError> {
        let mut header = [0; HEADER_BYTES];
        let len = self
            .readable
            .take_front(ram, &mut header)
            .map_err(|source| ChainError::NotReadable { source })?;
        if len < HEADER_BYTES {
            return Err(ChainError::NoHeader { len });
        }
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        self.op = u32::from_le_bytes([t0, t1, t2, t3]);
        self.sector = u64::from_le_bytes(sector);
        Ok(())
    }

    /// Prepares `transfer` of all the data at `offset` bytes on the disk.
    ///
    /// # Errors
    /// A part of the data is not RAM.
    pub(super) fn begin(&mut self, transfer: Transfer, offset: u64) -> Result<(), ChainError> {
        self.transfer = transfer;
        self.offset = offset;
        self.fill_iovecs()
    }

    fn fill_iovecs(&mut self) -> Result<(), ChainError> {
        let data = match self.transfer {
            Transfer::Read => &self.writable,
            Transfer::Write { .. } => &self.readable,
            Transfer::Flush => {
                self.iovecs.clear();
                return Ok(());
            }
        };
        data.fill(&mut self.iovecs, self.done)
            .map_err(|source| ChainError::Data { source })
    }

    /// What to do.
    pub(super) fn transfer(&self) -> Transfer {
        self.transfer
    }

    /// Bytes of the whole transfer.
    pub(super) fn len_bytes(&self) -> u32 {
        match self.transfer {
            Transfer::Read => self.writable.len_bytes(),
            Transfer::Write { .. } => self.readable.len_bytes(),
            Transfer::Flush => 0,
        }
    }

    /// Where to go on, in bytes from the start of the disk.
    pub(super) fn offset(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.done))
    }

    /// What is left to transfer.
    pub(super) fn iovecs(&self) -> &GuestIoVecs {
        &self.iovecs
    }

    /// Bytes transferred so far.
    pub(super) fn done(&self) -> u32 {
        self.done
    }

    /// Takes note of the result of one system call: bytes transferred, or 0 for a flush.
    pub(super) fn advance(&mut self, result: io::Result<usize>) -> Step {
        let len = match result {
            Ok(len) => len,
            Err(error) if is_transient(&error) && self.num_retries < MAX_RETRIES => {
                self.num_retries += 1;
                return Step::Again;
            }
            Err(error) => return Step::Done(Err(error)),
        };
        if self.transfer == Transfer::Flush {
            return Step::Done(Ok(()));
        }
        let left = self.iovecs.len_bytes();
        let len = u32::try_from(len).map_or(left, |len| len.min(left));
        self.done += len;
        if len == left {
            return Step::Done(Ok(()));
        }
        if len == 0 {
            // The image is shorter than it was when it was opened, or its storage is full.
            return Step::Done(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.num_retries = 0;
        match self.fill_iovecs() {
            Ok(()) => Step::Again,
            Err(error) => Step::Done(Err(io::Error::other(error))),
        }
    }

    /// Writes the status byte.
    ///
    /// # Errors
    /// It is not RAM, which [`Request::parse`] excluded.
    pub(super) fn write_status(&self, ram: &GuestRam, status: u8) -> Result<(), ChainError> {
        ram.write_obj(status, self.status)
            .map_err(|source| ChainError::NotWritable { source })
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
    )
}
