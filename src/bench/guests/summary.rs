//! What came out, for people: medians, and how many times better ours is.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::record::Value;
use crate::bench::results::{Better, Summary, catalog};

/// Peers that are ours, which others are compared with.
const OURS: [&str; 4] = ["venet", "switch", "alacrity", "vbus"];
/// Ours under another condition, which is no comparison.
const VARIANTS: [&str; 1] = ["suppressed"];

/// A case and a metric.
type Row = (String, String);

/// A line for each case and metric: ours first, and the ratios above 1 where ours is better. A metric that is
/// neither good nor bad, such as exits of one reason, has no ratio.
pub fn text(values: &[Value]) -> String {
    let mut medians: BTreeMap<Row, Vec<(String, Vec<f64>)>> = BTreeMap::new();
    let mut order = Vec::new();
    for value in values.iter().filter(|value| value.name != "stuck") {
        let case = match value.x {
            Some(x) => format!("{} {x}", value.case),
            None => value.case.clone(),
        };
        let row = (case, value.name.clone());
        let peers = medians.entry(row.clone()).or_insert_with(|| {
            order.push(row);
            Vec::new()
        });
        match peers.iter_mut().find(|(peer, _)| *peer == value.peer) {
            Some((_, values)) => values.push(value.value),
            None => peers.push((value.peer.clone(), vec![value.value])),
        }
    }
    let mut text = String::new();
    for row in order {
        let Some(peers) = medians.get(&row) else {
            continue;
        };
        let median = |values: &Vec<f64>| Summary::of(values.iter().copied()).median;
        if peers.iter().all(|(_, values)| median(values) == 0.0) {
            continue;
        }
        let is_ours = |peer: &str| OURS.contains(&peer);
        let ours = peers
            .iter()
            .find(|(peer, _)| is_ours(peer))
            .map(|(_, values)| median(values));
        let _ = write!(text, "{:<34}", format!("{} {}", row.0, row.1));
        let mut peers: Vec<_> = peers.iter().collect();
        peers.sort_by_key(|(peer, _)| !is_ours(peer));
        for (peer, values) in peers {
            let theirs = median(values);
            let _ = write!(text, "  {peer} {}", number(theirs));
            if let Some(ratio) = ours
                .filter(|_| !is_ours(peer) && !VARIANTS.contains(&peer.as_str()))
                .and_then(|ours| ratio(&row.1, ours, theirs))
            {
                let _ = write!(text, " ({ratio:.2}x)");
            }
        }
        text += "\n";
    }
    for (peer, num) in stuck(values) {
        let _ = writeln!(text, "stood still: {peer} {num}");
    }
    text
}

fn stuck(values: &[Value]) -> BTreeMap<&str, usize> {
    let mut stuck = BTreeMap::new();
    for value in values.iter().filter(|value| value.name == "stuck") {
        *stuck.entry(value.peer.as_str()).or_default() += 1;
    }
    stuck
}

fn ratio(name: &str, ours: f64, theirs: f64) -> Option<f64> {
    if ours <= 0.0 || theirs <= 0.0 {
        return None;
    }
    match catalog::find(name)?.better {
        Better::More => Some(ours / theirs),
        Better::Less => Some(theirs / ours),
        Better::Neither | Better::Unknown => None,
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        1.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(peer: &str, name: &str, value: f64) -> Value {
        Value {
            case: "out".into(),
            peer: peer.into(),
            round: 1,
            name: name.into(),
            x: None,
            value,
        }
    }

    #[test]
    fn ratio_is_above_one_where_ours_is_better() {
        let text = text(&[
            value("qemu", "mbit", 100.0),
            value("venet", "mbit", 150.0),
            value("venet", "mbit", 250.0),
            value("venet", "exits_per_1000", 5.0),
            value("qemu", "exits_per_1000", 20.0),
            value("qemu", "packets", 9.0),
            value("qemu", "exits.mmio", 0.0),
            value("venet", "exits.halt", 4.0),
            value("qemu", "exits.halt", 8.0),
            value("qemu", "stuck", 1.0),
        ]);

        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[0],
            ["out", "mbit", "venet", "200", "qemu", "100", "(2.00x)"]
        );
        assert_eq!(lines[1][2..], ["venet", "5.0", "qemu", "20.0", "(4.00x)"]);
        assert_eq!(lines[2], ["out", "packets", "qemu", "9.0"]);
        assert_eq!(
            lines[3],
            ["out", "exits.halt", "venet", "4.0", "qemu", "8.0"]
        );
        assert_eq!(lines[4], ["stood", "still:", "qemu", "1"]);
    }
}
