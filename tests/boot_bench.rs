//! `alacrity bench net|boot|memory`: short runs have values, and nothing is left however they end.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use common::guest::{Running, Vm};
use common::host::{Host, names};
use common::{ALACRITY, DEADLINE, assert_says, skip, until};
use rustix::process::Signal;
use serde_json::Value;

/// Programs that a run starts.
const PROGRAMS: [&str; 5] = [
    "qemu-system-x86",
    "iperf3",
    "traffic",
    "alacrity",
    "setpriv",
];

/// A host with everything that a comparison with QEMU needs.
fn host() -> Option<Host> {
    let host = Host::ready_for_root()?;
    let image = common::host::image_dir();
    let is_there = |path: &str| Path::new(path).exists();
    if !is_there("/usr/bin/qemu-system-x86_64") || !is_there("/usr/bin/iperf3") {
        skip("no QEMU or no iperf3 on this host");
        return None;
    }
    assert!(
        image.join("traffic").exists(),
        "scripts/guest-image makes it"
    );
    Some(host)
}

fn bench(host: &Host, what: &str, more: &[&str]) -> Vm {
    let path = host.file("raw");
    host.file("notes.tsv");
    let json = [
        "--quick",
        "--peers",
        "qemu",
        "--json",
        path.to_str().unwrap(),
    ];
    Vm::through(host, &[ALACRITY, "bench", what], &[&json, more].concat())
}

/// Raw values of the last run: case, peer, name, value.
fn values(host: &Host) -> Vec<(String, String, String, f64)> {
    let text = fs::read_to_string(host.file("raw")).unwrap();
    let value = |line: &str| {
        let json: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| json[key].as_str().unwrap().to_owned();
        (
            text("case"),
            text("peer"),
            text("name"),
            json["value"].as_f64().unwrap(),
        )
    };
    text.lines().map(value).collect()
}

#[track_caller]
fn assert_positive(host: &Host, case: &str, peers: &[&str], wanted: &[&str]) {
    let values = values(host);
    for peer in peers {
        for name in wanted {
            let found = values
                .iter()
                .find(|value| (&*value.0, &*value.1, &*value.2) == (case, *peer, *name));
            assert!(
                found.is_some_and(|value| value.3 > 0.0),
                "{case} {peer} {name}: {found:?} in {values:?}"
            );
        }
    }
}

/// Processes that a run may have started, with their numbers.
fn processes() -> BTreeSet<String> {
    let process = |pid: &String| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        let comm = comm.trim_end();
        PROGRAMS.contains(&comm).then(|| format!("{pid} {comm}"))
    };
    names(Path::new("/proc"))
        .iter()
        .filter_map(process)
        .collect()
}

/// A run that is in the middle of measuring QEMU.
#[track_caller]
fn start(host: &Host) -> (BTreeSet<String>, Running) {
    let before = processes();
    let run = bench(host, "net", &["--cases", "out", "--seconds", "60"]).start();
    run.wait_for_report("venet, round 1");
    let is_at_work = || {
        processes()
            .iter()
            .any(|process| process.ends_with("iperf3"))
    };
    assert!(until(DEADLINE, is_at_work), "{run:?}");
    (before, run)
}

#[test]
fn quick_run_has_values_of_all_that_it_measures() {
    const COSTS: [&str; 5] = [
        "packets",
        "irqs_per_1000",
        "exits_per_1000",
        "syscalls_per_1000",
        "cpu_us_per_packet",
    ];
    let Some(host) = host() else { return };
    let cases = ["--cases", "rr,out,udp-out,udp-in", "--seconds", "1"];

    let outcome = bench(&host, "net", &cases).run();

    outcome.assert_status(0);
    assert_says(
        &outcome.stdout,
        &["rr per_s", "venet", "qemu", "raw values"],
    );
    assert_says(
        &outcome.stderr,
        &["step 1 of 2", "left: venet", "left: qemu"],
    );
    let both = ["venet", "qemu"];
    for (case, wanted) in [
        ("rr", &["per_s", "p50_ns", "p99_ns"][..]),
        ("out", &["mbit", "own_kib", "bytes", "cpu_ns_per_byte"]),
        ("udp-out", &["pps"]),
        ("udp-in", &["pps"]),
    ] {
        assert_positive(&host, case, &both, wanted);
        assert_positive(&host, case, &both, &COSTS);
    }
    assert_positive(
        &host,
        "rr",
        &["venet"],
        &["doorbells_per_1000", "exits.halt"],
    );
    let notes = fs::read_to_string(host.file("notes.tsv")).unwrap();
    assert_says(
        &notes,
        &[
            "net, qemu\tqemu-system-x86_64",
            "net, venet\t",
            "host\tLinux",
        ],
    );
}

#[test]
fn start_and_memory_have_values() {
    let Some(host) = host() else { return };

    bench(&host, "boot", &[]).run().assert_status(0);
    assert_positive(&host, "boot", &["alacrity", "qemu"], &["time_us"]);

    bench(&host, "memory", &[]).run().assert_status(0);
    assert_positive(&host, "memory", &["alacrity", "qemu"], &["own_kib"]);
}

#[test]
fn interrupted_run_leaves_nothing() {
    let Some(host) = host() else { return };
    let (before, run) = start(&host);

    run.signal(Signal::INT);

    run.wait().assert_status(130);
    assert_eq!(processes(), before);
    assert!(host.file("raw").exists(), "what was measured stays");
    fs::write(host.file("notes.tsv"), "").unwrap();
}

#[test]
fn killed_run_takes_its_guests_along() {
    let Some(host) = host() else { return };
    let (before, run) = start(&host);

    run.signal(Signal::KILL);

    run.wait().assert_status(-9);
    assert!(
        until(DEADLINE, || processes() == before),
        "{:?}",
        processes()
    );
    // Nobody is there to remove its directory for guests.
    for name in names(&host.tmp()) {
        fs::remove_dir_all(host.tmp().join(name)).unwrap();
    }
}
