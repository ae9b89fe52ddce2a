//! A host with the three classes, and stations on its buses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use alacrity_devices::GuestRam;
use alacrity_devices::venet::driver::{Buffers, Options, Venet};
use alacrity_devices::venet::{LoopbackClass, MacAddress, SwitchClass, TapClass};
use rustix::io::Errno;
use vbus::abi::venet::FrameMeta;
use vbus::bus::{Client, Host};
use vbus::memory::{MemoryContext, Region};
use vbus::test_utils::EventLog;
use vbus::verbs::InterfaceId;
use vm_memory::GuestAddress;

/// No wait lasts longer.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// Where stations have their buffers.
pub const BASE: u64 = 0x10_0000;

pub struct Lab {
    pub host: Arc<Host>,
    next_pid: AtomicU32,
}

pub type Station = Venet<Client>;
pub type Received = (Vec<u8>, FrameMeta);

impl Lab {
    pub fn new() -> Self {
        let host = Host::new();
        host.register_class(Arc::new(LoopbackClass)).unwrap();
        host.register_class(Arc::new(SwitchClass)).unwrap();
        host.register_class(Arc::new(TapClass::default())).unwrap();
        Lab {
            host,
            next_pid: AtomicU32::new(1),
        }
    }

    /// A device called `dev` on each of `buses`.
    pub fn with(class: &str, buses: &[&str]) -> Self {
        let lab = Self::new();
        lab.host.create_device("dev").unwrap();
        lab.host.set_type("dev", class).unwrap();
        for bus in buses {
            lab.host.create_bus(bus).unwrap();
            lab.host.link(bus, "net", "dev").unwrap();
        }
        lab
    }

    pub fn client(&self, bus: &str, memory: impl MemoryContext + 'static) -> Client {
        let pid = self.next_pid.fetch_add(1, Ordering::Relaxed);
        let member = self.host.join(bus, pid).unwrap();
        member.attach(Arc::new(memory), EventLog::new()).unwrap()
    }

    pub fn client_with_events(&self, bus: &str, ram: GuestRam) -> (Client, Arc<EventLog>) {
        let pid = self.next_pid.fetch_add(1, Ordering::Relaxed);
        let member = self.host.join(bus, pid).unwrap();
        let log = EventLog::new();
        (
            member.attach(Arc::new(ram), Arc::clone(&log) as _).unwrap(),
            log,
        )
    }

    /// A station with its link down.
    pub fn open(&self, bus: &str, options: Options) -> Station {
        let len = options.buffer_bytes();
        let ram = GuestRam::from_ranges(&[(GuestAddress(BASE), len)]).unwrap();
        let region = Region::from_ram(&ram, GuestAddress(BASE), len).unwrap();
        let buffers = Buffers { region, base: BASE };
        Venet::open(self.client(bus, ram), InterfaceId(0), buffers, options).unwrap()
    }

    /// A station with its link up.
    pub fn station(&self, bus: &str, options: Options) -> Station {
        let station = self.open(bus, options);
        station.link_up().unwrap();
        station
    }

    pub fn get(&self, attribute: &str) -> String {
        let path = format!("sys/devices/dev/{attribute}");
        self.host.tree().read(&path).unwrap().trim_end().to_owned()
    }

    pub fn set(&self, attribute: &str, value: &str) -> Result<(), Errno> {
        let path = format!("sys/devices/dev/{attribute}");
        self.host.tree().write(&path, value.as_bytes())
    }

    pub fn count(&self, counter: &str) -> u64 {
        self.get(counter).parse().unwrap()
    }

    /// A counter of the switch's port on `bus`.
    pub fn port_count(&self, bus: &str, counter: &str) -> u64 {
        let table = self.get("ports");
        let line = table
            .lines()
            .find(|line| line.starts_with(&format!("{bus} ")));
        let key = format!("{counter}=");
        let field = line
            .unwrap()
            .split(' ')
            .find_map(|field| field.strip_prefix(&key));
        field.unwrap().parse().unwrap()
    }
}

/// Large buffers.
pub fn jumbo() -> Options {
    Options {
        num_slots: 16,
        rx_buffer_bytes: 66_000,
        tx_buffer_bytes: 66_000,
        ..Options::default()
    }
}

pub fn small() -> Options {
    Options {
        num_slots: 16,
        ..Options::default()
    }
}

/// Waits until `condition` is true.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The next `num_frames` frames.
pub fn receive(station: &mut Station, num_frames: usize) -> Vec<Received> {
    let start = Instant::now();
    let mut frames = Vec::new();
    while frames.len() < num_frames {
        let left = num_frames - frames.len();
        let num_received = station
            .receive(left, |bytes, meta| frames.push((bytes.to_vec(), *meta)))
            .unwrap();
        if num_received == 0 {
            station.wait_receive(Duration::from_millis(100)).unwrap();
        }
        let num_there = frames.len();
        assert!(start.elapsed() < DEADLINE, "{num_there} of {num_frames}");
    }
    frames
}

/// All frames that are there now.
pub fn drain(station: &mut Station) -> Vec<Received> {
    let mut frames = Vec::new();
    station
        .receive(usize::MAX, |bytes, meta| {
            frames.push((bytes.to_vec(), *meta))
        })
        .unwrap();
    frames
}

/// Sends frames, and waits until the device is done with them.
pub fn send(station: &mut Station, frames: &[&[u8]]) {
    assert_eq!(station.send(frames).unwrap(), frames.len());
    settle(station);
}

/// Waits until the device has taken all frames.
pub fn settle(station: &mut Station) {
    let mut most = 0;
    wait_for("the device takes all frames", || {
        let room = station.room().unwrap();
        most = most.max(room);
        room == station.num_slots()
    });
}

pub fn mac(n: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 1, n])
}

pub const BROADCAST: MacAddress = MacAddress([0xff; 6]);

/// A frame of `len` bytes with a private EtherType.
pub fn frame(to: MacAddress, from: MacAddress, len: usize) -> Vec<u8> {
    let mut frame = to.0.to_vec();
    frame.extend(from.0);
    frame.extend([0x88, 0xb5]);
    frame.extend((14..len).map(|n| n as u8));
    frame.truncate(len);
    frame
}
