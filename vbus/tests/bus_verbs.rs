//! What a client can do, and how it ends.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use vbus::Errno;
use vbus::attribute::Attribute;
use vbus::bus::{Client, Host, Limits};
use vbus::device::{Connection, Device, DeviceClass, Interface, InterfaceOffer, Peer, Shm};
use vbus::memory::Region;
use vbus::test_utils::{
    ECHO_KIND, ECHO_NUM_SHMS, ECHO_VERSION, EchoCensus, EventLog, add_echo, echo_host, func, ram,
    shm_request, wait_until,
};
use vbus::verbs::{Event, Handle, InterfaceId, MAX_CALL_BYTES, SignalRequest, Verbs};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const ID: InterfaceId = InterfaceId(0);
const DROPPED: Event = Event::DeviceDropped { id: ID };

fn closed(cookie: u64) -> Event {
    Event::ShmClosed { cookie }
}

struct Fixture {
    host: Arc<Host>,
    census: Arc<EchoCensus>,
    client: Client,
    log: Arc<EventLog>,
}

fn attach(host: &Arc<Host>, pid: u32) -> (Client, Arc<EventLog>) {
    let log = EventLog::new();
    let member = host.join("bus", pid).unwrap();
    let client = member.attach(ram(), log.clone()).unwrap();
    log.take();
    (client, log)
}

/// A client of a bus with one echo device, `a`.
fn fixture() -> Fixture {
    let (host, census) = echo_host();
    host.create_bus("bus").unwrap();
    add_echo(&host, "bus", "a");
    let (client, log) = attach(&host, 1);
    Fixture {
        host,
        census,
        client,
        log,
    }
}

#[test]
fn call_changes_the_data_in_place() {
    let f = fixture();
    let handle = f.client.open(ID, ECHO_VERSION).unwrap();
    let mut data = *b"stressed";

    assert_eq!(f.client.call(handle, func::REVERSE, &mut data), Ok(8));

    assert_eq!(&data, b"desserts");
}

#[test]
fn what_cannot_be_named_is_not_found() {
    let f = fixture();
    let (other, _) = attach(&f.host, 2);
    let handle = f.client.open(ID, ECHO_VERSION).unwrap();

    let no_id = f.client.open(InterfaceId(1), ECHO_VERSION);
    assert_eq!(no_id, Err(Errno::NOENT));
    for handle in [handle, Handle(0), Handle(u64::MAX)] {
        assert_eq!(other.call(handle, 0, &mut []), Err(Errno::NOENT));
        assert_eq!(other.shm(handle, shm_request(0, 0)), Err(Errno::NOENT));
        assert_eq!(other.close(handle), Err(Errno::NOENT));
    }
}

#[test]
fn interface_of_another_bus_cannot_be_opened() {
    let f = fixture();
    f.host.create_bus("empty").unwrap();
    let member = f.host.join("empty", 9).unwrap();
    let client = member.attach(ram(), EventLog::new()).unwrap();

    assert_eq!(client.open(ID, ECHO_VERSION), Err(Errno::NOENT));
}

#[test]
fn refusals_of_the_device_reach_the_client() {
    let f = fixture();
    assert_eq!(f.client.open(ID, 99), Err(Errno::INVAL));
    let handle = f.client.open(ID, ECHO_VERSION).unwrap();

    assert_eq!(f.client.open(ID, ECHO_VERSION), Err(Errno::BUSY));
    assert_eq!(f.client.call(handle, 99, &mut []), Err(Errno::INVAL));
    let mut long = vec![0; MAX_CALL_BYTES + 1];
    let too_long = f.client.call(handle, func::REVERSE, &mut long);
    assert_eq!(too_long, Err(Errno::INVAL));
}

#[test]
fn handles_do_not_come_back() {
    let f = fixture();
    let first = f.client.open(ID, ECHO_VERSION).unwrap();
    f.client.close(first).unwrap();
    let second = f.client.open(ID, ECHO_VERSION).unwrap();

    assert_ne!(first, Handle(0));
    assert_ne!(first, second);
    assert_eq!(f.client.close(first), Err(Errno::NOENT));
    assert_eq!(f.census.closed.load(SeqCst), 1);
}

#[test]
fn shm_comes_back_once_when_the_connection_is_closed() {
    let f = fixture();
    let handle = f.client.open(ID, ECHO_VERSION).unwrap();
    f.client.shm(handle, shm_request(0, 70)).unwrap();
    f.client.shm(handle, shm_request(1, 71)).unwrap();

    f.client.call(handle, func::DROP_SHM, &mut [1]).unwrap();
    assert_eq!(f.log.take(), [closed(71)]);
    f.client.close(handle).unwrap();

    assert_eq!(f.log.take(), [closed(70)]);
}

#[test]
fn refused_shm_does_not_come_back() {
    let f = fixture();
    let handle = f.client.open(ID, ECHO_VERSION).unwrap();
    f.client.shm(handle, shm_request(0, 1)).unwrap();

    let again = f.client.shm(handle, shm_request(0, 2));
    let unknown = f.client.shm(handle, shm_request(ECHO_NUM_SHMS, 3));

    assert_eq!(again, Err(Errno::EXIST));
    assert_eq!(unknown, Err(Errno::INVAL));
    assert_eq!(f.log.take(), []);
}

#[test]
fn signal_has_to_be_in_the_memory() {
    let f = fixture();
    let handle = f.client.open(ID, ECHO_VERSION).unwrap();
    for offset in [4096 - 120, 4, u32::MAX] {
        let mut request = shm_request(0, 1);
        request.signal = Some(signal(offset).0);

        assert_eq!(f.client.shm(handle, request), Err(Errno::INVAL), "{offset}");
    }
}

fn signal(offset: u32) -> (SignalRequest, EventFd) {
    let wake_up = EventFd::new(EFD_NONBLOCK).unwrap();
    let request = SignalRequest {
        offset,
        doorbell: EventFd::new(EFD_NONBLOCK).unwrap(),
        wake_up: Arc::new(wake_up.try_clone().unwrap()),
    };
    (request, wake_up)
}

#[test]
fn device_wakes_the_client_through_shared_memory() {
    use vbus::signal::{Side, attach};
    let f = fixture();
    let handle = f.client.open(ID, ECHO_VERSION).unwrap();
    let mut request = shm_request(0, 1);
    let region: Region = request.region.clone();
    let (signal, wake_up) = signal(128);
    request.signal = Some(signal);
    f.client.shm(handle, request).unwrap();
    let (_, receiver) = attach(region.clone(), 128, Side::North).unwrap();
    assert!(receiver.enable());

    assert_eq!(f.client.call(handle, func::POKE, &mut [7]), Ok(1));

    assert_eq!(wake_up.read().unwrap(), 1);
    let mut byte = [0];
    region.read(0, &mut byte).unwrap();
    assert_eq!(byte, [7]);
}

#[test]
fn connections_and_shms_are_limited_per_member() {
    let (host, _) = echo_host();
    host.set_limits(Limits {
        connections: 2,
        shms: 2,
        shared_bytes: 3 * 4096,
        ..Limits::default()
    });
    host.create_bus("bus").unwrap();
    for name in ["a", "b", "c"] {
        add_echo(&host, "bus", name);
    }
    let (first, _) = attach(&host, 1);
    let (second, _) = attach(&host, 1);
    let a = first.open(InterfaceId(0), ECHO_VERSION).unwrap();
    let b = second.open(InterfaceId(1), ECHO_VERSION).unwrap();

    let third = first.open(InterfaceId(2), ECHO_VERSION);
    assert_eq!(third, Err(Errno::DQUOT));
    first.shm(a, shm_request(0, 0)).unwrap();
    let mut long = shm_request(1, 0);
    long.region = Region::new_private(3 * 4096).unwrap();
    assert_eq!(first.shm(a, long), Err(Errno::DQUOT));
    second.shm(b, shm_request(0, 0)).unwrap();
    assert_eq!(second.shm(b, shm_request(1, 0)), Err(Errno::DQUOT));

    first.close(a).unwrap();
    second.shm(b, shm_request(1, 0)).unwrap();
    first.open(InterfaceId(2), ECHO_VERSION).unwrap();
}

#[test]
fn connection_of_an_unlinked_device_is_closed_and_takes_only_close() {
    let f = fixture();
    let handle = f.client.open(ID, ECHO_VERSION).unwrap();
    f.client.shm(handle, shm_request(0, 70)).unwrap();

    f.host.unlink("bus", "a").unwrap();

    let events = f.log.take();
    assert_eq!(events.first(), Some(&DROPPED));
    let call = f.client.call(handle, func::REVERSE, &mut []);
    assert_eq!(call, Err(Errno::NODEV));
    let shm = f.client.shm(handle, shm_request(1, 0));
    assert_eq!(shm, Err(Errno::NODEV));
    assert_eq!(f.client.open(ID, ECHO_VERSION), Err(Errno::NOENT));
    // Without any help of the client.
    wait_until("it is closed", || f.census.connections.load(SeqCst) == 0);
    let later = f.log.take();
    assert!([events, later].concat().contains(&closed(70)));
    f.client.close(handle).unwrap();
    assert_eq!(f.census.closed.load(SeqCst), 1);
}

#[test]
fn removed_device_ends_although_a_client_keeps_its_handle() {
    let f = fixture();
    f.client.open(ID, ECHO_VERSION).unwrap();
    f.host.unlink("bus", "a").unwrap();
    f.host.remove_device("a").unwrap();

    wait_until("it is gone", || f.census.devices.load(SeqCst) == 0);
}

#[test]
fn faulty_client_is_cut_off_alone_until_it_attaches_anew() {
    let f = fixture();
    let (_other, other_log) = attach(&f.host, 2);
    let handle = f.client.open(ID, ECHO_VERSION).unwrap();
    f.client.shm(handle, shm_request(0, 70)).unwrap();

    f.client.call(handle, func::FAULT, &mut []).unwrap();

    let call = f.client.call(handle, func::REVERSE, &mut []);
    assert_eq!(call, Err(Errno::NODEV));
    assert_eq!(f.client.open(ID, ECHO_VERSION), Err(Errno::NODEV));
    wait_until("it is closed", || f.census.connections.load(SeqCst) == 0);
    assert_eq!(f.log.take(), [DROPPED, closed(70)]);
    assert_eq!(other_log.take(), []);
    let tree = f.host.tree();
    let read = |path| tree.read(path).unwrap();
    assert_eq!(read("sys/devices/a/faults"), "1\n");
    assert_eq!(read("sys/devices/a/connections"), "0\n");
    assert_eq!(read("sys/instances/bus/members/1/faults"), "1\n");
    assert_eq!(read("sys/instances/bus/members/1/connections"), "1\n");

    // The unlink is no news for this one.
    f.host.unlink("bus", "a").unwrap();
    assert_eq!(f.log.take(), []);
    assert_eq!(other_log.take(), [DROPPED]);
    f.host.link("bus", "a", "a").unwrap();
    f.client.open(InterfaceId(1), ECHO_VERSION).unwrap();
}

#[test]
fn client_that_attaches_anew_may_open_again() {
    let f = fixture();
    let handle = f.client.open(ID, ECHO_VERSION).unwrap();
    f.client.call(handle, func::FAULT, &mut []).unwrap();
    wait_until("it is closed", || f.census.connections.load(SeqCst) == 0);

    let (client, _) = attach(&f.host, 1);

    client.open(ID, ECHO_VERSION).unwrap();
}

#[test]
fn end_of_a_client_closes_all_that_it_has_open() {
    let f = fixture();
    add_echo(&f.host, "bus", "b");
    let a = f.client.open(ID, ECHO_VERSION).unwrap();
    f.client.open(InterfaceId(1), ECHO_VERSION).unwrap();
    f.client.shm(a, shm_request(0, 70)).unwrap();

    drop(f.client);

    assert_eq!(f.census.closed.load(SeqCst), 2);
    assert_eq!(f.census.connections.load(SeqCst), 0);
    assert!(f.log.take().contains(&closed(70)));
    f.host.unlink("bus", "a").unwrap();
    assert_eq!(f.log.take(), []);
}

type Hook<T> = Box<dyn Fn(T) -> Result<(), Errno> + Send + Sync>;

/// A device that does what a test wants when it is opened or given memory.
struct Scripted {
    connect: Hook<Peer>,
    shm: Hook<Shm>,
    closed: Mutex<u32>,
}

struct ScriptedClass(Arc<Scripted>);
struct ScriptedPart(Arc<Scripted>);

impl DeviceClass for ScriptedClass {
    fn name(&self) -> &'static str {
        "echo"
    }
    fn create(&self, _name: &str) -> Result<Arc<dyn Device>, Errno> {
        Ok(Arc::new(ScriptedPart(Arc::clone(&self.0))))
    }
}

impl Device for ScriptedPart {
    fn attributes(&self) -> Vec<(&'static str, Arc<dyn Attribute>)> {
        Vec::new()
    }
    fn connect_bus(&self, _bus: &str) -> Result<Vec<InterfaceOffer>, Errno> {
        Ok(vec![InterfaceOffer {
            name: "default".into(),
            kind: ECHO_KIND,
            interface: Arc::new(ScriptedPart(Arc::clone(&self.0))),
        }])
    }
    fn disconnect_bus(&self, _bus: &str) {}
}

impl Interface for ScriptedPart {
    fn connect(&self, peer: Peer) -> Result<Arc<dyn Connection>, Errno> {
        (self.0.connect)(peer)?;
        Ok(Arc::new(ScriptedPart(Arc::clone(&self.0))))
    }
}

impl Connection for ScriptedPart {
    fn call(&self, _func: u32, _data: &mut [u8]) -> Result<u32, Errno> {
        Ok(0)
    }
    fn shm(&self, shm: Shm) -> Result<(), Errno> {
        (self.0.shm)(shm)
    }
    fn close(&self) {
        *self.0.closed.lock().unwrap() += 1;
    }
}

/// A client of a bus with one such device.
fn scripted(
    connect: Hook<Peer>,
    shm: Hook<Shm>,
) -> (Arc<Host>, Arc<Scripted>, Client, Arc<EventLog>) {
    let script = Arc::new(Scripted {
        connect,
        shm,
        closed: Mutex::default(),
    });
    let host = Host::new();
    host.register_class(Arc::new(ScriptedClass(Arc::clone(&script))))
        .unwrap();
    host.create_bus("bus").unwrap();
    add_echo(&host, "bus", "a");
    let (client, log) = attach(&host, 1);
    (host, script, client, log)
}

#[test]
fn shm_that_is_dropped_at_once_comes_back_once() {
    let (_host, _script, client, log) = scripted(Box::new(|_| Ok(())), Box::new(|_| Ok(())));
    let handle = client.open(ID, 1).unwrap();

    client.shm(handle, shm_request(0, 5)).unwrap();

    assert_eq!(log.take(), [closed(5)]);
}

#[test]
fn priority_is_clamped() {
    let (_host, _script, client, _log) = scripted(
        Box::new(|_| Ok(())),
        Box::new(|shm| {
            assert_eq!(shm.priority, 7);
            Ok(())
        }),
    );
    let handle = client.open(ID, 1).unwrap();
    for priority in [7, 8, u32::MAX] {
        let mut request = shm_request(0, 5);
        request.priority = priority;
        client.shm(handle, request).unwrap();
    }
}

#[test]
fn fault_while_the_device_connects_leaves_no_connection() {
    let (_host, script, client, log) = scripted(
        Box::new(|peer| {
            peer.faults.report(&"bad from the start");
            Ok(())
        }),
        Box::new(|_| Ok(())),
    );

    assert_eq!(client.open(ID, 1), Err(Errno::NODEV));

    wait_until("it is closed", || *script.closed.lock().unwrap() == 1);
    assert_eq!(log.take(), [DROPPED]);
    assert_eq!(client.open(ID, 1), Err(Errno::NODEV));
}

#[test]
fn interface_that_leaves_while_the_device_connects_is_not_opened() {
    let slot = Arc::new(OnceLock::<Weak<Host>>::new());
    let unlinked = Arc::clone(&slot);
    let (host, script, client, log) = scripted(
        Box::new(move |peer| {
            let host = unlinked.get().and_then(Weak::upgrade).unwrap();
            host.unlink("bus", "a").unwrap();
            peer.faults.report(&"and bad");
            Ok(())
        }),
        Box::new(|_| Ok(())),
    );
    slot.set(Arc::downgrade(&host)).unwrap();

    assert_eq!(client.open(ID, 1), Err(Errno::NOENT));

    wait_until("it is closed", || *script.closed.lock().unwrap() == 1);
    assert_eq!(log.take(), [DROPPED]);
    host.link("bus", "a", "a").unwrap();
    let tree = host.tree();
    assert_eq!(tree.read("sys/devices/a/faults").unwrap(), "1\n");
    wait_until("it is counted out", || {
        tree.read("sys/devices/a/connections").unwrap() == "0\n"
    });
    let handles = tree.read("sys/instances/bus/members/1/connections");
    assert_eq!(handles.unwrap(), "0\n");
}

#[test]
fn faults_are_reported_once_and_not_after_the_end() {
    let reporter = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&reporter);
    let (_host, script, client, log) = scripted(
        Box::new(move |peer| {
            *kept.lock().unwrap() = Some(peer.faults);
            Ok(())
        }),
        Box::new(|_| Ok(())),
    );
    let handle = client.open(ID, 1).unwrap();
    let faults = reporter.lock().unwrap().take().unwrap();

    faults.report(&"one");
    faults.report(&"two");
    client.close(handle).unwrap();
    drop(client);
    faults.report(&"three");

    assert_eq!(log.take(), [DROPPED]);
    wait_until("it is closed", || *script.closed.lock().unwrap() == 1);
}

#[test]
fn close_waits_for_no_call_and_the_device_is_closed_after_it() {
    use std::sync::mpsc::channel;
    let (entered, wait_entered) = channel();
    let (release, wait_release) = channel::<()>();
    let (entered, wait_release) = (Mutex::new(entered), Mutex::new(wait_release));
    let (_host, script, client, log) = scripted(
        Box::new(|_| Ok(())),
        Box::new(move |_shm| {
            entered.lock().unwrap().send(()).unwrap();
            wait_release.lock().unwrap().recv().unwrap();
            Ok(())
        }),
    );
    let handle = client.open(ID, 1).unwrap();

    std::thread::scope(|scope| {
        let caller = scope.spawn(|| client.shm(handle, shm_request(0, 5)));
        wait_entered.recv().unwrap();
        client.close(handle).unwrap();
        assert_eq!(*script.closed.lock().unwrap(), 0);
        release.send(()).unwrap();
        caller.join().unwrap().unwrap();
    });

    wait_until("it is closed", || *script.closed.lock().unwrap() == 1);
    assert_eq!(log.take(), [closed(5)]);
}
