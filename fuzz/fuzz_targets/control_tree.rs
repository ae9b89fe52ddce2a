//! What may be done to a control tree, by path: afterwards all of it can be read, what is saved of it makes
//! the same again, and all of it can be taken away.
#![no_main]

use std::sync::Arc;

use alacrity_devices::venet::{LoopbackClass, SwitchClass};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vbus::bus::Host;
use vbus::device::DeviceClass;
use vbus::state::State;
use vbus::tree::{Node, Tree};

const NAMES: [&str; 4] = ["a", "b", "lan", "x-1"];
const CLASSES: [&str; 2] = ["venet-loopback", "venet-switch"];

/// A path: more often one that leads somewhere.
#[derive(Debug, Arbitrary)]
enum Place<'a> {
    Device(u8),
    Type(u8),
    Attribute(u8, &'a str),
    Bus(u8),
    Link(u8, u8),
    Wild(&'a str),
}

impl Place<'_> {
    fn path(&self) -> String {
        let name = |number: u8| NAMES[usize::from(number) % NAMES.len()];
        match *self {
            Place::Device(device) => format!("config/devices/{}", name(device)),
            Place::Type(device) => format!("config/devices/{}/type", name(device)),
            Place::Attribute(device, attribute) => {
                format!("sys/devices/{}/{attribute}", name(device))
            }
            Place::Bus(bus) => format!("config/instances/{}", name(bus)),
            Place::Link(bus, link) => format!("config/instances/{}/{}", name(bus), name(link)),
            Place::Wild(path) => path.to_owned(),
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Text<'a> {
    Class(u8),
    Number(u32),
    Wild(&'a [u8]),
}

impl Text<'_> {
    fn bytes(&self) -> Vec<u8> {
        match *self {
            Text::Class(class) => CLASSES[usize::from(class) % CLASSES.len()].into(),
            Text::Number(number) => number.to_string().into_bytes(),
            Text::Wild(bytes) => bytes.to_vec(),
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Act<'a> {
    Mkdir(Place<'a>),
    Rmdir(Place<'a>),
    Write(Place<'a>, Text<'a>),
    Symlink(Place<'a>, Place<'a>),
    Unlink(Place<'a>),
    Look(Place<'a>),
}

impl Act<'_> {
    fn do_to(&self, tree: &Tree) {
        // Refusing is a correct answer.
        let _ = match self {
            Act::Mkdir(place) => tree.mkdir(&place.path()),
            Act::Rmdir(place) => tree.rmdir(&place.path()),
            // Not what reaches for an interface of the host.
            Act::Write(place, _) if place.path().contains("uplink") => return,
            Act::Write(place, text) => tree.write(&place.path(), &text.bytes()),
            Act::Symlink(target, place) => {
                tree.symlink(&format!("/{}", target.path()), &place.path())
            }
            Act::Unlink(place) => tree.unlink(&place.path()),
            Act::Look(place) => {
                let path = place.path();
                let _ = (tree.list(&path), tree.read(&path), tree.readlink(&path));
                tree.stat(&path).map(drop)
            }
        };
    }
}

fn host() -> Arc<Host> {
    let host = Host::new();
    let classes: [Arc<dyn DeviceClass>; 2] = [Arc::new(LoopbackClass), Arc::new(SwitchClass)];
    for class in classes {
        host.register_class(class).unwrap();
    }
    host
}

/// Reads all below `path`.
fn read_all(tree: &Tree, path: &str) {
    for (name, entry) in tree.list(path).unwrap() {
        let path = format!("{path}/{name}");
        assert_eq!(tree.stat(&path).unwrap().ident, entry.ident, "{path}");
        match entry.node {
            Node::Directory(_) => read_all(tree, &path),
            Node::File(_) => drop(tree.read(&path).unwrap()),
            Node::Link(_) => drop(tree.readlink(&path).unwrap()),
        }
    }
}

fn names(tree: &Tree, path: &str) -> Vec<String> {
    let entries = tree.list(path).unwrap();
    entries.into_iter().map(|(name, _)| name).collect()
}

fn take_away(tree: &Tree) {
    for bus in names(tree, "config/instances") {
        let bus = format!("config/instances/{bus}");
        for link in names(tree, &bus) {
            tree.unlink(&format!("{bus}/{link}")).unwrap();
        }
        tree.rmdir(&bus).unwrap();
    }
    for device in names(tree, "config/devices") {
        tree.rmdir(&format!("config/devices/{device}")).unwrap();
    }
}

fuzz_target!(|acts: Vec<Act<'_>>| {
    let host = host();
    let tree = host.tree();
    for act in &acts {
        act.do_to(&tree);
    }
    read_all(&tree, "");

    let state = host.state();
    let restored = self::host();
    restored.restore(&state).unwrap();
    assert_eq!(restored.state(), state);

    take_away(&tree);
    assert_eq!(host.state(), State::default());
});
