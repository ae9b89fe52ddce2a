//! Won, tied or lost: ours beside each peer.
//!
//! The ratio of a round is the peer's cost by ours, or our rate by the peer's: above 1 ours is better.
//! Both ran in the same round, so what slows a whole round down cancels out. If fewer than half of the
//! rounds have both, the ratio is that of the medians, and its spread the widest that the quartiles allow.
//!
//! It is a tie if the quartiles of the ratio have 1 between them, or if the ratio is within the noise: the
//! most that a control of the same case and metric found between a subject and itself; without a control, half of
//! the spread of ours and half of that of the peer together. A single round without a control tells nothing about
//! noise, so it is a tie too.

use serde::{Deserialize, Serialize};

use super::goals::{self, RatioGoal};
use super::pairs::{Floor, Pair, pairs};
use super::{Better, Results, Series, Summary, catalog};

/// How ours did beside a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Better by more than the noise.
    Won,
    /// No difference that can be told from noise.
    Tied,
    /// Worse by more than the noise.
    Lost,
}

impl Verdict {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Won => "won",
            Self::Tied => "tied",
            Self::Lost => "lost",
        }
    }

    fn of(is_better: bool) -> Self {
        match is_better {
            true => Self::Won,
            false => Self::Lost,
        }
    }
}

/// What a verdict rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The quartiles of the ratio are on one side of 1, and it is beyond the noise.
    BeyondNoise,
    /// The quartiles of the ratio have 1 between them.
    SpreadHasOne,
    /// The ratio is within the noise.
    WithinNoise,
    /// There was one round and no control.
    OneRound,
    /// A value was 0, so there is no ratio: the quartiles of the values were compared.
    Zero,
    /// A subject beside itself: whatever the ratio, nobody won.
    Control,
}

impl Reason {
    /// In a few words; empty for the usual one.
    pub fn words(self) -> &'static str {
        match self {
            Self::BeyondNoise => "",
            Self::SpreadHasOne => "spread includes 1",
            Self::WithinNoise => "within noise",
            Self::OneRound => "one round only",
            Self::Zero => "a value is 0",
            Self::Control => "control",
        }
    }
}

/// One metric of one case, ours beside one peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Name of the raw file, without directory.
    pub source: String,
    /// What was run.
    pub case: String,
    /// The point of its sweep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<f64>,
    /// What was measured.
    pub metric: String,
    /// Unit of the values of both sides.
    pub unit: String,
    /// Which way it is better.
    pub better: Better,
    /// Name of ours.
    pub ours: String,
    /// Name of the peer.
    pub peer: String,
    /// Values of ours, in [`Outcome::unit`].
    pub our_values: Summary,
    /// Values of the peer, in [`Outcome::unit`].
    pub peer_values: Summary,
    /// The peer's cost by ours, above 1 ours is better; `None` if a value was 0.
    pub ratio: Option<Summary>,
    /// Rounds that both sides have, or the fewer of both if they were not compared round by round.
    pub num_rounds: usize,
    /// Greatest difference that may be noise, relative: 0.05 is 5 %. `None` if it is unknown or has no
    /// bound.
    pub noise: Option<f64>,
    /// A subject beside itself: its ratio says what noise does.
    pub is_control: bool,
    /// Won, tied or lost.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// What was aimed at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<RatioGoal>,
}

impl Outcome {
    /// The case and the point of its sweep, for people.
    pub fn point(&self) -> String {
        catalog::point(&self.case, self.x)
    }
}

/// All that can be compared in `results`, in its order.
pub fn outcomes(results: &Results) -> Vec<Outcome> {
    let pairs = pairs(results);
    let floor = Floor::of(&pairs);
    let outcome = |pair: &Pair<'_>| outcome(pair, floor.noise(pair.ours));
    pairs.iter().map(outcome).collect()
}

/// How far a ratio is from 1, either way: 0.25 for 1.25 and for 0.8.
pub(super) fn distance(ratio: f64) -> f64 {
    ratio.max(ratio.recip()) - 1.0
}

/// How many times better ours is; `None` if only one is 0, or the ratio has no bound.
fn quotient(better: Better, ours: f64, theirs: f64) -> Option<f64> {
    if ours == theirs {
        return Some(1.0);
    }
    let ratio = match better {
        Better::More => ours / theirs,
        _ => theirs / ours,
    };
    (ratio.is_finite() && ratio > 0.0).then_some(ratio)
}

/// The ratio, `None` if a value is 0, and of how many rounds it is.
pub(super) fn ratio(ours: &Series, theirs: &Series) -> (Option<Summary>, usize) {
    let better = ours.better;
    let (our_means, their_means) = (ours.means(), theirs.means());
    let common: Vec<(f64, f64)> = our_means
        .iter()
        .filter_map(|(round, ours)| Some((*ours, *their_means.get(round)?)))
        .collect();
    if 2 * common.len() >= our_means.len().max(their_means.len()) {
        let ratios: Option<Vec<f64>> = common
            .iter()
            .map(|(ours, theirs)| quotient(better, *ours, *theirs))
            .collect();
        return (ratios.map(Summary::of), common.len());
    }
    let (ours, theirs) = (ours.summary(), theirs.summary());
    let (worst, best) = match better {
        Better::More => ((ours.low, theirs.high), (ours.high, theirs.low)),
        _ => ((ours.high, theirs.low), (ours.low, theirs.high)),
    };
    let of = |(ours, theirs)| quotient(better, ours, theirs);
    let summary = || {
        Some(Summary {
            low: of(worst)?,
            median: of((ours.median, theirs.median))?,
            high: of(best)?,
        })
    };
    (summary(), our_means.len().min(their_means.len()))
}

fn outcome(pair: &Pair<'_>, floor: Option<f64>) -> Outcome {
    let Pair { ours, theirs } = pair;
    let (ratio, num_rounds) = ratio(ours, theirs);
    let (our_values, peer_values) = (ours.summary(), theirs.summary());
    let spread = || our_values.noise() + peer_values.noise();
    let noise = floor.or_else(|| (num_rounds > 1).then(spread));
    let (verdict, reason) = match (ratio, noise) {
        _ if pair.is_control() => (Verdict::Tied, Reason::Control),
        (_, None) => (Verdict::Tied, Reason::OneRound),
        (None, _) if our_values.overlaps(&peer_values) => (Verdict::Tied, Reason::Zero),
        (None, _) => {
            let is_less = our_values.median < peer_values.median;
            let is_better = is_less == (ours.better == Better::Less);
            (Verdict::of(is_better), Reason::Zero)
        }
        (Some(ratio), _) if ratio.low <= 1.0 && ratio.high >= 1.0 => {
            (Verdict::Tied, Reason::SpreadHasOne)
        }
        (Some(ratio), Some(noise)) if distance(ratio.median) <= noise => {
            (Verdict::Tied, Reason::WithinNoise)
        }
        (Some(ratio), _) => (Verdict::of(ratio.median > 1.0), Reason::BeyondNoise),
    };
    let outcome = Outcome {
        source: ours.source.clone(),
        case: ours.case.clone(),
        x: ours.x,
        metric: ours.metric.clone(),
        unit: ours.unit.clone(),
        better: ours.better,
        ours: ours.peer.clone(),
        peer: theirs.peer.clone(),
        our_values,
        peer_values,
        ratio,
        num_rounds,
        // JSON has no infinity.
        noise: noise.filter(|noise| noise.is_finite()),
        is_control: pair.is_control(),
        verdict,
        reason,
        goal: None,
    };
    Outcome {
        goal: goals::of_outcome(&outcome),
        ..outcome
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Role;
    use super::super::samples::{results, series};
    use super::*;

    fn one(ours: &[f64], theirs: &[f64]) -> Outcome {
        outcomes(&results(ours, theirs)).pop().unwrap()
    }

    fn judge(ours: &[f64], theirs: &[f64]) -> (Verdict, Reason) {
        let outcome = one(ours, theirs);
        (outcome.verdict, outcome.reason)
    }

    #[test]
    fn peer_that_costs_more_is_beaten() {
        let outcome = one(&[10.0, 10.5, 11.0], &[20.0, 21.0, 22.0]);

        assert_eq!(outcome.verdict, Verdict::Won);
        assert_eq!(outcome.reason, Reason::BeyondNoise);
        assert_eq!(outcome.ratio.unwrap().median, 2.0);
        assert_eq!(outcome.num_rounds, 3);
        assert_eq!(judge(&[20.0, 21.0], &[10.0, 10.0]).0, Verdict::Lost);
    }

    #[test]
    fn rate_is_better_when_it_is_more() {
        let of = |peer, role, values: &[f64]| series(peer, role, Better::More, values);
        let results = Results {
            series: vec![
                of("a", Role::Ours, &[300.0, 303.0]),
                of("b", Role::Peer, &[100.0, 101.0]),
            ],
            ..Results::default()
        };

        let outcome = outcomes(&results).pop().unwrap();

        assert_eq!(outcome.verdict, Verdict::Won);
        assert_eq!(outcome.ratio.unwrap().median, 3.0);
    }

    #[test]
    fn equal_values_are_a_tie() {
        assert_eq!(
            judge(&[5.0, 5.0], &[5.0, 5.0]),
            (Verdict::Tied, Reason::SpreadHasOne)
        );
        assert_eq!(judge(&[0.0, 0.0], &[0.0, 0.0]).0, Verdict::Tied);
    }

    #[test]
    fn one_round_is_a_tie_however_large_the_ratio() {
        assert_eq!(judge(&[1.0], &[100.0]), (Verdict::Tied, Reason::OneRound));
    }

    #[test]
    fn ratio_within_the_spread_of_both_is_a_tie() {
        // Round by round ours is always 4 % better, but rounds differ by 20 %.
        assert_eq!(
            judge(&[100.0, 120.0, 80.0], &[104.0, 125.0, 83.5]),
            (Verdict::Tied, Reason::WithinNoise)
        );
    }

    #[test]
    fn control_is_the_noise_if_there_is_one() {
        let mut results = results(&[100.0, 120.0, 80.0], &[104.0, 125.0, 83.5]);
        for (mut control, values) in [
            (series("c", Role::Ours, Better::Less, &[]), [10.0, 10.0]),
            (
                series("c again", Role::Peer, Better::Less, &[]),
                [10.1, 9.9],
            ),
        ] {
            control.is_control = true;
            for (value, round) in values.into_iter().zip(1..) {
                results.add(control.clone(), round, value);
            }
        }

        let outcomes = outcomes(&results);

        assert_eq!(outcomes.len(), 2);
        assert_eq!(outcomes[0].verdict, Verdict::Won);
        assert!((outcomes[0].noise.unwrap() - 0.0101).abs() < 1e-4);
        assert!(outcomes[1].is_control);
        assert_eq!(outcomes[1].reason, Reason::Control);

        // One of another metric says nothing.
        for series in &mut results.series[..2] {
            series.metric = "y".into();
        }
        assert_eq!(super::outcomes(&results)[0].verdict, Verdict::Tied);
    }

    #[test]
    fn zero_has_no_ratio_but_a_verdict() {
        let outcome = one(&[0.0, 0.0], &[5.0, 6.0]);
        assert_eq!(outcome.ratio, None);
        assert_eq!(
            (outcome.verdict, outcome.reason),
            (Verdict::Won, Reason::Zero)
        );

        assert_eq!(
            judge(&[5.0, 6.0], &[0.0, 0.0]),
            (Verdict::Lost, Reason::Zero)
        );
        assert_eq!(
            judge(&[0.0, 6.0], &[5.0, 6.0]),
            (Verdict::Tied, Reason::Zero)
        );
    }

    #[test]
    fn rounds_that_only_one_side_has_do_not_make_pairs() {
        let mut results = results(&[10.0, 12.0], &[]);
        let theirs = series("them", Role::Peer, Better::Less, &[]);
        for (value, round) in [(40.0, 7), (44.0, 8)] {
            results.add(theirs.clone(), round, value);
        }

        let ratio = outcomes(&results).pop().unwrap().ratio.unwrap();

        assert_eq!(ratio.low, 40.0 / 12.0);
        assert_eq!(ratio.median, 42.0 / 11.0);
        assert_eq!(ratio.high, 44.0 / 10.0);
    }

    #[test]
    fn what_nobody_knows_is_not_judged() {
        let mut unknown = results(&[1.0, 1.0], &[2.0, 2.0]);
        for series in &mut unknown.series {
            series.better = Better::Unknown;
        }

        assert_eq!(outcomes(&unknown), []);
    }

    proptest! {
        #[test]
        fn ratio_and_verdict_do_not_depend_on_the_unit(
            values in prop::collection::vec((0.001..1e6, 0.001..1e6), 1..12),
            exponent in -20i32..20,
        ) {
            let (ours, theirs): (Vec<f64>, Vec<f64>) = values.into_iter().unzip();
            // A power of two, so that nothing is rounded.
            let scale = f64::from(exponent).exp2();
            let scaled = |values: &[f64]| values.iter().map(|value| value * scale).collect::<Vec<_>>();

            let plain = one(&ours, &theirs);
            let other = one(&scaled(&ours), &scaled(&theirs));

            prop_assert_eq!(plain.ratio, other.ratio);
            prop_assert_eq!(plain.verdict, other.verdict);
            prop_assert_eq!(plain.noise, other.noise);
        }

        #[test]
        fn nothing_is_won_against_itself(values in prop::collection::vec(0.0..1e6, 1..12)) {
            prop_assert_eq!(one(&values, &values).verdict, Verdict::Tied);
        }
    }
}
