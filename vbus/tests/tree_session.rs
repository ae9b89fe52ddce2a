//! The session of the original's manual, by path.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Arc;

use vbus::Errno;
use vbus::bus::Host;
use vbus::test_utils::{ECHO_KIND, EchoClass};
use vbus::tree::Tree;

fn names(tree: &Tree, path: &str) -> Vec<String> {
    let entries = tree.list(path).unwrap();
    entries.into_iter().map(|(name, _)| name).collect()
}

const NOTHING: [&str; 0] = [];

#[test]
fn session_of_the_manual() {
    let host = Host::new();
    host.register_class(Arc::new(EchoClass::default())).unwrap();
    let tree = host.tree();

    tree.mkdir("config/devices/foo").unwrap();
    tree.mkdir("config/instances/bar").unwrap();
    let type_file = "config/devices/foo/type";
    assert_eq!(tree.read(type_file).unwrap(), "\n");
    assert_eq!(tree.write(type_file, b"wrong\n"), Err(Errno::NOENT));
    tree.write(type_file, b"echo\n").unwrap();
    assert_eq!(tree.write(type_file, b"echo\n"), Err(Errno::BUSY));
    assert_eq!(tree.read(type_file).unwrap(), "echo\n");
    assert_eq!(
        names(&tree, "sys/devices/foo").join(" "),
        "calls class connections faults greeting interfaces"
    );

    let link = "config/instances/bar/foo";
    tree.symlink("../../devices/foo", link).unwrap();
    assert_eq!(tree.readlink(link).unwrap(), "../../devices/foo");
    let interface = "sys/devices/foo/interfaces/default";
    assert_eq!(
        tree.readlink(interface).unwrap(),
        "../../../instances/bar/devices/0"
    );
    assert_eq!(
        tree.read(&format!("{interface}/type")).unwrap(),
        format!("{ECHO_KIND}\n")
    );
    assert_eq!(
        names(&tree, "sys/instances/bar/devices/0/device/class"),
        NOTHING
    );
    assert_eq!(tree.rmdir("config/devices/foo"), Err(Errno::BUSY));
    assert_eq!(tree.rmdir("config/instances/bar"), Err(Errno::BUSY));

    let member = host.join("bar", 42).unwrap();
    assert_eq!(names(&tree, "sys/instances/bar/members"), ["42"]);
    let connections = tree.read("sys/instances/bar/members/42/connections");
    assert_eq!(connections.unwrap(), "0\n");

    tree.unlink(link).unwrap();
    assert_eq!(names(&tree, "sys/instances/bar/devices"), NOTHING);
    assert_eq!(tree.rmdir("config/instances/bar"), Err(Errno::BUSY));
    drop(member);
    tree.rmdir("config/instances/bar").unwrap();
    tree.rmdir("config/devices/foo").unwrap();
    assert_eq!(names(&tree, "config/devices"), NOTHING);
    assert_eq!(names(&tree, "sys/instances"), NOTHING);
}
