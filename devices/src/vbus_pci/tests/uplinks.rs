//! What the connector asks of a bus, seen from the side of the bus.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use vbus::abi::pci::{NO_VECTOR, NUM_EVENT_QUEUES, Negotiate, VERSION, func};
use vbus::test_utils::wait_until;
use vbus::verbs::{
    Event, EventSink, Handle, InterfaceId, ShmRequest, SignalRequest, Verbs, WakeUp,
};

use crate::vbus_pci::fake_guest::{FakeGuest, SHMS};
use crate::vbus_pci::tests::reset::use_all;
use crate::vbus_pci::{OnLoss, Uplink};
use zerocopy::FromZeros;

/// A bus in another process: the end of memory is told some time after `close`, by another thread,
/// and only to a client that is still there.
struct Slow {
    uplink: Arc<dyn Uplink>,
    clients: Mutex<Vec<Weak<SlowClient>>>,
}

struct SlowClient {
    verbs: Arc<dyn Verbs + Send + Sync>,
}

struct SlowEvents {
    slow: Arc<Slow>,
    events: Arc<dyn EventSink>,
}

impl Slow {
    fn has_client(&self) -> bool {
        let clients = self.clients.lock();
        clients
            .last()
            .is_some_and(|client| client.strong_count() > 0)
    }
}

/// The uplink, which hands itself to its event sinks.
struct SlowUplink(Arc<Slow>);

impl Uplink for SlowUplink {
    fn attach(
        &self,
        events: Arc<dyn EventSink>,
        on_loss: OnLoss,
    ) -> Result<Arc<dyn Verbs + Send + Sync>, Errno> {
        let slow = Arc::clone(&self.0);
        let verbs = self
            .0
            .uplink
            .attach(Arc::new(SlowEvents { slow, events }), on_loss)?;
        let client = Arc::new(SlowClient { verbs });
        let mut clients = self.0.clients.lock();
        clients.push(Arc::downgrade(&client));
        Ok(client)
    }
}

impl EventSink for SlowEvents {
    fn event(&self, event: Event) {
        if !matches!(event, Event::ShmClosed { .. }) {
            return self.events.event(event);
        }
        let (slow, events) = (Arc::clone(&self.slow), Arc::clone(&self.events));
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            if slow.has_client() {
                events.event(event);
            }
        });
    }
}

impl Verbs for SlowClient {
    fn open(&self, id: InterfaceId, version: u32) -> Result<Handle, Errno> {
        self.verbs.open(id, version)
    }
    fn call(&self, handle: Handle, func: u32, data: &mut [u8]) -> Result<u32, Errno> {
        self.verbs.call(handle, func, data)
    }
    fn shm(&self, handle: Handle, request: ShmRequest) -> Result<(), Errno> {
        self.verbs.shm(handle, request)
    }
    fn close(&self, handle: Handle) -> Result<(), Errno> {
        self.verbs.close(handle)
    }
}

#[test]
fn reset_waits_until_the_bus_says_that_it_has_let_go() {
    let slow = Mutex::new(None);
    let guest = FakeGuest::behind(2, |uplink| {
        let shared = Arc::new(Slow {
            uplink,
            clients: Mutex::default(),
        });
        *slow.lock() = Some(Arc::clone(&shared));
        Arc::new(SlowUplink(shared))
    });
    let slow = slow.into_inner().unwrap();
    guest.start(8);
    use_all(&guest, 2);
    let handle = guest.open(0);
    assert_eq!(handle.unwrap_err(), Errno::BUSY);

    guest.reset();

    // All four were told, the last thing before the client went.
    assert_eq!(guest.function.metrics().late_closes.get(), 0);
    let signals = &guest.function.connector().around.signals;
    assert_eq!(signals.num_taken(), NUM_EVENT_QUEUES as usize);
    wait_until("the client is gone", || !slow.has_client());
}

/// What is known of a shm: cookie, doorbell, wake-up.
type Seen = (u64, vmm_sys_util::eventfd::EventFd, Arc<dyn WakeUp>);

/// A bus that looks at each shm.
struct Spy {
    uplink: Arc<dyn Uplink>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

struct SpyClient {
    verbs: Arc<dyn Verbs + Send + Sync>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Uplink for Spy {
    fn attach(
        &self,
        events: Arc<dyn EventSink>,
        on_loss: OnLoss,
    ) -> Result<Arc<dyn Verbs + Send + Sync>, Errno> {
        Ok(Arc::new(SpyClient {
            verbs: self.uplink.attach(events, on_loss)?,
            seen: Arc::clone(&self.seen),
        }))
    }
}

impl Verbs for SpyClient {
    fn open(&self, id: InterfaceId, version: u32) -> Result<Handle, Errno> {
        self.verbs.open(id, version)
    }
    fn call(&self, handle: Handle, func: u32, data: &mut [u8]) -> Result<u32, Errno> {
        self.verbs.call(handle, func, data)
    }
    fn shm(&self, handle: Handle, request: ShmRequest) -> Result<(), Errno> {
        if let Some(SignalRequest {
            doorbell, wake_up, ..
        }) = &request.signal
        {
            let doorbell = doorbell.try_clone().unwrap();
            let seen = (request.cookie, doorbell, Arc::clone(wake_up));
            self.seen.lock().push(seen);
        }
        self.verbs.shm(handle, request)
    }
    fn close(&self, handle: Handle) -> Result<(), Errno> {
        self.verbs.close(handle)
    }
}

#[test]
fn bus_is_given_the_eventfds_of_both_directions() {
    let seen = Arc::new(Mutex::default());
    let guest = FakeGuest::behind(1, |uplink| {
        let seen = Arc::clone(&seen);
        Arc::new(Spy { uplink, seen })
    });
    guest.start(8);
    let handle = guest.open(0).unwrap();
    let mut shm = FakeGuest::shm(handle, 0, 5);
    shm.signal_offset = 8.into();
    shm.vector = 9.into();
    let with_vector = guest.share(&shm).unwrap();
    let mut shm = FakeGuest::shm(handle, 1, 5);
    shm.addr = (SHMS + 4096).into();
    shm.signal_offset = 8.into();
    shm.vector = NO_VECTOR.into();
    let without_vector = guest.share(&shm).unwrap();

    guest.ring(without_vector);
    guest.ring(without_vector);
    guest.ring(with_vector);

    let seen = seen.lock();
    let [
        (first, first_bell, first_wake),
        (second, second_bell, second_wake),
    ] = &seen[..]
    else {
        panic!("two signals")
    };
    assert_ne!(first, second, "the bus sees no cookie twice");
    assert_eq!(first_bell.read().unwrap(), 1);
    assert_eq!(second_bell.read().unwrap(), 2);
    first_wake.as_eventfd().unwrap().write(3).unwrap();
    let irqfd = guest.function.connector().around.vectors.irqfd(9).unwrap();
    assert_eq!(irqfd.read().unwrap(), 3);
    assert!(second_wake.as_eventfd().is_none());
}

#[test]
fn wake_ups_that_outlive_their_memory_do_nothing() {
    let seen = Arc::new(Mutex::default());
    let guest = FakeGuest::behind(1, |uplink| {
        let seen = Arc::clone(&seen);
        Arc::new(Spy { uplink, seen })
    });
    guest.start(8);
    let handle = guest.open(0).unwrap();
    let mut shm = FakeGuest::shm(handle, 0, 5);
    shm.signal_offset = 8.into();
    guest.share(&shm).unwrap();
    let (cookie, _, wake_up) = seen.lock().pop().unwrap();
    guest.close(handle).unwrap();
    assert_eq!(guest.events(0).len(), 1);

    wake_up.wake();
    assert!(guest.events(0).is_empty());
    guest.reset();
    wake_up.wake();
    guest.start(8);
    wake_up.wake();
    guest
        .function
        .connector()
        .events()
        .event(Event::Signal { cookie });

    assert!(guest.events(0).is_empty());
}

#[test]
fn bus_that_takes_nobody_can_be_tried_again() {
    struct Full(Arc<dyn Uplink>, Mutex<u32>);
    impl Uplink for Full {
        fn attach(
            &self,
            events: Arc<dyn EventSink>,
            on_loss: OnLoss,
        ) -> Result<Arc<dyn Verbs + Send + Sync>, Errno> {
            let mut num_refusals = self.1.lock();
            match num_refusals.checked_sub(1) {
                Some(left) => {
                    *num_refusals = left;
                    Err(Errno::DQUOT)
                }
                None => self.0.attach(events, on_loss),
            }
        }
    }
    let guest = FakeGuest::behind(1, |uplink| Arc::new(Full(uplink, Mutex::new(1))));
    guest.negotiate().unwrap();
    for queue in 0..NUM_EVENT_QUEUES {
        guest.add_queue(queue, 4).unwrap();
        guest.publish(queue, 4);
    }
    let start = func::START;

    assert_eq!(guest.call(start, &[0u8; 8]).unwrap_err(), Errno::DQUOT);
    assert_eq!(guest.open(0).unwrap_err(), Errno::INVAL);

    guest.call(start, &[0u8; 8]).unwrap();
    guest.open(0).unwrap();
}

#[test]
fn bus_learns_whether_the_guest_can_do_with_a_loss() {
    struct Noting(Arc<dyn Uplink>, Arc<Mutex<Vec<OnLoss>>>);
    impl Uplink for Noting {
        fn attach(
            &self,
            events: Arc<dyn EventSink>,
            on_loss: OnLoss,
        ) -> Result<Arc<dyn Verbs + Send + Sync>, Errno> {
            self.1.lock().push(on_loss);
            self.0.attach(events, on_loss)
        }
    }
    let noted = Arc::new(Mutex::default());
    let guest = FakeGuest::behind(0, |uplink| Arc::new(Noting(uplink, Arc::clone(&noted))));
    guest.start(4);
    guest.reset();
    let mut args = Negotiate::new_zeroed();
    args.version = VERSION.into();
    let (_, given) = guest.call(func::NEGOTIATE, &args).unwrap();
    assert_eq!(given.capabilities.get(), 0);
    for queue in 0..NUM_EVENT_QUEUES {
        guest.add_queue(queue, 4).unwrap();
    }
    guest.call(func::START, &[0u8; 8]).unwrap();

    assert_eq!(*noted.lock(), [OnLoss::Keep, OnLoss::Drop]);
}
