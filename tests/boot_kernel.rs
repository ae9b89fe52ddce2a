//! Stock kernels come up: both formats, one and several vCPUs, little and much memory.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs;

use common::guest::Vm;
use common::host::{Host, image_dir, is_root};
use common::skip;

/// Lists the RAM ranges of the guest, one `start-end` per line.
const LIST_RAM: &str = "grep 'System RAM' /proc/iomem | cut -d' ' -f1";

fn kernel(name: &str) -> [String; 4] {
    let path = |name| image_dir().join(name).to_str().unwrap().to_owned();
    let initrd = path("initramfs.cpio");
    ["--kernel".into(), path(name), "--initrd".into(), initrd]
}

/// The guest's `MemTotal` in KiB.
fn mem_total_kib(stdout: &str) -> u64 {
    let words: Vec<_> = stdout.split_whitespace().collect();
    words[1].parse().unwrap()
}

#[test]
fn vmlinux_boots_with_one_vcpu() {
    let Some(host) = Host::ready() else { return };
    let [a, b, c, d] = kernel("vmlinux");

    let outcome = Vm::new(&host, &[&a, &b, &c, &d, "--exec", "nproc; uname -r"]).run();

    let release = fs::read_to_string(image_dir().join("release")).unwrap();
    outcome.assert_status(0);
    assert_eq!(outcome.stdout, format!("1\n{release}"), "{outcome:?}");
}

#[test]
fn bzimage_boots() {
    let Some(host) = Host::ready() else { return };
    let [a, b, c, d] = kernel("bzImage");

    let outcome = Vm::new(&host, &[&a, &b, &c, &d, "--exec", "uname -r"]).run();

    let release = fs::read_to_string(image_dir().join("release")).unwrap();
    outcome.assert_status(0);
    assert_eq!(outcome.stdout, release, "{outcome:?}");
}

#[test]
fn two_vcpus_both_work() {
    let Some(host) = Host::ready() else { return };
    let work = "nproc; taskset 1 echo first; taskset 2 echo second";

    let outcome = Vm::new(&host, &["--cpus", "2", "--exec", work]).run();

    outcome.assert_status(0);
    assert_eq!(outcome.stdout, "2\nfirst\nsecond\n", "{outcome:?}");
}

#[test]
fn four_vcpus_are_cores_of_one_socket() {
    let Some(host) = Host::ready() else { return };
    let work = "nproc; taskset 8 echo last; grep -E 'siblings|cpu cores' /proc/cpuinfo | sort -u; \
                grep 'physical id' /proc/cpuinfo | sort -u | wc -l";

    let outcome = Vm::new(&host, &["--cpus", "4", "--exec", work]).run();

    outcome.assert_status(0);
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(
        lines,
        ["4", "last", "cpu cores\t: 4", "siblings\t: 4", "1"],
        "{outcome:?}"
    );
}

#[test]
fn memory_of_128_mib_is_enough() {
    let Some(host) = Host::ready() else { return };
    let work = "grep MemTotal /proc/meminfo";

    let outcome = Vm::new(&host, &["--memory", "128M", "--exec", work]).run();

    outcome.assert_status(0);
    let total_kib = mem_total_kib(&outcome.stdout);
    assert!((64 << 10..128 << 10).contains(&total_kib), "{outcome:?}");
}

#[test]
fn memory_of_4_gib_continues_above_the_gap() {
    let Some(host) = Host::ready() else { return };
    if alacrity::check::host::total_memory() < 5 << 30 {
        return skip("this host has less than 5 GiB; scripts/lab --memory 6144 has more");
    }
    let work = format!("grep MemTotal /proc/meminfo; {LIST_RAM}");

    let outcome = Vm::new(&host, &["--memory", "4G", "--exec", &work]).run();

    outcome
        .assert_status(0)
        .assert_prints(&["\n100000000-13fffffff\n"]);
    assert!(mem_total_kib(&outcome.stdout) > 3_900_000, "{outcome:?}");
}

#[test]
fn huge_pages_are_used_and_given_back() {
    const COUNT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    let Some(host) = Host::ready() else { return };
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let before = read(COUNT);
    if !is_root() || fs::write(COUNT, "64").is_err() || read(FREE).trim() != "64" {
        let _ = fs::write(COUNT, before);
        return skip("this host does not give 128 MiB of huge pages");
    }

    let flags = ["--hugepages", "--memory", "128M", "--exec", "echo up"];
    let outcome = Vm::new(&host, &flags).run();

    let free_after = read(FREE);
    fs::write(COUNT, before).unwrap();
    outcome.assert_status(0);
    assert_eq!(outcome.stdout, "up\n", "{outcome:?}");
    assert_eq!(free_after.trim(), "64");
}
