//! What the host says about its memory: limits of the cgroups that we are in, and stalls.
//!
//! # Source
//! Linux `Documentation/admin-guide/cgroup-v2.rst` (`memory.high`, `memory.stat`) and
//! `Documentation/accounting/psi.rst` (triggers).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where the host has its cgroups, ours among them, and its stalls.
const CGROUPS: &str = "/sys/fs/cgroup";
const OWN_CGROUP: &str = "/proc/self/cgroup";
const HOST_STALLS: &str = "/proc/pressure/memory";

/// Some task waited for memory for 100 ms of 2 s: the shortest window that every user may ask for.
const TRIGGER: &[u8] = b"some 100000 2000000\0";
/// Of a limit, so much stays free: then the kernel does not begin to reclaim before us.
const HEAD_ROOM_PERCENT: u64 = 5;

/// Why something of the host does not count.
#[derive(Debug, thiserror::Error)]
pub enum PressureError {
    /// No cgroup v2.
    #[error("no cgroup v2 hierarchy on {CGROUPS}")]
    NoCgroups,
    /// A cgroup without the controller.
    #[error("cgroup {cgroup} has no memory controller")]
    NoController {
        /// Below the root of the hierarchy.
        cgroup: String,
    },
    /// No trigger.
    #[error("cannot be told of stalls by {}", path.display())]
    Trigger {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Our cgroup, and those above it.
#[derive(Debug)]
pub struct Cgroup {
    root: PathBuf,
    dir: PathBuf,
}

impl Cgroup {
    /// That of this process.
    ///
    /// # Errors
    /// [`PressureError::NoCgroups`], [`PressureError::NoController`].
    pub fn own() -> Result<Self, PressureError> {
        let own = fs::read_to_string(OWN_CGROUP).map_err(|_| PressureError::NoCgroups)?;
        Cgroup::of(Path::new(CGROUPS), &own)
    }

    /// That of the process with the file `own` in its `/proc`, in the hierarchy at `root`.
    fn of(root: &Path, own: &str) -> Result<Self, PressureError> {
        let path = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let path = path.filter(|_| root.join("cgroup.controllers").exists());
        let path = path.ok_or(PressureError::NoCgroups)?;
        let cgroup = Cgroup {
            root: root.into(),
            dir: root.join(path),
        };
        // The root has no limits, and nothing is missing there.
        if path.is_empty() || cgroup.dir.join("memory.current").exists() {
            return Ok(cgroup);
        }
        Err(PressureError::NoController {
            cgroup: cgroup.name(),
        })
    }

    /// Below the root of the hierarchy.
    pub fn name(&self) -> String {
        let below = self.dir.strip_prefix(&self.root).unwrap_or(&self.dir);
        format!("/{}", below.display())
    }

    /// Bytes by which its memory, or that of one above, is too near to the limit.
    pub fn excess(&self) -> u64 {
        let dirs = self.dir.ancestors();
        let below_root = dirs.take_while(|dir| *dir != self.root);
        below_root.filter_map(excess_of).max().unwrap_or(0)
    }

    /// Where it tells of stalls; `None` for the root, which is the host.
    fn stalls(&self) -> Option<PathBuf> {
        (self.dir != self.root).then(|| self.dir.join("memory.pressure"))
    }
}

/// The same for the cgroup at `dir` alone; `None` without a limit.
fn excess_of(dir: &Path) -> Option<u64> {
    let value = |name: &str| fs::read_to_string(dir.join(name)).ok();
    let number = |name: &str| value(name)?.trim().parse::<u64>().ok();
    // "max" is no number, and no limit.
    let limits = [number("memory.high"), number("memory.max")];
    let limit = limits.into_iter().flatten().min()?;
    // What the kernel drops by itself, at no cost.
    let stat = value("memory.stat").unwrap_or_default();
    let idle = stat.lines().find_map(|line| {
        let bytes = line.strip_prefix("inactive_file ")?;
        bytes.parse::<u64>().ok()
    });
    let used = number("memory.current")?.saturating_sub(idle.unwrap_or(0));
    Some(used.saturating_sub(limit - limit / 100 * HEAD_ROOM_PERCENT))
}

/// Says when tasks wait for memory.
#[derive(Debug)]
pub struct StallTrigger(File);

impl StallTrigger {
    /// Of all tasks of the host.
    ///
    /// # Errors
    /// [`PressureError::Trigger`].
    pub fn of_host() -> Result<Self, PressureError> {
        StallTrigger::at(HOST_STALLS.into())
    }

    /// Of those in `cgroup`; `None` if that is the host.
    ///
    /// # Errors
    /// [`PressureError::Trigger`].
    pub fn of_cgroup(cgroup: &Cgroup) -> Result<Option<Self>, PressureError> {
        cgroup.stalls().map(StallTrigger::at).transpose()
    }

    fn at(path: PathBuf) -> Result<Self, PressureError> {
        let open = || {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true);
            let mut file = options.custom_flags(libc::O_NONBLOCK).open(&path)?;
            file.write_all(TRIGGER)?;
            Ok(file)
        };
        match open() {
            Ok(file) => Ok(StallTrigger(file)),
            Err(source) => Err(PressureError::Trigger { path, source }),
        }
    }
}

impl AsFd for StallTrigger {
    /// Has `POLLPRI` when tasks waited, at most once in 2 s; `POLLERR` when the cgroup is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const MIB: u64 = 1 << 20;

    /// A hierarchy with `/vms/web`.
    fn hierarchy() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("vms/web")).unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "memory\n").unwrap();
        for cgroup in ["vms", "vms/web"] {
            write(&dir, &format!("{cgroup}/memory.current"), 100 * MIB);
            for limit in ["high", "max"] {
                let path = dir.path().join(cgroup).join(format!("memory.{limit}"));
                fs::write(path, "max\n").unwrap();
            }
        }
        dir
    }

    fn write(dir: &TempDir, file: &str, value: u64) {
        fs::write(dir.path().join(file), format!("{value}\n")).unwrap();
    }

    #[test]
    fn nearest_limit_of_all_cgroups_above_counts() {
        let dir = hierarchy();
        let cgroup = Cgroup::of(dir.path(), "1:cpu:/x\n0::/vms/web\n").unwrap();
        assert_eq!(cgroup.name(), "/vms/web");
        assert_eq!(cgroup.excess(), 0, "no limit");

        write(&dir, "vms/web/memory.max", 100 * MIB);
        assert_eq!(cgroup.excess(), 5 * MIB, "head room");
        write(&dir, "vms/memory.high", 50 * MIB);
        write(&dir, "vms/memory.max", 80 * MIB);
        assert_eq!(cgroup.excess(), 100 * MIB - 50 * MIB / 100 * 95);
        let stat = format!("file 9\ninactive_file {}\n", 60 * MIB);
        fs::write(dir.path().join("vms/memory.stat"), stat).unwrap();
        assert_eq!(cgroup.excess(), 5 * MIB, "cache that nobody uses");
    }

    #[test]
    fn root_has_no_limits_and_what_is_missing_is_named() {
        let dir = hierarchy();
        let root = Cgroup::of(dir.path(), "0::/\n").unwrap();
        assert_eq!((root.excess(), root.name()), (0, "/".into()));
        assert!(StallTrigger::of_cgroup(&root).unwrap().is_none());

        let other = Cgroup::of(dir.path(), "0::/other\n").unwrap_err();
        assert!(other.to_string().contains("/other"), "{other}");
        let old = Cgroup::of(dir.path(), "4:memory:/x\n").unwrap_err();
        assert!(matches!(old, PressureError::NoCgroups));
    }

    #[test]
    fn trigger_that_cannot_be_set_names_its_file() {
        let error = StallTrigger::at("/nonexistent/memory.pressure".into()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent"), "{error}");
    }
}
