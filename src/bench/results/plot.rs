//! Bars of the ratios of a case, with their spread, as SVG inside a page.
//!
//! The page's style sheet gives axes and letters the colour of its text, so that the picture is readable
//! on a dark ground as well; only bars have a colour of their own.

use plotters::chart::ChartBuilder;
use plotters::coord::combinators::IntoLogRange;
use plotters::drawing::{DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::{PathElement, Rectangle, Text};
use plotters::prelude::SVGBackend;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{BLACK, Color, IntoFont, RGBColor, ShapeStyle, TextStyle};

use super::Summary;
use super::verdict::{Outcome, Verdict};

/// Pixels: of the bars, of a letter of the names at their left, of the verdicts at their right, of a bar
/// and its gap, and of the axis.
const BARS: u32 = 440;
const LETTER: u32 = 7;
const VERDICTS: u32 = 110;
const BAR: u32 = 26;
const AXIS: u32 = 40;
/// Ratios further away are drawn at the edge.
const MOST: f64 = 1e6;

/// The colour of a verdict, readable on white and on black.
pub(super) fn color(verdict: Verdict) -> (u8, u8, u8) {
    match verdict {
        Verdict::Won => (46, 139, 87),
        Verdict::Tied => (128, 128, 128),
        Verdict::Lost => (205, 80, 60),
    }
}

type Failure = DrawingAreaErrorKind<std::io::Error>;

/// A picture of those of `outcomes` that have a ratio; `None` if none has.
///
/// # Errors
/// What `plotters` says.
pub(super) fn ratios(outcomes: &[&Outcome]) -> Result<Option<String>, Failure> {
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
    // Inside a page it needs no namespace, and with it no address.
    Ok(Some(
        svg.replace(" xmlns=\"http://www.w3.org/2000/svg\"", ""),
    ))
}

fn draw(svg: &mut String, bars: &[(&Outcome, Summary)], num_bars: u32) -> Result<(), Failure> {
    let height = num_bars.saturating_mul(BAR).saturating_add(AXIS + 8);
    let longest = bars
        .iter()
        .map(|(outcome, _)| name(outcome).chars().count());
    let longest = u32::try_from(longest.max().unwrap_or(0)).unwrap_or(u32::MAX);
    let names = (LETTER * longest.min(100)).max(120) + 12;
    let width = names + BARS + VERDICTS;
    let area = SVGBackend::with_string(svg, (width, height)).into_drawing_area();
    let shown = |value: f64| value.clamp(MOST.recip(), MOST);
    let least = bars.iter().map(|(_, ratio)| shown(ratio.low));
    let most = bars.iter().map(|(_, ratio)| shown(ratio.high));
    let (least, most) = (least.fold(0.8, f64::min), most.fold(1.25, f64::max));
    let end = f64::from(num_bars);
    let (least, most) = (least / 1.05, most * 1.05);
    let mut chart = ChartBuilder::on(&area)
        .margin_top(4)
        .margin_left(names)
        .margin_right(VERDICTS)
        .margin_bottom(AXIS)
        .build_cartesian_2d((least..most).log_scale(), 0.0..end)?;
    let ink = ShapeStyle::from(&BLACK).stroke_width(1);
    for ((outcome, ratio), idx) in bars.iter().zip(0u32..) {
        // The first is on top.
        let middle = end - f64::from(idx) - 0.5;
        let (red, green, blue) = color(outcome.verdict);
        let corners = [(1.0, middle - 0.3), (shown(ratio.median), middle + 0.3)];
        let fill = RGBColor(red, green, blue).filled();
        chart.draw_series([Rectangle::new(corners, fill)])?;
        let (low, high) = (shown(ratio.low), shown(ratio.high));
        let lines = [
            [(low, middle), (high, middle)],
            [(low, middle - 0.15), (low, middle + 0.15)],
            [(high, middle - 0.15), (high, middle + 0.15)],
        ];
        chart.draw_series(lines.map(|line| PathElement::new(line.to_vec(), ink)))?;
        let (_, pixel) = chart.backend_coord(&(1.0, middle));
        let name = name(outcome);
        area.draw(&Text::new(
            name,
            (names.cast_signed() - 8, pixel),
            letters(HPos::Right),
        ))?;
        let word = match outcome.is_control {
            true => "control",
            false => outcome.verdict.word(),
        };
        let verdict = format!("{:.2}, {word}", ratio.median);
        let right = (names + BARS).cast_signed() + 8;
        area.draw(&Text::new(verdict, (right, pixel), letters(HPos::Left)))?;
    }
    chart.draw_series([PathElement::new(vec![(1.0, 0.0), (1.0, end)], ink)])?;
    let axis = vec![(least, 0.0), (most, 0.0)];
    chart.draw_series([PathElement::new(axis, ink)])?;
    for tick in ticks(least, most) {
        let (x, y) = chart.backend_coord(&(tick, 0.0));
        area.draw(&PathElement::new(vec![(x, y), (x, y + 4)], ink))?;
        let label = super::text::number(tick);
        area.draw(&Text::new(label, (x, y + 11), letters(HPos::Center)))?;
    }
    let (x, y) = chart.backend_coord(&(1.0, 0.0));
    let description = "ratio: above 1 ours is better";
    area.draw(&Text::new(description, (x, y + 27), letters(HPos::Left)))?;
    area.present()?;
    drop(chart);
    drop(area);
    Ok(())
}

/// Round numbers from `least` to `most`, some eight at most; 1 is always one of them.
fn ticks(least: f64, most: f64) -> Vec<f64> {
    let decades = (-6..=6).map(|exponent| 10f64.powi(exponent));
    // Powers of ten are not exact.
    let in_range = |tick: &f64| (least * 0.999..=most * 1.001).contains(tick);
    let of = |steps: &[f64]| -> Vec<f64> {
        let all = decades
            .clone()
            .flat_map(|decade| steps.iter().map(move |step| step * decade));
        all.filter(in_range).collect()
    };
    let choices = [
        &[1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0][..],
        &[1.0, 2.0, 5.0],
        &[1.0],
    ];
    let fitting = choices.into_iter().map(of).find(|ticks| ticks.len() <= 8);
    fitting.unwrap_or_else(|| of(&[1.0]).into_iter().step_by(3).collect())
}

fn letters(horizontal: HPos) -> TextStyle<'static> {
    let style = TextStyle::from(("sans-serif", 15).into_font());
    style.pos(Pos::new(horizontal, VPos::Center))
}

/// The pictures that there shall be: cases of one benchmark are in one.
pub(super) fn group(outcome: &Outcome) -> &str {
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
    use super::super::samples::results;
    use super::super::verdict::outcomes;
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
        assert!(!svg.contains("http"));
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
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(0.76, 1.31), [0.8, 1.0, 1.25]);
        assert_eq!(ticks(0.5, 30.0), [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(ticks(0.9, 1e6).len(), 7);
        assert_eq!(ticks(1e-6, 1e6).len(), 5);
        assert!(ticks(1e-6, 1e6).contains(&1.0));
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
