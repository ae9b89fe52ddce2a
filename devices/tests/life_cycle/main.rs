//! Life cycles of virtio devices behind their PCI function: handshakes, queues, vectors, doorbells, resets
//! and what a driver writes in between, in any order, and unplugging at any moment.
//!
//! Whatever came before, after a reset no thread of the device is left and guest memory stays as it is; and
//! a driver that then does everything right has its request served. After unplugging there is no
//! thread either.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking"
)]

mod devices;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use alacrity_devices::GuestRam;
use alacrity_devices::pci::PciFunction;
use alacrity_devices::test_utils::FakeVectors;
use alacrity_devices::virtio::transport::VirtioPci;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use devices::{Kind, Part, Peer};

/// Where things are in BAR 0.
const NOTIFY: u64 = 0x3000;
const DEVICE_CONFIG: u64 = 0x2000;
const MSIX_TABLE: u64 = 0x4000;
/// Where the first capability's offset is in configuration space, and the number of MSI-X (PCI 3.0 §6.7).
const CAPABILITIES: u16 = 0x34;
const MSIX_CAPABILITY: u16 = 0x11;
/// Registers of the common configuration (VIRTIO 1.2 §4.1.4.3) and their bytes.
const REGISTERS: [(u64, usize); 14] = [
    (0x00, 4),
    (0x08, 4),
    (0x0c, 4),
    (0x10, 2),
    (DEVICE_STATUS, 1),
    (QUEUE_SELECT, 2),
    (QUEUE_SIZE, 2),
    (QUEUE_VECTOR, 2),
    (QUEUE_ENABLE, 2),
    (QUEUE_DESC, 4),
    (QUEUE_DESC + 4, 4),
    (QUEUE_DRIVER, 4),
    (QUEUE_DEVICE, 4),
    (QUEUE_DEVICE + 4, 4),
];
const DEVICE_STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;

const FEATURES_OK: u8 = 8 | 2 | 1;
const DRIVER_OK: u8 = 4 | FEATURES_OK;
const VERSION_1: u64 = 1 << 32;

/// Descriptors of each queue.
const SIZE: u16 = 16;
/// Where the parts of a queue are, from its own start on.
const BYTES_OF_QUEUE: u64 = 0x1000;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
/// What descriptors of good requests point to.
const BUFFERS: u64 = 0x8000;
const RAM_BYTES: usize = 0x1_0000;
/// How long a thread may take to do its part; longer means never.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a driver does.
#[derive(Debug, Clone)]
enum Step {
    /// The whole start, as the specification says, with those features of the offered ones and those queues.
    Start {
        features: u64,
        queues: u8,
    },
    /// Any register, any value.
    Register {
        which: usize,
        value: u32,
    },
    /// Moves a queue to another vector.
    Vector {
        queue: u16,
        vector: u16,
    },
    /// Any field of the MSI-X table.
    MsixTable {
        field: u64,
        value: u32,
    },
    /// MSI-X as a whole on, off or masked, by the last bits of its control register.
    MsixControl {
        value: u8,
    },
    /// The device's own configuration.
    Config {
        offset: u64,
        value: u8,
    },
    /// Anything to the memory of the queues.
    Memory {
        offset: u64,
        bytes: Vec<u8>,
    },
    /// Makes `num` more heads available that nobody has looked at.
    Available {
        queue: u16,
        num: u16,
    },
    Ring {
        queue: u64,
    },
    /// Something comes from the host.
    Arrival,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let queue = 0..6u16;
    // Values that mean something are likely.
    let value = prop_oneof![0..20u32, any::<u32>(), Just(u32::from(DRIVER_OK))];
    prop_oneof![
        3 => (any::<u64>(), any::<u8>())
            .prop_map(|(features, queues)| Step::Start { features, queues }),
        3 => Just(Step::Start { features: u64::MAX, queues: u8::MAX }),
        4 => (0..REGISTERS.len(), value.clone())
            .prop_map(|(which, value)| Step::Register { which, value }),
        2 => (queue.clone(), prop_oneof![0..8u16, Just(0xffff)])
            .prop_map(|(queue, vector)| Step::Vector { queue, vector }),
        1 => (0..32u64, value).prop_map(|(field, value)| Step::MsixTable { field, value }),
        1 => any::<u8>().prop_map(|value| Step::MsixControl { value }),
        1 => (0..64u64, any::<u8>()).prop_map(|(offset, value)| Step::Config { offset, value }),
        3 => (0..6 * BYTES_OF_QUEUE, prop::collection::vec(any::<u8>(), 1..32))
            .prop_map(|(offset, bytes)| Step::Memory { offset, bytes }),
        3 => (queue.clone(), 0..20u16).prop_map(|(queue, num)| Step::Available { queue, num }),
        4 => queue.prop_map(|queue| Step::Ring { queue: queue.into() }),
        2 => Just(Step::Arrival),
        2 => Just(Step::Reset),
    ]
}

/// A driver's view of a device.
struct Driver {
    function: VirtioPci,
    ram: GuestRam,
    /// Of the device and its threads.
    name: String,
    peer: Peer,
}

impl Driver {
    fn new(kind: Kind) -> Self {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap();
        let name = format!("life-{kind:?}").to_lowercase();
        let (device, peer) = kind.make(&name);
        let function = VirtioPci::new(&name, device, ram.clone(), &FakeVectors).unwrap();
        Driver {
            function,
            ram,
            name,
            peer,
        }
    }

    fn read(&self, register: u64, len: usize) -> u32 {
        let mut bytes = [0; 4];
        self.function.read_bar(0, register, &mut bytes[..len]);
        u32::from_le_bytes(bytes)
    }

    fn write(&self, register: u64, len: usize, value: u32) {
        self.function
            .write_bar(0, register, &value.to_le_bytes()[..len]);
    }

    fn status(&self) -> u8 {
        self.read(DEVICE_STATUS, 1) as u8
    }

    fn num_queues(&self) -> u16 {
        self.read(0x12, 2) as u16
    }

    /// The offered features.
    fn offered(&self) -> u64 {
        let word = |select| {
            self.write(0, 4, select);
            u64::from(self.read(4, 4))
        };
        word(0) | word(1) << 32
    }

    /// Everything that a driver has to do before its first request (VIRTIO 1.2 §3.1.1).
    fn start(&self, features: u64, queues: u8) {
        self.write(DEVICE_STATUS, 1, 0);
        self.write(DEVICE_STATUS, 1, 3);
        let features = self.offered() & features | VERSION_1;
        for (select, word) in [(0, features), (1, features >> 32)] {
            self.write(0x08, 4, select);
            self.write(0x0c, 4, word as u32);
        }
        self.write(DEVICE_STATUS, 1, FEATURES_OK.into());
        for queue in (0..self.num_queues()).filter(|queue| queues >> queue & 1 == 1) {
            let base = u32::from(queue) * BYTES_OF_QUEUE as u32;
            self.write(QUEUE_SELECT, 2, queue.into());
            self.write(QUEUE_SIZE, 2, SIZE.into());
            self.write(QUEUE_VECTOR, 2, u32::from(queue) + 1);
            self.write(QUEUE_DESC, 4, base);
            self.write(QUEUE_DRIVER, 4, base + AVAILABLE as u32);
            self.write(QUEUE_DEVICE, 4, base + USED as u32);
            self.write(QUEUE_ENABLE, 2, 1);
        }
        self.write(DEVICE_STATUS, 1, DRIVER_OK.into());
    }

    fn store(&self, gpa: u64, value: u16) {
        self.ram.write_obj(value, GuestAddress(gpa)).unwrap();
    }

    fn load(&self, gpa: u64) -> u16 {
        self.ram.read_obj(GuestAddress(gpa)).unwrap()
    }

    fn ring(&self, queue: u64) {
        self.write(NOTIFY + 4 * queue, 2, queue as u32);
    }

    fn take(&self, step: &Step) {
        match *step {
            Step::Start { features, queues } => self.start(features, queues),
            Step::Register { which, value } => {
                let (register, len) = REGISTERS[which];
                self.write(register, len, value);
            }
            Step::Vector { queue, vector } => {
                self.write(QUEUE_SELECT, 2, queue.into());
                self.write(QUEUE_VECTOR, 2, vector.into());
            }
            Step::MsixTable { field, value } => self.write(MSIX_TABLE + 4 * field, 4, value),
            Step::MsixControl { value } => {
                let offset = self.msix_control();
                self.function.write_config(offset, &[value]);
            }
            Step::Config { offset, value } => self.write(DEVICE_CONFIG + offset, 1, value.into()),
            Step::Memory { offset, ref bytes } => {
                self.ram.write_slice(bytes, GuestAddress(offset)).unwrap();
            }
            Step::Available { queue, num } => {
                let idx = u64::from(queue) * BYTES_OF_QUEUE + AVAILABLE + 2;
                self.store(idx, self.load(idx).wrapping_add(num));
            }
            Step::Ring { queue } => self.ring(queue),
            Step::Arrival => self.peer.send(),
            Step::Reset => self.write(DEVICE_STATUS, 1, 0),
        }
        self.peer.drain();
    }

    /// Where the second byte of the MSI-X control register is.
    fn msix_control(&self) -> u16 {
        let byte = |offset| {
            let mut byte = [0];
            self.function.read_config(offset, &mut byte);
            u16::from(byte[0])
        };
        let mut capability = byte(CAPABILITIES);
        while byte(capability) != MSIX_CAPABILITY {
            capability = byte(capability + 1);
        }
        capability + 3
    }

    /// Resets the device, and checks that it is off and does nothing.
    fn assert_off_after_reset(&self) -> Result<(), TestCaseError> {
        self.write(DEVICE_STATUS, 1, 0);

        prop_assert_eq!(self.status(), 0);
        prop_assert!(
            until(|| threads(&self.name).is_empty()),
            "{:?}",
            threads(&self.name)
        );
        for queue in 0..self.num_queues() {
            self.write(QUEUE_SELECT, 2, queue.into());
            prop_assert_eq!(self.read(QUEUE_ENABLE, 2), 0);
            prop_assert_eq!(self.read(QUEUE_VECTOR, 2), 0xffff);
        }
        let memory = self.memory();
        for queue in 0..self.num_queues() {
            self.ring(queue.into());
        }
        self.peer.send();
        prop_assert!(
            memory == self.memory(),
            "guest memory changed after a reset"
        );
        Ok(())
    }

    fn memory(&self) -> Vec<u8> {
        let mut memory = vec![0; RAM_BYTES];
        self.ram.read_slice(&mut memory, GuestAddress(0)).unwrap();
        memory
    }

    /// Starts the device as a good driver does, and has one request served.
    fn assert_serves(&self, kind: Kind) -> Result<(), TestCaseError> {
        self.ram
            .write_slice(&vec![0; RAM_BYTES], GuestAddress(0))
            .unwrap();
        self.start(u64::MAX, u8::MAX);
        prop_assert_eq!(self.status(), DRIVER_OK);

        let (queue, parts) = kind.request();
        let base = u64::from(queue) * BYTES_OF_QUEUE;
        let mut buffer = BUFFERS;
        for (nth, part) in parts.iter().enumerate() {
            let is_last = nth + 1 == parts.len();
            let (bytes, is_written) = match part {
                Part::Driver(bytes) => (bytes.clone(), false),
                Part::Device(len) => (vec![0xee; *len], true),
            };
            self.ram.write_slice(&bytes, GuestAddress(buffer)).unwrap();
            let flags = u16::from(!is_last) | u16::from(is_written) << 1;
            let descriptor = base + 16 * nth as u64;
            self.ram
                .write_obj(buffer, GuestAddress(descriptor))
                .unwrap();
            self.ram
                .write_obj(bytes.len() as u32, GuestAddress(descriptor + 8))
                .unwrap();
            self.store(descriptor + 12, flags);
            self.store(descriptor + 14, nth as u16 + 1);
            buffer += bytes.len() as u64;
        }
        self.store(base + AVAILABLE + 2, 1);
        self.ring(queue.into());

        let is_served = || self.load(base + USED + 2) == 1;
        prop_assert!(until(is_served), "not served, status {}", self.status());
        let mut last = [0];
        self.ram
            .read_slice(&mut last, GuestAddress(buffer - 1))
            .unwrap();
        prop_assert!(kind.is_good(last[0]), "{last:?}");
        // Or else nobody would see that none is left.
        prop_assert!(until(|| !threads(&self.name).is_empty()), "no thread");
        Ok(())
    }
}

/// Does `steps`, resets, has a request served, does the rest, and unplugs.
fn live(kind: Kind, steps: &[Step], rest: &[Step]) -> Result<(), TestCaseError> {
    let driver = Driver::new(kind);
    for step in steps {
        driver.take(step);
    }
    driver.assert_off_after_reset()?;
    driver.assert_serves(kind)?;
    for step in rest {
        driver.take(step);
    }

    let name = driver.name.clone();
    drop(driver);
    prop_assert!(until(|| threads(&name).is_empty()), "{:?}", threads(&name));
    Ok(())
}

/// Threads of the device `name`. One that was joined may still be there for a moment, and one may be
/// left out while threads of other tests end.
fn threads(name: &str) -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|comm| comm.starts_with(name)).collect()
}

/// Waits until `condition` holds; false if it takes too long.
fn until(condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        thread::yield_now();
    }
    true
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 0..40)
}

proptest! {
    #[test]
    fn of_an_entropy_source(steps in steps(), rest in steps()) {
        live(Kind::Rng, &steps, &rest)?;
    }

    #[test]
    fn of_a_disk(steps in steps(), rest in steps()) {
        live(Kind::Blk, &steps, &rest)?;
    }

    #[test]
    fn of_a_balloon(steps in steps(), rest in steps()) {
        live(Kind::Balloon, &steps, &rest)?;
    }

    #[test]
    fn of_a_network_interface(steps in steps(), rest in steps()) {
        live(Kind::Net, &steps, &rest)?;
    }
}
