//! A call in guest memory: read once, answered last.

use std::mem::offset_of;
use std::sync::atomic::Ordering::Release;

use rustix::io::Errno;
use vbus::abi::pci::Call;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::GuestRam;

const ALIGNMENT: u64 = 64;
const PAGE_BYTES: u64 = 4096;
const CALL_BYTES: u64 = size_of::<Call>() as u64;

/// The arguments of a call, and its results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Args([u8; 120]);

impl Args {
    /// What is in the first bytes.
    pub fn get<T: FromBytes + FromZeros + KnownLayout + Immutable>(&self) -> T {
        // All arguments are shorter than their place.
        T::read_from_prefix(&self.0).map_or_else(|_| T::new_zeroed(), |(value, _)| value)
    }

    /// Replaces the first bytes.
    pub fn set<T: IntoBytes + Immutable>(&mut self, value: &T) {
        let bytes = value.as_bytes();
        if let Some(place) = self.0.get_mut(..bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
}

/// A call that was read.
#[derive(Debug)]
pub(super) struct Mailbox {
    start: GuestAddress,
    pub func: u32,
    pub args: Args,
}

impl Mailbox {
    /// Reads the call at `addr`; `None` if none can be there.
    pub fn read(ram: &GuestRam, addr: u64) -> Option<Self> {
        let is_in_page = addr % PAGE_BYTES <= PAGE_BYTES - CALL_BYTES;
        if !addr.is_multiple_of(ALIGNMENT) || !is_in_page {
            return None;
        }
        let start = GuestAddress(addr);
        let mut call = Call::new_zeroed();
        ram.read_slice(call.as_mut_bytes(), start).ok()?;
        Some(Mailbox {
            start,
            func: call.func.get(),
            args: Args(call.args),
        })
    }

    /// Writes the results if `result` is good, and then, for whoever polls it, the status.
    pub fn answer(&self, ram: &GuestRam, args: &Args, result: Result<u32, Errno>) {
        if result.is_ok() && *args != self.args {
            let place = self.start.0 + offset_of!(Call, args) as u64;
            // It was read from there.
            let _ = ram.write_slice(&args.0, GuestAddress(place));
        }
        let place = self.start.0 + offset_of!(Call, status) as u64;
        let _ = ram.store(status(result).to_le(), GuestAddress(place), Release);
    }
}

/// A result as the guest sees it: 0 or more, or a negated errno.
pub(super) fn status(result: Result<u32, Errno>) -> u32 {
    let result = result.and_then(|value| i32::try_from(value).map_err(|_| Errno::OVERFLOW));
    result
        .unwrap_or_else(|error| -error.raw_os_error())
        .cast_unsigned()
}

/// Reads `len` bytes of guest memory.
///
/// # Errors
/// `EFAULT`: not all of it is memory.
pub(super) fn read_bytes(ram: &GuestRam, addr: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let start = GuestAddress(addr);
    let mut bytes = Vec::new();
    // Nothing is nowhere: then the address does not matter.
    if len > 0 {
        if !ram.check_range(start, len) {
            return Err(Errno::FAULT);
        }
        bytes.resize(len, 0);
        ram.read_slice(&mut bytes, start)
            .map_err(|_| Errno::FAULT)?;
    }
    Ok(bytes)
}

/// Writes bytes to guest memory.
///
/// # Errors
/// `EFAULT`: not all of it is memory.
pub(super) fn write_bytes(ram: &GuestRam, addr: u64, bytes: &[u8]) -> Result<(), Errno> {
    if bytes.is_empty() {
        return Ok(());
    }
    ram.write_slice(bytes, GuestAddress(addr))
        .map_err(|_| Errno::FAULT)
}
