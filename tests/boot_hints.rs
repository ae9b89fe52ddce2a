//! What the module `hints` of a guest does for the host: it releases free memory when it is told to, and
//! says which pages a disk has as well. The guest never finds anything but what it wrote.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::hints::{MIB, SCAN_FAST, end, start, take, wait_for_counter};
use common::host::Host;

#[test]
fn free_memory_is_released_when_the_host_asks() {
    let Some(host) = Host::ready() else { return };
    let mut vm = start(&host);
    vm.shell("dd if=/dev/zero of=/ram/fill bs=1M count=256");
    let filled = vm.resident_bytes();

    vm.shell("rm /ram/fill");
    let taken = take(vm.id(), MIB);

    // The kernel alone would have begun 2 s later.
    let left = vm.resident_bytes();
    println!("{} MiB, then {} MiB: {taken:?}", filled / MIB, left / MIB);
    assert!(filled - left > 240 * MIB, "{filled} {left} {taken:?}");
    vm.shell(&wait_for_counter("passes", 1));
    let counters = end(&host, vm);
    assert_eq!(counters["flushes"], 1, "{counters}");
    assert_eq!(counters["flushes_late"], 0, "{counters}");
}

#[test]
fn words_say_where_the_pages_of_a_file_are() {
    let Some(host) = Host::ready() else { return };
    let mut vm = start(&host);
    vm.shell(SCAN_FAST);
    vm.shell(&wait_for_counter("scan_rounds", 3));
    vm.shell(&wait_for_counter("volatile_pages", 12 * MIB / 4096));
    vm.shell(&wait_for_counter("disks", 1));

    let taken = take(vm.id(), 1 << 40);

    assert!(taken.dropped_bytes > 12 * MIB, "{taken:?}");
    let counters = end(&host, vm);
    assert_eq!(counters["unknown_disks"], 0, "{counters}");
    assert_eq!(counters["sectors_past_end"], 0, "{counters}");
}

#[test]
fn module_comes_and_goes_while_memory_is_taken() {
    // Removed at many moments of a release.
    const COME_AND_GO: &str = "i=0; while [ $((i += 1)) -le 10 ]; do \
        modprobe hints && usleep $((i * 29000 % 200000)) && rmmod hints || exit 1; done";
    const WORK: &str = "while dd if=/dev/zero of=/ram/fill bs=1M count=40 2>/dev/null && \
        rm /ram/fill; do usleep 20000; done & true";
    let Some(host) = Host::ready() else { return };
    let mut vm = start(&host);
    let pid = vm.id();
    let is_over = Arc::new(AtomicBool::new(false));
    let taker = thread::spawn({
        let is_over = Arc::clone(&is_over);
        move || {
            while !is_over.load(Ordering::Relaxed) {
                take(pid, 1);
            }
        }
    });
    vm.shell("rmmod hints");
    vm.shell(WORK);

    for _ in 0..5 {
        vm.shell(&format!("({COME_AND_GO})"));
    }

    is_over.store(true, Ordering::Relaxed);
    taker.join().unwrap();
    vm.shell("kill $!; rm -f /ram/fill; modprobe hints");
    vm.shell(&wait_for_counter("released_blocks", 1));
    let counters = end(&host, vm);
    println!("{counters}");
    assert!(counters["flushes"].as_u64() > Some(0), "{counters}");
}

#[test]
fn scanner_takes_a_hundredth_of_a_processor() {
    // Hundredths of a second, and the time. Where others want the processor it gets next to nothing.
    const NOW: &str = "dir=$(dirname $(grep -l 'vbus.*-scan' /proc/[0-9]*/comm)) && \
        echo $(cut -d' ' -f15 $dir/stat) $(cut -d' ' -f1 /proc/uptime) >>/times";
    const SHOW: &str = "awk 'NR > 1 { share = ($1 - last) / ($2 - time) / 100; print share; \
        if (share > 0.012 || NR == 2 && share < 0.001) bad = 1 } \
        { last = $1; time = $2 } END { exit bad || NR != 3 }' /times";
    let Some(host) = Host::ready() else { return };
    let mut vm = start(&host);
    vm.shell(&wait_for_counter("scanned_pages", 1));
    vm.shell(NOW);
    for work in ["sleep 20", "md5sum /mnt/data >/dev/null"] {
        vm.shell(&format!(
            "end=$(($(date +%s) + 20)); while [ $(date +%s) -lt $end ]; do {work}; done"
        ));
        vm.shell(NOW);
    }
    vm.shell(SHOW);
    println!("{}", vm.stdout.text());
    end(&host, vm);
}
