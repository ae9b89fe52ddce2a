//! Guests that break the rules of the bus: they lose what is theirs, and nobody else notices.
//!
//! Ignored unless asked for, because the emulated processor of the lab does not stand it: about every
//! second run ends with a triple fault, a guest that stands still, or a crash of the lab's own kernel,
//! also in guests that attack nobody. With hardware virtualization, as root:
//! `cargo test --test boot_vbus_hostile -- --ignored --test-threads=1`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use common::daemon::{Daemon, Site};
use common::guest::{Outcome, Running, Vm};
use common::host::{Host, run};
use common::iperf::{IperfServer, received_bytes};
use common::{DEADLINE, skip, until};

/// Names of all attacks of `vbus_hostile.ko`.
const ATTACKS: [&str; 7] = [
    "verbs",
    "rings",
    "segments",
    "doorbells",
    "reset",
    "handles",
    "events",
];

/// A switch on two buses, and an address of the host behind it.
struct Network {
    site: Site,
    daemon: Daemon,
    uplink: String,
}

impl Network {
    fn new() -> Self {
        let site = Site::new();
        let daemon = site.daemon(&[]);
        let uplink = format!("ah{}", std::process::id());
        site.shell(&format!(
            "vbus mkdir config/devices/sw config/instances/victim config/instances/attacker
             vbus echo venet-switch config/devices/sw/type
             vbus ln -s config/devices/sw config/instances/victim/sw
             vbus ln -s config/devices/sw config/instances/attacker/sw
             vbus echo {uplink} sys/devices/sw/uplink"
        ))
        .ok();
        run("ip", &["addr", "add", "10.214.0.1/24", "dev", &uplink]);
        run("ip", &["link", "set", &uplink, "up"]);
        Network {
            site,
            daemon,
            uplink,
        }
    }

    /// A guest on `bus` that runs `script`.
    fn guest(&self, host: &Host, bus: &str, script: &str, more: &[&str]) -> Running {
        let socket = self.site.socket();
        let socket = socket.to_str().unwrap();
        let flags = ["--bus", bus, "--host", socket, "--exec", script];
        Vm::new(host, &[&flags, more].concat()).start()
    }

    /// A guest whose network is tried for `seconds`; prints reports of iperf3.
    fn victim(&self, host: &Host, port: u16, seconds: u32) -> Running {
        let script = format!(
            "until [ -e /sys/class/net/eth0 ]; do usleep 100000; done
             ip addr add 10.214.0.2/24 dev eth0; ip link set eth0 up
             until ping -q -c 1 -W 1 10.214.0.1 >/dev/null; do usleep 100000; done
             echo ready
             iperf3 -J -i 0 -t {seconds} -c 10.214.0.1 -p {port}"
        );
        self.guest(host, "victim", &script, &[])
    }

    fn counter(&self, path: &str) -> u64 {
        let text = self.site.shell(&format!("vbus cat {path}")).ok();
        text.trim().parse().unwrap()
    }
}

/// Runs each of `attacks`; the kernel's report of each is printed.
fn attack(attacks: &[&str], parameters: &str) -> String {
    let attacks = attacks.join(" ");
    format!(
        "rmmod venet vbus_pci vbus
         for mode in {attacks}; do
             modprobe vbus_hostile mode=$mode {parameters} || exit 3
             rmmod vbus_hostile
         done
         dmesg | grep vbus_hostile:"
    )
}

#[track_caller]
fn assert_all_attacked(outcome: &Outcome, attacks: &[&str]) {
    outcome.assert_status(0);
    for mode in attacks {
        let report = format!("vbus_hostile: {mode}: ");
        assert!(outcome.stdout.contains(&report), "{mode}: {outcome:?}");
    }
}

#[test]
#[ignore = "an emulated processor does not stand it"]
fn embedded_bus_survives_all_attacks() {
    let Some(host) = Host::ready() else { return };
    let metrics = host.file("metrics");
    let script = attack(&ATTACKS, "rounds=4 steps=400");
    let flags = ["--venet", "loopback", "--cpus", "2", "--exec", &script];
    let metrics_flag = ["--metrics", metrics.to_str().unwrap()];

    let outcome = Vm::new(&host, &[&flags[..], &metrics_flag].concat()).run();

    assert_all_attacked(&outcome, &ATTACKS);
    let metrics = host.metrics();
    let connector = &metrics["devices"]["vbus0"];
    assert!(connector["resets"].as_u64().unwrap() > 0, "{metrics:#}");
    assert!(connector["failed_calls"].as_u64().unwrap() > 0);
}

#[test]
#[ignore = "an emulated processor does not stand it"]
fn attacker_on_the_switch_does_not_stop_the_victim() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let Some(server) = IperfServer::start() else {
        return skip("no iperf3 on this host");
    };
    let network = Network::new();
    let fds = network.daemon.num_fds();
    let threads = network.daemon.num_threads();

    let victim = network.victim(&host, server.port, 12);
    victim.wait_for("ready");
    let script = attack(&ATTACKS, "rounds=3 steps=300");
    let attacker = network.guest(&host, "attacker", &script, &[]);
    let attacker = attacker.wait();
    let victim = victim.wait();

    assert_all_attacked(&attacker, &ATTACKS);
    victim.assert_status(0);
    let report = victim.stdout.find('{').unwrap();
    let received = received_bytes(&victim.stdout[report..]);
    assert!(received[0] > 1_000_000, "{received:?}");
    assert!(network.counter("sys/devices/sw/faults") > 0);
    // All that the two had is gone, and the link they used is as it was.
    assert!(
        until(DEADLINE, || network.daemon.num_fds() == fds
            && network.daemon.num_threads() == threads),
        "{} descriptors of {fds}, {} threads of {threads}",
        network.daemon.num_fds(),
        network.daemon.num_threads()
    );
    let gone = network.uplink.clone();
    drop(network);
    assert!(until(DEADLINE, || !std::path::Path::new("/sys/class/net")
        .join(&gone)
        .exists()));
}
