//! Which metrics the scripts write, and which peer of a case is ours. What is not here is shown as it is,
//! without a ratio.

use super::text::number;
use super::{Better, Role};

/// What is known about a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Of its values.
    pub unit: &'static str,
    /// Which way it is better.
    pub better: Better,
}

const LESS: Better = Better::Less;
const MORE: Better = Better::More;
const NEITHER: Better = Better::Neither;

/// By the names in the raw files of lines.
const METRICS: [(&str, &str, Better); 36] = [
    ("mbit", "Mbit/s", MORE),
    ("pps", "packets/s", MORE),
    ("per_s", "per second", MORE),
    ("p50_ns", "ns", LESS),
    ("p90_ns", "ns", LESS),
    ("p99_ns", "ns", LESS),
    ("again_p50_ns", "ns", LESS),
    ("ns", "ns", LESS),
    ("exits_per_1000", "per 1,000 packets", LESS),
    ("irqs_per_1000", "per 1,000 packets", LESS),
    ("doorbells_per_1000", "per 1,000 packets", LESS),
    ("syscalls_per_1000", "per 1,000 packets", LESS),
    ("cpu_us_per_packet", "µs per packet", LESS),
    ("insns_per_packet", "instructions per packet", LESS),
    ("cpu_ns_per_byte", "ns per byte", LESS),
    ("insns_per_byte", "instructions per byte", LESS),
    ("insns", "instructions", LESS),
    ("exits", "exits", LESS),
    // What the VMM is not woken for, another thread of it may be: fewer are not better by themselves.
    ("user_exits", "exits to the VMM", NEITHER),
    ("own_kib", "KiB", LESS),
    ("time_us", "µs", LESS),
    ("cpu_us", "µs", LESS),
    ("packets", "packets", NEITHER),
    // Who sends faster loses more, so fewer lost packets are not better by themselves.
    ("lost", "packets", NEITHER),
    // One for each guest that stood still, nothing for those that did not: there is no median.
    ("stuck", "guests", NEITHER),
    ("ms", "ms", LESS),
    ("cpu_ms", "ms", LESS),
    ("said_us", "µs", LESS),
    ("mib_per_s", "MiB/s", MORE),
    ("released_mib", "MiB", NEITHER),
    ("dropped_mib", "MiB", NEITHER),
    ("swapped_mib", "MiB", NEITHER),
    ("fit", "guests", MORE),
    ("wake_ups", "per 1,000 descriptors", LESS),
    ("seconds", "s", NEITHER),
    ("bytes", "bytes", NEITHER),
];

/// A metric that is told by what it consists of: `exits.halt`. Its parts are not judged, their sum is.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// What names of its parts begin with, the point included.
    pub prefix: &'static str,
    /// The metric that is their sum.
    pub total: &'static str,
    /// Of its values.
    pub unit: &'static str,
    /// Heading of its pictures.
    pub title: &'static str,
}

/// All of them.
pub const FAMILIES: [Family; 2] = [
    Family {
        prefix: "exits.",
        total: "exits_per_1000",
        unit: "per 1,000 packets",
        title: "Exits by reason, for 1,000 packets",
    },
    Family {
        prefix: "insns.",
        total: "insns_per_packet",
        unit: "instructions per packet",
        title: "Instructions by where they ran, for a packet",
    },
];

/// What is known about metric `name`.
pub fn find(name: &str) -> Option<Metric> {
    if let Some((_, unit, better)) = METRICS.iter().find(|(known, ..)| *known == name) {
        return Some(Metric {
            unit,
            better: *better,
        });
    }
    let neither = |unit| Metric {
        unit,
        better: NEITHER,
    };
    // Memory when so many guests run: the number is a part of the name.
    if name.strip_prefix("kib_with_").is_some_and(is_number) {
        return Some(neither("KiB"));
    }
    family(name).map(|(family, _)| neither(family.unit))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The family of metric `name`, and which part it is.
pub fn family(name: &str) -> Option<(&'static Family, &str)> {
    FAMILIES.iter().find_map(|family| {
        let part = name.strip_prefix(family.prefix)?;
        (!part.is_empty()).then_some((family, part))
    })
}

/// Names of ours in `case` of `file`, best first; `None` for a case that is not known.
pub fn ours(file: &str, case: &str) -> Option<&'static [&'static str]> {
    match (file, case) {
        ("net.json", _) => net_ours(case),
        ("boot.json", "boot") | ("memory.json", "memory") => Some(&["alacrity"]),
        ("verbs.json", "verb-call" | "doorbell" | "verbs-boot") => Some(&["vbus"]),
        ("reclaim.json", "unused" | "cache" | "refill" | "guests") => Some(&["hints"]),
        _ => None,
    }
}

/// `g2g-` is of two guests, `one-` of one guest with both interfaces, `size-` a sweep over packet sizes.
fn net_ours(case: &str) -> Option<&'static [&'static str]> {
    let (ours, case): (&[&str], _) = match case.split_once('-') {
        Some(("g2g", case)) => (&["switch", "venet", "virtio"], case),
        Some(("one", case)) => (&["venet", "virtio"], case),
        _ => (&["venet", "switch", "virtio"], case),
    };
    let is_sweep = matches!(case, "load" | "queues" | "venets" | "ports" | "guests");
    let flow = case.strip_prefix("size-").unwrap_or(case);
    let is_flow = matches!(
        flow,
        "rr" | "out" | "in" | "udp" | "udp-out" | "udp-in" | "boot"
    );
    (is_sweep || is_flow).then_some(ours)
}

/// The role of `peer` in `case` of `file`, where `present` were measured.
pub fn role(file: &str, case: &str, peer: &str, present: &[String]) -> Role {
    let first = ours(file, case)
        .unwrap_or_default()
        .iter()
        .find(|ours| present.iter().any(|present| present == *ours));
    match first {
        Some(first) if *first == peer => Role::Ours,
        // A doorbell of ours that nobody waits for.
        Some(_) if case == "doorbell" && peer == "suppressed" => Role::Variant,
        Some(_) => Role::Peer,
        None => Role::Unknown,
    }
}

/// What differs between the points of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axis {
    /// Beside the axis.
    pub title: &'static str,
    /// Behind a number; a space before it if it needs one.
    pub unit: &'static str,
    /// Steps are factors.
    pub is_log: bool,
}

/// The axis of `case`, if it is a sweep.
pub fn axis(case: &str) -> Axis {
    let case = ["one-", "g2g-"]
        .into_iter()
        .find_map(|prefix| case.strip_prefix(prefix))
        .unwrap_or(case);
    let (title, unit, is_log) = match case {
        "load" => ("load, % of the most", " %", false),
        "queues" => ("queue pairs", "", false),
        "venets" => ("interfaces", "", false),
        "ports" => ("ports", "", false),
        "guests" => ("guests", "", false),
        _ if case.starts_with("size-") => ("bytes", " bytes", true),
        _ => ("x", "", false),
    };
    Axis {
        title,
        unit,
        is_log,
    }
}

/// `case`, and which point of its sweep: `load, 50 %`.
pub fn point(case: &str, x: Option<f64>) -> String {
    match x {
        Some(x) => format!("{case}, {}{}", number(x), axis(case).unit),
        None => case.to_owned(),
    }
}

/// What `peer` is called where there is room; its name if it is not known.
pub fn title(peer: &str) -> &str {
    match peer {
        "virtio" => "our virtio-net",
        "qemu" => "QEMU",
        "qemu-vhost" => "QEMU, vhost-net",
        "qemu-vhost-pio" => "QEMU, vhost-net, port doorbells",
        "bridge" => "QEMU, TAPs on a bridge",
        "pio-exit" => "a port exit to user space",
        "virtio-ctrl" => "virtio control queue",
        "pio-eventfd" => "port and ioeventfd",
        "mmio-eventfd" => "MMIO and ioeventfd",
        "reporting" => "free page reporting",
        "none" => "without hints",
        "host-swap" => "the host's swap",
        "virtqueue" => "split virtqueue",
        peer => peer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_known_by_name() {
        assert_eq!(find("mbit").unwrap().better, Better::More);
        assert_eq!(find("p99_ns").unwrap().unit, "ns");
        assert_eq!(find("lost").unwrap().better, Better::Neither);
        assert_eq!(find("kib_with_12").unwrap().unit, "KiB");
        assert_eq!(find("kib_with_"), None);
        assert_eq!(find("colour"), None);
        for name in [
            "pps",
            "doorbells_per_1000",
            "syscalls_per_1000",
            "cpu_us_per_packet",
            "insns_per_packet",
            "time_us",
            "ns",
        ] {
            assert!(find(name).unwrap().better.is_judged(), "{name}");
        }
    }

    #[test]
    fn names_of_metrics_are_there_once() {
        for (idx, (name, ..)) in METRICS.iter().enumerate() {
            let first = METRICS.iter().position(|(known, ..)| known == name);
            assert_eq!(first, Some(idx), "{name}");
        }
        for family in FAMILIES {
            assert!(
                find(family.total).unwrap().better.is_judged(),
                "{}",
                family.total
            );
        }
    }

    #[test]
    fn parts_belong_to_a_family_and_are_not_judged() {
        let (exits, part) = family("exits.irq_window").unwrap();
        assert_eq!((exits.total, part), ("exits_per_1000", "irq_window"));
        assert_eq!(find("exits.halt").unwrap().better, Better::Neither);
        assert_eq!(family("exits."), None);
        assert_eq!(family("exits_per_1000"), None);
    }

    #[test]
    fn cases_are_known_with_their_prefixes() {
        let first = |file, case| ours(file, case).map(|ours| ours[0]);
        assert_eq!(first("net.json", "g2g-udp"), Some("switch"));
        assert_eq!(first("net.json", "one-in"), Some("venet"));
        assert_eq!(first("net.json", "udp-in"), Some("venet"));
        assert_eq!(first("net.json", "size-udp-out"), Some("venet"));
        assert_eq!(first("net.json", "queues"), Some("venet"));
        assert_eq!(first("net.json", "three-in"), None);
        assert_eq!(first("net.json", "g2g-nap"), None);
        assert_eq!(first("net.json", "size-load"), None);
        assert_eq!(first("boot.json", "boot"), Some("alacrity"));
        assert_eq!(first("memory.json", "memory"), Some("alacrity"));
        assert_eq!(first("verbs.json", "verb-call"), Some("vbus"));
        assert_eq!(first("reclaim.json", "out"), None);
    }

    #[test]
    fn next_best_is_ours_where_the_best_was_not_measured() {
        let role = |case: &str, peer: &str, present: &[&str]| {
            let present: Vec<String> = present.iter().map(|&name| name.to_owned()).collect();
            let file = match case {
                "doorbell" => "verbs.json",
                _ => "net.json",
            };
            role(file, case, peer, &present)
        };

        assert_eq!(
            role("out", "virtio", &["virtio", "qemu", "venet"]),
            Role::Peer
        );
        assert_eq!(role("out", "virtio", &["virtio", "qemu"]), Role::Ours);
        assert_eq!(role("out", "qemu", &["qemu"]), Role::Unknown);
        assert_eq!(role("ports", "switch", &["switch", "bridge"]), Role::Ours);
        let all = ["vbus", "pio-eventfd", "suppressed"];
        assert_eq!(role("doorbell", "suppressed", &all), Role::Variant);
        assert_eq!(role("doorbell", "pio-eventfd", &all), Role::Peer);
    }

    #[test]
    fn points_of_sweeps_have_their_unit() {
        assert_eq!(point("out", None), "out");
        assert_eq!(point("load", Some(50.0)), "load, 50 %");
        assert_eq!(
            point("g2g-size-udp", Some(1472.0)),
            "g2g-size-udp, 1472 bytes"
        );
        assert_eq!(point("queues", Some(4.0)), "queues, 4");
        assert!(axis("one-size-out").is_log && !axis("load").is_log);
    }
}
