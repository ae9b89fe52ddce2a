//! Files with a value on each line, as the scripts write them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;
use serde_json::Value;

use super::super::{AGAIN, Better, Results, Role, Series, catalog};
use super::Broken;

/// A line of `net.json` and others like it.
#[derive(Debug, Deserialize)]
struct Line {
    case: String,
    peer: String,
    round: u64,
    name: String,
    value: f64,
    /// The point of a sweep.
    x: Option<f64>,
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

/// One JSON object on each line: case, peer, round, name of the metric, value, and the point of a sweep if it
/// is one.
pub fn json(file: &str, text: &str, results: &mut Results) -> Result<usize, Broken> {
    let mut found = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let line: Line = serde_json::from_str(line)
            .map_err(|error| Broken::new(number, without_line(&error)))?;
        check(line.value, number)?;
        if let Some(x) = line.x {
            check(x, number)?;
        }
        for field in line.more.keys() {
            results.note_unknown(format!("{file}: field `{field}`"));
        }
        found.push(line);
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
fn add(file: &str, found: Vec<Line>, results: &mut Results) -> usize {
    let mut peers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for Line { case, peer, .. } in &found {
        let present = peers.entry(case.clone()).or_default();
        present.insert(peer.clone());
    }
    let num_values = found.len();
    let mut known: HashMap<_, usize> = HashMap::new();
    for line in found {
        let x = line.x.map(f64::to_bits);
        let key = (line.case.clone(), x, line.peer.clone(), line.name.clone());
        let (round, value) = (line.round, line.value);
        let idx = *known.entry(key).or_insert_with(|| {
            let present = peers.get(&line.case).into_iter().flatten().cloned();
            let series = series(file, line, &present.collect::<Vec<_>>(), results);
            results.series.push(series);
            results.series.len() - 1
        });
        if let Some(series) = results.series.get_mut(idx) {
            series.rounds.entry(round).or_default().push(value);
        }
    }
    num_values
}

/// The empty series of `line`, in a case where `present` were measured.
fn series(file: &str, line: Line, present: &[String], results: &mut Results) -> Series {
    let Line {
        case,
        peer,
        name,
        x,
        ..
    } = line;
    let metric = catalog::find(&name);
    let subject = peer.strip_suffix(AGAIN);
    let is_there = |subject: &str| present.iter().any(|name| name == subject);
    let role = match subject {
        Some(subject) if is_there(subject) => Role::Peer,
        Some(_) => Role::Unknown,
        None => catalog::role(file, &case, &peer, present),
    };
    if catalog::ours(file, &case).is_none() {
        results.note_unknown(format!("{file}: case `{case}`"));
    } else if let (Some(subject), Role::Unknown) = (subject, role) {
        let what = format!("{file}: case `{case}` has `{peer}`, but no `{subject}`");
        results.note_unknown(what);
    } else if role == Role::Unknown && metric.is_some_and(|metric| metric.better.is_judged()) {
        results.note_unknown(format!("{file}: case `{case}` has nothing of ours"));
    }
    if metric.is_none() {
        results.note_unknown(format!("{file}: metric `{name}` of case `{case}`"));
    }
    let is_control = subject.is_some();
    Series {
        source: file.to_owned(),
        case,
        x,
        metric: name,
        unit: metric.map_or("", |metric| metric.unit).to_owned(),
        better: metric.map_or(Better::Unknown, |metric| metric.better),
        peer,
        role,
        is_control,
        rounds: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(value: &str) -> String {
        format!(r#"{{"case":"out","peer":"venet","round":1,"name":"mbit","value":{value}}}"#)
    }

    fn at(x: &str) -> String {
        line("1").replace('}', &format!(r#","x":{x}}}"#))
    }

    #[test]
    fn points_of_a_sweep_are_series_of_their_own() {
        let mut results = Results::default();
        let text =
            format!("{}\n{}\n{}\n", at("64"), at("1472"), at("64.0")).replace("out", "size-out");

        assert_eq!(json("net.json", &text, &mut results), Ok(3));

        let points: Vec<_> = results
            .series
            .iter()
            .map(|series| (series.x, series.values().len()))
            .collect();
        assert_eq!(points, [(Some(64.0), 2), (Some(1472.0), 1)]);
        assert_eq!(results.series[1].point(), "size-out, 1472 bytes");
        assert!(results.unknown.is_empty(), "{:?}", results.unknown);
    }

    #[test]
    fn subject_that_was_measured_again_is_a_control() {
        let mut results = Results::default();
        let again = line("5").replace("venet", "venet-again");
        let lost = line("5").replace("venet", "cat-again");

        let text = [line("7"), again, lost].join("\n");
        assert_eq!(json("net.json", &text, &mut results), Ok(3));

        let [ours, again, lost] = results.series.as_slice() else {
            panic!("{results:?}")
        };
        assert_eq!((ours.role, ours.is_control), (Role::Ours, false));
        assert!(again.is_again(ours) && !ours.is_again(again));
        assert_eq!(lost.role, Role::Unknown);
        let unknown: Vec<_> = results.unknown.keys().collect();
        assert_eq!(
            unknown,
            ["net.json: case `out` has `cat-again`, but no `cat`"]
        );
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
            &at("-1"),
            &at("\"far\""),
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
        // Each is said once for a series, however many values it has.
        assert_eq!(results.unknown["net.json: case `nap`"], 1);
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
