//! The client library against a server in the same process.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod protocol_lab;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::Duration;

use protocol_lab::{DEADLINE, ECHO, Lab, RING, readable};
use rustix::io::Errno;
use vbus::client::{Admin, ClientError, Connection, NodeKind, Ring, RingRequest, RingWaitError};
use vbus::memory::Region;
use vbus::ring::Slot;
use vbus::test_utils::{ECHO_KIND, ECHO_VERSION, add_echo, func, wait_until};
use vbus::verbs::{Event, InterfaceId, MAX_CALL_BYTES, ShmRequest, SignalRequest, Verbs, WakeUp};
use vmm_sys_util::eventfd::EventFd;

const NO_TIME: Duration = Duration::ZERO;

fn ring_request(cookie: u64) -> RingRequest {
    RingRequest {
        id: 0,
        priority: 0,
        cookie,
        num_slots: 16,
    }
}

#[test]
fn devices_are_known_after_joining() {
    let lab = Lab::new();
    let bus = lab.join();

    let devices = bus.devices().unwrap();

    let expected = [(ECHO, ECHO_KIND), (RING, "ring-echo")];
    let expected = expected.map(|(id, kind)| (id, kind.to_owned()));
    assert_eq!(devices, expected);
    for ((id, kind), place) in expected.into_iter().zip(["echo0/default", "ring0/default"]) {
        let place = place.to_owned();
        let event = bus.try_next_event().unwrap();
        assert_eq!(event, Some(Event::DeviceAdded { id, kind, place }));
    }
    assert_eq!(bus.try_next_event(), Ok(None));
    assert!(!readable(bus.as_fd(), NO_TIME));
}

#[test]
fn device_that_comes_and_goes_is_told() {
    let lab = Lab::new();
    let bus = lab.join();
    while bus.try_next_event().unwrap().is_some() {}
    let id = InterfaceId(2);

    add_echo(&lab.host, "bus0", "echo1");
    assert!(readable(bus.as_fd(), DEADLINE));
    let (kind, place) = (ECHO_KIND.to_owned(), "echo1/default".to_owned());
    assert_eq!(
        bus.next_event(DEADLINE),
        Ok(Some(Event::DeviceAdded { id, kind, place }))
    );
    lab.host.unlink("bus0", "echo1").unwrap();

    assert_eq!(
        bus.next_event(DEADLINE),
        Ok(Some(Event::DeviceDropped { id }))
    );
    assert_eq!(bus.devices().unwrap().len(), 2);
    assert_eq!(bus.open(id, ECHO_VERSION), Err(Errno::NOENT));
}

#[test]
fn calls_of_every_size_come_back_changed() {
    let lab = Lab::new();
    let bus = lab.join();
    let echo = bus.open(ECHO, ECHO_VERSION).unwrap();

    for len in [0, 1, 4096, MAX_CALL_BYTES] {
        let mut data: Vec<u8> = (0..len).map(|idx| (idx % 251) as u8).collect();
        let expected: Vec<u8> = data.iter().rev().copied().collect();
        assert_eq!(bus.call(echo, func::REVERSE, &mut data), Ok(len as u32));
        assert_eq!(data, expected);
    }
    let mut too_long = vec![0; MAX_CALL_BYTES + 1];
    assert_eq!(
        bus.call(echo, func::REVERSE, &mut too_long),
        Err(Errno::INVAL)
    );
}

#[test]
fn errors_of_the_device_come_through_and_leave_the_data() {
    let lab = Lab::new();
    let bus = lab.join();
    let echo = bus.open(ECHO, ECHO_VERSION).unwrap();
    let mut data = *b"data";

    assert_eq!(bus.call(echo, 999, &mut data), Err(Errno::INVAL));
    assert_eq!(&data, b"data");
    assert_eq!(bus.open(ECHO, ECHO_VERSION), Err(Errno::BUSY));
    assert_eq!(bus.open(ECHO, ECHO_VERSION + 1), Err(Errno::INVAL));
    assert_eq!(bus.close(echo), Ok(()));
    assert_eq!(bus.close(echo), Err(Errno::NOENT));
}

#[test]
fn threads_share_a_connection() {
    let lab = Lab::new();
    let bus = lab.join();
    let echo = bus.open(ECHO, ECHO_VERSION).unwrap();

    std::thread::scope(|scope| {
        for thread_idx in 0..6u8 {
            let bus = &bus;
            scope.spawn(move || {
                for len in 1..300 {
                    let mut data = vec![thread_idx; len];
                    data[0] = 99;
                    assert_eq!(bus.call(echo, func::REVERSE, &mut data), Ok(len as u32));
                    assert_eq!(data[len - 1], 99);
                    assert!(data[..len - 1].iter().all(|byte| *byte == thread_idx));
                }
            });
        }
        // And one that takes events meanwhile.
        for _ in 0..300 {
            let _ = bus.try_next_event().unwrap();
        }
    });
}

#[test]
fn member_is_this_process() {
    let lab = Lab::new();
    let pid = std::process::id();
    let path = format!("sys/instances/bus0/members/{pid}");
    let bus = lab.join();
    assert!(lab.host.tree().stat(&path).is_ok());

    drop(bus);

    wait_until("membership ends", || lab.host.tree().stat(&path).is_err());
}

/// A wake-up that is more than an eventfd.
#[derive(Default)]
struct Counter(AtomicU64);

impl WakeUp for Counter {
    fn wake(&self) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn wake_up_without_an_eventfd_comes_as_a_message() {
    let lab = Lab::new();
    let bus = lab.join();
    let echo = bus.open(ECHO, ECHO_VERSION).unwrap();
    let (region, _) = Region::new_shared(4096).unwrap();
    let (_, receiver) =
        vbus::signal::attach(region.clone(), 256, vbus::signal::Side::North).unwrap();
    let wake_up = Arc::new(Counter::default());
    let signal = SignalRequest {
        offset: 256,
        doorbell: EventFd::new(0).unwrap(),
        wake_up: Arc::clone(&wake_up) as Arc<dyn WakeUp>,
    };
    let request = ShmRequest {
        id: 0,
        priority: 3,
        cookie: 42,
        region: region.clone(),
        signal: Some(signal),
    };
    bus.shm(echo, request).unwrap();
    receiver.disable();
    assert!(receiver.enable());

    assert_eq!(
        bus.call(echo, func::POKE, b"x".to_vec().as_mut_slice()),
        Ok(1)
    );

    // Before the answer, so it was taken in together with it.
    assert_eq!(wake_up.0.load(SeqCst), 1);
    let mut byte = [0];
    region.read(0, &mut byte).unwrap();
    assert_eq!(&byte, b"x");
    bus.close(echo).unwrap();
    let mut events = Vec::new();
    while let Some(event) = bus.try_next_event().unwrap() {
        events.push(event);
    }
    assert_eq!(events.last(), Some(&Event::ShmClosed { cookie: 42 }));
}

#[test]
fn shared_memory_is_given_back_when_the_device_lets_go() {
    let lab = Lab::new();
    let bus = lab.join();
    let echo = bus.open(ECHO, ECHO_VERSION).unwrap();
    while bus.try_next_event().unwrap().is_some() {}
    let mut request = vbus::test_utils::shm_request(5, 1234);
    request.region = Region::new_shared(4096).unwrap().0;
    bus.shm(echo, request).unwrap();
    assert_eq!(bus.next_event(Duration::from_millis(50)), Ok(None));

    bus.call(echo, func::DROP_SHM, &mut [5]).unwrap();

    assert_eq!(
        bus.next_event(DEADLINE),
        Ok(Some(Event::ShmClosed { cookie: 1234 }))
    );
}

#[test]
fn private_memory_cannot_be_shared() {
    let lab = Lab::new();
    let bus = lab.join();
    let echo = bus.open(ECHO, ECHO_VERSION).unwrap();

    let result = bus.shm(echo, vbus::test_utils::shm_request(0, 1));

    assert_eq!(result, Err(Errno::INVAL));
}

#[test]
fn part_of_registered_memory_is_shared_by_address() {
    let lab = Lab::new();
    let bus = lab.join();
    let echo = bus.open(ECHO, ECHO_VERSION).unwrap();
    let memory = bus.add_memory(0x7000_0000, 0x4000).unwrap();
    let mut request = vbus::test_utils::shm_request(0, 1);
    request.region = memory.subregion(0x1008, 64).unwrap();
    bus.shm(echo, request).unwrap();

    bus.call(echo, func::POKE, &mut [7]).unwrap();

    let mut byte = [0];
    memory.read(0x1008, &mut byte).unwrap();
    assert_eq!(byte, [7]);
}

/// Publishes `num_slots` slots with buffers and waits until all are back.
fn round_trips(ring: &mut Ring, base: u64, num_slots: usize) {
    let mut returned = [Slot::default(); 16];
    let (mut num_published, mut num_reaped) = (0, 0);
    while num_reaped < num_slots {
        let batch = [num_published as u64, num_published as u64 + 1].map(|number| Slot {
            addr: base,
            len: 64,
            meta: [number, 0],
        });
        let batch = &batch[..batch.len().min(num_slots - num_published)];
        num_published += ring.publish(batch);
        if ring.room() >= 2 && num_published < num_slots {
            continue;
        }
        assert!(ring.wait(Some(DEADLINE)).unwrap());
        let num_back = ring.reap(&mut returned).unwrap();
        for slot in &returned[..num_back] {
            assert_eq!((slot.meta[0], slot.len), (num_reaped as u64, 64));
            num_reaped += 1;
        }
    }
    assert_eq!(ring.outstanding(), 0);
}

#[test]
fn ring_goes_round_many_times() {
    let lab = Lab::new();
    let bus = lab.join();
    let handle = bus.open(RING, 1).unwrap();
    bus.add_memory(0x10_0000, 0x1000).unwrap();
    let mut ring = Ring::share_remote(&bus, handle, ring_request(1)).unwrap();

    round_trips(&mut ring, 0x10_0000, 3001);
}

#[test]
fn ring_in_registered_memory_works_alike() {
    let lab = Lab::new();
    let bus = lab.join();
    let handle = bus.open(RING, 1).unwrap();
    let memory = bus.add_memory(0x10_0000, 0x4000).unwrap();
    let place = memory.subregion(0x1000, 0x1000).unwrap();
    let mut ring = Ring::share_remote_in(&bus, handle, ring_request(1), place).unwrap();

    round_trips(&mut ring, 0x10_0000, 300);
}

#[test]
fn ring_works_in_the_process_of_the_host() {
    let lab = Lab::new();
    let member = lab.host.join("bus0", std::process::id()).unwrap();
    let events = vbus::test_utils::EventLog::new();
    let client = member.attach(vbus::test_utils::ram(), events).unwrap();
    let handle = client.open(RING, 1).unwrap();
    let mut ring = Ring::share(&client, handle, ring_request(1)).unwrap();

    round_trips(&mut ring, 0x100, 300);
}

#[test]
fn event_loop_can_wait_for_a_ring() {
    let lab = Lab::new();
    let bus = lab.join();
    let handle = bus.open(RING, 1).unwrap();
    bus.add_memory(0, 0x1000).unwrap();
    let mut ring = Ring::share_remote(&bus, handle, ring_request(1)).unwrap();
    let mut returned = [Slot::default()];

    for _ in 0..200 {
        let slot = Slot {
            len: 8,
            ..Slot::default()
        };
        assert_eq!(ring.publish(&[slot]), 1);
        while ring.reap(&mut returned).unwrap() == 0 {
            if ring.arm().unwrap() {
                assert!(readable(ring.as_fd(), DEADLINE), "a wake-up is lost");
            }
        }
    }
}

#[test]
fn wait_for_nothing_ends_with_its_timeout() {
    let lab = Lab::new();
    let bus = lab.join();
    let handle = bus.open(RING, 1).unwrap();
    let mut ring = Ring::share_remote(&bus, handle, ring_request(1)).unwrap();

    assert_eq!(ring.wait(Some(Duration::from_millis(20))), Ok(false));
}

#[test]
fn wait_ends_when_the_device_leaves_the_bus() {
    let lab = Lab::new();
    let bus = lab.join();
    let handle = bus.open(RING, 1).unwrap();
    let mut ring = Ring::share_remote(&bus, handle, ring_request(1)).unwrap();
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || done.send(ring.wait(None)));

    lab.host.unlink("bus0", "ring0").unwrap();

    assert_eq!(
        is_done.recv_timeout(DEADLINE),
        Ok(Err(RingWaitError::Dropped))
    );
}

#[test]
fn client_that_is_cut_off_from_a_device_is_told() {
    let lab = Lab::new();
    let bus = lab.join();
    let echo = bus.open(ECHO, ECHO_VERSION).unwrap();
    while bus.try_next_event().unwrap().is_some() {}

    bus.call(echo, func::FAULT, &mut []).unwrap();

    let dropped = Event::DeviceDropped { id: ECHO };
    assert_eq!(bus.next_event(DEADLINE), Ok(Some(dropped)));
    assert_eq!(bus.call(echo, func::REVERSE, &mut []), Err(Errno::NODEV));
}

#[test]
fn clients_get_an_error_when_the_server_is_dropped() {
    let mut lab = Lab::new();
    let bus = Arc::new(lab.join());
    let handle = bus.open(RING, 1).unwrap();
    let mut ring = Ring::share_remote(&bus, handle, ring_request(1)).unwrap();
    let (waited, has_waited) = mpsc::channel();
    let (heard, has_heard) = mpsc::channel();
    std::thread::spawn(move || waited.send(ring.wait(None)));
    let listener = Arc::clone(&bus);
    std::thread::spawn(move || {
        while let Ok(Some(_)) = listener.next_event(DEADLINE) {}
        heard.send(listener.next_event(DEADLINE))
    });

    drop(lab.server.take());

    let gone = Errno::CONNRESET;
    let lost = RingWaitError::Disconnected { source: gone };
    assert_eq!(has_waited.recv_timeout(DEADLINE), Ok(Err(lost)));
    assert_eq!(has_heard.recv_timeout(DEADLINE), Ok(Err(gone)));
    assert_eq!(bus.call(handle, 0, &mut []), Err(gone));
    let error = Connection::connect(&lab.path()).unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
}

#[test]
fn shutdown_leaves_nothing_open() {
    let mut lab = Lab::new();
    let bus = lab.join();
    bus.open(ECHO, ECHO_VERSION).unwrap();
    assert_eq!(lab.census.connections.load(SeqCst), 1);

    lab.server.take().unwrap().shutdown();

    assert_eq!(lab.census.connections.load(SeqCst), 0);
    assert!(!lab.path().exists());
    assert_eq!(lab.host.remove_bus("bus1"), Ok(()));
}

fn admin(lab: &Lab) -> Admin {
    Connection::connect(&lab.path()).unwrap().admin().unwrap()
}

#[test]
fn administrator_builds_a_bus_over_the_socket() {
    let lab = Lab::new();
    let tree = admin(&lab);
    tree.mkdir("config/devices/new").unwrap();
    let bad = tree.write("config/devices/new/type", "nothing\n");
    assert_eq!(bad, Err(Errno::NOENT));
    tree.write("config/devices/new/type", "echo\n").unwrap();
    tree.mkdir("config/instances/bus2").unwrap();

    tree.symlink("/config/devices/new", "config/instances/bus2/here")
        .unwrap();

    assert_eq!(tree.rmdir("config/devices/new"), Err(Errno::BUSY));
    let link = tree.stat("config/instances/bus2/here").unwrap();
    assert_eq!((link.kind, link.mode), (NodeKind::Link, 0o777));
    assert_eq!(
        tree.readlink("config/instances/bus2/here").unwrap(),
        "../../devices/new"
    );
    let class = tree.read("sys/instances/bus2/devices/0/type").unwrap();
    assert_eq!(class, "test-echo\n");
    tree.unlink("config/instances/bus2/here").unwrap();
    tree.rmdir("config/instances/bus2").unwrap();
    tree.rmdir("config/devices/new").unwrap();
    assert_eq!(tree.stat("config/devices/new"), Err(Errno::NOENT));
}

#[test]
fn tree_over_the_socket_is_the_tree() {
    let lab = Lab::new();
    let tree = admin(&lab);

    let names: Vec<String> = tree
        .list("")
        .unwrap()
        .into_iter()
        .map(|(name, _)| name)
        .collect();

    assert_eq!(names, ["config", "sys"]);
    let here = tree.stat("sys/devices/echo0/greeting").unwrap();
    let there = lab.host.tree().stat("sys/devices/echo0/greeting").unwrap();
    assert_eq!((here.ident, here.modified), (there.ident, there.modified));
    assert_eq!((here.kind, here.mode), (NodeKind::File, 0o644));
    let too_long = "x/".repeat(4096);
    assert_eq!(tree.stat(&too_long), Err(Errno::NAMETOOLONG));
    assert_eq!(tree.write("sys/version", &too_long), Err(Errno::INVAL));
}

#[test]
fn directory_larger_than_a_message_is_listed_whole() {
    let lab = Lab::new();
    let tree = admin(&lab);
    let padding = "x".repeat(100);
    let names: Vec<String> = (0..1500)
        .map(|idx| format!("device-{idx:05}-{padding}"))
        .collect();
    for name in &names {
        lab.host.create_device(name).unwrap();
    }

    let listed = tree.list("config/devices").unwrap();

    let listed: Vec<String> = listed.into_iter().map(|(name, _)| name).collect();
    assert_eq!(listed[..1500], names[..]);
    assert_eq!(listed.len(), 1502);
}
