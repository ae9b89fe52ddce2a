//! The daemon from start to end, whatever ends it: what it refuses, what it leaves behind, and that
//! it grows by nothing.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::client::{self, ClientProcess};
use common::daemon::{Daemon, Site};
use common::host::is_root;
use common::refused::refusal;
use common::{DEADLINE, assert_says, skip, until};
use rustix::process::Signal;
use vbus::client::Connection;

/// Rounds of things that are made and removed, before memory is looked at and in between.
const WARM_UP: usize = 1_000;
const CYCLES: usize = 10_000;
/// KiB that a flat daemon may grow by: what an allocator does by itself.
const SLACK_KIB: u64 = 1_024;

/// Not a test of its own: what [`ClientProcess`] runs.
#[test]
fn client_process() {
    client::be_one_if_asked();
}

#[test]
fn second_daemon_on_the_socket_is_refused() {
    let site = Site::new();
    let daemon = site.daemon(&[]);

    let output = site.command(&[]).output().unwrap();

    assert_says(
        &refusal(&output),
        &["another server is listening", "stop it"],
    );
    assert_eq!(site.shell("vbus cat sys/version").ok(), "2\n");
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
}

#[test]
fn socket_of_a_killed_daemon_is_replaced() {
    let site = Site::new();
    site.daemon(&[]).kill();
    assert!(site.socket().exists());

    let daemon = site.daemon(&[]);

    assert_eq!(site.shell("vbus cat sys/version").ok(), "2\n");
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
    assert!(!site.socket().exists());
}

#[test]
fn bad_arguments_are_refused_before_anything_is_made() {
    let site = Site::new();
    fs::write(site.path("file"), "").unwrap();
    fs::write(site.path("mnt/file"), "").unwrap();
    let refused = |args: &[&str]| {
        let text = refusal(&site.command(args).output().unwrap());
        assert!(!site.socket().exists(), "{args:?}");
        text
    };

    let file = refused(&["--mount", "file"]);
    let full = refused(&["--mount", "mnt"]);
    let missing = refused(&["--mount", "no/where"]);
    let alone = refused(&["--allow-other"]);
    let word = refused(&["more"]);
    let long = "x".repeat(200);
    let output = site
        .command(&["--mount", "new", "--socket", &long])
        .output();
    let long = refusal(&output.unwrap());
    let no_socket = "file/vbus.sock";
    let output = site
        .command(&["--mount", "new", "--socket", no_socket])
        .output();
    let no_socket = refusal(&output.unwrap());
    fs::create_dir(site.path("empty")).unwrap();
    let hidden = refused(&["--mount", "empty", "--socket", "empty/vbus.sock"]);

    assert_says(&file, &["cannot mount on file", "is it a directory"]);
    assert_says(&full, &["mount point mnt is not empty"]);
    assert_says(&missing, &["cannot mount on no/where", "No such file"]);
    assert_says(&alone, &["--mount <DIR>"]);
    assert_says(&word, &["unexpected argument"]);
    assert_says(&long, &["has 200 bytes", "at most 107"]);
    assert_says(&no_socket, &["cannot listen on file/vbus.sock"]);
    assert_says(
        &hidden,
        &["socket empty/vbus.sock is below the mount point"],
    );
    assert!(!site.path("new").exists());
}

#[test]
fn mount_point_that_was_made_is_removed_again() {
    let site = Site::new();
    fs::remove_dir(site.mount_point()).unwrap();
    let Some(daemon) = site.mounted(&[]) else {
        return;
    };
    assert_eq!(site.shell("cat sys/version").ok(), "2\n");

    assert_eq!(daemon.stop(Signal::TERM), Some(0));

    assert!(!site.mount_point().exists());
}

#[test]
fn clients_get_an_error_when_the_daemon_is_killed() {
    let site = Site::new();
    let daemon = site.daemon(&[]);
    site.shell("vbus mkdir config/instances/bus0").ok();
    let clients: Vec<_> = (0..4)
        .map(|_| ClientProcess::join(&daemon.socket, "bus0"))
        .collect();

    daemon.kill();

    for client in clients {
        client.expect_lost();
    }
}

#[test]
fn clients_get_an_error_when_the_daemon_ends() {
    let site = Site::new();
    let daemon = site.daemon(&[]);
    site.shell("vbus mkdir config/instances/bus0").ok();
    let client = ClientProcess::join(&daemon.socket, "bus0");

    assert_eq!(daemon.stop(Signal::TERM), Some(0));

    client.expect_lost();
}

/// The cycles of `cycle` leave the daemon as it was after the first of them.
fn assert_flat(daemon: &Daemon, cycle: impl Fn(usize)) {
    (0..WARM_UP).for_each(&cycle);
    let (rss, fds, threads) = (daemon.rss_kib(), daemon.num_fds(), daemon.num_threads());

    (0..CYCLES).for_each(&cycle);

    let grown = daemon.rss_kib().saturating_sub(rss);
    println!(
        "{rss} KiB, {fds} descriptors, {threads} threads; {grown} KiB more after {CYCLES} cycles"
    );
    assert!(grown <= SLACK_KIB, "grew by {grown} KiB from {rss} KiB");
    // The last one's thread may still be about to go.
    let is_flat = || daemon.num_fds() <= fds && daemon.num_threads() <= threads;
    assert!(until(DEADLINE, is_flat), "more descriptors or threads");
}

#[test]
fn ten_thousand_cycles_through_the_mount_leave_it_flat() {
    let site = Site::new();
    let Some(daemon) = site.mounted(&[]) else {
        return;
    };
    let place = |kind: &str, idx: usize| {
        let name = format!("config/{kind}/n{}", idx % 7);
        site.mount_point().join(name)
    };

    assert_flat(&daemon, |idx| {
        let (bus, device) = (place("instances", idx), place("devices", idx));
        fs::create_dir(&bus).unwrap();
        fs::create_dir(&device).unwrap();
        fs::read_to_string(device.join("type")).unwrap();
        fs::remove_dir(&device).unwrap();
        fs::remove_dir(&bus).unwrap();
    });
}

#[test]
fn ten_thousand_cycles_over_the_socket_leave_it_flat() {
    let site = Site::new();
    let daemon = site.daemon(&[]);
    let admin = Connection::connect(&daemon.socket)
        .unwrap()
        .admin()
        .unwrap();

    assert_flat(&daemon, |_| {
        admin.mkdir("config/instances/b").unwrap();
        admin.mkdir("config/devices/d").unwrap();
        admin
            .write("config/devices/d/type", "venet-loopback\n")
            .unwrap();
        admin
            .symlink("/config/devices/d", "config/instances/b/d")
            .unwrap();
        admin.unlink("config/instances/b/d").unwrap();
        admin.rmdir("config/devices/d").unwrap();
        admin.rmdir("config/instances/b").unwrap();
    });
}

fn interface(name: &str) -> PathBuf {
    Path::new("/sys/class/net").join(name)
}

#[test]
fn hundred_kills_with_clients_leak_nothing() {
    if !is_root() {
        return skip("needs root, to make TAP interfaces");
    }
    let site = Site::new();
    let tap = format!("ah{}", std::process::id());
    let state = format!(
        "[[device]]\nname = \"eth0\"\ntype = \"venet-tap\"\n\
         [device.attributes]\nifname = \"{tap}\"\nenabled = \"1\"\n\
         [[bus]]\nname = \"bus0\"\n[[bus.link]]\nname = \"eth0\"\ndevice = \"eth0\"\n"
    );
    fs::write(site.path("bus.toml"), state).unwrap();

    for round in 0..100 {
        let Some(daemon) = site.mounted(&["--state", "bus.toml"]) else {
            return;
        };
        assert_eq!(site.mounts().len(), 1, "round {round}");
        assert!(interface(&tap).exists(), "round {round}");
        // Every now and then with a client that is killed, or finds itself alone.
        let client = (round % 10 == 0).then(|| ClientProcess::join(&daemon.socket, "bus0"));
        daemon.kill();
        assert!(
            until(DEADLINE, || !interface(&tap).exists()),
            "round {round}: the TAP is still there"
        );
        match client {
            Some(client) if round % 20 == 0 => client.kill(),
            Some(client) => client.expect_lost(),
            None => (),
        }
    }
    let daemon = site.mounted(&["--state", "bus.toml"]).unwrap();
    assert_eq!(daemon.stop(Signal::TERM), Some(0));

    assert!(site.mounts().is_empty());
    assert!(!interface(&tap).exists());
    let mut left = common::host::names(site.dir.path());
    left.retain(|name| name != "bus.toml" && name != "mnt");
    assert!(left.is_empty(), "{left:?}");
}
