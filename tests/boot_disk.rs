//! Disks: what a guest has written and synced is there after the VM was killed.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;

use common::guest::Vm;
use common::host::Host;
use rustix::process::Signal;

const MIB: usize = 1 << 20;

#[test]
fn synced_data_survives_the_death_of_the_vm() {
    const WRITE: &str = "mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt && cd /mnt && \
        dd if=/dev/urandom of=data bs=64k count=64 2>/dev/null && md5sum data >sum && \
        sync && echo synced && while :; do echo more >>more; done";
    const CHECK: &str = "mount -t ext4 /dev/vda /mnt && (cd /mnt && md5sum -c sum) && \
        umount /mnt && fsck.ext4 -f -n /dev/vda && echo clean";
    let Some(host) = Host::ready() else { return };
    let disk = format!("path={}", host.image("disk", 64 * MIB));
    let vm = Vm::new(&host, &["--disk", &disk, "--exec", WRITE]).start();
    vm.wait_for("synced\n");

    vm.signal(Signal::KILL);
    vm.wait().assert_status(-9);
    let again = Vm::new(&host, &["--disk", &disk, "--exec", CHECK]).run();

    again
        .assert_status(0)
        .assert_prints(&["data: OK\n", "clean\n"]);
}

#[test]
fn read_only_disk_is_not_written() {
    let Some(host) = Host::ready() else { return };
    let image = host.image("disk", MIB);
    fs::write(&image, vec![b'x'; MIB]).unwrap();
    let disk = format!("path={image},ro");
    let work = "cat /sys/block/vda/ro; head -c 4 /dev/vda; echo; \
        dd if=/dev/zero of=/dev/vda bs=4k count=1 2>/dev/null || echo refused";

    let outcome = Vm::new(&host, &["--disk", &disk, "--exec", work]).run();

    outcome.assert_status(0);
    assert_eq!(outcome.stdout, "1\nxxxx\nrefused\n", "{outcome:?}");
    assert!(fs::read(&image).unwrap().iter().all(|byte| *byte == b'x'));
}

#[test]
fn disks_have_their_order_sizes_and_serial_numbers() {
    let Some(host) = Host::ready() else { return };
    let first = format!("path={},serial=first", host.image("a", MIB));
    let second = format!(
        "path={},serial=the-second-disk-0002",
        host.image("b", 3 * MIB)
    );
    let work = "cd /sys/block; cat vda/serial; echo; cat vda/size vdb/serial; echo; cat vdb/size";
    let flags = ["--disk", &first, "--disk", &second, "--exec", work];

    let outcome = Vm::new(&host, &flags).run();

    outcome.assert_status(0);
    assert_eq!(
        outcome.stdout, "first\n2048\nthe-second-disk-0002\n6144\n",
        "{outcome:?}"
    );
}

#[test]
fn discarded_blocks_are_given_back() {
    let Some(host) = Host::ready() else { return };
    let image = host.image("disk", 16 * MIB);
    fs::write(&image, vec![b'x'; 16 * MIB]).unwrap();
    let full_blocks = fs::metadata(&image).unwrap().blocks();
    let disk = format!("path={image}");
    let work = "blkdiscard -o 0 -l 8388608 /dev/vda && cmp -n 8388608 /dev/vda /dev/zero";

    let outcome = Vm::new(&host, &["--disk", &disk, "--exec", work]).run();

    outcome.assert_status(0);
    let left = fs::read(&image).unwrap();
    assert!(left[..8 * MIB].iter().all(|byte| *byte == 0));
    assert!(left[8 * MIB..].iter().all(|byte| *byte == b'x'));
    let blocks = fs::metadata(&image).unwrap().blocks();
    assert!(blocks <= full_blocks / 2 + 64, "{blocks} of {full_blocks}");
}

#[test]
fn disk_of_a_running_vm_is_refused_to_another() {
    let Some(host) = Host::ready() else { return };
    let disk = format!("path={}", host.image("disk", MIB));
    let first = Vm::new(&host, &["--disk", &disk]).start();
    first.wait_for_shell();

    let writer = Vm::new(&host, &["--disk", &disk, "--exec", "true"]).run();
    let reader = Vm::new(&host, &["--disk", &format!("{disk},ro"), "--exec", "true"]).run();

    first.signal(Signal::TERM);
    first.wait().assert_status(0);
    writer.assert_status(2);
    reader.assert_status(2);
    common::assert_says(&writer.stderr, &["disk0", "in use by another VM"]);
}

#[test]
fn disk_counts_requests_and_bytes() {
    let Some(host) = Host::ready() else { return };
    let disk = format!("path={}", host.image("disk", 4 * MIB));
    let path = host.file("metrics");
    let work = "dd if=/dev/zero of=/dev/vda bs=1M count=2 conv=fsync 2>/dev/null && \
        echo 3 >/proc/sys/vm/drop_caches && dd if=/dev/vda of=/dev/null bs=1M 2>/dev/null";
    let flags = ["--disk", &disk, "--exec", work, "--metrics"];

    let outcome = Vm::new(&host, &[&flags[..], &[path.to_str().unwrap()]].concat()).run();

    outcome.assert_status(0);
    let metrics: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let counters = &metrics["devices"]["blk0"];
    let count = |pointer: &str| counters.pointer(pointer).unwrap().as_u64().unwrap();
    assert!(count("/written_bytes") >= 2 << 20, "{counters}");
    assert!(count("/read_bytes") >= 4 << 20, "{counters}");
    assert!(count("/flushes") > 0, "{counters}");
    assert!(count("/queue/doorbells") > 0, "{counters}");
    assert!(count("/queue/interrupts") > 0, "{counters}");
    assert_eq!(count("/errors") + count("/host_errors"), 0, "{counters}");
}
