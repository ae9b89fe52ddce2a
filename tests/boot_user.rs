//! VMs that do not run as root. One is started by a user without root: what it needs is access to `/dev/kvm`,
//! files of that user, and a TAP that was made for that user. The others are started by root and become that
//! user (`--user`): what they name is opened before.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};

use alacrity::control_socket::{Place, client};
use common::ALACRITY;
use common::all_devices::{self, RESTART_LINKS};
use common::guest::Vm;
use common::hints::take;
use common::host::{Host, run};
use common::own::thread_statuses;

/// The user, who has nothing else on this machine.
const NOBODY: u32 = 65534;

/// Runs the program `$0` as nobody, with a `/dev/kvm` for everybody in a mount namespace of its own, and
/// the directory `$1` for run-time files.
const AS_NOBODY: &str = r#"
    set -e
    mknod "$1/kvm" c 10 232
    chmod 666 "$1/kvm"
    mount --bind "$1/kvm" /dev/kvm
    rm "$1/kvm"
    export XDG_RUNTIME_DIR=$1
    shift
    exec setpriv --reuid 65534 --regid 65534 --clear-groups "$0" run "$@"
"#;

#[test]
fn user_without_root_has_a_network_a_disk_and_a_control_socket() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let run_dir = host.file("run");
    fs::create_dir(&run_dir).unwrap();
    let disk = host.image("disk", 16 << 20);
    fs::set_permissions(run_dir.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    for path in [run_dir.to_str().unwrap(), &disk] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let net = host.network();
    let tap = &net.tap;
    run(
        "ip",
        &["tuntap", "add", tap, "mode", "tap", "user", "65534"],
    );
    let address = format!("{}/24", net.host_ip());
    run("ip", &["addr", "add", &address, "dev", tap]);
    run("ip", &["link", "set", tap, "up"]);

    let program = ["unshare", "--mount", "bash", "-c", AS_NOBODY, ALACRITY];
    let program = [&program[..], &[run_dir.to_str().unwrap()]].concat();
    let net_flag = format!("tap={tap},guest_ip={}/24", net.guest_ip());
    let disk_flag = format!("path={disk},serial=data");
    let flags = ["--net", &net_flag, "--disk", &disk_flag];
    let mut vm = Vm::through(&host, &program, &flags).start();
    vm.wait_for_shell();
    let status = fs::read_to_string(format!("/proc/{}/status", vm.id())).unwrap();
    let socket = run_dir.join(format!("alacrity/vms/{}.sock", vm.id()));
    let had_socket = socket.exists();
    vm.shell(&format!("ping -q -c 2 {}", net.host_ip()));
    vm.shell("head -c 4096 /dev/hwrng > /dev/vda && sync");
    vm.send("poweroff -f\n");
    let outcome = vm.wait();

    let is_kept = net.exists();
    run("ip", &["link", "del", tap]);
    outcome.assert_status(0);
    for fact in [
        "Uid:\t65534\t65534\t65534\t65534\n",
        "CapPrm:\t0000000000000000\n",
        "Seccomp:\t2\n",
    ] {
        assert!(status.contains(fact), "{fact} {status}");
    }
    assert!(is_kept, "the TAP was removed");
    assert!(had_socket && !socket.exists());
    assert!(
        fs::read(disk).unwrap()[..4096]
            .iter()
            .any(|byte| *byte != 0)
    );
}

fn assert_all_are_nobody(threads: &[String]) {
    for status in threads {
        for fact in [
            "Uid:\t65534\t65534\t65534\t65534\n",
            "Gid:\t65534\t65534\t65534\t65534\n",
            "CapPrm:\t0000000000000000\n",
            "CapEff:\t0000000000000000\n",
        ] {
            assert!(status.contains(fact), "{fact} {status}");
        }
        let groups = status.lines().find(|line| line.starts_with("Groups:"));
        assert_eq!(groups.map(str::trim_end), Some("Groups:"), "{status}");
    }
}

#[test]
fn vm_of_root_becomes_a_user_and_keeps_all_that_it_named() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let (mut vm, networks) = all_devices::start(&host, &["--user", "65534:65534"]);
    let pid = vm.id();

    vm.shell("head -c 4096 /dev/hwrng > /dev/vda && sync");
    vm.shell(RESTART_LINKS);
    for network in &networks {
        vm.shell(&format!("ping -q -c 2 {}", network.host_ip()));
    }
    let taken = take(pid, 64 << 20);
    let seen: Vec<_> = thread_statuses(pid).collect();
    vm.send("poweroff -f\n");
    vm.wait().assert_status(0);

    assert!(seen.len() >= 6, "{seen:?}");
    assert_all_are_nobody(&seen);
    assert!(taken.total_bytes() > 0, "{taken:?}");
    assert!(host.metrics()["reclaim"]["pages"].is_object());
    assert!(networks.iter().all(|network| !network.exists()));
    let place = Place::default_one().unwrap();
    // It may not remove its socket; who looks for VMs next does.
    client::list(&place).unwrap();
    assert!(!place.pids().unwrap().contains(&pid));
}

#[test]
fn user_is_another_one_without_the_sandbox_too() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let flags = ["--user", "65534:65534", "--sandbox", "off"];
    let mut vm = Vm::new(&host, &flags).start();
    vm.wait_for_shell();
    let seen: Vec<_> = thread_statuses(vm.id()).collect();
    vm.send("poweroff -f\n");
    vm.wait().assert_status(0);

    assert_all_are_nobody(&seen);
}
