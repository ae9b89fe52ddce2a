//! The tree of a host, and a VM that is made up.

use super::*;
use crate::control_socket::{ControlSocket, PageCounts, VmControl, VmState};
use crate::reclaim::census::MemoryMap;
use crate::reclaim::policy::Reclaimed;
use serde_json::json;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};
use tempfile::TempDir;
use vbus::tree::Tree;

/// A VM whose reclaim takes until it is let go.
struct FakeVm {
    can_reclaim: bool,
    target: Mutex<Option<u64>>,
    num_stats: AtomicU64,
    go_on: Mutex<Receiver<()>>,
    guest: Value,
}

impl VmControl for FakeVm {
    fn stat(&self) -> VmStat {
        self.num_stats.fetch_add(1, Ordering::SeqCst);
        VmStat {
            pid: std::process::id(),
            name: None,
            kernel: "/boot/vmlinux".into(),
            cpus: 1,
            state: VmState::Running,
            uptime_us: 5,
            memory_bytes: 64 << 20,
            resident_bytes: 1 << 20,
            target_bytes: *self.target.lock(),
            pages: self.can_reclaim.then(|| PageCounts {
                dropped: 7,
                ..PageCounts::default()
            }),
            metrics: json!({
                "reclaim": {
                    "pages": {"refilled": 3},
                    "times": {"punch": {"times": 2, "total_ns": 9}},
                    "governor": {"rate": 9, "cgroup": "/"},
                },
                "devices": {"hints0": self.guest},
            }),
        }
    }

    fn reclaim(&self, bytes: u64, _: &dyn Fn() -> bool) -> Result<Reclaimed, Refusal> {
        self.go_on.lock().recv().unwrap();
        Ok(Reclaimed {
            dropped_bytes: bytes / 2,
            ..Reclaimed::default()
        })
    }

    fn set_target(&self, bytes: Option<u64>) -> Result<(), Refusal> {
        *self.target.lock() = bytes;
        Ok(())
    }

    fn memory_map(&self, _: u64) -> Result<MemoryMap, Refusal> {
        Err(Refusal::ReclaimDisabled)
    }
}

struct Setup {
    vm: Arc<FakeVm>,
    socket: Option<ControlSocket>,
    go_on: Sender<()>,
    host: Arc<Host>,
    tree: Tree,
    dir: String,
    _tmp: TempDir,
}

fn setup(can_reclaim: bool, guest: Value) -> Setup {
    let tmp = tempfile::tempdir().unwrap();
    let place = Place::new(tmp.path().join("alacrity/vms"));
    let (go_on, may_go_on) = channel();
    let vm = Arc::new(FakeVm {
        can_reclaim,
        target: Mutex::default(),
        num_stats: AtomicU64::new(0),
        go_on: Mutex::new(may_go_on),
        guest,
    });
    let socket = ControlSocket::open(&place, vm.clone()).unwrap();
    let host = Host::new();
    host.show_vms(Arc::new(ControlledVms::new(place, &host)));
    Setup {
        vm,
        socket: Some(socket),
        go_on,
        tree: host.tree(),
        host,
        dir: format!("sys/vms/{}/hints", std::process::id()),
        _tmp: tmp,
    }
}

impl Setup {
    fn read(&self, file: &str) -> Result<String, Errno> {
        let text = self.tree.read(&format!("{}/{file}", self.dir))?;
        Ok(text.trim_end().to_owned())
    }

    fn write(&self, file: &str, value: &str) -> Result<(), Errno> {
        let path = format!("{}/{file}", self.dir);
        self.tree.write(&path, value.as_bytes())
    }

    fn names(&self, dir: &str) -> Vec<String> {
        let entries = self.tree.list(dir).unwrap().into_iter();
        entries.map(|(name, _)| name).collect()
    }
}

#[test]
fn files_show_what_the_vm_says_and_it_is_not_asked_for_each() {
    let guest = json!({"refused": 4, "Not a name": 1, "list": [1], "long": "x".repeat(129)});
    let setup = setup(true, guest);
    let shown = [
        ("state", "on"),
        ("memory_bytes", "67108864"),
        ("resident_bytes", "1048576"),
        ("pages/dropped", "7"),
        ("pages/swapped", "0"),
        ("taken/refilled", "3"),
        ("times/punch_times", "2"),
        ("times/punch_total_ns", "9"),
        ("governor/rate", "9"),
        ("governor/cgroup", "/"),
        ("guest/refused", "4"),
        ("reclaim", "none"),
        ("target", "none"),
    ];
    let start = Instant::now();
    for (file, value) in shown {
        assert_eq!(setup.read(file).as_deref(), Ok(value), "{file}");
    }
    let most = 2 + start.elapsed().as_millis() / STAT_TIME.as_millis();
    let num_stats = setup.vm.num_stats.load(Ordering::SeqCst);
    assert!(u128::from(num_stats) <= most, "{num_stats} of {most}");
    assert_eq!(setup.names(&format!("{}/guest", setup.dir)), ["refused"]);
    // The same node is the same one each time.
    let ident = |file: &str| {
        let path = format!("{}/{file}", setup.dir);
        setup.tree.stat(&path).unwrap().ident
    };
    assert_eq!(ident("taken/refilled"), ident("taken/refilled"));
    assert_ne!(ident("taken/refilled"), ident("guest/refused"));
}

#[test]
fn target_is_written_through() {
    let setup = setup(true, Value::Null);
    for (value, bytes, shown) in [
        ("256M\n", Some(256 << 20), "256M"),
        ("4097", Some(4097), "4097"),
        ("none", None, "none"),
    ] {
        setup.write("target", value).unwrap();
        assert_eq!(*setup.vm.target.lock(), bytes);
        assert_eq!(setup.read("target").as_deref(), Ok(shown));
    }
    for value in ["", "all", "-1", "1X"] {
        assert_eq!(setup.write("target", value), Err(Errno::INVAL), "{value}");
    }
}

#[test]
fn reclaim_does_not_keep_its_writer_and_says_later_what_came_of_it() {
    let setup = setup(true, Value::Null);

    setup.write("reclaim", "2M").unwrap();
    assert_eq!(setup.write("reclaim", "2M"), Err(Errno::BUSY));
    let under_way = setup.read("reclaim").unwrap();
    setup.go_on.send(()).unwrap();

    assert_eq!(under_way, "under way: 2097152 bytes");
    let deadline = Instant::now() + Duration::from_secs(20);
    while setup.read("reclaim").unwrap() == under_way {
        assert!(Instant::now() < deadline, "it never ended");
        std::thread::sleep(Duration::from_millis(1));
    }
    let outcome = setup.read("reclaim").unwrap();
    assert!(
        outcome.starts_with("1048576 of 2097152 bytes in "),
        "{outcome}"
    );
    assert_eq!(setup.write("reclaim", "much"), Err(Errno::INVAL));
}

#[test]
fn vm_that_gives_nothing_back_says_why() {
    let setup = setup(false, Value::Null);

    let state = setup.read("state").unwrap();

    assert!(state.starts_with("off: it runs without --hints"), "{state}");
    assert_eq!(setup.names(&setup.dir), ["state"]);
    assert_eq!(setup.write("reclaim", "1M"), Err(Errno::NOENT));
}

#[test]
fn vm_that_is_gone_is_gone_from_the_tree() {
    let mut setup = setup(true, Value::Null);
    assert_eq!(setup.names("sys/vms").len(), 1);

    setup.socket = None;

    assert!(setup.names("sys/vms").is_empty());
    drop(setup.host);
}

#[test]
fn names_of_a_vm_are_bounded() {
    let many: serde_json::Map<_, _> = (0..1000)
        .map(|n| (format!("n{n}"), Value::from(n)))
        .collect();
    let setup = setup(true, many.into());

    let num_shown = setup.names(&format!("{}/guest", setup.dir)).len();

    assert!((1..MAX_NAMES).contains(&num_shown), "{num_shown}");
    assert_eq!(setup.read("state").as_deref(), Ok("on"));
}
