//! Files with a value on each line, as the scripts write them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

use super::super::{Better, Results, Role, Series, catalog};
use super::Broken;

/// A line of `net.json` and `reclaim.json`.
#[derive(Debug, Deserialize)]
struct Line {
    case: String,
    peer: String,
    round: u64,
    name: String,
    value: f64,
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

/// A value, however it was written.
struct Found {
    case: String,
    peer: String,
    round: u64,
    name: String,
    metric: Option<catalog::Metric>,
    value: f64,
}

/// `raw.tsv`: case, peer, round and value between tabs.
pub fn tsv(file: &str, text: &str, results: &mut Results) -> Result<usize, Broken> {
    let mut found = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [case, peer, round, value] = fields.as_slice() else {
            let what = "not a case, a peer, a round and a value between tabs";
            return Err(Broken::new(number, what));
        };
        let broken = |what: &str| Broken::new(number, what);
        let round = round
            .parse()
            .map_err(|_| broken(&format!("`{round}` is no number of a round")))?;
        let value = value
            .parse()
            .map_err(|_| broken(&format!("`{value}` is no value")))?;
        check(value, number)?;
        let metric = catalog::find_boot(case);
        found.push(Found {
            case: (*case).to_owned(),
            peer: (*peer).to_owned(),
            round,
            name: metric.map_or("value", |metric| metric.name).to_owned(),
            metric,
            value,
        });
    }
    Ok(add(file, found, results))
}

/// One JSON object on each line: case, peer, round, name of the metric, value.
pub fn json(file: &str, text: &str, results: &mut Results) -> Result<usize, Broken> {
    let mut found = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let line: Line = serde_json::from_str(line)
            .map_err(|error| Broken::new(number, without_line(&error)))?;
        check(line.value, number)?;
        for field in line.more.keys() {
            results.note_unknown(format!("{file}: field `{field}`"));
        }
        found.push(Found {
            case: line.case,
            peer: line.peer,
            round: line.round,
            metric: catalog::find(&line.name),
            name: line.name,
            value: line.value,
        });
    }
    Ok(add(file, found, results))
}

/// `notes.tsv`: a name and a text with a tab between; the last of a name holds.
pub fn notes(_file: &str, text: &str, results: &mut Results) -> Result<usize, Broken> {
    for (line, number) in text.lines().zip(1..) {
        let (name, text) = line
            .split_once('\t')
            .ok_or_else(|| Broken::new(number, "not a name and a text with a tab between"))?;
        results.notes.insert(name.to_owned(), text.to_owned());
    }
    // Notes are not values.
    Ok(0)
}

/// What `serde_json` says of a line, which is always the first of its text.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.split_once(" at line ") {
        Some((what, _)) => what.to_owned(),
        None => text,
    }
}

/// Refuses what nothing can be compared with.
pub fn check(value: f64, number: usize) -> Result<(), Broken> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    let what = format!("`{value}` is no value, which is 0 or more and finite");
    Err(Broken::new(number, what))
}

/// Roles need to know all peers of a case, so nothing is added before the end.
fn add(file: &str, found: Vec<Found>, results: &mut Results) -> usize {
    let mut peers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for Found { case, peer, .. } in &found {
        let present = peers.entry(case.clone()).or_default();
        present.insert(peer.clone());
    }
    let num_values = found.len();
    for Found {
        case,
        peer,
        round,
        name,
        metric,
        value,
    } in found
    {
        let present: Vec<String> = peers.get(&case).into_iter().flatten().cloned().collect();
        let role = catalog::role(file, &case, &peer, &present);
        if catalog::ours(file, &case).is_none() {
            results.note_unknown(format!("{file}: case `{case}`"));
        } else if role == Role::Unknown && metric.is_some_and(|metric| metric.better.is_judged()) {
            results.note_unknown(format!("{file}: case `{case}` has nothing of ours"));
        }
        if metric.is_none() {
            results.note_unknown(format!("{file}: metric `{name}` of case `{case}`"));
        }
        let like = Series {
            source: file.to_owned(),
            case,
            metric: name,
            unit: metric.map_or("", |metric| metric.unit).to_owned(),
            better: metric.map_or(Better::Unknown, |metric| metric.better),
            peer,
            role,
            is_control: false,
            rounds: BTreeMap::new(),
        };
        results.add(like, round, value);
    }
    num_values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(value: &str) -> String {
        format!(r#"{{"case":"out","peer":"venet","round":1,"name":"mbit","value":{value}}}"#)
    }

    #[test]
    fn tsv_has_boot_times() {
        let mut results = Results::default();
        let text = "boot_us\talacrity\t1\t100\nboot_us\tqemu\t1\t200\nboot_us\tqemu\t2\t220\n";

        assert_eq!(tsv("raw.tsv", text, &mut results), Ok(3));

        let [ours, theirs] = results.series.as_slice() else {
            panic!("{results:?}")
        };
        assert_eq!((ours.unit.as_str(), ours.better), ("µs", Better::Less));
        assert_eq!((ours.role, theirs.role), (Role::Ours, Role::Peer));
        assert_eq!(theirs.values(), [200.0, 220.0]);
        assert!(results.unknown.is_empty());
    }

    #[test]
    fn tsv_that_is_broken_names_its_line() {
        let broken = |text: &str| tsv("raw.tsv", text, &mut Results::default()).unwrap_err();

        assert_eq!(broken("boot_us\ta\t1\t1\nboot_us").number, 2);
        assert_eq!(
            broken("boot_us\ta\t-1\t1").what,
            "`-1` is no number of a round"
        );
        assert_eq!(broken("boot_us\ta\t1\tx").what, "`x` is no value");
        for value in ["nan", "inf", "-inf", "-1"] {
            assert_eq!(
                broken(&format!("boot_us\ta\t1\t{value}")).number,
                1,
                "{value}"
            );
        }
    }

    #[test]
    fn json_lines_tell_ours_from_peers() {
        let mut results = Results::default();
        let theirs = line("5").replace("venet", "qemu");
        let text = format!("{}\n{theirs}\n{}\n", line("7"), line("8.5"));

        assert_eq!(json("net.json", &text, &mut results), Ok(3));

        assert_eq!(results.series.len(), 2);
        assert_eq!(results.series[0].rounds[&1], [7.0, 8.5]);
        assert_eq!(results.series[0].better, Better::More);
        assert_eq!(results.series[1].role, Role::Peer);
    }

    #[test]
    fn json_line_that_is_broken_is_named() {
        let good = line("1");
        for bad in [
            "",
            "{",
            "[]",
            &line(""),
            &line("1e999"),
            &line("-1"),
            &line("\"1\""),
        ] {
            let text = format!("{good}\n{bad}\n{good}\n");
            let broken = json("net.json", &text, &mut Results::default()).unwrap_err();
            assert_eq!(broken.number, 2, "{bad}");
            assert!(!broken.what.contains("line 1"), "{}", broken.what);
        }
    }

    #[test]
    fn what_is_not_known_is_kept_and_said() {
        let mut results = Results::default();
        let text = [
            line("1").replace("mbit", "colour"),
            line("1").replace("out", "nap"),
            line("1").replace("}", r#","cpu":3}"#),
        ]
        .join("\n");

        assert_eq!(json("net.json", &text, &mut results), Ok(3));

        let unknown: Vec<_> = results.unknown.keys().map(String::as_str).collect();
        assert_eq!(
            unknown,
            [
                "net.json: case `nap`",
                "net.json: field `cpu`",
                "net.json: metric `colour` of case `out`"
            ]
        );
        assert_eq!(results.series.len(), 3);
        assert_eq!(results.series[0].better, Better::Unknown);
        assert_eq!(results.series[1].role, Role::Unknown);
    }

    #[test]
    fn notes_are_names_and_texts() {
        let mut results = Results::default();

        assert_eq!(notes("notes.tsv", "a\tx\na\ty\tz\n", &mut results), Ok(0));

        assert_eq!(results.notes["a"], "y\tz");
        let broken = notes("notes.tsv", "a\n", &mut results).unwrap_err();
        assert_eq!(broken.number, 1);
    }
}
