//! Tables for a terminal.

use std::fmt::Write;

use super::compare::{Changes, Kind};
use super::document::Document;
use super::verdict::Outcome;
use super::{Series, Summary};

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

/// What has no ratio: nothing to compare it with, or not known how.
pub(super) fn alone(document: &Document) -> Vec<&Series> {
    let has_ratio = |series: &Series| {
        document.outcomes.iter().any(|outcome| {
            (&outcome.case, &outcome.metric) == (&series.case, &series.metric)
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

/// Ratios, what has none, and what is not known.
pub(super) fn report(document: &Document) -> String {
    let head = [
        "case",
        "metric",
        "ours",
        "peer",
        "ratio (quartiles)",
        "verdict",
    ];
    let mut ratios = vec![row(head)];
    for outcome in &document.outcomes {
        let side = |name: &str, values: Summary| format!("{name} {}", number(values.median));
        ratios.push(row([
            &outcome.case,
            &format!("{}, {}", outcome.metric, outcome.unit),
            &side(&outcome.ours, outcome.our_values),
            &side(&outcome.peer, outcome.peer_values),
            &ratio(outcome.ratio),
            &verdict(outcome),
        ]));
    }
    let mut text = "Above 1 ours is better; values are medians of the rounds.\n\n".to_owned();
    text.push_str(&table(&ratios));
    let alone = alone(document);
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
                &series.case,
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
            &change.case,
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
