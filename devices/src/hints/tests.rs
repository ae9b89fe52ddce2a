//! A guest's side of the device, by the rules and against them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vbus::abi::hints::{
    DiskData, HelloData, ReleaseMeta, VERSION, event, feature, func, release_kind, release_result,
    shm_id,
};
use vbus::abi::{RING_SIGNAL_OFFSET, RING_SLOTS_OFFSET};
use vbus::bus::{Client, Host};
use vbus::memory::{Region, Words};
use vbus::ring::{Geometry, North, Slot};
use vbus::signal::{self, SignalReceiver, SignalSender};
use vbus::test_utils::{EventLog, wait_until};
use vbus::verbs::{Event, Handle, InterfaceId, ShmRequest, SignalRequest, Verbs, WakeUp};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::GuestRam;

mod hostile;
mod rules;

const RAM_BYTES: u64 = 16 << 20;
/// Where the guest has its rings and its table.
const RELEASE_AT: u64 = 0x10_0000;
const EVENTS_AT: u64 = 0x11_0000;
const TABLE_AT: u64 = 0x12_0000;
const NUM_SLOTS: u32 = 64;
const ALL: u32 = feature::RELEASE | feature::TABLE | feature::DROPPED;
const LONG: Duration = Duration::from_secs(20);
/// What is missed is an error that shows as time.
const ONE_SECOND: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Memory whose released blocks are zeroed.
struct TestKeeper {
    ram: GuestRam,
    /// What was taken, in order.
    taken: Mutex<Vec<(u64, u64)>>,
    /// Pages that cannot be taken.
    pinned: Mutex<BTreeSet<u64>>,
    /// Milliseconds that each block takes.
    delay_ms: AtomicU64,
    /// Nothing may be taken any more.
    is_over: AtomicBool,
}

impl TestKeeper {
    fn taken(&self) -> Vec<(u64, u64)> {
        self.taken.lock().clone()
    }
}

impl Keeper for TestKeeper {
    fn num_pages(&self) -> u64 {
        RAM_BYTES / 4096
    }

    fn release(&self, gpa: u64, len: u64) -> Result<Released, NotRam> {
        assert!(!self.is_over.load(Relaxed), "taken after the end");
        assert!(len.is_power_of_two() && gpa.is_multiple_of(len));
        assert!((4096..=4 << 20).contains(&len));
        if gpa.checked_add(len).is_none_or(|end| end > RAM_BYTES) {
            return Err(NotRam);
        }
        thread::sleep(Duration::from_millis(self.delay_ms.load(Relaxed)));
        let pinned = self.pinned.lock();
        let mut freed_bytes = 0;
        for page in gpa / 4096..(gpa + len) / 4096 {
            if !pinned.contains(&page) {
                let zeros = [0; 4096];
                self.ram
                    .write_slice(&zeros, GuestAddress(page * 4096))
                    .unwrap();
                freed_bytes += 4096;
            }
        }
        self.taken.lock().push((gpa, len));
        Ok(Released {
            freed_bytes,
            is_whole: freed_bytes == len,
        })
    }

    fn disk(&self, serial: &[u8; 20]) -> Option<KnownDisk> {
        serial.starts_with(b"disk").then_some(KnownDisk {
            number: serial[4],
            num_sectors: 100,
        })
    }
}

/// The north's end of a ring in the guest's memory.
struct GuestRing {
    region: Region,
    north: North,
    sender: SignalSender<Region>,
    receiver: SignalReceiver<Region>,
    doorbell: EventFd,
    wake_up: Arc<EventFd>,
}

impl GuestRing {
    fn publish(&mut self, slots: &[Slot]) {
        assert_eq!(self.north.publish(slots), slots.len());
        self.ring();
    }

    fn ring(&self) {
        if self.sender.inject() {
            self.doorbell.write(1).unwrap();
        }
    }

    /// Waits for a slot to come back.
    fn wait(&mut self) -> Slot {
        let deadline = Instant::now() + LONG;
        loop {
            let mut slots = [Slot::default()];
            self.receiver.disable();
            if self.north.reap(&mut slots).unwrap() == 1 {
                return slots[0];
            }
            if self.receiver.enable() {
                let fd = vbus::eventfd::as_fd(&self.wake_up);
                let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
                poll(&mut fds, Some(&ONE_SECOND)).unwrap();
                let _ = self.wake_up.read();
            }
            assert!(Instant::now() < deadline, "no slot came back");
        }
    }

    /// A slot, if one is back.
    fn try_reap(&mut self) -> Option<Slot> {
        let mut slots = [Slot::default()];
        (self.north.reap(&mut slots).unwrap() == 1).then_some(slots[0])
    }
}

/// A guest with the device, and what its host has.
struct Guest {
    keeper: Arc<TestKeeper>,
    handle: HintsHandle,
    ram: GuestRam,
    log: Arc<EventLog>,
    client: Client,
    connection: Handle,
    _host: Arc<Host>,
}

impl Guest {
    fn new() -> Self {
        let ranges = [(GuestAddress(0), usize::try_from(RAM_BYTES).unwrap())];
        let ram = GuestRam::from_ranges(&ranges).unwrap();
        let keeper = Arc::new(TestKeeper {
            ram: ram.clone(),
            taken: Mutex::default(),
            pinned: Mutex::default(),
            delay_ms: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        });
        let class = HintsClass::new(Arc::clone(&keeper) as _);
        let handle = class.handle();
        let host = Host::new();
        host.register_class(Arc::new(class)).unwrap();
        host.create_device("hints0").unwrap();
        host.set_type("hints0", "page-hints").unwrap();
        host.create_bus("vm").unwrap();
        host.link("vm", "hints0", "hints0").unwrap();
        let member = host.join("vm", 1).unwrap();
        let log = EventLog::new();
        let client = member
            .attach(Arc::new(ram.clone()), Arc::clone(&log) as _)
            .unwrap();
        let connection = client.open(InterfaceId(0), VERSION).unwrap();
        Guest {
            keeper,
            handle,
            ram,
            log,
            client,
            connection,
            _host: host,
        }
    }

    fn call(&self, func: u32, data: &mut [u8]) -> Result<u32, Errno> {
        self.client.call(self.connection, func, data)
    }

    fn hello(&self, features: u32) -> HelloData {
        let mut hello = HelloData {
            features: features.into(),
            ..HelloData::default()
        };
        self.call(func::HELLO, hello.as_mut_bytes()).unwrap();
        hello
    }

    fn disk(&self, slot: u8, serial: &[u8]) -> Result<u64, Errno> {
        let mut disk = DiskData {
            slot,
            ..DiskData::default()
        };
        disk.serial[..serial.len()].copy_from_slice(serial);
        self.call(func::DISK, disk.as_mut_bytes())?;
        Ok(disk.num_sectors.get())
    }

    fn region(&self, gpa: u64, len: usize) -> Region {
        Region::from_ram(&self.ram, GuestAddress(gpa), len).unwrap()
    }

    fn share_ring(&self, id: u32, gpa: u64) -> Result<GuestRing, Errno> {
        let geometry = Geometry::new(NUM_SLOTS).unwrap();
        let region = self.region(gpa, geometry.len_bytes());
        let north = North::create(region.clone(), geometry).unwrap();
        let ends = signal::attach(region.clone(), RING_SIGNAL_OFFSET, signal::Side::North);
        let (sender, receiver) = ends.unwrap();
        let new_event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        let (doorbell, wake_up) = (new_event(), Arc::new(new_event()));
        let request = ShmRequest {
            id,
            priority: 0,
            cookie: id.into(),
            region: region.clone(),
            signal: Some(SignalRequest {
                offset: u32::try_from(RING_SIGNAL_OFFSET).unwrap(),
                doorbell: doorbell.try_clone().unwrap(),
                wake_up: Arc::clone(&wake_up) as Arc<dyn WakeUp>,
            }),
        };
        self.client.shm(self.connection, request)?;
        Ok(GuestRing {
            region,
            north,
            sender,
            receiver,
            doorbell,
            wake_up,
        })
    }

    fn share_table(&self, number: u32, gpa: u64, len: usize) -> Result<Region, Errno> {
        let region = self.region(gpa, len);
        let request = ShmRequest {
            id: shm_id::TABLE + number,
            priority: 0,
            cookie: 100,
            region: region.clone(),
            signal: None,
        };
        self.client.shm(self.connection, request)?;
        Ok(region)
    }

    /// All set up; the event ring has slots.
    fn start(&self) -> Driver {
        self.hello(ALL);
        let release = self.share_ring(shm_id::RELEASE_RING, RELEASE_AT).unwrap();
        let mut events = self.share_ring(shm_id::EVENT_RING, EVENTS_AT).unwrap();
        let table = self.share_table(0, TABLE_AT, 4096 * 8).unwrap();
        events.publish(&[Slot::default(); 16]);
        self.call(func::START, &mut []).unwrap();
        Driver {
            release,
            events,
            table,
        }
    }

    /// How often the client was cut off.
    fn num_cut_off(&self) -> usize {
        let is_drop = |event: &Event| matches!(event, Event::DeviceDropped { .. });
        self.log
            .take()
            .iter()
            .filter(|event| is_drop(event))
            .count()
    }

    /// Waits until the client is cut off, and then nothing is taken any more.
    fn wait_cut_off(&self, why: &str) {
        wait_until(why, || self.num_cut_off() > 0);
        self.keeper.is_over.store(true, Relaxed);
        assert_eq!(self.call(func::STOP, &mut []).unwrap_err(), Errno::NODEV);
    }
}

/// What a started guest has.
struct Driver {
    release: GuestRing,
    events: GuestRing,
    table: Region,
}

/// A slot of the release ring.
fn block(addr: u64, len: u32) -> Slot {
    Slot {
        addr,
        len,
        meta: [release_kind::FREE.into(), 0],
    }
}

/// Result and freed bytes in a slot that came back.
fn answer(slot: &Slot) -> (u8, u64) {
    let meta = ReleaseMeta::read_from_bytes(slot.meta.as_bytes()).unwrap();
    (meta.result, meta.num_freed.get())
}
