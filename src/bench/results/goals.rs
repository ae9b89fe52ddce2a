//! What was aimed at: ratios that ours should reach beside a peer, and values that it should stay below.
//!
//! A goal is reached if the median reaches it, whatever the noise. It changes no verdict: a case can be won
//! and its goal missed, or lost and its goal reached where the peer does less.

use serde::{Deserialize, Serialize};

use super::catalog;
use super::verdict::{Outcome, Verdict};
use super::{Results, Role, Series};

mod list;

/// What shall be reached.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// The ratio is at least this.
    Ratio(f64),
    /// The value of ours is at most this, in the unit of its metric.
    Value(f64),
}

/// A row of the list.
#[derive(Debug)]
struct Goal {
    what: &'static str,
    file: &'static str,
    /// A `*` at the end stands for anything.
    cases: &'static [&'static str],
    /// Only this point of a sweep.
    at: Option<f64>,
    /// The one that says most comes first.
    metrics: &'static [&'static str],
    /// Peers of a ratio; who is measured, for a value.
    peers: &'static [&'static str],
    wanted: Wanted,
    /// What would be better still.
    stretch: Option<f64>,
}

/// How near it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Reached, and what would be better still too.
    StretchReached,
    /// Reached.
    Reached,
    /// Measured, but not reached.
    NotReached,
    /// There is no value.
    NotMeasured,
}

impl State {
    /// In a few words.
    pub fn words(self) -> &'static str {
        match self {
            Self::StretchReached => "reached, stretch too",
            Self::Reached => "reached",
            Self::NotReached => "not reached",
            Self::NotMeasured => "not measured",
        }
    }

    /// Whether it is reached.
    pub fn is_reached(self) -> bool {
        matches!(self, Self::StretchReached | Self::Reached)
    }
}

/// The goal of one ratio.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RatioGoal {
    /// Least ratio that was aimed at.
    pub ratio: f64,
    /// What would be better still.
    pub stretch: Option<f64>,
    /// Whether it is reached.
    pub state: State,
}

/// What became of a goal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GoalResult {
    /// What it is about.
    pub what: &'static str,
    /// What was run; empty if nothing was.
    pub case: String,
    /// The point of its sweep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x: Option<f64>,
    /// What was measured; empty if nothing was.
    pub metric: String,
    /// Unit of a value.
    pub unit: String,
    /// Beside whom, or who, if a value is the goal; all of them if nothing was measured.
    pub peer: String,
    /// The goal.
    pub wanted: Wanted,
    /// What would be better still.
    pub stretch: Option<f64>,
    /// The median; `None` if there is none.
    pub found: Option<f64>,
    /// Whether it is reached.
    pub state: State,
}

fn matches(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => pattern == text,
    }
}

impl Goal {
    fn is_of(&self, source: &str, case: &str, x: Option<f64>, metric: &str, peer: &str) -> bool {
        self.file == source
            && self.cases.iter().any(|pattern| matches(pattern, case))
            && self.at.is_none_or(|at| x == Some(at))
            && self.metrics.contains(&metric)
            && self.peers.contains(&peer)
    }

    /// How near `found` is.
    fn state(&self, found: f64) -> State {
        let is_enough = |wanted: f64| match self.wanted {
            // A ratio that is shown as the goal has reached it.
            Wanted::Ratio(_) => found >= wanted - 1e-9,
            Wanted::Value(_) => found <= wanted + 1e-9,
        };
        let (Wanted::Ratio(wanted) | Wanted::Value(wanted)) = self.wanted;
        match self.stretch {
            Some(stretch) if is_enough(stretch) => State::StretchReached,
            _ if is_enough(wanted) => State::Reached,
            _ => State::NotReached,
        }
    }

    /// What became of it in `outcome`, if it is about that.
    fn of_outcome(&self, outcome: &Outcome) -> Option<RatioGoal> {
        let Wanted::Ratio(ratio) = self.wanted else {
            return None;
        };
        let Outcome {
            source,
            case,
            x,
            metric,
            peer,
            ..
        } = outcome;
        if outcome.is_control || !self.is_of(source, case, *x, metric, peer) {
            return None;
        }
        let state = match (outcome.ratio, outcome.verdict) {
            (Some(ratio), _) => self.state(ratio.median),
            // Ours has none of what the peer has some of: no ratio is greater.
            (None, Verdict::Won) => self.state(f64::INFINITY),
            (None, _) => State::NotReached,
        };
        let stretch = self.stretch;
        Some(RatioGoal {
            ratio,
            stretch,
            state,
        })
    }

    fn of_series(&self, series: &Series) -> Option<GoalResult> {
        let is_ours = matches!(series.role, Role::Ours | Role::Variant) && !series.is_control;
        let (Wanted::Value(_), true) = (self.wanted, is_ours && !series.rounds.is_empty()) else {
            return None;
        };
        let Series {
            source,
            case,
            x,
            metric,
            peer,
            ..
        } = series;
        if !self.is_of(source, case, *x, metric, peer) {
            return None;
        }
        let found = series.summary().median;
        Some(GoalResult {
            case: case.clone(),
            x: *x,
            metric: metric.clone(),
            unit: series.unit.clone(),
            found: Some(found),
            state: self.state(found),
            ..self.result(peer.clone())
        })
    }

    /// Nothing was measured.
    fn result(&self, peer: String) -> GoalResult {
        let unit = match self.wanted {
            Wanted::Value(_) => self
                .metrics
                .first()
                .and_then(|name| catalog::find(name))
                .map_or("", |metric| metric.unit),
            Wanted::Ratio(_) => "",
        };
        GoalResult {
            what: self.what,
            case: String::new(),
            x: None,
            metric: String::new(),
            unit: unit.to_owned(),
            peer,
            wanted: self.wanted,
            stretch: self.stretch,
            found: None,
            state: State::NotMeasured,
        }
    }

    fn results(&self, results: &Results, outcomes: &[Outcome]) -> Vec<GoalResult> {
        let of_outcomes = outcomes.iter().filter_map(|outcome| {
            let RatioGoal { state, .. } = self.of_outcome(outcome)?;
            Some(GoalResult {
                case: outcome.case.clone(),
                x: outcome.x,
                metric: outcome.metric.clone(),
                found: outcome.ratio.map(|ratio| ratio.median),
                state,
                ..self.result(outcome.peer.clone())
            })
        });
        let of_series = results
            .series
            .iter()
            .filter_map(|series| self.of_series(series));
        let found: Vec<GoalResult> = of_outcomes.chain(of_series).collect();
        match found.is_empty() {
            true => vec![self.result(self.peers.join(", "))],
            false => found,
        }
    }
}

/// The goal of `outcome`, if there is one.
pub fn of_outcome(outcome: &Outcome) -> Option<RatioGoal> {
    list::GOALS.iter().find_map(|goal| goal.of_outcome(outcome))
}

/// What became of every goal, in the order of the list.
pub fn results(results: &Results, outcomes: &[Outcome]) -> Vec<GoalResult> {
    list::GOALS
        .iter()
        .flat_map(|goal| goal.results(results, outcomes))
        .collect()
}

/// What a picture of few bars shows: for each subject its title and the outcomes of each peer, in the metric
/// that says most, at the last point of a sweep.
pub fn headline(outcomes: &[Outcome]) -> Vec<(&'static str, Vec<&Outcome>)> {
    let mut headline: Vec<(&'static str, Vec<&Outcome>)> = Vec::new();
    for goal in list::GOALS {
        let of_goal: Vec<&Outcome> = outcomes
            .iter()
            .filter(|outcome| goal.of_outcome(outcome).is_some() && outcome.ratio.is_some())
            .collect();
        for peer in goal.peers {
            let best = goal.cases.iter().find_map(|case| {
                goal.metrics.iter().find_map(|metric| {
                    let is_it = |outcome: &&&Outcome| {
                        matches(case, &outcome.case)
                            && outcome.metric == *metric
                            && outcome.peer == *peer
                    };
                    let x = |outcome: &Outcome| outcome.x.unwrap_or_default();
                    of_goal
                        .iter()
                        .filter(is_it)
                        .max_by(|a, b| x(a).total_cmp(&x(b)))
                })
            });
            let Some(best) = best else { continue };
            match headline.iter_mut().find(|(what, _)| *what == goal.what) {
                Some((_, bars)) => bars.push(best),
                None => headline.push((goal.what, vec![best])),
            }
        }
    }
    headline
}

#[cfg(test)]
mod tests {
    use super::super::Better;
    use super::super::samples::series;
    use super::super::verdict::outcomes;
    use super::*;

    fn of(source: &str, case: &str, metric: &str, peer: &str, role: Role, value: f64) -> Series {
        Series {
            source: source.into(),
            case: case.into(),
            metric: metric.into(),
            ..series(peer, role, Better::Less, &[value, value])
        }
    }

    /// What became of the goals about boot.
    fn boot(qemu: f64) -> Vec<GoalResult> {
        let boot = |peer, role, value| of("boot.json", "boot", "time_us", peer, role, value);
        let results = Results {
            series: vec![
                boot("alacrity", Role::Ours, 100.0),
                boot("qemu", Role::Peer, qemu),
            ],
            ..Results::default()
        };
        let all = super::results(&results, &outcomes(&results));
        let of_boot = all.into_iter().filter(|goal| goal.what.contains("init"));
        of_boot.collect()
    }

    #[test]
    fn goal_of_a_ratio_is_reached_by_its_median() {
        let state = |qemu| boot(qemu)[0].state;

        assert_eq!(state(119.0), State::NotReached);
        assert_eq!(state(120.0), State::Reached);
        assert_eq!(state(151.0), State::StretchReached);
        let [qemu, kvmtool] = boot(120.0).try_into().unwrap();
        assert_eq!((qemu.peer.as_str(), qemu.found), ("qemu", Some(1.2)));
        assert_eq!((kvmtool.state, kvmtool.found), (State::NotMeasured, None));
        assert_eq!(kvmtool.peer, "kvmtool");
    }

    #[test]
    fn ratio_without_a_bound_reaches_any_goal_and_a_loss_none() {
        let state = |ours, theirs| {
            let exits = |peer, role, value| Series {
                x: Some(100.0),
                ..of("net.json", "load", "exits_per_1000", peer, role, value)
            };
            let results = Results {
                series: vec![
                    exits("venet", Role::Ours, ours),
                    exits("qemu", Role::Peer, theirs),
                ],
                ..Results::default()
            };
            outcomes(&results)[0].goal.unwrap().state
        };

        assert_eq!(state(0.0, 5.0), State::Reached);
        assert_eq!(state(5.0, 0.0), State::NotReached);
        assert_eq!(state(10.0, 100.0), State::Reached);
        assert_eq!(state(10.0, 99.0), State::NotReached);
    }

    #[test]
    fn goal_of_a_value_is_about_ours() {
        let state = |role, kib| {
            let results = Results {
                series: vec![of(
                    "memory.json",
                    "memory",
                    "own_kib",
                    "alacrity",
                    role,
                    kib,
                )],
                ..Results::default()
            };
            let all = super::results(&results, &[]);
            let value = |goal: &&GoalResult| {
                goal.what.contains("memory of the VMM") && matches!(goal.wanted, Wanted::Value(_))
            };
            all.iter().find(value).unwrap().state
        };

        assert_eq!(state(Role::Ours, 5000.0), State::NotReached);
        assert_eq!(state(Role::Ours, 4096.0), State::Reached);
        assert_eq!(state(Role::Ours, 3000.0), State::StretchReached);
        assert_eq!(state(Role::Peer, 3000.0), State::NotMeasured);
    }

    #[test]
    fn list_is_about_what_the_catalog_knows() {
        for goal in list::GOALS {
            for metric in goal.metrics {
                // That of the benchmarks without a guest is in their files.
                let is_known = *metric == "cost" || catalog::find(metric).is_some();
                assert!(is_known, "{}: {metric}", goal.what);
            }
            for case in goal.cases.iter().filter(|case| !case.ends_with('*')) {
                let ours = catalog::ours(goal.file, case);
                assert!(ours.is_some(), "{}: {case}", goal.what);
            }
            let (Wanted::Ratio(wanted) | Wanted::Value(wanted)) = goal.wanted;
            let is_further = goal.stretch.is_none_or(|stretch| match goal.wanted {
                Wanted::Ratio(_) => stretch > wanted,
                Wanted::Value(_) => stretch < wanted,
            });
            assert!(is_further, "{}", goal.what);
        }
    }

    #[test]
    fn no_ratio_has_two_goals() {
        let ratios = list::GOALS
            .iter()
            .filter(|goal| matches!(goal.wanted, Wanted::Ratio(_)));
        let mut seen = Vec::new();
        for goal in ratios {
            for case in goal.cases {
                for metric in goal.metrics {
                    for peer in goal.peers {
                        let ratio = (goal.file, case, metric, peer);
                        assert!(!seen.contains(&ratio), "{ratio:?}");
                        seen.push(ratio);
                    }
                }
            }
        }
    }
}
