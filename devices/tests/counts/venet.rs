//! `venet-loopback` and `venet-switch`, which move frames without the kernel.

use std::time::Duration;

use alacrity_devices::venet::driver::{Options, Outgoing};
use vbus::abi::venet::{FrameMeta, frame_flag, gso_type, rx_cap, tx_cap};
use vbus::test_utils::allocations::Allocations;

use crate::fixture::*;
use crate::{BATCH, MOST_PER_TURN, Watch};

/// A device of `class` called `dev` on each of `buses`.
pub fn lab(dev: &str, class: &str, buses: &[&str]) -> Lab {
    let lab = Lab::new();
    lab.host.create_device(dev).unwrap();
    lab.host.set_type(dev, class).unwrap();
    for bus in buses {
        lab.host.create_bus(bus).unwrap();
        lab.host.link(bus, "net", dev).unwrap();
    }
    lab
}

/// Hands a batch over, and waits until it has been taken. Allocates nothing.
pub fn send_batch(station: &mut Station, frame: &[u8]) {
    let batch = [frame; BATCH];
    assert_eq!(station.send(&batch).unwrap(), BATCH);
    wait_for("the device takes all frames", || {
        station.room().unwrap() == station.num_slots()
    });
}

fn receive_batch(station: &mut Station) {
    let num_frames = station.receive(usize::MAX, |_, _| {}).unwrap();
    assert_eq!(num_frames, BATCH);
}

#[test]
fn loopback_makes_no_system_call_for_a_frame() {
    let lab = lab("cloop", "venet-loopback", &["c1"]);
    let mut station = lab.station("c1", Default::default());
    let own = station.mac().unwrap();
    let frame = frame(own, own, 1500);
    for _ in 0..3 {
        send_batch(&mut station, &frame);
        receive_batch(&mut station);
    }
    let worker = Watch::thread("venet-cloop");

    // Whoever sleeps is woken once, whoever is awake is not.
    for wake_ups in [1, 0] {
        if wake_ups == 1 {
            assert!(station.arm_receive().unwrap());
        }
        let calls = worker.calls("loopback", || send_batch(&mut station, &frame));
        assert_eq!(calls.of(libc::SYS_write), wake_ups, "{calls}");
        assert!(calls.total() <= MOST_PER_TURN, "{calls}");
        receive_batch(&mut station);
    }
    assert_eq!(
        lab.host
            .tree()
            .read("sys/devices/cloop/rx_dropped")
            .unwrap(),
        "0\n"
    );
}

#[test]
fn switch_makes_no_system_call_for_a_frame() {
    let lab = lab("dev", "venet-switch", &["cs1", "cs2"]);
    let mut stations = ["cs1", "cs2"].map(|bus| lab.station(bus, Default::default()));
    let (there, back) = (frame(mac(2), mac(1), 1500), frame(mac(1), mac(2), 60));
    let [a, b] = &mut stations;
    // Each learns where the other is.
    for _ in 0..3 {
        send_batch(a, &there);
        receive_batch(b);
        send_batch(b, &back);
        receive_batch(a);
    }
    let workers = ["venet-dev@cs1", "venet-dev@cs2"].map(Watch::thread);

    for wake_ups in [1, 0] {
        if wake_ups == 1 {
            assert!(b.arm_receive().unwrap());
        }
        let calls = workers[1].calls("switch, receiver", || {
            let calls = workers[0].calls("switch, sender", || send_batch(a, &there));
            // The receiver's wake-up; nobody waits for room to send.
            assert_eq!(calls.of(libc::SYS_write), wake_ups, "{calls}");
            assert!(calls.total() <= MOST_PER_TURN, "{calls}");
        });
        assert_eq!(calls.total(), 0, "{calls}: the sender's worker does it all");
        receive_batch(b);
    }
    assert_eq!(lab.port_count("cs2", "rx_dropped"), 0);
}

/// TCP over IPv4 to [`mac`] 2 from [`mac`] 1, with `len` bytes of payload. Checksums are somebody else's.
fn tcp4(len: usize) -> Vec<u8> {
    let mut frame = frame(mac(2), mac(1), 54 + len);
    frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    frame[16..18].copy_from_slice(&(40 + len as u16).to_be_bytes());
    frame[18..24].copy_from_slice(&[0, 1, 0x40, 0, 64, 6]);
    frame[46] = 0x50;
    frame
}

#[test]
fn segmenting_and_spreading_large_frames_takes_no_system_call_and_no_memory() {
    const PAYLOAD: usize = 65_000;
    const GSO: u16 = 1448;
    let lab = lab("dev", "venet-switch", &["cg1", "cg2", "cg3"]);
    let options = |rx_caps| Options {
        tx_buffer_bytes: 66_000,
        tx_caps: tx_cap::CSUM | tx_cap::TSO4 | tx_cap::SG,
        rx_caps,
        ..Options::default()
    };
    let mut sender = lab.station("cg1", options(0));
    // To nobody that the switch knows: one gets it whole, in many buffers, the other in segments.
    let mut whole = lab.station("cg2", options(rx_cap::CSUM | rx_cap::TSO4 | rx_cap::MERGED));
    let mut cut = lab.station("cg3", options(0));
    let frame = tcp4(PAYLOAD);
    let parts: Vec<&[u8]> = frame.chunks(4096).collect();
    let mut send = || {
        let meta = FrameMeta {
            csum_start: 34.into(),
            csum_offset: 16.into(),
            gso_size: GSO.into(),
            flags: frame_flag::NEEDS_CSUM.into(),
            gso_type: gso_type::TCP4,
            ..FrameMeta::default()
        };
        let outgoing = Outgoing {
            parts: &parts,
            meta,
        };
        assert_eq!(sender.send_all([outgoing]).unwrap(), 1);
        settle(&mut sender);
        let count = |station: &mut Station| station.receive(usize::MAX, |_, _| {}).unwrap();
        (count(&mut whole), count(&mut cut))
    };
    assert_eq!(send(), (1, PAYLOAD.div_ceil(GSO.into())));
    let worker = Watch::thread("venet-dev@cg1");

    let calls = worker.calls(
        "switch, one frame to one buffer list and 45 segments",
        || {
            assert_eq!(send(), (1, PAYLOAD.div_ceil(GSO.into())));
        },
    );
    assert!(calls.total() <= MOST_PER_TURN, "{calls}");
}

#[test]
fn waiting_sender_is_woken_once_for_a_batch() {
    let lab = lab("cwait", "venet-loopback", &["c1"]);
    let options = Options {
        num_slots: BATCH as u32,
        ..Default::default()
    };
    let mut station = lab.station("c1", options);
    let own = station.mac().unwrap();
    let frame = frame(own, own, 60);
    send_batch(&mut station, &frame);
    receive_batch(&mut station);
    let worker = Watch::thread("venet-cwait");

    let calls = worker.calls("loopback, a full ring", || {
        assert_eq!(station.send(&[&frame[..]; BATCH]).unwrap(), BATCH);
        while station.room().unwrap() < BATCH as u32 {
            // Armed while the ring is full, if the worker was not faster.
            station.wait_send(Duration::from_millis(100)).unwrap();
        }
    });

    // Four batches go back: each could wake a sender that asks again and again, none wakes it twice.
    assert!(calls.of(libc::SYS_write) <= BATCH as u64 / 32, "{calls}");
    assert!(calls.total() <= MOST_PER_TURN, "{calls}");
    receive_batch(&mut station);
}

#[test]
fn switch_moves_frames_without_allocating() {
    let lab = lab("dev", "venet-switch", &["nm1", "nm2"]);
    let mut stations = ["nm1", "nm2"].map(|bus| lab.station(bus, small()));
    let there = [frame(mac(2), mac(1), 60), frame(mac(2), mac(1), 1500)];
    let back = [frame(mac(1), mac(2), 60), frame(mac(1), mac(2), 1500)];
    let mut go_round = |num_rounds| {
        for _ in 0..num_rounds {
            let [a, b] = &mut stations;
            send(a, &there.each_ref().map(|frame| &frame[..]));
            send(b, &back.each_ref().map(|frame| &frame[..]));
            assert_eq!(drain(a).len() + drain(b).len(), 4);
        }
    };
    // Each learns where the other is.
    go_round(10);

    let counts = ["venet-dev@nm1", "venet-dev@nm2"].map(Allocations::of_thread);
    let num_allocations = || counts.iter().map(Allocations::count).sum::<u64>();
    go_round(1000);
    assert_eq!(num_allocations(), 0);

    // Another port is something to take note of.
    lab.host.create_bus("nm3").unwrap();
    lab.host.link("nm3", "net", "dev").unwrap();
    go_round(1);
    assert_ne!(num_allocations(), 0, "allocations are counted");
}

#[test]
fn driver_allocates_nothing_for_frames() {
    let lab = lab("cdriver", "venet-loopback", &["c1"]);
    let mut station = lab.station("c1", Default::default());
    let own = station.mac().unwrap();
    let frame = frame(own, own, 1500);
    let mut go_round = || {
        send_batch(&mut station, &frame);
        receive_batch(&mut station);
    };
    go_round();

    let allocations = Allocations::of_this_thread();
    for _ in 0..100 {
        go_round();
    }
    assert_eq!(allocations.count(), 0);
}
