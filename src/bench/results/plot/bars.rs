//! Bars of the ratios of a case, with their spread and their goals.

use plotters::chart::ChartBuilder;
use plotters::coord::combinators::IntoLogRange;
use plotters::drawing::IntoDrawingArea;
use plotters::element::{PathElement, Rectangle, Text};
use plotters::prelude::SVGBackend;
use plotters::style::Color;
use plotters::style::text_anchor::HPos;

use super::super::Summary;
use super::super::text::number;
use super::super::verdict::Outcome;
use super::{BAR, Failure, LETTERS, color_of_verdict, ink, letters, stroke, ticks, width};

/// Pixels: of the bars, of the verdicts at their right, and of the axis.
const BARS: u32 = 440;
const VERDICTS: u32 = 110;
const AXIS: u32 = 40;
/// Ratios further away are drawn at the edge.
pub(super) const MOST: f64 = 1e6;

/// A picture of those of `outcomes` that have a ratio; `None` if none has.
///
/// # Errors
/// What `plotters` says.
pub(in super::super) fn ratios(outcomes: &[&Outcome]) -> Result<Option<String>, Failure> {
    let bars: Vec<(&Outcome, Summary)> = outcomes
        .iter()
        .filter_map(|outcome| Some((*outcome, outcome.ratio?)))
        .collect();
    let Ok(num_bars) = u32::try_from(bars.len()) else {
        return Ok(None);
    };
    if num_bars == 0 {
        return Ok(None);
    }
    let mut svg = String::new();
    draw(&mut svg, &bars, num_bars)?;
    Ok(Some(svg))
}

/// A ratio where it is drawn.
pub(super) fn shown(ratio: f64) -> f64 {
    ratio.clamp(MOST.recip(), MOST)
}

/// From the least to the greatest of what is drawn, 1 and some room included.
pub(super) fn range(bars: &[(&Outcome, Summary)]) -> (f64, f64) {
    let (mut least, mut most) = (0.8, 1.25);
    for (outcome, ratio) in bars {
        let goal = outcome.goal.map_or(1.0, |goal| goal.ratio);
        least = f64::min(least, shown(ratio.low.min(goal)));
        most = f64::max(most, shown(ratio.high.max(goal)));
    }
    (least / 1.05, most * 1.05)
}

fn draw(svg: &mut String, bars: &[(&Outcome, Summary)], num_bars: u32) -> Result<(), Failure> {
    let height = num_bars.saturating_mul(BAR).saturating_add(AXIS + 8);
    let texts: Vec<String> = bars.iter().map(|(outcome, _)| name(outcome)).collect();
    let names = width(texts.iter().map(String::as_str)).max(120) + 12;
    let area = SVGBackend::with_string(svg, (names + BARS + VERDICTS, height)).into_drawing_area();
    let end = f64::from(num_bars);
    let (least, most) = range(bars);
    let mut chart = ChartBuilder::on(&area)
        .margin_top(4)
        .margin_left(names)
        .margin_right(VERDICTS)
        .margin_bottom(AXIS)
        .build_cartesian_2d((least..most).log_scale(), 0.0..end)?;
    for (((outcome, ratio), name), idx) in bars.iter().zip(texts).zip(0u32..) {
        // The first is on top.
        let middle = end - f64::from(idx) - 0.5;
        let corners = [(1.0, middle - 0.3), (shown(ratio.median), middle + 0.3)];
        let fill = color_of_verdict(outcome.verdict).filled();
        chart.draw_series([Rectangle::new(corners, fill)])?;
        let (low, high) = (shown(ratio.low), shown(ratio.high));
        let lines = [
            [(low, middle), (high, middle)],
            [(low, middle - 0.15), (low, middle + 0.15)],
            [(high, middle - 0.15), (high, middle + 0.15)],
        ];
        chart.draw_series(lines.map(|line| PathElement::new(line.to_vec(), ink(1))))?;
        let (_, pixel) = chart.backend_coord(&(1.0, middle));
        area.draw(&Text::new(
            name,
            (names.cast_signed() - 8, pixel),
            letters(HPos::Right, LETTERS),
        ))?;
        let word = match outcome.is_control {
            true => "control",
            false => outcome.verdict.word(),
        };
        let verdict = format!("{:.2}, {word}", ratio.median);
        let right = (names + BARS).cast_signed() + 8;
        area.draw(&Text::new(
            verdict,
            (right, pixel),
            letters(HPos::Left, LETTERS),
        ))?;
        if let Some(goal) = outcome.goal {
            let (x, _) = chart.backend_coord(&(shown(goal.ratio), middle));
            stroke(&area, (x, pixel - 11), (x, pixel + 11), ink(3))?;
        }
    }
    chart.draw_series([PathElement::new(vec![(1.0, 0.0), (1.0, end)], ink(1))])?;
    let axis = vec![(least, 0.0), (most, 0.0)];
    chart.draw_series([PathElement::new(axis, ink(1))])?;
    for tick in ticks(least, most) {
        let (x, y) = chart.backend_coord(&(tick, 0.0));
        stroke(&area, (x, y), (x, y + 4), ink(1))?;
        area.draw(&Text::new(
            number(tick),
            (x, y + 11),
            letters(HPos::Center, LETTERS),
        ))?;
    }
    let (_, y) = chart.backend_coord(&(1.0, 0.0));
    let has_goal = bars.iter().any(|(outcome, _)| outcome.goal.is_some());
    let description = match has_goal {
        true => "ratio: above 1 ours is better; the thick mark is the goal",
        false => "ratio: above 1 ours is better",
    };
    area.draw(&Text::new(
        description,
        (names.cast_signed(), y + 27),
        letters(HPos::Left, LETTERS),
    ))?;
    area.present()?;
    drop(chart);
    drop(area);
    Ok(())
}

/// The pictures that there shall be: cases of one benchmark are in one.
pub(in super::super) fn group(outcome: &Outcome) -> &str {
    let benchmark = outcome.case.split_once(": ");
    benchmark.map_or(&outcome.case, |(benchmark, _)| benchmark)
}

/// What a bar is within its group.
fn name(outcome: &Outcome) -> String {
    let case = outcome.case.split_once(": ");
    let case = case.map_or_else(String::new, |(_, case)| format!("{case}, "));
    let Outcome {
        metric, ours, peer, ..
    } = outcome;
    format!("{case}{metric}, {ours} beside {peer}")
}

#[cfg(test)]
mod tests {
    use super::super::super::samples::results;
    use super::super::super::verdict::outcomes;
    use super::*;

    #[test]
    fn each_ratio_has_a_bar_in_the_colour_of_its_verdict() {
        let won = outcomes(&results(&[10.0, 10.0], &[20.0, 21.0]));
        let lost = outcomes(&results(&[20.0, 21.0], &[10.0, 10.0]));
        let all: Vec<_> = won.iter().chain(&lost).collect();

        let svg = ratios(&all).unwrap().unwrap();

        assert_eq!(svg.matches("#2E8B57").count(), 1, "{svg}");
        assert_eq!(svg.matches("#CD503C").count(), 1, "{svg}");
        assert!(
            svg.contains("2.05, won") && svg.contains("0.49, lost"),
            "{svg}"
        );
        assert!(!svg.contains("the goal"));
    }

    #[test]
    fn goal_is_a_mark_that_is_on_the_axis() {
        let mut results = results(&[10.0, 10.0], &[10.5, 10.5]);
        for series in &mut results.series {
            series.case = "rr".into();
            series.metric = "p50_ns".into();
        }
        results.series[1].peer = "qemu".into();

        let outcomes = outcomes(&results);
        let svg = ratios(&outcomes.iter().collect::<Vec<_>>())
            .unwrap()
            .unwrap();

        assert!(svg.contains("the thick mark is the goal"), "{svg}");
        assert_eq!(svg.matches("stroke-width=\"3\"").count(), 1, "{svg}");
        let (_, most) = range(&[(&outcomes[0], outcomes[0].ratio.unwrap())]);
        assert!(most > 1.35, "{most}");
    }

    #[test]
    fn cases_of_a_benchmark_are_in_one_picture() {
        let mut outcome = outcomes(&results(&[10.0], &[20.0])).remove(0);
        assert_eq!(
            (group(&outcome), name(&outcome).as_str()),
            ("out", "x, ours beside them")
        );

        outcome.case = "ring: batch 1".into();
        assert_eq!(group(&outcome), "ring");
        assert_eq!(name(&outcome), "batch 1, x, ours beside them");
    }

    #[test]
    fn extreme_ratios_are_drawn_and_missing_ones_left_out() {
        let extreme = outcomes(&results(&[1e-100, 1e-100], &[1.0, 1e100]));
        assert!(
            ratios(&extreme.iter().collect::<Vec<_>>())
                .unwrap()
                .is_some()
        );

        let zero = outcomes(&results(&[0.0, 0.0], &[1.0, 1.0]));
        assert!(ratios(&zero.iter().collect::<Vec<_>>()).unwrap().is_none());
    }

    #[test]
    fn names_are_escaped() {
        let mut results = results(&[10.0, 10.0], &[20.0, 21.0]);
        results.series[1].peer = "<b>&".into();

        let outcomes = outcomes(&results);
        let svg = ratios(&outcomes.iter().collect::<Vec<_>>())
            .unwrap()
            .unwrap();

        assert!(svg.contains("&lt;b&gt;&amp;") && !svg.contains("<b>"));
    }
}
