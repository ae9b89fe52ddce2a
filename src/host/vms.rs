//! `sys/vms/PID/hints`: what is taken from the VMs of this user, and a way to have it done.
//!
//! The VMs are asked over their control sockets ([`crate::control_socket`]), for a bounded time, and at
//! most a few times in a second however many files are read. What they say is shown and believed by
//! nobody.
//!
//! | file | what |
//! |---|---|
//! | `state` | `on`, or why nothing can be taken or told |
//! | `reclaim` | a size that is written is taken, without waiting for it; reads what came of it |
//! | `target` | size that the VM aims at, or `none`; written, too |
//! | `memory_bytes`, `resident_bytes` | of the guest, and what of it takes memory of the host |
//! | `pages/` | pages of 4 KiB by state |
//! | `taken/` | pages that were taken, brought back or left alone, by reason |
//! | `times/` | what that took: how often, nanoseconds in all, and the longest |
//! | `governor/` | what is taken without being asked, and how fast |
//! | `guest/` | what the guest told, and what of it was refused |

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use alacrity_devices::error;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use serde_json::Value;
use vbus::attribute::Attribute;
use vbus::bus::Host;
use vbus::tree::{Entry, Fixed, Node, Shown, Vm, VmSource};

use crate::control_socket::client::{self, AskError};
use crate::control_socket::{Answer, Place, Refusal, Request, VmStat};
use crate::size::{self, Size};
use vbus::threads::{self, ThreadClass};

/// How long a VM may take to say what it has at hand.
const ASK_TIME: Duration = Duration::from_secs(1);
/// For how long that counts.
const STAT_TIME: Duration = Duration::from_millis(200);
/// Most names that one VM may come up with.
const MAX_NAMES: usize = 250;
/// Longest of them, and longest value, in bytes.
const MAX_TEXT_BYTES: usize = 128;
/// Nodes of one VM.
const NUM_IDENTS: u64 = 1 + MAX_NAMES as u64;

/// The VMs of this user.
#[derive(Debug)]
pub struct ControlledVms {
    place: Place,
    /// Of identities. A weak one: the host owns us.
    host: std::sync::Weak<Host>,
    known: Mutex<BTreeMap<u32, Arc<Controlled>>>,
}

impl ControlledVms {
    /// Those that have sockets in `place`, for the tree of `host`.
    pub fn new(place: Place, host: &Arc<Host>) -> Self {
        ControlledVms {
            place,
            host: Arc::downgrade(host),
            known: Mutex::default(),
        }
    }
}

impl VmSource for ControlledVms {
    fn vms(&self) -> Vec<Vm> {
        let (Some(host), Ok(pids)) = (self.host.upgrade(), self.place.pids()) else {
            return Vec::new();
        };
        let mut known = self.known.lock();
        let mut found = BTreeMap::new();
        for pid in pids {
            // One that is gone may have left its socket behind.
            let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let Some(process) = process.filter(|process| is_there(*process)) else {
                continue;
            };
            let Ok(socket) = self.place.socket(pid).symlink_metadata() else {
                continue;
            };
            let same = known.remove(&pid).filter(|vm| vm.inode == socket.ino());
            let vm = same.unwrap_or_else(|| {
                Arc::new(Controlled {
                    place: self.place.clone(),
                    pid: process.as_raw_nonzero().get().unsigned_abs(),
                    inode: socket.ino(),
                    ident: host.allocate_idents(NUM_IDENTS),
                    found: SystemTime::now(),
                    names: Mutex::default(),
                    last_stat: Mutex::default(),
                    is_reclaiming: AtomicBool::new(false),
                    reclaimed: Mutex::new("none".into()),
                })
            });
            found.insert(pid, vm);
        }
        *known = found;
        known.values().map(Controlled::shown).collect()
    }
}

/// Whether the process is there, of whomever it is.
fn is_there(process: Pid) -> bool {
    test_kill_process(process) != Err(Errno::SRCH)
}

/// A VM with a control socket.
#[derive(Debug)]
struct Controlled {
    place: Place,
    pid: u32,
    /// Of its socket: another VM of that number has another one.
    inode: u64,
    /// The first of [`NUM_IDENTS`], of its directory.
    ident: u64,
    found: SystemTime,
    /// Paths that had a node so far; each keeps its identity.
    names: Mutex<Vec<String>>,
    last_stat: Mutex<Option<(Instant, Told)>>,
    is_reclaiming: AtomicBool,
    /// What came of the last one.
    reclaimed: Mutex<String>,
}

/// What a VM said of itself, or why nothing.
type Told = Result<Arc<VmStat>, String>;

impl Controlled {
    fn shown(self: &Arc<Self>) -> Vm {
        let vm = Arc::clone(self);
        let hints = Node::Directory(Arc::new(Fixed(move || vm.entries())));
        Vm {
            pid: self.pid,
            ident: self.ident,
            modified: self.found,
            entries: self.entry("hints", "hints", hints).into_iter().collect(),
        }
    }

    /// Identity of what is at `path`; `None` if the VM came up with too many.
    fn ident(&self, path: &str) -> Option<u64> {
        let mut names = self.names.lock();
        let known = names.iter().position(|known| known == path);
        let position = known.or_else(|| {
            let is_room = names.len() < MAX_NAMES;
            is_room.then(|| {
                names.push(path.to_owned());
                names.len() - 1
            })
        })?;
        Some(self.ident + 1 + position as u64)
    }

    fn entry(&self, path: &str, name: &str, node: Node) -> Option<(String, Entry)> {
        let entry = Entry {
            ident: self.ident(path)?,
            modified: self.found,
            node,
        };
        Some((name.to_owned(), entry))
    }

    /// What it says now, or said a moment ago.
    fn stat(&self) -> Told {
        let mut last = self.last_stat.lock();
        if let Some((at, told)) = &*last
            && at.elapsed() < STAT_TIME
        {
            return told.clone();
        }
        let asked = client::ask(&self.place.socket(self.pid), &Request::Stat, Some(ASK_TIME));
        let told = match asked {
            Ok(Answer::Stat(stat)) => Ok(Arc::new(*stat)),
            Ok(Answer::Refused(refusal)) => Err(refusal.to_string()),
            Ok(_) => Err(AskError::OtherAnswer.to_string()),
            Err(failure) => Err(error::chain(&failure)),
        };
        *last = Some((Instant::now(), told.clone()));
        told
    }

    /// `sys/vms/PID/hints`.
    fn entries(self: &Arc<Self>) -> Vec<(String, Entry)> {
        let told = self.stat();
        let state = match &told {
            Ok(stat) if stat.pages.is_some() => "on".to_owned(),
            Ok(_) => format!("off: {}", Refusal::ReclaimDisabled),
            Err(why) => format!("unknown: {why}"),
        };
        let mut entries: Vec<_> = self.file("state", state).into_iter().collect();
        if let Ok(stat) = told
            && let Some(pages) = &stat.pages
        {
            let files: [(_, Node); 2] = [
                ("reclaim", Node::File(Arc::new(ReclaimFile(self.clone())))),
                ("target", Node::File(Arc::new(TargetFile(self.clone())))),
            ];
            let files = files.into_iter();
            entries.extend(files.filter_map(|(name, node)| self.entry(name, name, node)));
            let sizes = [
                ("memory_bytes", stat.memory_bytes),
                ("resident_bytes", stat.resident_bytes),
            ];
            let sizes = sizes.into_iter();
            entries.extend(sizes.filter_map(|(name, bytes)| self.file(name, bytes.to_string())));
            let pages = serde_json::to_value(pages).unwrap_or_default();
            let counters = |pointer: &str| stat.metrics.pointer(pointer);
            let directories = [
                ("pages", Some(&pages)),
                ("taken", counters("/reclaim/pages")),
                ("times", counters("/reclaim/times")),
                ("governor", counters("/reclaim/governor")),
                ("guest", counters("/devices/hints0")),
            ];
            let directories = directories.into_iter();
            entries.extend(directories.filter_map(|(name, values)| self.directory(name, values?)));
        }
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries
    }

    fn file(&self, name: &str, value: String) -> Option<(String, Entry)> {
        self.entry(name, name, shown(value))
    }

    /// The directory `name` with a file for each of `values`, and one for each part of those that have
    /// parts, such as `punch_times`; `None` without any.
    fn directory(&self, name: &str, values: &Value) -> Option<(String, Entry)> {
        let values = values.as_object()?;
        self.ident(name)?; // before its files take what is left
        let parts = values.iter().flat_map(|(own, value)| match value {
            Value::Object(parts) => parts
                .iter()
                .map(|(part, value)| (format!("{own}_{part}"), value))
                .collect(),
            value => vec![(own.clone(), value)],
        });
        let files = parts.filter_map(|(own, value)| {
            let is_fit = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
            let is_name = (1..=MAX_TEXT_BYTES).contains(&own.len()) && own.bytes().all(is_fit);
            let value = text(value).filter(|_| is_name)?;
            self.entry(&format!("{name}/{own}"), &own, shown(value))
        });
        let mut files: Vec<_> = files.collect();
        files.sort_by(|(a, _), (b, _)| a.cmp(b));
        let directory = Node::Directory(Arc::new(Fixed(move || files.clone())));
        self.entry(name, name, directory)
    }

    /// Has it give `bytes` back, in a thread of its own.
    fn reclaim(self: Arc<Self>, bytes: u64) -> Result<(), Errno> {
        if self.is_reclaiming.swap(true, Ordering::AcqRel) {
            return Err(Errno::BUSY);
        }
        *self.reclaimed.lock() = format!("under way: {bytes} bytes");
        let vm = Arc::clone(&self);
        let started = threads::spawn(ThreadClass::Bus, "reclaim", move || {
            let outcome = match client::reclaim(&vm.place, vm.pid, bytes) {
                Ok(taken) => format!(
                    "{} of {bytes} bytes in {:.3} s",
                    taken.total_bytes(),
                    taken.took.as_secs_f64()
                ),
                Err(failure) => format!("failed: {}", error::chain(&failure)),
            };
            *vm.reclaimed.lock() = outcome;
            vm.is_reclaiming.store(false, Ordering::Release);
        });
        started.map(drop).map_err(|_| {
            *self.reclaimed.lock() = "failed: no thread".into();
            self.is_reclaiming.store(false, Ordering::Release);
            Errno::AGAIN
        })
    }
}

/// A value as it is shown; `None` for lists and the like, and for what is too long.
fn text(value: &Value) -> Option<String> {
    let text = match value {
        Value::Null => "none".into(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => text.chars().filter(|c| !c.is_control()).collect(),
        Value::Array(_) | Value::Object(_) => return None,
    };
    (text.len() <= MAX_TEXT_BYTES).then_some(text)
}

fn shown(value: String) -> Node {
    Node::File(Arc::new(Shown(move || value.clone())))
}

/// Bytes, or a size with a unit.
fn parse_size(value: &str) -> Result<u64, Errno> {
    let bytes = value.parse().ok().or_else(|| size::parse(value).ok());
    bytes.ok_or(Errno::INVAL)
}

struct ReclaimFile(Arc<Controlled>);

impl Attribute for ReclaimFile {
    fn read(&self) -> Result<String, Errno> {
        Ok(self.0.reclaimed.lock().clone())
    }

    fn write(&self, value: &str) -> Result<(), Errno> {
        Arc::clone(&self.0).reclaim(parse_size(value)?)
    }

    fn is_writable(&self) -> bool {
        true
    }
}

struct TargetFile(Arc<Controlled>);

impl Attribute for TargetFile {
    fn read(&self) -> Result<String, Errno> {
        let stat = self.0.stat().map_err(|_| Errno::IO)?;
        let target = stat.target_bytes.map(|bytes| Size(bytes).to_string());
        Ok(target.unwrap_or_else(|| "none".into()))
    }

    fn write(&self, value: &str) -> Result<(), Errno> {
        let bytes = match value {
            "none" => None,
            value => Some(parse_size(value)?),
        };
        let request = Request::Target { bytes };
        let socket = self.0.place.socket(self.0.pid);
        match client::ask(&socket, &request, Some(ASK_TIME)) {
            Ok(Answer::Target { .. }) => {}
            Ok(Answer::Refused(Refusal::ReclaimDisabled)) => return Err(Errno::OPNOTSUPP),
            Err(AskError::NoVm | AskError::HungUp) => return Err(Errno::NOENT),
            Err(AskError::Silent) => return Err(Errno::TIMEDOUT),
            Ok(_) | Err(_) => return Err(Errno::IO),
        }
        // What it said before is no longer so.
        *self.0.last_stat.lock() = None;
        Ok(())
    }

    fn is_writable(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
