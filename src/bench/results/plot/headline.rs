//! A few ratios of everything in one picture, 800 pixels wide, with their goals.

use plotters::chart::ChartBuilder;
use plotters::coord::combinators::IntoLogRange;
use plotters::drawing::IntoDrawingArea;
use plotters::element::{PathElement, Rectangle, Text};
use plotters::prelude::SVGBackend;
use plotters::style::text_anchor::HPos;
use plotters::style::{Color, RGBColor};

use super::super::text::number;
use super::super::verdict::{Outcome, Verdict};
use super::super::{Summary, catalog, goals};
use super::bars::{range, shown};
use super::{Failure, GRID, LETTERS, color_of_verdict, ink, legend, letters, stroke, ticks};

/// Pixels: of the picture; of what stands left of the bars (subjects, then peers) and right of them; of a row,
/// the gap between two subjects, the head and the axis.
const WIDTH: u32 = 800;
const LEFT: u32 = 400;
const RIGHT: u32 = 88;
const ROW: u32 = 17;
const GAP: u32 = 7;
const HEAD: u32 = 34;
const AXIS: u32 = 42;
/// Height of letters.
const SMALL: u32 = LETTERS - 2;

/// One subject: its title, what was measured, and a bar for each peer.
struct Group<'a> {
    what: &'static str,
    metric: String,
    bars: Vec<(&'a Outcome, Summary)>,
}

impl Group<'_> {
    /// Its title has two lines, so it takes two even if there is one bar.
    fn num_rows(&self) -> u32 {
        u32::try_from(self.bars.len()).unwrap_or(1).max(2)
    }
}

/// A picture of what `outcomes` say about the goals; `None` if there is nothing.
///
/// # Errors
/// What `plotters` says.
pub(in super::super) fn picture(outcomes: &[Outcome]) -> Result<Option<String>, Failure> {
    let mut groups = Vec::new();
    for (what, outcomes) in goals::headline(outcomes) {
        let Some(first) = outcomes.first() else {
            continue;
        };
        let metric = match (first.metric.as_str(), first.x) {
            ("cpu_us_per_packet", _) => "processor time for a packet".to_owned(),
            ("exits_per_1000", Some(x)) => format!("exits at {} % load", number(x)),
            (_, Some(_)) => format!("{}, {}", first.unit, first.point()),
            (_, None) => first.unit.clone(),
        };
        let ratio = |outcome: &'_ &Outcome| outcome.ratio;
        let bars = outcomes
            .iter()
            .filter_map(|outcome| Some((*outcome, ratio(outcome)?)))
            .collect();
        groups.push(Group { what, metric, bars });
    }
    if groups.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    draw(&mut svg, &groups)?;
    Ok(Some(svg))
}

fn draw(svg: &mut String, groups: &[Group<'_>]) -> Result<(), Failure> {
    let rows: u32 = groups
        .iter()
        .map(|group| group.num_rows() * ROW + GAP)
        .sum();
    let area = SVGBackend::with_string(svg, (WIDTH, HEAD + rows + AXIS)).into_drawing_area();
    let bars: Vec<_> = groups
        .iter()
        .flat_map(|group| group.bars.iter().copied())
        .collect();
    let (least, most) = range(&bars);
    // A unit of the vertical axis is a pixel.
    let end = f64::from(rows);
    let mut chart = ChartBuilder::on(&area)
        .margin_top(HEAD)
        .margin_left(LEFT)
        .margin_right(RIGHT)
        .margin_bottom(AXIS)
        .build_cartesian_2d((least..most).log_scale(), 0.0..end)?;
    head(&area)?;
    let text = |x: u32, y: i32, text: &str, place| {
        area.draw(&Text::new(
            text.to_owned(),
            (x.cast_signed(), y),
            letters(place, SMALL),
        ))
    };
    let (_, bottom) = chart.backend_coord(&(1.0, 0.0));
    let top = HEAD.cast_signed();
    for tick in ticks(least, most) {
        let (x, _) = chart.backend_coord(&(tick, 0.0));
        stroke(&area, (x, top), (x, bottom), GRID.mix(0.3).stroke_width(1))?;
        text(x.cast_unsigned(), bottom + 11, &number(tick), HPos::Center)?;
    }
    let mut above = 0;
    for group in groups {
        let middle_of = |row: u32| end - f64::from(above + row * ROW) - f64::from(ROW) / 2.0;
        let (_, first) = chart.backend_coord(&(1.0, middle_of(0)));
        text(10, first, group.what, HPos::Left)?;
        text(10, first + ROW.cast_signed(), &group.metric, HPos::Left)?;
        for ((outcome, ratio), row) in group.bars.iter().zip(0u32..) {
            let middle = middle_of(row);
            let (one, pixel) = chart.backend_coord(&(1.0, middle));
            text(LEFT - 8, pixel, catalog::title(&outcome.peer), HPos::Right)?;
            let corners = [(1.0, middle - 6.0), (shown(ratio.median), middle + 6.0)];
            let fill = color_of_verdict(outcome.verdict).filled();
            chart.draw_series([Rectangle::new(corners, fill)])?;
            let ends = vec![(shown(ratio.low), middle), (shown(ratio.high), middle)];
            chart.draw_series([PathElement::new(ends, ink(1))])?;
            if let Some(goal) = outcome.goal {
                let (x, _) = chart.backend_coord(&(shown(goal.ratio), middle));
                stroke(&area, (x, pixel - 7), (x, pixel + 7), ink(3))?;
            }
            stroke(&area, (one, pixel - 8), (one, pixel + 8), ink(1))?;
            let verdict = format!("{:.2}, {}", ratio.median, outcome.verdict.word());
            text(WIDTH - RIGHT + 8, pixel, &verdict, HPos::Left)?;
        }
        above += group.num_rows() * ROW + GAP;
    }
    let words =
        "times better than the peer, median of the rounds; thick mark: goal; thin line: quartiles";
    text(WIDTH / 2, bottom + 30, words, HPos::Center)?;
    area.present()?;
    drop(chart);
    drop(area);
    Ok(())
}

fn head(area: &super::Area<'_>) -> Result<(), Failure> {
    area.draw(&Text::new(
        "alacrity beside each peer",
        (10, 15),
        letters(HPos::Left, LETTERS + 1),
    ))?;
    let verdicts = [Verdict::Won, Verdict::Tied, Verdict::Lost];
    let parts: Vec<(&str, RGBColor)> = verdicts
        .into_iter()
        .map(|verdict| (verdict.word(), color_of_verdict(verdict)))
        .collect();
    legend(area, (LEFT.cast_signed(), 5), WIDTH - LEFT, &parts)
}

#[cfg(test)]
mod tests {
    use super::super::super::samples::series;
    use super::super::super::verdict::outcomes;
    use super::super::super::{Better, Results, Role, Series};
    use super::super::alone;
    use super::*;

    fn of(peer: &str, case: &str, x: Option<f64>, metric: &str, values: [f64; 2]) -> Series {
        let role = match peer {
            "venet" | "switch" => Role::Ours,
            _ => Role::Peer,
        };
        Series {
            case: case.into(),
            x,
            metric: metric.into(),
            ..series(peer, role, Better::Less, &values)
        }
    }

    fn results() -> Results {
        let mut series = Vec::new();
        for (peer, value) in [("venet", 100.0), ("qemu-vhost", 120.0), ("qemu", 125.0)] {
            let values = [value, value + 1.0];
            series.push(of(peer, "udp-out", None, "cpu_us_per_packet", values));
            series.push(of(
                peer,
                "udp-out",
                None,
                "insns_per_packet",
                [value * 2.0; 2],
            ));
            series.push(of(peer, "load", Some(10.0), "exits_per_1000", [value; 2]));
            series.push(of(
                peer,
                "load",
                Some(100.0),
                "exits_per_1000",
                [value * 3.0; 2],
            ));
            series.push(of(peer, "size-out", Some(64.0), "insns_per_packet", values));
        }
        Results {
            series,
            ..Results::default()
        }
    }

    #[test]
    fn each_subject_has_its_metric_that_says_most_and_its_last_point() {
        let outcomes = outcomes(&results());

        let headline: Vec<_> = goals::headline(&outcomes)
            .into_iter()
            .map(|(what, bars)| {
                let bars = bars
                    .iter()
                    .map(|bar| (bar.metric.as_str(), bar.x, bar.peer.as_str()));
                (what, bars.collect::<Vec<_>>())
            })
            .collect();

        assert_eq!(
            headline,
            [
                (
                    "UDP of 64 bytes, guest to host",
                    vec![
                        ("insns_per_packet", None, "qemu-vhost"),
                        ("insns_per_packet", None, "qemu")
                    ]
                ),
                (
                    "exits and interrupts for a packet",
                    vec![
                        ("exits_per_1000", Some(100.0), "qemu-vhost"),
                        ("exits_per_1000", Some(100.0), "qemu")
                    ]
                ),
            ]
        );
    }

    #[test]
    fn each_bar_has_a_goal_and_the_picture_is_800_wide() {
        let svg = picture(&outcomes(&results())).unwrap().unwrap();

        assert!(svg.starts_with("<svg width=\"800\""));
        assert_eq!(svg.matches("stroke-width=\"3\"").count(), 4, "{svg}");
        assert_eq!(svg.matches("1.20, won").count(), 2, "{svg}");
        assert!(svg.contains("QEMU, vhost-net"));
        let alone = alone(&svg);
        assert!(alone.contains("xmlns=") && alone.contains("class=\"ground\""));
        assert!(!alone.contains("=\"#000000\""));
    }

    #[test]
    fn there_is_no_picture_of_nothing() {
        assert_eq!(picture(&[]).unwrap(), None);
    }
}
