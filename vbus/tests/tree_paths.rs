//! Operations by path and their errors.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use vbus::Errno;
use vbus::attribute::Attribute;
use vbus::test_utils::{add_echo, echo_host};
use vbus::tree::{Directory, Entry, MAX_VALUE_BYTES, Node, ROOT_IDENT, Tree};

/// Like the tree of a host with a bus `bus` and a device `a`, linked to it, and an untyped `b`.
fn tree() -> Tree {
    let (host, _) = echo_host();
    host.create_bus("bus").unwrap();
    add_echo(&host, "bus", "a");
    host.create_device("b").unwrap();
    host.tree()
}

fn errno<T>(result: Result<T, Errno>) -> Option<Errno> {
    result.err()
}

#[test]
fn dots_slashes_and_links_lead_where_they_say() {
    let tree = tree();
    let ident = |path: &str| tree.stat(path).unwrap().ident;

    for path in ["", "/", ".", "..", "../..", "config/..", "//sys/./.."] {
        assert_eq!(ident(path), ROOT_IDENT, "{path:?}");
    }
    let device = ident("sys/devices/a");
    for path in [
        "/sys/devices/a",
        "sys//devices/./a/",
        "sys/devices/a/interfaces/default/device/",
        "sys/devices/a/interfaces/..",
        "sys/instances/bus/devices/0/device/class/../../devices/a",
    ] {
        assert_eq!(ident(path), device, "{path:?}");
    }
    let link = tree.stat("sys/instances/bus/devices/0/device").unwrap();
    assert!(matches!(link.node, Node::Link(_)));
}

#[test]
fn paths_that_lead_nowhere_are_refused() {
    let tree = tree();
    for (path, expected) in [
        ("nothing", Errno::NOENT),
        ("config/nothing/more", Errno::NOENT),
        ("sys/version/more", Errno::NOTDIR),
        ("sys/version/..", Errno::NOTDIR),
        (&"x".repeat(256), Errno::NAMETOOLONG),
        (&"x/".repeat(2049), Errno::NAMETOOLONG),
    ] {
        assert_eq!(errno(tree.stat(path)), Some(expected), "{path:?}");
        assert_eq!(errno(tree.list(path)), Some(expected), "{path:?}");
        assert_eq!(errno(tree.read(path)), Some(expected), "{path:?}");
        assert_eq!(errno(tree.write(path, b"")), Some(expected), "{path:?}");
    }
    assert_eq!(errno(tree.list("sys/version")), Some(Errno::NOTDIR));
    assert_eq!(errno(tree.read("sys")), Some(Errno::ISDIR));
    assert_eq!(errno(tree.write("sys", b"")), Some(Errno::ISDIR));
    assert_eq!(errno(tree.readlink("sys")), Some(Errno::INVAL));
    assert_eq!(errno(tree.readlink("sys/version")), Some(Errno::INVAL));
}

#[test]
fn values_are_one_line_of_text() {
    let tree = tree();
    let greeting = "sys/devices/a/greeting";
    let write = |text: &[u8]| tree.write(greeting, text);

    write("grüezi\n".as_bytes()).unwrap();
    assert_eq!(tree.read(greeting).unwrap(), "grüezi\n");
    for bad in [&b"two\n\n"[..], b"a\0b", b"tab\t", b"\xff", b"\x7f"] {
        assert_eq!(write(bad), Err(Errno::INVAL), "{bad:?}");
    }
    assert_eq!(write(b"bad"), Err(Errno::INVAL)); // Says the device.
    assert_eq!(write(&vec![b'x'; MAX_VALUE_BYTES + 1]), Err(Errno::INVAL));
    assert_eq!(tree.read(greeting).unwrap(), "grüezi\n");
    write(&vec![b'x'; MAX_VALUE_BYTES]).unwrap();
    write(b"").unwrap();
    assert_eq!(tree.read(greeting).unwrap(), "\n");
}

#[test]
fn what_is_read_only_cannot_be_written() {
    let tree = tree();
    for path in [
        "sys/version",
        "sys/devices/a/calls",
        "sys/devices/a/faults",
        "sys/instances/bus/devices/0/type",
    ] {
        assert_eq!(tree.write(path, b"1\n"), Err(Errno::ACCESS), "{path}");
    }
}

#[test]
fn directories_are_made_where_something_can_be_made() {
    let tree = tree();
    for (path, expected) in [
        ("", Errno::EXIST),
        ("config", Errno::EXIST),
        ("config/.", Errno::EXIST),
        ("config/devices/a", Errno::EXIST),
        ("sys/version", Errno::EXIST),
        ("new", Errno::PERM),
        ("config/new", Errno::PERM),
        ("sys/devices/new", Errno::PERM),
        ("sys/deviceclass/new", Errno::PERM),
        ("config/devices/a/new", Errno::PERM),
        ("config/instances/bus/new", Errno::PERM),
        ("config/new/new", Errno::NOENT),
        ("sys/version/new", Errno::NOTDIR),
        ("config/devices/a\nb", Errno::INVAL),
        (
            &format!("config/devices/{}", "x".repeat(129)),
            Errno::NAMETOOLONG,
        ),
    ] {
        assert_eq!(tree.mkdir(path), Err(expected), "{path:?}");
    }
    tree.mkdir(&format!("config/devices/{}/", "x".repeat(128)))
        .unwrap();
}

#[test]
fn only_what_was_made_can_be_removed() {
    let tree = tree();
    for (path, expected) in [
        ("", Errno::BUSY),
        ("config/devices/.", Errno::INVAL),
        ("config/devices/..", Errno::INVAL),
        ("config/devices/nothing", Errno::NOENT),
        ("config/devices/a", Errno::BUSY),
        ("config/instances/bus", Errno::BUSY),
        ("config/instances/bus/a", Errno::NOTDIR),
        ("config/devices/a/type", Errno::NOTDIR),
        ("config/devices", Errno::PERM),
        ("sys/devices/b", Errno::PERM),
    ] {
        assert_eq!(tree.rmdir(path), Err(expected), "{path:?}");
    }
    for (path, expected) in [
        ("", Errno::ISDIR),
        ("config/devices/a", Errno::ISDIR),
        ("config/devices/a/type", Errno::PERM),
        ("sys/devices/a/class", Errno::PERM),
        ("config/instances/bus/b", Errno::NOENT),
    ] {
        assert_eq!(tree.unlink(path), Err(expected), "{path:?}");
    }
    tree.rmdir("config/devices/b").unwrap();
}

#[test]
fn links_are_made_to_typed_devices_only() {
    let tree = tree();
    tree.mkdir("config/devices/c").unwrap();
    tree.write("config/devices/c/type", b"echo").unwrap();
    for (target, path, expected) in [
        (
            "../../devices/nothing",
            "config/instances/bus/c",
            Errno::NOENT,
        ),
        (
            "config/devices/c",
            "config/instances/bus/c",
            Errno::NOENT, // Not from the root.
        ),
        ("", "config/instances/bus/c", Errno::NOENT),
        (
            "/config/devices/b",
            "config/instances/bus/b",
            Errno::INVAL, // Has no type.
        ),
        ("/sys/devices/c", "config/instances/bus/c", Errno::INVAL),
        ("/config/devices", "config/instances/bus/c", Errno::INVAL),
        ("/sys/version", "config/instances/bus/c", Errno::INVAL),
        ("/", "config/instances/bus/c", Errno::INVAL),
        ("/config/devices/c", "config/instances/bus/a", Errno::EXIST),
        ("/config/devices/c", "config/instances/c", Errno::PERM),
        ("/config/devices/c", "sys/instances/bus/c", Errno::PERM),
        ("/config/devices/a", "config/instances/bus/c", Errno::BUSY),
    ] {
        let result = tree.symlink(target, path);
        assert_eq!(result, Err(expected), "{target:?} at {path:?}");
    }
    // Over another link, and with detours.
    tree.mkdir("config/instances/two").unwrap();
    tree.symlink("../bus/a", "config/instances/two/a").unwrap();
    tree.symlink("/config/./devices//c/", "config/instances/two/c")
        .unwrap();
    let link = tree.readlink("config/instances/two/a");
    assert_eq!(link.unwrap(), "../../devices/a");
}

/// A directory in which `0` leads to `1` and so on up to a file `8`, and `round` to itself.
struct Chain;

impl Directory for Chain {
    fn lookup(&self, name: &str) -> Option<Entry> {
        let node = match name.parse::<u64>() {
            Ok(8) => Node::File(Arc::new(Fixed)),
            Ok(number) if number < 8 => Node::Link(format!("./{}", number + 1)),
            _ if name == "round" => Node::Link("round".into()),
            _ if name == "minus" => Node::Link("0".into()),
            _ => return None,
        };
        Some(Entry {
            ident: 2,
            modified: UNIX_EPOCH,
            node,
        })
    }
    fn list(&self) -> Vec<(String, Entry)> {
        Vec::new()
    }
}

struct Fixed;

impl Attribute for Fixed {
    fn read(&self) -> Result<String, Errno> {
        Ok("found".into())
    }
}

#[test]
fn eight_links_are_followed_and_no_more() {
    let tree = Tree::new(Arc::new(Chain));

    assert_eq!(tree.read("0").unwrap(), "found\n");
    assert_eq!(errno(tree.read("minus")), Some(Errno::LOOP));
    assert_eq!(errno(tree.read("round")), Some(Errno::LOOP));
    assert!(tree.stat("round").is_ok());
}
