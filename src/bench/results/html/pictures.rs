//! The pictures of the page, each with a heading and words for those who do not see it.

use std::fmt::Write;

use super::super::super::over_time::{self, Panel};
use super::super::document::Document;
use super::super::verdict::Outcome;
use super::super::{Series, catalog, plot};
use super::escape;

/// An SVG, described by `label`.
fn add(page: &mut String, label: &str, svg: &str) {
    let _ = writeln!(
        page,
        "<div class=\"wide\" role=\"img\" aria-label=\"{}\">{}</div>",
        escape(label),
        plot::in_page(svg)
    );
}

/// A few ratios of everything.
pub(super) fn headline(page: &mut String, document: &Document) -> Result<(), String> {
    let svg = plot::headline::picture(&document.outcomes).map_err(|error| error.to_string())?;
    if let Some(svg) = svg {
        add(page, "Ratios and their goals, as in the tables", &svg);
    }
    Ok(())
}

/// Bars of all ratios that are not of a sweep, a picture for each case.
pub(super) fn ratios(page: &mut String, document: &Document) -> Result<(), String> {
    let outcomes: Vec<&Outcome> = document
        .outcomes
        .iter()
        .filter(|outcome| outcome.x.is_none())
        .collect();
    for group in distinct(outcomes.iter().map(|outcome| plot::bars::group(outcome))) {
        let of_group: Vec<&Outcome> = outcomes
            .iter()
            .filter(|outcome| plot::bars::group(outcome) == group)
            .copied()
            .collect();
        let svg = plot::bars::ratios(&of_group).map_err(|error| error.to_string())?;
        if let Some(svg) = svg {
            let _ = writeln!(page, "<h3>{}</h3>", escape(group));
            add(page, &format!("Ratios of {group}, as in the table"), &svg);
        }
    }
    Ok(())
}

/// Lines of all that is judged over the points of sweeps.
pub(super) fn sweeps(page: &mut String, document: &Document) -> Result<(), String> {
    let series: Vec<&Series> = document
        .results
        .series
        .iter()
        .filter(|series| series.x.is_some() && series.better.is_judged() && !series.is_control)
        .filter(|series| !series.rounds.is_empty())
        .collect();
    if series.is_empty() {
        return Ok(());
    }
    page.push_str("<h2>Sweeps</h2>\n<p>Medians of the rounds; thick strokes are quartiles.</p>\n");
    let cases = distinct(series.iter().map(|series| (&series.source, &series.case)));
    for (source, case) in cases {
        let _ = writeln!(page, "<h3>{}</h3>\n<div class=\"sweep\">", escape(case));
        let of_case: Vec<&Series> = series
            .iter()
            .filter(|series| (&series.source, &series.case) == (source, case))
            .copied()
            .collect();
        for metric in distinct(of_case.iter().map(|series| &series.metric)) {
            let of_metric: Vec<&Series> = of_case
                .iter()
                .filter(|series| series.metric == *metric)
                .copied()
                .collect();
            let svg = plot::sweep::lines(&of_metric, &catalog::axis(case))
                .map_err(|error| error.to_string())?;
            if let Some(svg) = svg {
                add(page, &format!("{metric} of {case}, as in the table"), &svg);
            }
        }
        page.push_str("</div>\n");
    }
    Ok(())
}

/// What exits and the like consist of, a picture for each case.
pub(super) fn parts(page: &mut String, document: &Document) -> Result<(), String> {
    for family in &catalog::FAMILIES {
        let is_part = |series: &&Series| {
            !series.is_control
                && catalog::family(&series.metric).is_some_and(|(known, _)| known == family)
        };
        let series = &document.results.series;
        let of_family = series.iter().filter(is_part);
        let cases = distinct(of_family.map(|series| (&series.source, &series.case)));
        if cases.is_empty() {
            continue;
        }
        let _ = write!(
            page,
            "<h2>{}</h2>\n<p>Medians of the rounds. The number behind a bar is <code>{}</code> if it was counted \
             by itself, else the sum of the parts.</p>\n",
            family.title, family.total
        );
        for (source, case) in cases {
            let of_case: Vec<&Series> = series
                .iter()
                .filter(|series| (&series.source, &series.case) == (source, case))
                .filter(|series| !series.is_control)
                .collect();
            let svg = plot::stack::stacks(&of_case, family).map_err(|error| error.to_string())?;
            if let Some(svg) = svg {
                let _ = writeln!(page, "<h3>{}</h3>", escape(case));
                add(
                    page,
                    &format!("{} of {case}, as in the table", family.title),
                    &svg,
                );
            }
        }
    }
    Ok(())
}

/// Memory of guests that run at once.
pub(super) fn over_time(page: &mut String, panels: Option<&[Panel]>) -> Result<(), String> {
    let Some(panels) = panels else {
        return Ok(());
    };
    let svg = over_time::svg(panels, None).map_err(|error| error.to_string())?;
    page.push_str(
        "<h2>Memory of guests over time</h2>\n<p>An area for each guest, drawn from <code>guests.tsv</code>.</p>\n",
    );
    add(page, "Memory of guests over time", &svg);
    Ok(())
}

/// Each of `all` once, in the order in which it comes first.
fn distinct<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut distinct = Vec::new();
    for one in all {
        if !distinct.contains(&one) {
            distinct.push(one);
        }
    }
    distinct
}

#[cfg(test)]
mod tests {
    use super::super::super::samples::series;
    use super::super::super::{Better, Results, Role};
    use super::*;

    fn of(peer: &str, x: f64, metric: &str, better: Better) -> Series {
        let role = match peer {
            "venet" => Role::Ours,
            _ => Role::Peer,
        };
        Series {
            case: "load".into(),
            x: Some(x),
            metric: metric.into(),
            ..series(peer, role, better, &[1.0, 2.0])
        }
    }

    fn page() -> String {
        let mut all = Vec::new();
        for peer in ["venet", "qemu"] {
            for x in [10.0, 100.0] {
                all.push(of(peer, x, "pps", Better::More));
                all.push(of(peer, x, "p50_ns", Better::Less));
                all.push(of(peer, x, "exits.halt", Better::Neither));
            }
        }
        let results = Results {
            series: all,
            ..Results::default()
        };
        let document = Document::new(results, None);
        super::super::page(&document, "{}", None).unwrap()
    }

    #[test]
    fn sweeps_have_a_picture_for_each_metric_and_no_bars() {
        let page = page();

        assert_eq!(page.matches("aria-label=\"pps of load").count(), 1);
        assert_eq!(page.matches("aria-label=\"p50_ns of load").count(), 1);
        assert!(!page.contains("aria-label=\"Ratios of load"));
        assert!(page.contains("Points of sweeps: 4 ratios"));
        assert!(page.contains("and of the points of sweeps won 0, tied 4 and lost 0"));
    }

    #[test]
    fn parts_have_one_picture_for_each_case() {
        let page = page();

        assert_eq!(page.matches("aria-label=\"Exits by reason").count(), 1);
        assert!(!page.contains("Instructions by where"));
        assert!(!page.contains("http:"));
    }

    #[test]
    fn distinct_keeps_the_order() {
        assert_eq!(distinct([3, 1, 3, 2, 1].into_iter()), [3, 1, 2]);
    }
}
