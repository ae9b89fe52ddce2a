//! Guests that compare all they have with what they wrote, while the host takes whatever it can.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use common::host::Host;
use common::reclaim::{EVERYTHING, Guest, Taker, count, take};

const MIB: u64 = 1 << 20;
/// How long a guest checks.
const SECONDS: u32 = 30;
/// Memory that the host may use for itself meanwhile: buffers of its threads, and sets of what was taken.
const GROWTH_KIB: u64 = 32 << 10;

#[test]
fn files_and_memory_are_right_while_all_of_them_are_taken() {
    // Each in a directory of its own, all at once.
    const CHECK: &str = "for mode in files writers reuse; do mkdir /mnt/$mode; \
        page-check $mode /mnt/$mode SECONDS >/said-$mode & done; wait; cat /said-*; \
        test $(cat /said-* | grep -c ': ok, ') = 3";
    let Some(host) = Host::ready() else { return };
    let swap = host.tmp();
    let flags = [
        "--swap",
        swap.to_str().unwrap(),
        "--cpus",
        "2",
        "--memory",
        "128M",
    ];
    let (mut guest, _) = Guest::with_disk(&host, &flags);
    guest.vm.shell(
        "mkfs.ext4 -q -b 4096 /dev/vda && mount -t ext4 /dev/vda /mnt && \
         echo 500 >/sys/module/hints/parameters/scan_cpu_permille",
    );
    // What is made on first use is there, and something is in the swap file, whatever comes.
    take(guest.pid, EVERYTHING).unwrap();
    let before = guest.upkeep();

    let taker = Taker::with(guest.pid, 8 * MIB, 1);
    guest
        .vm
        .shell(&CHECK.replace("SECONDS", &SECONDS.to_string()));
    let num_bytes = taker.stop();

    assert!(num_bytes > 16 * MIB, "{num_bytes}");
    let pages = guest.assert_well();
    guest.upkeep().assert_bounded(before, GROWTH_KIB);
    for name in [
        "dropped",
        "refilled",
        "swapped_in",
        "unprotected",
        "unequal",
    ] {
        assert!(count(&pages, &format!("/{name}")) > 0, "{name}: {pages}");
    }
    guest
        .vm
        .shell("sync && umount /mnt && fsck.ext4 -f -n /dev/vda");
    guest.power_off().assert_status(0);
}
