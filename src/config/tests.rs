use super::*;
use crate::mac::MacAddr;

fn disk(path: &str, is_read_only: bool) -> DiskConfig {
    DiskConfig {
        path: path.into(),
        is_read_only,
        serial: None,
    }
}

fn tap(name: &str) -> NetConfig {
    NetConfig {
        backend: NetBackend::Tap(name.into()),
        mac: None,
        queues: 1,
        mtu: None,
        host_ip: None,
        guest_ip: None,
    }
}

fn config_with_memory(memory: u64) -> VmConfig {
    VmConfig {
        memory,
        ..VmConfig::default()
    }
}

#[test]
fn default_configuration_is_valid() {
    assert_eq!(VmConfig::default().validate(), Ok(()));
}

#[test]
fn cpus_are_1_to_32() {
    let config = |cpus| VmConfig {
        cpus,
        ..VmConfig::default()
    };

    assert_eq!(config(0).validate(), Err(ConfigError::Cpus { found: 0 }));
    assert_eq!(config(32).validate(), Ok(()));
    assert_eq!(config(33).validate(), Err(ConfigError::Cpus { found: 33 }));
}

#[test]
fn memory_is_64_mib_to_64_gib() {
    for found in [0, (64 << 20) - MEMORY_STEP, (64 << 30) + MEMORY_STEP] {
        assert_eq!(
            config_with_memory(found).validate(),
            Err(ConfigError::MemoryRange { found })
        );
    }
    assert_eq!(config_with_memory(64 << 20).validate(), Ok(()));
    assert_eq!(config_with_memory(64 << 30).validate(), Ok(()));
}

#[test]
fn memory_off_step_is_refused_and_told_the_next_step() {
    let err = config_with_memory(513 << 20).validate().unwrap_err();

    assert_eq!(err, ConfigError::MemoryStep { found: 513 << 20 });
    assert!(err.to_string().ends_with("take 514M"), "{err}");
}

#[test]
fn cmdline_leaves_room_for_our_own() {
    let config = |len| VmConfig {
        cmdline: "x".repeat(len),
        ..VmConfig::default()
    };

    assert_eq!(config(1791).validate(), Ok(()));
    assert_eq!(
        config(1792).validate(),
        Err(ConfigError::CmdlineTooLong { len: 1792 })
    );
}

#[test]
fn nul_in_texts_is_refused() {
    let cmdline = VmConfig {
        cmdline: "a\0b".into(),
        ..VmConfig::default()
    };
    let exec = VmConfig {
        exec: Some("a\0b".into()),
        ..VmConfig::default()
    };

    assert_eq!(
        cmdline.validate(),
        Err(ConfigError::Nul { what: "--cmdline" })
    );
    assert_eq!(exec.validate(), Err(ConfigError::Nul { what: "--exec" }));
}

#[test]
fn names_are_words_and_never_process_numbers() {
    let check = |name: &str| {
        let name = Some(name.to_owned());
        let config = VmConfig {
            name,
            ..VmConfig::default()
        };
        config.validate()
    };

    for name in ["web", "W", "db-1.example_2", &"x".repeat(63)] {
        assert_eq!(check(name), Ok(()), "{name}");
    }
    for name in [
        "",
        "1",
        "1web",
        "-web",
        ".",
        "a b",
        "a/b",
        "\u{e4}",
        &"x".repeat(64),
    ] {
        let name = name.to_owned();
        assert_eq!(check(&name), Err(ConfigError::Name { name }));
    }
}

#[test]
fn empty_exec_is_refused() {
    let config = VmConfig {
        exec: Some(" ".into()),
        ..VmConfig::default()
    };

    assert_eq!(config.validate(), Err(ConfigError::ExecEmpty));
}

#[test]
fn exec_with_own_kernel_needs_an_initrd() {
    let mut config = VmConfig {
        exec: Some("true".into()),
        kernel: Some("vmlinux".into()),
        ..VmConfig::default()
    };
    assert_eq!(config.validate(), Err(ConfigError::ExecWithoutInitrd));

    config.initrd = Some("initramfs.cpio".into());

    assert_eq!(config.validate(), Ok(()));
}

#[test]
fn balloon_leaves_the_guest_64_mib() {
    let config = |target| VmConfig {
        memory: 128 << 20,
        balloon: Some(BalloonConfig { target }),
        ..VmConfig::default()
    };

    assert_eq!(config(64 << 20).validate(), Ok(()));
    assert!(matches!(
        config(65 << 20).validate(),
        Err(ConfigError::BalloonTarget { .. })
    ));
}

#[test]
fn one_file_may_be_two_disks_only_read_only() {
    let config = |first, second| VmConfig {
        disks: vec![
            disk("a.img", first),
            disk("b.img", false),
            disk("a.img", second),
        ],
        ..VmConfig::default()
    };
    let shared = Err(ConfigError::SharedDisk {
        path: "a.img".into(),
        first: 0,
        second: 2,
    });

    assert_eq!(config(true, true).validate(), Ok(()));
    assert_eq!(config(false, true).validate(), shared);
    assert_eq!(config(true, false).validate(), shared);
}

#[test]
fn two_interfaces_with_one_tap_are_refused() {
    let config = VmConfig {
        nets: vec![tap("tap0"), tap("tap0")],
        ..VmConfig::default()
    };

    assert_eq!(
        config.validate(),
        Err(ConfigError::SharedNet {
            what: "TAP tap0".into(),
            first: "net0".into(),
            second: "net1".into()
        })
    );
}

#[test]
fn two_interfaces_with_one_mac_are_refused() {
    let with_mac = |name| NetConfig {
        mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
        ..tap(name)
    };
    let config = VmConfig {
        nets: vec![with_mac("tap0"), with_mac("tap1")],
        ..VmConfig::default()
    };

    assert_eq!(
        config.validate(),
        Err(ConfigError::SharedNet {
            what: "MAC address 02:00:00:00:00:01".into(),
            first: "net0".into(),
            second: "net1".into()
        })
    );
}

fn switch_port(name: &str, mtu: Option<u16>) -> VenetConfig {
    VenetConfig {
        backend: VenetBackend::Switch(name.into()),
        mac: None,
        mtu,
        host_ip: None,
        guest_ip: None,
    }
}

fn with_venets(venets: Vec<VenetConfig>) -> VmConfig {
    VmConfig {
        venets,
        ..VmConfig::default()
    }
}

#[test]
fn interface_of_either_kind_takes_a_tap_alone() {
    let on_bus = VenetConfig {
        backend: VenetBackend::Tap("tap0".into()),
        ..switch_port("", None)
    };
    let config = VmConfig {
        nets: vec![tap("tap0")],
        venets: vec![on_bus],
        ..VmConfig::default()
    };

    assert_eq!(
        config.validate(),
        Err(ConfigError::SharedNet {
            what: "TAP tap0".into(),
            first: "net0".into(),
            second: "venet0".into()
        })
    );
}

#[test]
fn switch_has_one_mtu_and_eight_ports() {
    let mixed = with_venets(vec![
        switch_port("lan", None),
        switch_port("lan", Some(9000)),
    ]);
    let apart = with_venets(vec![switch_port("a", None), switch_port("b", Some(9000))]);
    let ports = |num| with_venets(vec![switch_port("lan", None); num]).validate();

    assert!(matches!(
        mixed.validate(),
        Err(ConfigError::SwitchMtu {
            first: 0,
            second: 1,
            ..
        })
    ));
    assert_eq!(apart.validate(), Ok(()));
    assert_eq!(ports(8), Ok(()));
    assert!(matches!(ports(9), Err(ConfigError::TooManyPorts { .. })));
    let found = 17;
    let many = (0..found).map(|idx| switch_port(&format!("lan{idx}"), None));
    let refused = with_venets(many.collect()).validate();
    assert_eq!(refused, Err(ConfigError::TooManyVenets { found }));
}

#[test]
fn bus_of_a_daemon_excludes_one_of_its_own_and_huge_pages() {
    let on_bus = VmConfig {
        bus: Some("blue".into()),
        ..VmConfig::default()
    };
    let both = VmConfig {
        venets: vec![switch_port("lan", None)],
        ..on_bus.clone()
    };
    let huge = VmConfig {
        hugepages: true,
        ..on_bus.clone()
    };
    let another_user = VmConfig {
        user: Some("1000:1000".parse().unwrap()),
        ..on_bus.clone()
    };
    let nowhere = VmConfig {
        host: Some("socket".into()),
        ..VmConfig::default()
    };

    assert_eq!(on_bus.validate(), Ok(()));
    assert_eq!(both.validate(), Err(ConfigError::TwoBuses));
    assert_eq!(huge.validate(), Err(ConfigError::HugePagesOnBus));
    assert_eq!(another_user.validate(), Err(ConfigError::UserOnBus));
    assert_eq!(nowhere.validate(), Err(ConfigError::HostWithoutBus));
}

#[test]
fn toml_fills_every_field_and_round_trips() {
    let text = r#"
        kernel = "vmlinux"
        initrd = "initramfs.cpio"
        cmdline = "quiet"
        cpus = 2
        memory = "1G"
        hugepages = true
        exec = "true"
        metrics = "m.json"
        force = true
        sandbox = "log"
        user = "1000:65534"
        [balloon]
        target = "64M"
        [[disk]]
        path = "a.img"
        ro = true
        serial = "A1"
        [[net]]
        tap = "tap0"
        mac = "02:00:00:00:00:01"
        queues = 2
        mtu = 9000
        host_ip = "10.0.0.1/24"
        guest_ip = "10.0.0.2/24"
        [[net]]
        user = true
        [[venet]]
        tap = "tap1"
        mac = "02:00:00:00:00:02"
        mtu = 9000
        host_ip = "10.0.1.1/24"
        guest_ip = "10.0.1.2/24"
        [[venet]]
        switch = "lan"
        [[venet]]
        loopback = true
    "#;

    let config = VmConfig::from_toml(text).unwrap();

    assert_eq!(config.memory, 1 << 30);
    assert_eq!(config.nets[1].backend, NetBackend::User);
    assert_eq!(config.nets[0].host_ip.unwrap().prefix_len(), 24);
    assert_eq!(config.balloon, Some(BalloonConfig { target: 64 << 20 }));
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
    assert_eq!(config.venets[0].guest_ip.unwrap().prefix_len(), 24);
    assert_eq!(config.validate(), Ok(()));
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<VmConfig>(&json).unwrap(), config);
}

#[test]
fn hints_and_swap_are_read_from_toml() {
    let text = "hints = true\n[swap]\npath = \"/var/tmp\"\nsize = \"1G\"";

    let config = VmConfig::from_toml(text).unwrap();

    assert!(config.hints);
    let swap = config.swap.as_ref().unwrap();
    assert_eq!((swap.path.to_str(), swap.size), (Some("/var/tmp"), 1 << 30));
    assert_eq!(config.validate(), Ok(()));
    let bare = VmConfig::from_toml("[swap]\npath = \"/var/tmp\"").unwrap();
    assert_eq!(bare.swap.unwrap().size, 0);
}

#[test]
fn memory_target_takes_reclaim_and_is_no_more_than_memory() {
    let text = "hints = true\nmemory = \"512M\"\nmemory_target = \"256M\"";
    let config = VmConfig::from_toml(text).unwrap();
    assert_eq!(config.memory_target, Some(256 << 20));
    assert_eq!(config.validate(), Ok(()));
    let written = toml::to_string(&config).unwrap();
    assert_eq!(VmConfig::from_toml(&written), Ok(config.clone()));
    assert_eq!(VmConfig::from_toml("").unwrap().memory_target, None);

    let larger = VmConfig {
        memory_target: Some(513 << 20),
        ..config.clone()
    };
    let (target, memory) = (513 << 20, 512 << 20);
    assert_eq!(
        larger.validate(),
        Err(ConfigError::Target { target, memory })
    );
    let alone = VmConfig {
        hints: false,
        ..config
    };
    assert_eq!(alone.validate(), Err(ConfigError::TargetWithoutReclaim));
}

#[test]
fn memory_that_is_reclaimed_is_nobody_elses() {
    let hinted = VmConfig {
        hints: true,
        ..VmConfig::default()
    };
    let others = [
        VmConfig {
            hugepages: true,
            ..hinted.clone()
        },
        VmConfig {
            balloon: Some(BalloonConfig::default()),
            ..hinted.clone()
        },
    ];
    for (config, flag) in others.into_iter().zip(["--hugepages", "--balloon"]) {
        let error = config.validate().unwrap_err();
        assert!(
            matches!(error, ConfigError::Reclaim { other, .. } if other == flag),
            "{error}"
        );
    }
    let swap = SwapConfig {
        path: "".into(),
        size: 0,
    };
    let config = VmConfig {
        swap: Some(swap),
        ..VmConfig::default()
    };
    assert_eq!(config.validate(), Err(ConfigError::Swap(SwapError::NoPath)));
}

#[test]
fn unknown_fields_are_refused_at_every_level() {
    for text in [
        "memroy = \"1G\"",
        "[[disk]]\npath = \"a\"\nreadonly = true",
        "[[net]]\ntap = \"tap0\"\nque = 2",
        "[balloon]\nsize = \"1M\"",
        "[[venet]]\nloopback = true\nqueues = 2",
    ] {
        let err = VmConfig::from_toml(text).unwrap_err();
        assert!(err.message.starts_with("unknown field"), "{err}");
    }
}

#[test]
fn toml_errors_name_the_line() {
    let err = VmConfig::from_toml("cpus = 2\nmemory = 512\n").unwrap_err();

    assert_eq!(err.line, 2, "{err}");
}
