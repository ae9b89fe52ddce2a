//! Memory that a guest does not need goes back to the host, which sees it in the memfd behind the
//! guest's RAM.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs;

use common::guest::{Running, Vm};
use common::host::Host;
use common::{DEADLINE, until};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Makes the guest use 300 MiB more of its memory, until [`free`].
fn fill(vm: &mut Running) {
    vm.shell(
        "mount -t tmpfs -o size=400m tmpfs /mnt && dd if=/dev/zero of=/mnt/fill bs=1M count=300",
    );
    let resident = vm.resident_bytes();
    assert!(resident > 300 * MIB, "{} MiB", resident / MIB);
}

/// Shell command that waits until the balloon holds `num_pages` (the kernel counts in vmstat).
fn wait_for_pages(num_pages: u64) -> String {
    format!(
        "until [ $(($(sed -n 's/^balloon_inflate //p' /proc/vmstat)\
         -$(sed -n 's/^balloon_deflate //p' /proc/vmstat))) = {num_pages} ]; do usleep 100000; done"
    )
}

fn free(vm: &mut Running) {
    vm.shell("umount /mnt");
}

#[track_caller]
fn assert_falls_below(vm: &Running, limit: u64) {
    let has_fallen = until(DEADLINE, || vm.resident_bytes() < limit);
    let resident = vm.resident_bytes();
    assert!(has_fallen, "{} MiB, want {}", resident / MIB, limit / MIB);
}

/// Powers off, and answers what the VM counted.
#[track_caller]
fn end(host: &Host, mut vm: Running) -> Value {
    vm.send("poweroff\n");
    vm.wait().assert_status(0);
    let path = host.file("metrics");
    let mut metrics: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    metrics["devices"]["balloon0"].take()
}

#[test]
fn free_pages_are_reported_and_given_back() {
    let Some(host) = Host::ready() else { return };
    let path = host.file("metrics");
    let flags = ["--balloon", "--metrics", path.to_str().unwrap()];
    let mut vm = Vm::new(&host, &flags).start();
    vm.wait_for_shell();
    fill(&mut vm);

    free(&mut vm);

    assert_falls_below(&vm, 200 * MIB);
    let counters = end(&host, vm);
    assert!(counters["reported_bytes"].as_u64() > Some(100 * MIB));
    assert!(counters["released_bytes"].as_u64() > Some(100 * MIB));
    assert_eq!(counters["release_errors"], 0, "{counters}");
}

#[test]
fn inflated_balloon_gives_memory_back() {
    let Some(host) = Host::ready() else { return };
    let path = host.file("metrics");
    let flags = ["--balloon=target=256M", "--metrics"];
    let mut vm = Vm::new(&host, &[&flags[..], &[path.to_str().unwrap()]].concat()).start();
    vm.wait_for_shell();
    vm.shell("rmmod virtio_balloon");
    fill(&mut vm);
    free(&mut vm);

    vm.shell("modprobe virtio_balloon");
    vm.shell(&wait_for_pages(256 * MIB / 4096));

    assert_falls_below(&vm, 256 * MIB);
    let counters = end(&host, vm);
    // Not `actual_bytes`, which the guest's shutdown resets.
    let pages = |key: &str| counters[key].as_u64().unwrap();
    let held = pages("inflated_pages") - pages("deflated_pages");
    assert_eq!(held, 256 * MIB / 4096, "{counters}");
    assert!(counters["inflate_queue"]["doorbells"].as_u64() > Some(0));
    assert_eq!(counters["release_errors"], 0, "{counters}");
}

#[test]
fn guest_has_what_the_balloon_left() {
    const WORK: &str = "tries=100; while [ $((tries -= 1)) -gt 0 ]; do \
        total=$(sed -n 's/MemFree: *\\([0-9]*\\).*/\\1/p' /proc/meminfo); \
        [ $total -lt 262144 ] && echo smaller && break; usleep 200000; done";
    let Some(host) = Host::ready() else { return };

    let outcome = Vm::new(&host, &["--balloon=target=256M", "--exec", WORK]).run();

    outcome.assert_status(0);
    assert_eq!(outcome.stdout, "smaller\n", "{outcome:?}");
}

#[test]
fn timeline_and_exits_of_each_vcpu_are_counted() {
    let Some(host) = Host::ready() else { return };
    let path = host.file("metrics");
    let flags = ["--cpus", "2", "--exec", "true", "--metrics"];

    let outcome = Vm::new(&host, &[&flags[..], &[path.to_str().unwrap()]].concat()).run();

    outcome.assert_status(0);
    let metrics: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let marks = ["memory_ready", "first_run", "guest_init", "command", "end"]
        .map(|mark| metrics["timeline"][format!("{mark}_us")].as_u64().unwrap());
    assert!(marks.is_sorted(), "{marks:?}");
    assert!(metrics["vcpus"]["0"]["io_out"].as_u64() > Some(0));
    assert!(metrics["vcpus"]["1"]["io_out"].is_u64(), "{metrics:#}");
    assert!(metrics["devices"]["rng0"]["bytes"].as_u64() > Some(0));
}
