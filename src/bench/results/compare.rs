//! What became better or worse since an earlier run.
//!
//! Values of two runs do not compare, as machines and their load differ; ratios within a run do. So what is
//! compared is how ours did beside each peer, and only where ours has no peer, its own values. A change
//! counts if the quartiles of both runs have nothing in common and the medians differ by more than the
//! noise of either.

use serde::Serialize;

use super::verdict::{Outcome, distance, outcomes};
use super::{Better, Results, Role, Summary};

/// What became of one ratio, or of one value without a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Worse by more than the noise of both.
    Worse,
    /// Better by more than the noise of both.
    Better,
    /// Not measured before.
    New,
    /// Not measured any more.
    Gone,
}

impl Kind {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Worse => "worse",
            Self::Better => "better",
            Self::New => "new",
            Self::Gone => "gone",
        }
    }
}

/// One line of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// What became of it.
    pub kind: Kind,
    /// What was run.
    pub case: String,
    /// The point of its sweep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x: Option<f64>,
    /// What was measured.
    pub metric: String,
    /// Name of ours.
    pub ours: String,
    /// Name of the peer; `None` if ours has none and the values themselves are compared.
    pub peer: Option<String>,
    /// `ratio`, or the unit of the values.
    pub unit: String,
    /// Before; `None` if new.
    pub old: Option<Summary>,
    /// Now; `None` if gone.
    pub new: Option<Summary>,
}

/// How two runs differ.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Changes {
    /// What differs: worse, better, new, gone.
    pub changes: Vec<Change>,
    /// How many do not differ by more than noise.
    pub num_same: usize,
    /// How many cannot be told, because the noise is not known: a single round without a control.
    pub num_unclear: usize,
}

impl Changes {
    /// Whether anything became worse.
    pub fn has_worse(&self) -> bool {
        self.changes.iter().any(|change| change.kind == Kind::Worse)
    }
}

/// A ratio, or values without a peer.
struct Measure {
    source: String,
    case: String,
    x: Option<f64>,
    metric: String,
    ours: String,
    peer: Option<String>,
    unit: String,
    is_more_better: bool,
    summary: Summary,
    /// `None` if it is not known.
    noise: Option<f64>,
}

impl Measure {
    fn is_of_same(&self, other: &Measure) -> bool {
        self.source == other.source
            && self.case == other.case
            && self.x == other.x
            && self.metric == other.metric
            && self.ours == other.ours
            && self.peer == other.peer
            && self.unit == other.unit
    }

    fn change(&self, kind: Kind, old: Option<Summary>, new: Option<Summary>) -> Change {
        Change {
            kind,
            case: self.case.clone(),
            x: self.x,
            metric: self.metric.clone(),
            ours: self.ours.clone(),
            peer: self.peer.clone(),
            unit: self.unit.clone(),
            old,
            new,
        }
    }
}

impl From<(&Outcome, Summary)> for Measure {
    fn from((outcome, ratio): (&Outcome, Summary)) -> Self {
        Measure {
            source: outcome.source.clone(),
            case: outcome.case.clone(),
            x: outcome.x,
            metric: outcome.metric.clone(),
            ours: outcome.ours.clone(),
            peer: Some(outcome.peer.clone()),
            unit: "ratio".to_owned(),
            is_more_better: true,
            summary: ratio,
            noise: outcome.noise,
        }
    }
}

/// All that can be compared with another run.
fn measures(results: &Results) -> Vec<Measure> {
    let outcomes = outcomes(results);
    let ratios = outcomes.iter().filter(|outcome| !outcome.is_control);
    let mut measures: Vec<Measure> = ratios
        .filter_map(|outcome| Some((outcome, outcome.ratio?).into()))
        .collect();
    for series in &results.series {
        let is_alone = !measures.iter().any(|measure| {
            (&measure.source, &measure.case, measure.x) == (&series.source, &series.case, series.x)
                && (&measure.metric, &measure.ours) == (&series.metric, &series.peer)
        });
        if series.role != Role::Ours
            || !series.better.is_judged()
            || series.is_control
            || series.rounds.is_empty()
            || !is_alone
        {
            continue;
        }
        let summary = series.summary();
        measures.push(Measure {
            source: series.source.clone(),
            case: series.case.clone(),
            x: series.x,
            metric: series.metric.clone(),
            ours: series.peer.clone(),
            peer: None,
            unit: series.unit.clone(),
            is_more_better: series.better == Better::More,
            summary,
            noise: (series.rounds.len() > 1).then(|| summary.noise()),
        });
    }
    measures
}

/// How `new` differs from `old`.
pub fn compare(old: &Results, new: &Results) -> Changes {
    let (old, new) = (measures(old), measures(new));
    let mut changes = Changes::default();
    for now in &new {
        let Some(before) = old.iter().find(|before| before.is_of_same(now)) else {
            let change = now.change(Kind::New, None, Some(now.summary));
            changes.changes.push(change);
            continue;
        };
        let (Some(noise), Some(noise_before)) = (now.noise, before.noise) else {
            changes.num_unclear += 1;
            continue;
        };
        let quotient = now.summary.median / before.summary.median;
        let is_within = distance(quotient) <= noise.max(noise_before);
        if now.summary.overlaps(&before.summary) || is_within {
            changes.num_same += 1;
            continue;
        }
        let is_more = now.summary.median > before.summary.median;
        let kind = match is_more == now.is_more_better {
            true => Kind::Better,
            false => Kind::Worse,
        };
        let change = now.change(kind, Some(before.summary), Some(now.summary));
        changes.changes.push(change);
    }
    for before in &old {
        if !new.iter().any(|now| now.is_of_same(before)) {
            let change = before.change(Kind::Gone, Some(before.summary), None);
            changes.changes.push(change);
        }
    }
    changes.changes.sort_by_key(|change| change.kind as u8);
    changes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::samples::{results, series};
    use super::*;

    const OURS: [f64; 3] = [10.0, 10.1, 10.2];

    fn kinds(changes: &Changes) -> Vec<Kind> {
        changes.changes.iter().map(|change| change.kind).collect()
    }

    #[test]
    fn ratio_that_fell_is_worse_and_one_that_rose_better() {
        let low = results(&OURS, &[20.0, 20.2, 20.4]);
        let high = results(&OURS, &[30.0, 30.3, 30.6]);

        let worse = compare(&high, &low);
        let better = compare(&low, &high);

        assert_eq!(kinds(&worse), [Kind::Worse]);
        assert!(worse.has_worse());
        assert_eq!(worse.changes[0].peer.as_deref(), Some("them"));
        assert_eq!(kinds(&better), [Kind::Better]);
        assert!(!better.has_worse());
    }

    #[test]
    fn slower_machine_is_no_change() {
        let old = results(&OURS, &[20.0, 20.2, 20.4]);
        let new = results(&[100.0, 101.0, 102.0], &[200.0, 202.0, 204.0]);

        let changes = compare(&old, &new);

        assert_eq!((kinds(&changes), changes.num_same), (vec![], 1));
    }

    #[test]
    fn change_within_the_noise_of_either_is_none() {
        let noisy = results(&[8.0, 10.0, 12.0], &[16.0, 20.0, 24.0]);
        let calm = results(&OURS, &[18.0, 18.2, 18.4]);

        assert_eq!(kinds(&compare(&noisy, &calm)), []);
        assert_eq!(kinds(&compare(&calm, &noisy)), []);
    }

    #[test]
    fn value_without_a_peer_is_compared_by_itself() {
        let alone = |better, values: &[f64]| Results {
            series: vec![series("ours", Role::Ours, better, values)],
            ..Results::default()
        };
        let compared = |better| {
            let changes = compare(&alone(better, &[10.0, 10.0]), &alone(better, &[20.0, 20.0]));
            kinds(&changes)
        };

        assert_eq!(compared(Better::Less), [Kind::Worse]);
        assert_eq!(compared(Better::More), [Kind::Better]);
        assert_eq!(compared(Better::Neither), []);
    }

    #[test]
    fn value_that_is_not_zero_any_more_is_a_change() {
        let alone = |values: &[f64]| Results {
            series: vec![series("ours", Role::Ours, Better::Less, values)],
            ..Results::default()
        };

        assert_eq!(
            kinds(&compare(&alone(&[0.0, 0.0]), &alone(&[3.0, 3.0]))),
            [Kind::Worse]
        );
        assert_eq!(
            kinds(&compare(&alone(&[3.0, 3.0]), &alone(&[0.0, 0.0]))),
            [Kind::Better]
        );
        assert_eq!(
            kinds(&compare(&alone(&[0.0, 0.0]), &alone(&[0.0, 0.0]))),
            []
        );
    }

    #[test]
    fn what_is_new_or_gone_is_said_and_is_not_worse() {
        let old = results(&OURS, &OURS);
        let mut new = old.clone();
        for series in &mut new.series {
            series.case = "in".into();
        }

        let changes = compare(&old, &new);

        assert_eq!(kinds(&changes), [Kind::New, Kind::Gone]);
        assert!(!changes.has_worse());
    }

    #[test]
    fn points_of_a_sweep_are_compared_each_with_itself() {
        let run = |at_64: &[f64], at_1472: &[f64]| {
            let mut all = results(&OURS, at_64);
            all.series.extend(results(&OURS, at_1472).series);
            for (series, x) in all.series.iter_mut().zip([64.0, 64.0, 1472.0, 1472.0]) {
                series.x = Some(x);
            }
            all
        };
        let old = run(&[20.0, 20.2, 20.4], &[30.0, 30.3, 30.6]);
        let new = run(&[20.0, 20.2, 20.4], &[15.0, 15.2, 15.3]);

        let changes = compare(&old, &new);

        assert_eq!((kinds(&changes), changes.num_same), (vec![Kind::Worse], 1));
        assert_eq!(changes.changes[0].x, Some(1472.0));
    }

    #[test]
    fn single_rounds_tell_nothing() {
        let changes = compare(&results(&[1.0], &[9.0]), &results(&[1.0], &[2.0]));

        assert_eq!((kinds(&changes), changes.num_unclear), (vec![], 1));
    }

    proptest! {
        #[test]
        fn result_does_not_differ_from_itself(
            values in prop::collection::vec((0.0..1e6, 0.0..1e6), 1..12),
        ) {
            let (ours, theirs): (Vec<f64>, Vec<f64>) = values.into_iter().unzip();
            let results = results(&ours, &theirs);

            prop_assert_eq!(compare(&results, &results).changes, []);
        }
    }
}
