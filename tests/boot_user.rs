//! A VM of a user without root: what it needs is access to `/dev/kvm`, files of that user, and a TAP that was
//! made for that user.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};

use common::ALACRITY;
use common::guest::Vm;
use common::host::{Host, run};

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
