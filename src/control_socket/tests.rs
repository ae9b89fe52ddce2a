//! A socket with a VM that is made up, and clients of all kinds.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{self, AskError};
use super::protocol::{MAX_CELLS, MAX_REQUEST_BYTES, VERSION};
use super::server::ControlSocket;
use super::{Answer, Place, Refusal, Request, VmControl, VmStat, VmState};
use crate::reclaim::census::{MemoryMap, PageKind};
use crate::reclaim::policy::Reclaimed;

/// How long what takes no time may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);
/// Of slow clients in these tests.
const CLIENT_TIME: Duration = Duration::from_millis(200);

/// A VM that takes a byte each millisecond.
#[derive(Default)]
struct FakeVm {
    is_disabled: bool,
    target: Mutex<Option<u64>>,
    taken: AtomicU64,
    has_stopped: AtomicBool,
}

impl VmControl for FakeVm {
    fn stat(&self) -> VmStat {
        VmStat {
            pid: std::process::id(),
            name: Some("web".into()),
            kernel: "/boot/vmlinux".into(),
            cpus: 2,
            state: VmState::Running,
            uptime_us: 5,
            memory_bytes: 64 << 20,
            resident_bytes: 1 << 20,
            target_bytes: *self.target.lock(),
            pages: None,
            metrics: json!({"version": 1}),
        }
    }

    fn reclaim(&self, bytes: u64, is_wanted: &dyn Fn() -> bool) -> Result<Reclaimed, Refusal> {
        if self.is_disabled {
            return Err(Refusal::ReclaimDisabled);
        }
        while self.taken.load(SeqCst) < bytes && is_wanted() {
            self.taken.fetch_add(1, SeqCst);
            thread::sleep(Duration::from_millis(1));
        }
        self.has_stopped.store(true, SeqCst);
        Ok(Reclaimed {
            dropped_bytes: self.taken.load(SeqCst),
            ..Reclaimed::default()
        })
    }

    fn set_target(&self, bytes: Option<u64>) -> Result<(), Refusal> {
        if self.is_disabled {
            return Err(Refusal::ReclaimDisabled);
        }
        *self.target.lock() = bytes;
        Ok(())
    }

    fn memory_map(&self, most_cells: u64) -> Result<MemoryMap, Refusal> {
        let cells = usize::try_from(most_cells).unwrap();
        Ok(MemoryMap {
            pages_per_cell: 1 << 20,
            cells: vec![[1 << 20; PageKind::ALL.len()]; cells],
        })
    }
}

struct Setup {
    vm: Arc<FakeVm>,
    socket: Option<ControlSocket>,
    path: PathBuf,
    place: Place,
    _dir: TempDir,
}

fn setup_with(vm: FakeVm) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir.path().join("vms"));
    place.make().unwrap();
    let path = place.socket(std::process::id());
    let vm = Arc::new(vm);
    let socket = ControlSocket::listen(&path, vm.clone(), CLIENT_TIME).unwrap();
    Setup {
        vm,
        socket: Some(socket),
        path,
        place,
        _dir: dir,
    }
}

fn setup() -> Setup {
    setup_with(FakeVm::default())
}

fn until(is_met: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_met() {
        assert!(Instant::now() < deadline, "it never came");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Sends `line` as it is; what comes back until the VM hangs up.
fn say(path: &Path, line: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(line).unwrap();
    let mut answer = Vec::new();
    // It may have hung up with some of the line unread.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn refusal(line: &[u8]) -> Refusal {
    let setup = setup();
    let answer = say(&setup.path, line);
    match Answer::from_line(answer.as_bytes()).unwrap() {
        Answer::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn largest_map_fits_an_answer() {
    let setup = setup();

    let map = client::memory_map(&setup.place, std::process::id(), u64::MAX).unwrap();

    assert_eq!(map, setup.vm.memory_map(MAX_CELLS).unwrap());
}

#[test]
fn stat_is_what_the_vm_says() {
    let setup = setup();

    let stat = client::stat(&setup.place, std::process::id()).unwrap();

    assert_eq!(*stat, setup.vm.stat());
}

#[test]
fn socket_is_private_and_vanishes_with_the_vm() {
    let mut setup = setup();
    let mode = std::fs::metadata(&setup.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    setup.socket = None;

    assert!(!setup.path.exists());
    let error = client::stat(&setup.place, std::process::id()).unwrap_err();
    assert!(matches!(error, AskError::NoVm), "{error}");
}

#[test]
fn lines_on_the_wire_are_those_of_the_documentation() {
    let setup = setup_with(FakeVm {
        is_disabled: true,
        ..FakeVm::default()
    });

    let stat: Value =
        serde_json::from_str(&say(&setup.path, b"{\"version\":1,\"request\":\"stat\"}\n")).unwrap();
    let refused = say(
        &setup.path,
        b"{\"version\":1,\"request\":{\"reclaim\":{\"bytes\":536870912}}}\n",
    );

    assert_eq!(stat["answer"]["stat"]["state"], "running");
    assert_eq!(
        refused,
        "{\"version\":1,\"answer\":{\"refused\":\"reclaim_disabled\"}}\n"
    );
}

#[test]
fn end_of_input_is_the_end_of_a_line() {
    let setup = setup();
    let mut stream = UnixStream::connect(&setup.path).unwrap();
    stream
        .write_all(b"{\"version\":1,\"request\":\"stat\"}")
        .unwrap();
    stream.shutdown(Shutdown::Write).unwrap();

    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();

    assert!(answer.contains("vmlinux"), "{answer}");
}

#[test]
fn nonsense_is_refused() {
    for line in [
        &b"\n"[..],
        b"stat\n",
        b"{}\n",
        b"\xff\xfe\n",
        b"{\"version\":1}\n",
        b"{\"version\":1,\"request\":\"stop\"}\n",
        b"{\"version\":1,\"request\":{\"reclaim\":{\"bytes\":-1}}}\n",
        b"{\"version\":1,\"request\":{\"reclaim\":{\"bytes\":1,\"all\":true}}}\n",
        b"{\"version\":1,\"request\":\"stat\",\"more\":1}\n",
        &[&[b'['; 4000][..], b"\n"].concat(),
    ] {
        let refusal = refusal(line);
        assert!(matches!(refusal, Refusal::BadRequest { .. }), "{refusal}");
    }
}

#[test]
fn other_versions_are_told_ours_whatever_else_they_say() {
    for line in [
        &b"{\"version\":2,\"question\":\"stat\"}\n"[..],
        b"{\"version\":0}\n",
    ] {
        assert_eq!(refusal(line), Refusal::Version { spoken: VERSION });
    }
}

#[test]
fn line_that_is_too_long_is_refused_without_waiting_for_its_end() {
    let refusal = refusal(&[b' '; 64 << 10]);

    let Refusal::BadRequest { reason } = refusal else {
        panic!("{refusal}");
    };
    assert!(reason.contains(&MAX_REQUEST_BYTES.to_string()), "{reason}");
}

#[test]
fn slow_clients_are_hung_up_on_and_others_are_served() {
    let setup = setup();
    // More than there are threads; each has said something.
    let slow: Vec<_> = (0..6)
        .map(|_| {
            let mut stream = UnixStream::connect(&setup.path).unwrap();
            stream.write_all(b"{").unwrap();
            stream
        })
        .collect();

    client::stat(&setup.place, std::process::id()).unwrap();

    for mut stream in slow {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut nothing = Vec::new();
        // An error if what it said was not read.
        if let Err(error) = stream.read_to_end(&mut nothing) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        assert!(nothing.is_empty());
    }
}

#[test]
fn many_clients_are_all_served() {
    let setup = setup();
    thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| client::stat(&setup.place, std::process::id()).unwrap());
        }
    });
}

#[test]
fn clients_that_never_listen_do_not_keep_the_vm_from_ending() {
    let mut setup = setup();
    let _idle: Vec<_> = (0..8)
        .map(|_| UnixStream::connect(&setup.path).unwrap())
        .collect();
    let place = setup.place.clone();
    let asking = thread::spawn(move || client::reclaim(&place, std::process::id(), u64::MAX));
    until(|| setup.vm.taken.load(SeqCst) > 0);

    let start = Instant::now();
    setup.socket = None;

    assert!(start.elapsed() < DEADLINE);
    assert!(setup.vm.has_stopped.load(SeqCst));
    // It may still hear how far it came.
    let _ = asking.join().unwrap();
}

#[test]
fn reclaim_answers_with_what_was_taken() {
    let setup = setup();

    let reclaimed = client::reclaim(&setup.place, std::process::id(), 3).unwrap();

    assert_eq!(reclaimed.dropped_bytes, 3);
}

#[test]
fn target_is_set_and_taken_back() {
    let setup = setup();
    let (place, pid) = (&setup.place, std::process::id());
    for target in [Some(3 << 20), Some(0), None] {
        client::set_target(place, pid, target).unwrap();
        assert_eq!(client::stat(place, pid).unwrap().target_bytes, target);
    }
    let disabled = setup_with(FakeVm {
        is_disabled: true,
        ..FakeVm::default()
    });
    let error = client::set_target(&disabled.place, pid, None).unwrap_err();
    assert!(
        matches!(error, AskError::Refused(Refusal::ReclaimDisabled)),
        "{error}"
    );
}

#[test]
fn reclaim_ends_when_its_client_hangs_up() {
    let setup = setup();
    let line = Request::Reclaim { bytes: u64::MAX }.to_line().unwrap();
    let mut stream = UnixStream::connect(&setup.path).unwrap();
    stream.write_all(line.as_bytes()).unwrap();
    until(|| setup.vm.taken.load(SeqCst) > 0);
    assert!(!setup.vm.has_stopped.load(SeqCst));

    drop(stream);

    until(|| setup.vm.has_stopped.load(SeqCst));
}

#[test]
fn second_reclaim_is_refused_and_stat_is_not() {
    let setup = setup();
    let line = Request::Reclaim { bytes: u64::MAX }.to_line().unwrap();
    let mut stream = UnixStream::connect(&setup.path).unwrap();
    stream.write_all(line.as_bytes()).unwrap();
    until(|| setup.vm.taken.load(SeqCst) > 0);

    let error = client::reclaim(&setup.place, std::process::id(), 1).unwrap_err();

    assert!(matches!(error, AskError::Refused(Refusal::Busy)), "{error}");
    client::stat(&setup.place, std::process::id()).unwrap();
    drop(stream);
    until(|| setup.vm.has_stopped.load(SeqCst));
    until(|| client::reclaim(&setup.place, std::process::id(), 1).is_ok());
}

#[test]
fn list_removes_sockets_of_the_dead_and_of_nobody_else() {
    let setup = setup();
    let dead = setup.place.socket(1);
    drop(UnixListener::bind(&dead).unwrap()); // The name stays.
    let silent = setup.place.socket(2);
    let _silent = UnixListener::bind(&silent).unwrap();
    let file = setup.place.socket(3);
    std::fs::write(&file, "precious").unwrap();

    let found = client::list(&setup.place).unwrap();

    let live: Vec<_> = found
        .iter()
        .filter(|vm| vm.stat.is_ok())
        .map(|vm| vm.pid)
        .collect();
    assert_eq!(live, [std::process::id()]);
    assert!(matches!(found[0].stat, Err(AskError::Silent)), "{found:?}");
    assert_eq!(found[0].pid, 2);
    assert!(!dead.exists());
    assert!(silent.exists());
    assert!(file.exists());
}

#[test]
fn vm_that_hangs_up_or_talks_nonsense_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || {
        for answer in [
            "",
            "{}\n",
            "{\"version\":2}\n",
            "{\"version\":1,\"answer\":{\"reclaimed\":{\"released_bytes\":0,\"dropped_bytes\":0,\"swapped_bytes\":0,\"took_us\":1}}}\n",
        ] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 100];
            let _ = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let place = Place::new(dir.path().into());
    let ask = || client::stat(&place, 1).unwrap_err();

    assert!(matches!(ask(), AskError::HungUp));
    assert!(matches!(ask(), AskError::Answer(_)));
    assert!(ask().to_string().contains("version 2"));
    assert!(matches!(ask(), AskError::OtherAnswer));
    server.join().unwrap();
}
