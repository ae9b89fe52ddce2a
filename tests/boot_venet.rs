//! Interfaces on the virtual bus: of the VM's own, and of a daemon's.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::guest::{Outcome, Vm};
use common::host::Host;
use common::iperf::{IperfServer, compare, received_bytes, send_back_once};
use common::town::{Town, configure, pings, wait_for, wait_for_ping};
use common::{skip, until};
use rustix::process::Signal;

fn with_metrics<'a>(path: &'a Path, flags: &[&'a str]) -> Vec<&'a str> {
    [flags, &["--metrics", path.to_str().unwrap()]].concat()
}

#[track_caller]
fn assert_pings(outcome: &Outcome, times: usize) {
    outcome.assert_status(0);
    let answered = "2 packets received, 0% packet loss";
    assert_eq!(
        outcome.stdout.matches(answered).count(),
        times,
        "{outcome:?}"
    );
}

#[track_caller]
fn assert_tap_works(keys: &str, guest_mtu: &str) {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let Some(server) = IperfServer::start() else {
        return skip("no iperf3 on this host");
    };
    let net = host.network();
    let to = net.host_ip();
    let client = format!("iperf3 -J -i 0 -t 1 -c {to} -p {}", server.port);
    let work = format!(
        "cat /sys/class/net/eth0/mtu; {}; {}; {client}; {client} -R",
        pings(&to),
        compare(&to, send_back_once()),
    );
    let path = host.file("metrics");
    let flag = net.flag(keys);
    let flags = with_metrics(&path, &["--venet", &flag, "--exec", &work]);

    let outcome = Vm::new(&host, &flags).run();

    assert_pings(&outcome, 5);
    outcome.assert_prints(&[guest_mtu, "equal\n"]);
    let received = received_bytes(&outcome.stdout[outcome.stdout.find('{').unwrap()..]);
    assert_eq!(received.len(), 2, "{outcome:?}");
    let has_moved = |bytes: &u64| *bytes > 100_000;
    assert!(received.iter().all(has_moved), "{received:?}");
    assert!(!net.exists(), "the TAP is still there");
    let devices = &host.metrics()["devices"];
    let count = |pointer: &str| devices.pointer(pointer).unwrap().as_u64().unwrap();
    assert!(count("/venet0/tx_bytes") > 4 << 20, "{devices}");
    assert!(count("/venet0/rx_bytes") > 4 << 20, "{devices}");
    assert_eq!(count("/vbus0/devices_added"), 1, "{devices}");
    assert_eq!(count("/venet0/tx_errors"), 0, "{devices}");
    assert_eq!(count("/vbus0/faults"), 0, "{devices}");
    // The first ring of each of its rings, at most.
    assert!(count("/vbus0/doorbell_exits") <= 3, "{devices}");
}

#[test]
fn tap_carries_usual_packets() {
    assert_tap_works("", "1500\n");
}

#[test]
fn tap_carries_jumbo_packets() {
    assert_tap_works(",mtu=9000", "9000\n");
}

#[test]
fn interfaces_of_all_kinds_work_beside_virtio_on_two_cpus() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let (virtio, first, second) = (host.network(), host.network(), host.network());
    // The port of a switch that is in another network namespace answers the other one.
    let work = format!(
        "ip -o link | grep -c 'link/ether'; \
         {}; {}; {}; \
         dev() {{ for d in /sys/class/net/*; do grep -q $1 $d/address && echo ${{d##*/}}; done; }}; \
         a=$(dev 02:00:00:00:00:0a); b=$(dev 02:00:00:00:00:0b); l=$(dev 02:00:00:00:00:0c); \
         unshare -n sleep 1000 & inside=$!; sleep 0.2; \
         ip link set $b netns $inside; \
         nsenter -t $inside -n ip addr add 10.77.0.2/24 dev $b; \
         nsenter -t $inside -n ip link set $b up; \
         ip addr add 10.77.0.1/24 dev $a; ip link set $a up; sleep 0.5; \
         {}; kill $inside; \
         ip addr flush dev $l; ip addr add 10.78.0.1/24 dev $l; ip link set $l up; \
         ping -c 2 -W 1 10.78.0.2; cd /sys/class/net/$l/statistics; \
         echo loopback sent $(cat tx_packets) received $(cat rx_packets)",
        pings(&virtio.host_ip()),
        pings(&first.host_ip()),
        pings(&second.host_ip()),
        pings("10.77.0.2"),
    );
    let (virtio, first, second) = (virtio.flag(""), first.flag(""), second.flag(""));
    let flags = [
        ["--cpus", "2"],
        ["--net", &virtio],
        ["--venet", &first],
        ["--venet", "switch=lan,mac=02:00:00:00:00:0a"],
        ["--venet", "switch=lan,mac=02:00:00:00:00:0b"],
        ["--venet", "loopback,mac=02:00:00:00:00:0c"],
        ["--venet", &second],
        ["--exec", &work],
    ];

    let outcome = Vm::new(&host, &flags.concat()).run();

    assert_pings(&outcome, 20);
    assert!(outcome.stdout.starts_with("6\n"), "{outcome:?}");
    let line = outcome.stdout.lines().last().unwrap();
    let counts: Vec<u64> = line
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    assert!(counts[0] > 0 && counts[0] == counts[1], "{line}");
}

#[test]
fn tap_of_a_killed_vm_is_gone() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let net = host.network();
    let mut vm = Vm::new(&host, &["--venet", &net.flag("")]).start();
    vm.wait_for_shell();
    vm.send(&format!("ping -q -i 0.01 {} &\n", net.host_ip()));
    vm.shell("sleep 0.3");
    assert!(net.exists());

    vm.signal(Signal::KILL);

    vm.wait().assert_status(-9);
    assert!(until(Duration::from_secs(1), || !net.exists()));
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

    let second = Vm::new(&host, &["--venet", &flag]).run();

    second.assert_status(2);
    common::assert_says(&second.stderr, &["venet0", &net.tap, "in use"]);
    first.send("poweroff\n");
    first.wait().assert_status(0);
}

#[test]
fn guests_of_two_buses_meet_on_a_switch_and_leave_without_a_trace() {
    let Some(town) = Town::with_switch() else {
        return;
    };
    let (mut blue, mut green) = (town.guest("blue"), town.guest("green"));
    blue.shell(&configure("eth0", "10.66.0.1/24"));
    green.shell(&configure("eth0", "10.66.0.2/24"));

    blue.shell(&wait_for_ping("10.66.0.2"));
    blue.shell(&format!("( {} )", pings("10.66.0.2")));
    green.shell(&format!("( {} )", pings("10.66.0.1")));
    assert_eq!(town.members("blue"), format!("{}\n", blue.id()));
    assert_eq!(town.members("green"), format!("{}\n", green.id()));
    let vm = format!("sys/vms/{}", blue.id());
    let shown = town.vbus(&format!("vbus cat {vm}/state {vm}/memory"));
    assert_eq!(shown, format!("running\n{}\n", 512 << 20));
    let io_exits = town.vbus(&format!("vbus cat {vm}/exits/user_io_out"));
    assert!(io_exits.trim().parse::<u64>().unwrap() > 0, "{io_exits}");

    green.send("ping -q -i 0.01 -s 1000 10.66.0.1 >/dev/null &\n");
    green.shell("sleep 0.3");
    green.signal(Signal::KILL);
    let begin = Instant::now();
    green.wait().assert_status(-9);
    let free = "connections\t0 members\t0";
    let left = || {
        town.vbus(
            "n=$(vbus cat sys/devices/lan/connections); m=$(vbus ls sys/instances/green/members | wc -l)
            printf 'connections\\t%s members\\t%s' $((n-1)) $m",
        )
    };
    assert!(
        until(Duration::from_secs(1), || left() == free),
        "{} after {:?}",
        left(),
        begin.elapsed()
    );
    blue.shell("cat /sys/class/net/eth0/carrier");
    blue.send("poweroff\n");
    blue.wait().assert_status(0);
    assert_eq!(town.members("blue"), "");
}

#[test]
fn guest_sees_only_the_devices_of_its_bus_and_those_that_come_and_go() {
    let script = "\
        vbus mkdir config/devices/one config/devices/two config/devices/three
        vbus mkdir config/instances/blue config/instances/green
        for device in one two three; do vbus echo venet-loopback config/devices/$device/type; done
        vbus ln -s config/devices/one config/instances/blue
        vbus ln -s config/devices/two config/instances/green";
    let Some(town) = Town::new(script) else {
        return;
    };
    let mut guest = town.guest("blue");
    let num_devices =
        |num: usize| wait_for(&format!("[ $(ls /sys/bus/vbus/devices | wc -l) = {num} ]"));
    guest.shell(&format!("{}; [ $n -lt 600 ]", num_devices(1)));
    guest.shell("[ -e /sys/class/net/eth0 ] && [ ! -e /sys/class/net/eth1 ]");
    let mac = town.vbus("vbus cat sys/devices/one/client_mac");
    guest.shell(&format!("grep {} /sys/class/net/eth0/address", mac.trim()));

    // Traffic all the while.
    guest.shell("ip addr add 10.78.0.1/24 dev eth0; ip link set eth0 up");
    guest.shell("arp -s 10.78.0.2 02:00:00:00:00:02");
    guest.send("ping -q -A -s 1000 10.78.0.2 >/dev/null &\n");
    for _ in 0..3 {
        town.vbus("vbus ln -s config/devices/three config/instances/blue");
        guest.shell(&format!("{}; [ $n -lt 600 ]", num_devices(2)));
        guest.shell("ip link set eth1 up");
        town.vbus("vbus rm config/instances/blue/three");
        guest.shell(&format!("{}; [ $n -lt 600 ]", num_devices(1)));
        guest.shell("[ ! -e /sys/class/net/eth1 ]");
    }
    // The one with the traffic, too.
    town.vbus("vbus rm config/instances/blue/one");
    guest.shell(&format!("{}; [ $n -lt 600 ]", num_devices(0)));
    guest.shell("[ ! -e /sys/class/net/eth0 ]");
    town.vbus("vbus rmdir config/devices/one");
    guest.send("poweroff\n");
    guest.wait().assert_status(0);
    assert_eq!(town.members("green"), "");
}
