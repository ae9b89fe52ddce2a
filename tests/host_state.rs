//! The state file: what comes back after an end of any kind, and what is refused.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs;

use common::daemon::Site;
use common::refused::refusal;
use common::{DEADLINE, assert_says, until};
use rustix::process::Signal;

/// All that the tree says about devices and buses.
const LOOK: &str = "vbus tree config; vbus cat sys/devices/*/client_mac 2>/dev/null
    for device in eth0 eth1; do vbus cat config/devices/$device/type sys/devices/$device/client_mac; done
    vbus cat sys/instances/lan/devices/0/type; vbus ls -l sys/instances/lan/devices/0 | grep -o 'device ->.*'
    vbus cat sys/devices/eth1/ports | cut -d ' ' -f 1,2";

const BUILD: &str = "vbus mkdir config/devices/eth0 config/devices/eth1 config/devices/untyped
    vbus mkdir config/instances/lan config/instances/empty
    vbus echo venet-loopback config/devices/eth0/type
    vbus echo venet-switch config/devices/eth1/type
    vbus echo 02:00:00:00:00:07 sys/devices/eth0/client_mac
    vbus ln -s config/devices/eth1 config/instances/lan/first
    vbus ln -s config/devices/eth0 config/instances/lan/second
    vbus echo lan=02:00:00:00:00:08 sys/devices/eth1/port_macs";

#[test]
fn state_comes_back_after_a_clean_end() {
    let site = Site::new();
    let daemon = site.daemon(&["--state", "bus.toml"]);
    site.shell(BUILD).ok();
    let before = site.shell(LOOK).stdout;

    assert_eq!(daemon.stop(Signal::TERM), Some(0));
    let kept = fs::read_to_string(site.path("bus.toml")).unwrap();
    let daemon = site.daemon(&["--state", "bus.toml"]);
    let after = site.shell(LOOK).stdout;
    assert_eq!(daemon.stop(Signal::TERM), Some(0));

    assert_says(
        &before,
        &[
            "untyped",
            "02:00:00:00:00:07",
            "../../devices/eth1",
            "lan 02:00:00:00:00:08",
        ],
    );
    assert_eq!(after, before);
    assert_eq!(fs::read_to_string(site.path("bus.toml")).unwrap(), kept);
    assert!(!site.path("bus.toml.new").exists());
}

#[test]
fn state_that_was_saved_survives_a_kill() {
    let site = Site::new();
    let daemon = site.daemon(&["--state", "bus.toml"]);
    site.shell(BUILD).ok();
    let before = site.shell(LOOK).stdout;
    let is_saved = || {
        let text = fs::read_to_string(site.path("bus.toml")).unwrap_or_default();
        text.contains("02:00:00:00:00:08") // what was written last
    };
    assert!(until(DEADLINE, is_saved), "it is never saved");

    daemon.kill();
    let _daemon = site.daemon(&["--state", "bus.toml"]);

    assert_eq!(site.shell(LOOK).stdout, before);
}

#[test]
fn file_is_whole_at_every_moment() {
    let site = Site::new();
    let path = site.path("bus.toml");

    // The daemon is killed in the middle of saving, again and again.
    for round in 0..10 {
        let daemon = site.daemon(&["--state", "bus.toml"]);
        let script = format!(
            "vbus mkdir config/devices/d{round}; for i in {{1..5}}; do vbus mkdir config/devices/x$i; done
             for i in {{1..5}}; do vbus rmdir config/devices/x$i; done"
        );
        let session = site.shell(&script);
        daemon.kill();
        session.ok();

        let text = fs::read_to_string(&path).unwrap();
        let state: vbus::state::State = toml::from_str(&text).unwrap();
        assert!(state.devices.len() <= 10 + 5);
        // What was left half made is no obstacle.
        let leftover = "for i in {1..5}; do vbus rmdir config/devices/x$i 2>/dev/null; done; true";
        let daemon = site.daemon(&["--state", "bus.toml"]);
        site.shell(leftover).ok();
        daemon.stop(Signal::TERM);
    }
}

#[test]
fn missing_file_is_an_empty_host() {
    let site = Site::new();

    let daemon = site.daemon(&["--state", "new.toml"]);

    assert_eq!(site.shell("vbus ls config/devices").ok(), "");
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
}

#[test]
fn wrong_file_is_refused_with_its_line_and_nothing_is_started() {
    let refused = |state: &str| {
        let site = Site::new();
        fs::write(site.path("bus.toml"), state).unwrap();
        let output = site
            .command(&["--state", "bus.toml", "--mount", "mnt"])
            .output()
            .unwrap();
        assert!(!site.socket().exists());
        assert!(site.mounts().is_empty());
        assert_eq!(fs::read_to_string(site.path("bus.toml")).unwrap(), state);
        assert!(!site.path("bus.toml.new").exists());
        refusal(&output)
    };

    let syntax = refused("[[device]]\nname = \"eth0\n");
    let unknown = refused("[[device]]\nname = \"eth0\"\n\ncolour = \"red\"\n");
    let kind = refused("[[bus]]\nname = 3\n");
    let class = refused("[[device]]\nname = \"eth0\"\ntype = \"venet-carrier-pigeon\"\n");
    let link = refused("[[bus]]\nname = \"lan\"\n[[bus.link]]\nname = \"a\"\ndevice = \"b\"\n");

    assert_says(&syntax, &["state ", "bus.toml: line 2: "]);
    assert_says(&unknown, &["bus.toml: line 4: ", "unknown field `colour`"]);
    assert_says(&kind, &["bus.toml: line 2: "]);
    assert_says(
        &class,
        &[
            "cannot restore state",
            "eth0",
            "venet-carrier-pigeon",
            "No such file",
        ],
    );
    assert_says(&link, &["cannot link device b to bus lan as a"]);
}

#[test]
fn file_that_cannot_be_kept_is_refused() {
    let site = Site::new();

    let missing = site.command(&["--state", "no/bus.toml"]).output().unwrap();
    let directory = site.command(&["--state", "mnt"]).output().unwrap();

    assert_says(&refusal(&missing), &["cannot write state no/bus.toml"]);
    assert_says(&refusal(&directory), &["cannot write state", "mnt"]);
}
