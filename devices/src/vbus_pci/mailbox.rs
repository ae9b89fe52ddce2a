//! A call in guest memory: read once, answered last.

use std::mem::offset_of;
use std::sync::atomic::Ordering::Release;

use rustix::io::Errno;
use vbus::abi::pci::Call;
use vbus::memory::Region;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::GuestRam;

const ALIGNMENT: u64 = 64;
const PAGE_BYTES: u64 = 4096;
const CALL_BYTES: u64 = size_of::<Call>() as u64;
/// Data of a call that is copied to the stack.
const SHORT_BYTES: usize = 128;

/// The arguments of a call, and its results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Args {
    bytes: [u8; 120],
    /// They are results now.
    is_changed: bool,
}

impl Args {
    /// What is in the first bytes.
    pub fn get<T: FromBytes + FromZeros + KnownLayout + Immutable>(&self) -> T {
        // All arguments are shorter than their place.
        T::read_from_prefix(&self.bytes).map_or_else(|_| T::new_zeroed(), |(value, _)| value)
    }

    /// Replaces the first bytes.
    pub fn set<T: IntoBytes + Immutable>(&mut self, value: &T) {
        let bytes = value.as_bytes();
        if let Some(place) = self.bytes.get_mut(..bytes.len()) {
            place.copy_from_slice(bytes);
            self.is_changed = true;
        }
    }
}

/// Where calls are made again and again: looked up once, from the call to the end of its page.
pub(super) struct Place {
    addr: u64,
    region: Region,
}

impl Place {
    /// The place of calls at `addr`; `None` if none can be there.
    pub fn find(ram: &GuestRam, addr: u64) -> Option<Self> {
        if !can_be_call(addr) {
            return None;
        }
        let len = usize::try_from(PAGE_BYTES - addr % PAGE_BYTES).ok()?;
        let region = Region::from_ram(ram, GuestAddress(addr), len).ok()?;
        Some(Place { addr, region })
    }

    /// The memory of the call.
    pub fn call(&self) -> Option<VolatileSlice<'_>> {
        self.region.slice(0, size_of::<Call>()).ok()
    }

    /// `len` bytes at `addr`, if they are in the page behind the call.
    fn slice(&self, addr: u64, len: usize) -> Option<VolatileSlice<'_>> {
        let offset = usize::try_from(addr.checked_sub(self.addr)?).ok()?;
        self.region.slice(offset, len).ok()
    }
}

fn can_be_call(addr: u64) -> bool {
    let is_in_page = addr % PAGE_BYTES <= PAGE_BYTES - CALL_BYTES;
    addr.is_multiple_of(ALIGNMENT) && is_in_page
}

/// The memory of a call at `addr`; `None` if none can be there.
pub(super) fn slice(ram: &GuestRam, addr: u64) -> Option<VolatileSlice<'_>> {
    if !can_be_call(addr) {
        return None;
    }
    // Looked up once: a page is in one mapping.
    ram.get_slice(GuestAddress(addr), size_of::<Call>()).ok()
}

/// A call that was read.
#[derive(Debug)]
pub(super) struct Mailbox {
    pub func: u32,
    pub args: Args,
}

impl Mailbox {
    /// Reads the call in `slice`, once.
    pub fn read(slice: &VolatileSlice<'_>) -> Self {
        let mut call = Call::new_zeroed();
        slice.copy_to(call.as_mut_bytes());
        Mailbox {
            func: call.func.get(),
            args: Args {
                bytes: call.args,
                is_changed: false,
            },
        }
    }

    /// Writes the results to `slice`, where it was read, if `result` is good, and then, for whoever
    /// polls it, the status.
    pub fn answer(&self, slice: &VolatileSlice<'_>, result: Result<u32, Errno>) {
        // None of this fails: it was read from there.
        if result.is_ok() && self.args.is_changed {
            let _ = slice.write_slice(&self.args.bytes, offset_of!(Call, args));
        }
        let status = status(result).to_le();
        let _ = slice.store(status, offset_of!(Call, status), Release);
    }
}

/// A result as the guest sees it: 0 or more, or a negated errno.
pub(super) fn status(result: Result<u32, Errno>) -> u32 {
    let result = result.and_then(|value| i32::try_from(value).map_err(|_| Errno::OVERFLOW));
    result
        .unwrap_or_else(|error| -error.raw_os_error())
        .cast_unsigned()
}

/// Has `change` change a copy of `len` bytes of guest memory, and writes it back unless that fails. They
/// may be in the page of `near`, whose place is known.
///
/// # Errors
/// `EFAULT`: not all of it is memory. Those of `change`.
pub(super) fn change_bytes<R>(
    ram: &GuestRam,
    near: Option<&Place>,
    addr: u64,
    len: usize,
    change: impl FnOnce(&mut [u8]) -> Result<R, Errno>,
) -> Result<R, Errno> {
    let start = GuestAddress(addr);
    // Nothing is nowhere: then the address does not matter.
    if len == 0 {
        return change(&mut []);
    }
    // Most calls: no allocation, and one look for the place at most.
    let mut short = [0; SHORT_BYTES];
    if let Some(bytes) = short.get_mut(..len) {
        let place = near.and_then(|near| near.slice(addr, len));
        if let Some(place) = place.or_else(|| ram.get_slice(start, len).ok()) {
            place.copy_to(bytes);
            let result = change(bytes)?;
            place.copy_from(bytes);
            return Ok(result);
        }
    }
    if !ram.check_range(start, len) {
        return Err(Errno::FAULT);
    }
    let mut bytes = vec![0; len];
    ram.read_slice(&mut bytes, start)
        .map_err(|_| Errno::FAULT)?;
    let result = change(&mut bytes)?;
    ram.write_slice(&bytes, start).map_err(|_| Errno::FAULT)?;
    Ok(result)
}
