//! `venet-tap`: one system call for a frame, as a TAP demands (decision 17), and no more.

use std::net::UdpSocket;

use alacrity_devices::venet::driver::Options;
use vbus::abi::venet::rx_cap;
use vbus::test_utils::syscalls::Calls;

use crate::fixture::*;
use crate::venet::{lab, send_batch};
use crate::{BATCH, MOST_PER_TURN, Watch, can_make_taps, ip, overhead};

/// A `venet-tap` of that name, on the bus `b`.
fn tap_lab(name: &str) -> Lab {
    let lab = lab(name, "venet-tap", &["b"]);
    enable(&lab, name);
    lab
}

fn write(lab: &Lab, name: &str, attribute: &str, value: &str) {
    let path = format!("sys/devices/{name}/{attribute}");
    lab.host.tree().write(&path, value.as_bytes()).unwrap();
}

fn enable(lab: &Lab, name: &str) {
    write(lab, name, "enabled", "1");
    // Or the host sends frames on its own account; where it has no IPv6, it does not.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
}

/// Times that a worker looked for frames and may have found none: when it was woken, since it may be
/// faster than we are, and each time that it let others go first.
fn looks(calls: &Calls) -> u64 {
    let waits = [
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_sched_yield,
    ];
    waits.iter().map(|&number| calls.of(number)).sum()
}

fn count(lab: &Lab, name: &str, counter: &str) -> u64 {
    let path = format!("sys/devices/{name}/{counter}");
    lab.host
        .tree()
        .read(&path)
        .unwrap()
        .trim_end()
        .parse()
        .unwrap()
}

#[test]
fn one_system_call_sends_a_frame_to_a_tap() {
    if !can_make_taps() {
        return;
    }
    let lab = tap_lab("ctap0");
    let mut station = lab.station("b", Default::default());
    let frame = frame(BROADCAST, station.mac().unwrap(), 1500);
    send_batch(&mut station, &frame);
    let worker = Watch::thread("venet-ctap0");

    let num_received = count(&lab, "ctap0", "rx_packets");
    let calls = worker.calls("TAP, out", || send_batch(&mut station, &frame));
    let num_received = count(&lab, "ctap0", "rx_packets") - num_received;

    assert_eq!(calls.of(libc::SYS_writev), BATCH as u64, "{calls}");
    // Nobody waits for room to send.
    assert!(calls.of(libc::SYS_write) <= num_received, "{calls}");
    let most = num_received + looks(&calls);
    assert!(calls.of(libc::SYS_readv) <= most, "{calls}");
    assert!(overhead(&calls) <= MOST_PER_TURN, "{calls}");
    assert_eq!(count(&lab, "ctap0", "tx_dropped"), 0);
}

#[test]
fn one_system_call_receives_a_frame_from_a_tap() {
    const SLOTS: u64 = 64;
    if !can_make_taps() {
        return;
    }
    let lab = tap_lab("ctap1");
    ip("addr add 198.51.11.1/24 dev ctap1");
    let options = Options {
        num_slots: SLOTS as u32,
        ..Options::default()
    };
    let mut station = lab.station("b", options);
    let mac = station.mac().unwrap();
    ip(&format!("neigh replace 198.51.11.2 lladdr {mac} dev ctap1"));
    let socket = UdpSocket::bind("198.51.11.1:0").unwrap();
    for _ in 0..4 * SLOTS {
        socket.send_to(&[7; 1400], "198.51.11.2:9").unwrap();
    }
    // As many as there are buffers are there; the others wait in the TAP.
    let received = || count(&lab, "ctap1", "rx_packets");
    wait_for("buffers are full", || received() == SLOTS);
    let worker = Watch::thread("venet-ctap1");

    let mut num_received = SLOTS;
    for wake_ups in [1, 0] {
        let calls = worker.calls("TAP, in", || {
            // Takes all and gives the buffers again, in one batch.
            assert_eq!(
                station.receive(SLOTS as usize, |_, _| {}).unwrap() as u64,
                SLOTS
            );
            if wake_ups == 1 {
                // If the worker was not faster.
                let _ = station.arm_receive().unwrap();
            }
            num_received += SLOTS;
            wait_for("buffers are full again", || received() == num_received);
        });

        assert_eq!(calls.of(libc::SYS_readv), SLOTS, "{calls}");
        assert!(calls.of(libc::SYS_write) <= wake_ups, "{calls}");
        assert_eq!(calls.of(libc::SYS_writev), 0, "{calls}");
        assert!(overhead(&calls) <= MOST_PER_TURN, "{calls}");
    }
    assert_eq!(count(&lab, "ctap1", "rx_dropped"), 0);
}

#[test]
fn packets_of_60000_bytes_take_one_system_call_each() {
    const PACKETS: u64 = 4;
    if !can_make_taps() {
        return;
    }
    let lab = lab("ctap2", "venet-tap", &["b"]);
    write(&lab, "ctap2", "mtu", "65521");
    enable(&lab, "ctap2");
    ip("addr add 198.51.14.1/24 dev ctap2");
    let options = Options {
        num_slots: 256,
        rx_caps: rx_cap::MERGED,
        ..Options::default()
    };
    let mut station = lab.station("b", options);
    let mac = station.mac().unwrap();
    ip(&format!("neigh replace 198.51.14.2 lladdr {mac} dev ctap2"));
    let socket = UdpSocket::bind("198.51.14.1:0").unwrap();
    let received = || count(&lab, "ctap2", "rx_packets");
    let mut num_wanted = received();
    let mut receive_packets = || {
        for _ in 0..PACKETS {
            socket.send_to(&[7; 60_000], "198.51.14.2:9").unwrap();
        }
        num_wanted += PACKETS;
        wait_for("packets are there", || received() == num_wanted);
    };
    receive_packets();
    station.receive(usize::MAX, |_, _| {}).unwrap();
    let worker = Watch::thread("venet-ctap2");

    let calls = worker.calls("TAP, in, 60,000 bytes", receive_packets);

    let readv = calls.of(libc::SYS_readv);
    let most = PACKETS + looks(&calls);
    assert!((PACKETS..=most).contains(&readv), "{calls}");
    assert_eq!(calls.of(libc::SYS_write), 0, "{calls}");
    assert!(overhead(&calls) <= PACKETS * MOST_PER_TURN, "{calls}");
}
