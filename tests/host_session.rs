//! Sessions of an administrator with the control tree: through the mount and over the socket, and
//! members that come and go.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use common::assert_says;
use common::client::{self, ClientProcess};
use common::daemon::Site;
use serde_json::Value;

/// Not a test of its own: what [`ClientProcess`] runs.
#[test]
fn client_process() {
    client::be_one_if_asked();
}

#[test]
fn session_of_the_manual_works_through_the_mount() {
    let site = Site::new();
    let Some(_daemon) = site.mounted(&[]) else {
        return;
    };

    site.shell("mkdir config/instances/bus0 config/devices/eth0")
        .ok();
    let wrong = site.shell("echo foo > config/devices/eth0/type").err();
    let untyped = site.shell("cat config/devices/eth0/type; ls sys/devices/eth0");
    site.shell("echo venet-loopback > config/devices/eth0/type")
        .ok();
    let attributes = site.shell("ls sys/devices/eth0").ok();
    site.shell("ln -s ../../devices/eth0 config/instances/bus0/eth0")
        .ok();
    let links = site
        .shell(
            "readlink config/instances/bus0/eth0 sys/devices/eth0/class \
             sys/devices/eth0/interfaces/default sys/instances/bus0/devices/0/device
             cat sys/devices/eth0/interfaces/default/type config/instances/bus0/eth0/type
             test config/devices/eth0 -ef config/instances/bus0/eth0
             test sys/devices/eth0 -ef sys/instances/bus0/devices/0/device",
        )
        .ok();

    assert_says(&wrong, &["echo: write error: No such file or directory"]);
    assert_eq!(untyped.stdout, "\nconnections\nfaults\ninterfaces\n");
    assert_says(&attributes, &["class\n", "client_mac\n", "mtu\n"]);
    assert_eq!(
        links,
        "../../devices/eth0\n\
         ../../deviceclass/venet-loopback\n\
         ../../../instances/bus0/devices/0\n\
         ../../../../devices/eth0\n\
         virtual-ethernet\n\
         venet-loopback\n"
    );

    let busy = site.shell(
        "rmdir config/devices/eth0; rmdir config/instances/bus0
         echo venet-loopback > config/devices/eth0/type",
    );
    assert_eq!(
        busy.err(),
        "rmdir: failed to remove 'config/devices/eth0': Device or resource busy\n\
         rmdir: failed to remove 'config/instances/bus0': Device or resource busy\n\
         bash: line 3: echo: write error: Device or resource busy\n"
    );

    site.shell("rm config/instances/bus0/eth0").ok();
    let gone = site.shell("ls sys/instances/bus0/devices sys/devices/eth0/interfaces");
    assert_eq!(
        gone.ok(),
        "sys/devices/eth0/interfaces:\n\nsys/instances/bus0/devices:\n"
    );
    site.shell("rmdir config/instances/bus0 config/devices/eth0")
        .ok();
    let left = site.shell("ls config/* sys/devices sys/instances").ok();
    assert_eq!(
        left,
        "config/devices:\n\nconfig/instances:\n\nsys/devices:\n\nsys/instances:\n"
    );
}

#[test]
fn session_of_the_manual_works_over_the_socket() {
    let site = Site::new();
    let _daemon = site.daemon(&[]);

    site.shell("vbus mkdir config/instances/bus0 config/devices/eth0")
        .ok();
    let wrong = site.shell("vbus echo foo config/devices/eth0/type").err();
    site.shell("vbus echo venet-loopback config/devices/eth0/type")
        .ok();
    let attributes = site.shell("vbus ls sys/devices/eth0").ok();
    site.shell("vbus ln -s config/devices/eth0 config/instances/bus0/eth0")
        .ok();
    let tree = site.shell("vbus tree config").ok();
    let kind = site
        .shell("vbus cat sys/devices/eth0/interfaces/default/type")
        .ok();
    let busy = site
        .shell("vbus rmdir config/devices/eth0 config/instances/bus0")
        .err();

    assert_eq!(
        wrong,
        "alacrity vbus: config/devices/eth0/type: No such file or directory\n"
    );
    assert_says(&attributes, &["class\n", "client_mac\n", "mtu\n"]);
    assert_eq!(
        tree,
        "config\n\
         ├── devices\n\
         │   └── eth0\n\
         │       └── type\n\
         └── instances\n\
         \u{20}   └── bus0\n\
         \u{20}       └── eth0 -> ../../devices/eth0\n\
         \n\
         5 directories, 1 file\n"
    );
    assert_eq!(kind, "virtual-ethernet\n");
    assert_eq!(
        busy,
        "alacrity vbus: config/devices/eth0: Device or resource busy\n\
         alacrity vbus: config/instances/bus0: Device or resource busy\n"
    );

    site.shell("vbus rm config/instances/bus0/eth0").ok();
    site.shell("vbus rmdir config/instances/bus0 config/devices/eth0")
        .ok();
    assert_eq!(site.shell("vbus ls config/devices").ok(), "");
}

#[test]
fn mount_and_socket_show_the_same_tree() {
    let site = Site::new();
    let Some(_daemon) = site.mounted(&[]) else {
        return;
    };
    site.shell(
        "mkdir config/instances/bus0; vbus mkdir config/devices/eth0
         vbus echo venet-switch /config/devices/eth0/type
         vbus ln -s config/devices/eth0 config/instances/bus0/",
    )
    .ok();

    let by_mount = site
        .shell("find . -mindepth 1 -printf '%y %#m %s %P %l\\n'")
        .ok();
    let by_socket = site.shell("vbus tree --json").ok();

    let mut nodes = Vec::new();
    add_nodes(&serde_json::from_str(&by_socket).unwrap(), "", &mut nodes);
    nodes.sort();
    let mut by_mount: Vec<_> = by_mount.lines().collect();
    by_mount.sort_unstable();
    assert!(nodes.len() > 40, "{nodes:?}");
    assert_eq!(nodes, by_mount);
}

/// Adds what is in the directory `node` at `path`, as `find` prints it.
fn add_nodes(node: &Value, path: &str, nodes: &mut Vec<String>) {
    for entry in node["contents"].as_array().into_iter().flatten() {
        let text = |field: &str| entry[field].as_str().unwrap_or_default();
        let path = format!("{path}{}", text("name"));
        let (kind, size, target) = (&text("type")[..1], &entry["size"], text("target"));
        let mode = text("mode");
        nodes.push(format!("{kind} {mode} {size} {path} {target}"));
        add_nodes(entry, &format!("{path}/"), nodes);
    }
}

#[test]
fn members_appear_and_vanish_with_their_processes() {
    let site = Site::new();
    let daemon = site.daemon(&[]);
    site.shell("vbus mkdir config/instances/bus0 config/instances/bus1")
        .ok();

    let first = ClientProcess::join(&daemon.socket, "bus0");
    let second = ClientProcess::join(&daemon.socket, "bus0");
    let both = site.shell("vbus ls sys/instances/bus0/members").ok();
    let elsewhere = site.shell("vbus ls sys/instances/bus1/members").ok();
    let busy = site.shell("vbus rmdir config/instances/bus0").err();
    first.kill();
    let is_gone = || {
        site.shell("vbus ls sys/instances/bus0/members")
            .ok()
            .lines()
            .count()
            == 1
    };
    assert!(
        common::until(common::DEADLINE, is_gone),
        "it is still there"
    );
    let left = site.shell("vbus ls sys/instances/bus0/members").ok();
    second.end();

    let mut members: Vec<u32> = both.lines().map(|pid| pid.parse().unwrap()).collect();
    members.sort_unstable();
    assert_eq!(members.len(), 2);
    assert_eq!(elsewhere, "");
    assert_says(&busy, &["Device or resource busy"]);
    assert!(both.contains(left.trim()));
    let is_removed = || site.shell("vbus rmdir config/instances/bus0").status == Some(0);
    assert!(common::until(common::DEADLINE, is_removed), "still busy");
}

#[test]
fn commands_have_the_manners_of_their_namesakes() {
    let site = Site::new();
    let _daemon = site.daemon(&[]);
    site.shell(
        "vbus mkdir config/devices/a /config/devices/b config/instances/x
         for device in a b; do vbus echo venet-loopback config/devices/$device/type; done",
    )
    .ok();

    let links = site
        .shell(
            "vbus ln config/devices/a config/instances/x
             vbus ln -s ../../devices/b config/instances/x/second
             vbus ls -l config/instances/x | cut -d ' ' -f 1,8-",
        )
        .ok();
    let several = site
        .shell("vbus ls config/devices config/instances config/devices/a/type")
        .ok();
    let values = site
        .shell("vbus cat config/devices/a/type config/instances/x/second/type")
        .ok();
    let rest = site.shell("vbus cat sys/no sys/version").stdout;
    let long = site.shell("vbus stat sys/version config/devices").ok();
    let reader = site.shell("set -o pipefail; vbus tree | head -n 1").ok();

    assert_eq!(
        links,
        "lrwxrwxrwx a -> ../../devices/a\nlrwxrwxrwx second -> ../../devices/b\n"
    );
    assert_eq!(
        several,
        "config/devices/a/type\n\nconfig/devices:\na\nb\n\nconfig/instances:\nx\n"
    );
    assert_eq!(values, "venet-loopback\nvenet-loopback\n");
    assert_eq!(rest, "2\n");
    assert_says(&long, &["-r--r--r--      2 ", "drwxr-xr-x      0 "]);
    assert_eq!(reader, ".\n");
}

#[test]
fn what_does_not_exist_is_told_as_shells_do() {
    let site = Site::new();
    let _daemon = site.daemon(&[]);

    let text = site
        .shell(
            "vbus cat config/nothing; vbus ls nothing; vbus mkdir sys/x; vbus mkdir config/devices/x/y
             vbus rm config/devices; vbus rmdir sys/version; vbus echo 3 sys/version
             vbus cat config; vbus ln -s config/devices/no config/instances/x; vbus stat no",
        )
        .stderr;

    let reasons: Vec<_> = text
        .lines()
        .map(|line| line.strip_prefix("alacrity vbus: ").unwrap())
        .collect();
    assert_eq!(
        reasons,
        [
            "config/nothing: No such file or directory",
            "nothing: No such file or directory",
            "sys/x: Operation not permitted",
            "config/devices/x/y: No such file or directory",
            "config/devices: Is a directory",
            "sys/version: Not a directory",
            "sys/version: Permission denied",
            "config: Is a directory",
            "config/instances/x: No such file or directory",
            "no: No such file or directory",
        ]
    );
}

#[test]
fn no_daemon_is_status_2() {
    let site = Site::new();

    let session = site.shell("vbus ls");

    assert_eq!(session.status, Some(2));
    assert_says(
        &session.stderr,
        &["error: cannot connect to", "is `alacrity host` running"],
    );
}
