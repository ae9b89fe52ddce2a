//! What others may ask of a running VM, and what its socket leaves behind.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use alacrity::control_socket::Place;
use common::guest::{Running, Vm};
use common::host::Host;
use common::{ALACRITY, DEADLINE, assert_says, until};
use rustix::process::Signal;
use serde_json::Value;

fn alacrity(args: &[&str]) -> Output {
    Command::new(ALACRITY).args(args).output().unwrap()
}

#[track_caller]
fn text(output: &Output, wanted_status: i32) -> String {
    assert_eq!(output.status.code(), Some(wanted_status), "{output:?}");
    let text = match wanted_status {
        0 => &output.stdout,
        _ => &output.stderr,
    };
    String::from_utf8(text.clone()).unwrap()
}

#[track_caller]
fn json(args: &[&str]) -> Value {
    serde_json::from_str(&text(&alacrity(args), 0)).unwrap()
}

/// What `ps` says of `vm`.
fn entry(vm: &Running) -> Option<Value> {
    let vms = json(&["ps", "--json"]);
    let mut vms = vms.as_array().unwrap().iter();
    vms.find(|entry| entry["pid"] == vm.id()).cloned()
}

fn socket(vm: &Running) -> PathBuf {
    Place::default_one().unwrap().socket(vm.id())
}

#[test]
fn running_vm_is_listed_and_tells_its_counters() {
    let Some(host) = Host::ready() else { return };
    let name = format!("web{}", std::process::id());
    let mut vm = Vm::new(&host, &["--name", &name, "--cpus", "2"]).start();
    vm.wait_for_shell();

    let entry = entry(&vm).unwrap();
    let table = text(&alacrity(&["ps"]), 0);
    let before = json(&["stat", &name, "--json"]);
    vm.shell("true");
    let after = json(&["stat", &vm.id().to_string(), "--json"]);
    let page = text(&alacrity(&["stat", &name]), 0);

    assert_eq!(entry["name"], name);
    assert_eq!(entry["cpus"], 2);
    assert_eq!(entry["state"], "running");
    assert_eq!(entry["memory_bytes"], 512 << 20);
    assert_says(&table, &["PID", &name, "512M", "running"]);
    let resident = before["resident_bytes"].as_u64().unwrap();
    assert!((1 << 20..512 << 20).contains(&resident), "{resident}");
    let printed = |stat: &Value| stat["metrics"]["devices"]["com1"]["tx_bytes"].as_u64();
    assert!(printed(&before) < printed(&after), "{before} {after}");
    let uptime = |stat: &Value| stat["uptime_us"].as_u64();
    assert!(uptime(&before) < uptime(&after), "{before} {after}");
    assert_says(&page, &[&name, "devices.com1.tx_bytes"]);

    // What may be asked of it is not what may be done to it.
    let refused = text(&alacrity(&["reclaim", &name, "64M"]), 2);
    assert_says(&refused, &["runs without --hints and --swap"]);
    vm.shell("true");
}

#[test]
fn socket_is_private_and_goes_with_the_vm() {
    let Some(host) = Host::ready() else { return };
    let mut vm = Vm::new(&host, &[]).start();
    vm.wait_for_shell();
    let socket = socket(&vm);

    let file = fs::metadata(&socket).unwrap();
    let dir = fs::metadata(socket.parent().unwrap()).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    assert_eq!(dir.permissions().mode() & 0o777, 0o700);
    assert_eq!(file.uid(), rustix::process::geteuid().as_raw());
    vm.send("poweroff\n");

    vm.wait().assert_status(0);
    assert!(!socket.exists());
}

#[test]
fn watching_ends_with_the_vm() {
    let Some(host) = Host::ready() else { return };
    let mut vm = Vm::new(&host, &[]).start();
    vm.wait_for_shell();
    let mut watching = Command::new(ALACRITY)
        .args(["stat", &vm.id().to_string(), "--watch", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut uptime = || {
        let stat: Value = serde_json::from_str(&lines.next()?.unwrap()).unwrap();
        stat["uptime_us"].as_u64()
    };

    let (first, second) = (uptime().unwrap(), uptime().unwrap());
    vm.send("poweroff\n");

    assert!(first + 1_000_000 <= second, "{first} {second}");
    while uptime().is_some() {}
    assert_eq!(watching.wait().unwrap().code(), Some(0));
    vm.wait().assert_status(0);
}

#[test]
fn socket_goes_when_a_signal_ends_the_vm() {
    let Some(host) = Host::ready() else { return };
    let vm = Vm::new(&host, &["--exec", "echo up; sleep 1000"]).start();
    vm.wait_for("up");
    let socket = socket(&vm);
    assert!(socket.exists());

    // The second one does not wait for the guest to power off.
    vm.signal(Signal::TERM);
    vm.signal(Signal::TERM);

    vm.wait();
    assert!(!socket.exists());
}

#[test]
fn socket_of_a_killed_vm_goes_with_the_next_look_and_no_other() {
    let Some(host) = Host::ready() else { return };
    let killed = Vm::new(&host, &["--exec", "echo up; sleep 1000"]).start();
    killed.wait_for("up");
    let stopped = Vm::new(&host, &["--exec", "echo up; sleep 1000"]).start();
    stopped.wait_for("up");
    let (dead, alive) = (socket(&killed), socket(&stopped));
    stopped.signal(Signal::STOP);

    killed.signal(Signal::KILL);
    killed.wait();
    assert!(dead.exists());
    let silent = entry(&stopped).unwrap();

    assert_eq!(silent["state"], "silent");
    assert!(!dead.exists());
    assert!(alive.exists());
    stopped.signal(Signal::CONT);
    assert!(until(DEADLINE, || entry(&stopped).unwrap()["state"] == "running"));
}

#[test]
fn memory_comes_back_from_a_guest_that_goes_on() {
    let Some(host) = Host::ready() else { return };
    let swap = host.file("swap");
    let flag = format!("{},size=256M", swap.to_str().unwrap());
    let mut vm = Vm::new(&host, &["--swap", &flag]).start();
    vm.wait_for_shell();
    let pid = vm.id().to_string();
    let before = vm.resident_bytes();

    let report = json(&["reclaim", &pid, "16M", "--json"]);
    let after = vm.resident_bytes();
    let stat = json(&["stat", &pid, "--json"]);

    let taken = ["released_bytes", "dropped_bytes", "swapped_bytes"]
        .map(|name| report[name].as_u64().unwrap());
    assert!(taken.iter().sum::<u64>() >= 16 << 20, "{report}");
    // The guest may have had some back, or have taken more.
    assert!(after + (12 << 20) <= before, "{before} {after} {report}");
    let counters = &stat["metrics"]["reclaim"]["pages"];
    let pages = |name: &str| counters[name].as_u64().unwrap();
    let dropped = pages("dropped") + pages("zeros_dropped");
    assert_eq!(report["dropped_bytes"], dropped * 4096, "{stat}");
    assert_eq!(
        report["swapped_bytes"],
        pages("swapped_out") * 4096,
        "{stat}"
    );
    vm.shell("sync; cat /proc/meminfo >/dev/null");

    // There never was so much.
    let all = alacrity(&["reclaim", &pid, "1T"]);
    assert_eq!(all.status.code(), Some(1), "{all:?}");
    assert_says(
        &String::from_utf8(all.stdout).unwrap(),
        &["less than the 1048576M that were wanted"],
    );
    let stat = json(&["stat", &pid, "--json"]);
    assert!(stat["pages"]["swapped"].as_u64().unwrap() > 0, "{stat}");
    vm.shell("sync; cat /proc/meminfo >/dev/null");
    vm.send("poweroff\n");
    vm.wait().assert_status(0);
}
