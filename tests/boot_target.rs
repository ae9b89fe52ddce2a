//! Memory that a running guest gives back by itself, down to a target, and never so fast that it does
//! not get on.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use alacrity::control_socket::{Place, VmStat, client};
use common::cgroup::Cgroup;
use common::daemon::Site;
use common::guest::{Running, Vm};
use common::host::{Host, run};
use common::{ALACRITY, assert_says};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// How long a guest in the lab may take to give back some 50 MiB.
const DEADLINE: Duration = Duration::from_secs(180);

/// 40 MiB that are on no disk, and what they are.
const MAKE_MEMORY: &str = "mkdir -p /ram && mount -t tmpfs tmpfs /ram && cd /ram && \
    dd if=/dev/urandom of=data bs=1M count=40 2>/dev/null && md5sum data >sum";
const CHECK_MEMORY: &str = "md5sum -c sum";

fn stat(vm: &Running) -> VmStat {
    let place = Place::default_one().unwrap();
    *client::stat(&place, vm.id()).unwrap()
}

fn governor(stat: &VmStat, name: &str) -> u64 {
    let value = stat.metrics["reclaim"]["governor"][name].as_u64();
    value.unwrap_or_else(|| panic!("no {name} in {}", stat.metrics["reclaim"]))
}

/// Waits until the guest takes no more than `most` bytes of the host.
fn wait_for_resident(vm: &Running, most: u64) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let stat = stat(vm);
        if stat.resident_bytes <= most {
            return;
        }
        let governor = &stat.metrics["reclaim"]["governor"];
        println!("{} KiB: {governor}", stat.resident_bytes >> 10);
        assert!(Instant::now() < deadline, "{governor}");
        thread::sleep(Duration::from_secs(1));
    }
}

/// As a user sets it.
fn set_target(vm: &Running, size: &str) {
    let mut command = Command::new(ALACRITY);
    let output = command.args(["target", &vm.id().to_string(), size]);
    let output = output.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn target_is_reached_and_held_and_changed() {
    let Some(host) = Host::ready() else { return };
    let swap = host.tmp();
    let args = ["--swap", swap.to_str().unwrap(), "--memory", "192M"];
    let mut vm = Vm::new(&host, &[&args[..], &["--memory-target", "100M"]].concat()).start();
    vm.wait_for_shell();
    vm.shell(MAKE_MEMORY);
    assert_eq!(stat(&vm).target_bytes, Some(100 * MIB));

    wait_for_resident(&vm, 100 * MIB);
    for _ in 0..8 {
        thread::sleep(Duration::from_secs(1));
        let resident = stat(&vm).resident_bytes;
        assert!((90 * MIB..=105 * MIB).contains(&resident), "{resident}");
    }
    vm.shell(CHECK_MEMORY);

    set_target(&vm, "64M");
    wait_for_resident(&vm, 64 * MIB);
    vm.shell(CHECK_MEMORY);

    set_target(&vm, "none");
    thread::sleep(Duration::from_secs(3)); // what is under way ends
    let before = stat(&vm);
    vm.shell(CHECK_MEMORY);
    let after = stat(&vm);
    assert_eq!(after.target_bytes, None);
    assert_eq!(
        governor(&after, "taken_bytes"),
        governor(&before, "taken_bytes")
    );
    let pages: &Value = &after.metrics["reclaim"]["pages"];
    println!("pages: {pages}");
    assert_eq!((&pages["lost"], &pages["mended"]), (&0.into(), &0.into()));
    vm.send("poweroff\n");
    vm.wait().assert_status(0);
}

#[test]
fn target_below_what_the_guest_needs_lets_it_get_on() {
    let Some(host) = Host::ready() else { return };
    let swap = host.tmp();
    let args = ["--swap", swap.to_str().unwrap(), "--memory", "192M"];
    let mut vm = Vm::new(&host, &args).start();
    vm.wait_for_shell();
    vm.shell(MAKE_MEMORY);
    set_target(&vm, "1M");

    // A guest that needs 40 MiB again and again, until it is noticed.
    let deadline = Instant::now() + DEADLINE;
    loop {
        vm.shell(CHECK_MEMORY);
        let stat = stat(&vm);
        println!("{}", stat.metrics["reclaim"]["governor"]);
        if governor(&stat, "num_halvings") > 0 {
            break;
        }
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_secs(1));
    }
    vm.shell(CHECK_MEMORY);
    set_target(&vm, "none");
    vm.send("poweroff\n");
    vm.wait().assert_status(0);
}

#[test]
fn files_of_the_daemon_take_memory_and_set_the_target() {
    let Some(host) = Host::ready() else { return };
    let site = Site::new();
    let daemon = site.daemon(&[]);
    let swap = host.tmp();
    let args = ["--swap", swap.to_str().unwrap(), "--memory", "192M"];
    let mut vm = Vm::new(&host, &args).start();
    vm.wait_for_shell();
    let dir = format!("sys/vms/{}/hints", vm.id());
    let vbus = |args: &[&str]| {
        let mut command = Command::new(ALACRITY);
        let command = command.arg("vbus").arg("--socket").arg(site.socket());
        let output = command.args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout)
            .unwrap()
            .trim_end()
            .to_owned()
    };
    let read = |file: &str| vbus(&["cat", &format!("{dir}/{file}")]);
    let write = |value: &str, file: &str| vbus(&["echo", value, &format!("{dir}/{file}")]);
    println!("{}", vbus(&["tree", &dir]));
    assert_eq!(
        (read("state"), read("target")),
        ("on".into(), "none".into())
    );
    assert_eq!(read("pages/swapped"), "0");

    write("24M", "reclaim");
    let deadline = Instant::now() + DEADLINE;
    while read("reclaim").starts_with("under way") {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_secs(1));
    }
    let outcome = read("reclaim");
    let (taken, _) = outcome.split_once(" of 25165824 bytes in ").unwrap();
    assert!(taken.parse::<u64>().unwrap() >= 24 * MIB, "{outcome}");
    let count = |name: &str| read(name).parse::<u64>().unwrap();
    let num_taken = count("taken/zeros_dropped") + count("taken/swapped_out");
    assert!(num_taken * 4096 + count("guest/freed_bytes") >= 24 * MIB);

    let target = stat(&vm).resident_bytes.saturating_sub(4 * MIB);
    write(&target.to_string(), "target");
    assert_eq!(stat(&vm).target_bytes, Some(target));
    wait_for_resident(&vm, target);
    write("none", "target");
    vm.shell("true");
    vm.send("poweroff\n");
    vm.wait().assert_status(0);
    assert_eq!(vbus(&["ls", "sys/vms"]), "");
    drop(daemon);
}

#[test]
fn vm_goes_below_the_limit_of_its_cgroup_and_stays_there() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let Some(cgroup) = Cgroup::new() else {
        return;
    };
    // On a disk already, so that no memory of the cgroup goes to its image.
    let image = host.file("files");
    let [dir, data] = ["tree", "tree/data"].map(|name| host.file(name));
    fs::create_dir(&dir).unwrap();
    let of = format!("of={}", data.display());
    run(
        "dd",
        &["if=/dev/urandom", &of, "bs=1M", "count=64", "status=none"],
    );
    let [dir, image] = [&dir, &image].map(|path| path.to_str().unwrap());
    run("mke2fs", &["-q", "-t", "ext4", "-d", dir, image, "96M"]);
    let disk = format!("path={image},ro");
    let args = ["--hints", "--memory", "256M", "--disk", &disk];
    let mut vm = Vm::through(&host, &cgroup.program(), &args).start();
    vm.wait_for_shell();
    vm.shell("mkdir -p /mnt && mount -o ro /dev/vda /mnt && md5sum /mnt/data >/sum");
    let before = cgroup.needed_bytes();
    let limit = before - 32 * MIB;
    assert_eq!(governor(&stat(&vm), "taken_bytes"), 0);

    cgroup.set("memory.high", limit);

    let deadline = Instant::now() + DEADLINE;
    while cgroup.needed_bytes() > limit {
        assert!(Instant::now() < deadline, "{}", cgroup.needed_bytes());
        thread::sleep(Duration::from_secs(1));
    }
    for _ in 0..8 {
        thread::sleep(Duration::from_secs(1));
        assert!(cgroup.needed_bytes() <= limit, "{}", cgroup.needed_bytes());
    }
    vm.shell("md5sum -c /sum");
    println!("{before} bytes, now {}", cgroup.needed_bytes());

    let stat = stat(&vm);
    let governor = &stat.metrics["reclaim"]["governor"];
    println!("{governor}");
    println!("pages: {}", stat.metrics["reclaim"]["pages"]);
    assert_eq!(governor["cgroup"], cgroup.name());
    assert!(self::governor(&stat, "taken_bytes") >= 32 * MIB);
    println!(
        "times over the limit: {}",
        cgroup.number("memory.events", "high ")
    );
    assert_eq!(cgroup.number("memory.events", "oom "), 0);
    vm.send("poweroff\n");
    vm.wait().assert_status(0);
}

#[test]
fn vm_that_cannot_give_memory_back_has_no_target() {
    let Some(host) = Host::ready() else { return };
    let mut vm = Vm::new(&host, &[]).start();
    vm.wait_for_shell();

    let mut command = Command::new(ALACRITY);
    let output = command.args(["target", &vm.id().to_string(), "64M"]);
    let output = output.output().unwrap();

    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_says(&text, &["runs without --hints and --swap"]);
    vm.shell("true");
}
