//! What happens to a VM when the host fails it: processes that are stopped and killed at any moment,
//! interfaces and disks that go away, descriptors and memory that run out.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs::OpenOptions;
use std::path::Path;
use std::thread;
use std::time::Duration;

use common::cgroup::Cgroup;
use common::failing_disk::FailingDisk;
use common::guest::{Running, Vm};
use common::host::{Host, run};
use common::own::cpu_ticks;
use common::town::{Town, configure, pings, wait_for_ping};
use common::{ALACRITY, DEADLINE, assert_says, skip, until};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;

/// Memory of the guest whose bytes are known.
const MAKE_MEMORY: &str = "dd if=/dev/urandom of=/tmp/data bs=1M count=32 2>/dev/null && \
    md5sum /tmp/data >/tmp/sum";
const CHECK_MEMORY: &str = "md5sum -c /tmp/sum";
/// Nothing in the kernel's log but what is expected.
const NO_TROUBLE: &str = "! dmesg | grep -E 'BUG:|WARNING: CPU|Oops|leaking'";

/// Numbers that look random, the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        // Knuth's MMIX; its high bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn millis(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.below(end))
    }
}

/// A guest of `bus` that is on the network and has known memory.
fn neighbour(town: &Town, bus: &str, address: &str) -> Running {
    let mut guest = town.guest(bus);
    guest.shell(&configure("eth0", address));
    guest.shell(MAKE_MEMORY);
    guest
}

#[test]
fn stops_and_kills_at_any_moment_stay_with_whom_they_hit() {
    let Some(mut town) = Town::with_switch() else {
        return;
    };
    let mut dice = Dice(7);
    let mut blue = neighbour(&town, "blue", "10.66.0.1/24");
    let mut green = neighbour(&town, "green", "10.66.0.2/24");
    blue.shell(&wait_for_ping("10.66.0.2"));
    let daemon = town.daemon.as_ref().unwrap();
    let (fds, threads) = (daemon.num_fds(), daemon.num_threads());
    blue.send("while :; do ping -q -A -w 2 -s 9000 10.66.0.2 >/dev/null; done &\n");

    for round in 0..24 {
        thread::sleep(dice.millis(400));
        let daemon = town.daemon.as_ref().unwrap();
        let stopped = dice.below(3);
        let signal = |signal| match stopped {
            0 => daemon.signal(signal),
            1 => blue.signal(signal),
            _ => green.signal(signal),
        };
        signal(Signal::STOP);
        thread::sleep(dice.millis(600));
        signal(Signal::CONT);
        if round % 8 == 3 {
            town.daemon.take().unwrap().kill();
            town.start_daemon("");
        }
        if round % 8 == 7 {
            green.signal(Signal::KILL);
            green.wait().assert_status(-9);
            let has_left = until(DEADLINE, || town.members("green").is_empty());
            assert!(has_left, "{}", town.members("green"));
            green = neighbour(&town, "green", "10.66.0.2/24");
        }
    }

    blue.shell("kill %1; killall -q ping; true");
    for guest in [&mut blue, &mut green] {
        guest.shell(CHECK_MEMORY);
        guest.shell(NO_TROUBLE);
    }
    blue.shell(&wait_for_ping("10.66.0.2"));
    blue.shell(&format!("( {} )", pings("10.66.0.2")));
    let daemon = town.daemon.as_ref().unwrap();
    let is_flat = until(DEADLINE, || {
        (daemon.num_fds(), daemon.num_threads()) == (fds, threads)
    });
    assert!(
        is_flat,
        "{} descriptors of {fds}, {} threads of {threads}",
        daemon.num_fds(),
        daemon.num_threads()
    );
    for guest in [blue, green] {
        let mut guest = guest;
        guest.send("poweroff -f\n");
        guest.wait().assert_status(0);
    }
}

#[test]
fn interfaces_that_go_down_come_back_and_those_that_are_removed_take_nothing_else() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let (net, venet) = (host.network(), host.network());
    let flags = ["--net", &net.flag(""), "--venet", &venet.flag("")];
    let mut vm = Vm::new(&host, &flags).start();
    vm.wait_for_shell();
    vm.shell(MAKE_MEMORY);
    for network in [&net, &venet] {
        vm.shell(&wait_for_ping(&network.host_ip()));
        vm.send(&format!(
            "ping -q -A -s 3000 {} >/dev/null &\n",
            network.host_ip()
        ));
    }

    for _ in 0..10 {
        for state in ["down", "up"] {
            for network in [&net, &venet] {
                run("ip", &["link", "set", &network.tap, state]);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
    vm.shell("killall -q ping; true");
    for network in [&net, &venet] {
        vm.shell(&wait_for_ping(&network.host_ip()));
        vm.shell(&format!("( {} )", pings(&network.host_ip())));
    }
    for network in [&net, &venet] {
        run("ip", &["link", "del", &network.tap]);
        vm.shell(&format!("! ping -q -c 1 -W 1 {}", network.host_ip()));
    }
    // Who waits for an interface that is gone must not do so in a loop.
    let before = cpu_ticks(vm.id());
    thread::sleep(Duration::from_secs(3));
    let ticks = cpu_ticks(vm.id()) - before;

    vm.shell(CHECK_MEMORY);
    vm.shell(NO_TROUBLE);
    vm.send("poweroff -f\n");
    vm.wait().assert_status(0);
    assert!(ticks < 150, "{ticks} of 300 ticks, and the guest was idle");
}

#[test]
fn image_that_is_cut_short_gives_the_guest_errors_until_it_is_whole_again() {
    const READ: &str = "echo 3 >/proc/sys/vm/drop_caches && \
        dd if=/dev/vda of=/dev/null bs=64k skip=400 count=16 2>/dev/null";
    let Some(host) = Host::ready() else { return };
    let image = host.image("disk", 32 << 20);
    let mut vm = Vm::new(&host, &["--disk", &format!("path={image}")]).start();
    vm.wait_for_shell();
    vm.shell(READ);
    let file = OpenOptions::new().write(true).open(&image).unwrap();

    file.set_len(4 * MIB).unwrap();
    vm.shell(&format!("! ( {READ} )"));
    vm.shell("dd if=/dev/vda of=/dev/null bs=64k count=16");
    file.set_len(32 * MIB).unwrap();
    vm.shell(READ);

    vm.send("poweroff -f\n");
    vm.wait().assert_status(0);
}

#[test]
fn disk_whose_writes_fail_tells_the_guest_and_works_again() {
    const WRITE: &str = "dd if=/dev/urandom of=/dev/vda bs=64k count=64 conv=fsync 2>/dev/null";
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let Some(disk) = FailingDisk::new(&host.image("disk", 32 << 20)) else {
        return;
    };
    let mut vm = Vm::new(&host, &["--disk", &format!("path={}", disk.path())]).start();
    vm.wait_for_shell();
    vm.shell(WRITE);

    disk.fail("error_writes");
    vm.shell(&format!("! {WRITE}"));
    disk.mend();
    vm.shell(WRITE);

    vm.send("poweroff -f\n");
    vm.wait().assert_status(0);
}

#[test]
fn vm_that_gets_too_few_descriptors_says_so_and_leaves_nothing() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let disk = format!("path={}", host.image("disk", 1 << 20));
    let (net, venet) = (host.network(), host.network());
    let net_flag = net.flag("");
    let venet_flag = venet.flag("");
    let mut num_refused = 0;
    for limit in (4..64).step_by(6).chain([1024]) {
        let limit = format!("--nofile={limit}");
        let program = ["prlimit", &limit, ALACRITY, "run"];
        let flags = [
            "--hints",
            "--disk",
            &disk,
            "--net",
            &net_flag,
            "--venet",
            &venet_flag,
            "--exec",
            "true",
        ];

        let outcome = Vm::through(&host, &program, &flags).run();

        match outcome.status.code() {
            Some(0) => {}
            // Before the program begins, the loader has no descriptor for a library.
            Some(127) => {}
            Some(2 | 4) => {
                assert_says(&outcome.stderr, &["error: ", "Too many open files"]);
                num_refused += 1;
            }
            other => panic!("{limit}: {other:?} {outcome:?}"),
        }
        assert!(!net.exists() && !venet.exists(), "{limit}");
    }
    assert!(num_refused > 3, "{num_refused}");
}

#[test]
fn vm_that_the_host_kills_for_its_memory_takes_nobody_along() {
    let Some(town) = Town::with_switch() else {
        return;
    };
    let Some(cgroup) = Cgroup::new() else {
        return;
    };
    let mut blue = neighbour(&town, "blue", "10.66.0.1/24");
    cgroup.set("memory.max", 200 * MIB);
    let socket = town.site.socket();
    let flags = ["--bus", "green", "--host", socket.to_str().unwrap()];
    let mut green = Vm::through(&town.host, &cgroup.program(), &flags).start();
    green.wait_for_shell();
    green.shell(&configure("eth0", "10.66.0.2/24"));
    blue.shell(&wait_for_ping("10.66.0.2"));

    green.send("mkdir /ram; mount -t tmpfs -o size=400m tmpfs /ram; cp /dev/zero /ram/a\n");

    green.wait().assert_status(-9);
    assert!(cgroup.number("memory.events", "oom_kill ") > 0);
    assert!(until(DEADLINE, || town.members("green").is_empty()));
    blue.shell(CHECK_MEMORY);
    let mut green = neighbour(&town, "green", "10.66.0.2/24");
    blue.shell(&wait_for_ping("10.66.0.2"));
    for guest in [&mut blue, &mut green] {
        guest.send("poweroff -f\n");
    }
    for guest in [blue, green] {
        guest.wait().assert_status(0);
    }
}

/// Sets the host's clock by so many seconds.
fn jump(seconds: i64) {
    run("date", &["-s", &format!("{seconds:+} seconds")]);
}

#[test]
fn clock_that_jumps_is_nothing_to_a_vm() {
    // On a machine that somebody uses, others would mind.
    if !Path::new("/run/alacrity-lab").exists() {
        return skip("sets the clock, so it runs in the lab only");
    }
    let Some(town) = Town::with_switch() else {
        return;
    };
    let mut blue = neighbour(&town, "blue", "10.66.0.1/24");
    let mut green = neighbour(&town, "green", "10.66.0.2/24");
    blue.shell(&wait_for_ping("10.66.0.2"));
    for days in [400, -800, 400] {
        jump(days * 24 * 3600);

        blue.shell(&wait_for_ping("10.66.0.2"));
        blue.shell(&format!("( {} )", pings("10.66.0.2")));
        assert_says(
            &town.vbus(&format!("\"$ALACRITY\" stat {}", blue.id())),
            &["running"],
        );
    }
    for guest in [&mut blue, &mut green] {
        guest.send("poweroff -f\n");
    }
    for guest in [blue, green] {
        guest.wait().assert_status(0);
    }
}
