//! The tree of a [`Host`]: what it configures and what it shows.
//!
//! | path | what |
//! |---|---|
//! | `config/devices/NAME/type` | makes devices and gives them a type |
//! | `config/instances/BUS/LINK` | makes buses and puts devices on them |
//! | `sys/version` | [`ABI_VERSION`] |
//! | `sys/deviceclass/CLASS/` | known classes |
//! | `sys/devices/NAME/` | devices: class, interfaces, attributes, counters |
//! | `sys/instances/BUS/` | buses: interfaces by id, members by pid |
//! | `sys/vms/PID/` | what VMs that are members of a bus say about themselves, and what a [`VmSource`](super::VmSource) knows |

use std::sync::Arc;
use std::time::SystemTime;

use super::fixed::{Fixed, Shown};
use super::{Directory, Entry, Node, config, sys};
use crate::abi::ABI_VERSION;
use crate::bus::{Host, Stamp};

/// Identities of what is always there; below those that the host gives out.
mod ident {
    pub const CONFIG: u64 = 2;
    pub const CONFIG_DEVICES: u64 = 3;
    pub const CONFIG_INSTANCES: u64 = 4;
    pub const SYS: u64 = 5;
    pub const VERSION: u64 = 6;
    pub const CLASSES: u64 = 7;
    pub const SYS_DEVICES: u64 = 8;
    pub const SYS_INSTANCES: u64 = 9;
    pub const VMS: u64 = 10;
}

/// The root of a host's tree.
pub(crate) fn host_root(host: &Arc<Host>) -> Arc<dyn Directory> {
    let root = Root(Arc::clone(host));
    Arc::new(Fixed(move || root.entries()))
}

struct Root(Arc<Host>);

impl Root {
    fn entries(&self) -> Vec<(String, Entry)> {
        let config = config::directory(&self.0, ident::CONFIG_DEVICES, ident::CONFIG_INSTANCES);
        let started = self.0.stamps.started.modified();
        vec![
            entry("config", ident::CONFIG, started, Node::Directory(config)),
            entry("sys", ident::SYS, started, Node::Directory(self.sys())),
        ]
    }

    fn sys(&self) -> Arc<dyn Directory> {
        let host = Arc::clone(&self.0);
        Arc::new(Fixed(move || {
            let stamps = &host.stamps;
            let directory = |name: &str, ident, stamp: &Stamp, node| {
                entry(name, ident, stamp.modified(), Node::Directory(node))
            };
            let version = Node::File(Arc::new(Shown(|| ABI_VERSION.to_string())));
            let classes = Arc::new(sys::Classes(Arc::clone(&host)));
            let devices = Arc::new(sys::Devices(Arc::clone(&host)));
            let instances = Arc::new(sys::Instances(Arc::clone(&host)));
            let reporters = Arc::clone(&host);
            vec![
                directory("deviceclass", ident::CLASSES, &stamps.classes, classes),
                directory("devices", ident::SYS_DEVICES, &stamps.devices, devices),
                directory("instances", ident::SYS_INSTANCES, &stamps.buses, instances),
                entry(
                    "version",
                    ident::VERSION,
                    stamps.started.modified(),
                    version,
                ),
                directory(
                    "vms",
                    ident::VMS,
                    &stamps.vms,
                    Arc::new(Fixed(move || sys::vm_entries(&reporters))),
                ),
            ]
        }))
    }
}

/// A named entry.
pub(super) fn entry(name: &str, ident: u64, modified: SystemTime, node: Node) -> (String, Entry) {
    let entry = Entry {
        ident,
        modified,
        node,
    };
    (name.to_owned(), entry)
}
