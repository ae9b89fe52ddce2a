//! Which series are compared with each other, and how much of a difference is noise.

use std::collections::HashMap;

use super::verdict::{distance, ratio};
use super::{Results, Role, Series};

/// Ours and a peer, or a subject and itself again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    /// Ours, or the subject of a control.
    pub ours: &'a Series,
    /// The peer, or the subject again.
    pub theirs: &'a Series,
}

impl Pair<'_> {
    /// Whether it says what noise does.
    pub fn is_control(&self) -> bool {
        self.theirs.is_control
    }
}

/// All of `results`, in the order of the first of each.
pub(super) fn pairs(results: &Results) -> Vec<Pair<'_>> {
    let is_judged = |series: &&Series| series.better.is_judged() && !series.rounds.is_empty();
    // Those of the same file, case, point and metric.
    let mut groups: HashMap<_, Vec<&Series>> = HashMap::new();
    let key = |series: &Series| {
        let Series {
            source,
            case,
            metric,
            x,
            ..
        } = series;
        let x = x.map(f64::to_bits);
        (source.clone(), case.clone(), metric.clone(), x)
    };
    for series in results.series.iter().filter(is_judged) {
        groups.entry(key(series)).or_default().push(series);
    }
    let of_subject = |ours| {
        let group = groups.get(&key(ours)).into_iter().flatten();
        group.filter_map(move |theirs: &&Series| {
            let is_peer =
                ours.role == Role::Ours && theirs.role == Role::Peer && theirs.is_beside(ours);
            (is_peer || theirs.is_again(ours)).then_some(Pair { ours, theirs })
        })
    };
    results
        .series
        .iter()
        .filter(is_judged)
        .flat_map(of_subject)
        .collect()
}

/// What controls of a run say about noise.
#[derive(Debug)]
pub(super) struct Floor<'a> {
    controls: Vec<(Pair<'a>, f64)>,
}

impl<'a> Floor<'a> {
    /// Of the controls among `pairs`.
    pub fn of(pairs: &[Pair<'a>]) -> Self {
        let controls = pairs.iter().filter(|pair| pair.is_control());
        Floor {
            controls: controls
                .filter_map(|pair| Some((*pair, control_noise(pair)?)))
                .collect(),
        }
    }

    /// The most that a subject differed from itself, in the metric of `ours`: at the same point, else at any
    /// point of the case, else in cases that are controls and nothing else. `None` without a control.
    pub fn noise(&self, ours: &Series) -> Option<f64> {
        let most = |is_near: &dyn Fn(&Series) -> bool| {
            let near = self.controls.iter().filter(|(control, _)| {
                let of = control.ours;
                of.source == ours.source && of.metric == ours.metric && is_near(of)
            });
            near.map(|(_, noise)| *noise).reduce(f64::max)
        };
        let is_of_case = |of: &Series| of.case == ours.case;
        most(&|of| is_of_case(of) && of.x == ours.x)
            .or_else(|| most(&is_of_case))
            .or_else(|| most(&|of| of.is_control))
    }
}

/// The furthest from 1 that the ratio of a subject to itself went; `None` for a single round.
fn control_noise(pair: &Pair<'_>) -> Option<f64> {
    let (ratio, num_rounds) = ratio(pair.ours, pair.theirs);
    let ratio = ratio.filter(|_| num_rounds > 1)?;
    Some(distance(ratio.low).max(distance(ratio.high)))
}

#[cfg(test)]
mod tests {
    use super::super::Better;
    use super::super::samples::series;
    use super::*;

    fn of(peer: &str, role: Role, case: &str, x: Option<f64>, values: &[f64]) -> Series {
        Series {
            case: case.into(),
            x,
            is_control: peer.ends_with("-again"),
            ..series(peer, role, Better::Less, values)
        }
    }

    fn results(series: Vec<Series>) -> Results {
        Results {
            series,
            ..Results::default()
        }
    }

    fn names(results: &Results) -> Vec<(&str, &str)> {
        let pairs = pairs(results);
        let names = pairs
            .iter()
            .map(|pair| (pair.ours.peer.as_str(), pair.theirs.peer.as_str()));
        names.collect()
    }

    #[test]
    fn ours_is_beside_each_peer_and_each_control_beside_its_subject() {
        let results = results(vec![
            of("venet", Role::Ours, "out", None, &[1.0]),
            of("qemu", Role::Peer, "out", None, &[1.0]),
            of("venet-again", Role::Peer, "out", None, &[1.0]),
            of("qemu-again", Role::Peer, "out", None, &[1.0]),
            of("venet", Role::Ours, "in", None, &[1.0]),
        ]);

        assert_eq!(
            names(&results),
            [
                ("venet", "qemu"),
                ("venet", "venet-again"),
                ("qemu", "qemu-again")
            ]
        );
    }

    #[test]
    fn points_of_a_sweep_and_variants_do_not_mix() {
        let results = results(vec![
            of("venet", Role::Ours, "load", Some(10.0), &[1.0]),
            of("qemu", Role::Peer, "load", Some(10.0), &[1.0]),
            of("qemu", Role::Peer, "load", Some(50.0), &[1.0]),
            of("idle", Role::Variant, "load", Some(10.0), &[1.0]),
        ]);

        assert_eq!(names(&results), [("venet", "qemu")]);
    }

    #[test]
    fn noise_is_that_of_the_nearest_control() {
        let again = |case, x, values| of("venet-again", Role::Peer, case, x, values);
        let ours = |case, x| of("venet", Role::Ours, case, x, &[100.0, 100.0]);
        let all = results(vec![
            ours("load", Some(10.0)),
            again("load", Some(10.0), &[101.0, 102.0]),
            ours("load", Some(50.0)),
            again("load", Some(50.0), &[100.0, 110.0]),
            ours("load", Some(100.0)),
            ours("out", None),
        ]);
        let pairs = pairs(&all);
        let floor = Floor::of(&pairs);
        let percent = |series| {
            let noise = floor.noise(&series)?;
            Some((noise * 100.0).round())
        };

        assert_eq!(percent(ours("load", Some(10.0))), Some(2.0));
        assert_eq!(percent(ours("load", Some(50.0))), Some(10.0));
        // No control at this point: the worst of the others.
        assert_eq!(percent(ours("load", Some(100.0))), Some(10.0));
        // Controls of other cases say nothing.
        assert_eq!(percent(ours("out", None)), None);
    }

    #[test]
    fn control_of_one_round_says_nothing() {
        let all = results(vec![
            of("venet", Role::Ours, "out", None, &[1.0]),
            of("venet-again", Role::Peer, "out", None, &[2.0]),
        ]);
        let pairs = pairs(&all);

        assert_eq!(Floor::of(&pairs).noise(pairs[0].ours), None);
    }
}
