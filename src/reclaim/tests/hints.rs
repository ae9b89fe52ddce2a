//! The device `page-hints` on memory that is taken: its rings too.

use std::time::{Duration, Instant};

use alacrity_devices::hints::{HintsHandle, NotReleased};
use alacrity_devices::vbus_pci::OnLoss;
use vbus::abi::RING_SIGNAL_OFFSET;
use vbus::abi::hints::{VERSION, feature, func, shm_id};
use vbus::memory::Region;
use vbus::ring::{Geometry, North, Slot};
use vbus::signal::{self, SignalSender};
use vbus::verbs::{
    Event, EventSink, Handle, InterfaceId, ShmRequest, SignalRequest, Verbs, WakeUp,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::*;
use crate::reclaim::release::GuestMemory;
use crate::uplink::EmbeddedBus;

const NUM_SLOTS: u32 = 16;
/// Pages of the rings and of the table.
const RELEASE_PAGE: u64 = 600;
const EVENT_PAGE: u64 = 601;
const TABLE_PAGE: u64 = 602;

/// Nobody looks at events here.
struct NoEvents;

impl EventSink for NoEvents {
    fn event(&self, _event: Event) {}
}

struct Ring {
    north: North,
    sender: SignalSender<Region>,
    doorbell: EventFd,
}

struct Guest {
    setup: Setup,
    verbs: Arc<dyn Verbs + Send + Sync>,
    connection: Handle,
    hints: HintsHandle,
    release: Ring,
    _events: Ring,
    _bus: EmbeddedBus,
}

impl Guest {
    fn new() -> Option<Self> {
        let setup = Setup::new()?;
        let mut bus = EmbeddedBus::open(&[]).unwrap();
        let keeper = GuestMemory::new(Arc::clone(&setup.reclaimer), Vec::new());
        let hints = bus.add_hints(Arc::new(keeper)).unwrap();
        let uplink = bus.uplink(setup.ram.clone());
        let verbs = uplink.attach(Arc::new(NoEvents), OnLoss::default());
        let verbs = verbs.unwrap();
        let connection = verbs.open(InterfaceId(0), VERSION).unwrap();
        let mut hello = [0; 16];
        hello[0] = (feature::RELEASE | feature::TABLE) as u8;
        verbs.call(connection, func::HELLO, &mut hello).unwrap();
        let share = |id, page, signal| {
            let gpa = GuestAddress(page * PAGE_LEN);
            let region = Region::from_ram(&setup.ram, gpa, 4096).unwrap();
            let request = ShmRequest {
                id,
                priority: 0,
                cookie: page,
                region,
                signal,
            };
            verbs.shm(connection, request).unwrap();
        };
        let ring = |id, page| {
            let gpa = GuestAddress(page * PAGE_LEN);
            let region = Region::from_ram(&setup.ram, gpa, 4096).unwrap();
            let geometry = Geometry::new(NUM_SLOTS).unwrap();
            let north = North::create(region.clone(), geometry).unwrap();
            let new_event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
            let doorbell = new_event();
            let signal = SignalRequest {
                offset: RING_SIGNAL_OFFSET as u32,
                doorbell: doorbell.try_clone().unwrap(),
                wake_up: Arc::new(new_event()) as Arc<dyn WakeUp>,
            };
            share(id, page, Some(signal));
            let ends = signal::attach(region, RING_SIGNAL_OFFSET, signal::Side::North);
            Ring {
                north,
                sender: ends.unwrap().0,
                doorbell,
            }
        };
        let release = ring(shm_id::RELEASE_RING, RELEASE_PAGE);
        let mut events = ring(shm_id::EVENT_RING, EVENT_PAGE);
        share(shm_id::TABLE, TABLE_PAGE, None);
        events.publish(&[Slot::default(); 8]);
        verbs.call(connection, func::START, &mut []).unwrap();
        Some(Guest {
            setup,
            verbs,
            connection,
            hints,
            release,
            _events: events,
            _bus: bus,
        })
    }

    /// Gives away `num_pages` from `page` on.
    fn give(&mut self, page: u64, num_pages: u64) {
        self.release.publish(&[Slot {
            addr: page * PAGE_LEN,
            len: (num_pages * PAGE_LEN) as u32,
            meta: [0, 0],
        }]);
    }

    fn wait_reaped(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.release.north.reap(&mut [Slot::default()]).unwrap() == 0 {
            assert!(Instant::now() < deadline, "no slot came back");
            std::thread::yield_now();
        }
    }
}

impl Ring {
    fn publish(&mut self, slots: &[Slot]) {
        assert_eq!(self.north.publish(slots), slots.len());
        if self.sender.inject() {
            self.doorbell.write(1).unwrap();
        }
    }
}

#[test]
fn rings_that_are_swapped_out_are_served() {
    let Some(mut guest) = Guest::new() else {
        return;
    };
    for round in 0..50 {
        for page in 0..16 {
            guest.setup.write(page, round + 1);
        }
        guest.setup.swap_out();
        guest.give(0, 16);
        guest.setup.swap_out();
        let result = guest.hints.release_now(Duration::ZERO);
        assert!(matches!(
            result,
            Err(NotReleased::Late { .. } | NotReleased::NoSlot)
        ));
        assert!(guest.hints.hints(0..NUM_PAGES).is_empty());
        guest.wait_reaped();
        let found = guest.setup.read(7);
        assert!(found == 0 || found == round + 1, "{found}");
    }
    let metrics = guest.setup.reclaimer.metrics();
    assert!(metrics.swapped_in.get() > 0);
    assert_eq!(metrics.mended.get(), 0);
    guest
        .verbs
        .call(guest.connection, func::STOP, &mut [])
        .unwrap();
}

#[test]
fn guest_that_gives_away_its_rings_while_they_are_watched_harms_itself() {
    for (page, num_pages) in [(RELEASE_PAGE, 1), (EVENT_PAGE, 1), (0, NUM_PAGES)] {
        let Some(mut guest) = Guest::new() else {
            return;
        };
        guest.setup.swap_out();
        // Beyond the first lap zeros are no empty slot any more.
        for _ in 0..NUM_SLOTS * 2 {
            guest.give(0, 1);
            guest.wait_reaped();
        }
        let hints = guest.hints.clone();
        let metrics = hints.metrics();
        // Kept: who brought a page of it back has not let go of it yet.
        let num_served = || metrics.taken_blocks.get() + metrics.kept_blocks.get();
        let num_before = num_served();
        guest.give(page, num_pages);
        let deadline = Instant::now() + Duration::from_secs(20);
        while num_served() == num_before {
            assert!(Instant::now() < deadline, "nobody serves it");
            std::thread::yield_now();
        }
        guest.release.doorbell.write(1).unwrap();
        let _ = guest.hints.release_now(Duration::ZERO);
        assert!(guest.hints.hints(0..NUM_PAGES).is_empty());

        // Whether it was cut off or not, all of it ends.
        guest.verbs.close(guest.connection).unwrap();
        assert_eq!(*guest.setup.failures.lock(), Vec::<String>::new());
    }
}
