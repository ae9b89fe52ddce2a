//! Disks that fail under a guest whose memory was taken, and VMs that are ended meanwhile: no wrong byte,
//! and nothing left behind.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use alacrity::control_socket::Place;
use common::failing_disk::FailingDisk;
use common::guest::Vm;
use common::host::{Host, run};
use common::reclaim::{EVERYTHING, Guest, Taker, count, take};
use common::{ALACRITY, assert_says};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;

const MAKE_FILE: &str = "mkfs.ext4 -q -b 4096 /dev/vda && mount -t ext4 /dev/vda /mnt && cd /mnt && \
    dd if=/dev/urandom of=data bs=1M count=8 2>/dev/null && md5sum data >sum && sync && sync";

#[test]
fn disk_whose_reads_fail_ends_the_vm_with_the_cause() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let Some(disk) = FailingDisk::new(&host.image("disk", 32 << 20)) else {
        return;
    };
    let flag = format!("path={},serial=failing", disk.path());
    let mut guest = Guest::start(&host, &["--hints", "--cpus", "2", "--disk", &flag]);
    guest.remove_hints_module();
    guest.vm.shell(MAKE_FILE);
    let taken = guest.take_all();
    assert!(taken.dropped_bytes > 6 * MIB, "{taken:?}");
    disk.fail("error_reads");

    guest.vm.send("md5sum -c sum\n");

    let outcome = guest.vm.wait();
    outcome.assert_status(4);
    let cause = [
        "error: the guest's memory is lost",
        "cannot bring back the page at 0x",
        "Input/output error",
    ];
    assert_says(&outcome.stderr, &cause);
    for wrong in ["FAILED", "data: OK"] {
        assert!(!outcome.stdout.contains(wrong), "{outcome:?}");
    }
    assert!(count(&host.metrics(), "/reclaim/pages/lost") > 0);
}

#[test]
fn writes_to_a_full_host_fail_and_memory_stays_right() {
    // More than the file system of the image has room for, and then a look at what is in memory.
    const FILL: &str = "dd if=/dev/urandom of=/dev/vdb bs=64k count=640 conv=fsync 2>/said; \
        grep -i error /said";
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let small = host.file("small");
    fs::create_dir(&small).unwrap();
    let small = small.to_str().unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=12m", "tmpfs", small]);
    let _unmount = Unmount(small.into());
    let full = format!("{small}/full");
    fs::File::create(&full).unwrap().set_len(64 * MIB).unwrap();
    // The swap file is there as well: pages that find no room stay.
    let swap = format!("{small},size=64M");
    let disk = format!("path={}", host.image("disk", 32 << 20));
    let full = format!("path={full}");
    let mut guest = Guest::start(&host, &["--swap", &swap, "--disk", &disk, "--disk", &full]);
    guest.vm.shell(MAKE_FILE);
    let taker = Taker::with(guest.pid, 8 * MIB, 1);

    guest.vm.shell(FILL);
    guest.vm.shell("md5sum -c sum");

    taker.stop();
    let refused = take(guest.pid, EVERYTHING);
    println!("on a full disk: {refused:?}");
    guest
        .vm
        .shell("md5sum -c sum && cd / && umount /mnt && fsck.ext4 -f -n /dev/vda");
    guest.assert_well();
    guest.power_off().assert_status(0);
}

/// A mount that goes with the test.
struct Unmount(String);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy", &self.0]).output();
    }
}

/// All that a VM may leave on a host, beside what [`Host`] looks at.
fn traces() -> BTreeSet<String> {
    let mut traces = BTreeSet::new();
    let sockets = Place::default_one().unwrap().socket(0);
    let sockets = sockets.parent().unwrap().to_str().unwrap();
    for dir in ["/sys/block", "/dev/mapper", sockets] {
        let entries = fs::read_dir(dir).into_iter().flatten();
        traces.extend(entries.map(|entry| entry.unwrap().path().display().to_string()));
    }
    let backed = fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let file = entry.unwrap().path().join("loop/backing_file");
            fs::read_to_string(file).ok()
        });
    traces.extend(backed);
    traces
}

#[test]
fn vm_that_ends_in_any_phase_leaves_nothing_behind() {
    const BUSY: &str = "page-check files /mnt 1000 & page-check writers /mnt 1000 & \
        page-check reuse /mnt 1000 &";
    let Some(host) = Host::ready() else { return };
    let before = traces();
    let swap = host.tmp();
    let image = host.image("disk", 32 << 20);
    let disk = format!("path={image},serial=disk");
    let flags = [
        "--swap",
        swap.to_str().unwrap(),
        "--disk",
        &disk,
        "--cpus",
        "2",
    ];
    // Later and later: while the chunks begin to be watched, while pages are compared, written to the
    // swap file, brought back.
    let ends = [
        (Signal::KILL, 100, -9),
        (Signal::TERM, 400, 128 + 15),
        (Signal::INT, 1_000, 128 + 2),
        (Signal::KILL, 3_000, -9),
    ];
    for (signal, millis, status) in ends {
        let mut guest = Guest::start(&host, &flags);
        guest
            .vm
            .shell("mkfs.ext4 -F -q -b 4096 /dev/vda && mount -t ext4 /dev/vda /mnt");
        guest.vm.send(&format!("{BUSY}\n"));
        thread::sleep(Duration::from_secs(2));
        let taker = Taker::with(guest.pid, EVERYTHING, 0);
        thread::sleep(Duration::from_millis(millis));
        guest.vm.signal(signal);
        if signal != Signal::KILL {
            // The second one does not wait for the guest to power off.
            thread::sleep(Duration::from_millis(100));
            guest.vm.signal(signal);
        }
        guest.vm.wait().assert_status(status);
        taker.stop();
        // The name of a killed VM's socket goes with the next look.
        run(ALACRITY, &["ps"]);
        assert_eq!(traces(), before, "after {signal:?} at {millis} ms");
        assert_eq!(fs::read_dir(&swap).unwrap().count(), 0);
    }
    // Nobody has the image locked any more.
    let again = Vm::new(&host, &[&flags[..], &["--exec", "true"]].concat()).run();
    again.assert_status(0);
}
