//! The common configuration structure: any driver against a device that checks what it is handed.
#![no_main]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alacrity_devices::GuestRam;
use alacrity_devices::test_utils::fake_interrupt;
use alacrity_devices::virtio::transport::common::CommonConfig;
use alacrity_devices::virtio::{ActivateError, Activation, VirtioDevice};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use virtio_queue::QueueT;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const OFFERED: u64 = 0x0000_0001_3000_0021;
const VERSION_1: u64 = 1 << 32;
const QUEUE_SIZES: [u16; 3] = [1, 16, 256];
const STATUS: u64 = 0x14;

/// What the driver does next.
#[derive(Debug, Arbitrary)]
enum Op {
    Read {
        offset: u8,
        len: u8,
    },
    Write {
        offset: u8,
        value: u64,
        len: u8,
    },
    /// A write that means something, for the fuzzer to get further.
    Register {
        register: Register,
        value: u64,
    },
    /// What a driver that knows its way does, up to `FEATURES_OK`.
    Negotiate {
        features: u64,
    },
    /// Enables a queue whose rings start at multiples of 256.
    Queue {
        queue_idx: u8,
        size_exp: u8,
        rings: [u8; 3],
    },
    DriverOk,
    Ring(u16),
    /// The device finds a fault.
    Fault,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Register {
    FeatureSelect,
    Features,
    Status,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    Desc,
    Avail,
    Used,
}

impl Register {
    fn offset_and_len(self) -> (u64, usize) {
        match self {
            Register::FeatureSelect => (0x08, 4),
            Register::Features => (0x0c, 4),
            Register::Status => (STATUS, 1),
            Register::QueueSelect => (0x16, 2),
            Register::QueueSize => (0x18, 2),
            Register::QueueVector => (0x1a, 2),
            Register::QueueEnable => (0x1c, 2),
            Register::Desc => (0x20, 8),
            Register::Avail => (0x28, 8),
            Register::Used => (0x30, 8),
        }
    }
}

struct Device {
    is_active: Arc<AtomicBool>,
    fails: bool,
}

impl VirtioDevice for Device {
    fn device_type(&self) -> u16 {
        1
    }
    fn queue_max_sizes(&self) -> Vec<u16> {
        QUEUE_SIZES.into()
    }
    fn device_features(&self) -> u64 {
        OFFERED & !VERSION_1
    }
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        assert!(!self.is_active.load(Ordering::Relaxed), "activated twice");
        assert_eq!(
            activation.features & !OFFERED,
            0,
            "a feature nobody offered"
        );
        assert_ne!(activation.features & VERSION_1, 0, "a legacy driver");
        assert_eq!(activation.interrupt.device_status(), 0, "needs a reset");
        for active in &activation.queues {
            let max_size = QUEUE_SIZES[usize::from(active.index)];
            assert!(active.queue.size().is_power_of_two());
            assert!(active.queue.size() <= max_size);
            assert!(active.queue.is_valid(&activation.ram));
        }
        if self.fails {
            return Err(ActivateError::QueueMissing { index: 0 });
        }
        self.is_active.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn reset(&mut self) {
        self.is_active.store(false, Ordering::Relaxed);
    }
}

fuzz_target!(|input: (bool, Vec<Op>)| {
    let (fails, ops) = input;
    let ranges = [(GuestAddress(0), 0x8000), (GuestAddress(0x1_0000), 0x8000)];
    let ram = GuestRam::from_ranges(&ranges).expect("the host has 64 KiB");
    let is_active = Arc::new(AtomicBool::new(false));
    let device = Device {
        is_active: Arc::clone(&is_active),
        fails,
    };
    let doorbells = QUEUE_SIZES
        .map(|_| EventFd::new(EFD_NONBLOCK).expect("the host has file descriptors"))
        .into();
    let interrupt = fake_interrupt(QUEUE_SIZES.len());
    let mut common = CommonConfig::new(Box::new(device), Arc::clone(&interrupt), ram, doorbells)
        .expect("the sizes are powers of two");
    for op in ops {
        match op {
            Op::Read { offset, len } => {
                let mut data = [0; 8];
                common.read(offset.into(), &mut data[..usize::from(len % 9)]);
            }
            Op::Write { offset, value, len } => {
                common.write(offset.into(), &value.to_le_bytes()[..usize::from(len % 9)]);
            }
            Op::Register { register, value } => {
                let (offset, len) = register.offset_and_len();
                common.write(offset, &value.to_le_bytes()[..len]);
            }
            Op::Negotiate { features } => {
                let features = features & OFFERED | VERSION_1;
                common.write(STATUS, &[3]);
                common.write(0x08, &0u32.to_le_bytes());
                common.write(0x0c, &features.to_le_bytes()[..4]);
                common.write(0x08, &1u32.to_le_bytes());
                common.write(0x0c, &features.to_le_bytes()[4..]);
                common.write(STATUS, &[0xb]);
            }
            Op::Queue {
                queue_idx,
                size_exp,
                rings,
            } => {
                common.write(0x16, &u16::from(queue_idx % 4).to_le_bytes());
                common.write(0x18, &(1u16 << (size_exp % 16)).to_le_bytes());
                for (offset, ring) in [0x20, 0x28, 0x30].into_iter().zip(rings) {
                    common.write(offset, &(u64::from(ring) << 8).to_le_bytes());
                }
                common.write(0x1c, &1u16.to_le_bytes());
            }
            Op::DriverOk => common.write(STATUS, &[0xf]),
            Op::Ring(queue_idx) => common.ring(queue_idx.into()),
            Op::Fault => interrupt.needs_reset(&std::fmt::Error),
        }
        let mut status = [0];
        common.read(STATUS, &mut status);
        if status == [0] {
            assert!(
                !is_active.load(Ordering::Relaxed),
                "active without a driver"
            );
        }
    }
    drop(common);
    assert!(
        !is_active.load(Ordering::Relaxed),
        "a dropped device is stopped"
    );
});
