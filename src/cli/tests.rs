use clap::{CommandFactory, Parser};

use super::*;
use crate::config::{NetBackend, VenetBackend};
use crate::sandbox::Mode;

fn config(args: &[&str]) -> Result<VmConfig, CliError> {
    let all = ["alacrity", "run"].iter().chain(args);
    match Cli::try_parse_from(all).unwrap().command {
        Command::Run(args) => (*args).try_into(),
        other => panic!("not a run command: {other:?}"),
    }
}

fn flag_error(args: &[&str]) -> ValueError {
    match config(args).unwrap_err() {
        CliError::Flag { source, .. } => source,
        other => panic!("not a flag error: {other:?}"),
    }
}

#[test]
fn definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn no_flags_give_the_default_vm() {
    assert_eq!(config(&[]).unwrap(), VmConfig::default());
}

#[test]
fn every_flag_lands_in_its_field() {
    let config = config(&[
        "--kernel",
        "k",
        "--initrd",
        "i",
        "--cmdline",
        "-x quiet",
        "--cpus",
        "4",
        "--memory",
        "1G",
        "--hugepages",
        "--disk",
        "path=a.img,ro,serial=A",
        "--net",
        "tap=tap0,mac=02:00:00:00:00:01,queues=2,mtu=9000,host_ip=10.0.0.1/24,guest_ip=10.0.0.2/24",
        "--net",
        "user",
        "--venet",
        "tap=tap1,mac=02:00:00:00:00:02,mtu=9000,host_ip=10.0.1.1/24,guest_ip=10.0.1.2/24",
        "--venet",
        "switch=lan",
        "--venet",
        "loopback",
        "--balloon=target=64M",
        "--exec",
        "true",
        "--metrics",
        "m",
        "--force",
        "--sandbox",
        "log",
    ])
    .unwrap();

    assert_eq!(config.kernel, Some("k".into()));
    assert_eq!(config.initrd, Some("i".into()));
    assert_eq!(config.cmdline, "-x quiet");
    assert_eq!(config.cpus, 4);
    assert_eq!(config.memory, 1 << 30);
    assert!(config.hugepages);
    assert!(config.disks[0].is_read_only);
    assert_eq!(config.disks[0].serial.as_deref(), Some("A"));
    assert_eq!(config.nets[0].backend, NetBackend::Tap("tap0".into()));
    assert_eq!(config.nets[0].queues, 2);
    assert_eq!(config.nets[0].mtu, Some(9000));
    assert_eq!(
        config.nets[0].guest_ip,
        Some("10.0.0.2/24".parse().unwrap())
    );
    assert_eq!(config.nets[1].backend, NetBackend::User);
    let backends: Vec<_> = config.venets.iter().map(|venet| &venet.backend).collect();
    let lan = VenetBackend::Switch("lan".into());
    assert_eq!(
        backends,
        [
            &VenetBackend::Tap("tap1".into()),
            &lan,
            &VenetBackend::Loopback
        ]
    );
    assert_eq!(config.venets[0].mtu, Some(9000));
    assert_eq!(
        config.venets[0].host_ip,
        Some("10.0.1.1/24".parse().unwrap())
    );
    assert_eq!(config.balloon, Some(BalloonConfig { target: 64 << 20 }));
    assert_eq!(config.exec.as_deref(), Some("true"));
    assert_eq!(config.metrics, Some("m".into()));
    assert!(config.force);
    assert_eq!(config.sandbox, Mode::Log);
}

#[test]
fn hints_and_swap_land_in_their_fields() {
    let of = |args: &[&str]| config(args).unwrap();
    assert!(of(&["--hints"]).hints);
    let swap = |path: &str, size| {
        let path = path.into();
        Some(SwapConfig { path, size })
    };
    assert_eq!(of(&["--swap", "/tmp"]).swap, swap("/tmp", 0));
    let sized = of(&["--swap", "a.swap,size=1G"]);
    assert_eq!(sized.swap, swap("a.swap", 1 << 30));
    assert!(sized.can_reclaim() && !of(&[]).can_reclaim());
    let aimed = of(&["--hints", "--memory-target", "256M"]);
    assert_eq!(aimed.memory_target, Some(256 << 20));
    assert_eq!(of(&["--hints"]).memory_target, None);
    assert!(matches!(
        flag_error(&["--swap", "/tmp,siez=1G"]),
        ValueError::Keys(_)
    ));
}

#[test]
fn bus_and_its_daemon_land_in_their_fields() {
    let config = config(&["--bus", "blue", "--host", "/run/s"]).unwrap();

    assert_eq!(config.bus.as_deref(), Some("blue"));
    assert_eq!(config.host.as_deref(), Some(Path::new("/run/s")));
}

#[test]
fn balloon_alone_takes_nothing_at_once() {
    assert_eq!(
        config(&["--balloon"]).unwrap().balloon,
        Some(BalloonConfig { target: 0 })
    );
}

#[test]
fn flags_override_the_file_and_lists_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.toml");
    fs::write(&path, "cpus = 2\nmemory = \"1G\"\n[[disk]]\npath = \"a\"\n").unwrap();

    let config = config(&[
        "--config",
        path.to_str().unwrap(),
        "--cpus",
        "3",
        "--disk",
        "path=b",
    ])
    .unwrap();

    assert_eq!(config.cpus, 3);
    assert_eq!(config.memory, 1 << 30);
    assert_eq!(config.disks[0].path, Path::new("a"));
    assert_eq!(config.disks[1].path, Path::new("b"));
}

#[test]
fn values_of_the_wrong_kind_are_refused() {
    assert!(matches!(
        flag_error(&["--memory", "abc"]),
        ValueError::Size(SizeError::NotASize { .. })
    ));
    assert!(matches!(
        flag_error(&["--cpus", "-1"]),
        ValueError::Number { .. }
    ));
    assert!(matches!(
        flag_error(&["--net", "tap=t,mac=1:2"]),
        ValueError::Mac(_)
    ));
    assert!(matches!(
        flag_error(&["--net", "tap=t,host_ip=10.0.0.1"]),
        ValueError::Ipv4Net { .. }
    ));
    assert!(matches!(
        flag_error(&["--net", "mtu=1500"]),
        ValueError::Net(NetError::NoBackend)
    ));
    assert!(matches!(
        flag_error(&["--venet", "mtu=1500"]),
        ValueError::Venet(VenetError::NoBackend)
    ));
    assert!(matches!(
        flag_error(&["--venet", "loopback,queues=2"]),
        ValueError::Keys(KeysError::Unknown { .. })
    ));
    assert!(matches!(
        flag_error(&["--balloon=size=1M"]),
        ValueError::Keys(KeysError::Unknown { .. })
    ));
}

#[test]
fn usage_error_is_two_lines() {
    let error = Cli::try_parse_from(["alacrity", "run", "--memroy", "1G"]).unwrap_err();

    let text = usage_error(&error);

    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains("--memory"), "{text}");
}

#[test]
fn refusal_is_one_line_with_its_causes() {
    let error = config(&["--memory", "0"]).unwrap_err();

    assert_eq!(
        alacrity_devices::error::chain(&error),
        "cannot start this VM: memory of 0: a VM has 64M to 64G; choose with --memory"
    );
}
