//! What the module `hints` of a guest says of pages that a disk has or has not, and does with those that
//! were dropped. The guest never finds anything but what it wrote.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use common::hints::{
    CHECK_FILES, COUNTERS, MIB, SCAN_FAST, end, num_pages, start, start_with, take,
    wait_for_counter, wait_for_rounds,
};
use common::host::Host;

/// A file of 40 MiB on the disk.
const MAKE_BIG_FILE: &str = "dd if=/dev/urandom of=/mnt/big bs=1M count=40 2>/dev/null && sync && \
    md5sum /mnt/big >>/sum";

#[test]
fn frames_of_dropped_pages_are_used_again_without_a_read() {
    let Some(host) = Host::ready() else { return };
    let mut vm = start_with(&host, "192M");
    let pid = vm.id();
    vm.shell(MAKE_BIG_FILE);
    let mut num_read = |evicts: char| {
        let parameter = "/sys/module/hints/parameters/evict_dropped";
        vm.shell(&format!("echo {evicts} >{parameter} && {CHECK_FILES}"));
        let dropped = num_pages(pid, "dropped");
        take(pid, 1 << 40);
        let dropped = num_pages(pid, "dropped") - dropped;
        assert!(dropped > 45 * MIB / 4096, "{dropped}");
        if evicts == 'Y' {
            vm.shell(&wait_for_counter("evicted_bytes", 45 * MIB));
        }
        let refilled = num_pages(pid, "refilled");
        vm.shell("dd if=/dev/zero of=/ram/fill bs=1M count=85");
        let refilled = num_pages(pid, "refilled") - refilled;
        vm.shell("rm /ram/fill");
        refilled
    };

    let (told, untold) = (num_read('Y'), num_read('N'));

    println!(
        "{told} pages were read for who overwrote them, {untold} by a guest that was not told"
    );
    assert!(untold > 20 * MIB / 4096, "{untold}");
    assert!(told < untold / 20, "{told} {untold}");
    let counters = end(&host, vm);
    assert_eq!(counters["events_lost"], 0, "{counters}");
}

#[test]
fn pages_age_without_pressure_and_are_young_when_they_are_read() {
    let Some(host) = Host::ready() else { return };
    let mut vm = start(&host);
    vm.shell(SCAN_FAST);
    vm.shell(&wait_for_counter("old_pages", 12 * MIB / 4096));

    vm.shell("cat /mnt/data >/dev/null");

    let is_old = format!("[ $(cat {COUNTERS}/old_pages) -ge 1000 ]");
    vm.shell(&format!("while {is_old}; do usleep 50000; done"));
    vm.shell(&wait_for_counter("old_pages", 12 * MIB / 4096));
    end(&host, vm);
}

#[test]
fn files_that_are_not_on_the_disk_yet_are_left_alone() {
    const WRITE: &str = "echo 0 >/proc/sys/vm/dirty_writeback_centisecs; \
        dd if=/dev/urandom of=/mnt/new bs=1M count=8 2>/dev/null && md5sum /mnt/new >>/sum";
    let Some(host) = Host::ready() else { return };
    let mut vm = start(&host);
    vm.shell(WRITE);
    vm.shell(SCAN_FAST);
    vm.shell(&wait_for_rounds());
    vm.shell(&wait_for_counter("dirty_pages", 8 * MIB / 4096));

    take(vm.id(), 1 << 40);
    vm.shell(&wait_for_rounds());

    // They have no sectors yet, and asking for these would have written the file.
    vm.shell("test $(awk '/^Dirty:/ { print $2 }' /proc/meminfo) -ge 8192");
    vm.shell("sync");
    vm.shell(&wait_for_counter("volatile_pages", 8 * MIB / 4096));
    end(&host, vm);
}

#[test]
fn pages_locked_in_memory_are_not_hinted_until_they_are_let_go() {
    const LOCKED: u64 = 8 * MIB / 4096;
    let Some(host) = Host::ready() else { return };
    let mut vm = start(&host);
    vm.shell(SCAN_FAST);
    vm.shell(&wait_for_rounds());
    let pinned = format!("$(cat {COUNTERS}/pinned_pages)");
    vm.shell(&format!("base={pinned}"));
    vm.shell("{ page-check locked /mnt 3600 >/said & }");
    let wait_while = |is: &str| {
        format!("while [ {pinned} -{is} $((base + {LOCKED} / 2)) ]; do usleep 100000; done")
    };
    vm.shell(&wait_while("lt"));

    // What the host knows of transfers counts whatever the guest says.
    take(vm.id(), 1 << 40);

    vm.shell(&wait_for_rounds());
    vm.shell("killall page-check; wait; cat /said; test ! -s /said");
    vm.shell(&wait_while("ge"));
    end(&host, vm);
}

#[test]
fn swap_cache_is_volatile() {
    // A write to a pipe stands still with all of its 40 MiB in memory, which the other file needs.
    const SWAP_OUT: &str = "mkswap /dev/vdb >/dev/null && swapon /dev/vdb && mkfifo /pipe && \
        { dd if=/mnt/big bs=40M count=1 of=/pipe 2>/dev/null & } && exec 4</pipe && \
        sleep 2 && dd if=/dev/zero of=/ram/fill bs=1M count=120 && rm /ram/fill";
    const READ_HALF: &str = "half() { dd bs=4k count=5000 iflag=fullblock 2>/dev/null | md5sum; }; \
        a=$(half <&4) && b=$(half </mnt/big) && [ \"$a\" = \"$b\" ]";
    let Some(host) = Host::ready() else { return };
    let mut vm = start_with(&host, "192M");
    vm.shell(MAKE_BIG_FILE);
    vm.shell(SWAP_OUT);
    vm.shell(READ_HALF);
    vm.shell(SCAN_FAST);
    vm.shell(&wait_for_rounds());
    // Half of what is in the swap cache, which is not the same each time.
    vm.shell(
        "half=$(awk '/^SwapCached:/ { print int($2 / 8) }' /proc/meminfo); test $half -ge 500",
    );
    let counter = format!("$(cat {COUNTERS}/swap_cache_pages)");
    vm.shell(&format!(
        "until [ {counter} -ge $half ]; do usleep 100000; done"
    ));
    vm.shell("echo 3 >/proc/sys/vm/drop_caches");

    let before = num_pages(vm.id(), "dropped");
    take(vm.id(), 1 << 40);

    let dropped = num_pages(vm.id(), "dropped") - before;
    println!("dropped: {dropped} pages");
    vm.shell(&format!(
        "echo of $half; test {dropped} -ge $((half * 3 / 4))"
    ));
    vm.shell("a=$(md5sum <&4) && b=$(tail -c +20480001 /mnt/big | md5sum) && [ \"$a\" = \"$b\" ]");
    let counters = end(&host, vm);
    assert_eq!(counters["sectors_past_end"], 0, "{counters}");
}
