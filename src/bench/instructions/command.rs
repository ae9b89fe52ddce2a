//! What `alacrity bench instructions` does: counts what everybody executes while a command runs.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus as CommandStatus, Stdio};
use std::time::Instant;

use serde::Serialize;

use super::{ClockError, InstructionClock, Instructions};
use crate::bench::report::Spread;
use crate::cli::InstructionsArgs;
use crate::exit::ExitStatus;

/// Why there is no count.
#[derive(Debug, thiserror::Error)]
pub enum CountError {
    /// Nobody counts.
    #[error(
        "nobody counts instructions here; only the lab does: \
         scripts/lab --instructions -- alacrity bench instructions -- COMMAND"
    )]
    NoClock,
    /// The counter cannot be read.
    #[error("cannot read the count of instructions")]
    Clock {
        /// Why.
        source: ClockError,
    },
    /// No command.
    #[error("cannot run '{program}'; is it in PATH?")]
    Run {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A command that did not do its work.
    #[error("round {round}: the command failed ({status}), so its count means nothing")]
    Failed {
        /// From 1.
        round: u32,
        /// How it ended.
        status: CommandStatus,
    },
    /// It does not fit into JSON.
    #[error("cannot write the counts as JSON")]
    Json {
        /// Why.
        source: serde_json::Error,
    },
    /// They cannot be kept.
    #[error("cannot write {}; name another file", path.display())]
    Write {
        /// Where to.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody can be told.
    #[error("cannot write to standard output")]
    Print {
        /// Why.
        source: io::Error,
    },
}

impl CountError {
    /// What the program ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Run { .. } => ExitStatus::BadInput,
            _ => ExitStatus::HostError,
        }
    }
}

/// One time that the command ran.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Round {
    /// How long it took.
    pub seconds: f64,
    /// What was executed meanwhile.
    #[serde(flatten)]
    pub executed: Instructions,
    /// All of them.
    pub all: u64,
    /// All but what would have been executed in that time at rest.
    pub work: f64,
}

/// All times, as the JSON file has them too.
#[derive(Debug, Serialize)]
pub struct Counts {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// What one round does so many of, that the table divides by.
    pub per: u64,
    /// What was executed per second before, at rest.
    pub rest_per_second: f64,
    /// In order.
    pub rounds: Vec<Round>,
}

/// Runs the command of `args`, as often as they say, and prints what was executed meanwhile to `out`.
///
/// # Errors
/// [`CountError`].
pub fn run(args: &InstructionsArgs, out: &mut dyn Write) -> Result<ExitStatus, CountError> {
    let clock = InstructionClock::find().map_err(|source| CountError::Clock { source })?;
    let clock = clock.ok_or(CountError::NoClock)?;
    let rest = clock.rest_per_second();
    let rounds = (1..=args.rounds).map(|round| measure(&clock, &args.command, round, rest));
    let counts = Counts {
        command: args.command.clone(),
        per: args.per,
        rest_per_second: rest,
        rounds: rounds.collect::<Result<_, _>>()?,
    };
    if let Some(path) = &args.json {
        let json =
            serde_json::to_string_pretty(&counts).map_err(|source| CountError::Json { source })?;
        fs::write(path, json + "\n").map_err(|source| CountError::Write {
            path: path.clone(),
            source,
        })?;
    }
    write!(out, "{counts}").map_err(|source| CountError::Print { source })?;
    Ok(ExitStatus::Success)
}

/// Runs `command` once. Its output goes to standard error, as standard output is for the table.
fn measure(
    clock: &InstructionClock,
    command: &[String],
    round: u32,
    rest_per_second: f64,
) -> Result<Round, CountError> {
    let program = command.first().cloned().unwrap_or_default();
    let mut command_line = Command::new(&program);
    command_line
        .args(command.get(1..).unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(io::stderr());
    let started = Instant::now();
    let before = clock.counts();
    let status = command_line.status();
    let executed = clock.counts() - before;
    let seconds = started.elapsed().as_secs_f64();
    let status = status.map_err(|source| CountError::Run { program, source })?;
    if !status.success() {
        return Err(CountError::Failed { round, status });
    }
    let all = executed.all();
    #[allow(clippy::cast_precision_loss)] // below 2^53 for months
    let work = all as f64 - rest_per_second * seconds;
    Ok(Round {
        seconds,
        executed,
        all,
        work,
    })
}

/// `value` with a comma after each three digits; of a quotient, what is behind the point as well if it is small.
fn shown(value: f64, per: u64) -> String {
    if per != 1 && value.abs() < 1000.0 {
        return format!("{value:.3}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::from(if value < 0.0 { "-" } else { "" });
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl fmt::Display for Counts {
    #[allow(clippy::cast_precision_loss)] // counts are below 2^53 for months
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        type Of = fn(&Round) -> f64;
        let rows: [(&str, Of); 7] = [
            ("host, user", |round| round.executed.host_user as f64),
            ("host, kernel", |round| round.executed.host_kernel as f64),
            ("guest, user", |round| round.executed.guest_user as f64),
            ("guest, kernel", |round| round.executed.guest_kernel as f64),
            ("all", |round| round.all as f64),
            ("all less rest", |round| round.work),
            ("guest entered", |round| round.executed.entries as f64),
        ];
        writeln!(
            f,
            "{:<14}{:>18}{:>18}{:>18}{:>10}",
            "instructions", "median", "least", "most", "apart"
        )?;
        for (name, of) in rows {
            let values = || self.rounds.iter().map(|round| of(round) / self.per as f64);
            let median = Spread::of(values()).median;
            let least = values().fold(f64::INFINITY, f64::min);
            let most = values().fold(f64::NEG_INFINITY, f64::max);
            let apart = match median > 0.0 {
                true => format!("{:.2} %", 100.0 * (most - least) / median),
                false => "-".into(),
            };
            let [median, least, most] = [median, least, most].map(|value| shown(value, self.per));
            writeln!(f, "{name:<14}{median:>18}{least:>18}{most:>18}{apart:>10}")?;
        }
        let seconds = Spread::of(self.rounds.iter().map(|round| round.seconds)).median;
        write!(
            f,
            "rounds: {}, each some {seconds:.2} s; at rest {} in a second",
            self.rounds.len(),
            shown(self.rest_per_second, 1)
        )?;
        match self.per {
            1 => writeln!(f),
            per => writeln!(f, "; all but that divided by {per}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_in_groups_of_three() {
        assert_eq!(shown(0.0, 1), "0");
        assert_eq!(shown(999.0, 1), "999");
        assert_eq!(shown(1000.0, 1), "1,000");
        assert_eq!(shown(-12_345_678.0, 1), "-12,345,678");
        assert_eq!(shown(12_345.6, 10), "12,346");
        assert_eq!(shown(1.2345, 10), "1.234");
    }

    #[test]
    fn table_has_the_median_and_how_far_rounds_are_apart() {
        let round = |kernel: u32| Round {
            seconds: 2.0,
            executed: Instructions {
                host_kernel: kernel.into(),
                ..Instructions::default()
            },
            all: kernel.into(),
            work: f64::from(kernel) - 10_000.0,
        };
        let counts = Counts {
            command: vec!["true".into()],
            per: 10,
            rest_per_second: 5000.0,
            rounds: vec![round(19_800), round(20_000), round(20_200)],
        };
        let text = counts.to_string();
        let words = |name: &str| -> Vec<&str> {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().split_whitespace().collect()
        };
        assert_eq!(
            words("host, kernel"),
            ["2,000", "1,980", "2,020", "2.00", "%"]
        );
        assert_eq!(
            words("all less rest"),
            ["1,000", "980.000", "1,020", "4.00", "%"]
        );
        assert_eq!(words("guest, user"), ["0.000", "0.000", "0.000", "-"]);
        assert!(
            text.ends_with("at rest 5,000 in a second; all but that divided by 10\n"),
            "{text}"
        );
    }
}
