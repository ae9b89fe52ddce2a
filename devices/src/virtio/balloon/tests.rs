//! Conversations between a driver and the balloon.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use vm_memory::{Bytes, FileOffset, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::fuzz::{self, RAM_BYTES};
use super::handler::{BalloonFault, QueueKind};
use super::*;
use crate::GuestRam;
use crate::test_utils::{AVAIL_RING, QUEUE_SIZE, fake_interrupt, fixed_queue};
use crate::virtio::{ActivateError, Activation, ActiveQueue, VirtioDevice};

/// Where the driver puts page numbers.
const PFNS: u64 = 0x1000;
const REPORTING: u64 = 1 << 5;

const W: u16 = VRING_DESC_F_WRITE as u16;
const NEXT: u16 = VRING_DESC_F_NEXT as u16;

/// RAM in a file, as the VMM's is, filled from 0x8000 on.
fn ram() -> (GuestRam, std::fs::File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(RAM_BYTES as u64).unwrap();
    let backing = FileOffset::new(file.try_clone().unwrap(), 0);
    let ram =
        GuestRam::from_ranges_with_files([(GuestAddress(0), RAM_BYTES, Some(backing))]).unwrap();
    ram.write_slice(&[0xff; RAM_BYTES - 0x8000], GuestAddress(0x8000))
        .unwrap();
    (ram, file)
}

/// Makes one chain of (address, length, flags) available.
fn offer(ram: &GuestRam, chain: &[(u64, u32, u16)]) {
    for (i, (gpa, len, flags)) in chain.iter().enumerate() {
        let at = i as u64 * 16;
        let next = if i + 1 < chain.len() { NEXT } else { 0 };
        ram.write_obj(*gpa, GuestAddress(at)).unwrap();
        ram.write_obj(*len, GuestAddress(at + 8)).unwrap();
        ram.write_obj(flags | next, GuestAddress(at + 12)).unwrap();
        ram.write_obj(i as u16 + 1, GuestAddress(at + 14)).unwrap();
    }
    let avail = u64::from(AVAIL_RING);
    ram.write_obj(1u16, GuestAddress(avail + 2)).unwrap();
}

fn offer_pages(ram: &GuestRam, pfns: &[u32]) {
    for (i, pfn) in pfns.iter().enumerate() {
        ram.write_obj(*pfn, GuestAddress(PFNS + i as u64 * 4))
            .unwrap();
    }
    offer(ram, &[(PFNS, pfns.len() as u32 * 4, 0)]);
}

fn serve(kind: QueueKind, ram: &GuestRam) -> (Result<(), BalloonFault>, Arc<BalloonMetrics>) {
    let metrics = Arc::new(BalloonMetrics::default());
    let mut handler = fuzz::handler(kind, ram, &metrics);
    (fuzz::run(&mut handler), metrics)
}

fn byte_at(ram: &GuestRam, gpa: u64) -> u8 {
    ram.read_obj(GuestAddress(gpa)).unwrap()
}

#[test]
fn inflated_pages_leave_the_memory_file() {
    let (ram, file) = ram();
    file.sync_all().unwrap();
    let before = file.metadata().unwrap().blocks();
    offer_pages(&ram, &[0x12, 0x10, 0x11, 0x20]);

    let (result, metrics) = serve(QueueKind::Inflate, &ram);

    result.unwrap();
    assert_eq!(metrics.inflated_pages.get(), 4);
    assert_eq!(metrics.released_bytes.get(), 4 * 4096);
    assert_eq!(byte_at(&ram, 0x12fff), 0);
    assert_eq!(byte_at(&ram, 0x13000), 0xff);
    assert_eq!(byte_at(&ram, 0x20000), 0);
    assert!(file.metadata().unwrap().blocks() < before);
    assert_eq!(metrics.inflate_queue.interrupts.get(), 1);
}

#[test]
fn more_pages_than_a_chunk_are_all_released() {
    let (ram, _file) = ram();
    let pfns: Vec<u32> = (0x10..0x20).cycle().take(300).collect();
    offer_pages(&ram, &pfns);

    let (result, metrics) = serve(QueueKind::Inflate, &ram);

    result.unwrap();
    assert_eq!(metrics.inflated_pages.get(), 300);
    assert_eq!(byte_at(&ram, 0x1f000), 0);
}

#[test]
fn deflated_pages_are_counted_and_left_alone() {
    let (ram, _file) = ram();
    offer_pages(&ram, &[0x10, 0x11]);

    let (result, metrics) = serve(QueueKind::Deflate, &ram);

    result.unwrap();
    assert_eq!(metrics.deflated_pages.get(), 2);
    assert_eq!(metrics.released_bytes.get(), 0);
    assert_eq!(byte_at(&ram, 0x10000), 0xff);
}

#[test]
fn reported_ranges_are_released() {
    let (ram, _file) = ram();
    offer(&ram, &[(0x10000, 0x4000, W), (0x20000, 0x2000, W)]);

    let (result, metrics) = serve(QueueKind::Reporting, &ram);

    result.unwrap();
    assert_eq!(metrics.reported_bytes.get(), 0x6000);
    assert_eq!(metrics.released_bytes.get(), 0x6000);
    assert_eq!(byte_at(&ram, 0x10000), 0);
    assert_eq!(byte_at(&ram, 0x14000), 0xff);
    assert_eq!(byte_at(&ram, 0x21000), 0);
}

#[test]
fn page_outside_ram_is_a_fault() {
    let (ram, _file) = ram();
    offer_pages(&ram, &[(RAM_BYTES / 4096) as u32]);

    let fault = serve(QueueKind::Inflate, &ram).0.unwrap_err();

    assert!(
        matches!(fault, BalloonFault::NotRam { gpa: 0x4_0000, .. }),
        "{fault}"
    );
}

#[test]
fn report_outside_ram_is_a_fault() {
    let (ram, _file) = ram();
    offer(&ram, &[(RAM_BYTES as u64 - 0x1000, 0x1001, W)]);

    let fault = serve(QueueKind::Reporting, &ram).0.unwrap_err();

    assert!(
        matches!(fault, BalloonFault::NotRam { len: 0x1001, .. }),
        "{fault}"
    );
}

#[test]
fn page_numbers_outside_ram_are_a_fault() {
    let (ram, _file) = ram();
    offer(&ram, &[(RAM_BYTES as u64, 4, 0)]);

    let fault = serve(QueueKind::Inflate, &ram).0.unwrap_err();

    assert!(matches!(fault, BalloonFault::NotReadable { .. }), "{fault}");
}

#[test]
fn four_gib_of_page_numbers_are_a_fault() {
    let (ram, _file) = ram();
    offer(&ram, &[(0, u32::MAX, 0)]);

    let fault = serve(QueueKind::Inflate, &ram).0.unwrap_err();

    assert!(
        matches!(fault, BalloonFault::TooManyPages { .. }),
        "{fault}"
    );
}

fn activation(ram: &GuestRam, num_queues: u16, features: u64) -> Activation {
    let queues = (0..num_queues).map(|index| ActiveQueue {
        index,
        queue: fixed_queue(),
        doorbell: EventFd::new(EFD_NONBLOCK).unwrap(),
    });
    Activation {
        ram: ram.clone(),
        features: features | 1 << VIRTIO_RING_F_EVENT_IDX,
        queues: queues.collect(),
        interrupt: fake_interrupt(3),
    }
}

#[test]
fn target_is_in_the_configuration_and_interrupts_the_guest() {
    let (ram, _file) = ram();
    let mut device = BalloonDevice::new("balloon0".into(), Arc::default());
    let activation = activation(&ram, 3, REPORTING);
    let interrupt = activation.interrupt.clone();
    device.activate(activation).unwrap();

    device.handle().set_target(1 << 20);

    assert_eq!(interrupt.vectors()[0].irqfd().read().unwrap(), 1);
    assert_eq!(device.config(), [0, 1, 0, 0, 0, 0, 0, 0]);
    device.reset();
}

#[test]
fn actual_size_comes_from_the_guest_and_ends_with_a_reset() {
    let metrics = Arc::new(BalloonMetrics::default());
    let mut device = BalloonDevice::new("balloon0".into(), metrics.clone());

    device.write_config(4, &3u32.to_le_bytes());

    assert_eq!(device.handle().actual_bytes(), 3 * 4096);
    assert_eq!(metrics.actual_bytes.get(), 3 * 4096);
    device.reset();
    assert_eq!(device.handle().actual_bytes(), 0);
}

#[test]
fn target_itself_is_not_the_guests_to_write() {
    let mut device = BalloonDevice::new("balloon0".into(), Arc::default());

    device.write_config(0, &7u32.to_le_bytes());

    assert_eq!(device.handle().target_bytes(), 0);
}

#[test]
fn missing_reporting_queue_is_refused_only_if_negotiated() {
    let (ram, _file) = ram();
    let mut device = BalloonDevice::new("balloon0".into(), Arc::default());

    let err = device.activate(activation(&ram, 2, REPORTING)).unwrap_err();

    assert!(
        matches!(err, ActivateError::QueueMissing { index: 2 }),
        "{err}"
    );
    device.activate(activation(&ram, 2, 0)).unwrap();
}

#[test]
fn device_serves_again_after_a_reset() {
    let (ram, _file) = ram();
    let metrics = Arc::new(BalloonMetrics::default());
    let mut device = BalloonDevice::new("balloon0".into(), metrics.clone());
    for _ in 0..2 {
        let activation = activation(&ram, 3, REPORTING);
        let doorbell = activation.queues[2].doorbell.try_clone().unwrap();
        let irqfd = activation.interrupt.vectors()[3]
            .irqfd()
            .try_clone()
            .unwrap();
        // All three queues have the same rings here, but only one doorbell rings.
        offer(&ram, &[(0x10000, 0x1000, W)]);
        device.activate(activation).unwrap();
        doorbell.write(1).unwrap();
        wait_for(&irqfd);
        device.reset();
    }

    assert_eq!(metrics.reported_bytes.get(), 2 * 0x1000);
    assert_eq!(metrics.reporting_queue.doorbells.get(), 2);
}

/// Waits for an interrupt, at most 10 seconds.
fn wait_for(irqfd: &EventFd) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while irqfd.read().is_err() {
        assert!(Instant::now() < deadline, "no interrupt");
        std::thread::yield_now();
    }
}

/// A descriptor whose fields are near the borders that matter.
fn descriptor() -> impl Strategy<Value = [u8; 16]> {
    let gpa = prop_oneof![Just(PFNS), 0..0x5_0000u64, any::<u64>()];
    let len = prop_oneof![0..0x1000u32, Just(0x1_0000), any::<u32>()];
    (gpa, len, 0..8u16, 0..20u16).prop_map(|(gpa, len, flags, next)| {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&gpa.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn hostile_driver_does_not_panic_the_balloon(
        queue_idx in 0..3u16,
        table in prop::collection::vec(descriptor(), usize::from(QUEUE_SIZE)),
        ring in prop::collection::vec(0..18u16, usize::from(QUEUE_SIZE)),
        avail_idx in 0..18u16,
        pfns in prop::collection::vec(prop_oneof![0..70u32, any::<u32>()], 0..600),
    ) {
        let mut ram = vec![0; PFNS as usize];
        ram[..256].copy_from_slice(&table.concat());
        ram[0x102..0x104].copy_from_slice(&avail_idx.to_le_bytes());
        for (i, head) in ring.iter().enumerate() {
            ram[0x104 + i * 2..0x106 + i * 2].copy_from_slice(&head.to_le_bytes());
        }
        for pfn in pfns {
            ram.extend(pfn.to_le_bytes());
        }

        let _ = fuzz::serve_arbitrary(queue_idx, &ram);
    }
}
