//! A guest whose kernel attacks all that is not the bus: configuration space, BARs, virtqueues, ports of the
//! machine, from one processor and from all of them. Its VM goes on, and each device works after a reset.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs;

use common::guest::Vm;
use common::host::Host;
use common::hostile::{Report, attack, wait_for_attacks};
use common::reclaim::{Upkeep, count};

const MIB: usize = 1 << 20;
/// Attacks of `vbus_hostile.ko` on functions that have no drivers.
const ATTACKS: [&str; 6] = ["config", "bars", "registers", "queues", "ports", "crowd"];
/// How often all of them are done.
const ROUNDS: u32 = 3;
/// What the disk is full of: taken for an address or a length by the guest, it is out of reach.
const PATTERN: u8 = 0xa5;
/// Writes begin in the first sectors, and a request has at most 256 descriptors of 64 KiB.
const WRITTEN_BYTES: usize = 17 * MIB;
/// Memory that the threads of devices may use meanwhile.
const GROWTH_KIB: u64 = 4 << 10;

/// For the guest's shell: takes the functions away from their drivers.
const UNBIND: &str = "cd /sys/bus/pci/drivers/virtio-pci && for dev in *:*; do
        echo $dev >unbind || exit 2
    done; cd /";

#[test]
fn functions_and_ports_survive_all_attacks() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let image = host.image("disk", 0);
    fs::write(&image, vec![PATTERN; WRITTEN_BYTES + MIB]).unwrap();
    let disk = format!("path={image}");
    let net = host.network().flag(",queues=2");
    let metrics = host.file("metrics");
    let attacks = attack(&ATTACKS, ROUNDS);
    // While it sleeps, the host looks at the VM.
    let script = format!("{UNBIND}; echo ready; ({attacks}); echo attacked: $?; sleep 2");
    let devices = [
        "--net",
        &net,
        "--disk",
        &disk,
        "--balloon",
        "--venet",
        "loopback",
    ];
    let rest = ["--cpus", "2", "--exec", &script];
    let metrics_flag = ["--metrics", metrics.to_str().unwrap()];

    let vm = Vm::new(&host, &[&devices[..], &rest, &metrics_flag].concat()).start();
    vm.wait_for("ready\n");
    let before = Upkeep::of(vm.id());
    wait_for_attacks(&vm, &ATTACKS, ROUNDS);
    vm.wait_for("attacked: 0\n");
    Upkeep::of(vm.id()).assert_bounded(before, GROWTH_KIB);
    let outcome = vm.wait();

    outcome.assert_status(0);
    Report::all(&outcome, &ATTACKS, ROUNDS);
    let queues = Report::find(&outcome, "queues");
    // Rings that are wrong are noticed, and devices are found to need a reset.
    assert!(queues.refused > 40 * u64::from(ROUNDS), "{queues:?}");
    let devices = &host.metrics()["devices"];
    println!("{devices}");
    assert!(count(devices, "/net0/tx_packets") > 20, "{devices:#}");
    assert!(count(devices, "/blk0/reads") > 20, "{devices:#}");
    assert!(count(devices, "/blk0/errors") > 0, "{devices:#}");
    assert!(count(devices, "/vbus0/resets") > 20, "{devices:#}");
    assert_eq!(count(devices, "/blk0/host_errors"), 0, "{devices:#}");
    assert_eq!(count(devices, "/balloon0/release_errors"), 0, "{devices:#}");
    let rest = fs::read(&image).unwrap().split_off(WRITTEN_BYTES);
    assert!(rest.iter().all(|byte| *byte == PATTERN));
}
