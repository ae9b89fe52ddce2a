//! Guests on a bus of a daemon whose memory is taken: the daemon has their memory too, and looks first.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::time::Duration;

use common::guest::Running;
use common::hints::SCAN_FAST;
use common::reclaim::{EVERYTHING, Guest, Taker, count};
use common::town::{Town, configure, wait_for, wait_for_ping};
use common::{DEADLINE, until};

const MIB: u64 = 1 << 20;

/// Files for the neighbour, which are on a disk and can be dropped.
const MAKE_FILES: &str = "mkfs.ext4 -q -b 4096 /dev/vda && mkdir -p /mnt && \
    mount -t ext4 /dev/vda /mnt && dd if=/dev/urandom of=/mnt/data bs=1M count=8 2>/dev/null && \
    md5sum </mnt/data >/mnt/sum && sync && mkfifo /open && exec 9<>/open && httpd -p 80 -h /mnt";
/// From page cache straight to the interface: what is sent may have been dropped.
const FETCH: &str = "wget -q -O /got http://10.66.0.1/data && wget -q -O /sum http://10.66.0.1/sum && \
    [ \"$(md5sum </got)\" = \"$(cat /sum)\" ]";

/// Two guests on a switch: the memory of the first one can be taken, and it has files.
struct Pair<'a> {
    blue: Guest<'a>,
    green: Running,
}

impl<'a> Pair<'a> {
    fn start(town: &'a Town) -> Self {
        let (swap, socket) = (town.host.tmp(), town.site.socket());
        let flags = [
            "--swap",
            swap.to_str().unwrap(),
            "--bus",
            "blue",
            "--host",
            socket.to_str().unwrap(),
        ];
        let (mut blue, _) = Guest::with_disk(&town.host, &flags);
        let mut green = town.guest("green");
        blue.vm.shell(MAKE_FILES);
        // The hints go to the VM itself.
        blue.vm.shell("ls -d /sys/bus/vbus/devices/vbus1-0/hints");
        blue.vm.shell(SCAN_FAST);
        blue.vm.shell(&configure("eth0", "10.66.0.1/24"));
        green.shell(&configure("eth0", "10.66.0.2/24"));
        green.shell(&wait_for_ping("10.66.0.1"));
        Pair { blue, green }
    }

    /// From the neighbour's file to one of this guest's.
    fn bring_back(&mut self) {
        self.blue
            .vm
            .send("nc -l -p 7000 <&9 >/mnt/back; sync; cmp /mnt/back /mnt/data && : >/mnt/equal\n");
        let send = "nc 10.66.0.1 7000 </got 2>/dev/null";
        self.green.shell(&wait_for(send));
        self.blue.vm.shell("rm /mnt/equal");
    }

    fn end(mut self, town: &Town) {
        self.blue.assert_well();
        for guest in [&mut self.blue.vm, &mut self.green] {
            guest.shell("! dmesg | grep -E 'BUG:|WARNING: CPU|Oops|leaking'");
        }
        self.green.send("poweroff\n");
        self.blue.power_off().assert_status(0);
        assert!(until(DEADLINE, || town.members("green").is_empty()));
    }
}

/// A counter of the switch.
fn switch_counter(town: &Town, name: &str) -> u64 {
    let text = town.vbus(&format!("vbus cat sys/devices/lan/{name}"));
    text.trim().parse().unwrap()
}

#[test]
fn daemon_serves_a_guest_while_all_of_its_memory_is_taken() {
    let Some(town) = Town::with_switch() else {
        return;
    };
    let mut pair = Pair::start(&town);
    pair.green.shell(FETCH);
    // What is at rest goes, buffers for frames to come among it.
    pair.blue.take_all();
    pair.green.shell(&wait_for_ping("10.66.0.1"));
    pair.green.shell(FETCH);

    let taker = Taker::with(pair.blue.pid, 16 * MIB, 1);
    for _ in 0..2 {
        pair.green.shell(FETCH);
        pair.bring_back();
    }
    taker.stop();

    let pages = pair.blue.assert_well();
    for name in ["dropped", "swapped_out", "granted"] {
        assert!(count(&pages, &format!("/{name}")) > 0, "{name}: {pages}");
    }
    println!("frames that waited: {}", switch_counter(&town, "tx_away"));
    // None of its buffers was there after it had been at rest.
    assert!(switch_counter(&town, "rx_away") > 0);
    pair.end(&town);
}

#[test]
fn daemon_may_die_and_return_and_stop_while_memory_is_taken() {
    let Some(mut town) = Town::with_switch() else {
        return;
    };
    // Borrowed for as long as the guests live.
    let daemon = town.daemon.take().unwrap();
    let mut daemon = Some(daemon);
    let state = town.site.path("state.toml");
    let mut pair = Pair::start(&town);
    let taker = Taker::with(pair.blue.pid, 16 * MIB, 1);
    pair.green
        .send("ping -q -A -s 9000 10.66.0.1 >/dev/null &\n");
    for _ in 0..2 {
        std::thread::sleep(Duration::from_secs(1));
        daemon.take().unwrap().kill();
        daemon = Some(town.site.daemon(&["--state", state.to_str().unwrap()]));
    }
    pair.green.shell("kill %1; true");
    pair.green.shell(&wait_for_ping("10.66.0.1"));
    pair.green.shell(FETCH);
    taker.stop();

    // One that is stopped holds up nobody.
    daemon
        .as_ref()
        .unwrap()
        .signal(rustix::process::Signal::STOP);
    let taken = common::reclaim::take(pair.blue.pid, EVERYTHING).unwrap();
    println!("taken: {taken:?}");
    assert!(taken.total_bytes() > MIB, "{taken:?}");
    pair.blue.vm.shell("md5sum </mnt/data | cmp - /mnt/sum");
    daemon
        .as_ref()
        .unwrap()
        .signal(rustix::process::Signal::CONT);
    pair.green.shell(&wait_for_ping("10.66.0.1"));
    pair.green.shell(FETCH);
    pair.end(&town);
}
