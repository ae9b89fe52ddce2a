//! What an operation of the virtual bus costs a guest, counted: `alacrity bench verbs` has exits for each, and
//! leaves nothing however it ends. No test here depends on how fast anything is.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs;

use common::guest::Vm;
use common::host::{Host, image_dir};
use common::{ALACRITY, assert_says};
use rustix::process::Signal;
use serde_json::Value;

/// Each operation that is measured: case and peer.
const OPERATIONS: [(&str, &str); 7] = [
    ("verb-call", "vbus"),
    ("verb-call", "pio-exit"),
    ("verb-call", "virtio-ctrl"),
    ("doorbell", "vbus"),
    ("doorbell", "pio-eventfd"),
    ("doorbell", "mmio-eventfd"),
    ("doorbell", "suppressed"),
];
/// How far a count for one operation may be from a whole number: the guest says where it is meanwhile, and
/// that takes some exits.
const NEAR: f64 = 0.05;

fn bench(host: &Host, more: &[&str]) -> Vm {
    let path = host.file("raw");
    host.file("notes.tsv");
    let json = ["--quick", "--json", path.to_str().unwrap()];
    let arguments = [&json, more].concat();
    Vm::through(host, &[ALACRITY, "bench", "verbs"], &arguments)
}

/// What was measured of one operation, the mean if more than once.
struct Measured(Vec<Value>);

impl Measured {
    fn of(host: &Host) -> Self {
        let text = fs::read_to_string(host.file("raw")).unwrap();
        Measured(
            text.lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect(),
        )
    }

    #[track_caller]
    fn mean(&self, (case, peer): (&str, &str), name: &str) -> f64 {
        let is_it =
            |line: &&Value| line["case"] == case && line["peer"] == peer && line["name"] == name;
        let found: Vec<f64> = self
            .0
            .iter()
            .filter(is_it)
            .map(|line| line["value"].as_f64().unwrap())
            .collect();
        assert!(
            !found.is_empty(),
            "no {name} of {case} {peer}: {:?}",
            self.0
        );
        found.iter().sum::<f64>() / found.len() as f64
    }

    /// Checks that an operation leaves the guest so often at least, and the kernel so often.
    #[track_caller]
    fn assert_exits(&self, operation: (&str, &str), exits: f64, user_exits: f64) {
        let all = self.mean(operation, "exits");
        let to_vmm = self.mean(operation, "user_exits");
        println!("{operation:?}: {all} exits, {to_vmm} of them to the VMM");
        // What the guest's timer exits for is a matter of time, so there is no upper bound.
        assert!(all >= exits - NEAR, "{operation:?}: {all} exits");
        let distance = (to_vmm - user_exits).abs();
        assert!(distance <= NEAR, "{operation:?}: {to_vmm} exits to the VMM");
    }
}

#[test]
fn operations_exit_as_often_as_they_should() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };

    let outcome = bench(&host, &[]).run();

    outcome.assert_status(0);
    assert_says(
        &outcome.stderr,
        &["step 1 of 1", "verbs and their peers in one guest, round 1"],
    );
    assert_says(
        &outcome.stdout,
        &["verb-call ns", "doorbell exits", "raw values"],
    );
    let measured = Measured::of(&host);
    for operation in OPERATIONS {
        // There is one, and no more is said about it.
        let ns = measured.mean(operation, "ns");
        println!("{operation:?}: {ns} ns");
    }
    // One exit to the VMM and back, whatever a call carries.
    measured.assert_exits(("verb-call", "vbus"), 1.0, 1.0);
    measured.assert_exits(("verb-call", "pio-exit"), 1.0, 1.0);
    // The kernel handles a doorbell by itself.
    measured.assert_exits(("doorbell", "vbus"), 1.0, 0.0);
    measured.assert_exits(("doorbell", "pio-eventfd"), 1.0, 0.0);
    measured.assert_exits(("doorbell", "mmio-eventfd"), 1.0, 0.0);
    // Nobody waits: it stays in the guest.
    measured.assert_exits(("doorbell", "suppressed"), 0.0, 0.0);
    let exits = measured.mean(("doorbell", "suppressed"), "exits");
    assert!(exits <= 0.01, "{exits} exits of a suppressed doorbell");
}

#[test]
fn image_without_the_module_is_refused_before_anything_starts() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let image = host.file("image");
    let mut bytes = fs::read(image_dir().join("initramfs.cpio")).unwrap();
    let name = b"/vbus_times.ko\0";
    let at = bytes
        .windows(name.len())
        .position(|window| window == name)
        .unwrap();
    bytes[at + 1] = b'x';
    fs::write(&image, bytes).unwrap();
    let kernel = image_dir().join("vmlinux");
    let images = [
        "--kernel",
        kernel.to_str().unwrap(),
        "--initrd",
        image.to_str().unwrap(),
    ];

    let outcome = bench(&host, &images).run();

    outcome.assert_status(2);
    assert_says(
        &outcome.stderr,
        &[
            "no vbus_times.ko in ",
            image.to_str().unwrap(),
            "scripts/guest-image",
        ],
    );
    assert!(!host.file("raw").exists());
}

#[test]
fn interrupted_run_leaves_nothing() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let run = bench(&host, &["--rounds", "50"]).start();
    run.wait_for_report("step 2 of 50");

    run.signal(Signal::INT);

    run.wait().assert_status(130);
    // The host checks that no process, interface or file is left.
    assert!(!Measured::of(&host).0.is_empty(), "what was measured stays");
}
