//! Guests with the module `hints`, and what they and their hosts count.

use alacrity::control_socket::{Place, client};
use alacrity::reclaim::policy::Reclaimed;
use serde_json::Value;

use super::guest::{Running, Vm};
use super::host::Host;

pub const MIB: u64 = 1 << 20;

/// A file that the guest has in its cache and on its disk, and one that it has in memory alone.
pub const MAKE_FILES: &str = "mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt && mkdir -p /ram && \
    mount -t tmpfs -o size=400m tmpfs /ram && \
    for dir in /mnt /ram; do dd if=/dev/urandom of=$dir/data bs=1M count=12 2>/dev/null; done && \
    sync && md5sum /mnt/data /ram/data >/sum";
pub const CHECK_FILES: &str = "md5sum -c /sum";
/// Where the module says what it did.
pub const COUNTERS: &str = "/sys/bus/vbus/devices/vbus*/hints";
/// The scanner may take a whole processor: emulated ones are slow. And it begins again at once.
pub const SCAN_FAST: &str = "cd /sys/module/hints/parameters && echo 1000 >scan_cpu_permille && \
    echo 200 >scan_round_ms; cd";
/// Starts a guest at its shell that gives hints, and has two disks of 128 MiB.
pub fn start_with(host: &Host, memory: &str) -> Running {
    let metrics = host.file("metrics");
    let disk = |name| format!("path={},serial={name}", host.image(name, 128 << 20));
    let disks = [disk("files"), disk("swap")];
    let flags = [
        "--hints", "--memory", memory, "--disk", &disks[0], "--disk", &disks[1],
    ];
    let metrics = ["--metrics", metrics.to_str().unwrap()];
    let mut vm = Vm::new(host, &[&flags[..], &metrics].concat()).start();
    vm.wait_for_shell();
    vm.shell(MAKE_FILES);
    vm
}

/// The same with memory enough.
pub fn start(host: &Host) -> Running {
    start_with(host, "512M")
}

/// A counter of pages of the VM `pid`.
#[track_caller]
pub fn num_pages(pid: u32, name: &str) -> u64 {
    let stat = client::stat(&Place::default_one().unwrap(), pid).unwrap();
    stat.metrics["reclaim"]["pages"][name].as_u64().unwrap()
}

/// Has the host take `bytes` of the VM `pid`.
#[track_caller]
pub fn take(pid: u32, bytes: u64) -> Reclaimed {
    client::reclaim(&Place::default_one().unwrap(), pid, bytes).unwrap()
}

/// Shell command that waits until the counter `name` of the module is at least `least`.
pub fn wait_for_counter(name: &str, least: u64) -> String {
    format!("until [ $(cat {COUNTERS}/{name}) -ge {least} ]; do usleep 100000; done")
}

/// Shell command that waits until the scanner has looked at all memory, twice.
pub fn wait_for_rounds() -> String {
    let rounds = format!("$(cat {COUNTERS}/scan_rounds)");
    format!("n={rounds}; until [ {rounds} -ge $((n + 2)) ]; do usleep 100000; done")
}

/// Powers off; answers what the host counted of the hints.
#[track_caller]
pub fn end(host: &Host, mut vm: Running) -> Value {
    vm.shell(CHECK_FILES);
    vm.shell(
        "dmesg | grep -E 'WARNING: CPU|BUG:|leak|vbus[0-9]+: ' >/bad; cat /bad; test ! -s /bad",
    );
    vm.send("poweroff\n");
    vm.wait().assert_status(0);
    let metrics = host.metrics();
    assert_eq!(metrics["devices"]["vbus0"]["faults"], 0, "{metrics}");
    metrics["devices"]["hints0"].clone()
}
