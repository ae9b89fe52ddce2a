//! The PCI function.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use parking_lot::Mutex;
use vbus::abi::pci::{
    CLASS, DEVICE_ID, MAGIC, MSIX_BAR, NUM_CHANNELS, NUM_EVENT_QUEUES, NUM_SIGNALS, NUM_VECTORS,
    PORTS_BAR, PORTS_BAR_BYTES, REGISTERS_BAR, REGISTERS_BAR_BYTES, REVISION, Registers, VENDOR_ID,
    VERSION, port,
};
use zerocopy::IntoBytes;

use super::calls::CAPABILITIES;
use super::connector::{Connector, Service};
use super::metrics::VbusPciMetrics;
use super::wires::Vectors;
use super::{Uplink, VbusPciError};
use crate::GuestRam;
use crate::interrupt::MsiVectors;
use crate::pci::msix::{self, MSIX_CAPABILITY_ID};
use crate::pci::{Bar, BarDoorbell, BarKind, ConfigSpace, MsixTable, PciFunction, PciIds};
use crate::worker::Worker;

const MSIX_BAR_BYTES: u32 = 4096;
const MSIX_TABLE: u32 = 0;
const MSIX_PBA: u32 = 0x800;
const _: () = assert!(NUM_VECTORS * 16 <= MSIX_PBA);

const RESET: u64 = std::mem::offset_of!(Registers, reset) as u64;
const CALL: u64 = std::mem::offset_of!(Registers, call) as u64;
const CALL_HIGH: u64 = CALL + 4;
const PORT_DOORBELL: u64 = port::DOORBELL as u64;
const PORT_FAST_CALL: u64 = port::FAST_CALL as u64;
const PORT_SIGNALS: u64 = port::SIGNALS as u64;

struct Configuration {
    config: ConfigSpace,
    msix: MsixTable,
}

/// One guest's connector, as a PCI function.
pub struct VbusPci {
    configuration: Mutex<Configuration>,
    /// As the configuration space says: each call asks. Changed with its lock held.
    is_bus_master: AtomicBool,
    msix_control_offset: u16,
    connector: Arc<Connector>,
    /// The first half of an address that is written in halves.
    call_low: AtomicU32,
    worker: Option<Worker>,
}

impl fmt::Debug for VbusPci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VbusPci")
            .field("name", &self.connector.around.name)
            .finish_non_exhaustive()
    }
}

impl VbusPci {
    /// The connector of a guest with `ram`, called `name` in the log, to the bus behind `uplink`.
    ///
    /// # Errors
    /// [`VbusPciError`].
    pub fn new(
        name: String,
        uplink: Arc<dyn Uplink>,
        ram: GuestRam,
        vectors: &dyn MsiVectors,
    ) -> Result<Self, VbusPciError> {
        Self::make(&name, uplink, ram, vectors)
            .map_err(|source| VbusPciError::Events { name, source })
    }

    fn make(
        name: &str,
        uplink: Arc<dyn Uplink>,
        ram: GuestRam,
        vectors: &dyn MsiVectors,
    ) -> io::Result<Self> {
        let vectors = Arc::new(Vectors::new(vectors)?);
        let msix = MsixTable::new(vectors.clone());
        let (config, msix_offset) = config_space(&msix);
        let connector = Arc::new(Connector::new(name, uplink, ram, vectors)?);
        let worker = Worker::spawn(name.to_owned(), Service(Arc::clone(&connector)))?;
        Ok(VbusPci {
            configuration: Mutex::new(Configuration { config, msix }),
            is_bus_master: AtomicBool::new(false),
            msix_control_offset: msix_offset + 2,
            connector,
            call_low: AtomicU32::new(0),
            worker: Some(worker),
        })
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<VbusPciMetrics> {
        Arc::clone(&self.connector.around.metrics)
    }

    #[cfg(any(test, feature = "test-utils"))]
    pub(super) fn connector(&self) -> &Connector {
        &self.connector
    }

    fn registers(&self) -> Registers {
        Registers {
            magic: MAGIC.into(),
            version: VERSION.into(),
            capabilities: CAPABILITIES.into(),
            num_event_queues: NUM_EVENT_QUEUES.into(),
            num_signals: NUM_SIGNALS.into(),
            num_vectors: NUM_VECTORS.into(),
            num_channels: NUM_CHANNELS.into(),
            num_resets: self.connector.num_resets().into(),
            reset: 0.into(),
            call: 0.into(),
        }
    }

    fn write_register(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (RESET, _) => {
                self.call_low.store(0, Relaxed);
                self.connector.reset();
            }
            (CALL, &[a, b, c, d]) => self
                .call_low
                .store(u32::from_le_bytes([a, b, c, d]), Relaxed),
            (CALL_HIGH, &[a, b, c, d]) => {
                let low = u64::from(self.call_low.load(Relaxed));
                self.call(u64::from(u32::from_le_bytes([a, b, c, d])) << 32 | low);
            }
            (CALL, data) => {
                if let Ok(bytes) = data.try_into() {
                    self.call(u64::from_le_bytes(bytes));
                }
            }
            _ => {}
        }
    }

    fn write_port(&self, offset: u64, data: &[u8]) {
        let value = data.try_into().map(u32::from_le_bytes);
        match (offset, value) {
            (PORT_FAST_CALL, Ok(channel)) if self.is_bus_master() => {
                self.connector.fast_call(channel);
            }
            (PORT_FAST_CALL, Ok(_)) => self.connector.cannot_answer("bus mastering off"),
            (PORT_DOORBELL, Ok(number)) => self.ring(number),
            (PORT_SIGNALS.., _) => {
                // The BAR ends soon behind it.
                self.ring(u32::try_from(offset - PORT_SIGNALS).unwrap_or(u32::MAX));
            }
            _ => {}
        }
    }

    fn ring(&self, number: u32) {
        let around = &self.connector.around;
        match around.signals.doorbell(number) {
            Some(doorbell) => {
                around.metrics.doorbell_exits.add(1);
                // Fails only when the counter is full, and then it is readable.
                let _ = doorbell.write(1);
            }
            None => around.metrics.unknown_doorbells.add(1),
        }
    }

    fn call(&self, addr: u64) {
        if self.is_bus_master() {
            self.connector.call(addr);
        } else {
            self.connector.cannot_answer("bus mastering off");
        }
    }

    /// Without it a function leaves memory alone (PCI 3.0 §6.2.2).
    fn is_bus_master(&self) -> bool {
        self.is_bus_master.load(Relaxed)
    }
}

/// The configuration space, and where its MSI-X capability is.
fn config_space(msix: &MsixTable) -> (ConfigSpace, u16) {
    let mut config = ConfigSpace::new(PciIds {
        vendor: VENDOR_ID,
        device: DEVICE_ID,
        revision: REVISION,
        class: CLASS,
        subsystem_vendor: VENDOR_ID,
        subsystem: DEVICE_ID,
    });
    config.add_bar(REGISTERS_BAR, BarKind::Memory32, REGISTERS_BAR_BYTES);
    config.add_bar(PORTS_BAR, BarKind::Io, PORTS_BAR_BYTES);
    config.add_bar(MSIX_BAR, BarKind::Memory32, MSIX_BAR_BYTES);
    let bar_idx = u8::try_from(MSIX_BAR).unwrap_or(0);
    let body = msix.capability_body(bar_idx, MSIX_TABLE, MSIX_PBA);
    let msix_offset = config.add_capability(MSIX_CAPABILITY_ID, &body);
    config.set_writable(
        usize::from(msix_offset) + 2,
        &msix::CONTROL_WRITABLE.to_le_bytes(),
    );
    config.add_flr();
    (config, msix_offset)
}

impl PciFunction for VbusPci {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.configuration.lock().config.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let must_reset = {
            let mut guard = self.configuration.lock();
            let Configuration { config, msix } = &mut *guard;
            let was_bus_master = config.is_bus_master();
            config.write(offset, data);
            let is_flr = config.is_flr(offset, data);
            if is_flr {
                config.reset();
                msix.reset();
            }
            let mut control = [0; 2];
            config.read(self.msix_control_offset, &mut control);
            msix.set_control(u16::from_le_bytes(control));
            self.is_bus_master.store(config.is_bus_master(), Relaxed);
            // The end of bus mastering is what a system does to a function whose driver is gone, e.g.
            // before it starts another kernel.
            is_flr || was_bus_master && !config.is_bus_master()
        };
        if must_reset {
            self.call_low.store(0, Relaxed);
            self.connector.reset();
        }
    }

    fn bars(&self) -> Vec<Bar> {
        self.configuration.lock().config.bars().collect()
    }

    fn decoded_bars(&self) -> Vec<Bar> {
        self.configuration.lock().config.decoded_bars()
    }

    fn place_bar(&self, idx: usize, start: u32) {
        self.configuration.lock().config.place_bar(idx, start);
    }

    fn read_bar(&self, bar_idx: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match bar_idx {
            REGISTERS_BAR => {
                let registers = self.registers();
                let bytes = usize::try_from(offset)
                    .ok()
                    .and_then(|start| registers.as_bytes().get(start..));
                for (place, byte) in data.iter_mut().zip(bytes.unwrap_or_default()) {
                    *place = *byte;
                }
            }
            MSIX_BAR => {
                let configuration = self.configuration.lock();
                match offset.checked_sub(MSIX_PBA.into()) {
                    Some(offset) => configuration.msix.read_pending(offset, data),
                    None => configuration.msix.read_table(offset, data),
                }
            }
            _ => {}
        }
    }

    fn write_bar(&self, bar_idx: usize, offset: u64, data: &[u8]) {
        match bar_idx {
            REGISTERS_BAR => self.write_register(offset, data),
            PORTS_BAR => self.write_port(offset, data),
            MSIX_BAR if offset < MSIX_PBA.into() => {
                self.configuration.lock().msix.write_table(offset, data);
            }
            _ => {}
        }
    }

    fn doorbells(&self) -> &[BarDoorbell] {
        self.connector.around.signals.doorbells()
    }
}

impl Drop for VbusPci {
    fn drop(&mut self) {
        // First, so that the worker is not the last to hold the connector.
        drop(self.worker.take());
        self.connector.shut_down();
    }
}
