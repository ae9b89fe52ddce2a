//! A VM with a device of each kind, and what shows that they work.

use super::guest::{Running, Vm};
use super::host::{Host, Network};

/// For the guest's shell: workers of interfaces end and begin again, in threads that a vCPU asks for.
pub const RESTART_LINKS: &str = "for i in 1 2 3; do for link in $(ls /sys/class/net | grep -v ^lo); do \
    ip link set $link down && ip link set $link up || exit 1; done; done";

/// A VM at its shell that has a disk, both kinds of networks, and memory that can be taken; `more` are
/// further arguments, and [`Host::metrics`] has what it counted at its end.
#[track_caller]
pub fn start(host: &Host, more: &[&str]) -> (Running, [Network; 2]) {
    let disk = format!("path={},serial=files", host.image("files", 128 << 20));
    let swap = format!("{},size=256M", host.tmp().display());
    let metrics = host.file("metrics");
    let networks = [host.network(), host.network()];
    let flags = [
        "--cpus",
        "2",
        "--hints",
        "--swap",
        &swap,
        "--disk",
        &disk,
        "--net",
        &networks[0].flag(""),
        "--venet",
        &networks[1].flag(""),
        "--metrics",
        metrics.to_str().unwrap(),
    ];
    let vm = Vm::new(host, &[&flags[..], more].concat()).start();
    vm.wait_for_shell();
    (vm, networks)
}
