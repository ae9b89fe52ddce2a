use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use alacrity_devices::GuestRam;
use alacrity_devices::tap::Tap;
use alacrity_devices::vbus_pci::{OnLoss, Uplink};
use alacrity_devices::venet::LoopbackClass;
use alacrity_devices::venet::driver::{Buffers, DriverError, Options, Venet};
use parking_lot::Mutex;
use rustix::io::Errno;
use tempfile::TempDir;
use vbus::attribute::Attribute;
use vbus::bus::Host;
use vbus::device::{Connection, Device, DeviceClass, Interface, InterfaceOffer, Peer, Shm};
use vbus::memory::Region;
use vbus::server::Server;
use vbus::verbs::{Event, EventSink, Handle, InterfaceId, ShmRequest, Verbs};
use vm_memory::GuestAddress;

use super::daemon::DaemonUplink;
use super::*;
use crate::config::{VenetBackend, VenetConfig};

const DEADLINE: Duration = Duration::from_secs(20);
/// Where the guest of a test has its buffers.
const BASE: u64 = 0x10_0000;

/// A guest's end of an uplink.
#[derive(Clone)]
struct Guest {
    verbs: Arc<dyn Verbs + Send + Sync>,
    log: Arc<Log>,
    ram: GuestRam,
}

/// All events so far.
#[derive(Default)]
struct Log(Mutex<Vec<Event>>);

impl EventSink for Log {
    fn event(&self, event: Event) {
        self.0.lock().push(event);
    }
}

impl Verbs for Guest {
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

impl Guest {
    fn attach(uplink: &dyn Uplink, ram: &GuestRam) -> Self {
        Self::attach_with(uplink, ram, OnLoss::Keep)
    }

    fn attach_with(uplink: &dyn Uplink, ram: &GuestRam, on_loss: OnLoss) -> Self {
        let log = Arc::new(Log::default());
        Guest {
            verbs: uplink.attach(Arc::clone(&log) as _, on_loss).unwrap(),
            log,
            ram: ram.clone(),
        }
    }

    fn events(&self) -> Vec<Event> {
        self.log.0.lock().clone()
    }

    /// Ids of interfaces that came, in their order.
    fn added(&self) -> Vec<u32> {
        let events = self.events().into_iter();
        let ids = events.filter_map(|event| match event {
            Event::DeviceAdded { id, .. } => Some(id.0),
            _ => None,
        });
        ids.collect()
    }

    fn has_lost(&self, id: u32) -> bool {
        let lost = Event::DeviceLost {
            id: InterfaceId(id),
        };
        self.events().contains(&lost)
    }

    fn has_dropped(&self, id: u32) -> bool {
        let dropped = Event::DeviceDropped {
            id: InterfaceId(id),
        };
        self.events().contains(&dropped)
    }

    fn num_closed(&self) -> usize {
        let events = self.events().into_iter();
        let closed = events.filter(|event| matches!(event, Event::ShmClosed { .. }));
        closed.count()
    }

    /// A driver whose memory begins at the `nth` MiB.
    fn open(&self, id: u32, nth: u64) -> Result<Venet<Guest>, DriverError> {
        let options = Options {
            num_slots: 16,
            ..Options::default()
        };
        let base = BASE * (nth + 1);
        let len = options.buffer_bytes();
        let region = Region::from_ram(&self.ram, GuestAddress(base), len).unwrap();
        let buffers = Buffers { region, base };
        let venet = Venet::open(self.clone(), InterfaceId(id), buffers, options)?;
        venet.link_up()?;
        Ok(venet)
    }
}

#[track_caller]
fn wait_until(what: &str, mut is_met: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_met() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The next frame that `venet` receives.
#[track_caller]
fn receive(venet: &mut Venet<Guest>) -> Vec<u8> {
    let deadline = Instant::now() + DEADLINE;
    let mut frame = Vec::new();
    while frame.is_empty() {
        assert!(Instant::now() < deadline, "no frame");
        venet.wait_receive(Duration::from_millis(100)).unwrap();
        venet.receive(1, |bytes, _| frame = bytes.to_vec()).unwrap();
    }
    frame
}

fn frame(to: [u8; 6], from: [u8; 6], fill: u8) -> Vec<u8> {
    [&to[..], &from, &[8, 0], &[fill; 100]].concat()
}

fn ram() -> GuestRam {
    crate::memory::allocate(64 << 20, false).unwrap()
}

fn venet(backend: VenetBackend) -> VenetConfig {
    VenetConfig {
        backend,
        mac: None,
        mtu: None,
        host_ip: None,
        guest_ip: None,
    }
}

mod embedded {
    use alacrity_devices::hints::{Keeper, KnownDisk, NotRam, Released};
    use vbus::abi::hints;

    use super::*;

    #[test]
    fn loopback_has_its_address_and_returns_frames() {
        let config = VenetConfig {
            mac: Some("02:00:00:00:00:07".parse().unwrap()),
            mtu: Some(9000),
            ..venet(VenetBackend::Loopback)
        };
        let bus = EmbeddedBus::open(&[config]).unwrap();
        let ram = ram();
        let guest = Guest::attach(&*bus.uplink(ram.clone()), &ram);

        assert_eq!(guest.added(), [0]);
        let mut venet = guest.open(0, 0).unwrap();
        let sent = frame([0xff; 6], [2; 6], 1);
        venet.send(&[&sent]).unwrap();

        assert_eq!(receive(&mut venet), sent);
        assert_eq!(venet.mac().unwrap().to_string(), "02:00:00:00:00:07");
        let counters = bus.counters();
        assert_eq!(counters[0].0, "venet0");
        let counters = serde_json::to_value(&*counters[0].1).unwrap();
        assert_eq!(counters["tx_packets"], 1);
        assert_eq!(counters["rx_bytes"], sent.len());
    }

    #[test]
    fn interfaces_of_one_switch_reach_each_other_and_no_other_switch() {
        let switch = |name: &str| venet(VenetBackend::Switch(name.into()));
        let venets = [switch("a"), switch("b"), switch("a")];
        let bus = EmbeddedBus::open(&venets).unwrap();
        let ram = ram();
        let guest = Guest::attach(&*bus.uplink(ram.clone()), &ram);

        assert_eq!(guest.added(), [0, 1, 2]);
        // Both ports of the first switch come first.
        let mut all: Vec<_> = (0..3)
            .map(|id| guest.open(id, id.into()).unwrap())
            .collect();
        let macs: Vec<_> = all.iter().map(|one| one.mac().unwrap().0).collect();
        let wanted = [0, 2, 1].map(|idx: usize| venets[idx].effective_mac(idx).0);
        assert_eq!(macs, wanted);
        let sent = frame([0xff; 6], macs[0], 2);
        all[0].send(&[&sent]).unwrap();

        assert_eq!(receive(&mut all[1]), sent);
        let mut num_other = 0;
        all[2].receive(1, |_, _| num_other += 1).unwrap();
        assert_eq!(num_other, 0);
        let names: Vec<_> = bus.counters().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["switch-a", "switch-b"]);
    }

    struct NoMemory;

    impl Keeper for NoMemory {
        fn num_pages(&self) -> u64 {
            77
        }
        fn release(&self, _gpa: u64, _len: u64) -> Result<Released, NotRam> {
            Err(NotRam)
        }
        fn disk(&self, _serial: &[u8; hints::SERIAL_BYTES]) -> Option<KnownDisk> {
            None
        }
    }

    #[test]
    fn page_hints_are_beside_the_others_and_counted() {
        let mut bus = EmbeddedBus::open(&[venet(VenetBackend::Loopback)]).unwrap();
        let handle = bus.add_hints(Arc::new(NoMemory)).unwrap();
        assert!(bus.add_hints(Arc::new(NoMemory)).is_err(), "one for a VM");
        let ram = ram();
        let guest = Guest::attach(&*bus.uplink(ram.clone()), &ram);

        assert_eq!(guest.added(), [0, 1]);
        let opened = Verbs::open(&guest, InterfaceId(1), hints::VERSION).unwrap();
        let mut hello = [0; size_of::<hints::HelloData>()];
        Verbs::call(&guest, opened, hints::func::HELLO, &mut hello).unwrap();

        assert_eq!(hello[8..], 77u64.to_le_bytes());
        assert_eq!(handle.metrics().events.get(), 0);
        let counters = bus.counters();
        assert_eq!(counters[1].0, "hints0");
        let counters = serde_json::to_value(&*counters[1].1).unwrap();
        assert_eq!(counters["freed_bytes"], 0);
    }

    #[test]
    fn tap_that_somebody_has_is_refused_with_its_reason() {
        let name = format!("vmu{}", std::process::id() % 1_000_000);
        let Ok(_owner) = Tap::open(&name, 1) else {
            return; // No TAPs, or not for this user.
        };

        let error = EmbeddedBus::open(&[
            venet(VenetBackend::Loopback),
            venet(VenetBackend::Tap(name.clone())),
        ])
        .unwrap_err();

        let text = alacrity_devices::error::chain(&error);
        assert!(text.contains("venet1"), "{text}");
        assert!(text.contains(&name) && text.contains("in use"), "{text}");
    }

    #[test]
    fn tap_takes_its_name_mtu_and_address_and_goes_with_the_bus() {
        let name = format!("vmt{}", std::process::id() % 1_000_000);
        if Tap::open(&name, 1).is_err() {
            return; // No TAPs, or not for this user.
        }
        let config = VenetConfig {
            mtu: Some(4000),
            host_ip: Some("10.213.77.1/24".parse().unwrap()),
            ..venet(VenetBackend::Tap(name.clone()))
        };
        let class_dir = format!("/sys/class/net/{name}");
        let bus = EmbeddedBus::open(&[config]).unwrap();

        let mtu = std::fs::read_to_string(format!("{class_dir}/mtu"));
        let routes = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
        let ram = ram();
        let guest = Guest::attach(&*bus.uplink(ram.clone()), &ram);
        let mut venet = guest.open(0, 0).unwrap();
        let is_sent = venet.send(&[&frame([0xff; 6], [2; 6], 3)]).unwrap();
        venet.close().unwrap();
        drop((guest, bus));

        assert_eq!(mtu.unwrap(), "4000\n");
        assert!(routes.contains("10.213.77.1"));
        assert_eq!(is_sent, 1);
        wait_until("the TAP is still there", || !Path::new(&class_dir).exists());
    }
}

mod daemon {
    use super::*;

    struct Site {
        dir: TempDir,
    }

    impl Site {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Site { dir }
        }

        fn socket(&self) -> std::path::PathBuf {
            self.dir.path().join("s")
        }

        /// A daemon with a loopback on each of `buses`.
        fn daemon(&self, buses: &[&str]) -> (Arc<Host>, Server) {
            let host = Host::new();
            host.register_class(Arc::new(LoopbackClass)).unwrap();
            for bus in buses {
                host.create_bus(bus).unwrap();
                add(&host, bus, &format!("{bus}-dev"));
            }
            let server = Server::bind(&self.socket(), Arc::clone(&host)).unwrap();
            (host, server)
        }

        fn uplink(&self, bus: &str, ram: &GuestRam) -> DaemonUplink {
            let bus = DaemonBus::join(bus, Some(&self.socket())).unwrap();
            bus.uplink(
                ram.clone(),
                None,
                Box::new(|| "state running\nexits/io 7".into()),
            )
            .unwrap()
        }
    }

    impl Site {
        /// An uplink that gives its daemon 300 ms for an answer.
        fn impatient_uplink(&self, bus: &str, ram: &GuestRam) -> DaemonUplink {
            let mut bus = DaemonBus::join(bus, Some(&self.socket())).unwrap();
            bus.place.limit = Duration::from_millis(300);
            bus.remote = bus.place.join().unwrap();
            bus.uplink(ram.clone(), None, Box::new(String::new))
                .unwrap()
        }
    }

    /// Devices that take three seconds for a call, and to refuse memory.
    struct SleeperClass;
    struct Sleeper;

    impl DeviceClass for SleeperClass {
        fn name(&self) -> &'static str {
            "sleeper"
        }
        fn create(&self, _name: &str) -> Result<Arc<dyn Device>, Errno> {
            Ok(Arc::new(Sleeper))
        }
    }

    impl Device for Sleeper {
        fn attributes(&self) -> Vec<(&'static str, Arc<dyn Attribute>)> {
            Vec::new()
        }
        fn connect_bus(&self, _bus: &str) -> Result<Vec<InterfaceOffer>, Errno> {
            Ok(vec![InterfaceOffer {
                name: "default".into(),
                kind: "sleeper",
                interface: Arc::new(Sleeper),
            }])
        }
        fn disconnect_bus(&self, _bus: &str) {}
    }

    impl Interface for Sleeper {
        fn connect(&self, _peer: Peer) -> Result<Arc<dyn Connection>, Errno> {
            Ok(Arc::new(Sleeper))
        }
    }

    impl Connection for Sleeper {
        fn call(&self, _func: u32, _data: &mut [u8]) -> Result<u32, Errno> {
            thread::sleep(Duration::from_secs(3));
            Ok(0)
        }
        fn shm(&self, _shm: Shm) -> Result<(), Errno> {
            thread::sleep(Duration::from_secs(3));
            Err(Errno::INVAL)
        }
        fn close(&self) {}
    }

    fn add(host: &Host, bus: &str, device: &str) {
        host.create_device(device).unwrap();
        host.set_type(device, "venet-loopback").unwrap();
        host.link(bus, device, device).unwrap();
    }

    fn add_sleeper(host: &Host) {
        host.register_class(Arc::new(SleeperClass)).unwrap();
        host.create_device("sleeper").unwrap();
        host.set_type("sleeper", "sleeper").unwrap();
        host.link("bus", "sleeper", "sleeper").unwrap();
    }

    #[track_caller]
    fn assert_loops(venet: &mut Venet<Guest>, fill: u8) {
        let sent = frame([0xff; 6], [2; 6], fill);
        assert_eq!(venet.send(&[&sent]).unwrap(), 1);
        assert_eq!(receive(venet), sent);
    }

    #[test]
    fn frames_go_through_the_daemon_in_guest_memory() {
        let site = Site::new();
        let (host, _server) = site.daemon(&["bus"]);
        let ram = ram();
        let uplink = site.uplink("bus", &ram);
        let guest = Guest::attach(&uplink, &ram);
        wait_until("no interface", || guest.added() == [0]);

        let mut venet = guest.open(0, 0).unwrap();
        assert_loops(&mut venet, 1);
        venet.close().unwrap();

        wait_until("memory is not let go", || guest.num_closed() == 2);
        let members = host.tree().list("sys/instances/bus/members").unwrap();
        let pid = std::process::id();
        assert_eq!(members[0].0, pid.to_string());
        let read = |file: &str| host.tree().read(&format!("sys/vms/{pid}/{file}"));
        assert_eq!(read("state").unwrap(), "running\n");
        assert_eq!(read("exits/io").unwrap(), "7\n");
        drop((guest, uplink));
        wait_until("it is still shown", || {
            host.tree().list("sys/vms").unwrap().is_empty()
        });
    }

    #[test]
    fn guest_finds_what_is_on_the_bus_at_once_each_time() {
        let site = Site::new();
        let _daemon = site.daemon(&["bus"]);
        let ram = ram();
        let uplink = site.uplink("bus", &ram);
        for _ in 0..20 {
            let guest = Guest::attach(&uplink, &ram);
            assert_eq!(guest.added(), [0]);
        }
    }

    #[test]
    fn devices_come_and_go_while_the_guest_runs() {
        let site = Site::new();
        let (host, _server) = site.daemon(&["bus"]);
        let ram = ram();
        let uplink = site.uplink("bus", &ram);
        let guest = Guest::attach(&uplink, &ram);
        wait_until("no interface", || guest.added() == [0]);
        let mut first = guest.open(0, 0).unwrap();

        add(&host, "bus", "second");
        wait_until("no second interface", || guest.added() == [0, 1]);
        let mut second = guest.open(1, 1).unwrap();
        assert_loops(&mut second, 2);
        host.unlink("bus", "bus-dev").unwrap();

        wait_until("it was not dropped", || guest.has_dropped(0));
        assert_loops(&mut second, 3);
        assert!(first.send(&[&frame([0xff; 6], [2; 6], 4)]).is_err() || first.link_up().is_err());
        assert!(matches!(
            guest.verbs.open(InterfaceId(0), vbus::abi::venet::VERSION),
            Err(Errno::NOENT)
        ));
    }

    #[test]
    fn interfaces_are_lost_with_the_daemon_and_return_with_it() {
        let site = Site::new();
        let (host, server) = site.daemon(&["bus"]);
        let ram = ram();
        let uplink = site.uplink("bus", &ram);
        let guest = Guest::attach(&uplink, &ram);
        wait_until("no interface", || guest.added() == [0]);
        let mut old = guest.open(0, 0).unwrap();
        assert_loops(&mut old, 1);

        drop((server, host));
        wait_until("the guest was not told", || guest.has_lost(0));
        let opened = guest.verbs.open(InterfaceId(0), vbus::abi::venet::VERSION);
        assert_eq!(opened, Err(Errno::NODEV));
        wait_until("memory is not let go", || guest.num_closed() == 2);
        let (_host, _server) = site.daemon(&["bus"]);

        wait_until("it did not return", || guest.added() == [0, 0]);
        assert!(old.link_up().is_err(), "an old connection works");
        old.close().unwrap();
        assert_loops(&mut guest.open(0, 1).unwrap(), 2);
        assert!(!guest.has_dropped(0));
    }

    #[test]
    fn what_the_daemon_comes_back_without_is_dropped() {
        let site = Site::new();
        let (host, server) = site.daemon(&["bus"]);
        add(&host, "bus", "gone");
        add(&host, "bus", "stays");
        // On the bus it is called by its link.
        host.unlink("bus", "stays").unwrap();
        host.link("bus", "moved", "stays").unwrap();
        let ram = ram();
        let uplink = site.uplink("bus", &ram);
        let guest = Guest::attach(&uplink, &ram);
        wait_until("no interfaces", || guest.added() == [0, 1, 3]);
        drop((server, host));
        wait_until("the guest was not told", || guest.has_lost(3));

        // In another order, and with a device of another kind in one of the places.
        let host = Host::new();
        host.register_class(Arc::new(LoopbackClass)).unwrap();
        host.register_class(Arc::new(SleeperClass)).unwrap();
        host.create_bus("bus").unwrap();
        host.create_device("bus-dev").unwrap();
        host.set_type("bus-dev", "sleeper").unwrap();
        for (link, device) in [("new", "first"), ("moved", "other")] {
            host.create_device(device).unwrap();
            host.set_type(device, "venet-loopback").unwrap();
            host.link("bus", link, device).unwrap();
        }
        host.link("bus", "bus-dev", "bus-dev").unwrap();
        let _server = Server::bind(&site.socket(), Arc::clone(&host)).unwrap();

        wait_until("not all came", || guest.added().len() == 6);
        wait_until("not all left", || guest.has_dropped(1));
        assert_eq!(guest.added(), [0, 1, 3, 4, 3, 5]);
        let dropped: Vec<_> = (0..6).filter(|id| guest.has_dropped(*id)).collect();
        assert_eq!(dropped, [0, 1]);
        assert_loops(&mut guest.open(3, 0).unwrap(), 3);
        host.unlink("bus", "moved").unwrap();
        wait_until("its new daemon cannot drop it", || guest.has_dropped(3));
    }

    #[test]
    fn daemon_that_dies_again_and_again_loses_nothing_of_the_guests() {
        let site = Site::new();
        let ram = ram();
        let mut daemon = Some(site.daemon(&["bus"]));
        let uplink = site.uplink("bus", &ram);
        let guest = Guest::attach(&uplink, &ram);
        for round in 1..6 {
            wait_until("no interface", || guest.added().len() == round);
            let mut venet = guest.open(0, 0).unwrap();
            assert_loops(&mut venet, 1);
            drop(daemon.take());
            wait_until("memory is not let go", || guest.num_closed() == 2 * round);
            venet.close().unwrap();
            daemon = Some(site.daemon(&["bus"]));
        }

        assert!(guest.added().iter().all(|id| *id == 0));
        assert!(!guest.has_dropped(0));
    }

    #[test]
    fn guest_that_knows_no_loss_finds_interfaces_under_new_ids() {
        let site = Site::new();
        let (host, server) = site.daemon(&["bus"]);
        add(&host, "bus", "other");
        let ram = ram();
        let uplink = site.uplink("bus", &ram);
        let guest = Guest::attach_with(&uplink, &ram, OnLoss::Drop);
        wait_until("no interfaces", || guest.added() == [0, 1]);
        let mut venet = guest.open(0, 0).unwrap();
        assert_loops(&mut venet, 1);
        let old = guest.verbs.open(InterfaceId(1), vbus::abi::venet::VERSION);
        let old = old.unwrap();

        drop((server, host));
        wait_until("the guest was not told", || {
            guest.has_dropped(0) && guest.has_dropped(1)
        });
        let begin = Instant::now();
        assert_eq!(guest.verbs.call(old, 0, &mut []), Err(Errno::NODEV));
        let opened = guest.verbs.open(InterfaceId(0), vbus::abi::venet::VERSION);
        assert_eq!(opened, Err(Errno::NOENT));
        assert!(begin.elapsed() < Duration::from_secs(1), "it waited");
        wait_until("memory is not let go", || guest.num_closed() == 2);
        assert_eq!(guest.verbs.close(old), Ok(()));

        let (_host, _server) = site.daemon(&["bus"]);
        wait_until("the interface did not return", || {
            guest.added() == [0, 1, 2]
        });
        let mut venet = guest.open(2, 2).unwrap();
        assert_loops(&mut venet, 2);
        assert_eq!(guest.verbs.call(old, 0, &mut []), Err(Errno::NOENT));
        let new = guest.verbs.open(InterfaceId(2), vbus::abi::venet::VERSION);
        assert_ne!(new, Ok(old), "a handle was used again");
        assert_eq!(uplink.metrics().joins.get(), 2);
        assert_eq!(uplink.metrics().losses.get(), 1);
    }

    #[test]
    fn guest_that_starts_while_there_is_no_daemon_finds_it_later() {
        let site = Site::new();
        let (host, server) = site.daemon(&["bus"]);
        let ram = ram();
        let uplink = site.uplink("bus", &ram);
        drop((server, host));

        let guest = Guest::attach(&uplink, &ram);
        thread::sleep(Duration::from_millis(300));
        assert_eq!(guest.events(), []);
        let (_host, _server) = site.daemon(&["bus"]);

        wait_until("no interface", || guest.added() == [0]);
        assert_loops(&mut guest.open(0, 0).unwrap(), 1);
    }

    #[test]
    fn guest_that_was_reset_begins_anew() {
        let site = Site::new();
        let (host, _server) = site.daemon(&["bus"]);
        let ram = ram();
        let uplink = site.uplink("bus", &ram);
        for round in 0..5 {
            let guest = Guest::attach(&uplink, &ram);
            wait_until("no interface", || guest.added() == [0]);
            let mut venet = guest.open(0, 0).unwrap();
            assert_loops(&mut venet, round);
        }
        wait_until("something is still open", || {
            let open = host.tree().read("sys/devices/bus-dev/connections");
            open.unwrap() == "0\n"
        });
        let members = || host.tree().list("sys/instances/bus/members").unwrap();
        wait_until("not a member between guests", || members().len() == 1);
        drop(uplink);
        wait_until("still a member", || members().is_empty());
    }

    #[test]
    fn missing_daemon_and_missing_bus_are_refused_with_a_remedy() {
        let site = Site::new();
        let refused = || {
            let error = DaemonBus::join("blue", Some(&site.socket())).unwrap_err();
            alacrity_devices::error::chain(&error)
        };

        let nobody = refused();
        let _daemon = site.daemon(&["bus"]);
        let no_bus = refused();

        assert!(
            nobody.contains("start one with `alacrity host`"),
            "{nobody}"
        );
        assert!(no_bus.contains("mkdir config/instances/blue"), "{no_bus}");
    }

    #[test]
    fn hanging_up_ends_calls_that_wait_for_the_daemon() {
        let site = Site::new();
        let (host, _server) = site.daemon(&["bus"]);
        add_sleeper(&host);
        let ram = ram();
        let uplink = site.uplink("bus", &ram);
        let guest = Guest::attach(&uplink, &ram);
        wait_until("no interfaces", || guest.added() == [0, 1]);
        let mut venet = guest.open(0, 0).unwrap();
        assert_loops(&mut venet, 1);
        let handle = guest.verbs.open(InterfaceId(1), 0).unwrap();

        let waiter = {
            let guest = guest.clone();
            thread::spawn(move || guest.verbs.call(handle, 0, &mut []))
        };
        thread::sleep(Duration::from_millis(100));
        assert!(!waiter.is_finished());
        uplink.hang_up().now();

        assert_eq!(waiter.join().unwrap(), Err(Errno::NODEV));
        wait_until("memory is not let go", || guest.num_closed() == 2);
    }

    #[test]
    fn daemon_that_does_not_answer_is_lost_and_keeps_memory_until_it_lets_go() {
        let site = Site::new();
        let (host, _server) = site.daemon(&["bus"]);
        add_sleeper(&host);
        let ram = ram();
        let uplink = site.impatient_uplink("bus", &ram);
        let guest = Guest::attach(&uplink, &ram);
        wait_until("no interfaces", || guest.added() == [0, 1]);
        let mut venet = guest.open(0, 0).unwrap();
        assert_loops(&mut venet, 1);
        let handle = guest.verbs.open(InterfaceId(1), 0).unwrap();

        // It sleeps for three seconds, like one that was stopped in the middle of a call.
        let begin = Instant::now();
        let called = guest.verbs.call(handle, 0, &mut []);

        assert_eq!(called, Err(Errno::NODEV));
        wait_until("the guest was not told", || guest.has_lost(0));
        assert!(begin.elapsed() < Duration::from_secs(2), "it waited");
        thread::sleep(Duration::from_millis(500));
        assert_eq!(guest.num_closed(), 0, "the daemon still has the memory");
        wait_until("memory is not let go", || guest.num_closed() == 2);
        assert!(begin.elapsed() >= Duration::from_secs(3));
        wait_until("it did not return", || guest.added() == [0, 1, 0, 1]);
        assert_loops(&mut guest.open(0, 1).unwrap(), 2);
    }

    #[test]
    fn memory_that_a_lost_daemon_may_have_is_not_free() {
        let site = Site::new();
        let (host, _server) = site.daemon(&["bus"]);
        add_sleeper(&host);
        let ram = ram();
        let uplink = site.impatient_uplink("bus", &ram);
        let guest = Guest::attach(&uplink, &ram);
        wait_until("no interfaces", || guest.added() == [0, 1]);
        let handle = guest.verbs.open(InterfaceId(1), 0).unwrap();
        let request = ShmRequest {
            id: 0,
            priority: 0,
            cookie: 77,
            region: Region::from_ram(&ram, GuestAddress(BASE), 4096).unwrap(),
            signal: None,
        };

        let begin = Instant::now();
        let shared = guest.verbs.shm(handle, request);

        // If it failed, the guest would use the memory anew, and the daemon still might.
        assert_eq!(shared, Ok(()));
        assert!(begin.elapsed() < Duration::from_secs(2), "it waited");
        assert_eq!(guest.verbs.call(handle, 0, &mut []), Err(Errno::NODEV));
        wait_until("memory is not let go", || {
            guest.events().contains(&Event::ShmClosed { cookie: 77 })
        });
        assert!(begin.elapsed() >= Duration::from_secs(3), "too early");
    }

    #[test]
    fn buses_of_one_daemon_are_apart() {
        let site = Site::new();
        let (host, _server) = site.daemon(&["blue", "green"]);
        add(&host, "green", "second");
        let ram = ram();
        let uplink = site.uplink("blue", &ram);
        let guest = Guest::attach(&uplink, &ram);
        wait_until("no interface", || guest.added() == [0]);

        for id in 1..4 {
            let opened = guest.verbs.open(InterfaceId(id), vbus::abi::venet::VERSION);
            assert_eq!(opened, Err(Errno::NOENT), "{id}");
        }
        add(&host, "blue", "mine");
        wait_until("no own interface", || guest.added() == [0, 1]);
    }
}
