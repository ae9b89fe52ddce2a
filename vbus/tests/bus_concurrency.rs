//! Many administrators and clients at once, many objects, many cycles.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use vbus::Errno;
use vbus::bus::Host;
use vbus::test_utils::{
    ECHO_VERSION, EchoClass, EventLog, add_echo, echo_host, func, ram, shm_request, wait_until,
};
use vbus::tree::Tree;
use vbus::verbs::{Event, InterfaceId, Verbs};

const NUM_DEVICES: u64 = 6;
const NUM_BUSES: u64 = 3;

/// Numbers that look random (xorshift64), the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn assert_one_of(result: Result<(), Errno>, expected: &[Errno]) {
    if let Err(errno) = result {
        assert!(
            expected.contains(&errno),
            "{errno}, not one of {expected:?}"
        );
    }
}

/// For as long as there are clients.
fn administrate(tree: &Tree, seed: u64, num_clients: &AtomicUsize) {
    let mut random = Random(seed);
    while num_clients.load(SeqCst) > 0 {
        let device = format!("d{}", random.below(NUM_DEVICES));
        let bus = format!("b{}", random.below(NUM_BUSES));
        let link = format!("config/instances/{bus}/{device}");
        let device_path = format!("config/devices/{device}");
        match random.below(8) {
            0 => assert_one_of(tree.mkdir(&device_path), &[Errno::EXIST]),
            1 => {
                let result = tree.write(&format!("{device_path}/type"), b"echo\n");
                assert_one_of(result, &[Errno::NOENT, Errno::BUSY]);
            }
            2 => assert_one_of(tree.rmdir(&device_path), &[Errno::NOENT, Errno::BUSY]),
            3 => {
                let result = tree.mkdir(&format!("config/instances/{bus}"));
                assert_one_of(result, &[Errno::EXIST]);
            }
            4 => {
                let result = tree.rmdir(&format!("config/instances/{bus}"));
                assert_one_of(result, &[Errno::NOENT, Errno::BUSY]);
            }
            5 | 6 => {
                let result = tree.symlink(&format!("/{device_path}"), &link);
                let expected = [Errno::NOENT, Errno::EXIST, Errno::INVAL, Errno::BUSY];
                assert_one_of(result, &expected);
            }
            _ => assert_one_of(tree.unlink(&link), &[Errno::NOENT, Errno::BUSY]),
        }
    }
}

/// Ids that the client can open, by what it was told: no id comes twice, none goes that was not there.
fn follow(events: Vec<Event>, present: &mut Vec<InterfaceId>, last: &mut Option<InterfaceId>) {
    for event in events {
        match event {
            Event::DeviceAdded { id, .. } => {
                assert!(*last < Some(id), "{id} after {last:?}");
                *last = Some(id);
                present.push(id);
            }
            Event::DeviceDropped { id } => {
                let idx = present.iter().position(|own| *own == id);
                present.swap_remove(idx.expect("dropped twice, or never added"));
            }
            Event::DeviceLost { .. } => panic!("a host does not say that"),
            Event::Signal { .. } | Event::ShmClosed { .. } => {}
        }
    }
}

/// Until it was connected once, at least.
fn come_and_go(host: &Arc<Host>, pid: u32) {
    let mut random = Random(u64::from(pid) * 77);
    let (mut num_rounds, mut num_opened) = (0, 0);
    while num_rounds < 300 || num_opened == 0 {
        num_rounds += 1;
        let Ok(member) = host.join(&format!("b{}", random.below(NUM_BUSES)), pid) else {
            thread::yield_now();
            continue;
        };
        let log = EventLog::new();
        let client = member.attach(ram(), log.clone()).unwrap();
        let (mut present, mut last) = (Vec::new(), None);
        for cookie in 0..20 {
            follow(log.take(), &mut present, &mut last);
            let Some(id) = present.last() else {
                continue;
            };
            let handle = match client.open(*id, ECHO_VERSION) {
                Ok(handle) => handle,
                Err(Errno::NOENT | Errno::BUSY | Errno::NODEV) => continue,
                Err(errno) => panic!("open: {errno}"),
            };
            num_opened += 1;
            let mut data = [1, 2];
            let results = [
                client.shm(handle, shm_request(0, cookie)),
                client.call(handle, func::REVERSE, &mut data).map(drop),
                client
                    .call(handle, u32::from(cookie % 5 == 4), &mut [])
                    .map(drop),
            ];
            for result in results {
                assert_one_of(result, &[Errno::NODEV]);
            }
            if cookie % 3 != 0 {
                client.close(handle).unwrap();
            }
        }
        follow(log.take(), &mut present, &mut last);
    }
}

#[test]
fn administrators_and_clients_at_once_leave_a_consistent_host() {
    let (host, census) = echo_host();
    let tree = host.tree();

    let num_clients = AtomicUsize::new(3);
    thread::scope(|scope| {
        let (host, num_clients) = (&host, &num_clients);
        for seed in 1..=3 {
            let tree = tree.clone();
            scope.spawn(move || administrate(&tree, seed * 0x9e37_79b9, num_clients));
        }
        for pid in 1..=3 {
            scope.spawn(move || {
                // Also of one that fails.
                let result = catch_unwind(AssertUnwindSafe(|| come_and_go(host, pid)));
                num_clients.fetch_sub(1, SeqCst);
                result.unwrap_or_else(|panic| resume_unwind(panic));
            });
        }
    });

    // Nobody is a member, so nothing is in use but by links.
    let state = host.state();
    for bus in &state.buses {
        let devices = tree.list(&format!("sys/instances/{}/devices", bus.name));
        assert_eq!(devices.unwrap().len(), bus.links.len());
        let members = tree.list(&format!("sys/instances/{}/members", bus.name));
        assert!(members.unwrap().is_empty());
        for link in &bus.links {
            let kind = format!("config/instances/{}/{}/type", bus.name, link.name);
            assert_eq!(tree.read(&kind).unwrap(), "echo\n");
            host.unlink(&bus.name, &link.name).unwrap();
        }
        host.remove_bus(&bus.name).unwrap();
    }
    for device in &state.devices {
        host.remove_device(&device.name).unwrap();
    }
    assert_eq!(host.state(), Default::default());
    wait_until("all devices are gone", || census.devices.load(SeqCst) == 0);
    drop((tree, host));
    assert_eq!(census.connections.load(SeqCst), 0);
    let connected = census.connected.load(SeqCst);
    assert!(connected > 0);
    assert_eq!(census.closed.load(SeqCst), connected);
    assert_eq!(census.calls_after_close.load(SeqCst), 0);
}

#[test]
fn sixty_four_buses_of_eight_devices() {
    let (host, census) = echo_host();
    let mut clients = Vec::new();
    for bus in 0..64 {
        let name = format!("bus{bus}");
        host.create_bus(&name).unwrap();
        let log = EventLog::new();
        let client = host.join(&name, bus).unwrap().attach(ram(), log.clone());
        clients.push((client.unwrap(), log));
        for device in 0..8 {
            add_echo(&host, &name, &format!("{name}-{device}"));
        }
    }

    for (client, log) in &clients {
        assert_eq!(log.take().len(), 8);
        for id in 0..8 {
            let handle = client.open(InterfaceId(id), ECHO_VERSION).unwrap();
            let mut data = [1, 2];
            assert_eq!(client.call(handle, func::REVERSE, &mut data), Ok(2));
            assert_eq!(data, [2, 1]);
        }
        let ninth = client.open(InterfaceId(8), ECHO_VERSION);
        assert_eq!(ninth, Err(Errno::NOENT));
    }

    assert_eq!(census.connections.load(SeqCst), 512);
    assert_eq!(host.tree().list("sys/devices").unwrap().len(), 512);
    let (restored, _) = echo_host();
    restored.restore(&host.state()).unwrap();
    assert_eq!(restored.state(), host.state());
    drop((clients, host));
    assert_eq!(census.connections.load(SeqCst), 0);
    assert_eq!(census.devices.load(SeqCst), 0);
}

#[test]
fn ten_thousand_cycles_leave_nothing() {
    let class = EchoClass::default();
    let census = class.census();
    let class = Arc::new(class);
    let host = Host::new();
    host.register_class(class.clone()).unwrap();
    let tree = host.tree();
    let before = Arc::strong_count(&host);

    for _ in 0..10_000 {
        tree.mkdir("config/instances/bus").unwrap();
        tree.mkdir("config/devices/a").unwrap();
        tree.write("config/devices/a/type", b"echo\n").unwrap();
        tree.symlink("../../devices/a", "config/instances/bus/a")
            .unwrap();
        assert_eq!(census.devices.load(SeqCst), 1);
        tree.unlink("config/instances/bus/a").unwrap();
        tree.rmdir("config/devices/a").unwrap();
        tree.rmdir("config/instances/bus").unwrap();
        assert_eq!(census.devices.load(SeqCst), 0);
    }

    assert_eq!(host.state(), Default::default());
    assert_eq!(Arc::strong_count(&host), before);
    assert_eq!(Arc::strong_count(&class), 2);
}
