//! What a benchmark found: raw values for programs, a short table for people.

use std::fmt;

use serde::Serialize;

use super::BenchError;

/// Outcome of one case.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Name of the case, as on the command line.
    pub case: &'static str,
    /// What is measured, in a sentence.
    pub what: &'static str,
    /// Ours beside theirs.
    pub comparisons: Vec<Comparison>,
    /// Wake-ups under load.
    pub signals: Vec<Signals>,
}

/// Two subjects, measured in alternating rounds.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// What differs from the other comparisons of the case.
    pub name: String,
    /// Unit of the values; less is better.
    pub unit: &'static str,
    /// True for a subject beside itself: its ratio says what noise does.
    pub is_control: bool,
    /// Ratio that was the goal, if there was one.
    pub goal: Option<f64>,
    /// Name of the first subject.
    pub ours_name: &'static str,
    /// Name of the second subject.
    pub theirs_name: &'static str,
    /// Values of the first subject, two for each round.
    pub ours: Vec<f64>,
    /// Values of the second subject, two for each round.
    pub theirs: Vec<f64>,
}

/// How often a side had to be woken.
#[derive(Debug, Serialize)]
pub struct Signals {
    /// What was run.
    pub name: String,
    /// Descriptors in each round.
    pub num_descriptors: usize,
    /// Most that there should be per 1,000 descriptors, if that was a goal.
    pub goal: Option<f64>,
    /// Wake-ups in each round.
    pub wake_ups: Vec<u64>,
    /// Nanoseconds per descriptor in each round.
    pub ns_per_descriptor: Vec<f64>,
}

/// Median and quartiles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// A quarter of the values is below.
    pub low: f64,
    /// Half of the values is below.
    pub median: f64,
    /// A quarter of the values is above.
    pub high: f64,
}

impl Spread {
    /// Of `values`, by rank, outwards in doubt; all 0 if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let last = values.len().saturating_sub(1);
        let at = |idx: usize| values.get(idx).copied().unwrap_or_default();
        Spread {
            low: at(last / 4),
            median: at(last.div_ceil(2)),
            high: at(last - last / 4),
        }
    }
}

impl Comparison {
    /// Measures nanoseconds of two subjects, each with its name, in `num_rounds` rounds of ours,
    /// theirs, theirs, ours. There is no goal.
    pub(super) fn measure(
        name: String,
        num_rounds: usize,
        (ours_name, ours): (&'static str, impl Fn() -> Result<f64, BenchError>),
        (theirs_name, theirs): (&'static str, impl Fn() -> Result<f64, BenchError>),
    ) -> Result<Self, BenchError> {
        let mut comparison = Comparison {
            name,
            unit: "ns",
            is_control: ours_name == theirs_name,
            goal: None,
            ours_name,
            theirs_name,
            ours: Vec::new(),
            theirs: Vec::new(),
        };
        for _ in 0..num_rounds {
            comparison.ours.push(ours()?);
            comparison.theirs.push(theirs()?);
            comparison.theirs.push(theirs()?);
            comparison.ours.push(ours()?);
        }
        Ok(comparison)
    }

    /// How many times better the first subject is: of the sums of each round, which ran as
    /// ours, theirs, theirs, ours.
    pub fn ratio(&self) -> Spread {
        let sums = |values: &[f64]| -> Vec<f64> {
            values.chunks(2).map(|pair| pair.iter().sum()).collect()
        };
        let theirs = sums(&self.theirs);
        Spread::of(
            sums(&self.ours)
                .iter()
                .zip(theirs)
                .map(|(ours, theirs)| theirs / ours),
        )
    }

    fn verdict(&self) -> String {
        let ratio = self.ratio();
        match self.goal {
            _ if self.is_control => "ours beside itself".to_owned(),
            Some(goal) if ratio.median < goal => format!("LOST: goal is {goal}"),
            _ if ratio.median < 1.0 => "LOST: worse".to_owned(),
            Some(goal) => format!("reaches {goal}"),
            None => String::new(),
        }
    }
}

impl Signals {
    /// Wake-ups per 1,000 descriptors.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub fn per_thousand(&self) -> Spread {
        let thousands = self.num_descriptors as f64 / 1000.0;
        Spread::of(self.wake_ups.iter().map(|&count| count as f64 / thousands))
    }

    fn verdict(&self) -> String {
        match self.goal {
            Some(goal) if self.per_thousand().median > goal => format!("LOST: goal is {goal}"),
            Some(goal) => format!("goal is {goal} or less"),
            None => String::new(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}\n", self.case, self.what)?;
        writeln!(
            f,
            "{:<36} {:>10} {:>12}  {:<20} ",
            "", "ours", "theirs", "ratio (quartiles)"
        )?;
        for comparison in &self.comparisons {
            let ours = Spread::of(comparison.ours.iter().copied()).median;
            let theirs = Spread::of(comparison.theirs.iter().copied()).median;
            let Spread { low, median, high } = comparison.ratio();
            let ratio = format!("{median:.2} ({low:.2} to {high:.2})");
            writeln!(
                f,
                "{:<36} {ours:>7.1} {unit} {theirs:>9.1} {unit}  {ratio:<20} {}",
                comparison.name,
                comparison.verdict(),
                unit = comparison.unit,
            )?;
        }
        if !self.signals.is_empty() {
            writeln!(
                f,
                "\nwake-ups per 1,000 descriptors (quartiles); sender busy, receiver copies and sleeps when idle"
            )?;
        }
        for signals in &self.signals {
            let Spread { low, median, high } = signals.per_thousand();
            let ns = Spread::of(signals.ns_per_descriptor.iter().copied()).median;
            writeln!(
                f,
                "{:<36} {median:>7.3} ({low:.3} to {high:.3}), {ns:.0} ns per descriptor  {}",
                signals.name,
                signals.verdict(),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison(ours: &[f64], theirs: &[f64]) -> Comparison {
        Comparison {
            name: "batch 1".into(),
            unit: "ns",
            is_control: false,
            goal: Some(2.0),
            ours_name: "a",
            theirs_name: "b",
            ours: ours.into(),
            theirs: theirs.into(),
        }
    }

    fn signals(wake_ups: Vec<u64>) -> Signals {
        Signals {
            name: "ring".into(),
            num_descriptors: 10_000,
            goal: Some(1.0),
            wake_ups,
            ns_per_descriptor: vec![1.0],
        }
    }

    #[test]
    fn ratio_is_the_median_of_the_rounds() {
        let ratio = comparison(
            &[1.0, 1.0, 1.0, 3.0, 10.0, 10.0],
            &[2.0, 4.0, 4.0, 4.0, 5.0, 5.0],
        )
        .ratio();

        assert_eq!((ratio.low, ratio.median, ratio.high), (0.5, 2.0, 3.0));
    }

    #[test]
    fn what_misses_its_goal_is_called_lost() {
        let report = |theirs| Report {
            case: "ring",
            what: "x",
            comparisons: vec![comparison(&[1.0, 1.0], &[theirs, theirs])],
            signals: vec![],
        };

        assert!(report(1.9).to_string().contains("LOST: goal is 2"));
        assert!(!report(2.1).to_string().contains("LOST"));
    }

    #[test]
    fn too_many_signals_are_called_lost() {
        assert_eq!(signals(vec![5, 11, 12]).verdict(), "LOST: goal is 1");
        assert_eq!(signals(vec![5, 10, 12]).verdict(), "goal is 1 or less");
        assert_eq!(signals(vec![10]).per_thousand().median, 1.0);
    }

    #[test]
    fn spread_of_nothing_is_zero() {
        assert_eq!(Spread::of([]).median, 0.0);
    }
}
