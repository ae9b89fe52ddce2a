//! The program from outside: what it prints, what it refuses and how, and that a refusal leaves
//! nothing behind.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use common::daemon::Site;
use common::refused::{Place, refusal};
use common::{ALACRITY, assert_says, skip, skip_without_kvm};

#[test]
fn memory_of_nothing_too_little_or_no_size_is_refused() {
    let place = Place::new();

    let zero = place.refused(&["--memory", "0"]);
    let little = place.refused(&["--memory", "1M"]);
    let word = place.refused(&["--memory", "abc"]);
    let bare = place.refused(&["--memory", "512"]);

    assert_says(&zero, &["memory of 0", "64M to 64G", "--memory"]);
    assert_says(&little, &["memory of 1M", "64M to 64G", "--memory"]);
    assert_says(&word, &["`abc` is not a size", "512M or 4G"]);
    assert_says(&bare, &["no unit", "write 512M"]);
}

#[test]
fn memory_beyond_the_host_is_refused() {
    let place = Place::new();
    let total = alacrity::check::host::total_memory();
    if total >= 64 << 30 {
        return skip("this host has 64 GiB or more");
    }

    let text = place.refused(&["--kernel", "kernel", "--memory", "64G"]);

    assert_says(&text, &["memory of 64G", "this host has", "choose less"]);
}

#[test]
fn zero_and_a_thousand_cpus_are_refused() {
    let place = Place::new();

    let zero = place.refused(&["--cpus", "0"]);
    let thousand = place.refused(&["--cpus", "1000"]);
    let word = place.refused(&["--cpus", "many"]);

    assert_says(&zero, &["0 vCPUs", "1 to 32", "--cpus"]);
    assert_says(&thousand, &["1000 vCPUs", "1 to 32"]);
    assert_says(&word, &["`many` is not a whole number"]);
}

#[test]
fn kernel_that_is_missing_empty_or_no_file_is_refused() {
    let place = Place::new().file("empty", "");

    let missing = place.refused(&["--kernel", "none"]);
    let empty = place.refused(&["--kernel", "empty"]);
    let directory = place.refused(&["--kernel", "."]);

    assert_says(&missing, &["kernel none", "does it exist", "No such file"]);
    assert_says(&empty, &["kernel empty is empty", "make it again"]);
    assert_says(&directory, &["kernel . is not a file"]);
}

#[test]
fn kernel_that_is_random_for_arm64_or_truncated_is_refused() {
    if let Err(error) = alacrity::check::kvm::open() {
        return skip_without_kvm(&error.to_string());
    }
    let mut arm64 = vec![0; 4096];
    arm64[0x38..0x3c].copy_from_slice(b"ARM\x64"); // Linux Documentation/arch/arm64/booting.rst, 4
    let mut elf = vec![0; 64]; // one program header announced, none there
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16] = 2; // executable
    elf[18] = 62; // x86-64
    elf[20] = 1;
    elf[32] = 64;
    elf[52] = 64;
    elf[54] = 56;
    elf[56] = 1;
    let place = Place::new();
    fs::write(place.dir.path().join("random"), [0x5a; 4096]).unwrap();
    fs::write(place.dir.path().join("arm64"), arm64).unwrap();
    fs::write(place.dir.path().join("truncated"), elf).unwrap();

    let random = place.refused(&["--force", "--kernel", "random"]);
    let arm64 = place.refused(&["--force", "--kernel", "arm64"]);
    let truncated = place.refused(&["--force", "--kernel", "truncated"]);

    assert_says(&random, &["kernel random", "neither a bzImage nor an ELF"]);
    assert_says(&arm64, &["kernel arm64", "for arm64"]);
    assert_says(&truncated, &["kernel truncated", "is it truncated"]);
}

#[test]
fn missing_default_image_names_its_remedy() {
    let text = Place::new().refused(&[]);

    assert_says(&text, &["no default guest image in", "scripts/guest-image"]);
}

#[test]
fn initrd_larger_than_memory_is_refused() {
    let place = Place::new();
    let initrd = File::create(place.dir.path().join("initrd")).unwrap();
    initrd.set_len(65 << 20).unwrap();

    let text = place.refused(&[
        "--kernel", "kernel", "--initrd", "initrd", "--memory", "64M",
    ]);

    assert_says(
        &text,
        &["initrd initrd", "does not fit into 64M", "--memory"],
    );
}

#[test]
fn unknown_keys_are_told_the_known_ones() {
    let place = Place::new();

    let net = place.refused(&["--net", "tap=tap0,maac=1"]);
    let disk = place.refused(&["--disk", "disk.img"]);

    assert_says(&net, &["unknown key `maac`", "tap=NAME", "mac="]);
    assert_says(&disk, &["unknown key `disk.img`", "path=FILE", "ro"]);
}

#[test]
fn refusal_that_nobody_reads_is_a_refusal_all_the_same() {
    let place = Place::new();
    for args in [
        ["run", "--kernel", "missing"],
        ["run", "--memory", "0"],
        ["run", "--no-such-flag", ""],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);

        let status = place
            .command(ALACRITY, &args)
            .stderr(writer)
            .status()
            .unwrap();

        assert_eq!(status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn unknown_flag_is_told_a_similar_one() {
    let text = Place::new().refused(&["--memroy", "1G"]);

    assert_says(&text, &["--memroy", "'--memory'"]);
}

#[test]
fn config_file_that_is_missing_or_has_unknown_fields_is_refused() {
    let place = Place::new().file("vm.toml", "cpus = 2\nmemroy = \"1G\"\n");

    let unknown = place.refused(&["--config", "vm.toml"]);
    let missing = place.refused(&["--config", "none.toml"]);

    assert_says(&unknown, &["vm.toml", "line 2", "`memroy`", "`memory`"]);
    assert_says(&missing, &["none.toml", "does it exist"]);
}

#[test]
fn two_interfaces_with_one_mac_are_refused() {
    let text = Place::new().refused(&[
        "--net",
        "tap=tap0,mac=02:00:00:00:00:01",
        "--net",
        "user,mac=02:00:00:00:00:01",
    ]);

    assert_says(&text, &["net1", "02:00:00:00:00:01", "net0", "its own"]);
}

#[test]
fn tap_name_of_16_bytes_is_refused() {
    let text = Place::new().refused(&["--net", "tap=tap0123456789012"]);

    assert_says(&text, &["16 bytes", "at most 15", "shorter"]);
}

#[test]
fn one_file_as_two_writable_disks_is_refused() {
    let text = Place::new().refused(&["--disk", "path=a.img", "--disk", "path=a.img"]);

    assert_says(&text, &["disk1", "a.img", "disk0", "add ro"]);
}

#[test]
fn exec_without_anybody_to_obey_is_refused() {
    let text = Place::new().refused(&["--kernel", "kernel", "--exec", "true"]);

    assert_says(&text, &["--exec", "--kernel", "--initrd"]);
}

#[test]
fn user_that_is_no_pair_of_numbers_is_refused() {
    let text = Place::new().refused(&["--kernel", "kernel", "--user", "vm1"]);

    assert_says(&text, &["--user", "`vm1`", "1000:1000"]);
}

#[test]
fn user_on_a_bus_of_the_daemon_is_refused() {
    let text = Place::new().refused(&["--kernel", "kernel", "--user", "1000:1000", "--bus", "lab"]);

    assert_says(&text, &["--user", "--bus"]);
}

#[test]
fn metrics_without_directory_are_refused() {
    let text = Place::new().refused(&["--kernel", "kernel", "--metrics", "none/m.json"]);

    assert_says(&text, &["no directory none", "--metrics"]);
}

#[test]
fn host_without_kvm_is_refused() {
    let place = Place::new();
    let script =
        "mount -t tmpfs none /dev && mknod /dev/urandom c 1 9 && exec \"$0\" run --kernel kernel";
    let hidden = place
        .command(
            "unshare",
            &["--mount", "sh", "-c", "mount -t tmpfs none /dev"],
        )
        .output();
    if !hidden.is_ok_and(|output| output.status.success()) {
        return skip("cannot hide /dev without root");
    }

    let output = place
        .command("unshare", &["--mount", "sh", "-c", script, ALACRITY])
        .output()
        .unwrap();

    assert_says(
        &refusal(&output),
        &["no /dev/kvm", "firmware", "scripts/lab"],
    );
}

/// Runs a program as a user who is nobody.
fn as_nobody(place: &Place, args: &[&str]) -> Command {
    let become_nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    place.command("setpriv", &[&become_nobody[..], args].concat())
}

/// A copy of the program that nobody may run; `None` if we cannot become nobody.
fn for_nobody(place: &Place) -> Option<String> {
    let program = place.dir.path().join("alacrity");
    // By another process: what this one has open for writing, a child that another test starts at that
    // moment has too, and until it is gone nobody can execute the copy ("Text file busy").
    let copied = Command::new("cp").arg(ALACRITY).arg(&program).status();
    assert!(copied.unwrap().success());
    fs::set_permissions(place.dir.path(), Permissions::from_mode(0o755)).unwrap();
    let can_become = as_nobody(place, &["true"]).output();
    can_become
        .is_ok_and(|output| output.status.success())
        .then(|| program.to_str().unwrap().to_owned())
}

#[test]
fn user_without_permission_for_kvm_is_refused() {
    let place = Place::new();
    let Some(program) = for_nobody(&place) else {
        return skip("cannot become another user without root");
    };
    let may_open = as_nobody(&place, &["sh", "-c", "exec <>/dev/kvm"]).output();
    if may_open.is_ok_and(|output| output.status.success()) || !Path::new("/dev/kvm").exists() {
        return skip("/dev/kvm is missing, or open to everybody");
    }

    let output = as_nobody(&place, &[&program, "run", "--kernel", "kernel"])
        .output()
        .unwrap();

    assert_says(
        &refusal(&output),
        &["no permission for /dev/kvm", "usermod -aG kvm"],
    );
}

#[test]
fn kvm_that_interprets_kernel_mode_is_refused() {
    match alacrity::check::guest_kernel_mode_speed() {
        Err(error) => return skip_without_kvm(&format!("no usable KVM: {error}")),
        Ok(speed) if !speed.is_interpreted() => {
            return skip("KVM here runs guest kernel mode natively");
        }
        Ok(_) => {}
    }

    let text = Place::new().refused(&["--kernel", "kernel"]);

    assert_says(
        &text,
        &["interprets guest kernel mode", "scripts/lab", "--force"],
    );
}

#[test]
fn check_prints_one_json_document_whose_verdict_is_the_status() {
    let output = Place::new()
        .command(ALACRITY, &["check", "--json"])
        .output()
        .unwrap();

    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = i32::from(report["can_run_linux"] != true);
    assert_eq!(output.status.code(), Some(expected));
    assert_eq!(report["items"][0]["id"], "kvm");
    assert!(output.stderr.is_empty());
}

#[test]
fn check_prints_a_remedy_below_what_is_missing() {
    let output = Place::new().command(ALACRITY, &["check"]).output().unwrap();

    let text = String::from_utf8(output.stdout).unwrap();
    assert_says(
        &text,
        &["guest kernel mode", "missing  default guest image"],
    );
    assert_says(&text, &["remedy: scripts/guest-image", "Linux guests can"]);
}

#[test]
fn help_teaches_with_examples_and_exit_statuses() {
    let output = Place::new()
        .command(ALACRITY, &["run", "--help"])
        .output()
        .unwrap();

    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert_says(&text, &["EXAMPLES:", "EXIT STATUS:", "--net user"]);
}

#[test]
fn man_pages_are_written_to_a_directory() {
    let place = Place::new();

    let output = place.command(ALACRITY, &["man", "man1"]).output().unwrap();

    assert!(output.status.success());
    assert!(place.dir.path().join("man1/alacrity-run.1").is_file());
}

#[test]
fn bash_accepts_its_completion_script() {
    let place = Place::new();
    let script = place
        .command(ALACRITY, &["completions", "bash"])
        .output()
        .unwrap();
    let place = place.file("script", &String::from_utf8(script.stdout).unwrap());

    let output = place.command("bash", &["-n", "script"]).output().unwrap();

    assert!(output.status.success(), "{output:?}");
}

#[test]
fn interfaces_on_a_bus_that_cannot_be_are_refused() {
    let place = Place::new();

    let nowhere = place.refused(&["--venet", "mtu=1500"]);
    let both = place.refused(&["--venet", "tap=t,loopback"]);
    let queues = place.refused(&["--venet", "tap=t,queues=2"]);
    let host_ip = place.refused(&["--venet", "loopback,host_ip=10.9.0.1/24"]);
    let name = place.refused(&["--venet", "tap=a-name-that-is-too-long"]);
    let twice = place.refused(&["--net", "tap=t", "--venet", "tap=t"]);

    assert_says(&nowhere, &["--venet mtu=1500", "leads nowhere", "tap=NAME"]);
    assert_says(&both, &["tap=t,loopback", "exclude each other", "keep one"]);
    assert_says(&queues, &["unknown key `queues`", "known are tap=NAME"]);
    assert_says(&host_ip, &["venet0", "host's end of a TAP", "leave it out"]);
    assert_says(&name, &["venet0", "at most 15", "shorter"]);
    assert_says(&twice, &["venet0", "TAP t", "net0", "its own"]);
}

#[test]
fn bus_that_cannot_be_joined_is_refused() {
    let place = Place::new();
    let run = |args: &[&str]| place.refused(&[&["--kernel", "kernel"], args].concat());

    let nobody = run(&["--bus", "blue", "--host", "./none.sock"]);
    let both = run(&["--bus", "blue", "--venet", "loopback"]);
    let bad = run(&["--bus", "a/b"]);
    let alone = run(&["--host", "./none.sock"]);
    let huge = place.refused(&["--bus", "blue", "--hugepages"]);

    assert_says(
        &nobody,
        &[
            "--bus blue",
            "no daemon answers at ./none.sock",
            "alacrity host",
        ],
    );
    assert_says(&both, &["--venet and --bus", "leave"]);
    assert_says(&bad, &["a/b", "alacrity vbus ls config/instances"]);
    assert_says(&alone, &["--host without --bus", "add --bus"]);
    assert_says(&huge, &["--hugepages and --bus", "leave --hugepages out"]);
}

#[test]
fn bus_that_the_daemon_does_not_have_is_refused() {
    let site = Site::new();
    let _daemon = site.daemon(&[]);
    let socket = site.socket();
    let place = Place::new();

    let text = place.refused(&[
        "--kernel",
        "kernel",
        "--bus",
        "blue",
        "--host",
        socket.to_str().unwrap(),
    ]);

    assert_says(
        &text,
        &[
            "--bus blue",
            "no bus of this name",
            "mkdir config/instances/blue",
        ],
    );
}

/// Runs `alacrity ARGS`, which must be refused; returns what it says.
fn refused(args: &[&str]) -> String {
    refusal(&Place::new().command(ALACRITY, args).output().unwrap())
}

#[test]
fn name_that_could_be_a_process_is_refused() {
    let place = Place::new();

    let number = place.refused(&["--name", "4711"]);
    let flag = place.refused(&["--name", "-x"]);

    assert_says(&number, &["--name \"4711\"", "such as web1"]);
    assert_says(&flag, &["--name \"-x\""]);
}

#[test]
fn vm_that_does_not_run_is_refused() {
    let number = u32::MAX.to_string(); // no process of Linux has it

    let by_number = refused(&["stat", &number]);
    let by_name = refused(&["stat", "nobody-has-this-name"]);
    let reclaim = refused(&["reclaim", &number, "64M"]);

    assert_says(&by_number, &[&format!("VM {number}"), "no such VM runs"]);
    assert_says(&by_name, &["called nobody-has-this-name", "alacrity ps"]);
    assert_says(&reclaim, &["no such VM runs"]);
}

#[test]
fn reclaim_wants_a_size() {
    let nothing = refused(&["reclaim"]);
    let bare = refused(&["reclaim", "512"]);
    let word = refused(&["reclaim", "web", "much"]);
    let negative = refused(&["reclaim", "web", "-1M"]);

    assert_says(&nothing, &["<SIZE>"]);
    assert_says(&bare, &["no unit", "write 512M"]);
    assert_says(&word, &["`much` is not a size"]);
    assert_says(&negative, &["error: "]);
}

#[test]
fn stat_is_not_watched_without_pause() {
    let zero = refused(&["stat", "--watch=0"]);

    assert_says(&zero, &["--watch", "1..=65535"]);
}

#[test]
fn ps_prints_one_json_list_whatever_runs() {
    let output = Place::new()
        .command(ALACRITY, &["ps", "--json"])
        .env("XDG_RUNTIME_DIR", "/proc/self/none")
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let vms: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(vms.is_array(), "{vms}");
}

#[test]
fn help_of_vms_says_which_one_is_meant() {
    for command in ["stat", "reclaim"] {
        let output = Place::new()
            .command(ALACRITY, &[command, "--help"])
            .output()
            .unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let parts = ["--name", "the only VM", "EXAMPLES", "EXIT STATUS"];
        assert_says(&help, &parts);
    }
}

#[test]
fn report_of_benchmarks_is_made_compared_and_refused() {
    let line = |peer: &str, value: u32| {
        format!(
            "{{\"case\":\"boot\",\"peer\":\"{peer}\",\"round\":1,\"name\":\"time_us\",\"value\":{value}}}\n"
        )
    };
    let text = line("alacrity", 10) + &line("qemu", 20);
    let place = Place::new().file("boot.json", &text);
    let report = |arguments: &[&str]| {
        Command::new(ALACRITY)
            .args(["bench", "report", "--from", "."])
            .args(arguments)
            .current_dir(place.dir.path())
            .output()
            .unwrap()
    };

    let made = report(&["--out", "out"]);
    let compared = report(&["--compare", "out/results.json"]);
    let no_report = report(&["--compare", "boot.json"]);
    fs::write(place.dir.path().join("net.json"), "{}\n{\"case\"").unwrap();
    let broken = report(&[]);

    assert_says(
        &String::from_utf8(made.stdout).unwrap(),
        &[
            "time_us",
            "2.00",
            "one round only",
            "1.2: reached",
            "out/report.html",
            "out/ratios.svg",
        ],
    );
    assert_eq!(compared.status.code(), Some(0));
    let said = String::from_utf8(compared.stdout).unwrap();
    assert_says(&said, &["0 worse", "1 of too few rounds"]);
    assert_says(&refusal(&no_report), &["boot.json, line 1", "results.json"]);
    assert_says(&refusal(&broken), &["net.json, line 1", "scripts/bench"]);
}

fn refused_bench(arguments: &[&str]) -> String {
    let place = Place::new();
    let output = place
        .command(ALACRITY, &[&["bench"], arguments].concat())
        .output()
        .unwrap();
    assert_eq!(place.names(), ["kernel"], "it left something behind");
    refusal(&output)
}

#[test]
fn guests_that_cannot_be_measured_are_refused() {
    let peer = refused_bench(&["net", "--kernel", "k", "--initrd", "i", "--peers", "venet"]);
    let case = refused_bench(&["net", "--kernel", "k", "--initrd", "i", "--cases", "nap"]);
    let kernel = refused_bench(&["boot", "--peers", "", "--kernel", "k", "--initrd", "i"]);
    let image = refused_bench(&["all"]);
    let rounds = refused_bench(&["net", "--rounds", "0"]);

    assert_says(&peer, &["\"venet\"", "virtio", "qemu-vhost", "kvmtool"]);
    assert_says(&case, &["\"nap\"", "udp-out"]);
    assert_says(
        &kernel,
        &["there is no k", "there is no i", "scripts/guest-image"],
    );
    assert_says(&image, &["no default guest image", "scripts/guest-image"]);
    assert_says(&rounds, &["--rounds"]);
}

#[test]
fn help_of_benchmarks_with_guests_teaches() {
    for what in ["net", "boot", "memory", "all"] {
        let help = Place::new()
            .command(ALACRITY, &["bench", what, "--help"])
            .output()
            .unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        assert_says(
            &help,
            &["--peers", "udp-out", "EXAMPLES", "EXIT STATUS", "Ctrl-C"],
        );
    }
}

#[test]
fn help_of_the_report_teaches() {
    let output = Command::new(ALACRITY)
        .args(["bench", "report", "--help"])
        .output()
        .unwrap();
    let help = String::from_utf8(output.stdout).unwrap();

    assert_says(
        &help,
        &[
            "--compare",
            "above 1",
            "EXAMPLES",
            "scripts/bench",
            "EXIT STATUS",
        ],
    );
}

#[test]
fn user_without_runtime_directory_has_no_vms_to_ask() {
    let place = Place::new();
    let Some(program) = for_nobody(&place) else {
        return skip("cannot become another user without root");
    };

    let nowhere = as_nobody(&place, &[&program, "ps"])
        .env_remove("XDG_RUNTIME_DIR")
        .output()
        .unwrap();
    let empty = as_nobody(&place, &[&program, "stat"])
        .env("XDG_RUNTIME_DIR", place.dir.path().join("run"))
        .output()
        .unwrap();

    assert_says(&refusal(&nowhere), &["XDG_RUNTIME_DIR is not set"]);
    assert_says(
        &refusal(&empty),
        &["no VM of this user runs", "alacrity run"],
    );
    assert!(!place.dir.path().join("run").exists());
}
