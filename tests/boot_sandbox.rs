//! What a confined VM still does, and what its threads and those of the daemon cannot do any more.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::{ExitStatusExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use alacrity::host::confinement;
use alacrity::sandbox::{self, Kept, Mode, Paths, privileges};
use common::all_devices::{self, RESTART_LINKS};
use common::assert_says;
use common::hints::{CHECK_FILES, MAKE_FILES, MIB, take};
use common::host::Host;
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::Signal;
use vbus::threads::{self, ThreadClass};

type Attempt = (&'static str, fn(&Path));

/// What a thread may try.
const ATTEMPTS: [Attempt; 7] = [
    ("socket", |_| {
        drop(socket(AddressFamily::INET, SocketType::DGRAM, None))
    }),
    ("getppid", |_| println!("{}", parent_id())),
    ("mkdir", |dir| drop(fs::create_dir(dir.join("own")))),
    ("clone3", |_| thread::spawn(|| {}).join().unwrap()),
    ("getppid in a thread", |_| {
        thread::spawn(|| println!("{}", parent_id()))
            .join()
            .unwrap();
    }),
    ("files", |dir| {
        let outcome = |path: PathBuf| File::open(path).map(drop).map_err(|error| error.kind());
        println!("other file: {:?}", outcome("/etc/passwd".into()));
        println!("own file: {:?}", outcome(dir.join("own")));
        println!(
            "write: {:?}",
            fs::write(dir.join("own"), "new").map_err(|error| error.kind())
        );
    }),
    ("status", |_| {
        // Without a look at how long the file is, which most threads may not take.
        let mut text = [0; 4096];
        let mut file = File::open("/proc/thread-self/status").unwrap();
        let len = file.read(&mut text).unwrap();
        print!("{}", String::from_utf8_lossy(&text[..len]));
    }),
];

/// Has a thread of `class` try `attempt` in a process of its own that is confined so; what came of it.
fn attempt(host: &Host, mode: &str, class: ThreadClass, attempt: &str) -> Output {
    let dir = host.file("dir");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("own"), "old").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "attempt_of_a_thread",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("ATTEMPT", format!("{mode} {class} {attempt}"))
        .env("ATTEMPT_DIR", &dir)
        .output()
        .unwrap();
    fs::remove_dir_all(dir).unwrap();
    output
}

#[test]
#[ignore = "the others run it, each in a process of its own"]
fn attempt_of_a_thread() {
    let wanted = std::env::var("ATTEMPT").unwrap();
    let dir = PathBuf::from(std::env::var_os("ATTEMPT_DIR").unwrap());
    let [mode, class, attempt] = wanted.splitn(3, ' ').collect::<Vec<_>>()[..] else {
        panic!("{wanted}");
    };
    let (mode, kept): (_, Kept) = match mode {
        "log" => (Mode::Log, privileges::none),
        "daemon" => (Mode::On, confinement::capabilities),
        _ => (Mode::On, privileges::none),
    };
    let class = ThreadClass::ALL
        .into_iter()
        .find(|known| known.to_string() == class);
    let (_, run) = ATTEMPTS
        .into_iter()
        .find(|(name, _)| *name == attempt)
        .unwrap();
    let paths = Paths {
        read: vec!["/proc".into(), dir.clone()],
        write: Vec::new(),
    };
    sandbox::start(mode, &paths, kept, None).unwrap();
    match class.unwrap() {
        class if !class.is_made() => {
            sandbox::enter(class);
            run(&dir);
        }
        class => {
            let tried = threads::spawn(class, "attempt", move || run(&dir));
            tried.unwrap().join().unwrap();
        }
    }
    println!("went on");
    // The test's own threads are not what this is about.
    std::process::exit(0);
}

/// All classes but the factory's, whose thread runs nothing of others.
fn classes() -> impl Iterator<Item = ThreadClass> {
    let all = ThreadClass::ALL.into_iter();
    all.filter(|class| *class != ThreadClass::Factory)
}

#[track_caller]
fn says(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8(text).unwrap()
}

#[test]
fn system_call_of_no_use_to_a_thread_ends_the_program_with_its_name() {
    let Some(host) = Host::ready() else { return };
    for class in classes() {
        for (call, _) in &ATTEMPTS[..3] {
            let is_allowed = match *call {
                "socket" => matches!(class, ThreadClass::Bus | ThreadClass::Mount),
                "mkdir" => matches!(
                    class,
                    ThreadClass::Main
                        | ThreadClass::Daemon
                        | ThreadClass::Bus
                        | ThreadClass::Mount
                        | ThreadClass::State
                ),
                _ => false,
            };
            let output = attempt(&host, "on", class, call);
            let text = says(&output);
            let refusal = format!("a thread of class `{class}` made the system call `{call}`");
            assert_eq!(
                output.status.code(),
                Some(if is_allowed { 0 } else { 4 }),
                "{class} {call} {text}"
            );
            assert_eq!(
                text.contains(&refusal),
                !is_allowed,
                "{class} {call} {text}"
            );
        }
    }
}

#[test]
fn thread_makes_no_threads() {
    let Some(host) = Host::ready() else { return };
    for class in classes().filter(|class| *class != ThreadClass::Mount) {
        let output = attempt(&host, "on", class, "clone3");
        // The C library blocks all signals meanwhile, so the kernel ends the process at once.
        let signal = Signal::SYS.as_raw();
        assert_eq!(
            output.status.signal(),
            Some(signal),
            "{class} {}",
            says(&output)
        );
    }
}

#[test]
fn threads_that_serve_the_mount_make_others_that_may_no_more_than_they() {
    let Some(host) = Host::ready() else { return };

    let made = attempt(&host, "daemon", ThreadClass::Mount, "clone3");
    let tried = attempt(&host, "daemon", ThreadClass::Mount, "getppid in a thread");

    assert_says(&says(&made), &["went on"]);
    assert_eq!(tried.status.code(), Some(4), "{}", says(&tried));
    let refusal = "a thread of a library in class `mount` made the system call `getppid`";
    assert_says(&says(&tried), &[refusal]);
}

#[test]
fn mode_log_lets_it_happen() {
    let Some(host) = Host::ready() else { return };
    for class in [ThreadClass::Vcpu, ThreadClass::Main] {
        let output = attempt(&host, "log", class, "socket");
        assert_eq!(output.status.code(), Some(0), "{}", says(&output));
        assert_says(&says(&output), &["went on"]);
    }
}

#[test]
fn files_that_were_not_named_cannot_be_opened() {
    let Some(host) = Host::ready() else { return };
    for class in [ThreadClass::Main, ThreadClass::Control, ThreadClass::Bus] {
        let text = says(&attempt(&host, "on", class, "files"));
        let wanted = [
            "other file: Err(PermissionDenied)",
            "own file: Ok(())",
            "write: Err(PermissionDenied)",
        ];
        assert_says(&text, &wanted);
    }
}

#[test]
fn privileges_are_given_up() {
    let Some(host) = Host::ready() else { return };
    for class in [ThreadClass::Main, ThreadClass::Control] {
        let text = says(&attempt(&host, "on", class, "status"));
        let wanted = [
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
        ];
        assert_says(&text, &wanted);
    }
}

#[test]
fn threads_of_the_daemon_keep_the_capabilities_that_they_need() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let kept = [
        (ThreadClass::Daemon, "000000000000000a"),
        (ThreadClass::Bus, "0000000000001000"),
        (ThreadClass::Mount, "0000000000001000"),
        (ThreadClass::State, "000000000000000a"),
        (ThreadClass::Device, "0000000000000000"),
    ];
    for (class, capabilities) in kept {
        let text = says(&attempt(&host, "daemon", class, "status"));
        let permitted = format!("CapPrm:\t{capabilities}");
        let effective = format!("CapEff:\t{capabilities}");
        assert_says(&text, &[&permitted, &effective, "NoNewPrivs:\t1"]);
    }
}

#[test]
fn confined_vm_has_all_its_devices() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let (mut vm, networks) = all_devices::start(&host, &["--sandbox", "on"]);

    vm.shell(MAKE_FILES);
    for network in &networks {
        vm.shell(&format!("ping -c 2 {}", network.host_ip()));
    }
    vm.shell(RESTART_LINKS);
    let taken = take(vm.id(), 64 * MIB);
    vm.shell(CHECK_FILES);
    vm.shell("cat /dev/hwrng | head -c 64 >/dev/null");
    vm.send("poweroff -f\n");
    vm.wait().assert_status(0);

    assert!(taken.total_bytes() > 0, "{taken:?}");
    assert!(host.metrics()["reclaim"]["pages"].is_object());
}
