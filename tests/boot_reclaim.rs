//! Memory that the host takes from a running guest: the guest never finds anything but what it wrote.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs::{self, OpenOptions};
use std::thread;

use common::assert_says;
use common::host::Host;
use common::reclaim::{EVERYTHING, Guest, Taker, count, take};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;
/// Bytes of the file that guests have in their cache.
const FILE_BYTES: u64 = 12 * MIB;

/// Makes a file system with a file that is in the guest's cache, and on the disk.
const MAKE_FILE: &str = "mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt && cd /mnt && \
    dd if=/dev/urandom of=data bs=1M count=12 2>/dev/null && md5sum data >sum && sync";
const CHECK_FILE: &str = "md5sum -c sum";
/// The same in memory that is on no disk.
const MAKE_MEMORY: &str = "mkdir -p /ram && mount -t tmpfs tmpfs /ram && cd /ram && \
    dd if=/dev/urandom of=data bs=1M count=12 2>/dev/null && md5sum data >sum";

#[test]
fn cached_file_is_dropped_and_comes_back_without_the_guest_reading_it() {
    let Some(host) = Host::ready() else { return };
    let (mut guest, _) = Guest::with_disk(&host, &["--hints"]);
    guest.remove_hints_module();
    guest.vm.shell(MAKE_FILE);
    let num_reads = guest.num_disk_reads();
    let before = guest.vm.resident_bytes();

    let taken = guest.take_all();

    let after = guest.vm.resident_bytes();
    println!(
        "memory: {} KiB before, {} KiB after",
        before >> 10,
        after >> 10
    );
    assert_eq!(taken.swapped_bytes, 0);
    assert!(taken.dropped_bytes >= FILE_BYTES * 9 / 10, "{taken:?}");
    assert!(before - after >= FILE_BYTES * 9 / 10, "{before} {after}");
    guest.vm.shell(CHECK_FILE);
    assert_eq!(guest.num_disk_reads(), num_reads, "it was in its cache");
    let pages = guest.assert_well();
    assert!(count(&pages, "/refilled") * 4096 >= FILE_BYTES * 9 / 10);
    assert!(count(&pages, "/read_ahead") > 0, "{pages}");
    // Read, so not changed: it goes again, and nothing is read for that.
    let again = guest.take_all();
    assert!(again.dropped_bytes >= FILE_BYTES * 9 / 10, "{again:?}");
    guest.vm.shell(CHECK_FILE);
    guest.power_off().assert_status(0);
}

#[test]
fn memory_on_no_disk_is_swapped_and_comes_back() {
    let Some(host) = Host::ready() else { return };
    let swap = format!("{},size=192M", host.tmp().display());
    let mut guest = Guest::start(&host, &["--swap", &swap]);
    guest.vm.shell(MAKE_MEMORY);
    for round in 0..3 {
        let before = guest.vm.resident_bytes();

        let taken = guest.take_all();

        let after = guest.vm.resident_bytes();
        println!(
            "memory: {} KiB before, {} KiB after",
            before >> 10,
            after >> 10
        );
        assert!(taken.swapped_bytes >= FILE_BYTES / 2, "{round}: {taken:?}");
        assert!(after < before / 2, "{before} {after}");
        guest.vm.shell(CHECK_FILE);
        guest
            .vm
            .shell("dd if=/dev/urandom of=data bs=64k count=4 seek=9 conv=notrunc 2>/dev/null");
        guest.vm.shell("md5sum data >sum");
    }
    let pages = guest.assert_well();
    assert!(count(&pages, "/swapped_in") * 4096 >= FILE_BYTES, "{pages}");
    guest.power_off().assert_status(0);
}

#[test]
fn files_that_change_while_memory_is_taken_are_right() {
    // Written over, cut, read past the cache, and from behind it; each time compared with a copy
    // in a file that nobody changes any more.
    const CHANGE: &str = "for i in 1 2 3; do \
        dd if=/dev/urandom of=/ram/new bs=64k count=16 2>/dev/null && \
        dd if=/ram/new of=f bs=64k conv=notrunc 2>/dev/null && cmp f /ram/new && sync && \
        cmp f /ram/new && cp f g$((i%2)) && \
        dd if=f of=/ram/back bs=64k iflag=direct 2>/dev/null && cmp /ram/back /ram/new && \
        dd if=/ram/new of=h bs=64k oflag=direct 2>/dev/null && cmp h /ram/new && \
        truncate -s 300000 h && truncate -s 1048576 h && \
        head -c 300000 h | cmp - /ram/new -n 300000 && \
        tail -c 100000 h | cmp -n 100000 - /dev/zero && \
        rm h && md5sum -c sum || exit 1; done && \
        echo 3 >/proc/sys/vm/drop_caches && cmp f /ram/new && cmp g1 f && md5sum -c sum";
    let Some(host) = Host::ready() else { return };
    let swap = host.tmp();
    let (mut guest, image) =
        Guest::with_disk(&host, &["--swap", swap.to_str().unwrap(), "--cpus", "2"]);
    // Free memory alone would be enough.
    guest.remove_hints_module();
    guest.vm.shell("mkdir -p /ram && mount -t tmpfs tmpfs /ram");
    guest.vm.shell(&MAKE_FILE.replace("count=12", "count=4"));
    let taker = Taker::start(guest.pid);
    // The slower the machine, the less is taken in one go.
    for _ in 0..10 {
        guest.vm.shell(CHANGE);
        if count(&guest.metrics(), "/reclaim/pages/rescued") > 0 {
            break;
        }
    }
    assert!(taker.stop() > 0);
    let pages = guest.assert_well();
    assert!(count(&pages, "/rescued") > 0, "{pages}");
    guest
        .vm
        .shell("cd / && umount /mnt && fsck.ext4 -f -n /dev/vda");
    guest.power_off().assert_status(0);
    assert!(fs::metadata(image).unwrap().len() > 0);
}

#[test]
fn disk_that_cannot_be_read_any_more_ends_the_vm() {
    let Some(host) = Host::ready() else { return };
    let (mut guest, image) = Guest::with_disk(&host, &["--hints", "--cpus", "2"]);
    guest.remove_hints_module();
    guest.vm.shell(MAKE_FILE);
    let taken = guest.take_all();
    assert!(taken.dropped_bytes > 0);
    OpenOptions::new()
        .write(true)
        .open(image)
        .unwrap()
        .set_len(MIB)
        .unwrap();

    guest.vm.send(&format!("{CHECK_FILE}\n"));

    let outcome = guest.vm.wait();
    outcome.assert_status(4);
    let cause = [
        "error: the guest's memory is lost",
        "cannot bring back the page at 0x",
    ];
    assert_says(&outcome.stderr, &cause);
    assert!(!outcome.stdout.contains("FAILED"), "{outcome:?}");
    let metrics = guest.host.metrics();
    assert!(count(&metrics, "/reclaim/pages/lost") > 0);
}

#[test]
fn swap_file_that_cannot_be_read_any_more_ends_a_vm_that_powers_off() {
    let Some(host) = Host::ready() else { return };
    let swap = host.tmp();
    let mut guest = Guest::start(&host, &["--swap", swap.to_str().unwrap()]);
    guest.vm.shell(MAKE_MEMORY);
    guest.take_all();
    let fds = fs::read_dir(format!("/proc/{}/fd", guest.pid)).unwrap();
    let swap_file = fds.map(|fd| fd.unwrap().path()).find(|fd| {
        let target = fs::read_link(fd).unwrap_or_default();
        target.starts_with(&swap)
    });
    let swap_file = OpenOptions::new().write(true).open(swap_file.unwrap());
    swap_file.unwrap().set_len(0).unwrap();

    let outcome = guest.power_off();

    outcome.assert_status(4);
    assert_says(&outcome.stderr, &["error: the guest's memory is lost"]);
}

#[test]
fn vm_whose_memory_is_away_ends_like_any_other() {
    let Some(host) = Host::ready() else { return };
    let swap = host.tmp();
    let flags = ["--swap", swap.to_str().unwrap()];
    let guest = Guest::start(&host, &flags);
    guest.take_all();
    guest.power_off().assert_status(0);

    let guest = Guest::start(&host, &[&flags[..], &["--log-level", "info"]].concat());
    guest.take_all();
    let pid = guest.pid;
    // It ends while memory is taken, and while it waits for memory.
    let taker = thread::spawn(move || while take(pid, EVERYTHING).is_ok() {});
    guest.vm.signal(Signal::TERM);
    guest.vm.wait_for_report("asking the guest to power off");
    guest.vm.signal(Signal::TERM);
    guest.vm.wait().assert_status(128 + 15);
    taker.join().unwrap();

    let guest = Guest::start(&host, &flags);
    guest.take_all();
    guest.vm.signal(Signal::KILL);
    guest.vm.wait().assert_status(-9);
}
