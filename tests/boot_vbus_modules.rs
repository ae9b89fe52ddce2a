//! The guest's bus and its connector's driver: what a guest sees in sysfs, and that nothing stays
//! behind when they are unloaded.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use common::guest::{Outcome, Vm};
use common::host::Host;

/// What the kernel says when it is in trouble.
const TROUBLE: [&str; 6] = [
    "BUG",
    "cut here",
    "Oops",
    "Call Trace",
    "vbus: leaking",
    "refcount",
];

/// Starts each guest's script. Drivers are loaded by hand: `init` would do it at the same time.
const PRELUDE: &str = r#"
    fail() { echo "failed: $1"; dmesg | tail -n 30; exit 1; }
    load() { modprobe vbus_pci && modprobe venet; }
    unload() { rmmod venet && rmmod vbus_pci && rmmod vbus; }
    by_hand() { kill $(pidof vmm) || fail "no /sbin/vmm hotplug"; }
"#;

/// Boots a guest with `flags`, where `script` has to succeed and the kernel must not complain.
#[track_caller]
fn boot(flags: &[&str], script: &str) -> Option<Outcome> {
    let host = Host::ready()?;
    let script = format!("{PRELUDE}\n{script}\necho kernel log; dmesg");
    let flags = [flags, &["--exec", &script]].concat();
    let outcome = Vm::new(&host, &flags).run();
    outcome.assert_status(0);
    let (_, log) = outcome.stdout.split_once("kernel log").unwrap();
    for trouble in TROUBLE {
        assert!(
            !log.contains(trouble),
            "`{trouble}` in the log\n{outcome:?}"
        );
    }
    Some(outcome)
}

#[test]
fn guest_sees_its_devices() {
    let script = r#"
        cd /sys/bus/vbus/devices || fail "no bus"
        [ "$(echo *)" = "vbus0 vbus1" ] || fail "devices: $(echo *)"
        for id in 0 1; do
            is() { [ "$(cat vbus$id/$1)" = "$2" ] || fail "$1 is $(cat vbus$id/$1)"; }
            is id $id
            is kind virtual-ethernet
            is modalias vbus:virtual-ethernet
            grep -qx MODALIAS=vbus:virtual-ethernet vbus$id/uevent || fail uevent
            [ "$(basename $(readlink vbus$id/driver))" = venet ] || fail "no driver"
            [ -d vbus$id/net ] || fail "no interface"
        done
        for name in vbus-events0 vbus-events1 vbus-events2 vbus-events3 vbus0-rx vbus1-rx; do
            grep -q " $name\$" /proc/interrupts || fail "no interrupt $name"
        done
    "#;

    boot(&["--venet", "loopback", "--venet", "loopback"], script);
}

#[test]
fn guest_without_a_bus_loads_nothing() {
    boot(&[], "grep -q '^v[be]' /proc/modules && fail loaded");
}

#[test]
fn function_that_is_unbound_takes_its_devices_along() {
    let script = r#"
        by_hand
        function=$(basename /sys/bus/pci/drivers/vbus_pci/0000:*)
        for round in 1 2 3 4 5; do
            ip link set eth0 up || fail "no eth0"
            echo $function >/sys/bus/pci/drivers/vbus_pci/unbind
            [ -z "$(ls /sys/bus/vbus/devices)" ] || fail "devices are left"
            [ ! -e /sys/class/net/eth0 ] || fail "eth0 is left"
            grep -q 'vbus' /proc/interrupts && fail "interrupts are left"
            echo $function >/sys/bus/pci/drivers/vbus_pci/bind
            [ "$(ls /sys/bus/vbus/devices)" = vbus0 ] || fail "no device"
        done
    "#;

    boot(&["--cpus", "2", "--venet", "loopback"], script);
}

#[test]
fn function_that_is_reset_gives_its_devices_back() {
    let script = r#"
        by_hand
        driver=/sys/bus/pci/drivers/vbus_pci
        function=$(basename $driver/0000:*)
        reset() { echo 1 >/sys/bus/pci/devices/$function/reset || fail "reset $1"; }
        [ "$(cat /sys/bus/pci/devices/$function/reset_method)" = af_flr ] || fail method
        for round in 1 2 3 4 5; do
            ip link set eth0 up || fail "no eth0"
            arping -q -c 2 -I eth0 192.0.2.1
            [ $(cat /sys/class/net/eth0/statistics/rx_packets) -gt 0 ] || fail "round $round"
            reset $round
            [ "$(ls /sys/bus/vbus/devices)" = vbus0 ] || fail "no device"
        done
        echo $function >$driver/unbind
        reset unbound
        echo $function >$driver/bind
        ip link set eth0 up || fail "no eth0 after unbind"
    "#;

    boot(&["--cpus", "2", "--venet", "loopback"], script);
}

#[test]
fn rings_have_vectors_of_their_own_or_share_those_of_the_event_queues() {
    let venets = ["--venet", "loopback"].repeat(16);
    // A frame that goes round is seen only if the notifications of its rings arrive.
    let script = r#"
        goes_round() {
            ip link set $1 up
            before=$(cat /sys/class/net/$1/statistics/rx_packets)
            arping -q -c 3 -I $1 192.0.2.1
            [ $(cat /sys/class/net/$1/statistics/rx_packets) -gt $before ] ||
                fail "nothing comes back on $1 with $(grep -c vbus /proc/interrupts) vectors"
        }
        vectors() { [ "$(echo $(awk '/vbus/ { print $NF }' /proc/interrupts))" = "$1" ] ||
            fail "vectors: $(cat /proc/interrupts)"; }
        by_hand
        [ $(ls /sys/bus/vbus/devices | wc -l) = 16 ] || fail "devices: $(ls /sys/bus/vbus/devices)"
        goes_round eth0
        goes_round eth15
        for ring in rx tx event; do
            grep -q " vbus15-$ring\$" /proc/interrupts || fail "no vector for vbus15-$ring"
        done
        unload
        modprobe vbus_pci max_vectors=5 && modprobe venet || fail "load with 5"
        goes_round eth0
        goes_round eth15
        vectors "vbus-events0 vbus-events1 vbus-events2 vbus-events3 vbus0-event"
        unload
        modprobe vbus_pci max_vectors=1 && modprobe venet || fail "load with 1"
        goes_round eth15
        vectors vbus-events3
    "#;

    boot(&venets, script);
}

/// With `slab_debug` the kernel counts objects exactly, and looks after writes outside of them.
#[test]
fn modules_leave_nothing_behind_when_loaded_50_times() {
    let script = r#"
        by_hand
        unload || fail "first unload"
        cycle() { load && ip link set eth0 up && unload || fail "cycle $1"; }
        count() {
            echo 3 >/proc/sys/vm/drop_caches; sleep 1
            awk 'NR > 2 { print $1, $2 }' /proc/slabinfo
            echo interrupts $(wc -l </proc/interrupts)
            echo mappings $(wc -l </proc/vmallocinfo)
            # Free pages, and those that a processor keeps at hand ("count").
            awk '/^MemFree/ { free += $2 } $1 == "count:" { free += 4 * $2 }
                END { print "kib_in_use", -free }' /proc/meminfo /proc/zoneinfo
        }
        for i in 1 2 3 4 5; do cycle $i; done
        count >/tmp/before
        for i in $(seq 45); do cycle $i; done
        count >/tmp/after
        # Anything that each load leaves behind is there 45 times, a ring of 12 KiB as well.
        awk 'NR == FNR { before[$1] = $2; next }
            { most = $1 == "kib_in_use" ? 450 : $1 == "interrupts" ? 0 : 40 }
            $2 - before[$1] > most { print "more", $1, before[$1], $2; bad = 1 }
            END { exit bad }' /tmp/before /tmp/after || fail leak
        grep -h kib_in_use /tmp/before /tmp/after
        echo compared $(wc -l </tmp/after)
    "#;
    let flags = ["--venet", "loopback", "--cmdline", "slab_debug=FZ"];

    if let Some(outcome) = boot(&flags, script) {
        outcome.assert_prints(&["compared "]);
    }
}
