//! Tables for a terminal.

use std::fmt::Write;

use super::compare::{Changes, Kind};
use super::document::Document;
use super::goals::{GoalResult, RatioGoal, State, Wanted};
use super::verdict::Outcome;
use super::{Series, Summary, catalog};

/// Four digits, or all that a whole number has.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    let text = match value {
        0.0 => "0".to_owned(),
        _ if size >= 1000.0 => format!("{value:.0}"),
        _ if size >= 100.0 => format!("{value:.1}"),
        _ if size >= 10.0 => format!("{value:.2}"),
        _ if size >= 0.001 => format!("{value:.3}"),
        _ => format!("{value:.2e}"),
    };
    match text.contains('.') && !text.contains('e') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// `2.00 (1.90 to 2.10)`.
pub(super) fn ratio(ratio: Option<Summary>) -> String {
    match ratio {
        Some(Summary { low, median, high }) => format!("{median:.2} ({low:.2} to {high:.2})"),
        None => "-".to_owned(),
    }
}

/// `9 (8 to 10)`.
pub(super) fn spread(summary: Summary) -> String {
    let Summary { low, median, high } = summary;
    format!("{} ({} to {})", number(median), number(low), number(high))
}

/// Verdict and reason.
pub(super) fn verdict(outcome: &Outcome) -> String {
    match (outcome.is_control, outcome.reason.words()) {
        (true, _) => "control".to_owned(),
        (false, "") => outcome.verdict.word().to_owned(),
        (false, why) => format!("{} ({why})", outcome.verdict.word()),
    }
}

/// The goal of a ratio and what became of it; empty if there is none.
pub(super) fn goal(goal: Option<RatioGoal>) -> String {
    goal.map_or_else(String::new, |goal| {
        format!("{}: {}", number_of_ratio(goal.ratio), goal.state.words())
    })
}

/// Two digits after the point, or fewer: `1.05`, `4`.
fn number_of_ratio(ratio: f64) -> String {
    number((ratio * 100.0).round() / 100.0)
}

/// What a goal asks for.
pub(super) fn wanted(goal: &GoalResult) -> String {
    let of = |value: f64| match goal.wanted {
        Wanted::Ratio(_) => number_of_ratio(value),
        Wanted::Value(_) => number(value),
    };
    let stretch = goal
        .stretch
        .map(|stretch| format!(", stretch {}", of(stretch)));
    let stretch = stretch.unwrap_or_default();
    match goal.wanted {
        Wanted::Ratio(ratio) => format!("{} or more{stretch}", of(ratio)),
        Wanted::Value(value) => format!("{} {} or less{stretch}", of(value), goal.unit),
    }
}

/// What it has come to.
pub(super) fn found(goal: &GoalResult) -> String {
    match (goal.found, goal.wanted) {
        (Some(ratio), Wanted::Ratio(_)) => format!("{ratio:.2}"),
        (Some(value), Wanted::Value(_)) => number(value),
        (None, _) => "-".to_owned(),
    }
}

/// How many goals are reached, and how many are not.
pub(super) fn score_of_goals(goals: &[GoalResult]) -> String {
    let count =
        |is_it: &dyn Fn(State) -> bool| goals.iter().filter(|goal| is_it(goal.state)).count();
    format!(
        "Goals: {} reached, {} not reached, {} not measured.",
        count(&State::is_reached),
        count(&|state| state == State::NotReached),
        count(&|state| state == State::NotMeasured),
    )
}

/// What has no ratio: nothing to compare it with, or not known how.
pub(super) fn alone(document: &Document) -> Vec<&Series> {
    let has_ratio = |series: &Series| {
        document.outcomes.iter().any(|outcome| {
            (&outcome.source, &outcome.case, outcome.x) == (&series.source, &series.case, series.x)
                && outcome.metric == series.metric
                && (outcome.ours == series.peer || outcome.peer == series.peer)
        })
    };
    let series = document.results.series.iter();
    series.filter(|series| !has_ratio(series)).collect()
}

/// Columns as wide as their widest cell; the first line is the head.
fn table(rows: &[Vec<String>]) -> String {
    let num_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..num_columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    // What came from a file may not move the cursor.
    let printable = |cell: &str| cell.chars().filter(|c| !c.is_control()).collect();
    cells.into_iter().map(printable).collect()
}

/// Each goal of which something was measured.
fn goals(document: &Document) -> String {
    let goals = document.goals.iter();
    let measured: Vec<&GoalResult> = goals
        .filter(|goal| goal.state != State::NotMeasured)
        .collect();
    if measured.is_empty() {
        return String::new();
    }
    let mut rows = vec![row([
        "goals", "case", "metric", "peer", "wanted", "found", "state",
    ])];
    rows.extend(measured.iter().map(|goal| {
        row([
            goal.what,
            &catalog::point(&goal.case, goal.x),
            &goal.metric,
            &goal.peer,
            &wanted(goal),
            &found(goal),
            goal.state.words(),
        ])
    }));
    format!("\n{}", table(&rows))
}

/// Ratios, goals, what has no ratio, and what is not known.
pub(super) fn report(document: &Document) -> String {
    let head = [
        "case",
        "metric",
        "ours",
        "peer",
        "ratio (quartiles)",
        "verdict",
        "goal",
    ];
    let mut ratios = vec![row(head)];
    let (points, cases): (Vec<&Outcome>, Vec<&Outcome>) = document
        .outcomes
        .iter()
        .partition(|outcome| outcome.x.is_some());
    for outcome in cases {
        let side = |name: &str, values: Summary| format!("{name} {}", number(values.median));
        ratios.push(row([
            &outcome.point(),
            &format!("{}, {}", outcome.metric, outcome.unit),
            &side(&outcome.ours, outcome.our_values),
            &side(&outcome.peer, outcome.peer_values),
            &ratio(outcome.ratio),
            &verdict(outcome),
            &goal(outcome.goal),
        ]));
    }
    let mut text = "Above 1 ours is better; values are medians of the rounds.\n\n".to_owned();
    text.push_str(&table(&ratios));
    if !points.is_empty() {
        let num = points.len();
        let _ = writeln!(text, "\nPoints of sweeps: {num} ratios, on the page only.");
    }
    let _ = write!(
        text,
        "\n{}\n{}",
        score_of_goals(&document.goals),
        goals(document)
    );
    // Points of sweeps and parts of other values are many, and pictures say more.
    let mut alone = alone(document);
    alone.retain(|series| series.x.is_none() && catalog::family(&series.metric).is_none());
    if !alone.is_empty() {
        let mut rows = vec![row([
            "without a ratio",
            "metric",
            "peer",
            "median (quartiles)",
        ])];
        rows.extend(alone.iter().map(|series| {
            let metric = format!("{}, {}", series.metric, series.unit);
            let metric = metric.trim_end_matches(", ");
            row([
                &series.point(),
                metric,
                &series.peer,
                &spread(series.summary()),
            ])
        }));
        let _ = write!(text, "\n{}", table(&rows));
    }
    for (what, num) in &document.results.unknown {
        let line = row([&format!("not known, {num} times: {what}")]);
        let _ = write!(text, "\n{}", line.concat());
    }
    if !document.results.unknown.is_empty() {
        text.push('\n');
    }
    text
}

/// What differs from an earlier run.
pub(super) fn changes(changes: &Changes) -> String {
    let count = |kind| {
        let of_kind = changes.changes.iter().filter(|change| change.kind == kind);
        of_kind.count()
    };
    let mut text = format!(
        "\nSince then: {} worse, {} better, {} new, {} gone, {} the same within noise",
        count(Kind::Worse),
        count(Kind::Better),
        count(Kind::New),
        count(Kind::Gone),
        changes.num_same,
    );
    if changes.num_unclear > 0 {
        let _ = write!(text, ", {} of too few rounds to tell", changes.num_unclear);
    }
    text.push_str(".\n");
    if changes.changes.is_empty() {
        return text;
    }
    let mut rows = vec![row([
        "",
        "case",
        "metric",
        "ours, peer",
        "unit",
        "before",
        "now",
    ])];
    for change in &changes.changes {
        let side = |summary: Option<Summary>| summary.map_or("-".to_owned(), spread);
        let peer = change.peer.as_deref();
        rows.push(row([
            change.kind.word(),
            &catalog::point(&change.case, change.x),
            &change.metric,
            &peer.map_or(change.ours.clone(), |peer| {
                format!("{}, {peer}", change.ours)
            }),
            &change.unit,
            &side(change.old),
            &side(change.new),
        ]));
    }
    let _ = write!(text, "\n{}", table(&rows));
    text
}

#[cfg(test)]
mod tests {
    use super::super::compare::compare;
    use super::super::samples::{results, series};
    use super::super::{Better, Results, Role};
    use super::*;

    #[test]
    fn numbers_have_as_many_digits_as_they_are_worth() {
        let numbers = [0.0, 12345.6, 100.0, 52.5, 1.23456, 0.5, 0.000012];

        assert_eq!(
            numbers.map(number),
            ["0", "12346", "100", "52.5", "1.235", "0.5", "1.20e-5"]
        );
    }

    #[test]
    fn report_has_ratios_and_what_has_none() {
        let mut results = results(&[10.0, 10.0], &[20.0, 20.0]);
        let unknown = series("cat", Role::Unknown, Better::Unknown, &[3.0]);
        results.series.push(Series {
            case: "nap\x1b[2J".into(),
            unit: String::new(),
            ..unknown
        });
        results.note_unknown("net.json: case `nap`".into());

        let text = report(&Document::new(results, None));

        assert!(
            text.contains("ours 10  them 20  2.00 (2.00 to 2.00)  won"),
            "{text}"
        );
        assert!(text.contains("3 (3 to 3)"), "{text}");
        assert!(text.contains("not known, 1 times: net.json"), "{text}");
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn changes_are_counted_and_listed() {
        let old = results(&[10.0, 10.0], &[20.0, 20.0]);
        let new = results(&[10.0, 10.0], &[15.0, 15.0]);

        let text = changes(&compare(&old, &new));
        assert!(text.contains("1 worse, 0 better"), "{text}");
        assert!(text.contains("2 (2 to 2)") && text.contains("1.5 (1.5 to 1.5)"));

        let same = changes(&compare(&old, &old));
        assert!(same.contains("1 the same within noise"), "{same}");
        let nothing = changes(&compare(&Results::default(), &old));
        assert!(nothing.contains("1 new"), "{nothing}");
    }
}
