//! The tree of a host: what is in it, and what changes.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use vbus::Errno;
use vbus::bus::Host;
use vbus::test_utils::{ECHO_VERSION, EchoClass, EventLog, add_echo, echo_host, ram, shm_request};
use vbus::tree::{Entry, Node, Shown, Tree, Vm, VmSource};
use vbus::verbs::{InterfaceId, Verbs};

/// Each path below `path` without following links: identity, and what it is.
fn walk(tree: &Tree, path: &str, found: &mut BTreeMap<String, (u64, String)>) {
    for (name, entry) in tree.list(path).unwrap() {
        let path = format!("{path}/{name}");
        let same = tree.stat(&path).unwrap();
        assert_eq!(same.ident, entry.ident, "{path}");
        let what = match &entry.node {
            Node::Directory(directory) if directory.is_writable() => "rw/".to_owned(),
            Node::Directory(_) => "/".to_owned(),
            Node::File(file) if file.is_writable() => format!("rw {}", file.read().unwrap()),
            Node::File(file) => format!("r {}", file.read().unwrap()),
            Node::Link(target) => format!("-> {target}"),
        };
        found.insert(path.clone(), (entry.ident, what));
        if matches!(entry.node, Node::Directory(_)) {
            walk(tree, &path, found);
        }
    }
}

fn all(tree: &Tree) -> BTreeMap<String, (u64, String)> {
    let mut found = BTreeMap::new();
    walk(tree, "", &mut found);
    found
}

#[test]
fn whole_tree_of_a_small_host() {
    let (host, _) = echo_host();
    host.create_bus("lan").unwrap();
    add_echo(&host, "lan", "net0");
    host.create_device("new").unwrap();
    let member = host.join("lan", 77).unwrap();
    let client = member.attach(ram(), EventLog::new()).unwrap();
    let handle = client.open(InterfaceId(0), ECHO_VERSION).unwrap();
    client.shm(handle, shm_request(0, 0)).unwrap();

    let found = all(&host.tree());

    let lines = found
        .iter()
        .map(|(path, (_, what))| format!("{path} {what}"));
    let expected = "\
/config /
/config/devices rw/
/config/devices/net0 /
/config/devices/net0/type rw echo
/config/devices/new /
/config/devices/new/type rw 
/config/instances rw/
/config/instances/lan rw/
/config/instances/lan/net0 -> ../../devices/net0
/sys /
/sys/deviceclass /
/sys/deviceclass/echo /
/sys/devices /
/sys/devices/net0 /
/sys/devices/net0/calls r 0
/sys/devices/net0/class -> ../../deviceclass/echo
/sys/devices/net0/connections r 1
/sys/devices/net0/faults r 0
/sys/devices/net0/greeting rw hello
/sys/devices/net0/interfaces /
/sys/devices/net0/interfaces/default -> ../../../instances/lan/devices/0
/sys/devices/new /
/sys/devices/new/connections r 0
/sys/devices/new/faults r 0
/sys/devices/new/interfaces /
/sys/instances /
/sys/instances/lan /
/sys/instances/lan/devices /
/sys/instances/lan/devices/0 /
/sys/instances/lan/devices/0/device -> ../../../../devices/net0
/sys/instances/lan/devices/0/type r test-echo
/sys/instances/lan/members /
/sys/instances/lan/members/77 /
/sys/instances/lan/members/77/connections r 1
/sys/instances/lan/members/77/faults r 0
/sys/instances/lan/members/77/shared_bytes r 4096
/sys/instances/lan/members/77/shms r 1
/sys/instances/lan/members/77/verbs r 2
/sys/version r 2
/sys/vms /";
    assert_eq!(lines.collect::<Vec<_>>().join("\n"), expected);
}

#[test]
fn identities_are_stable_and_differ() {
    let (host, _) = echo_host();
    host.create_bus("lan").unwrap();
    host.create_bus("wan").unwrap();
    add_echo(&host, "lan", "a");
    add_echo(&host, "wan", "b");
    host.link("wan", "a", "a").unwrap();
    let _members = [host.join("lan", 1).unwrap(), host.join("wan", 2).unwrap()];
    let tree = host.tree();

    let first = all(&tree);

    assert_eq!(all(&tree), first);
    let mut paths = BTreeMap::new();
    for (path, (ident, _)) in &first {
        assert!(*ident > 1);
        assert_eq!(paths.insert(ident, path), None, "{path} and another");
    }
}

#[test]
fn what_is_made_again_is_something_else() {
    let (host, _) = echo_host();
    host.create_bus("lan").unwrap();
    let tree = host.tree();
    let round = || {
        add_echo(&host, "lan", "a");
        let member = host.join("lan", 1).unwrap();
        let found = all(&tree);
        drop(member);
        host.unlink("lan", "a").unwrap();
        host.remove_device("a").unwrap();
        found
    };

    let (first, second) = (round(), round());

    let idents = |found: &BTreeMap<String, (u64, String)>| {
        let below = |path: &&String| path.contains("/a") || path.contains("/1");
        let paths: Vec<_> = found.keys().filter(below).cloned().collect();
        paths
            .into_iter()
            .map(|path| (found[&path].0, path))
            .collect()
    };
    let first: Vec<(u64, String)> = idents(&first);
    let second: Vec<(u64, String)> = idents(&second);
    assert!(first.len() > 10);
    for (ident, path) in &first {
        assert!(second.iter().all(|(other, _)| other != ident), "{path}");
    }
}

#[test]
fn changes_move_the_time() {
    let (host, _) = echo_host();
    host.create_bus("lan").unwrap();
    add_echo(&host, "lan", "a");
    let tree = host.tree();
    let modified = |path: &str| tree.stat(path).unwrap().modified;
    let watched = [
        "sys/devices/a/greeting",
        "config/instances/lan",
        "config/devices",
    ];
    let before = watched.map(modified);
    let untouched = modified("config/devices/a/type");

    tree.write("sys/devices/a/greeting", b"hi").unwrap();
    host.unlink("lan", "a").unwrap();
    host.create_device("b").unwrap();

    for (path, before) in watched.iter().zip(before) {
        assert!(modified(path) > before, "{path}");
    }
    assert_eq!(modified("config/devices/a/type"), untouched);
}

#[test]
fn interfaces_of_a_device_on_several_buses_are_told_apart() {
    let host = Host::new();
    host.register_class(Arc::new(EchoClass::new("echo", 2, 2)))
        .unwrap();
    host.create_bus("lan").unwrap();
    host.create_bus("w.an").unwrap();
    add_echo(&host, "lan", "a");
    host.link("w.an", "a", "a").unwrap();
    let tree = host.tree();
    let links = || {
        let entries = tree.list("sys/devices/a/interfaces").unwrap();
        let names = entries.into_iter().map(|(name, _)| {
            let path = format!("sys/devices/a/interfaces/{name}");
            assert!(tree.list(&path).is_ok());
            let target = tree.readlink(&path).unwrap();
            format!(
                "{name} {}",
                target.trim_start_matches("../../../instances/")
            )
        });
        names.collect::<Vec<_>>()
    };

    assert_eq!(
        links(),
        [
            "default.lan lan/devices/0",
            "default.w.an w.an/devices/0",
            "other1.lan lan/devices/1",
            "other1.w.an w.an/devices/1"
        ]
    );
    host.unlink("lan", "a").unwrap();
    assert_eq!(links(), ["default w.an/devices/0", "other1 w.an/devices/1"]);
}

#[test]
fn directory_that_was_removed_does_nothing_more() {
    let (host, _) = echo_host();
    host.create_bus("lan").unwrap();
    host.create_device("a").unwrap();
    let tree = host.tree();
    let Node::Directory(bus) = tree.stat("config/instances/lan").unwrap().node else {
        panic!("no directory");
    };
    let Node::File(type_file) = tree.stat("config/devices/a/type").unwrap().node else {
        panic!("no file");
    };
    host.remove_bus("lan").unwrap();
    host.remove_device("a").unwrap();
    host.create_bus("lan").unwrap();
    add_echo(&host, "lan", "a");

    assert_eq!(bus.unlink("a"), Err(Errno::NOENT));
    assert_eq!(bus.symlink("b", "config/devices/a"), Err(Errno::NOENT));
    assert!(bus.list().is_empty());
    assert_eq!(type_file.write("echo"), Err(Errno::NOENT));
    assert_eq!(type_file.read().unwrap(), "");
}

/// One VM that is known, in the process `pid`.
struct OneVm {
    pid: u32,
    ident: u64,
}

impl VmSource for OneVm {
    fn vms(&self) -> Vec<Vm> {
        let modified = SystemTime::now();
        let entry = Entry {
            ident: self.ident + 1,
            modified,
            node: Node::File(Arc::new(Shown(|| "known".to_owned()))),
        };
        vec![Vm {
            pid: self.pid,
            ident: self.ident,
            modified,
            entries: vec![("state".to_owned(), entry)],
        }]
    }
}

#[test]
fn what_others_know_of_vms_is_beside_what_they_report() {
    let host = Host::new();
    let ident = host.allocate_idents(2);
    host.show_vms(Arc::new(OneVm { pid: 7, ident }));
    let tree = host.tree();
    assert_eq!(tree.read("sys/vms/7/state").as_deref(), Ok("known\n"));
    assert_eq!(tree.stat("sys/vms/7").unwrap().ident, ident);

    host.create_bus("blue").unwrap();
    let members = [7, 8].map(|pid| host.join("blue", pid).unwrap());
    for member in &members {
        member.report("state running\nmemory 4096").unwrap();
    }
    let names = |path: &str| -> Vec<String> {
        let entries = tree.list(path).unwrap().into_iter();
        entries.map(|(name, _)| name).collect()
    };
    assert_eq!(names("sys/vms"), ["7", "8"]);
    assert_eq!(names("sys/vms/7"), ["memory", "state"]);
    assert_eq!(tree.read("sys/vms/7/state").as_deref(), Ok("known\n"));
    assert_eq!(tree.read("sys/vms/8/state").as_deref(), Ok("running\n"));
}
