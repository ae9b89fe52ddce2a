//! What goes through interfaces on the virtual bus: much of it, of all kinds, on many vCPUs and
//! interfaces at once, with tags, and with another kernel.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use common::guest::{Outcome, Running, Vm};
use common::host::{Host, Network, image_dir, run};
use common::iperf::{
    IperfServer, assert_received, both_ways, compare, free_port, reports, send_back_once,
};
use common::{DEADLINE, skip, until};

/// The largest frame without offloads.
const MAX_FRAME_BYTES: u64 = 1518;

/// Starts a guest with `options`, where `script` runs.
fn start(host: &Host, options: &[&str], script: &str) -> Running {
    let path = host.file("metrics");
    let more = ["--metrics", path.to_str().unwrap(), "--exec", script];
    Vm::new(host, &[options, &more].concat()).start()
}

/// The same to its end, with success.
#[track_caller]
fn boot(host: &Host, options: &[&str], script: &str) -> Outcome {
    let outcome = start(host, options, script).wait();
    outcome.assert_status(0);
    outcome
}

/// A counter that the guest's interface `name` left in the metrics; all is well with the device.
#[track_caller]
fn count(host: &Host, name: &str, counter: &str) -> u64 {
    let devices = &host.metrics()["devices"];
    let count = |pointer: &str| devices.pointer(pointer).unwrap().as_u64().unwrap();
    assert_eq!(count(&format!("/{name}/tx_errors")), 0, "{devices}");
    assert_eq!(count(&format!("/{name}/rx_errors")), 0, "{devices}");
    assert_eq!(count("/vbus0/faults"), 0, "{devices}");
    count(&format!("/{name}/{counter}"))
}

/// Checks that frames were larger than the MTU, on average, both ways.
#[track_caller]
fn assert_frames_were_whole(host: &Host) {
    for way in ["tx", "rx"] {
        let bytes = count(host, "venet0", &format!("{way}_bytes"));
        let packets = count(host, "venet0", &format!("{way}_packets"));
        assert!(
            bytes / packets > 2 * MAX_FRAME_BYTES,
            "{way}: {bytes} bytes in {packets} packets"
        );
    }
}

/// What `connect` comes to, at last; it gives up on peers that say nothing.
#[track_caller]
fn connected(vm: &Running, mut connect: impl FnMut() -> io::Result<TcpStream>) -> TcpStream {
    let mut stream = None;
    until(DEADLINE, || {
        stream = connect().ok();
        stream.is_some()
    });
    let stream = stream.unwrap_or_else(|| panic!("no connection\n{vm:?}"));
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// The hash of `bytes`, as `sha256sum` prints it.
fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn quarter_of_a_gibibyte_arrives_unchanged_both_ways() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let net = host.network();
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    // The end of its standard input would keep nc from reading on.
    let script = format!(
        "head -c 268435456 /dev/urandom >/tmp/out; sha256sum </tmp/out; nc {} {} </tmp/out; \
         mkfifo /tmp/open; exec 9<>/tmp/open; \
         nc -l -p 7000 <&9 | cmp - /tmp/out && echo equal",
        net.host_ip(),
        listener.local_addr().unwrap().port()
    );
    let flag = net.flag("");
    let vm = start(&host, &["--memory", "1G", "--venet", &flag], &script);

    let mut bytes = Vec::new();
    listener.set_nonblocking(true).unwrap();
    let mut out = connected(&vm, || Ok(listener.accept()?.0));
    out.read_to_end(&mut bytes).unwrap();
    drop(out);
    let mut back = connected(&vm, || TcpStream::connect((net.guest_ip(), 7000)));
    back.write_all(&bytes).unwrap();
    drop(back);
    let outcome = vm.wait();

    outcome.assert_status(0);
    assert_eq!(bytes.len(), 256 << 20, "{outcome:?}");
    assert_eq!(outcome.stdout, sha256(&bytes) + "equal\n");
    assert_frames_were_whole(&host);
}

#[test]
fn datagrams_arrive_both_ways() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let Some(server) = IperfServer::start() else {
        return skip("no iperf3 on this host");
    };
    let net = host.network();
    let script = both_ways(&net.host_ip(), server.port, "-t 1 -u -b 5M -l 1400");

    let outcome = boot(&host, &["--venet", &net.flag("")], &script);

    let reports = reports(&outcome.stdout);
    assert_eq!(reports.len(), 2, "{outcome:?}");
    for report in reports {
        let sum = &report["end"]["sum_received"];
        let (sent, lost) = (sum["packets"].as_u64(), sum["lost_packets"].as_u64());
        // 446 in a second; how many of them get lost is a matter of who runs when.
        let (sent, lost) = (sent.unwrap(), lost.unwrap());
        assert!(sent > 100 && lost < sent / 4, "{sum:#}");
        assert!(sum["jitter_ms"].as_f64().unwrap() >= 0.0, "{sum:#}");
    }
}

#[test]
fn long_sends_of_datagrams_cross_whole_both_ways() {
    const SENDS: u64 = 100;
    const DATAGRAMS: u64 = 32 * SENDS;
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let net = host.network();
    let port = free_port().to_string();
    let program = image_dir().join("udp-segments");
    let send = ["1400", "32", &SENDS.to_string()].join(" ");
    let receiver = Command::new(&program)
        .args(["receive", &port])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let script = format!(
        "ethtool -k eth0 | grep tx-udp-segmentation; \
         udp-segments send {} {port} {send} && udp-segments receive {port}",
        net.host_ip()
    );
    let vm = start(&host, &["--venet", &net.flag("")], &script);

    let received = receiver.wait_with_output().unwrap();
    // The guest's receiver needs a moment; until then nothing listens, and a send is refused.
    let guest_ip = net.guest_ip();
    let args = ["send", &guest_ip, &port]
        .into_iter()
        .chain(send.split(' '));
    let mut sender = Command::new(&program);
    sender.args(args).stderr(Stdio::null());
    let is_sent = until(DEADLINE, || sender.status().unwrap().success());
    let outcome = vm.wait();

    outcome.assert_status(0);
    assert!(is_sent, "{outcome:?}");
    let line = format!("datagrams {DATAGRAMS} receives ");
    let received = String::from_utf8(received.stdout).unwrap();
    assert!(received.starts_with(&line), "{received}");
    outcome.assert_prints(&[&line, "tx-udp-segmentation: on"]);
    // A frame and an answer for each send, and a few more of the kernels'.
    let most = 2 * SENDS + 100;
    let sent = count(&host, "venet0", "tx_packets");
    assert!(sent < most, "{sent} frames went out");
    if !tap_has_udp_segmentation() {
        return skip("TAPs cut long UDP sends before Linux 6.2");
    }
    let came = count(&host, "venet0", "rx_packets");
    assert!(came < most, "{came} frames came in");
    let (_, receives) = outcome.stdout.rsplit_once(' ').unwrap();
    let receives: u64 = receives.trim().parse().unwrap();
    assert!(receives < 2 * SENDS, "in {receives} receives");
}

fn tap_has_udp_segmentation() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse::<u32>());
    let mut next = || numbers.next().unwrap().unwrap();
    (next(), next()) >= (6, 2)
}

/// Four flows at once with `cpus` vCPUs, both ways, and contents compared.
#[track_caller]
fn assert_parallel_flows_work(cpus: &str) {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let Some(server) = IperfServer::start() else {
        return skip("no iperf3 on this host");
    };
    let net = host.network();
    let to = net.host_ip();
    let script = format!(
        "nproc; {}; {}",
        compare(&to, send_back_once()),
        both_ways(&to, server.port, "-t 1 -P 4")
    );
    let flag = net.flag("");

    let outcome = boot(&host, &["--cpus", cpus, "--venet", &flag], &script);

    outcome.assert_prints(&[&format!("{cpus}\nequal\n")]);
    assert_received(&outcome.stdout, 2);
    for report in reports(&outcome.stdout) {
        let streams = report["end"]["streams"].as_array().unwrap();
        let has_moved = |it: &serde_json::Value| it["receiver"]["bytes"].as_u64() > Some(0);
        assert!(
            streams.len() == 4 && streams.iter().all(has_moved),
            "{report:#}"
        );
    }
}

#[test]
fn two_vcpus_carry_four_flows() {
    assert_parallel_flows_work("2");
}

#[test]
fn four_vcpus_carry_four_flows() {
    assert_parallel_flows_work("4");
}

#[test]
fn four_interfaces_of_one_bus_are_busy_at_once() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let nets: [Network; 4] = std::array::from_fn(|_| host.network());
    let mut servers = Vec::new();
    let mut script = "ls /sys/bus/vbus/devices | wc -l\n".to_owned();
    for net in &nets {
        let Some(server) = IperfServer::start() else {
            return skip("no iperf3 on this host");
        };
        let (to, port) = (net.host_ip(), server.port);
        script += &format!(
            "{{ {}; {} >/tmp/report{port}; }} &\n",
            compare(&to, send_back_once()),
            both_ways(&to, port, "-n 4M").replace(';', &format!(" >/tmp/report{port}-out;"))
        );
        servers.push(server);
    }
    script += "wait; cat /tmp/report*";
    let flags = nets.each_ref().map(|net| net.flag(""));
    let mut options = vec!["--cpus", "2"];
    options.extend(flags.iter().flat_map(|flag| ["--venet", flag]));

    let outcome = boot(&host, &options, &script);

    outcome.assert_prints(&["4\n"]);
    assert_eq!(outcome.stdout.matches("equal\n").count(), 4, "{outcome:?}");
    assert_received(&outcome.stdout, 8);
    for name in ["venet0", "venet1", "venet2", "venet3"] {
        for counter in ["tx_bytes", "rx_bytes"] {
            let bytes = count(&host, name, counter);
            assert!(bytes > 4 << 20, "{name}: {counter} is {bytes}");
        }
    }
}

#[test]
fn vlan_keeps_large_frames_whole() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let Some(server) = IperfServer::start() else {
        return skip("no iperf3 on this host");
    };
    let net = host.network();
    // Its address of the interface itself leads nowhere else.
    let script = format!(
        "modprobe 8021q && ip link add link eth0 name eth0.7 type vlan id 7 && ip link set eth0.7 up && \
         ip addr add 10.214.7.2/24 dev eth0.7 || exit 1; \
         ethtool -k eth0.7 | grep tcp-segmentation-offload; cat /sys/class/net/eth0.7/mtu; \
         n=0; until ping -q -c 1 -W 1 10.214.7.1 >/dev/null; do \
             [ $((n += 1)) -lt 30 ] || exit 2; \
         done; \
         ping -q -c 2 -s 1472 10.214.7.1 || exit 3; {}; {}",
        compare("10.214.7.1", send_back_once()),
        both_ways("10.214.7.1", server.port, "-t 1")
    );
    let vm = start(&host, &["--venet", &net.flag("")], &script);

    assert!(until(DEADLINE, || net.exists()));
    let vlan = format!("{}.7", net.tap);
    let link = ["link", "add", "link", &net.tap, "name", &vlan];
    run("ip", &[&link[..], &["type", "vlan", "id", "7"]].concat());
    run("ip", &["addr", "add", "10.214.7.1/24", "dev", &vlan]);
    run("ip", &["link", "set", &vlan, "up"]);
    let outcome = vm.wait();

    outcome.assert_status(0).assert_prints(&[
        "tcp-segmentation-offload: on\n1500\n",
        "2 packets received, 0% packet loss",
        "equal\n",
    ]);
    assert_received(&outcome.stdout, 2);
    assert_frames_were_whole(&host);
}

#[test]
fn modules_work_with_the_kernel_of_debian_12() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest-6.1");
    if !image.join("initramfs.cpio").exists() {
        return skip("no guest with Linux 6.1; scripts/guest-image --series 6.1 makes it");
    }
    let servers = [
        IperfServer::start(),
        IperfServer::start(),
        IperfServer::start(),
    ];
    let [Some(server), Some(out), Some(back)] = servers else {
        return skip("no iperf3 on this host");
    };
    let net = host.network();
    let to = net.host_ip();
    let script = format!(
        "fail() {{ echo \"failed: $1\"; dmesg | tail -n 20; exit 1; }}
        uname -r; ping -q -c 2 -s 65000 {to} || fail ping
        {}; {}
        iperf3 -t 60 -P 2 -c {to} -p {} >/dev/null 2>&1 &
        iperf3 -t 60 -R -c {to} -p {} >/dev/null 2>&1 &
        sleep 1
        for modules in venet venet 'venet vbus_pci vbus'; do
            rmmod $modules || fail \"rmmod $modules\"
            modprobe vbus_pci && modprobe venet || fail modprobe
            ip addr add {}/24 dev eth0 && ip link set eth0 up || fail 'no interface'
            sleep 1
        done
        {}
        dmesg | grep -E 'WARNING: CPU|BUG:|Oops' && fail 'kernel log'
        echo all done",
        compare(&to, send_back_once()),
        both_ways(&to, server.port, "-t 1"),
        out.port,
        back.port,
        net.guest_ip(),
        compare(&to, send_back_once()),
    );

    let flag = net.flag("");
    let vm = Vm::new(&host, &["--cpus", "2", "--venet", &flag, "--exec", &script]);
    let outcome = vm.with_image(&image).run();

    outcome.assert_status(0);
    assert!(outcome.stdout.starts_with("6.1."), "{outcome:?}");
    outcome.assert_prints(&["2 packets received, 0% packet loss", "all done\n"]);
    assert_eq!(outcome.stdout.matches("equal\n").count(), 2, "{outcome:?}");
    let (reports, _) = outcome.stdout.rsplit_once('}').unwrap();
    assert_received(&format!("{reports}}}"), 2);
}
