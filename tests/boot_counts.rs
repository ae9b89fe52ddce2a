//! What a guest's packets cost, counted: exits, doorbells, interrupts; and what a VM and a daemon take
//! of memory. No test here depends on how fast anything is.
//!
//! Where it matters who is awake, one of both sides is held still. Streams at full speed have bounds
//! far above what is usual, and far below what it would be if nobody kept signals back.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs;
use std::net::UdpSocket;
use std::process::Command;

use alacrity::control_socket::{Place, client};
use common::guest::{Running, Vm};
use common::host::{Host, Network, image_dir, run};
use common::iperf::IperfServer;
use common::own::{Frozen, OwnMemory};
use common::town::{Town, wait_for_ping};
use common::{DEADLINE, skip, until};
use serde_json::Value;

/// Packets that are sent while the receiver is held still: fewer than a ring has slots.
const PACKETS: u64 = 100;
/// Address of the guest's interface.
const MAC: &str = "02:00:00:00:00:05";
/// Packets that kernels send on their own account meanwhile: neighbours that are looked for.
const OTHERS: u64 = 8;

/// A guest at its shell, with one vCPU and one venet.
struct Guest<'h> {
    vm: Running,
    net: Network,
    _host: &'h Host,
}

impl<'h> Guest<'h> {
    fn start(host: &'h Host) -> Self {
        let net = host.network();
        let vm = Vm::new(host, &["--venet", &net.flag(&format!(",mac={MAC}"))]).start();
        vm.wait_for_shell();
        let mut guest = Guest {
            vm,
            net,
            _host: host,
        };
        let (host_ip, guest_ip) = (guest.net.host_ip(), guest.net.guest_ip());
        guest.vm.shell(&wait_for_ping(&host_ip));
        // Neither side asks the other any more whether it is there: it may be held still.
        let tap = &guest.net.tap;
        run(
            "ip",
            &["neigh", "replace", &guest_ip, "lladdr", MAC, "dev", tap],
        );
        let host_mac = fs::read_to_string(format!("/sys/class/net/{tap}/address")).unwrap();
        guest
            .vm
            .shell(&format!("arp -s {host_ip} {}", host_mac.trim()));
        guest
    }

    /// What the driver counts.
    #[track_caller]
    fn counts(&mut self) -> Counts {
        let start = self.vm.stdout.text().len();
        self.vm.shell(
            "ethtool -S eth0; cd /sys/class/net/eth0/statistics; \
             for way in tx rx; do echo \"${way}_packets: $(cat ${way}_packets)\"; done; cd /",
        );
        let text = self.vm.stdout.text().split_off(start);
        let stat = stat(&self.vm);
        let driver = |name: &str| {
            let key = format!("{name}: ");
            let line = text.lines().find_map(|line| line.trim().strip_prefix(&key));
            line.unwrap_or_else(|| panic!("no {name} in: {text}"))
                .parse()
                .unwrap()
        };
        let device = |name: &str| stat["devices"]["venet0"][name].as_u64().unwrap();
        Counts {
            tx_packets: driver("tx_packets"),
            rx_packets: driver("rx_packets"),
            doorbells: driver("tx_doorbells") + driver("rx_doorbells"),
            tx_doorbells: driver("tx_doorbells"),
            tx_interrupts: driver("tx_interrupts"),
            rx_interrupts: driver("rx_interrupts"),
            host_batches: device("batches"),
            // The console takes many for what was just printed.
            exits: 0,
        }
    }

    /// What is counted during `work`.
    #[track_caller]
    fn counts_of(&mut self, what: &str, work: impl FnOnce(&mut Self)) -> Counts {
        let before = self.counts();
        let exits = |vm: &Running| stat(vm)["kvm"]["0"]["exits"].as_u64().unwrap();
        let num_exits = exits(&self.vm);
        work(self);
        let num_exits = exits(&self.vm) - num_exits;
        let counts = Counts {
            exits: num_exits,
            ..self.counts().since(&before)
        };
        let packets = counts.tx_packets + counts.rx_packets;
        let exits = counts.exits * 1000 / packets.max(1);
        println!("{what}: {exits} exits for 1,000 packets, {counts:?}");
        counts
    }

    fn power_off(mut self) {
        self.vm.send("poweroff\n");
        self.vm.wait().assert_status(0);
    }
}

/// What `vm` says about itself.
#[track_caller]
fn stat(vm: &Running) -> Value {
    let place = Place::default_one().unwrap();
    client::stat(&place, vm.id()).unwrap().metrics
}

/// A counter of the host's end.
#[track_caller]
fn device(vm: &Running, name: &str) -> u64 {
    stat(vm)["devices"]["venet0"][name].as_u64().unwrap()
}

/// What was counted.
#[derive(Debug, Clone, Copy)]
struct Counts {
    /// Packets, by the guest.
    tx_packets: u64,
    rx_packets: u64,
    /// Doorbells of the guest, and those of its transmit ring.
    doorbells: u64,
    tx_doorbells: u64,
    /// Interrupts that the guest took.
    tx_interrupts: u64,
    rx_interrupts: u64,
    /// Times that the host's worker took frames from the guest.
    host_batches: u64,
    /// Exits of the vCPU, by KVM.
    exits: u64,
}

impl Counts {
    fn since(&self, before: &Counts) -> Counts {
        let pick = |pick: fn(&Counts) -> u64| pick(self) - pick(before);
        Counts {
            tx_packets: pick(|it| it.tx_packets),
            rx_packets: pick(|it| it.rx_packets),
            doorbells: pick(|it| it.doorbells),
            tx_doorbells: pick(|it| it.tx_doorbells),
            tx_interrupts: pick(|it| it.tx_interrupts),
            rx_interrupts: pick(|it| it.rx_interrupts),
            host_batches: pick(|it| it.host_batches),
            exits: 0,
        }
    }

    /// Checks that there are at most `most` of something for 1,000 packets, of one direction: `packets`.
    #[track_caller]
    fn assert_per_1000(&self, what: &str, count: u64, packets: u64, most: u64) {
        let found = count * 1000 / packets;
        println!("{what} for 1,000 packets: {found}");
        assert!(found <= most, "{found} {what} for 1,000 packets: {self:?}");
    }
}

#[test]
fn packets_for_a_worker_that_has_not_looked_ring_once() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let mut guest = Guest::start(&host);
    let host_ip = guest.net.host_ip();
    // The kernel's own limit of what is on the way would hold packets back from the driver.
    guest
        .vm
        .shell("echo 1000000 >/sys/class/net/eth0/queues/tx-0/byte_queue_limits/limit_min");

    let counts = guest.counts_of("worker held still", |guest| {
        let worker = Frozen::thread(guest.vm.id(), "venet-venet0");
        let num_sent = device(&guest.vm, "tx_packets");
        // Nobody answers: its status says so.
        let ping = format!("ping -q -c {PACKETS} -i 0.01 -W 1 {host_ip} || true");
        guest.vm.shell(&ping);
        assert_eq!(device(&guest.vm, "tx_packets"), num_sent);
        drop(worker);
        let all_are_sent = || device(&guest.vm, "tx_packets") >= num_sent + PACKETS;
        assert!(until(DEADLINE, all_are_sent), "{:?}", guest.vm);
    });

    assert!(counts.tx_packets >= PACKETS, "{counts:?}");
    // The one that wakes it, and what may follow.
    let most = 1 + OTHERS;
    assert!(counts.tx_doorbells <= most, "{counts:?}");
    // 32 frames each, and what may follow.
    let most = PACKETS.div_ceil(32) + OTHERS;
    assert!(counts.host_batches <= most, "{counts:?}");
    // Nobody in the guest waits for what is sent to be done.
    assert_eq!(counts.tx_interrupts, 0, "{counts:?}");
    guest.power_off();
}

#[test]
fn packets_for_a_guest_that_has_not_looked_interrupt_once() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let mut guest = Guest::start(&host);

    let counts = guest.counts_of("guest held still", |guest| {
        let vcpu = Frozen::thread(guest.vm.id(), "vcpu0");
        let num_signals = device(&guest.vm, "signals");
        let num_there = device(&guest.vm, "rx_packets");
        let socket = UdpSocket::bind((guest.net.host_ip(), 0)).unwrap();
        for nth in 1..=PACKETS {
            socket
                .send_to(&[7; 100], (guest.net.guest_ip(), 9))
                .unwrap();
            // Ten come one by one, so that the worker sleeps in between.
            if nth <= 10 || nth == PACKETS {
                let are_there = || device(&guest.vm, "rx_packets") >= num_there + nth;
                assert!(until(DEADLINE, are_there), "{nth}: {:?}", stat(&guest.vm));
            }
        }
        let num_signals = device(&guest.vm, "signals") - num_signals;
        println!("signals to a guest held still: {num_signals}");
        assert!(num_signals <= 1, "{num_signals} signals");
        drop(vcpu);
    });

    assert!(counts.rx_packets >= PACKETS, "{counts:?}");
    assert!(counts.rx_interrupts <= 1 + OTHERS, "{counts:?}");
    guest.power_off();
}

#[test]
fn streams_at_full_speed_keep_signals_back() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let Some(server) = IperfServer::start() else {
        return skip("no iperf3 on this host");
    };
    let mut guest = Guest::start(&host);
    let client = format!(
        "iperf3 -i 0 -n 96M -c {} -p {}",
        guest.net.host_ip(),
        server.port
    );

    let out = guest.counts_of("TCP out", |guest| {
        guest.vm.shell(&format!("{client} >/tmp/out"));
    });
    let inward = guest.counts_of("TCP in", |guest| {
        guest.vm.shell(&format!("{client} -R >/tmp/in"));
    });

    // Exits are only shown: what a guest exits for by itself (its timer, its host's) is a matter of time.
    out.assert_per_1000("doorbells, TCP out", out.doorbells, out.tx_packets, 600);
    inward.assert_per_1000(
        "doorbells, TCP in",
        inward.doorbells,
        inward.tx_packets,
        600,
    );
    let interrupts = inward.rx_interrupts;
    inward.assert_per_1000("interrupts, TCP in", interrupts, inward.rx_packets, 300);
    // Nobody waits for acknowledgments to be sent.
    assert_eq!(inward.tx_interrupts, 0, "{inward:?}");
    guest.power_off();
}

#[test]
fn datagrams_at_full_speed_keep_signals_back() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let mut guest = Guest::start(&host);
    let (host_ip, guest_ip) = (guest.net.host_ip(), guest.net.guest_ip());
    // So that nobody answers that nobody listens.
    let _sink = UdpSocket::bind((host_ip.clone(), 9000)).unwrap();

    let out = guest.counts_of("UDP out", |guest| {
        guest
            .vm
            .shell(&format!("traffic udp-send {host_ip} 9000 18 1"));
    });
    let inward = guest.counts_of("UDP in", |guest| {
        guest
            .vm
            .shell("traffic udp-count 9001 1 >/tmp/count & sleep 0.5");
        let sent = Command::new(image_dir().join("traffic"))
            .args(["udp-send", &guest_ip, "9001", "18", "1"])
            .output()
            .unwrap();
        assert!(sent.status.success(), "{sent:?}");
        guest.vm.shell("wait; cat /tmp/count");
    });

    out.assert_per_1000("doorbells, UDP out", out.doorbells, out.tx_packets, 100);
    let interrupts = out.tx_interrupts;
    out.assert_per_1000("interrupts, UDP out", interrupts, out.tx_packets, 200);
    inward.assert_per_1000(
        "doorbells, UDP in",
        inward.doorbells,
        inward.rx_packets,
        100,
    );
    let interrupts = inward.rx_interrupts;
    inward.assert_per_1000("interrupts, UDP in", interrupts, inward.rx_packets, 250);
    guest.power_off();
}

#[test]
fn request_and_response_interrupt_once() {
    const REQUESTS: u64 = 200;
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let mut guest = Guest::start(&host);
    let host_ip = guest.net.host_ip();

    let counts = guest.counts_of("request and response", |guest| {
        guest
            .vm
            .shell(&format!("ping -q -c {REQUESTS} -i 0.01 -W 9 {host_ip}"));
    });

    assert!(counts.rx_packets >= REQUESTS, "{counts:?}");
    // To send is no reason for an interrupt, and a doorbell is none to look for the answer.
    assert_eq!(counts.tx_interrupts, 0, "{counts:?}");
    // A packet of a kernel's own between the readings of two counters is in one of them only.
    let most = counts.rx_packets + OTHERS;
    assert!(counts.rx_interrupts <= most, "{counts:?}");
    let most = counts.tx_packets + OTHERS;
    assert!(counts.doorbells <= most, "{counts:?}");
    guest.power_off();
}

#[test]
fn vm_takes_little_memory_beside_the_guests() {
    let Some(host) = Host::ready_for_root() else {
        return;
    };
    let guest = Guest::start(&host);

    let own = OwnMemory::of(guest.vm.id());
    println!("VM: {own:?}");
    own.assert_small();
    guest.power_off();
}

#[test]
fn bus_takes_little_memory_of_its_daemon() {
    const BUSES: u64 = 64;
    let Some(town) = Town::with_switch() else {
        return;
    };
    let pid = town.daemon.as_ref().unwrap().pid();
    let before = OwnMemory::of(pid);
    town.vbus(&format!(
        "for nth in $(seq {BUSES}); do
             vbus mkdir config/instances/b$nth config/devices/d$nth
             vbus echo venet-switch config/devices/d$nth/type
             vbus ln -s config/devices/d$nth config/instances/b$nth
         done"
    ));
    let after = OwnMemory::of(pid);
    println!("daemon: {before:?}, with {BUSES} more buses: {after:?}");
    before.assert_small();
    let kib_per_bus = (after.pss_kib - before.pss_kib) / BUSES;
    println!("KiB for a bus with a switch of its own: {kib_per_bus}");
    assert!(kib_per_bus <= 160, "{kib_per_bus} KiB for a bus");
}
