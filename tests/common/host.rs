//! This machine as a host of guests: whether it can, whose turn it is, and that it is afterwards as
//! it was before.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use alacrity::check;
use tempfile::TempDir;

use super::{skip_without_kvm, until};

/// How long the kernel may take to clear away what belonged to a process that ended.
const CLEAN_DEADLINE: Duration = Duration::from_secs(20);
/// Bytes of a process name in `/proc/PID/comm`.
const COMM_BYTES: usize = 15;

/// A host of guests. One test at a time has it, whatever program the test is in; when it is
/// dropped, it checks that nothing was left behind.
#[derive(Debug)]
pub struct Host {
    dir: TempDir,
    files: RefCell<BTreeSet<String>>,
    num_networks: Cell<u8>,
    before: BTreeSet<String>,
    _turn: File,
}

impl Host {
    /// Waits for its turn; `None`, after saying why, where Linux guests cannot run.
    pub fn ready() -> Option<Self> {
        if let Err(why) = can_run_guests() {
            skip_without_kvm(why);
            return None;
        }
        let turn = File::open(env!("CARGO_TARGET_TMPDIR")).unwrap();
        turn.lock().unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("cwd")).unwrap();
        fs::create_dir(dir.path().join("tmp")).unwrap();
        Some(Host {
            dir,
            files: RefCell::default(),
            num_networks: Cell::new(0),
            before: snapshot(),
            _turn: turn,
        })
    }

    /// The same for tests that make network interfaces or change the system, which needs root.
    pub fn ready_for_root() -> Option<Self> {
        if !is_root() {
            skip_without_kvm("needs root");
            return None;
        }
        Self::ready()
    }

    /// Where the VMs run. It is empty before and has to be so afterwards, as has their `TMPDIR`.
    pub fn cwd(&self) -> PathBuf {
        self.dir.path().join("cwd")
    }

    /// Where the VMs may have temporary files while they run.
    pub fn tmp(&self) -> PathBuf {
        self.dir.path().join("tmp")
    }

    /// Path of a file that the test may have.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.borrow_mut().insert(name.into());
        self.dir.path().join(name)
    }

    /// What a VM with `--metrics` left in the file `metrics`.
    #[track_caller]
    pub fn metrics(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.file("metrics")).unwrap()).unwrap()
    }

    /// Path of a new image full of zeroes.
    pub fn image(&self, name: &str, len_bytes: usize) -> String {
        let path = self.file(name);
        File::create(&path)
            .unwrap()
            .set_len(len_bytes as u64)
            .unwrap();
        path.to_str().unwrap().into()
    }

    /// A network that nothing else uses.
    pub fn network(&self) -> Network {
        let net_idx = self.num_networks.get();
        self.num_networks.set(net_idx + 1);
        Network {
            tap: format!("at{}n{net_idx}", std::process::id()),
            prefix: format!("10.213.{net_idx}"),
        }
    }

    fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<_> = snapshot().difference(&self.before).cloned().collect();
        let mut known = self.files.borrow().clone();
        known.extend(["cwd".into(), "tmp".into()]);
        left.extend(names(self.dir.path()).difference(&known).cloned());
        left.extend(names(&self.cwd()));
        left.extend(names(&self.tmp()));
        left
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let is_clean = until(CLEAN_DEADLINE, || self.leftovers().is_empty());
        if !std::thread::panicking() {
            assert!(is_clean, "left behind: {:?}", self.leftovers());
        }
    }
}

/// A TAP's name and the addresses of both ends.
#[derive(Debug)]
pub struct Network {
    pub tap: String,
    prefix: String,
}

impl Network {
    pub fn host_ip(&self) -> String {
        format!("{}.1", self.prefix)
    }

    pub fn guest_ip(&self) -> String {
        format!("{}.2", self.prefix)
    }

    /// Value of `--net` with `more` keys (each with its leading comma).
    pub fn flag(&self, more: &str) -> String {
        let (tap, host_ip, guest_ip) = (&self.tap, self.host_ip(), self.guest_ip());
        format!("tap={tap},host_ip={host_ip}/24,guest_ip={guest_ip}/24{more}")
    }

    /// An address that no network here has.
    pub fn unused() -> &'static str {
        "10.213.255.1"
    }

    /// Whether the interface is there.
    pub fn exists(&self) -> bool {
        Path::new("/sys/class/net").join(&self.tap).exists()
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a program of the host that has to succeed.
pub fn run(program: &str, args: &[&str]) {
    let status = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{program} {args:?}: {status}");
}

/// Where the default guest image is.
pub fn image_dir() -> PathBuf {
    env::var_os("ALACRITY_GUEST_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest"),
        PathBuf::from,
    )
}

fn can_run_guests() -> Result<(), &'static str> {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    let answer = ANSWER.get_or_init(|| {
        if let Some(why) = env::var_os("SKIP_BOOT") {
            return Err(format!("SKIP_BOOT={}", why.display()));
        }
        // The check runs a tiny guest, which an emulated processor may get wrong once.
        if let Some(item) = what_is_missing().and_then(|_| what_is_missing()) {
            return Err(format!(
                "Linux guests cannot run here ({}: {}); scripts/test --boot runs this in the lab",
                item.name, item.detail
            ));
        }
        match image_dir().join("initramfs.cpio").is_file() {
            true => Ok(()),
            false => Err("no default guest image; scripts/guest-image makes it".into()),
        }
    });
    answer.as_ref().copied().map_err(String::as_str)
}

/// The first thing that keeps this machine from running guests.
fn what_is_missing() -> Option<check::Item> {
    let report = check::report();
    report
        .items
        .into_iter()
        .find(|item| item.required && item.state != check::State::Ok)
}

/// What must not be more afterwards: interfaces made of TAPs, and our processes.
fn snapshot() -> BTreeSet<String> {
    let taps = names(Path::new("/sys/class/net"))
        .into_iter()
        .filter(|name| {
            Path::new("/sys/class/net")
                .join(name)
                .join("tun_flags")
                .exists()
        })
        .map(|name| format!("interface {name}"));
    let processes = names(Path::new("/proc")).into_iter().filter_map(|pid| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        let is_ours = ["alacrity", "passt"]
            .iter()
            .any(|name| comm.trim_end().get(..name.len().min(COMM_BYTES)) == Some(*name));
        is_ours.then(|| format!("process {pid} {}", comm.trim_end()))
    });
    taps.chain(processes).collect()
}

pub fn names(dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return BTreeSet::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}
