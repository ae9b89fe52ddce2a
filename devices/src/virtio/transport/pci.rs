//! The PCI function in front of a virtio device (VIRTIO 1.2 §4.1).
//!
//! BAR 0, 32 KiB of memory:
//!
//! | start | end | what |
//! |---|---|---|
//! | `0x0000` | `0x0038` | common configuration |
//! | `0x1000` | `0x1001` | ISR status (always 0: only MSI-X interrupts) |
//! | `0x2000` | `0x3000` | device configuration |
//! | `0x3000` | `0x4000` | doorbells, 4 bytes for each queue |
//! | `0x4000` | `0x5000` | MSI-X table |
//! | `0x5000` | `0x6000` | MSI-X pending bits |

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::{VirtioDevice, VirtioInterrupt};
use super::common::{COMMON_BYTES, CommonConfig};
use crate::GuestRam;
use crate::interrupt::MsiVectors;
use crate::pci::msix::{self, MSIX_CAPABILITY_ID};
use crate::pci::{Bar, BarDoorbell, BarKind, ConfigSpace, MsixTable, PciFunction, PciIds};

const BAR_IDX: usize = 0;
const BAR_BYTES: u32 = 0x8000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PBA: u64 = 0x5000;
const BAR_USED: u64 = 0x6000;

const NOTIFY_MULTIPLIER: u32 = 4;
const VIRTIO_VENDOR: u16 = 0x1af4;
const MODERN_DEVICE_BASE: u16 = 0x1040;
const VENDOR_CAPABILITY_ID: u8 = 0x09;

/// Types of the vendor capability (§4.1.4).
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;

/// Why the function cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No interrupt vectors or doorbells left on the host.
    #[error("cannot make the interrupts and doorbells of {name}")]
    Events {
        /// The device's name.
        name: String,
        /// What the host said.
        source: io::Error,
    },
    /// The device asks for a queue size that does not exist.
    #[error("{name} has an impossible queue size")]
    QueueSize {
        /// The device's name.
        name: String,
        /// What `virtio-queue` said.
        source: virtio_queue::Error,
    },
}

struct State {
    config: ConfigSpace,
    msix: MsixTable,
    common: CommonConfig,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    state: Mutex<State>,
    interrupt: Arc<VirtioInterrupt>,
    doorbells: Vec<BarDoorbell>,
    msix_control_offset: u16,
}

impl std::fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioPci")
            .field("interrupt", &self.interrupt)
            .finish_non_exhaustive()
    }
}

impl VirtioPci {
    /// Wraps `device`, called `name` in the log, with one MSI-X vector for its configuration and
    /// one for each queue.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn new(
        name: &str,
        device: Box<dyn VirtioDevice>,
        ram: GuestRam,
        vectors: &dyn MsiVectors,
    ) -> Result<Self, TransportError> {
        let events = |source| TransportError::Events {
            name: name.into(),
            source,
        };
        let num_queues = device.queue_max_sizes().len();
        let vectors = (0..=num_queues)
            .map(|_| vectors.allocate())
            .collect::<io::Result<Vec<_>>>()
            .map_err(events)?;
        let interrupt = Arc::new(VirtioInterrupt::new(name.into(), vectors, num_queues));
        let msix = MsixTable::new(interrupt.clone());
        let (config, msix_offset) = config_space(device.as_ref(), &msix);

        let mut queue_doorbells = Vec::with_capacity(num_queues);
        let mut doorbells = Vec::with_capacity(num_queues);
        for queue_idx in 0..num_queues as u64 {
            let doorbell = EventFd::new(EFD_NONBLOCK).map_err(events)?;
            queue_doorbells.push(doorbell.try_clone().map_err(events)?);
            let offset = NOTIFY + queue_idx * u64::from(NOTIFY_MULTIPLIER);
            doorbells.push(BarDoorbell {
                bar_idx: BAR_IDX,
                offset,
                data: None,
                doorbell: Arc::new(doorbell),
            });
        }
        let common = CommonConfig::new(device, Arc::clone(&interrupt), ram, queue_doorbells)
            .map_err(|source| TransportError::QueueSize {
                name: name.into(),
                source,
            })?;
        Ok(VirtioPci {
            state: Mutex::new(State {
                config,
                msix,
                common,
            }),
            interrupt,
            doorbells,
            msix_control_offset: msix_offset + 2,
        })
    }

    /// The device's interrupts, for the metrics collector and for those who signal it from outside.
    pub fn interrupt(&self) -> &Arc<VirtioInterrupt> {
        &self.interrupt
    }
}

/// The configuration space, and where its MSI-X capability is.
fn config_space(device: &dyn VirtioDevice, msix: &MsixTable) -> (ConfigSpace, u16) {
    let device_id = MODERN_DEVICE_BASE + device.device_type();
    let mut config = ConfigSpace::new(PciIds {
        vendor: VIRTIO_VENDOR,
        device: device_id,
        revision: 1,
        class: class(device.device_type()),
        subsystem_vendor: VIRTIO_VENDOR,
        subsystem: device_id,
    });
    config.add_bar(BAR_IDX, BarKind::Memory32, BAR_BYTES);
    let len = |bytes: u64| u32::try_from(bytes).unwrap_or(0);
    let notify_bytes = device.queue_max_sizes().len() as u64 * u64::from(NOTIFY_MULTIPLIER);
    add_virtio_capability(&mut config, CAP_COMMON, COMMON, len(COMMON_BYTES), None);
    add_virtio_capability(&mut config, CAP_ISR, ISR, 1, None);
    add_virtio_capability(
        &mut config,
        CAP_NOTIFY,
        NOTIFY,
        len(notify_bytes),
        Some(NOTIFY_MULTIPLIER),
    );
    if !device.config().is_empty() {
        add_virtio_capability(
            &mut config,
            CAP_DEVICE,
            DEVICE,
            len(device.config().len() as u64),
            None,
        );
    }
    let body = msix.capability_body(0, len(MSIX_TABLE), len(MSIX_PBA));
    let msix_offset = config.add_capability(MSIX_CAPABILITY_ID, &body);
    config.set_writable(
        usize::from(msix_offset) + 2,
        &msix::CONTROL_WRITABLE.to_le_bytes(),
    );
    (config, msix_offset)
}

/// `struct virtio_pci_cap` (§4.1.4), with the multiplier of the notification capability.
fn add_virtio_capability(
    config: &mut ConfigSpace,
    cfg_type: u8,
    offset: u64,
    len: u32,
    multiplier: Option<u32>,
) {
    let cap_len = if multiplier.is_some() { 20 } else { 16 };
    let mut body = vec![cap_len, cfg_type, 0, 0, 0, 0];
    body.extend(u32::try_from(offset).unwrap_or(0).to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(multiplier.into_iter().flat_map(u32::to_le_bytes));
    config.add_capability(VENDOR_CAPABILITY_ID, &body);
}

/// PCI class code by virtio device type.
fn class(device_type: u16) -> u32 {
    match device_type {
        1 => 0x02_0000, // network, Ethernet
        2 => 0x01_8000, // mass storage, other
        _ => 0xff_0000, // fits no class
    }
}

impl PciFunction for VirtioPci {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.state.lock().config.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut state = self.state.lock();
        state.config.write(offset, data);
        let mut control = [0; 2];
        state.config.read(self.msix_control_offset, &mut control);
        state.msix.set_control(u16::from_le_bytes(control));
    }

    fn bars(&self) -> Vec<Bar> {
        self.state.lock().config.bars().collect()
    }

    fn decoded_bars(&self) -> Vec<Bar> {
        self.state.lock().config.decoded_bars()
    }

    fn place_bar(&self, idx: usize, start: u32) {
        self.state.lock().config.place_bar(idx, start);
    }

    fn read_bar(&self, _bar_idx: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let state = self.state.lock();
        match offset {
            COMMON..ISR => state.common.read(offset - COMMON, data),
            DEVICE..NOTIFY => {
                let config = state.common.device().config();
                if let Some(range) = range_inside(offset - DEVICE, data.len(), config.len()) {
                    data.copy_from_slice(config.get(range).unwrap_or_default());
                }
            }
            MSIX_TABLE..MSIX_PBA => state.msix.read_table(offset - MSIX_TABLE, data),
            MSIX_PBA..BAR_USED => state.msix.read_pending(offset - MSIX_PBA, data),
            _ => {}
        }
    }

    fn write_bar(&self, _bar_idx: usize, offset: u64, data: &[u8]) {
        let mut state = self.state.lock();
        match offset {
            COMMON..ISR => state.common.write(offset - COMMON, data),
            DEVICE..NOTIFY => {
                let device = state.common.device_mut();
                if range_inside(offset - DEVICE, data.len(), device.config().len()).is_some() {
                    device.write_config(offset - DEVICE, data);
                }
            }
            NOTIFY..MSIX_TABLE => state
                .common
                .ring((offset - NOTIFY) / u64::from(NOTIFY_MULTIPLIER)),
            MSIX_TABLE..MSIX_PBA => state.msix.write_table(offset - MSIX_TABLE, data),
            _ => {}
        }
    }

    fn doorbells(&self) -> &[BarDoorbell] {
        &self.doorbells
    }
}

/// The range `offset .. offset + len` if it ends at or before `end`.
fn range_inside(offset: u64, len: usize, end: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let range = start..start.checked_add(len)?;
    (range.end <= end).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::FakeVectors;
    use crate::virtio::{ActivateError, Activation};
    use vm_memory::GuestAddress;

    struct FakeDevice;

    impl VirtioDevice for FakeDevice {
        fn device_type(&self) -> u16 {
            1
        }
        fn queue_max_sizes(&self) -> Vec<u16> {
            vec![16, 16]
        }
        fn device_features(&self) -> u64 {
            0
        }
        fn config(&self) -> Vec<u8> {
            vec![0x50, 0x51, 0x52, 0x53, 0x54, 0x55]
        }
        fn activate(&mut self, _activation: Activation) -> Result<(), ActivateError> {
            Ok(())
        }
        fn reset(&mut self) {}
    }

    fn function() -> VirtioPci {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        VirtioPci::new("net0", Box::new(FakeDevice), ram, &FakeVectors).unwrap()
    }

    #[test]
    fn identity_is_a_modern_network_device() {
        let mut data = [0; 4];

        function().read_config(0, &mut data);

        assert_eq!(data, [0xf4, 0x1a, 0x41, 0x10]);
    }

    #[test]
    fn device_configuration_ends_where_the_device_says() {
        let function = function();
        let mut data = [0; 2];

        function.read_bar(0, DEVICE + 4, &mut data);
        assert_eq!(data, [0x54, 0x55]);
        function.read_bar(0, DEVICE + 5, &mut data);

        assert_eq!(data, [0, 0]);
    }

    #[test]
    fn doorbell_write_that_reaches_us_rings_the_queue() {
        let function = function();

        function.write_bar(0, NOTIFY + 4, &[1, 0]);
        function.write_bar(0, NOTIFY + 8, &[2, 0]);

        assert!(function.doorbells()[0].doorbell.read().is_err());
        assert_eq!(function.doorbells()[1].doorbell.read().unwrap(), 1);
    }

    #[test]
    fn every_capability_lies_inside_the_bar() {
        let function = function();
        let mut offset = [0];
        function.read_config(0x34, &mut offset);
        let mut types = Vec::new();

        while offset != [0] {
            let mut cap = [0; 16];
            function.read_config(offset[0].into(), &mut cap);
            if cap[0] == VENDOR_CAPABILITY_ID {
                let start = u32::from_le_bytes(cap[8..12].try_into().unwrap());
                let len = u32::from_le_bytes(cap[12..16].try_into().unwrap());
                assert!(start + len <= BAR_BYTES);
                types.push(cap[3]);
            }
            offset = [cap[1]];
        }

        assert_eq!(types, [CAP_COMMON, CAP_ISR, CAP_NOTIFY, CAP_DEVICE]);
    }
}
