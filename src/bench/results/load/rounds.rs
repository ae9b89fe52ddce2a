//! What `alacrity bench ring|call|frames|reclaim --json` writes: one object with the rounds of each
//! comparison.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::super::{Better, Results, Role, Series, catalog};
use super::Broken;
use super::lines::check;

type More = BTreeMap<String, Value>;

/// As [`crate::bench::Report`].
#[derive(Deserialize)]
struct Report {
    case: String,
    #[serde(rename = "what")]
    _what: String,
    comparisons: Vec<Comparison>,
    #[serde(default)]
    signals: Vec<Signals>,
    #[serde(flatten)]
    more: More,
}

/// As [`crate::bench::Comparison`].
#[derive(Deserialize)]
struct Comparison {
    name: String,
    unit: String,
    is_control: bool,
    // What was aimed at does not change what came out.
    #[serde(rename = "goal")]
    _goal: Option<f64>,
    ours_name: String,
    theirs_name: String,
    ours: Vec<f64>,
    theirs: Vec<f64>,
    #[serde(flatten)]
    more: More,
}

/// As [`crate::bench::Signals`].
#[derive(Deserialize)]
struct Signals {
    name: String,
    num_descriptors: u64,
    #[serde(rename = "goal")]
    _goal: Option<f64>,
    wake_ups: Vec<f64>,
    ns_per_descriptor: Vec<f64>,
    #[serde(flatten)]
    more: More,
}

/// Ours and theirs ran twice in each round: A B B A.
const VALUES_PER_ROUND: usize = 2;

/// One object.
pub fn json(file: &str, text: &str, results: &mut Results) -> Result<usize, Broken> {
    let report: Report = serde_json::from_str(text)
        .map_err(|error| Broken::new(error.line().max(1), error.to_string()))?;
    let mut adder = Adder {
        file,
        case: &report.case,
        results,
        num_values: 0,
    };
    adder.note(&report.more);
    for comparison in &report.comparisons {
        adder.note(&comparison.more);
        adder.comparison(comparison)?;
    }
    let ours = report.comparisons.first().map(|first| &first.ours_name);
    for signals in &report.signals {
        adder.note(&signals.more);
        adder.signals(signals, ours)?;
    }
    Ok(adder.num_values)
}

struct Adder<'a> {
    file: &'a str,
    case: &'a str,
    results: &'a mut Results,
    num_values: usize,
}

impl Adder<'_> {
    fn note(&mut self, more: &More) {
        for field in more.keys() {
            let what = format!("{}: field `{field}`", self.file);
            self.results.note_unknown(what);
        }
    }

    fn like(&self, name: &str, metric: &str, unit: &str) -> Series {
        Series {
            source: self.file.to_owned(),
            case: format!("{}: {name}", self.case),
            x: None,
            metric: metric.to_owned(),
            unit: unit.to_owned(),
            better: Better::Less,
            peer: String::new(),
            role: Role::Unknown,
            is_control: false,
            rounds: BTreeMap::new(),
        }
    }

    fn add(&mut self, like: &Series, values: &[f64], per_round: usize) -> Result<(), Broken> {
        for (values, round) in values.chunks(per_round).zip(1..) {
            for value in values {
                // Values have no lines of their own for a reader of JSON.
                check(*value, 1).map_err(|broken| Broken {
                    what: format!("{} in `{}`", broken.what, like.case),
                    ..broken
                })?;
                self.results.add(like.clone(), round, *value);
                self.num_values += 1;
            }
        }
        Ok(())
    }

    fn comparison(&mut self, comparison: &Comparison) -> Result<(), Broken> {
        let like = Series {
            is_control: comparison.is_control,
            ..self.like(&comparison.name, "cost", &comparison.unit)
        };
        let theirs_name = match comparison.is_control {
            true => format!("{} again", comparison.theirs_name),
            false => comparison.theirs_name.clone(),
        };
        let ours = Series {
            peer: comparison.ours_name.clone(),
            role: Role::Ours,
            ..like.clone()
        };
        let theirs = Series {
            peer: theirs_name,
            role: Role::Peer,
            ..like
        };
        self.add(&ours, &comparison.ours, VALUES_PER_ROUND)?;
        self.add(&theirs, &comparison.theirs, VALUES_PER_ROUND)
    }

    /// The subject stands before the first comma of the name.
    fn signals(&mut self, signals: &Signals, ours: Option<&String>) -> Result<(), Broken> {
        if signals.num_descriptors == 0 {
            let what = format!("no descriptors in `{}`", signals.name);
            return Err(Broken::new(1, what));
        }
        let (subject, name) = signals
            .name
            .split_once(", ")
            .unwrap_or((&signals.name, "all"));
        let role = match ours {
            Some(ours) if ours == subject => Role::Ours,
            Some(_) => Role::Peer,
            None => Role::Unknown,
        };
        let name = format!("asleep when idle, {name}");
        let unit = catalog::find("wake_ups").map_or("", |metric| metric.unit);
        let wake_ups = Series {
            peer: subject.to_owned(),
            role,
            ..self.like(&name, "wake_ups", unit)
        };
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let thousands = signals.num_descriptors as f64 / 1000.0;
        let rates: Vec<f64> = signals.wake_ups.iter().map(|num| num / thousands).collect();
        self.add(&wake_ups, &rates, 1)?;
        let cost = Series {
            peer: subject.to_owned(),
            role,
            ..self.like(&name, "cost", "ns")
        };
        self.add(&cost, &signals.ns_per_descriptor, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench;

    const TEXT: &str = r#"{
  "case": "ring",
  "what": "x",
  "comparisons": [
    {"name": "batch 1", "unit": "ns", "is_control": false, "goal": 2.0, "ours_name": "ring",
     "theirs_name": "virtqueue", "ours": [1, 3, 5, 7], "theirs": [2, 4, 6, 8]},
    {"name": "control: batch 1", "unit": "ns", "is_control": true, "goal": null, "ours_name": "ring",
     "theirs_name": "ring", "ours": [1, 1], "theirs": [1, 1], "mood": "good"}
  ],
  "signals": [
    {"name": "ring, batch 1", "num_descriptors": 2000, "goal": 1.0, "wake_ups": [4, 6],
     "ns_per_descriptor": [9, 8]},
    {"name": "virtqueue, batch 1", "num_descriptors": 2000, "goal": null, "wake_ups": [8, 8],
     "ns_per_descriptor": [9, 8]}
  ]
}
"#;

    fn load(text: &str) -> Result<Results, Broken> {
        let mut results = Results::default();
        json("ring.json", text, &mut results)?;
        Ok(results)
    }

    #[test]
    fn comparisons_have_two_values_for_each_round() {
        let results = load(TEXT).unwrap();

        let [ours, theirs, control, again, ..] = results.series.as_slice() else {
            panic!("{results:?}")
        };
        assert_eq!(ours.case, "ring: batch 1");
        assert_eq!((ours.role, theirs.role), (Role::Ours, Role::Peer));
        assert_eq!(ours.means(), BTreeMap::from([(1, 2.0), (2, 6.0)]));
        assert!(control.is_control && again.is_control);
        assert_eq!(again.peer, "ring again");
        let unknown: Vec<_> = results.unknown.keys().collect();
        assert_eq!(unknown, ["ring.json: field `mood`"]);
    }

    #[test]
    fn wake_ups_are_those_of_a_thousand_descriptors() {
        let results = load(TEXT).unwrap();

        let wake_ups: Vec<_> = results
            .series
            .iter()
            .filter(|series| series.metric == "wake_ups")
            .collect();
        assert_eq!(wake_ups[0].values(), [2.0, 3.0]);
        assert!(wake_ups[0].is_beside(wake_ups[1]));
        assert_eq!(
            (wake_ups[0].role, wake_ups[1].role),
            (Role::Ours, Role::Peer)
        );
    }

    #[test]
    fn broken_object_names_its_line() {
        let cut: String = TEXT.lines().take(5).collect::<Vec<_>>().join("\n");
        assert_eq!(load(&cut).unwrap_err().number, 5);
        assert_eq!(load("").unwrap_err().number, 1);
        let broken = load(&TEXT.replace("[1, 3", "[-1, 3")).unwrap_err();
        assert!(broken.what.contains("ring: batch 1"), "{}", broken.what);
        assert!(load(&TEXT.replace("2000", "0")).is_err());
    }

    #[test]
    fn what_the_benchmarks_write_is_read() {
        let report = bench::Report {
            case: "call",
            what: "x",
            comparisons: vec![bench::Comparison {
                name: "socket".into(),
                unit: "ns",
                is_control: false,
                goal: None,
                ours_name: "socket",
                theirs_name: "socketpair",
                ours: vec![1.0, 2.0],
                theirs: vec![1.0, 2.0],
            }],
            signals: vec![bench::Signals {
                name: "ring, batch 1".into(),
                num_descriptors: 10,
                goal: None,
                wake_ups: vec![1],
                ns_per_descriptor: vec![1.0],
            }],
        };

        let results = load(&serde_json::to_string_pretty(&report).unwrap()).unwrap();

        assert_eq!(results.series.len(), 4);
        assert!(results.unknown.is_empty(), "{:?}", results.unknown);
    }
}
