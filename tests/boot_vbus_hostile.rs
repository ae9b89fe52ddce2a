//! Guests that break the rules of the bus: they lose what is theirs, and nobody else notices.
//!
//! The attacks are few steps with pauses, because the lab's emulated processor does not stand floods of
//! exits; `devices/tests/venet/siege.rs` attacks the same code at full speed.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use common::daemon::{Daemon, Site};
use common::guest::{Running, Vm};
use common::host::{Host, run};
use common::hostile::{Report, attack, wait_for_attacks};
use common::iperf::{IperfServer, received_bytes};
use common::own::cpu_ticks;
use common::{DEADLINE, assert_says, skip, until};

/// Attacks of `vbus_hostile.ko` that are over as soon as they are done.
const ATTACKS: [&str; 11] = [
    "rings",
    "segments",
    "buffers",
    "signals",
    "scribble",
    "verbs",
    "guesses",
    "events",
    "handles",
    "doorbells",
    "resets",
];
/// How often the attacker beside a victim does all of them: a minute or two.
const ROUNDS: u32 = 5;

#[test]
fn embedded_bus_survives_all_attacks() {
    let Some(host) = Host::ready() else { return };
    let metrics = host.file("metrics");
    let script = attack(&ATTACKS, 1);
    let flags = ["--venet", "loopback", "--exec", &script];
    let metrics_flag = ["--metrics", metrics.to_str().unwrap()];

    let outcome = Vm::new(&host, &[&flags[..], &metrics_flag].concat()).run();

    outcome.assert_status(0);
    let report = Report::all(&outcome, &ATTACKS, 1);
    assert!(report.cut_off > 35 && report.stopped == 12, "{report:?}");
    assert_says(
        &outcome.stderr,
        &["cut off process", "event queue 0: slot 1 has turn"],
    );
    let connector = &host.metrics()["devices"]["vbus0"];
    let count = |name: &str| connector[name].as_u64().unwrap();
    assert_eq!(count("faults"), report.stopped, "{connector:#}");
    assert_eq!(count("devices_dropped"), report.cut_off, "{connector:#}");
    assert!(count("failed_calls") >= report.refused, "{connector:#}");
    assert!(count("unanswered_calls") > 0, "{connector:#}");
    assert!(count("unknown_doorbells") > 9, "{connector:#}");
    assert_eq!(count("late_closes"), 0, "{connector:#}");
}

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
        // The victim looks whether this one is still there.
        run("ip", &["addr", "add", "10.214.0.9/24", "dev", &uplink]);
        run("ip", &["link", "set", &uplink, "up"]);
        Network {
            site,
            daemon,
            uplink,
        }
    }

    /// A guest on `bus` that runs `script`.
    fn guest(&self, host: &Host, bus: &str, script: &str) -> Running {
        let socket = self.site.socket();
        let socket = socket.to_str().unwrap();
        let flags = ["--bus", bus, "--host", socket, "--exec", script];
        Vm::new(host, &flags).start()
    }

    /// A guest that sends to `port` of the host until it is told to end, and then says whether its
    /// memory is what it was.
    fn victim(&self, host: &Host, port: u16) -> Running {
        let script = format!(
            "until [ -e /sys/class/net/eth0 ]; do usleep 100000; done
             ip addr add 10.214.0.2/24 dev eth0; ip link set eth0 up
             until ping -q -c 1 -W 1 10.214.0.1 >/dev/null; do usleep 100000; done
             dd if=/dev/urandom of=/tmp/canary bs=1M count=64 2>/dev/null
             sum=$(md5sum </tmp/canary)
             echo ready
             while ping -q -c 1 -W 1 10.214.0.9 >/dev/null; do
                 iperf3 -J -i 0 -b 20M -t 1 -c 10.214.0.1 -p {port} || exit 4
             done
             [ \"$sum\" = \"$(md5sum </tmp/canary)\" ] && echo unchanged"
        );
        self.guest(host, "victim", &script)
    }

    fn tell_victim_to_end(&self) {
        let uplink = &self.uplink;
        run("ip", &["addr", "del", "10.214.0.9/24", "dev", uplink]);
    }

    /// Sends more to the guest on `bus` than it has buffers for; how many frames were dropped.
    fn flood(&self, guest: &Running, bus: &str, ip: &str) -> u64 {
        let dropped = || self.port(bus, "rx_dropped").parse::<u64>().unwrap();
        let is_up = until(DEADLINE, || self.port(bus, "state") == "up");
        assert!(is_up, "{}{guest:?}", self.get("sys/devices/sw/ports"));
        let before = dropped();
        run(
            "ip",
            &[
                "neigh",
                "replace",
                ip,
                "lladdr",
                &self.port(bus, "mac"),
                "dev",
                &self.uplink,
            ],
        );
        let socket = UdpSocket::bind("10.214.0.1:0").unwrap();
        for _ in 0..30 {
            for _ in 0..100 {
                socket.send_to(&[0; 1000], (ip, 9)).unwrap();
            }
            thread::sleep(Duration::from_millis(10));
        }
        dropped() - before
    }

    fn get(&self, path: &str) -> String {
        self.site.shell(&format!("vbus cat {path}")).ok()
    }

    /// A counter of the switch's port on `bus`, or another field of its line.
    fn port(&self, bus: &str, field: &str) -> String {
        let table = self.get("sys/devices/sw/ports");
        let line = table.lines().find(|line| line.starts_with(bus));
        let mut fields = line.unwrap_or_default().split(' ');
        match field {
            "mac" => fields.nth(1).unwrap_or_default().into(),
            "state" => fields.nth(2).unwrap_or_default().into(),
            _ => {
                let key = format!("{field}=");
                fields
                    .find_map(|it| it.strip_prefix(&key))
                    .unwrap_or_default()
                    .into()
            }
        }
    }
}

#[test]
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

    let victim = network.victim(&host, server.port);
    victim.wait_for("ready");
    let anon_kib = network.daemon.anon_kib();
    let script = [attack(&ATTACKS, ROUNDS), attack(&["hoard"], 1)].join("\n");
    let attacker = network.guest(&host, "attacker", &script);
    wait_for_attacks(&attacker, &ATTACKS, ROUNDS);
    attacker.wait_for("attack: hoard\n");
    let num_dropped = network.flood(&attacker, "attacker", "10.214.0.3");
    network
        .site
        .shell("vbus rm config/instances/attacker/sw")
        .ok();
    let attacker = attacker.wait();
    let grown_kib = network.daemon.anon_kib().saturating_sub(anon_kib);
    network.tell_victim_to_end();
    let victim = victim.wait();

    attacker.assert_status(0);
    let report = Report::all(&attacker, &ATTACKS, ROUNDS);
    assert_eq!(Report::all(&attacker, &["hoard"], 1).cut_off, 1);
    let rounds = u64::from(ROUNDS);
    assert!(
        report.cut_off > 35 * rounds && report.stopped == 12 * rounds,
        "{report:?}"
    );
    // Each was counted and logged by the host; what was scribbled may have been noticed too late to be told.
    let faults: u64 = network.get("sys/devices/sw/faults").trim().parse().unwrap();
    assert!(
        (report.cut_off..report.cut_off + 8 * rounds).contains(&faults),
        "{faults}"
    );
    assert_says(
        &network.daemon.stderr.text(),
        &["on bus attacker: transmit ring", "(32 faults so far)"],
    );
    assert!(!network.daemon.stderr.text().contains("on bus victim"));
    assert!(num_dropped > 1000, "{num_dropped}");
    assert!(
        grown_kib < 8 << 10,
        "the daemon has grown by {grown_kib} KiB"
    );

    victim.assert_status(0).assert_prints(&["unchanged"]);
    let reports = &victim.stdout[victim.stdout.find('{').unwrap()..];
    let received = received_bytes(reports.trim_end().trim_end_matches("unchanged"));
    println!("victim: {received:?}");
    // Each second something came through; how much is the machine's affair.
    let is_alive = received.iter().all(|bytes| *bytes > 10_000);
    let total: u64 = received.iter().sum();
    assert!(
        received.len() > 3 && is_alive && total > 1_000_000,
        "{received:?}"
    );
    // All that the two had is gone, and one more: a descriptor of the port that was taken away.
    assert!(
        until(DEADLINE, || network.daemon.num_fds() < fds
            && network.daemon.num_threads() <= threads),
        "{} descriptors of {fds}, {} threads of {threads}",
        network.daemon.num_fds(),
        network.daemon.num_threads()
    );
    // No thread spins for what the attacker has left behind.
    let ticks = cpu_ticks(network.daemon.pid());
    thread::sleep(Duration::from_secs(2));
    let ticks = cpu_ticks(network.daemon.pid()) - ticks;
    assert!(ticks < 20, "the daemon took {ticks} ticks at rest");
    let gone = network.uplink.clone();
    drop(network);
    assert!(until(DEADLINE, || !std::path::Path::new("/sys/class/net")
        .join(&gone)
        .exists()));
}
