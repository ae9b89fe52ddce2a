//! A disk of the host that fails when it is told to: device mapper over a loop device.

use std::fs;
use std::process::{Command, Output};

use super::skip;

const SECTOR_BYTES: u64 = 512;

/// A disk whose reads or writes fail from some moment on.
pub struct FailingDisk {
    name: String,
    loop_device: String,
    num_sectors: u64,
}

impl FailingDisk {
    /// One that works, with the bytes of `image`; `None`, after saying why, where that cannot be.
    pub fn new(image: &str) -> Option<Self> {
        let targets = output("dmsetup", &["targets"]);
        let targets = targets.filter(|it| String::from_utf8_lossy(&it.stdout).contains("flakey"));
        if targets.is_none() {
            skip("no dmsetup, or no dm-flakey in this kernel");
            return None;
        }
        let found = output("losetup", &["--find", "--show", image])?;
        assert!(found.status.success(), "{found:?}");
        let disk = FailingDisk {
            name: format!("alacrity-test-{}", std::process::id()),
            loop_device: String::from_utf8(found.stdout).unwrap().trim().into(),
            num_sectors: fs::metadata(image).unwrap().len() / SECTOR_BYTES,
        };
        let table = disk.table("linear", "");
        dmsetup(&["create", &disk.name, "--table", &table]);
        Some(disk)
    }

    pub fn path(&self) -> String {
        format!("/dev/mapper/{}", self.name)
    }

    fn table(&self, target: &str, more: &str) -> String {
        format!(
            "0 {} {target} {} 0{more}",
            self.num_sectors, self.loop_device
        )
    }

    fn replace(&self, table: &str) {
        dmsetup(&["suspend", &self.name]);
        dmsetup(&["load", &self.name, "--table", table]);
        dmsetup(&["resume", &self.name]);
    }

    /// From now on all `error_reads` or `error_writes` fail, and nothing else.
    pub fn fail(&self, what: &str) {
        self.replace(&self.table("flakey", &format!(" 0 3600 1 {what}")));
        // The host has the bytes in its own cache otherwise.
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    }

    /// It works again.
    pub fn mend(&self) {
        self.replace(&self.table("linear", ""));
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        let _ = output("dmsetup", &["remove", "--retry", &self.name]);
        let _ = output("losetup", &["--detach", &self.loop_device]);
    }
}

fn output(program: &str, args: &[&str]) -> Option<Output> {
    let mut command = Command::new(program);
    // There may be none: dmsetup makes its nodes itself.
    command.env("DM_DISABLE_UDEV", "1").args(args);
    command.output().ok()
}

#[track_caller]
fn dmsetup(args: &[&str]) {
    let output = output("dmsetup", args).unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
}
