//! The control tree as the kernel asks for it when programs use its mount: any operation, name, offset and
//! size, in any order. Each request gets one answer that fits it, what is read is not torn, a number of a
//! node never becomes another node's, and what was made can be taken away.
#![no_main]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use alacrity::host::filesystem::ControlFs;
use alacrity_devices::venet::{LoopbackClass, SwitchClass};
use fuser::{Config, Session, SessionACL};
use libfuzzer_sys::fuzz_target;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use vbus::bus::Host;
use vbus::device::DeviceClass;
use vbus::state::State;

#[path = "control_fs/acts.rs"]
mod acts;
#[path = "control_fs/kernel.rs"]
mod kernel;

use acts::{Act, PATHS, TARGETS, VALUES};
use kernel::{Entry, Kernel, ROOT};

const MOUNT_POINT: &str = "/mnt/vbus";
/// Of `stat(2)`.
const KINDS: u32 = 0o170_000;
const ESTALE: i32 = 116;
/// The kernel refuses others itself.
const MAX_OFFSET: u64 = i64::MAX as u64;
const MAX_VALUE_BYTES: usize = 4096;

/// What is open.
struct Handle {
    node: u64,
    number: u64,
    is_directory: bool,
    /// All that was read, if it was read from the start to the end.
    read: Option<Vec<u8>>,
}

/// What the kernel knows in one run.
struct Run<'k> {
    kernel: &'k mut Kernel,
    /// Number of a node, what it is, how often it was told.
    nodes: Vec<(u64, u32, u64)>,
    /// All that there were, as what.
    kinds: BTreeMap<u64, u32>,
    handles: Vec<Handle>,
}

impl Run<'_> {
    fn node(&self, nth: u8) -> u64 {
        self.nodes[usize::from(nth) % self.nodes.len()].0
    }

    fn introduce(&mut self, entry: Entry, is_new: bool) -> u64 {
        assert_ne!(entry.node, 0);
        assert_eq!(entry.node, entry.ino);
        let kind = entry.mode & KINDS;
        let before = self.kinds.insert(entry.node, kind);
        assert!(before.is_none_or(|before| before == kind), "another node");
        assert!(!is_new || before.is_none(), "a number that is used again");
        match self.nodes.iter_mut().find(|node| node.0 == entry.node) {
            Some(node) => node.2 += 1,
            None => self.nodes.push((entry.node, kind, 1)),
        }
        entry.node
    }

    fn lookup(&mut self, parent: u64, name: &[u8]) -> Option<u64> {
        let entry = self.kernel.entry(1, parent, &[], &[name]).ok()?;
        Some(self.introduce(entry, false))
    }

    fn walk(&mut self, path: &str) {
        let mut node = ROOT;
        for part in path.split('/') {
            let Some(next) = self.lookup(node, part.as_bytes()) else {
                return;
            };
            node = next;
        }
    }

    fn read(&mut self, handle: u8, offset: u64, size: u32) {
        if self.handles.is_empty() {
            return;
        }
        let nth = usize::from(handle) % self.handles.len();
        let handle = &mut self.handles[nth];
        let (node, is_directory) = (handle.node, handle.is_directory);
        let Ok(bytes) = self
            .kernel
            .read(is_directory, node, handle.number, offset, size)
        else {
            return;
        };
        assert!(bytes.len() <= size as usize, "more than was asked for");
        if is_directory {
            kernel::check_entries(&bytes, offset);
            return;
        }
        if offset == 0 {
            handle.read = (bytes.len() < size as usize).then_some(bytes);
        } else if let Some(read) = &handle.read {
            let start = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(read.len());
            let end = start.saturating_add(size as usize).min(read.len());
            assert_eq!(bytes, read[start..end], "torn");
        }
    }

    fn write(&mut self, handle: u8, offset: u64, is_append: bool, data: &[u8]) {
        if self.handles.is_empty() {
            return;
        }
        let handle = &self.handles[usize::from(handle) % self.handles.len()];
        if handle.is_directory {
            return;
        }
        let written = self
            .kernel
            .write(handle.node, handle.number, offset, is_append, data);
        if let Ok(written) = written {
            assert_eq!(written as usize, data.len());
            assert!(data.len() <= MAX_VALUE_BYTES);
            assert!(offset == 0 || is_append);
        }
    }

    fn forget(&mut self, nth: u8, count: u64) {
        let nth = usize::from(nth) % self.nodes.len();
        let (node, _, num_told) = &mut self.nodes[nth];
        // The kernel keeps the root.
        if *node == ROOT {
            return;
        }
        let count = count.min(*num_told);
        let node = *node;
        *num_told -= count;
        self.kernel.forget(node, count);
        if self.nodes[nth].2 == 0 {
            self.nodes.remove(nth);
            assert_eq!(
                self.kernel.getattr(node).err(),
                Some(ESTALE),
                "it was forgotten"
            );
        }
    }

    fn act(&mut self, act: &Act<'_>) {
        match act {
            Act::Walk(nth) => self.walk(PATHS[usize::from(*nth) % PATHS.len()]),
            Act::Lookup(node, name) => {
                self.lookup(self.node(*node), &name.bytes());
            }
            Act::Mkdir(node, name) => {
                let (node, name) = (self.node(*node), name.bytes());
                if let Ok(entry) = self.kernel.entry(9, node, &[0; 8], &[&name]) {
                    assert_eq!(entry.mode & KINDS, 0o040_000);
                    self.introduce(entry, true);
                }
            }
            Act::Rmdir(node, name) => {
                let _ = self
                    .kernel
                    .names(11, self.node(*node), &[], &[&name.bytes()]);
            }
            Act::Unlink(node, name) => {
                let _ = self
                    .kernel
                    .names(10, self.node(*node), &[], &[&name.bytes()]);
            }
            Act::Symlink(node, name, target) => {
                let target = match target {
                    Ok(nth) => TARGETS[usize::from(*nth) % TARGETS.len()].into(),
                    Err(wild) => wild.iter().copied().filter(|byte| *byte != 0).collect(),
                };
                let target: Vec<u8> = target;
                let (node, name) = (self.node(*node), name.bytes());
                if let Ok(entry) = self.kernel.entry(6, node, &[], &[&name, &target]) {
                    assert_eq!(entry.mode & KINDS, 0o120_000);
                    self.introduce(entry, true);
                }
            }
            Act::Readlink(node) => {
                let _ = self.kernel.names(5, self.node(*node), &[], &[]);
            }
            Act::Getattr(node) => {
                let node = self.node(*node);
                if let Ok((ino, mode)) = self.kernel.getattr(node) {
                    assert_eq!(ino, node);
                    let kind = self.kinds.get(&node);
                    assert!(kind.is_none_or(|kind| *kind == mode & KINDS));
                }
            }
            Act::Setattr { node, valid, size } => {
                let _ = self.kernel.setattr(self.node(*node), *valid, *size);
            }
            Act::Open {
                node,
                flags,
                is_directory,
            } => {
                let node = self.node(*node);
                let flags = u32::from(*flags);
                if let Ok(number) = self.kernel.open(*is_directory, node, flags) {
                    let is_other = |handle: &Handle| handle.number != number;
                    assert!(self.handles.iter().all(is_other), "it is open already");
                    self.handles.push(Handle {
                        node,
                        number,
                        is_directory: *is_directory,
                        read: None,
                    });
                }
            }
            Act::Read {
                handle,
                offset,
                size,
            } => {
                self.read(*handle, (*offset % 64).into(), (*size).into());
            }
            Act::ReadFrom {
                handle,
                offset,
                size,
            } => {
                self.read(*handle, *offset & MAX_OFFSET, *size % (1 << 20));
            }
            Act::Write {
                handle,
                offset,
                is_append,
                data,
            } => {
                let data = match data {
                    Ok(nth) => VALUES[usize::from(*nth) % VALUES.len()],
                    Err(wild) => wild,
                };
                self.write(*handle, *offset & MAX_OFFSET, *is_append, data);
            }
            Act::Release(nth) => {
                if !self.handles.is_empty() {
                    let nth = usize::from(*nth) % self.handles.len();
                    let handle = self.handles.swap_remove(nth);
                    self.kernel
                        .release(handle.is_directory, handle.node, handle.number);
                }
            }
            Act::Forget(nth, count) => self.forget(*nth, (*count).into()),
            Act::Refused(which, node, name) => {
                let (node, name) = (self.node(*node), name.bytes());
                let other: &[u8] = b"other";
                let answer = match which % 5 {
                    0 => self
                        .kernel
                        .names(12, node, &node.to_le_bytes(), &[&name, other]),
                    1 => self.kernel.names(45, node, &[0; 16], &[&name, other]),
                    2 => self.kernel.names(13, node, &node.to_le_bytes(), &[&name]),
                    3 => self.kernel.names(35, node, &[0; 16], &[&name]),
                    _ => self.kernel.names(8, node, &[0; 16], &[&name]),
                };
                assert!(answer.is_err(), "not here");
            }
        }
    }

    fn end(mut self) {
        for handle in std::mem::take(&mut self.handles) {
            self.kernel
                .release(handle.is_directory, handle.node, handle.number);
        }
        while self.nodes.len() > 1 {
            self.forget(1, u64::MAX);
        }
    }
}

struct Lab {
    host: Arc<Host>,
    kernel: Mutex<Kernel>,
}

/// One session for all runs: what one of them leaves behind, the next ones find.
fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let host = Host::new();
        let classes: [Arc<dyn DeviceClass>; 2] = [Arc::new(LoopbackClass), Arc::new(SwitchClass)];
        for class in classes {
            host.register_class(class).expect("it is new");
        }
        // Keeps the bounds of messages, as the device of FUSE does.
        let (ours, its) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("a pair of sockets");
        let mut kernel = Kernel::new(ours);
        kernel.send_init();
        let tree = ControlFs::new(host.tree(), Path::new(MOUNT_POINT).into());
        let config = Config::default();
        let session = Session::from_fd(tree, its, SessionACL::All, config).expect("a session");
        kernel.receive_init();
        thread::spawn(move || session.run());
        Lab {
            host,
            kernel: Mutex::new(kernel),
        }
    })
}

fn take_away(host: &Arc<Host>) {
    let tree = host.tree();
    let names = |path: &str| {
        tree.list(path)
            .expect("it is there")
            .into_iter()
            .map(|(name, _)| name)
    };
    for bus in names("config/instances") {
        let bus = format!("config/instances/{bus}");
        for link in names(&bus) {
            tree.unlink(&format!("{bus}/{link}")).expect("it can go");
        }
        tree.rmdir(&bus).expect("it can go");
    }
    for device in names("config/devices") {
        tree.rmdir(&format!("config/devices/{device}"))
            .expect("it can go");
    }
    assert_eq!(host.state(), State::default());
}

fuzz_target!(|acts: Vec<Act<'_>>| {
    let lab = lab();
    let mut kernel = lab.kernel.lock().expect("a panic ends all");
    let mut run = Run {
        kernel: &mut kernel,
        nodes: vec![(ROOT, 0o040_000, 1)],
        kinds: BTreeMap::new(),
        handles: Vec::new(),
    };
    for act in acts.iter().take(256) {
        run.act(act);
    }
    take_away(&lab.host);
    run.end();
});
