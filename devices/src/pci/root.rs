//! The root complex: one bus with up to 32 functions, its ECAM window, and their BARs.
//!
//! After each configuration write that may move a BAR, the root compares where the function's BARs
//! are mapped with where they should be, and moves the difference: the range on the MMIO or port
//! bus. Its doorbells become ioeventfds there as the guest rings them.

use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::config::{Bar, BarKind};
use super::mapped_bar::{Attacher, BarDoorbell, MappedBar};
use crate::bus::{Bus, BusDevice};
use crate::interrupt::Doorbells;
use crate::metrics::Counter;

/// Slots of the bus.
pub const NUM_SLOTS: usize = 32;
/// Bytes of ECAM space of one function (PCI Express 3.0 §7.2.2).
const FUNCTION_BYTES: u64 = 4096;
/// Bytes of ECAM space of one bus: 32 slots of 8 functions.
pub const ECAM_BYTES: u64 = 32 * 8 * FUNCTION_BYTES;

/// A PCI function as the root sees it. Called by vCPU threads, concurrently.
pub trait PciFunction: Send + Sync {
    /// Reads `data.len()` bytes of configuration space at `offset`.
    fn read_config(&self, offset: u16, data: &mut [u8]);
    /// Writes `data` to configuration space at `offset`.
    fn write_config(&self, offset: u16, data: &[u8]);
    /// All BARs, for whoever places them before the guest starts.
    fn bars(&self) -> Vec<Bar>;
    /// The BARs that are enabled, where the guest placed them.
    fn decoded_bars(&self) -> Vec<Bar>;
    /// Places BAR `idx` at `start`.
    fn place_bar(&self, idx: usize, start: u32);
    /// Reads `data.len()` bytes of BAR `bar_idx` at `offset`.
    fn read_bar(&self, bar_idx: usize, offset: u64, data: &mut [u8]);
    /// Writes `data` to BAR `bar_idx` at `offset`.
    fn write_bar(&self, bar_idx: usize, offset: u64, data: &[u8]);
    /// The function's doorbells; the same at every call. The first write to each comes to
    /// [`PciFunction::write_bar`], which signals it as well.
    fn doorbells(&self) -> &[BarDoorbell];
}

/// Why a function cannot be plugged in.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// All slots are taken.
    #[error("all {NUM_SLOTS} PCI slots are taken")]
    NoSlot,
}

struct Slot {
    function: Arc<dyn PciFunction>,
    /// The BARs that are on the buses now.
    mapped: Vec<Arc<MappedBar>>,
}

/// The root complex. Put it on the MMIO bus at the ECAM window.
pub struct PciRoot {
    slots: Mutex<Vec<Slot>>,
    /// Weak, because the MMIO bus holds the root: the functions go when the buses do.
    mmio: Weak<Bus>,
    pio: Weak<Bus>,
    attacher: Arc<Attacher>,
    /// Placements that cannot be.
    bad_bars: Counter,
}

impl fmt::Debug for PciRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciRoot").finish_non_exhaustive()
    }
}

impl PciRoot {
    /// An empty bus whose BARs go onto `mmio` and `pio`, and whose doorbells go to `doorbells`.
    pub fn new(mmio: &Arc<Bus>, pio: &Arc<Bus>, doorbells: Arc<dyn Doorbells>) -> Self {
        PciRoot {
            slots: Mutex::default(),
            mmio: Arc::downgrade(mmio),
            pio: Arc::downgrade(pio),
            attacher: Arc::new(Attacher {
                host: doorbells,
                bad_doorbells: Counter::default(),
            }),
            bad_bars: Counter::default(),
        }
    }

    /// Plugs `function` into the next slot and answers its number.
    ///
    /// # Errors
    /// [`PlugError::NoSlot`].
    pub fn plug(&self, function: Arc<dyn PciFunction>) -> Result<usize, PlugError> {
        let mut slots = self.slots.lock();
        if slots.len() == NUM_SLOTS {
            return Err(PlugError::NoSlot);
        }
        slots.push(Slot {
            function,
            mapped: Vec::new(),
        });
        Ok(slots.len() - 1)
    }

    fn function(&self, slot: usize) -> Option<Arc<dyn PciFunction>> {
        let slots = self.slots.lock();
        slots.get(slot).map(|slot| Arc::clone(&slot.function))
    }

    /// Moves the BARs of `slot` to where its configuration says.
    fn remap(&self, slot: usize) {
        let mut slots = self.slots.lock();
        let Some(Slot { function, mapped }) = slots.get_mut(slot) else {
            return;
        };
        let wanted = function.decoded_bars();
        mapped.retain(|device| {
            let stays = wanted.contains(&device.bar());
            if !stays {
                self.unmap(device);
            }
            stays
        });
        for bar in wanted {
            if !mapped.iter().any(|device| device.bar() == bar) {
                mapped.extend(self.map(function, bar));
            }
        }
    }

    /// `None` if it cannot be there.
    fn map(&self, function: &Arc<dyn PciFunction>, bar: Bar) -> Option<Arc<MappedBar>> {
        let bus = self.bus(bar.kind)?;
        let device = Arc::new(MappedBar::new(
            Arc::clone(function),
            bar,
            Arc::clone(&self.attacher),
        ));
        if let Err(error) = bus.insert(bar.start, bar.len, device.clone()) {
            if self.bad_bars.count_sparsely() {
                tracing::warn!("PCI: guest placed a BAR badly: {error}");
            }
            return None;
        }
        Some(device)
    }

    fn unmap(&self, mapped: &MappedBar) {
        let bar = mapped.bar();
        if let Some(bus) = self.bus(bar.kind) {
            bus.remove(bar.start);
        }
        mapped.detach_doorbells();
    }

    /// The bus for `kind`; `None` while it is being dropped.
    fn bus(&self, kind: BarKind) -> Option<Arc<Bus>> {
        match kind {
            BarKind::Memory32 => self.mmio.upgrade(),
            BarKind::Io => self.pio.upgrade(),
        }
    }
}

/// Slot and register of an ECAM offset, if it names function 0 of a slot on bus 0.
fn decode(offset: u64) -> Option<(usize, u16)> {
    let function_idx = offset / FUNCTION_BYTES;
    let register = u16::try_from(offset % FUNCTION_BYTES).ok()?;
    function_idx
        .is_multiple_of(8)
        .then_some((usize::try_from(function_idx / 8).ok()?, register))
}

impl BusDevice for PciRoot {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((slot, register)) = decode(offset)
            && let Some(function) = self.function(slot)
        {
            function.read_config(register, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((slot, register)) = decode(offset)
            && let Some(function) = self.function(slot)
        {
            function.write_config(register, data);
            self.remap(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::{DoorbellAddress, DoorbellSpace};
    use crate::pci::{ConfigSpace, PciIds};
    use crate::test_utils::count_warnings;
    use std::io;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    #[derive(Default)]
    struct FakeDoorbells(Mutex<Vec<DoorbellAddress>>);

    impl Doorbells for FakeDoorbells {
        fn attach(&self, address: DoorbellAddress, _doorbell: &EventFd) -> io::Result<()> {
            self.0.lock().push(address);
            Ok(())
        }
        fn detach(&self, address: DoorbellAddress, _doorbell: &EventFd) -> io::Result<()> {
            self.0.lock().retain(|other| *other != address);
            Ok(())
        }
    }

    fn in_memory(start: u64) -> DoorbellAddress {
        DoorbellAddress {
            space: DoorbellSpace::Memory,
            start,
            data: None,
        }
    }

    fn at_port(start: u64, data: u32) -> DoorbellAddress {
        DoorbellAddress {
            space: DoorbellSpace::Ports,
            start,
            data: Some(data),
        }
    }

    struct Function {
        config: Mutex<ConfigSpace>,
        doorbells: Vec<BarDoorbell>,
    }

    impl PciFunction for Function {
        fn read_config(&self, offset: u16, data: &mut [u8]) {
            self.config.lock().read(offset, data);
        }
        fn write_config(&self, offset: u16, data: &[u8]) {
            self.config.lock().write(offset, data);
        }
        fn bars(&self) -> Vec<Bar> {
            self.config.lock().bars().collect()
        }
        fn decoded_bars(&self) -> Vec<Bar> {
            self.config.lock().decoded_bars()
        }
        fn place_bar(&self, idx: usize, start: u32) {
            self.config.lock().place_bar(idx, start);
        }
        fn read_bar(&self, _bar_idx: usize, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write_bar(&self, _bar_idx: usize, _offset: u64, _data: &[u8]) {}
        fn doorbells(&self) -> &[BarDoorbell] {
            &self.doorbells
        }
    }

    fn root() -> (PciRoot, Arc<Bus>, Arc<FakeDoorbells>) {
        let (root, mmio, _pio, doorbells) = root_with_ports();
        (root, mmio, doorbells)
    }

    fn root_with_ports() -> (PciRoot, Arc<Bus>, Arc<Bus>, Arc<FakeDoorbells>) {
        let doorbells = Arc::new(FakeDoorbells::default());
        let (root, mmio, pio) = root_of(doorbells.clone());
        (root, mmio, pio, doorbells)
    }

    /// A function with a BAR of 4 KiB in memory with one doorbell, and one of 16 ports with two.
    fn root_of(doorbells: Arc<dyn Doorbells>) -> (PciRoot, Arc<Bus>, Arc<Bus>) {
        let mmio = Arc::new(Bus::default());
        let pio = Arc::new(Bus::default());
        let root = PciRoot::new(&mmio, &pio, doorbells);
        let ids = PciIds {
            vendor: 0x1af4,
            device: 0x1041,
            revision: 1,
            class: 0,
            subsystem_vendor: 0,
            subsystem: 0,
        };
        let mut config = ConfigSpace::new(ids);
        config.add_bar(0, BarKind::Memory32, 0x1000);
        config.add_bar(2, BarKind::Io, 0x10);
        let bell = |bar_idx, offset, data| BarDoorbell {
            bar_idx,
            offset,
            data,
            doorbell: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        };
        root.plug(Arc::new(Function {
            config: Mutex::new(config),
            doorbells: vec![
                bell(0, 0x40, None),
                bell(2, 4, Some(0)),
                bell(2, 4, Some(7)),
            ],
        }))
        .unwrap();
        (root, mmio, pio)
    }

    #[test]
    fn doorbells_at_ports_match_their_data() {
        let (root, mmio, pio, doorbells) = root_with_ports();
        let mut data = [0];

        root.write(0x18, &0xc010u32.to_le_bytes());
        root.write(0x04, &[1, 0]);

        assert!(pio.read(0xc01f, &mut data));
        assert!(!mmio.read(0xc01f, &mut data));
        for value in [7, 8, 0, 7u32] {
            pio.write(0xc014, &value.to_le_bytes());
        }
        pio.write(0xc014, &[7, 0]);
        pio.write(0xc010, &7u32.to_le_bytes());
        assert_eq!(
            *doorbells.0.lock(),
            [at_port(0xc014, 7), at_port(0xc014, 0)]
        );

        root.write(0x04, &[0, 0]);
        assert!(!pio.read(0xc01f, &mut data));
        assert_eq!(*doorbells.0.lock(), []);
    }

    #[test]
    fn doorbell_is_attached_when_it_is_rung_where_its_bar_is() {
        let (root, mmio, doorbells) = root();
        let attached = || doorbells.0.lock().clone();
        let mut data = [0];

        root.write(0x10, &0xc000_0000u32.to_le_bytes());
        assert!(!mmio.read(0xc000_0005, &mut data), "decoding is off");
        root.write(0x04, &[2, 0]);
        assert!(mmio.read(0xc000_0005, &mut data));
        assert_eq!(attached(), []);
        mmio.write(0xc000_0044, &[0]);
        assert_eq!(attached(), [], "beside it");
        mmio.write(0xc000_0040, &[0, 0]);
        mmio.write(0xc000_0040, &[1]);
        assert_eq!(attached(), [in_memory(0xc000_0040)]);

        root.write(0x10, &0xc100_0000u32.to_le_bytes());
        assert!(!mmio.read(0xc000_0005, &mut data));
        assert!(mmio.read(0xc100_0005, &mut data));
        assert_eq!(attached(), [], "not rung there");
        mmio.write(0xc100_0040, &[0]);
        assert_eq!(attached(), [in_memory(0xc100_0040)]);
    }

    #[test]
    fn write_that_was_underway_when_its_bar_moved_attaches_nothing() {
        let (root, mmio, doorbells) = root();
        root.write(0x10, &0xc000_0000u32.to_le_bytes());
        root.write(0x04, &[2, 0]);
        let before = Arc::clone(&root.slots.lock()[0].mapped[0]);

        root.write(0x10, &0xc100_0000u32.to_le_bytes());
        before.write(0x40, &[0]);

        assert_eq!(*doorbells.0.lock(), []);
        assert!(!mmio.write(0xc000_0040, &[0]));
    }

    #[test]
    fn doorbell_that_the_host_refuses_is_asked_for_once() {
        #[derive(Default)]
        struct Refuser(Counter);
        impl Doorbells for Refuser {
            fn attach(&self, _address: DoorbellAddress, _doorbell: &EventFd) -> io::Result<()> {
                self.0.add(1);
                Err(io::ErrorKind::OutOfMemory.into())
            }
            fn detach(&self, _address: DoorbellAddress, _doorbell: &EventFd) -> io::Result<()> {
                Err(io::ErrorKind::NotFound.into())
            }
        }
        let refuser = Arc::new(Refuser::default());
        let (root, mmio, _pio) = root_of(refuser.clone());
        root.write(0x10, &0xc000_0000u32.to_le_bytes());
        root.write(0x04, &[2, 0]);

        for _ in 0..100 {
            assert!(mmio.write(0xc000_0040, &[0]));
        }

        assert_eq!(refuser.0.get(), 1);
    }

    #[test]
    fn guest_that_places_a_bar_badly_again_and_again_is_logged_sparsely() {
        let (root, mmio, _doorbells) = root();
        let root = Arc::new(root);
        mmio.insert(0xe000_0000, ECAM_BYTES, root.clone()).unwrap();
        root.write(0x10, &0xe000_0000u32.to_le_bytes());

        let num_warnings = count_warnings(|| {
            for _ in 0..100 {
                root.write(0x04, &[2, 0]);
            }
        });

        assert!(num_warnings < 10, "{num_warnings} warnings");
    }

    #[test]
    fn functions_go_with_the_bus_that_the_root_is_on() {
        let (root, mmio, _doorbells) = root();
        let root = Arc::new(root);
        mmio.insert(0xe000_0000, ECAM_BYTES, root.clone()).unwrap();
        root.write(0x10, &0xc000_0000u32.to_le_bytes());
        root.write(0x04, &[2, 0]);
        let function = Arc::downgrade(&root.function(0).unwrap());
        drop(root);

        drop(mmio);

        assert!(function.upgrade().is_none());
    }

    #[test]
    fn absent_slot_reads_ones() {
        let (root, _mmio, _doorbells) = root();
        let mut data = [0xff; 4];

        root.read(8 * FUNCTION_BYTES, &mut data);

        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn second_function_of_a_slot_is_absent() {
        let (root, _mmio, _doorbells) = root();
        let mut data = [0xff; 4];

        root.read(FUNCTION_BYTES, &mut data);

        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn plug_refuses_a_33rd_function() {
        let (root, _mmio, _doorbells) = root();
        let function = root.function(0).unwrap();
        for _ in 1..NUM_SLOTS {
            root.plug(Arc::clone(&function)).unwrap();
        }

        assert!(matches!(root.plug(function), Err(PlugError::NoSlot)));
    }
}
