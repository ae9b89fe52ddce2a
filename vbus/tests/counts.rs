//! What a ring and its signals cost, counted: system calls and allocations.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

use std::sync::Arc;

use parking_lot::Mutex;
use vbus::Errno;
use vbus::attribute::Attribute;
use vbus::bus::Host;
use vbus::client::{Ring, RingRequest};
use vbus::device::{
    Connection, Device, DeviceClass, Interface, InterfaceOffer, Peer, Shm, ShmSignal,
};
use vbus::ring::{Slot, South};
use vbus::test_utils::allocations::{Allocations, CountingAllocator};
use vbus::test_utils::syscalls::{Calls, Syscalls};
use vbus::test_utils::{EventLog, ram};
use vbus::verbs::{InterfaceId, Verbs};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const NUM_SLOTS: u32 = 256;
const BATCH: usize = 32;
const ROUNDS: usize = 1000;

/// Shared memory that was given to a [`Keeper`].
type Kept = Arc<Mutex<Vec<Shm>>>;

/// A class, a device, an interface and a connection, which keeps what it is given for the test.
#[derive(Clone)]
struct Keeper(Kept);

impl DeviceClass for Keeper {
    fn name(&self) -> &'static str {
        "keeper"
    }

    fn create(&self, _name: &str) -> Result<Arc<dyn Device>, Errno> {
        Ok(Arc::new(self.clone()))
    }
}

impl Device for Keeper {
    fn attributes(&self) -> Vec<(&'static str, Arc<dyn Attribute>)> {
        Vec::new()
    }

    fn connect_bus(&self, _bus: &str) -> Result<Vec<InterfaceOffer>, Errno> {
        Ok(vec![InterfaceOffer {
            name: "default".into(),
            kind: "keeper",
            interface: Arc::new(self.clone()),
        }])
    }

    fn disconnect_bus(&self, _bus: &str) {}
}

impl Interface for Keeper {
    fn connect(&self, _peer: Peer) -> Result<Arc<dyn Connection>, Errno> {
        Ok(Arc::new(self.clone()))
    }
}

impl Connection for Keeper {
    fn call(&self, _func: u32, _data: &mut [u8]) -> Result<u32, Errno> {
        Err(Errno::INVAL)
    }

    fn shm(&self, shm: Shm) -> Result<(), Errno> {
        self.0.lock().push(shm);
        Ok(())
    }

    fn close(&self) {
        self.0.lock().clear();
    }
}

/// Both ends of a ring on a bus of this process.
struct Ends {
    north: Ring,
    south: South,
    signal: ShmSignal,
    slots: Vec<Slot>,
    /// Last: what is shared is let go of before it is gone.
    _host: Arc<Host>,
}

fn ends() -> Ends {
    let kept = Kept::default();
    let host = Host::new();
    host.register_class(Arc::new(Keeper(Arc::clone(&kept))))
        .unwrap();
    host.create_device("dev").unwrap();
    host.set_type("dev", "keeper").unwrap();
    host.create_bus("bus").unwrap();
    host.link("bus", "dev", "dev").unwrap();
    let member = host.join("bus", 1).unwrap();
    let client = member.attach(ram(), EventLog::new()).unwrap();
    let handle = client.open(InterfaceId(0), 1).unwrap();
    let request = RingRequest {
        id: 0,
        priority: 0,
        cookie: 0,
        num_slots: NUM_SLOTS,
    };
    let north = Ring::share(&client, handle, request).unwrap();
    let mut kept = kept.lock();
    let signal = kept[0].signal.take().unwrap();
    let south = South::attach(kept[0].region.clone()).unwrap();
    // The connection is the client's, and ends with it.
    std::mem::forget(client);
    Ends {
        north,
        south,
        signal,
        slots: vec![Slot::default(); BATCH],
        _host: host,
    }
}

impl Ends {
    /// The north publishes a batch one by one, and signals each.
    fn publish(&mut self) {
        for slot in &self.slots {
            assert_eq!(self.north.publish(std::slice::from_ref(slot)), 1);
        }
    }

    /// The south returns it one by one, and signals each.
    fn give_back(&mut self) {
        for _ in 0..BATCH {
            let mut slot = [Slot::default()];
            assert_eq!(self.south.take(&mut slot).unwrap(), 1);
            self.south.give_back_filled(&slot);
            self.signal.notify();
        }
    }

    fn reap(&mut self) {
        assert_eq!(self.north.reap(&mut self.slots).unwrap(), BATCH);
    }
}

/// What this thread calls and allocates during `work`.
fn count(what: &str, work: impl FnOnce()) -> (Calls, u64) {
    let syscalls = Syscalls::of_this_thread();
    let allocations = Allocations::of_this_thread();
    let before = syscalls.calls();
    let num_before = allocations.count();
    work();
    let num_allocations = allocations.count() - num_before;
    let calls = syscalls.calls().since(&before);
    println!("{what}: {calls}; {num_allocations} allocations");
    (calls, num_allocations)
}

#[test]
fn ring_between_two_that_are_awake_costs_no_system_call_and_no_memory() {
    let mut ends = ends();
    ends.signal.receiver.disable();

    let (calls, num_allocations) = count("ring, both awake", || {
        for _ in 0..ROUNDS {
            ends.publish();
            ends.give_back();
            ends.reap();
        }
    });

    assert_eq!(calls.total(), 0, "{calls}");
    assert_eq!(num_allocations, 0);
}

#[test]
fn who_sleeps_is_woken_by_one_write_for_any_number_of_slots() {
    const SLEEPS: u64 = 50;
    let mut ends = ends();

    let (calls, num_allocations) = count("ring, each sleeps before each batch", || {
        for _ in 0..SLEEPS {
            ends.signal.receiver.disable();
            assert!(ends.signal.receiver.enable());
            ends.publish();
            assert!(ends.north.arm().unwrap());
            ends.give_back();
            ends.reap();
        }
    });

    // A doorbell and a wake-up for each batch of 32, and one look of the client at its eventfd.
    assert_eq!(calls.of(libc::SYS_write), 2 * SLEEPS, "{calls}");
    assert_eq!(calls.of(libc::SYS_preadv2), SLEEPS, "{calls}");
    assert_eq!(calls.total(), 3 * SLEEPS, "{calls}");
    assert_eq!(num_allocations, 0);
}

#[test]
fn what_is_done_is_counted() {
    let (calls, num_allocations) = count("a turn given away and a box", || {
        let _ = std::hint::black_box(Box::new(1));
        std::thread::yield_now();
    });

    assert_eq!(calls.of(libc::SYS_sched_yield), 1, "{calls}");
    assert_eq!(num_allocations, 1);
}
