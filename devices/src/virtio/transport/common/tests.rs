//! A driver's conversation with the common configuration, well-behaved and not.

use parking_lot::Mutex;
use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::test_utils::{count_warnings, fake_interrupt};

const ACKNOWLEDGE_DRIVER: u8 = 3;
const FEATURE: u64 = 1 << 5;

/// What a fake device saw.
#[derive(Default)]
struct Log {
    activations: Vec<(u64, usize)>,
    num_resets: usize,
}

struct FakeDevice(Arc<Mutex<Log>>);

impl VirtioDevice for FakeDevice {
    fn device_type(&self) -> u16 {
        4
    }
    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![16, 16]
    }
    fn device_features(&self) -> u64 {
        FEATURE
    }
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let entry = (activation.features, activation.queues.len());
        self.0.lock().activations.push(entry);
        Ok(())
    }
    fn reset(&mut self) {
        self.0.lock().num_resets += 1;
    }
}

fn common() -> (CommonConfig, Arc<Mutex<Log>>) {
    let log = Arc::default();
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    let doorbells = (0..2)
        .map(|_| EventFd::new(EFD_NONBLOCK).unwrap())
        .collect();
    let device = Box::new(FakeDevice(Arc::clone(&log)));
    let common = CommonConfig::new(device, fake_interrupt(2), ram, doorbells).unwrap();
    (common, log)
}

fn negotiate(common: &mut CommonConfig, features: u64) {
    common.write(0x14, &[ACKNOWLEDGE_DRIVER]);
    for (select, word) in [(0u32, features as u32), (1, (features >> 32) as u32)] {
        common.write(0x08, &select.to_le_bytes());
        common.write(0x0c, &word.to_le_bytes());
    }
    common.write(0x14, &[ACKNOWLEDGE_DRIVER | STATUS_FEATURES_OK]);
}

fn enable_queue(common: &mut CommonConfig, queue_idx: u16, desc_table: u64) {
    common.write(0x16, &queue_idx.to_le_bytes());
    common.write(0x20, &desc_table.to_le_bytes());
    common.write(0x28, &0x2000u64.to_le_bytes());
    common.write(0x30, &0x3000u64.to_le_bytes());
    common.write(0x1c, &1u16.to_le_bytes());
}

fn status(common: &CommonConfig) -> u8 {
    let mut data = [0];
    common.read(0x14, &mut data);
    data[0]
}

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const OK: u8 = ACKNOWLEDGE_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK;

#[test]
fn driver_ok_activates_with_the_enabled_queues_only() {
    let (mut common, log) = common();

    negotiate(&mut common, VERSION_1 | FEATURE);
    enable_queue(&mut common, 1, 0x1000);
    common.write(0x14, &[OK]);

    assert_eq!(log.lock().activations, [(VERSION_1 | FEATURE, 1)]);
    assert_eq!(status(&common), OK);
}

#[test]
fn features_we_did_not_offer_are_refused() {
    let (mut common, _log) = common();

    negotiate(&mut common, VERSION_1 | 1);

    assert_eq!(status(&common), ACKNOWLEDGE_DRIVER);
}

#[test]
fn legacy_driver_without_version_1_is_refused() {
    let (mut common, _log) = common();

    negotiate(&mut common, FEATURE);

    assert_eq!(status(&common), ACKNOWLEDGE_DRIVER);
}

#[test]
fn rings_outside_ram_need_a_reset_and_never_activate() {
    let (mut common, log) = common();

    negotiate(&mut common, VERSION_1);
    enable_queue(&mut common, 0, 0x10_0000);
    common.write(0x14, &[OK]);

    let needs_reset = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
    assert_eq!(status(&common), OK | needs_reset);
    assert!(log.lock().activations.is_empty());
}

#[test]
fn device_that_needs_a_reset_is_not_activated_before_it() {
    let (mut common, log) = common();
    negotiate(&mut common, VERSION_1);
    enable_queue(&mut common, 0, 0x1000);
    common.interrupt.needs_reset(&std::fmt::Error);

    common.write(0x14, &[OK]);

    assert!(log.lock().activations.is_empty());
}

#[test]
fn driver_that_gives_up_again_and_again_is_logged_sparsely() {
    let (mut common, _log) = common();

    let num_warnings = count_warnings(|| {
        for _ in 0..100 {
            common.write(0x14, &[STATUS_FAILED]);
            common.write(0x14, &[ACKNOWLEDGE_DRIVER]);
        }
    });

    assert!((1..10).contains(&num_warnings), "{num_warnings} warnings");
}

#[test]
fn reset_stops_the_device_and_clears_what_the_driver_set() {
    let (mut common, log) = common();
    negotiate(&mut common, VERSION_1);
    enable_queue(&mut common, 0, 0x1000);
    common.write(0x14, &[OK]);

    common.write(0x14, &[0]);

    let mut is_ready = [0xff; 2];
    common.read(0x1c, &mut is_ready);
    assert_eq!(log.lock().num_resets, 1);
    assert_eq!(status(&common), 0);
    assert_eq!(is_ready, [0, 0]);
}

#[test]
fn enabled_queue_keeps_its_addresses() {
    let (mut common, _log) = common();
    enable_queue(&mut common, 0, 0x1000);

    common.write(0x20, &0x4000u32.to_le_bytes());

    let mut data = [0; 4];
    common.read(0x20, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x1000);
}

#[test]
fn queue_that_does_not_exist_has_size_zero() {
    let (mut common, _log) = common();

    common.write(0x16, &7u16.to_le_bytes());

    let mut data = [0xff; 2];
    common.read(0x18, &mut data);
    assert_eq!(data, [0, 0]);
}

proptest! {
    #[test]
    fn any_register_traffic_leaves_reset_working(
        writes in prop::collection::vec((0..0x40u64, prop::collection::vec(any::<u8>(), 1..=8)), 0..200)
    ) {
        let (mut common, _log) = common();

        for (offset, data) in &writes {
            common.write(*offset, data);
            common.read(*offset, &mut vec![0; data.len()]);
        }
        common.write(0x14, &[0]);

        prop_assert_eq!(status(&common), 0);
    }
}
