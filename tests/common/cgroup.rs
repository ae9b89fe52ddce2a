//! A cgroup with a limit for memory.

use std::fs;
use std::path::PathBuf;

use super::{ALACRITY, skip};

/// Joins the cgroup `$0`, and becomes the program behind it.
const JOIN: &str = "echo $$ >$0/cgroup.procs && exec \"$@\"";

/// A cgroup of the host. Dropping it removes it.
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// `None`, after saying why, where none can be made.
    pub fn new() -> Option<Self> {
        let root = PathBuf::from("/sys/fs/cgroup");
        if fs::write(root.join("cgroup.subtree_control"), "+memory").is_err() {
            skip("no cgroup v2 whose memory controller can be used");
            return None;
        }
        let cgroup = Cgroup(root.join(format!("alacrity-test-{}", std::process::id())));
        fs::create_dir(&cgroup.0).unwrap();
        Some(cgroup)
    }

    /// What starts a VM in it, before its arguments.
    pub fn program(&self) -> [&str; 6] {
        ["sh", "-c", JOIN, self.0.to_str().unwrap(), ALACRITY, "run"]
    }

    pub fn set(&self, file: &str, bytes: u64) {
        fs::write(self.0.join(file), bytes.to_string()).unwrap();
    }

    pub fn name(&self) -> String {
        format!("/{}", self.0.file_name().unwrap().to_str().unwrap())
    }

    /// The number behind `key` in `file`; without a key the only one.
    #[track_caller]
    pub fn number(&self, file: &str, key: &str) -> u64 {
        let text = fs::read_to_string(self.0.join(file)).unwrap();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {key} in {file}: {text}"))
    }

    /// Bytes that only who uses them can give back.
    pub fn needed_bytes(&self) -> u64 {
        let current = self.number("memory.current", "");
        current.saturating_sub(self.number("memory.stat", "inactive_file "))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
