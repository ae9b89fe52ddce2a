//! Guests whose hints are wrong, and who give away what is not theirs: nobody but they lose anything.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::process::Command;

use common::assert_says;
use common::host::{Host, run};
use common::reclaim::{EVERYTHING, Guest, Taker, count, take};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;
/// How long each kind of wrong words is told.
const SECONDS: u32 = 4;
/// Memory that the host may use for itself meanwhile: buffers of its threads, and sets of what was taken.
const GROWTH_KIB: u64 = 32 << 10;

/// Words: random ones, random sectors, sectors that are none, everything unused, sectors of other pages
/// of the same file, and all that with some truth in between.
const WORDS: [&str; 6] = ["random", "sectors", "past", "unused", "others", "storm"];

/// Blocks that are none, for each of which the device is cut off.
const BAD_BLOCKS: [&str; 13] = [
    "behind",
    "across",
    "nowhere",
    "wrapping",
    "device",
    "huge",
    "endless",
    "odd",
    "small",
    "empty",
    "unaligned",
    "kind",
    "reserved",
];

/// What harms nobody but the guest, and is served.
const BAD_MANNERS: [&str; 4] = ["duplicates", "own-rings", "in-use", "calls"];

/// Makes the module `hints` leave the device to `hints_hostile`.
const REPLACE_DRIVER: &str = "rmmod hints; rm /lib/modules/*/hints.ko";

/// Two disks with files, of one of which the pages are known; and both in the guest's cache.
const MAKE_FILES: &str = "mkdir /other && for disk in vda:/mnt vdb:/other; do \
    mkfs.ext4 -q -b 4096 /dev/${disk%:*} && mount -t ext4 /dev/${disk%:*} ${disk#*:} && \
    dd if=/dev/urandom of=${disk#*:}/data bs=1M count=8 2>/dev/null || exit 1; done; sync; \
    md5sum /mnt/data /other/data >/sum";
const CHECK_FILES: &str = "md5sum -c /sum && echo 3 >/proc/sys/vm/drop_caches && md5sum -c /sum && \
    for disk in /mnt /other; do umount $disk || exit 1; done; \
    fsck.ext4 -f -n /dev/vda && fsck.ext4 -f -n /dev/vdb";

/// A guest with two processors, two disks and `hints_hostile` to be loaded.
fn start(host: &Host) -> Guest<'_> {
    let disks = ["files", "other"].map(|name| {
        let image = host.image(name, 32 << 20);
        format!("path={image},serial={name}")
    });
    let swap = host.tmp();
    let mut flags = vec!["--swap", swap.to_str().unwrap(), "--cpus", "2"];
    flags.extend(["--memory", "160M", "--disk", &disks[0], "--disk", &disks[1]]);
    let mut guest = Guest::start(host, &flags);
    guest.vm.shell(REPLACE_DRIVER);
    guest.vm.shell(&format!("({MAKE_FILES})"));
    guest
}

#[test]
fn wrong_words_cost_time_and_nothing_else() {
    let Some(host) = Host::ready() else { return };
    let mut guest = start(&host);
    guest.vm.shell("mkdir /mnt/check /other/check");
    take(guest.pid, 8 * MIB).unwrap();
    let before = guest.upkeep();
    guest
        .vm
        .shell("{ (page-check files /mnt/check 20; page-check writers /other/check 10) >/said & }");

    let taker = Taker::with(guest.pid, 8 * MIB, 1);
    for mode in WORDS {
        guest.vm.shell(&format!(
            "modprobe hints_hostile mode={mode} path=/mnt/data disks=files,other && \
             sleep {SECONDS} && rmmod hints_hostile"
        ));
    }
    guest
        .vm
        .shell("wait; cat /said; test $(grep -c ': ok, ' /said) = 2");
    taker.stop();

    let pages = guest.assert_well();
    let metrics = guest.metrics();
    let hints = &metrics["devices"]["hints0"];
    println!("hints: {hints}");
    for name in ["refused", "unknown_disks", "sectors_past_end"] {
        assert!(count(hints, &format!("/{name}")) > 0, "{name}: {hints}");
    }
    assert!(count(&pages, "/unequal") > 0, "{pages}");
    assert_eq!(count(&metrics, "/devices/vbus0/devices_dropped"), 0);
    guest.upkeep().assert_bounded(before, GROWTH_KIB);
    guest.vm.shell(&format!("({CHECK_FILES})"));
    guest.power_off().assert_status(0);
}

#[test]
fn blocks_that_are_none_cut_the_device_off_and_bad_manners_harm_nobody_else() {
    let Some(host) = Host::ready() else { return };
    let mut guest = start(&host);
    let before = guest.upkeep();
    let modes = [&BAD_BLOCKS[..], &BAD_MANNERS].concat().join(" ");
    let taker = Taker::with(guest.pid, 8 * MIB, 1);
    guest.vm.shell(&format!(
        "for mode in {modes}; do modprobe hints_hostile mode=$mode disks=files,other; \
         rmmod hints_hostile; rmmod vbus_pci; modprobe vbus_pci; done"
    ));
    guest.vm.shell("dmesg | grep hints_hostile:");
    taker.stop();

    let said = guest.vm.stdout.text();
    for (modes, verdict) in [(&BAD_BLOCKS[..], "cut off"), (&BAD_MANNERS, "answered")] {
        let verdicts = modes.iter().map(|mode| format!("{mode}: {verdict}"));
        let verdicts: Vec<_> = verdicts.collect();
        assert_says(
            &said,
            &verdicts.iter().map(String::as_str).collect::<Vec<_>>(),
        );
    }
    guest.assert_well();
    let dropped = count(&guest.metrics(), "/devices/vbus0/devices_dropped");
    assert_eq!(dropped, BAD_BLOCKS.len() as u64);
    assert_says(&guest.vm.stderr.text(), &["cut off"]);
    guest.upkeep().assert_bounded(before, GROWTH_KIB);
    guest.vm.shell(&format!("({CHECK_FILES})"));
    guest.power_off().assert_status(0);
}

#[test]
fn guest_that_gives_away_all_of_itself_harms_nobody_else() {
    let Some(host) = Host::ready() else { return };
    let mut other = Guest::start(&host, &["--swap", host.tmp().to_str().unwrap()]);
    other
        .vm
        .shell("dd if=/dev/urandom of=/data bs=1M count=8; md5sum /data >/sum");
    let mut guest = start(&host);
    let disk = host.file("files");
    guest.vm.shell("sync; cat /sum");
    let taker = Taker::with(other.pid, 8 * MIB, 1);

    guest.vm.send("modprobe hints_hostile mode=suicide\n");
    // Nothing more comes from it, whether it panics, ends or spins.
    let is_silent = || {
        let len = guest.vm.stdout.text().len();
        std::thread::sleep(std::time::Duration::from_secs(3));
        guest.vm.stdout.text().len() == len
    };
    assert!(common::until(common::DEADLINE, is_silent));
    let _ = take(guest.pid, EVERYTHING);
    // The second one does not wait for the guest.
    for _ in 0..2 {
        guest.vm.signal(Signal::TERM);
    }
    let said = guest.vm.wait();
    println!("it ended with {:?}", said.status);

    taker.stop();
    other.vm.shell("md5sum -c /sum");
    other.assert_well();
    other.power_off().assert_status(0);
    // What was synced is on the disk as it was.
    let copy = host.file("copy");
    let dump = format!("dump /data {}", copy.to_str().unwrap());
    run("debugfs", &["-R", &dump, disk.to_str().unwrap()]);
    let sum = Command::new("md5sum").arg(copy).output().unwrap().stdout;
    let sum = String::from_utf8(sum).unwrap();
    assert_says(&said.stdout, &[sum.split(' ').next().unwrap()]);
}
