//! A daemon that goes and returns: guests keep their interfaces, without a carrier meanwhile.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs;
use std::time::Duration;

use common::guest::Running;
use common::town::{Town, configure, pings, wait_for, wait_for_ping};
use common::{DEADLINE, until};
use rustix::process::Signal;

/// Waits in the guest for `condition`, which has to come.
#[track_caller]
fn expect(guest: &mut Running, condition: &str) {
    guest.shell(&format!("{}; [ $n -lt 600 ]", wait_for(condition)));
}

/// Waits for the carrier of `eth0`.
#[track_caller]
fn expect_carrier(guest: &mut Running, is_up: bool) {
    let carrier = u8::from(is_up);
    expect(
        guest,
        &format!("[ \"$(cat /sys/class/net/eth0/carrier)\" = {carrier} ]"),
    );
}

fn assert_end(town: &Town, guests: &mut [Running]) {
    for guest in guests {
        guest.send("poweroff\n");
    }
    assert!(until(DEADLINE, || {
        town.members("blue").is_empty() && town.members("green").is_empty()
    }));
}

/// Two guests whose interfaces reach each other.
fn neighbours() -> Option<(Town, [Running; 2])> {
    let town = Town::with_switch()?;
    let (mut blue, mut green) = (town.guest("blue"), town.guest("green"));
    blue.shell(&configure("eth0", "10.66.0.1/24"));
    green.shell(&configure("eth0", "10.66.0.2/24"));
    expect(&mut blue, "ping -q -c 1 -W 1 10.66.0.2 >/dev/null");
    Some((town, [blue, green]))
}

#[test]
fn interface_loses_its_carrier_with_the_daemon_and_nothing_else() {
    let Some((mut town, [mut blue, mut green])) = neighbours() else {
        return;
    };
    blue.shell("ethtool -G eth0 rx 64 && ethtool -K eth0 tso off && ip link set eth0 mtu 1400");
    blue.shell("ip route add 10.99.0.0/16 via 10.66.0.2");
    let facts = "cd /sys/class/net/eth0; cat ifindex address mtu; ls -d device/driver; \
                 ip -o addr show eth0 | sed 's/NO-CARRIER,//; s/state [A-Z]*//'; \
                 ip route show dev eth0 | sed 's/ linkdown//'; ethtool -g eth0; \
                 ethtool -k eth0 | grep segmentation; cat /sys/bus/vbus/devices/*/id";
    blue.shell(&format!("( {facts} ) >/tmp/before"));
    blue.send("ping -q -i 0.01 -s 1000 10.66.0.2 >/dev/null &\n");
    blue.shell("sleep 0.2; cat /sys/class/net/eth0/statistics/tx_packets >/tmp/sent");

    town.daemon.take().unwrap().kill();

    expect_carrier(&mut blue, false);
    expect_carrier(&mut green, false);
    blue.shell("ip link show eth0 | grep -q NO-CARRIER");
    blue.shell("grep lost /sys/bus/vbus/devices/vbus0/state");
    blue.shell(&format!(
        "( {facts} ) >/tmp/meanwhile; diff /tmp/before /tmp/meanwhile"
    ));
    // What is set meanwhile is as good as ever.
    green.shell("ip link set eth0 down && ip link set eth0 up && cat /sys/class/net/eth0/carrier");
    green.shell("ethtool -G eth0 tx 128 && ethtool -K eth0 rx off");
    green.shell("ip link set eth0 down && ip link set eth0 up");
    town.start_daemon("");

    expect_carrier(&mut blue, true);
    expect_carrier(&mut green, true);
    blue.shell(&wait_for_ping("10.66.0.2"));
    blue.shell(&format!("( {} )", pings("10.66.0.2")));
    blue.shell(&format!(
        "( {facts} ) >/tmp/after; diff /tmp/before /tmp/after"
    ));
    blue.shell("[ $(cat /sys/class/net/eth0/statistics/tx_packets) -gt $(cat /tmp/sent) ]");
    blue.shell("grep present /sys/bus/vbus/devices/vbus0/state");
    green.shell("ethtool -g eth0 | tail -n 7 | grep 128");
    green.shell("ethtool -k eth0 | grep 'rx-checksumming: off'");
    assert_end(&town, &mut [blue, green]);
}

#[test]
fn interface_keeps_to_what_the_daemon_that_returns_can_do() {
    let Some((mut town, [mut blue, mut green])) = neighbours() else {
        return;
    };
    blue.shell("cat /sys/class/net/eth0/ifindex >/tmp/ifindex");
    town.daemon.take().unwrap().kill();
    expect_carrier(&mut blue, false);
    expect_carrier(&mut green, false);
    let path = town.site.path("state.toml");
    let state = fs::read_to_string(&path).unwrap();
    let smaller = state.replace("mtu = \"1500\"", "mtu = \"1000\"");
    assert_ne!(state, smaller);
    fs::write(&path, smaller).unwrap();
    town.start_daemon("");

    for guest in [&mut blue, &mut green] {
        expect_carrier(guest, true);
        guest.shell("cat /sys/class/net/eth0/mtu; grep -x 1000 /sys/class/net/eth0/mtu");
    }
    blue.shell(&wait_for_ping("10.66.0.2"));
    blue.shell(&format!("( {} )", pings("10.66.0.2")));
    blue.shell("cmp /sys/class/net/eth0/ifindex /tmp/ifindex");
    assert_end(&town, &mut [blue, green]);
}

#[test]
fn daemon_that_dies_again_and_again_under_traffic_takes_no_interface() {
    let Some((mut town, [mut blue, mut green])) = neighbours() else {
        return;
    };
    blue.shell("cat /sys/class/net/eth0/ifindex >/tmp/ifindex");
    green.send("iperf3 -s >/dev/null 2>&1 &\n");
    blue.send("while :; do iperf3 -c 10.66.0.2 -t 2 >/dev/null 2>&1; usleep 100000; done &\n");
    green.send("ping -q -A -s 9000 10.66.0.1 >/dev/null &\n");
    for round in 0..6 {
        // Also while the guests are still at the last one.
        std::thread::sleep(Duration::from_millis(1500 - 250 * round));
        town.daemon.take().unwrap().kill();
        town.start_daemon("");
    }

    expect_carrier(&mut blue, true);
    expect_carrier(&mut green, true);
    blue.shell("kill %1; killall -q iperf3; true");
    green.shell("killall -q ping; true");
    blue.shell(&wait_for_ping("10.66.0.2"));
    blue.shell(&format!("( {} )", pings("10.66.0.2")));
    blue.shell("cmp /sys/class/net/eth0/ifindex /tmp/ifindex");
    for guest in [&mut blue, &mut green] {
        guest.shell("! dmesg | grep -E 'BUG:|WARNING: CPU|Oops|leaking'");
    }
    assert_end(&town, &mut [blue, green]);
}

#[test]
fn device_that_is_gone_when_the_daemon_returns_is_removed() {
    let Some((mut town, [mut blue, mut green])) = neighbours() else {
        return;
    };
    let (mac, ifindex) = ("/sys/class/net/eth0/address", "/sys/class/net/eth0/ifindex");
    green.shell(&format!("cat {ifindex} >/tmp/ifindex"));

    town.daemon.take().unwrap().kill();
    expect_carrier(&mut blue, false);
    expect_carrier(&mut green, false);
    fs::remove_file(town.site.path("state.toml")).unwrap();
    // Blue has nothing there any more, green another device of the same kind.
    town.start_daemon(
        "vbus mkdir config/devices/lan config/instances/blue
        vbus echo venet-loopback config/devices/lan/type
        vbus echo 02:00:00:00:00:77 sys/devices/lan/client_mac
        vbus mkdir config/instances/green
        vbus ln -s config/devices/lan config/instances/green",
    );

    expect(&mut blue, "[ ! -e /sys/class/net/eth0 ]");
    blue.shell("[ -z \"$(ls /sys/bus/vbus/devices)\" ]");
    expect(&mut green, &format!("grep -qs 02:00:00:00:00:77 {mac}"));
    green.shell(&format!("! cmp -s {ifindex} /tmp/ifindex"));
    assert_end(&town, &mut [blue, green]);
}

#[test]
fn modules_and_devices_come_and_go_while_there_is_no_daemon() {
    let Some((mut town, [mut blue, mut green])) = neighbours() else {
        return;
    };
    let module = "/lib/modules/*/venet.ko";
    blue.shell("modinfo venet >/dev/null 2>&1; ls /sys/bus/vbus/drivers/venet");
    town.daemon.take().unwrap().kill();
    expect_carrier(&mut blue, false);
    expect_carrier(&mut green, false);

    // A driver that comes while the device is lost binds to it when it returns.
    blue.shell(&format!(
        "rmmod venet && modprobe venet; ls {module} || true"
    ));
    blue.shell("[ ! -e /sys/class/net/eth0 ]");
    // A connector that was reset meanwhile begins anew.
    green.shell("echo $(basename /sys/bus/pci/drivers/vbus_pci/0*) >/tmp/slot");
    green.shell("cat /tmp/slot >/sys/bus/pci/drivers/vbus_pci/unbind");
    green.shell("[ ! -e /sys/class/net/eth0 ]");
    green.shell("cat /tmp/slot >/sys/bus/pci/drivers/vbus_pci/bind");
    town.start_daemon("");

    blue.shell(&configure("eth0", "10.66.0.1/24"));
    green.shell(&configure("eth0", "10.66.0.2/24"));
    blue.shell(&wait_for_ping("10.66.0.2"));
    blue.shell(&format!("( {} )", pings("10.66.0.2")));
    blue.shell("ls /sys/bus/vbus/devices/vbus0");
    assert_end(&town, &mut [blue, green]);
}

#[test]
fn vm_ends_although_its_daemon_was_stopped_in_the_middle_of_a_call() {
    let Some(town) = Town::with_switch() else {
        return;
    };
    let daemon = town.daemon.as_ref().unwrap();
    let mut guest = town.guest("blue");
    guest.shell(&configure("eth0", "10.66.0.1/24"));
    daemon.signal(Signal::STOP);
    guest.send("ip link set eth0 down\n");
    std::thread::sleep(Duration::from_secs(1));

    // The first asks the guest to power off, the second ends it.
    guest.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(500));
    guest.signal(Signal::TERM);

    guest.wait().assert_status(128 + 15);
    daemon.signal(Signal::CONT);
    assert!(until(DEADLINE, || town.members("blue").is_empty()));
}

#[test]
fn stopped_daemon_takes_the_carrier_until_it_goes_on() {
    let Some((town, [mut blue, mut green])) = neighbours() else {
        return;
    };
    let daemon = town.daemon.as_ref().unwrap();
    green.send("ping -q -i 0.01 -s 1000 10.66.0.1 >/dev/null &\n");
    blue.shell("cat /sys/class/net/eth0/ifindex >/tmp/ifindex");

    daemon.signal(Signal::STOP);
    // In a call and in none.
    blue.shell("ip link set eth0 down && ip link set eth0 up");
    expect_carrier(&mut blue, false);
    expect_carrier(&mut green, false);
    daemon.signal(Signal::CONT);

    expect_carrier(&mut blue, true);
    expect_carrier(&mut green, true);
    green.shell("killall -q ping; true");
    blue.shell(&wait_for_ping("10.66.0.2"));
    blue.shell(&format!("( {} )", pings("10.66.0.2")));
    blue.shell("cmp /sys/class/net/eth0/ifindex /tmp/ifindex");
    blue.shell("! dmesg | grep leaking");
    assert_end(&town, &mut [blue, green]);
}
