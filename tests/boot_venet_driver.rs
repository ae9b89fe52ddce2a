//! The guest's network driver of the bus: offloads, settings, and whatever an administrator does to
//! an interface that is busy.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::thread;

use common::guest::{Outcome, Vm};
use common::host::{Host, Network};
use common::iperf::IperfServer;
use common::skip;

/// The start of each guest's script: `compare WHAT` sends a file to the host, which sends it back,
/// and ends the guest if the two differ; `counter NAME` prints a number of `ethtool -S`.
fn prelude(host_ip: &str, port: u16) -> String {
    format!(
        "host={host_ip}; dd if=/dev/urandom of=/tmp/out bs=1M count=4 2>/dev/null\n\
         compare() {{ timeout 60 nc $host {port} </tmp/out >/tmp/in; cmp /tmp/out /tmp/in ||\n\
         {{ echo \"differs: $1\"; ethtool -S eth0; exit 1; }}; }}\n\
         counter() {{ ethtool -S eth0 | sed -n \"s/^ *$1: //p\"; }}\n\
         fail() {{ echo \"failed: $1\"; ethtool -S eth0; cat /proc/net/dev; exit 1; }}\n"
    )
}

/// Sends back what each connection brings, for ever; answers the port.
fn send_back() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut bytes = Vec::new();
                // A guest may go away in the middle: then it has said why.
                if stream.read_to_end(&mut bytes).is_ok() && stream.write_all(&bytes).is_ok() {
                    let _ = stream.shutdown(Shutdown::Write);
                }
            });
        }
    });
    port
}

/// Boots a guest with two vCPUs and a venet with `keys`, where `script` has to succeed.
#[track_caller]
fn boot(host: &Host, net: &Network, keys: &str, script: &str) -> Outcome {
    let script = prelude(&net.host_ip(), send_back()) + script;
    let flag = net.flag(keys);
    let flags = ["--cpus", "2", "--venet", &flag, "--exec", &script];
    let outcome = Vm::new(host, &flags).run();
    outcome.assert_status(0);
    outcome
}

/// The same with traffic both ways meanwhile, ports `$out` and `$back` of the host.
#[track_caller]
fn boot_under_load(script: &str) {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let (Some(out), Some(back)) = (IperfServer::start(), IperfServer::start()) else {
        return skip("no iperf3 on this host");
    };
    let ports = format!("out={}; back={}\n", out.port, back.port);
    let load = "iperf3 -t 60 -P 2 -c $host -p $out >/tmp/load1 2>&1 & load1=$!\n\
                iperf3 -t 60 -R -c $host -p $back >/tmp/load2 2>&1 & load2=$!\n\
                sleep 1\n";
    let script = ports + load + script;

    let outcome = boot(&host, &host.network(), "", &script);

    outcome.assert_prints(&["all done\n"]);
}

#[test]
fn all_combinations_of_offloads_keep_the_contents() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let script = "
        is() { ethtool -k eth0 | grep -q \"^$1: $2\" || fail \"$1 is not $2\"; }
        num=0
        for tx in on off; do for sg in on off; do for tso in on off; do
        for rx in on off; do for gro in on off; do
            # Segmentation needs checksums and scattered frames.
            case $tx$sg-$tso in *off*-on) continue ;; esac
            case $rx$gro in offon) continue ;; esac
            ethtool -K eth0 tx $tx sg $sg tso $tso gso on rx $rx rx-gro-hw $gro >/dev/null 2>&1
            is tx-checksumming $tx; is scatter-gather $sg; is tcp-segmentation-offload $tso
            is rx-checksumming $rx; is rx-gro-hw $gro
            compare \"tx $tx sg $sg tso $tso rx $rx gro-hw $gro\"
            num=$((num + 1))
        done; done; done; done; done
        echo $num combinations
        [ \"$(counter tx_scattered)\" -gt 0 ] && [ \"$(counter rx_gso)\" -gt 0 ] || fail counters";

    let outcome = boot(&host, &host.network(), "", script);

    outcome.assert_prints(&["15 combinations\n"]);
}

#[test]
fn mtu_is_what_the_device_allows() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let script = "
        for mtu in 576 1280 1500 9000 65521; do
            ip link set eth0 mtu $mtu || fail \"mtu $mtu\"
            compare \"mtu $mtu\"
            ping -q -c 2 -s 65000 $host || fail ping
        done
        ip link set eth0 mtu 65522 2>/dev/null && fail 'too large an mtu'
        # Whole frames of that size, in several slots.
        [ \"$(counter rx_merged)\" -gt 0 ] || fail 'nothing was merged'";

    boot(&host, &host.network(), ",mtu=65521", script);
}

#[test]
fn meaningless_settings_are_refused() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let script = "
        ethtool -G eth0 rx 100 2>/dev/null && fail 'no power of two'
        ethtool -G eth0 tx 8192 2>/dev/null && fail 'too many slots'
        ethtool -C eth0 rx-usecs 10 2>/dev/null && fail 'no such delay'
        ethtool -C eth0 tx-frames 0 2>/dev/null && fail 'no frames'
        ethtool -C eth0 tx-frames 8 || fail 'tx-frames'
        ethtool -c eth0 | grep -q '^tx-frames:.*8$' || fail 'tx-frames are not kept'
        ethtool -G eth0 rx 1024 tx 64 || fail 'ring sizes'
        ethtool -g eth0 | sed -n '/^Current/,$p' | tr -d ' \\t' | grep -qx RX:1024 || fail 'rx size'
        compare 'other sizes'
        ip link set eth0 address 02:00:00:00:77:01 || fail 'address'
        compare 'another address'
        ifconfig eth0 promisc allmulti || fail 'promiscuous'
        compare 'promiscuous'
        ethtool -i eth0 | grep -qx 'driver: venet' || fail 'driver'
        ethtool eth0 | grep -q 'Link detected: yes' || fail 'link'";

    boot(&host, &host.network(), "", script);
}

#[test]
fn statistics_count_what_happened() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let script = "
        value() { cat /sys/class/net/eth0/statistics/$1; }
        # What the stack sends between the carrier and the first queue is dropped, and counted, by itself.
        ping -q -c 1 -w 10 $host || fail ping
        dropped=$(value tx_dropped)
        tx=$(value tx_packets) rx=$(value rx_packets) bytes=$(value tx_bytes)
        ping -q -c 10 -s 1000 $host || fail ping
        [ $(($(value tx_packets) - tx)) -ge 10 ] || fail tx_packets
        [ $(($(value rx_packets) - rx)) -ge 10 ] || fail rx_packets
        [ $(($(value tx_bytes) - bytes)) -ge 10420 ] || fail tx_bytes
        [ $(counter tx_doorbells) -ge 1 ] && [ $(counter rx_interrupts) -ge 1 ] || fail wake-ups
        ping -q -c 10 -s 100 $host || fail ping
        [ $(counter rx_copied) -ge 10 ] || fail copied
        [ $(value tx_dropped) = $dropped ] || fail tx_dropped
        for name in tx_errors rx_errors rx_dropped; do [ $(value $name) = 0 ] || fail $name; done";

    boot(&host, &host.network(), "", script);
}

#[test]
fn frames_come_back_from_a_loopback() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    // To a station that does not exist: what is sent comes back, and the stack drops it.
    let script = "
        value() { cat /sys/class/net/eth0/statistics/$1; }
        arp -s 10.99.0.2 02:00:00:00:99:02
        tx=$(value tx_packets)
        ping -q -c 5 -i 0.1 -s 8000 -W 1 10.99.0.2
        [ $(($(value tx_packets) - tx)) -ge 30 ] || exit 1
        # The kernel sends on its own account as well.
        tries=50
        until [ $(value rx_packets) = $(value tx_packets) ]; do
            [ $((tries -= 1)) -gt 0 ] || { ethtool -S eth0; exit 1; }
            usleep 100000
        done
        echo \"all came back\"";

    let flags = [
        "--venet",
        "loopback,guest_ip=10.99.0.1/24",
        "--exec",
        script,
    ];
    let outcome = Vm::new(&host, &flags).run();

    outcome.assert_status(0).assert_prints(&["all came back\n"]);
}

#[test]
fn link_goes_down_and_up_under_load() {
    boot_under_load(
        "for i in 1 2 3 4 5 6; do
            ip link set eth0 down || fail down
            usleep 100000
            ip link set eth0 up || fail up
            usleep 400000
        done
        compare 'after the last up'
        kill -0 $load1 && kill -0 $load2 || fail 'the load has ended'
        echo all done",
    );
}

#[test]
fn rings_and_offloads_change_under_load() {
    boot_under_load(
        "for i in 1 2 3 4 5; do
            ethtool -G eth0 rx $((32 << i)) tx $((16 << i)) || fail 'ring sizes'
            usleep 200000
            ethtool -K eth0 rx off tso off >/dev/null || fail 'offloads off'
            usleep 200000
            ethtool -K eth0 rx on rx-gro-hw on tso on >/dev/null || fail 'offloads on'
            usleep 200000
        done
        compare 'after all changes'
        [ $(counter resets) = 5 ] || fail resets
        kill -0 $load1 && kill -0 $load2 || fail 'the load has ended'
        echo all done",
    );
}

#[test]
fn driver_is_unloaded_under_load() {
    boot_under_load(
        "address=$(ip -4 addr show dev eth0 | sed -n 's/.*inet \\([^ ]*\\).*/\\1/p')
        for i in 1 2 3 4 5; do
            rmmod venet || fail rmmod
            [ ! -e /sys/class/net/eth0 ] || fail 'the interface is still there'
            modprobe venet || fail modprobe
            ip addr add $address dev eth0 && ip link set eth0 up || fail 'no interface'
            usleep 500000
        done
        compare 'after reload'
        echo all done",
    );
}

#[test]
fn fifty_times_of_loading_leak_nothing() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let script = "
        cycle() { ip link set eth0 up && rmmod venet && modprobe venet || fail cycle; }
        available() { sed -n 's/^MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo; }
        for i in 1 2 3 4 5; do cycle; done
        sleep 1; before=$(available)
        i=0; while [ $((i += 1)) -le 50 ]; do cycle; done
        sleep 1; after=$(available)
        echo \"available: $before kB, then $after kB\"
        [ $((before - after)) -lt 6144 ] || fail leak
        dmesg | grep -E 'WARNING: CPU|BUG:|Oops|leak' && fail 'kernel log'
        echo all done";

    let outcome = boot(&host, &host.network(), "", script);

    outcome.assert_prints(&["all done\n"]);
}
