//! The daemon's sandbox: which threads it confines, and that the daemon does all that it did without.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

use common::daemon::{Daemon, Site};
use common::host::is_root;
use common::own::thread_statuses;
use common::refused::refusal;
use common::{DEADLINE, assert_says, skip, until};
use rustix::process::Signal;

/// Capabilities by number, as bits.
const NET_ADMIN: u64 = 1 << 12;
const FILES_OF_OTHERS: u64 = 1 << 1 | 1 << 3; // CAP_DAC_OVERRIDE, CAP_FOWNER

/// What the kernel says about the threads of `daemon`, by their names: seccomp's mode, whether they can get
/// privileges, and those that they have.
fn threads(daemon: &Daemon) -> BTreeMap<String, (u64, u64, u64)> {
    let seen = thread_statuses(daemon.pid()).map(|status| {
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap().trim().to_owned()
        };
        let number = |key| u64::from_str_radix(&value(key), 16).unwrap();
        let facts = (number("Seccomp:"), number("NoNewPrivs:"), number("CapEff:"));
        (value("Name:"), facts)
    });
    seen.collect()
}

/// The same once those called `names` are among them: a thread gives itself its name when it has begun.
#[track_caller]
fn threads_with(daemon: &Daemon, names: &[&str]) -> BTreeMap<String, (u64, u64, u64)> {
    let mut seen = BTreeMap::new();
    let are_there = || {
        seen = threads(daemon);
        names.iter().all(|name| seen.contains_key(*name))
    };
    let are_there = until(DEADLINE, are_there);
    assert!(are_there, "not all of {names:?} are in {seen:?}");
    seen
}

fn mode(threads: &BTreeMap<String, (u64, u64, u64)>, name: &str) -> u64 {
    threads[name].0
}

#[test]
fn every_thread_is_confined_and_keeps_only_what_it_needs() {
    if !is_root() {
        return skip("needs root, to make TAP interfaces");
    }
    let site = Site::new();
    let Some(daemon) = site.mounted(&["--state", "bus.toml"]) else {
        return;
    };
    let tap = format!("as{}", std::process::id());
    site.shell(&format!(
        "mkdir config/devices/eth0 config/instances/lan
         echo venet-tap > config/devices/eth0/type
         echo {tap} > sys/devices/eth0/ifname; echo 1 > sys/devices/eth0/enabled
         ln -s ../../devices/eth0 config/instances/lan/eth0; vbus cat sys/version"
    ))
    .ok();

    let names = ["alacrity", "threads", "mount", "fuser-1", "vbus-accept"];
    let threads = threads_with(&daemon, &names);

    assert!(Path::new("/sys/class/net").join(&tap).exists());
    for (name, (seccomp, no_new_privs, capabilities)) in &threads {
        assert_eq!((*seccomp, *no_new_privs), (2, 1), "{name}");
        let may = match name.as_str() {
            "alacrity" | "state" => FILES_OF_OTHERS,
            "threads" => FILES_OF_OTHERS | NET_ADMIN,
            _ => NET_ADMIN,
        };
        assert_eq!(capabilities & !may, 0, "{name}");
    }
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
    assert!(until(DEADLINE, || {
        !Path::new("/sys/class/net").join(&tap).exists()
    }));
}

#[test]
fn sandbox_can_be_left_out_or_only_tell() {
    let site = Site::new();

    let off = site.daemon(&["--sandbox", "off"]);
    let of_off = threads_with(&off, &["vbus-accept"]);
    assert_eq!(off.stop(Signal::TERM), Some(0));
    let log = site.daemon(&["--sandbox", "log"]);
    let of_log = threads_with(&log, &["vbus-accept"]);
    let version = site.shell("vbus cat sys/version").ok();
    assert_eq!(log.stop(Signal::TERM), Some(0));

    // The test itself may be confined, so a thread without its own filter has the mode of the test.
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let outside = if status.contains("Seccomp:\t0") { 0 } else { 2 };
    assert_eq!(mode(&of_off, "vbus-accept"), outside);
    assert!(!of_off.contains_key("threads"));
    assert_eq!(mode(&of_log, "vbus-accept"), 2);
    assert_eq!(version, "2\n");
}

#[test]
fn unknown_mode_is_refused() {
    let site = Site::new();

    let output = site.command(&["--sandbox", "maybe"]).output().unwrap();

    assert_says(&refusal(&output), &["--sandbox", "off, log, on"]);
    assert!(!site.socket().exists());
}

#[test]
fn state_and_socket_may_be_in_a_directory_of_somebody_else() {
    if !is_root() {
        return skip("needs root, for a directory of another user");
    }
    let site = Site::new();
    chown(site.dir.path(), Some(65534), Some(65534)).unwrap();
    let daemon = site.daemon(&["--state", "bus.toml"]);

    site.shell("vbus mkdir config/instances/lan").ok();
    let is_saved =
        || fs::read_to_string(site.path("bus.toml")).is_ok_and(|text| text.contains("lan"));

    assert!(until(DEADLINE, is_saved), "{}", daemon.stderr.text());
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
    assert!(!site.socket().exists());
}
