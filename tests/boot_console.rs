//! The console: a person at a terminal, or a script in a pipe.

mod common;

use common::guest::{PROMPT, Vm};
use common::host::Host;
use rustix::process::Signal;

#[test]
fn typed_command_is_run_and_its_output_shown() {
    let Some(host) = Host::ready() else { return };
    let mut vm = Vm::new(&host, &[]).start_on_terminal();
    vm.wait_for_shell();
    assert!(!vm.is_terminal_unchanged(), "the terminal is not raw");

    vm.send("echo answer-$((6*7))\r");
    vm.wait_for("answer-42");
    vm.send("poweroff\r");

    let outcome = vm.wait();
    outcome.assert_status(0);
    assert!(outcome.is_terminal_unchanged, "{outcome:?}");
}

#[test]
fn ctrl_c_is_the_guests() {
    let Some(host) = Host::ready() else { return };
    let mut vm = Vm::new(&host, &[]).start_on_terminal();
    vm.wait_for_shell();

    // What is typed while the shell hands the terminal over is not echoed.
    vm.send("sh -c 'echo cat-$((1+1)); exec cat'\n");
    vm.wait_for("cat-2");
    vm.send("meow\n");
    vm.wait_for_times("meow", 2); // as typed, and as the cat has it
    vm.send("\x03");
    vm.wait_for_times(PROMPT, 2);
    vm.send("exit\n");

    vm.wait().assert_status(0);
}

#[test]
fn ctrl_a_x_ends_the_vm_and_restores_the_terminal() {
    let Some(host) = Host::ready() else { return };
    let mut vm = Vm::new(&host, &[]).start_on_terminal();
    vm.wait_for_shell();

    vm.send("\x01x");

    let outcome = vm.wait();
    outcome.assert_status(0);
    assert!(outcome.is_terminal_unchanged, "{outcome:?}");
}

#[test]
fn signals_restore_the_terminal() {
    let Some(host) = Host::ready() else { return };
    let mut vm = Vm::new(&host, &["--log-level", "info"]).start_on_terminal();
    vm.wait_for_shell();
    vm.shell("killall acpid");

    vm.signal(Signal::TERM);
    vm.wait_for_report("asking the guest to power off");
    vm.signal(Signal::TERM);

    let outcome = vm.wait();
    outcome.assert_status(128 + 15);
    assert!(outcome.is_terminal_unchanged, "{outcome:?}");
}

#[test]
fn long_paste_arrives_complete() {
    let Some(host) = Host::ready() else { return };
    let mut vm = Vm::new(&host, &[]).start();
    vm.wait_for_shell();
    vm.shell("stty -echo");
    let line = format!("{}\n", "x".repeat(79));

    vm.send("cat >/tmp/paste <<'END'\n");
    vm.send(&line.repeat(100));
    vm.send("END\n");
    vm.send("echo $(wc -c </tmp/paste) bytes in $(grep -cx 'x*' /tmp/paste) lines\n");

    vm.wait_for("8000 bytes in 100 lines");
    vm.send("poweroff\n");
    vm.wait().assert_status(0);
}

#[test]
fn script_in_a_pipe_is_obeyed() {
    let Some(host) = Host::ready() else { return };
    let mut vm = Vm::new(&host, &[]).start();

    vm.send("echo hello-$((1+1)); poweroff\n");
    vm.end_input();

    vm.wait().assert_status(0).assert_prints(&["hello-2"]);
}

#[test]
fn guest_goes_on_without_standard_input() {
    let Some(host) = Host::ready() else { return };
    let mut vm = Vm::new(&host, &[]).start();
    vm.end_input();

    vm.wait_for_shell();

    vm.signal(Signal::TERM);
    vm.wait().assert_status(0);
}
