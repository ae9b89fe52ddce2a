//! A BAR where the guest placed it, and the doorbells inside it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use super::config::{Bar, BarKind};
use super::root::PciFunction;
use crate::bus::BusDevice;
use crate::interrupt::{DoorbellAddress, DoorbellSpace, Doorbells};
use crate::metrics::Counter;

/// A doorbell inside a BAR.
#[derive(Debug)]
pub struct BarDoorbell {
    /// The BAR, 0 to 5.
    pub bar_idx: usize,
    /// Byte offset in the BAR.
    pub offset: u64,
    /// The only data that rings it, written as 4 bytes; `None` for any.
    pub data: Option<u32>,
    /// What a guest write there signals; several doorbells may share one.
    pub doorbell: Arc<EventFd>,
}

impl BarDoorbell {
    fn is_rung_by(&self, bar_idx: usize, offset: u64, data: &[u8]) -> bool {
        self.bar_idx == bar_idx
            && self.offset == offset
            && self.data.is_none_or(|value| value.to_le_bytes() == data)
    }
}

/// Who turns doorbells into eventfd signals.
pub(super) struct Attacher {
    pub host: Arc<dyn Doorbells>,
    /// Doorbells that the host refused.
    pub bad_doorbells: Counter,
}

/// One BAR of a function, as a device on a bus.
///
/// A doorbell is attached when the guest rings it for the first time: to attach one, KVM waits for
/// all processors, and most doorbells are never rung. Until then the write arrives here, which is
/// slower and does the same.
pub(super) struct MappedBar {
    function: Arc<dyn PciFunction>,
    bar: Bar,
    attacher: Arc<Attacher>,
    /// Where its doorbells are, in order, neighbours as one: most writes ring none, and a function can
    /// have hundreds.
    bell_ranges: Vec<Range<u64>>,
    /// Indices of the function's doorbells that are attached; `None` when the BAR is not mapped any
    /// more.
    attached: Mutex<Option<BTreeSet<usize>>>,
}

impl MappedBar {
    pub fn new(function: Arc<dyn PciFunction>, bar: Bar, attacher: Arc<Attacher>) -> Self {
        let bells = function.doorbells().iter();
        let of_bar = bells.filter(|bell| bell.bar_idx == bar.idx);
        let offsets: BTreeSet<u64> = of_bar.map(|bell| bell.offset).collect();
        MappedBar {
            bell_ranges: ranges(offsets),
            function,
            bar,
            attacher,
            attached: Mutex::new(Some(BTreeSet::new())),
        }
    }

    /// Where it is.
    pub fn bar(&self) -> Bar {
        self.bar
    }

    /// Detaches all doorbells, for good.
    pub fn detach_doorbells(&self) {
        let mut attached = self.attached.lock();
        for idx in attached.take().into_iter().flatten() {
            let Some(bell) = self.function.doorbells().get(idx) else {
                continue;
            };
            let address = self.address(bell);
            if let Err(error) = self.attacher.host.detach(address, &bell.doorbell) {
                tracing::debug!("PCI: doorbell at {address:x?}: {error}");
            }
        }
    }

    fn attach_doorbell(&self, idx: usize, bell: &BarDoorbell) {
        let mut attached = self.attached.lock();
        // Else another processor was faster, or moved the BAR.
        let is_new = attached.as_mut().is_some_and(|set| set.insert(idx));
        if !is_new {
            return;
        }
        let address = self.address(bell);
        // One that is refused stays in the set: it would be refused each time.
        if let Err(error) = self.attacher.host.attach(address, &bell.doorbell)
            && self.attacher.bad_doorbells.count_sparsely()
        {
            tracing::warn!("PCI: doorbell at {address:x?}: {error}");
        }
    }

    fn address(&self, bell: &BarDoorbell) -> DoorbellAddress {
        DoorbellAddress {
            space: match self.bar.kind {
                BarKind::Memory32 => DoorbellSpace::Memory,
                BarKind::Io => DoorbellSpace::Ports,
            },
            start: self.bar.start + bell.offset,
            data: bell.data,
        }
    }
}

/// The ranges that `offsets` are, in order.
fn ranges(offsets: BTreeSet<u64>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for offset in offsets {
        match ranges.last_mut() {
            Some(last) if last.end == offset => last.end += 1,
            _ => ranges.push(offset..offset + 1),
        }
    }
    ranges
}

impl BusDevice for MappedBar {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.function.read_bar(self.bar.idx, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.function.write_bar(self.bar.idx, offset, data);
        let mut ranges = self.bell_ranges.iter();
        if !ranges.any(|range| range.contains(&offset)) {
            return;
        }
        let mut bells = self.function.doorbells().iter().enumerate();
        if let Some((idx, bell)) =
            bells.find(|(_, bell)| bell.is_rung_by(self.bar.idx, offset, data))
        {
            self.attach_doorbell(idx, bell);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_range() {
        assert_eq!(
            ranges(BTreeSet::from([0, 4, 128, 129, 130])),
            [0..1, 4..5, 128..131]
        );
        assert_eq!(ranges(BTreeSet::new()), []);
    }
}
