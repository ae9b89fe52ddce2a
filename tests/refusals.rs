//! Disks and interfaces that are refused before anything starts: status 2, one or two clear lines,
//! nothing left behind. What needs no file or device is in `cli.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use alacrity_devices::virtio::blk::Disk;
use common::host::is_root;
use common::refused::{Place, refusal};
use common::{ALACRITY, assert_says, skip};

/// Arguments of setpriv(1) for a user who owns nothing.
const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

fn with_kernel<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["--kernel", "kernel"], args].concat()
}

fn refused_disk(place: &Place, disk: &str) -> String {
    place.refused(&with_kernel(&["--disk", &format!("path={disk}")]))
}

/// A TAP that root made, as long as this lives.
struct RootsTap(String);

impl RootsTap {
    fn new(name: &str) -> Option<Self> {
        let args = ["tuntap", "add", name, "mode", "tap", "user", "root"];
        let made = Command::new("ip").args(args).output();
        made.is_ok_and(|output| output.status.success())
            .then(|| RootsTap(name.into()))
    }
}

impl Drop for RootsTap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.0]).output();
    }
}

#[test]
fn disk_that_is_missing_is_refused() {
    let text = refused_disk(&Place::new(), "none.img");

    assert_says(&text, &["disk0", "none.img", "no such file", "truncate -s"]);
}

#[test]
fn disk_that_is_no_disk_is_refused() {
    let place = Place::new().file("empty", "").file("image", "QFI\u{b}");
    fs::write(
        place.dir.path().join("qcow2"),
        [b"QFI\xfb", [0; 508].as_slice()].concat(),
    )
    .unwrap();

    let directory = refused_disk(&place, ".");
    let device = refused_disk(&place, "/dev/null");
    let empty = refused_disk(&place, "empty");
    let qcow2 = refused_disk(&place, "qcow2");

    assert_says(&directory, &["disk0", "directory", "raw image"]);
    assert_says(&device, &["disk0", "/dev/null", "neither a regular file"]);
    assert_says(&empty, &["disk0", "empty", "0 bytes", "512"]);
    assert_says(&qcow2, &["disk0", "qcow2", "qemu-img convert"]);
}

#[test]
fn read_only_file_as_writable_disk_is_refused() {
    let place = Place::new();
    let image = place.dir.path().join("disk.img");
    fs::write(&image, [0; 4096]).unwrap();
    fs::set_permissions(&image, Permissions::from_mode(0o444)).unwrap();
    fs::set_permissions(place.dir.path(), Permissions::from_mode(0o755)).unwrap();
    let run = ["run", "--kernel", "kernel", "--disk", "path=disk.img"];
    let program = place.dir.path().join("alacrity");
    fs::copy(ALACRITY, &program).unwrap();
    let run = [&[program.to_str().unwrap()], &run[..]].concat();

    // Root may write what is read-only.
    let output = if is_root() {
        place.command("setpriv", &[&NOBODY[..], &run].concat())
    } else {
        place.command(run[0], &run[1..])
    }
    .output()
    .unwrap();

    assert_says(
        &refusal(&output),
        &["disk0", "disk.img", "for writing", "`ro`"],
    );
}

#[test]
fn disk_that_another_vm_uses_is_refused() {
    let place = Place::new();
    let image = place.dir.path().join("disk.img");
    fs::write(&image, [0; 4096]).unwrap();
    let _user = Disk::open(&image, false).unwrap();

    let text = refused_disk(&place, "disk.img");

    assert_says(&text, &["disk0", "disk.img", "in use by another VM"]);
}

#[test]
fn serial_number_of_21_bytes_is_refused() {
    let place = Place::new();
    fs::write(place.dir.path().join("disk.img"), [0; 4096]).unwrap();

    let text = refused_disk(&place, "disk.img,serial=123456789012345678901");

    assert_says(&text, &["serial", "20"]);
}

#[test]
fn host_without_tun_is_refused() {
    if !is_root() {
        return skip("cannot hide /dev without root");
    }
    let place = Place::new();
    let script = "mount -t tmpfs none /dev && mknod -m 666 /dev/urandom c 1 9 && \
        mknod -m 666 /dev/null c 1 3 && exec \"$0\" run --kernel kernel --net tap=attest0";

    let output = place
        .command("unshare", &["--mount", "sh", "-c", script, ALACRITY])
        .output()
        .unwrap();

    assert_says(
        &refusal(&output),
        &["net0", "no /dev/net/tun", "modprobe tun"],
    );
}

#[test]
fn tap_of_somebody_else_is_refused() {
    let name = format!("ao{}", std::process::id());
    let Some(_tap) = RootsTap::new(&name) else {
        return skip("cannot make a TAP (root and /dev/net/tun are needed)");
    };
    // The permissions of /dev/net/tun are not what this is about.
    let override_files = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"];
    let flag = format!("tap={name}");
    let run = [ALACRITY, "run", "--kernel", "kernel", "--net", &flag];

    let output = Place::new()
        .command("setpriv", &[&NOBODY[..], &override_files, &run].concat())
        .output()
        .unwrap();

    assert_says(
        &refusal(&output),
        &["net0", &name, "belongs to somebody else"],
    );
}

#[test]
fn tap_that_only_root_may_make_is_refused() {
    if !is_root() || !Path::new("/dev/net/tun").exists() {
        return skip("root and /dev/net/tun are needed");
    }
    let override_files = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"];
    let run = [
        ALACRITY,
        "run",
        "--kernel",
        "kernel",
        "--net",
        "tap=attest1",
    ];

    let output = Place::new()
        .command("setpriv", &[&NOBODY[..], &override_files, &run].concat())
        .output()
        .unwrap();

    assert_says(
        &refusal(&output),
        &["no TAP attest1", "needs root", "ip tuntap add"],
    );
    assert!(!Path::new("/sys/class/net/attest1").exists());
}

#[test]
fn interface_that_is_no_tap_is_refused() {
    if !is_root() || !Path::new("/dev/net/tun").exists() {
        return skip("root and /dev/net/tun are needed");
    }

    let text = Place::new().refused(&with_kernel(&["--net", "tap=lo"]));

    assert_says(&text, &["net0", "lo", "not a TAP", "another name"]);
}

#[test]
fn tap_is_gone_when_something_else_is_refused() {
    if !is_root() || !Path::new("/dev/net/tun").exists() {
        return skip("root and /dev/net/tun are needed");
    }
    let flags = ["--net", "tap=attest2", "--net", "tap=lo"];

    let text = Place::new().refused(&with_kernel(&flags));

    assert_says(&text, &["net1", "lo"]);
    assert!(!Path::new("/sys/class/net/attest2").exists());
}
