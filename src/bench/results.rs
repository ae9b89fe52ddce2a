//! `alacrity bench report`: the raw values of all benchmarks as one set of results, what they say, and
//! how they differ from those of an earlier run.
//!
//! | module | what lives there |
//! |---|---|
//! | [`load`] | raw files → [`Results`] |
//! | `catalog` | which metrics there are, and which peer is ours |
//! | [`goals`] | what was aimed at, and whether it was reached |
//! | `pairs`, [`verdict`] | what is compared; won, tied or lost |
//! | [`compare`] | better or worse than before |
//! | [`document`] | `results.json` |
//! | `text`, `html`, `plot` | for people |
//! | [`command`] | the order of these |
//!
//! Nothing here measures anything, and goals change no verdict.

pub(super) mod catalog;
pub mod command;
pub mod compare;
pub mod document;
pub mod goals;
mod html;
pub mod load;
mod pairs;
mod plot;
mod text;
pub mod verdict;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Which way a metric is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Less is better: a cost.
    Less,
    /// More is better: a rate.
    More,
    /// Neither: it says how much was done, not how well.
    Neither,
    /// This program does not know the metric.
    Unknown,
}

impl Better {
    /// Whether there are good and bad values.
    pub fn is_judged(self) -> bool {
        matches!(self, Self::Less | Self::More)
    }
}

/// Whose values these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Ours.
    Ours,
    /// What ours is compared with.
    Peer,
    /// Ours in another way of running: shown beside it, but nobody wins against himself.
    Variant,
    /// The case has nothing that is known to be ours.
    Unknown,
}

/// All values of one metric of one peer in one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Name of the raw file, without directory.
    pub source: String,
    /// What was run.
    pub case: String,
    /// The point of a sweep: what differs between the runs of the case, such as bytes of a packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<f64>,
    /// What was measured.
    pub metric: String,
    /// Unit of the values; empty if it is not known.
    pub unit: String,
    /// Which way it is better.
    pub better: Better,
    /// Who was measured.
    pub peer: String,
    /// Whose values these are.
    pub role: Role,
    /// One of two series of the same subject, measured beside itself: how much they differ is noise. In files
    /// of lines only the second one is, whose peer ends with `-again`.
    pub is_control: bool,
    /// Values in [`Series::unit`], finite and not negative, by the number of the round. No round is empty.
    pub rounds: BTreeMap<u64, Vec<f64>>,
}

/// How the name of a subject ends that is measured a second time in the same round.
pub(crate) const AGAIN: &str = "-again";

impl Series {
    /// Whether `other` measures the same of somebody else.
    pub fn is_beside(&self, other: &Series) -> bool {
        self.is_of_same(other) && self.is_control == other.is_control
    }

    /// Whether this is `other` once more.
    pub fn is_again(&self, other: &Series) -> bool {
        self.is_of_same(other)
            && self.is_control
            && !other.is_control
            && self.peer.strip_suffix(AGAIN) == Some(&other.peer)
    }

    fn is_of_same(&self, other: &Series) -> bool {
        self.source == other.source
            && self.case == other.case
            && self.x == other.x
            && self.metric == other.metric
    }

    /// The case and the point of its sweep, for people.
    pub fn point(&self) -> String {
        catalog::point(&self.case, self.x)
    }

    /// All values, in the order of their rounds.
    pub fn values(&self) -> Vec<f64> {
        self.rounds.values().flatten().copied().collect()
    }

    /// The mean of each round: within one, peers took turns, so they compare best round by round.
    pub fn means(&self) -> BTreeMap<u64, f64> {
        let mean = |values: &Vec<f64>| {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            let num = values.len().max(1) as f64;
            values.iter().sum::<f64>() / num
        };
        self.rounds
            .iter()
            .map(|(round, values)| (*round, mean(values)))
            .collect()
    }

    /// Median and quartiles of [`Series::means`].
    pub fn summary(&self) -> Summary {
        Summary::of(self.means().into_values())
    }
}

/// Median and quartiles, in the unit of the values.
///
/// Quartiles are values of the list, outwards in doubt: of up to four values they are the least and the
/// greatest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The lower quartile.
    pub low: f64,
    /// The middle value, or the mean of the two in the middle.
    pub median: f64,
    /// The upper quartile.
    pub high: f64,
}

impl Summary {
    /// Of `values`; all 0 if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let last = values.len().saturating_sub(1);
        let at = |idx: usize| values.get(idx).copied().unwrap_or_default();
        Summary {
            low: at(last / 4),
            // Halved first: the sum of two large ones may be infinite.
            median: at(last / 2) / 2.0 + at(last.div_ceil(2)) / 2.0,
            high: at(last - last / 4),
        }
    }

    /// Half of the spread, relative to the median: 0.05 means plus or minus 5 %.
    pub fn noise(&self) -> f64 {
        if self.high <= self.low {
            return 0.0;
        }
        (self.high - self.low) / 2.0 / self.median
    }

    /// Whether both have a value in common, quartiles included.
    pub fn overlaps(&self, other: &Summary) -> bool {
        self.low <= other.high && other.low <= self.high
    }
}

/// A raw file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name, without directory.
    pub file: String,
    /// When it was written last, RFC 3339.
    pub written: String,
    /// Values in it.
    pub num_values: usize,
}

/// What all benchmarks of a directory say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// The files, in the order in which they were read.
    pub sources: Vec<Source>,
    /// What the scripts noted about the run, such as the command lines of peers: name and text.
    pub notes: BTreeMap<String, String>,
    /// The values, in the order of the files.
    pub series: Vec<Series>,
    /// What this program does not know, in a sentence each, with how often it was met.
    pub unknown: BTreeMap<String, usize>,
}

impl Results {
    /// Adds one value of the series that is like `like`, whose rounds do not matter.
    pub fn add(&mut self, like: Series, round: u64, value: f64) {
        let is_it = |known: &Series| known.is_beside(&like) && known.peer == like.peer;
        let idx = self.series.iter().position(is_it).unwrap_or_else(|| {
            self.series.push(Series {
                rounds: BTreeMap::new(),
                ..like
            });
            self.series.len() - 1
        });
        if let Some(series) = self.series.get_mut(idx) {
            series.rounds.entry(round).or_default().push(value);
        }
    }

    /// Notes something that this program does not know.
    pub fn note_unknown(&mut self, what: String) {
        *self.unknown.entry(what).or_default() += 1;
    }
}

/// Series for tests.
#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    /// One value for each round, from 1 on.
    pub fn series(peer: &str, role: Role, better: Better, values: &[f64]) -> Series {
        Series {
            source: "net.json".into(),
            case: "out".into(),
            x: None,
            metric: "x".into(),
            unit: "ns".into(),
            better,
            peer: peer.into(),
            role,
            is_control: false,
            rounds: (1..).zip(values.iter().map(|value| vec![*value])).collect(),
        }
    }

    /// Ours and a peer, less is better.
    pub fn results(ours: &[f64], theirs: &[f64]) -> Results {
        Results {
            series: vec![
                series("ours", Role::Ours, Better::Less, ours),
                series("them", Role::Peer, Better::Less, theirs),
            ],
            ..Results::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::samples::series;
    use super::*;

    #[test]
    fn summary_has_the_middle_and_the_quartiles() {
        let of = |values: &[f64]| {
            let Summary { low, median, high } = Summary::of(values.iter().copied());
            [low, median, high]
        };

        assert_eq!(of(&[]), [0.0; 3]);
        assert_eq!(of(&[7.0]), [7.0; 3]);
        assert_eq!(of(&[4.0, 1.0]), [1.0, 2.5, 4.0]);
        assert_eq!(of(&[4.0, 1.0, 3.0, 2.0]), [1.0, 2.5, 4.0]);
        assert_eq!(of(&[5.0, 4.0, 1.0, 3.0, 2.0]), [2.0, 3.0, 4.0]);
        assert_eq!(of(&[f64::MAX, f64::MAX])[1], f64::MAX);
    }

    #[test]
    fn noise_is_half_of_the_spread() {
        assert_eq!(Summary::of([9.0, 10.0, 11.0]).noise(), 0.1);
        assert_eq!(Summary::of([3.0]).noise(), 0.0);
        assert_eq!(Summary::of([0.0, 0.0]).noise(), 0.0);
        assert_eq!(Summary::of([0.0, 0.0, 1.0]).noise(), f64::INFINITY);
    }

    #[test]
    fn rounds_count_alike_however_many_values_they_have() {
        let mut series = series("x", Role::Ours, Better::Less, &[1.0, 5.0]);
        series.rounds.insert(3, vec![8.0, 10.0, 9.0]);

        assert_eq!(series.summary().median, 5.0);
        assert_eq!(series.values(), [1.0, 5.0, 8.0, 10.0, 9.0]);
    }

    #[test]
    fn values_of_one_series_come_together() {
        let mut results = Results::default();
        let ours = series("x", Role::Ours, Better::Less, &[]);
        let theirs = series("y", Role::Peer, Better::Less, &[]);

        results.add(ours.clone(), 1, 2.0);
        results.add(theirs, 1, 3.0);
        results.add(ours, 1, 4.0);

        assert_eq!(results.series.len(), 2);
        assert_eq!(results.series[0].rounds[&1], [2.0, 4.0]);
    }

    proptest! {
        #[test]
        fn median_does_not_depend_on_the_unit(
            values in prop::collection::vec(0.0..1e9, 1..40),
            exponent in -20i32..20,
        ) {
            // A power of two, so that nothing is rounded.
            let scale = f64::from(exponent).exp2();
            let plain = Summary::of(values.iter().copied());
            let scaled = Summary::of(values.iter().map(|value| value * scale));
            prop_assert_eq!(plain.median * scale, scaled.median);
            prop_assert_eq!(plain.noise(), scaled.noise());
            prop_assert!(plain.low <= plain.median && plain.median <= plain.high);
        }
    }
}
