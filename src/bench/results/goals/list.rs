//! The goals themselves. `docs/benchmarks.md` has them for people.

use super::{Goal, Wanted};

const NET: &str = "net.json";
const VHOST: &[&str] = &["qemu-vhost", "qemu-vhost-pio"];
/// Interfaces whose back end is in user space.
const USER_SPACE: &[&str] = &["qemu", "virtio"];
const BRIDGE: &[&str] = &["bridge"];
/// Two guests whose interfaces are handled in user space.
const USER_SPACE_BRIDGE: &[&str] = &["bridge-qemu", "bridge-virtio"];
/// What a packet costs. Instructions do not depend on what else the machine does.
const PER_PACKET: &[&str] = &["insns_per_packet", "cpu_us_per_packet", "pps"];
const PER_BYTE: &[&str] = &["insns_per_byte", "cpu_ns_per_byte", "mbit"];
const SIGNALS: &[&str] = &["exits_per_1000", "irqs_per_1000"];

const OUT: Goal = Goal {
    what: "TCP stream, guest to host",
    file: NET,
    cases: &["out", "one-out"],
    at: None,
    metrics: PER_BYTE,
    peers: VHOST,
    wanted: Wanted::Ratio(1.10),
    stretch: Some(1.35),
};
const IN: Goal = Goal {
    what: "TCP stream, host to guest",
    cases: &["in", "one-in"],
    stretch: Some(1.40),
    ..OUT
};
const MEDIAN: Goal = Goal {
    what: "TCP request and response, median",
    cases: &["rr", "one-rr"],
    metrics: &["p50_ns"],
    wanted: Wanted::Ratio(1.15),
    stretch: Some(1.60),
    ..OUT
};
const TAIL: Goal = Goal {
    what: "TCP request and response, 99 %",
    metrics: &["p99_ns"],
    ..MEDIAN
};
const UDP_OUT: Goal = Goal {
    what: "UDP of 64 bytes, guest to host",
    cases: &["udp-out", "one-udp-out"],
    metrics: PER_PACKET,
    wanted: Wanted::Ratio(1.05),
    stretch: Some(1.40),
    ..OUT
};
const UDP_IN: Goal = Goal {
    what: "UDP of 64 bytes, host to guest",
    cases: &["udp-in", "one-udp-in"],
    stretch: Some(1.35),
    ..UDP_OUT
};
const FRAMES: Goal = Goal {
    what: "UDP of 64 bytes, guest to guest",
    cases: &["g2g-udp"],
    peers: BRIDGE,
    wanted: Wanted::Ratio(3.0),
    stretch: Some(5.0),
    ..UDP_OUT
};
const PAIR_STREAM: Goal = Goal {
    what: "TCP stream, guest to guest",
    cases: &["g2g-out"],
    peers: BRIDGE,
    wanted: Wanted::Ratio(1.6),
    stretch: Some(2.0),
    ..OUT
};
const PAIR_ANSWER: Goal = Goal {
    what: "TCP request and response, guest to guest",
    cases: &["g2g-rr"],
    metrics: &["p50_ns", "p99_ns"],
    wanted: Wanted::Ratio(1.3),
    ..PAIR_STREAM
};
const LOAD: Goal = Goal {
    what: "exits and interrupts for a packet",
    cases: &["load", "one-load"],
    metrics: SIGNALS,
    wanted: Wanted::Ratio(4.0),
    stretch: None,
    ..OUT
};
const CALL: Goal = Goal {
    what: "call of a device",
    file: "verbs.json",
    cases: &["verb-call"],
    at: None,
    metrics: &["ns"],
    peers: &["pio-exit"],
    wanted: Wanted::Ratio(1.0 / 1.15),
    stretch: Some(1.0 / 1.08),
};
const DOORBELL: Goal = Goal {
    what: "doorbell",
    cases: &["doorbell"],
    peers: &["pio-eventfd"],
    wanted: Wanted::Ratio(1.0 / 1.1),
    stretch: None,
    ..CALL
};
const SUPPRESSED: Goal = Goal {
    what: "doorbell that nobody waits for",
    metrics: &["insns"],
    peers: &["suppressed"],
    wanted: Wanted::Value(30.0),
    ..DOORBELL
};
const BOOT: Goal = Goal {
    what: "program start to the guest's init",
    file: "boot.json",
    cases: &["boot"],
    at: None,
    metrics: &["time_us"],
    peers: &["qemu"],
    wanted: Wanted::Ratio(1.2),
    stretch: Some(1.5),
};
const MEMORY: Goal = Goal {
    what: "memory of the VMM besides guest RAM",
    file: "memory.json",
    cases: &["memory"],
    at: None,
    metrics: &["own_kib"],
    peers: &["qemu"],
    wanted: Wanted::Ratio(10.0),
    stretch: None,
};
const FREED: Goal = Goal {
    what: "free memory back from a guest",
    file: "reclaim.json",
    cases: &["unused"],
    at: None,
    metrics: &["mib_per_s"],
    peers: &["balloon"],
    wanted: Wanted::Ratio(8.0),
    stretch: Some(15.0),
};
const FIT: Goal = Goal {
    what: "guests that fit in one memory",
    cases: &["guests"],
    metrics: &["fit"],
    peers: &["none"],
    wanted: Wanted::Ratio(1.5),
    stretch: None,
    ..FREED
};
const REFILL: Goal = Goal {
    what: "a page that was dropped, again",
    cases: &["refill"],
    metrics: &["p50_ns"],
    peers: &["host-swap"],
    wanted: Wanted::Ratio(1.0),
    stretch: None,
    ..FREED
};
const RING: Goal = Goal {
    what: "ring between two processors",
    file: "ring.json",
    cases: &["ring: batch*"],
    at: None,
    metrics: &["cost"],
    peers: &["virtqueue"],
    wanted: Wanted::Ratio(2.0),
    stretch: Some(4.0),
};

const WAKE_UPS: Goal = Goal {
    what: "wake-ups of a receiver for 1,000 descriptors",
    cases: &["ring: asleep when idle*"],
    metrics: &["wake_ups"],
    peers: &["ring"],
    wanted: Wanted::Value(1.0),
    stretch: None,
    ..RING
};

/// A peer has at most one goal in each case and metric.
pub(super) const GOALS: &[Goal] = &[
    OUT,
    Goal {
        peers: USER_SPACE,
        wanted: Wanted::Ratio(1.20),
        ..OUT
    },
    IN,
    Goal {
        peers: USER_SPACE,
        wanted: Wanted::Ratio(1.25),
        ..IN
    },
    MEDIAN,
    Goal {
        peers: USER_SPACE,
        wanted: Wanted::Ratio(1.35),
        ..MEDIAN
    },
    TAIL,
    Goal {
        peers: USER_SPACE,
        wanted: Wanted::Ratio(1.35),
        ..TAIL
    },
    UDP_OUT,
    Goal {
        peers: USER_SPACE,
        wanted: Wanted::Ratio(1.25),
        ..UDP_OUT
    },
    UDP_IN,
    Goal {
        peers: USER_SPACE,
        wanted: Wanted::Ratio(1.20),
        ..UDP_IN
    },
    FRAMES,
    Goal {
        peers: USER_SPACE_BRIDGE,
        wanted: Wanted::Ratio(4.0),
        ..FRAMES
    },
    PAIR_STREAM,
    Goal {
        peers: USER_SPACE_BRIDGE,
        wanted: Wanted::Ratio(1.8),
        ..PAIR_STREAM
    },
    PAIR_ANSWER,
    Goal {
        peers: USER_SPACE_BRIDGE,
        wanted: Wanted::Ratio(1.6),
        ..PAIR_ANSWER
    },
    LOAD,
    Goal {
        peers: USER_SPACE,
        wanted: Wanted::Ratio(10.0),
        ..LOAD
    },
    Goal {
        what: "exits, interrupts at full load (stretch)",
        at: Some(100.0),
        peers: &["venet"],
        wanted: Wanted::Value(10.0),
        ..LOAD
    },
    CALL,
    Goal {
        peers: &["virtio-ctrl"],
        wanted: Wanted::Ratio(4.0),
        stretch: None,
        ..CALL
    },
    DOORBELL,
    Goal {
        peers: &["mmio-eventfd"],
        wanted: Wanted::Ratio(1.0 / 0.42),
        ..DOORBELL
    },
    SUPPRESSED,
    Goal {
        metrics: &["exits"],
        // The guest's timer goes on meanwhile.
        wanted: Wanted::Value(0.01),
        ..SUPPRESSED
    },
    BOOT,
    Goal {
        peers: &["kvmtool"],
        wanted: Wanted::Ratio(1.3),
        ..BOOT
    },
    MEMORY,
    Goal {
        peers: &["alacrity"],
        wanted: Wanted::Value(4096.0),
        stretch: Some(3072.0),
        ..MEMORY
    },
    FREED,
    Goal {
        peers: &["reporting"],
        wanted: Wanted::Ratio(1.2),
        stretch: None,
        ..FREED
    },
    FIT,
    REFILL,
    RING,
    WAKE_UPS,
];
