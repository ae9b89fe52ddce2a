//! Real TAPs where the machine allows it; names only where it does not.

use std::process::Command;
use std::sync::OnceLock;

use super::*;

/// Says why a test cannot run, or fails if it must.
macro_rules! require_root {
    () => {
        if !can_make_taps() {
            assert!(
                std::env::var_os("REQUIRE_KVM").is_none_or(|value| value != "1"),
                "root and {TUN_PATH} are required"
            );
            println!("SKIPPED: needs root and {TUN_PATH}");
            return;
        }
    };
}

fn can_make_taps() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| Tap::open("alcprobe", 1).is_ok())
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status();
    assert!(status.unwrap().success(), "ip {args}");
}

/// An interface made for one test, deleted whatever happens.
struct Interface(&'static str);

impl Interface {
    fn make(name: &'static str, args: &str) -> Self {
        ip(args);
        Interface(name)
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", self.0]).status();
    }
}

fn is_there(name: &str) -> bool {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    exists(&socket, name)
}

#[test]
fn name_of_16_bytes_is_refused() {
    let error = Tap::open("tap4567890123456", 1).unwrap_err();

    assert!(matches!(error, TapError::BadName { .. }), "{error}");
}

#[test]
fn names_the_kernel_refuses_or_expands_are_refused() {
    for name in ["", ".", "..", "a/b", "a b", "a:b", "tap%d", "a\0b"] {
        let error = Tap::open(name, 1).unwrap_err();
        assert!(matches!(error, TapError::BadName { .. }), "{name}: {error}");
    }
}

#[test]
fn queue_pairs_out_of_range_are_refused() {
    assert!(matches!(
        Tap::open("tap0", 0).unwrap_err(),
        TapError::BadQueueCount { .. }
    ));
    assert!(matches!(
        Tap::open("tap0", 9).unwrap_err(),
        TapError::BadQueueCount { .. }
    ));
}

#[test]
fn tap_made_here_vanishes_with_its_value() {
    require_root!();
    let tap = Tap::open("alcnew", 1).unwrap();
    assert!(tap.is_created());
    assert!(is_there("alcnew"));

    drop(tap);

    assert!(!is_there("alcnew"));
}

#[test]
fn persistent_tap_stays() {
    require_root!();
    let _interface = Interface::make("alcstay", "tuntap add alcstay mode tap");

    let tap = Tap::open("alcstay", 1).unwrap();

    assert!(!tap.is_created());
    drop(tap);
    assert!(is_there("alcstay"));
}

#[test]
fn tap_in_use_is_refused() {
    require_root!();
    let _tap = Tap::open("alcbusy", 1).unwrap();

    let error = Tap::open("alcbusy", 1).unwrap_err();

    assert!(matches!(error, TapError::Busy { .. }), "{error}");
}

#[test]
fn interface_of_another_kind_is_refused() {
    require_root!();

    let error = Tap::open("lo", 1).unwrap_err();

    assert!(matches!(error, TapError::NotTap { .. }), "{error}");
}

#[test]
fn tun_interface_is_refused() {
    require_root!();
    let _interface = Interface::make("alctun", "tuntap add alctun mode tun");

    let error = Tap::open("alctun", 1).unwrap_err();

    assert!(matches!(error, TapError::NotTap { .. }), "{error}");
}

#[test]
fn single_queue_tap_cannot_have_two_queues() {
    require_root!();
    let _interface = Interface::make("alcsingle", "tuntap add alcsingle mode tap");

    let error = Tap::open("alcsingle", 2).unwrap_err();

    assert!(
        matches!(
            error,
            TapError::SingleQueue {
                num_queue_pairs: 2,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn multi_queue_tap_can_be_used_with_one_queue() {
    require_root!();
    let _interface = Interface::make("alcmulti", "tuntap add alcmulti mode tap multi_queue");

    assert!(Tap::open("alcmulti", 1).is_ok());
}

#[test]
fn queues_are_switched_on_and_off_any_number_of_times() {
    require_root!();
    let tap = Tap::open("alcqueues", 4).unwrap();

    tap.set_active_queues(4).unwrap();
    tap.set_active_queues(4).unwrap();
    tap.set_active_queues(2).unwrap();
    tap.set_active_queues(1).unwrap();

    assert_eq!(tap.num_queue_pairs(), 4);
}

#[test]
fn settings_arrive_at_the_interface() {
    require_root!();
    let tap = Tap::open("alcset", 1).unwrap();

    tap.set_mtu(9000).unwrap();
    tap.set_address(Ipv4Addr::new(192, 0, 2, 200), 31).unwrap();
    tap.set_address(Ipv4Addr::new(192, 0, 2, 200), 31).unwrap();
    tap.bring_up().unwrap();

    assert_eq!(tap.mtu().unwrap(), 9000);
    let output = Command::new("ip")
        .args(["addr", "show", "alcset"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("192.0.2.200/31"), "{text}");
    assert!(text.contains(",UP"), "{text}");
}

#[test]
fn mtu_beyond_the_interface_is_refused() {
    require_root!();
    let tap = Tap::open("alcmtu", 1).unwrap();

    let error = tap.set_mtu(u16::MAX).unwrap_err();

    assert!(
        matches!(error, TapError::Setting { what: "MTU", .. }),
        "{error}"
    );
}

#[test]
fn all_guest_offloads_are_accepted() {
    require_root!();
    let tap = Tap::open("alcoff", 1).unwrap();

    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

    tap.set_offloads(offloads).unwrap();
}
