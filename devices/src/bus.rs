//! Address → device dispatch for port I/O and MMIO exits.
//!
//! vCPU threads call [`Bus::read`] and [`Bus::write`]; they share the table under a read lock that
//! is dropped before the device runs, so that a slow device never stops another vCPU.

use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;

/// A device that answers accesses inside its range. Called by any vCPU thread, concurrently.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes (1 to 8) at `offset` bytes into the device's range.
    ///
    /// `data` arrives filled with ones, what an absent device answers.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` (1 to 8 bytes) at `offset` bytes into the device's range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a device cannot be put on a bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The range is empty or wraps the address space.
    #[error("range {start:#x} + {len:#x} is empty or wraps")]
    BadRange {
        /// First address.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another device is there already.
    #[error("range {start:#x} + {len:#x} overlaps the device at {other:#x}")]
    Overlap {
        /// First address.
        start: u64,
        /// Length in bytes.
        len: u64,
        /// First address of the device that is there.
        other: u64,
    },
}

struct Entry {
    start: u64,
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// One address space (port I/O or MMIO): non-overlapping ranges, each with a device.
#[derive(Default)]
pub struct Bus {
    /// In ascending order. Hardly ever changed, and searched at every exit.
    entries: RwLock<Vec<Entry>>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.entries.read();
        f.debug_map()
            .entries(entries.iter().map(|entry| (entry.start, entry.len)))
            .finish()
    }
}

impl Bus {
    /// Puts `device` at `start .. start + len`.
    ///
    /// # Errors
    /// [`BusError`]; the bus is unchanged then.
    pub fn insert(&self, start: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let end = match start.checked_add(len) {
            Some(end) if len > 0 => end,
            _ => return Err(BusError::BadRange { start, len }),
        };
        let mut entries = self.entries.write();
        let idx = entries.partition_point(|entry| entry.start < end);
        let before = idx.checked_sub(1).and_then(|idx| entries.get(idx));
        if let Some(&Entry {
            start: other,
            len: other_len,
            ..
        }) = before
            && other + other_len > start
        {
            return Err(BusError::Overlap { start, len, other });
        }
        entries.insert(idx, Entry { start, len, device });
        Ok(())
    }

    /// Takes the device that starts at `start` off the bus; false if there is none.
    pub fn remove(&self, start: u64) -> bool {
        let mut entries = self.entries.write();
        let found = entries.binary_search_by_key(&start, |entry| entry.start);
        // Dropped without the lock: a device may be the last to hold others.
        let removed = found.ok().map(|idx| entries.remove(idx));
        drop(entries);
        removed.is_some()
    }

    /// Reads `data.len()` bytes at `addr`; false, and all ones in `data`, if nobody is there.
    ///
    /// An access that crosses the end of a device is nobody's.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        match self.find(addr, data.len()) {
            Some((offset, device)) => {
                device.read(offset, data);
                true
            }
            None => false,
        }
    }

    /// Writes `data` at `addr`; false if nobody is there.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        match self.find(addr, data.len()) {
            Some((offset, device)) => {
                device.write(offset, data);
                true
            }
            None => false,
        }
    }

    fn find(&self, addr: u64, len_bytes: usize) -> Option<(u64, Arc<dyn BusDevice>)> {
        let entries = self.entries.read();
        let idx = entries.partition_point(|entry| entry.start <= addr);
        let entry = entries.get(idx.checked_sub(1)?)?;
        let offset = addr - entry.start;
        let fits = offset.checked_add(len_bytes as u64)? <= entry.len;
        fits.then(|| (offset, Arc::clone(&entry.device)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);

    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }

    #[test]
    fn read_reaches_the_device_at_its_offset() {
        let bus = Bus::default();
        bus.insert(0x10, 4, Arc::new(Echo(1))).unwrap();
        let mut data = [0; 2];

        assert!(bus.read(0x12, &mut data));

        assert_eq!(data, [3, 3]);
    }

    #[test]
    fn access_across_the_end_of_a_device_reads_ones() {
        let bus = Bus::default();
        bus.insert(0x10, 4, Arc::new(Echo(1))).unwrap();
        let mut data = [0; 2];

        assert!(!bus.read(0x13, &mut data));

        assert_eq!(data, [0xff, 0xff]);
    }

    #[test]
    fn insert_refuses_overlap_from_either_side() {
        let bus = Bus::default();
        bus.insert(0x10, 4, Arc::new(Echo(1))).unwrap();

        assert!(matches!(
            bus.insert(0x0e, 3, Arc::new(Echo(2))),
            Err(BusError::Overlap { other: 0x10, .. })
        ));
        assert!(matches!(
            bus.insert(0x13, 1, Arc::new(Echo(2))),
            Err(BusError::Overlap { other: 0x10, .. })
        ));
        bus.insert(0x14, 1, Arc::new(Echo(2))).unwrap();
        bus.insert(0x0f, 1, Arc::new(Echo(2))).unwrap();
    }

    #[test]
    fn insert_refuses_range_that_wraps() {
        let bus = Bus::default();

        assert!(matches!(
            bus.insert(u64::MAX, 2, Arc::new(Echo(0))),
            Err(BusError::BadRange { .. })
        ));
    }

    #[test]
    fn removed_device_no_longer_answers() {
        let bus = Bus::default();
        bus.insert(0, 4, Arc::new(Echo(1))).unwrap();

        assert!(bus.remove(0));

        assert!(!bus.write(0, &[1]));
        assert!(!bus.remove(0));
    }
}
