//! The network between guest and host: bytes both ways, large packets, queues, and whose TAP it is.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use common::guest::Vm;
use common::host::{Host, Network, run};
use common::iperf::{IperfServer, assert_received, both_ways, compare, send_back_once};
use common::{ALACRITY, skip};

/// Pings `target` once with as much as an IPv4 packet may hold, give or take.
fn ping(target: &str) -> String {
    format!("ping -q -c 2 -s 65000 {target}")
}

/// Runs ping, a comparison and iperf3 with `keys` in the interface's description.
#[track_caller]
fn assert_network_works(keys: &str, guest_mtu: &str) {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let Some(server) = IperfServer::start() else {
        return skip("no iperf3 on this host");
    };
    let net = host.network();
    let to = net.host_ip();
    let work = format!(
        "cat /sys/class/net/eth0/mtu; {} && {} && {}",
        ping(&to),
        compare(&to, send_back_once()),
        both_ways(&to, server.port, "-t 1")
    );

    let outcome = Vm::new(&host, &["--net", &net.flag(keys), "--exec", &work]).run();

    outcome.assert_prints(&[guest_mtu, "2 packets received, 0% packet loss", "equal\n"]);
    outcome.assert_status(0);
    assert_received(&outcome.stdout, 2);
    assert!(!net.exists(), "the TAP is still there");
}

#[test]
fn usual_packets_reach_both_ends() {
    assert_network_works("", "1500\n");
}

#[test]
fn jumbo_packets_reach_both_ends() {
    assert_network_works(",mtu=9000", "9000\n");
}

#[test]
fn two_queue_pairs_serve_two_vcpus() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let Some(server) = IperfServer::start() else {
        return skip("no iperf3 on this host");
    };
    let net = host.network();
    let to = net.host_ip();
    let work = format!(
        "taskset 1 ping -q -c 3 {to} && taskset 2 ping -q -c 3 {to} && ethtool -l eth0 && {}",
        both_ways(&to, server.port, "-t 1 -P 2")
    );
    let path = host.file("metrics");
    let flag = net.flag(",queues=2");
    let flags = ["--cpus", "2", "--net", &flag, "--exec", &work];
    let flags = [&flags[..], &["--metrics", path.to_str().unwrap()]].concat();

    let outcome = Vm::new(&host, &flags).run();

    outcome.assert_prints(&["3 packets received, 0% packet loss"]);
    outcome.assert_status(0);
    assert_received(&outcome.stdout, 2);
    let pairs = &host.metrics()["devices"]["net0"]["pairs"];
    assert!(pairs[0]["tx"]["doorbells"].as_u64() > Some(0), "{pairs}");
    assert!(pairs[1]["tx"]["doorbells"].as_u64() > Some(0), "{pairs}");
}

#[test]
fn two_interfaces_are_apart() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let (first, second) = (host.network(), host.network());
    let work = format!(
        "ping -q -c 1 -I eth0 {} && ping -q -c 1 -I eth1 {} && ! ping -q -c 1 -W 1 -I eth0 {}",
        first.host_ip(),
        second.host_ip(),
        Network::unused()
    );
    let (first, second) = (first.flag(""), second.flag(""));
    let flags = ["--net", &first, "--net", &second, "--exec", &work];

    let outcome = Vm::new(&host, &flags).run();

    outcome.assert_status(0);
}

#[test]
fn mac_is_the_one_given() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let flag = host.network().flag(",mac=02:00:00:12:34:56");
    let work = "cat /sys/class/net/eth0/address";

    let outcome = Vm::new(&host, &["--net", &flag, "--exec", work]).run();

    outcome.assert_status(0);
    assert_eq!(outcome.stdout, "02:00:00:12:34:56\n", "{outcome:?}");
}

#[test]
fn persistent_tap_is_used_and_kept() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let net = host.network();
    run("ip", &["tuntap", "add", &net.tap, "mode", "tap"]);
    let flag = net.flag("");
    let work = format!("ping -q -c 1 {}", net.host_ip());

    let outcome = Vm::new(&host, &["--net", &flag, "--exec", &work]).run();

    let is_kept = net.exists();
    run("ip", &["link", "del", &net.tap]);
    outcome.assert_status(0);
    assert!(is_kept, "the TAP was removed");
}

#[test]
fn tap_of_a_killed_vm_is_gone() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let net = host.network();
    let vm = Vm::new(&host, &["--net", &net.flag("")]).start();
    vm.wait_for_shell();
    assert!(net.exists());

    vm.signal(rustix::process::Signal::KILL);

    vm.wait().assert_status(-9);
    assert!(common::until(common::DEADLINE, || !net.exists()));
}

#[test]
fn tap_of_another_vm_is_refused() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let net = host.network();
    let flag = net.flag("");
    let mut first = Vm::new(&host, &["--net", &flag]).start();
    first.wait_for_shell();

    let second = Vm::new(&host, &["--net", &flag]).run();

    second.assert_status(2);
    common::assert_says(&second.stderr, &[&net.tap, "in use"]);
    first.shell(&format!("ping -q -c 1 {}", net.host_ip()));
    first.send("poweroff\n");
    first.wait().assert_status(0);
}

#[test]
fn user_network_reaches_the_host_without_tap() {
    const SETUP: &str = "ip link set lo up && ip link add v0 type veth peer name v1 && \
        ip addr add 10.214.0.1/24 dev v0 && ip link set v0 up && ip link set v1 up && \
        ip route add default via 10.214.0.2";
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let enter = |script: &str| format!("{SETUP} && {script}");
    let probe = enter("timeout 2 passt --foreground --quiet --fd 0");
    let tried = std::process::Command::new("unshare")
        .args(["--net", "sh", "-c", &probe])
        .output()
        .unwrap();
    if tried.status.code() != Some(124) && !tried.stderr.is_empty() {
        return skip(&format!(
            "passt cannot run here: {}",
            String::from_utf8_lossy(&tried.stderr).trim()
        ));
    }
    let script = enter(
        "{ iperf3 -s -D -p 5203 -I \"$TMPDIR/pid\"; \"$@\"; status=$?; kill $(tr -d '\\0' <\"$TMPDIR/pid\"); rm -f \"$TMPDIR/pid\"; exit $status; }",
    );
    // passt shows its host as the gateway.
    let work = "tries=50; while [ $((tries -= 1)) -gt 0 ] && ! ip route | grep -q default; do usleep 200000; done; \
        gateway=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'); \
        iperf3 -J -i 0 -t 1 -p 5203 -c $gateway; iperf3 -J -i 0 -t 1 -p 5203 -c $gateway -R";
    let enter = [
        "unshare", "--net", "sh", "-c", &script, "sh", ALACRITY, "run",
    ];

    let outcome = Vm::through(&host, &enter, &["--net", "user", "--exec", work]).run();

    outcome.assert_status(0);
    assert_received(&outcome.stdout, 2);
}

#[test]
fn interface_counts_packets_bytes_and_notifications() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let net = host.network();
    let path = host.file("metrics");
    let flag = net.flag("");
    let work = format!("ping -q -c 3 -s 1000 {}", net.host_ip());
    let flags = ["--net", &flag, "--exec", &work, "--metrics"];

    let outcome = Vm::new(&host, &[&flags[..], &[path.to_str().unwrap()]].concat()).run();

    outcome.assert_status(0);
    let counters = host.metrics()["devices"]["net0"].take();
    let count = |pointer: &str| counters.pointer(pointer).unwrap().as_u64().unwrap();
    assert!(count("/tx_packets") >= 4, "{counters}"); // ARP and three pings
    assert!(count("/rx_packets") >= 4, "{counters}");
    assert!(count("/tx_bytes") > 3000, "{counters}");
    assert!(count("/rx_bytes") > 3000, "{counters}");
    assert!(count("/pairs/0/tx/doorbells") > 0, "{counters}");
    assert!(count("/pairs/0/rx/interrupts") > 0, "{counters}");
    assert_eq!(count("/tx_errors") + count("/rx_errors"), 0, "{counters}");
}
