//! How a VM ends: by itself, by its command, by a signal.

mod common;

use common::guest::Vm;
use common::host::Host;
use rustix::process::Signal;

#[test]
fn power_off_is_status_0() {
    let Some(host) = Host::ready() else { return };

    let outcome = Vm::new(&host, &["--cmdline", "alacrity.poweroff"]).run();

    outcome.assert_status(0);
}

#[test]
fn power_off_by_the_command_is_status_0() {
    let Some(host) = Host::ready() else { return };

    let outcome = Vm::new(&host, &["--exec", "poweroff; sleep 1000"]).run();

    outcome.assert_status(0);
}

#[test]
fn reboot_is_status_0() {
    let Some(host) = Host::ready() else { return };

    let outcome = Vm::new(&host, &["--exec", "reboot; sleep 1000"]).run();

    outcome.assert_status(0);
}

#[test]
fn reboot_by_triple_fault_is_status_0() {
    let Some(host) = Host::ready() else { return };
    let mut vm = Vm::new(&host, &["--cmdline", "reboot=t"]).start();
    vm.wait_for_shell();

    vm.send("reboot\n");

    vm.wait().assert_status(0);
}

#[test]
fn triple_fault_during_the_command_is_status_3() {
    let Some(host) = Host::ready() else { return };
    let flags = ["--cmdline", "reboot=t", "--exec", "reboot; sleep 1000"];

    let outcome = Vm::new(&host, &flags).run();

    outcome.assert_status(3);
    common::assert_says(&outcome.stderr, &["triple fault"]);
}

#[test]
fn panic_is_status_3() {
    let Some(host) = Host::ready() else { return };

    let outcome = Vm::new(&host, &["--exec", "echo c >/proc/sysrq-trigger"]).run();

    outcome.assert_status(3);
    common::assert_says(&outcome.stderr, &["Kernel panic"]);
}

#[test]
fn missing_init_is_a_panic() {
    let Some(host) = Host::ready() else { return };

    let outcome = Vm::new(&host, &["--cmdline", "rdinit=/none init=/none"]).run();

    outcome.assert_status(3).assert_prints(&["Kernel panic"]);
}

#[test]
fn status_of_the_command_is_ours() {
    let Some(host) = Host::ready() else { return };

    let failed = Vm::new(&host, &["--exec", "false"]).run();
    let seven = Vm::new(&host, &["--exec", "exit 7"]).run();

    failed.assert_status(1);
    seven.assert_status(7);
}

#[test]
fn output_of_the_command_is_all_of_standard_output() {
    let Some(host) = Host::ready() else { return };
    let work = "echo out; echo err >&2; printf 'a\\r\\tb\\0c'";

    let outcome = Vm::new(&host, &["--exec", work]).run();

    outcome.assert_status(0);
    assert_eq!(outcome.stdout, "out\nerr\na\r\tb\0c", "{outcome:?}");
}

#[test]
fn output_longer_than_a_pipe_holds_is_complete() {
    const LINES: u32 = 13_000; // 67 kB; a pipe holds 64
    let Some(host) = Host::ready() else { return };

    let outcome = Vm::new(&host, &["--exec", &format!("seq 1 {LINES}")]).run();

    let wanted: String = (1..=LINES).map(|n| format!("{n}\n")).collect();
    outcome.assert_status(0);
    assert_eq!(outcome.stdout.len(), wanted.len());
    assert!(outcome.stdout == wanted, "the output is not what it was");
}

#[test]
fn command_has_nothing_on_standard_input() {
    let Some(host) = Host::ready() else { return };

    let outcome = Vm::new(&host, &["--exec", "cat; echo end"]).run();

    outcome.assert_status(0);
    assert_eq!(outcome.stdout, "end\n", "{outcome:?}");
}

#[test]
fn sigterm_lets_the_guest_power_off() {
    let Some(host) = Host::ready() else { return };
    let vm = Vm::new(&host, &[]).start();
    vm.wait_for_shell();

    vm.signal(Signal::TERM);

    vm.wait().assert_status(0);
}

#[test]
fn second_sigterm_ends_a_guest_that_does_not_listen() {
    let Some(host) = Host::ready() else { return };
    let mut vm = Vm::new(&host, &["--log-level", "info"]).start();
    vm.wait_for_shell();
    vm.shell("killall acpid");

    vm.signal(Signal::TERM);
    vm.wait_for_report("asking the guest to power off");
    vm.signal(Signal::TERM);

    vm.wait().assert_status(128 + 15);
}

#[test]
fn guest_that_does_not_power_off_is_ended() {
    let Some(host) = Host::ready() else { return };
    let mut vm = Vm::new(&host, &[]).start();
    vm.wait_for_shell();
    vm.shell("killall acpid");

    vm.signal(Signal::INT);

    let outcome = vm.wait();
    outcome.assert_status(128 + 2);
    common::assert_says(&outcome.stderr, &["did not power off in 10 s"]);
}

#[test]
fn sigterm_during_the_command_is_not_its_success() {
    let Some(host) = Host::ready() else { return };
    let vm = Vm::new(&host, &["--exec", "echo begun; sleep 1000"]).start();
    vm.wait_for("begun");

    vm.signal(Signal::TERM);

    vm.wait().assert_status(128 + 15);
}

#[test]
fn silent_guest_is_noticed() {
    let Some(host) = Host::ready() else { return };
    let vm = Vm::new(&host, &["--cmdline", "rdinit=/bin/cat"]).start();

    vm.wait_for_report("has said nothing for 10 s. Does its kernel command line have console=");

    vm.signal(Signal::KILL);
    vm.wait().assert_status(-9);
}

#[test]
fn guest_that_cannot_obey_is_an_error() {
    let Some(host) = Host::ready() else { return };
    let flags = ["--cmdline", "alacrity.poweroff", "--exec", "true"];

    let outcome = Vm::new(&host, &flags).run();

    outcome.assert_status(4);
    common::assert_says(&outcome.stderr, &["ended before it ran its --exec command"]);
}
