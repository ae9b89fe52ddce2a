//! Memory that a client registered, at addresses of its choice.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use parking_lot::RwLock;
use rustix::io::Errno;
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

use crate::bus::{Charge, Member};
use crate::memory::{GuestRam, MemoryContext, RegionError, map_memfd_at};
use crate::residency::Residency;

/// Addresses and lengths are multiples of this.
pub const PAGE_BYTES: u64 = 4096;
/// Most ranges of one client, those included that were dropped while a device still uses them.
pub const MAX_RANGES: usize = 256;

/// The memory of one client.
#[derive(Default)]
pub struct AddressSpace {
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    ram: GuestRam,
    ranges: BTreeMap<u64, Range>,
    /// Dropped, but mapped for as long as somebody uses them, and so long paid for.
    leaving: Vec<Range>,
    residency: Option<(Arc<Residency>, Charge)>,
}

struct Range {
    len: u64,
    mapping: Weak<MmapRegion<()>>,
    _charge: Charge,
}

/// Why memory is not registered.
#[derive(Debug)]
pub enum AddError {
    /// The request is refused.
    Refused(Errno),
    /// The file is none that can be mapped without danger.
    Hostile(RegionError),
}

impl AddressSpace {
    /// Registers `len` bytes of `memfd` from `offset` on at `base`.
    ///
    /// # Errors
    /// `EINVAL`: not whole pages, or past the end. `EEXIST`: overlaps. `EDQUOT`: too much.
    /// `ENOMEM`: the host refuses. [`AddError::Hostile`].
    pub fn add(
        &self,
        member: &Member,
        (base, len, offset): (u64, u64, u64),
        memfd: OwnedFd,
    ) -> Result<(), AddError> {
        let refuse = |errno| Err(AddError::Refused(errno));
        let is_whole = [base, len, offset]
            .iter()
            .all(|bytes| bytes.is_multiple_of(PAGE_BYTES));
        let (Some(end), Ok(map_len)) = (base.checked_add(len), usize::try_from(len)) else {
            return refuse(Errno::INVAL);
        };
        if !is_whole || len == 0 {
            return refuse(Errno::INVAL);
        }
        let mut state = self.state.write();
        state.sweep();
        if state.ranges.len() + state.leaving.len() >= MAX_RANGES {
            return refuse(Errno::DQUOT);
        }
        let before = state.ranges.range(..end).next_back();
        if before.is_some_and(|(start, range)| start + range.len > base) {
            return refuse(Errno::EXIST);
        }
        let charge = member.charge_bytes(len).map_err(AddError::Refused)?;
        let mapping = Arc::new(map_memfd_at(memfd, offset, map_len).map_err(AddError::from)?);
        let range = Range {
            len,
            mapping: Arc::downgrade(&mapping),
            _charge: charge,
        };
        let region = GuestRegionMmap::with_arc(mapping, GuestAddress(base));
        let ram = region.and_then(|region| state.ram.insert_region(Arc::new(region)).ok());
        state.ram = ram.ok_or(AddError::Refused(Errno::INVAL))?;
        state.ranges.insert(base, range);
        Ok(())
    }

    /// Says which of the pages are in memory, from the next connection on.
    ///
    /// # Errors
    /// `EEXIST`: somebody does already.
    pub fn set_residency(&self, residency: Arc<Residency>, charge: Charge) -> Result<(), Errno> {
        let mut state = self.state.write();
        if state.residency.is_some() {
            return Err(Errno::EXIST);
        }
        state.residency = Some((residency, charge));
        Ok(())
    }

    /// Takes the memory at `base` out of the space. What uses it goes on until it is done.
    ///
    /// # Errors
    /// `ENOENT`: there is none that starts there.
    pub fn drop_range(&self, base: u64) -> Result<(), Errno> {
        let mut state = self.state.write();
        let range = state.ranges.remove(&base).ok_or(Errno::NOENT)?;
        let removed = state.ram.remove_region(GuestAddress(base), range.len);
        if let Ok((ram, _)) = removed {
            state.ram = ram;
        }
        state.leaving.push(range);
        state.sweep();
        Ok(())
    }
}

impl State {
    fn sweep(&mut self) {
        self.leaving
            .retain(|range| range.mapping.strong_count() > 0);
    }
}

impl From<RegionError> for AddError {
    fn from(error: RegionError) -> Self {
        match error {
            RegionError::Map { .. } => AddError::Refused(Errno::NOMEM),
            RegionError::OutOfRange { .. } | RegionError::Unaligned { .. } => {
                AddError::Refused(Errno::INVAL)
            }
            error => AddError::Hostile(error),
        }
    }
}

impl MemoryContext for AddressSpace {
    fn snapshot(&self) -> GuestRam {
        let state = self.state.read();
        state.ram.clone()
    }

    fn residency(&self) -> Option<Arc<Residency>> {
        let state = self.state.read();
        let (residency, _) = state.residency.as_ref()?;
        Some(Arc::clone(residency))
    }
}
