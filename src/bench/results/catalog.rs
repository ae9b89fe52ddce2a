//! Which metrics the scripts write, and which peer of a case is ours. What is not here is shown as it is,
//! without a ratio.

use super::{Better, Role};

/// What is known about a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// How it is called in results.
    pub name: &'static str,
    /// Of its values.
    pub unit: &'static str,
    /// Which way it is better.
    pub better: Better,
}

const fn metric(name: &'static str, unit: &'static str, better: Better) -> Metric {
    Metric { name, unit, better }
}

/// By the names in the raw files of `scripts/bench-net` and `scripts/bench-reclaim`.
const METRICS: [Metric; 20] = [
    metric("mbit", "Mbit/s", Better::More),
    metric("per_s", "per second", Better::More),
    metric("p50_ns", "ns", Better::Less),
    metric("p90_ns", "ns", Better::Less),
    metric("p99_ns", "ns", Better::Less),
    metric("again_p50_ns", "ns", Better::Less),
    metric("exits_per_1000", "per 1,000 packets", Better::Less),
    metric("irqs_per_1000", "per 1,000 packets", Better::Less),
    metric("own_kib", "KiB", Better::Less),
    metric("packets", "packets", Better::Neither),
    // One for each guest that stood still, nothing for those that did not: there is no median.
    metric("stuck", "guests", Better::Neither),
    metric("ms", "ms", Better::Less),
    metric("cpu_ms", "ms", Better::Less),
    metric("said_us", "µs", Better::Less),
    metric("mib_per_s", "MiB/s", Better::More),
    metric("released_mib", "MiB", Better::Neither),
    metric("dropped_mib", "MiB", Better::Neither),
    metric("swapped_mib", "MiB", Better::Neither),
    metric("fit", "guests", Better::More),
    metric("wake_ups", "per 1,000 descriptors", Better::Less),
];

/// The metric of a case of `scripts/bench`, which has its unit in its name.
const BOOT: (&str, Metric) = ("boot_us", metric("time", "µs", Better::Less));

/// Ours in a case, the first that was measured; the others are its peers.
const NET_OURS: [&str; 2] = ["venet", "net"];
const PAIR_OURS: [&str; 1] = ["switch"];
const HINTS: [&str; 1] = ["hints"];
const ALACRITY: [&str; 1] = ["alacrity"];

/// What is known about metric `name`.
pub fn find(name: &str) -> Option<Metric> {
    let known = METRICS.into_iter().find(|known| known.name == name);
    // Memory when so many guests run: the number is a part of the name.
    let is_growth = || name.strip_prefix("kib_with_").is_some_and(is_number);
    known.or_else(|| is_growth().then(|| metric("kib_with", "KiB", Better::Neither)))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The metric of `case` in `raw.tsv`, which has no names of metrics.
pub fn find_boot(case: &str) -> Option<Metric> {
    (case == BOOT.0).then_some(BOOT.1)
}

/// Names of ours in `case` of `file`, best first; `None` for a case that is not known.
pub fn ours(file: &str, case: &str) -> Option<&'static [&'static str]> {
    match (file, case) {
        ("raw.tsv", "boot_us") => Some(&ALACRITY),
        ("net.json", "rr" | "out" | "in" | "load" | "boot") => Some(&NET_OURS),
        ("net.json", _) => {
            let (prefix, case) = case.split_once('-')?;
            let ours: &[&str] = match prefix {
                "one" => &NET_OURS,
                "g2g" => &PAIR_OURS,
                _ => return None,
            };
            matches!(case, "rr" | "out" | "in" | "load" | "boot").then_some(ours)
        }
        ("reclaim.json", "unused" | "cache" | "refill" | "guests") => Some(&HINTS),
        _ => None,
    }
}

/// The role of `peer` in `case` of `file`, where `present` were measured.
pub fn role(file: &str, case: &str, peer: &str, present: &[String]) -> Role {
    let first = ours(file, case)
        .unwrap_or_default()
        .iter()
        .find(|ours| present.iter().any(|present| present == *ours));
    match first {
        Some(first) if *first == peer => Role::Ours,
        Some(_) => Role::Peer,
        None => Role::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_known_by_name() {
        assert_eq!(find("mbit").unwrap().better, Better::More);
        assert_eq!(find("p99_ns").unwrap().unit, "ns");
        assert_eq!(find("kib_with_12").unwrap().unit, "KiB");
        assert_eq!(find("kib_with_"), None);
        assert_eq!(find("colour"), None);
        assert_eq!(find_boot("boot_us").unwrap().unit, "µs");
        assert_eq!(find_boot("out"), None);
    }

    #[test]
    fn cases_are_known_with_their_prefixes() {
        assert_eq!(ours("net.json", "g2g-out"), Some(&PAIR_OURS[..]));
        assert_eq!(ours("net.json", "one-in"), Some(&NET_OURS[..]));
        assert_eq!(ours("net.json", "three-in"), None);
        assert_eq!(ours("net.json", "g2g-nap"), None);
        assert_eq!(ours("reclaim.json", "out"), None);
    }

    #[test]
    fn next_best_is_ours_where_the_best_was_not_measured() {
        let role = |peer: &str, present: &[&str]| {
            let present: Vec<String> = present.iter().map(|&name| name.to_owned()).collect();
            role("net.json", "out", peer, &present)
        };

        assert_eq!(role("net", &["net", "qemu", "venet"]), Role::Peer);
        assert_eq!(role("net", &["net", "qemu"]), Role::Ours);
        assert_eq!(role("qemu", &["qemu"]), Role::Unknown);
    }
}
