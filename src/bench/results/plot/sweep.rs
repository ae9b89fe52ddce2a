//! A metric over the points of a sweep: a line through the medians of each peer, with their quartiles.

use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::combinators::IntoLogRange;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::IntoDrawingArea;
use plotters::element::{Circle, PathElement, Text};
use plotters::prelude::SVGBackend;
use plotters::style::text_anchor::HPos;
use plotters::style::{Color, RGBColor, ShapeStyle, TRANSPARENT};

use super::super::catalog::Axis;
use super::super::text::number;
use super::super::{Better, Series, Summary};
use super::{
    Area, Failure, GRID, LEGEND, LETTERS, MOST, color_of, ink, legend, legend_places, letters,
    num_letters, stroke,
};

/// Pixels: of a picture without its legend, and of its edges.
const WIDTH: u32 = 450;
const HEIGHT: u32 = 250;
const LEFT: u32 = 72;
const RIGHT: u32 = 18;
const TITLE: u32 = 26;
const AXIS: u32 = 46;

/// One peer, its points from left to right.
struct Line<'a> {
    peer: &'a str,
    color: RGBColor,
    points: Vec<(f64, Summary)>,
}

/// A picture of `series`, which are of one case and metric; `None` without a point on the axis.
///
/// # Errors
/// What `plotters` says.
pub(in super::super) fn lines(series: &[&Series], axis: &Axis) -> Result<Option<String>, Failure> {
    let lines = by_peer(series, axis);
    let Some(first) = series.first().filter(|_| !lines.is_empty()) else {
        return Ok(None);
    };
    let better = match first.better {
        Better::Less => ", less is better",
        Better::More => ", more is better",
        Better::Neither | Better::Unknown => "",
    };
    let unit = match first.unit.is_empty() {
        true => String::new(),
        false => format!(", {}", first.unit),
    };
    let title = format!("{}{unit}{better}", first.metric);
    let mut svg = String::new();
    draw(&mut svg, &lines, axis, title)?;
    Ok(Some(svg))
}

fn by_peer<'a>(series: &[&'a Series], axis: &Axis) -> Vec<Line<'a>> {
    let mut lines: Vec<Line<'a>> = Vec::new();
    for series in series {
        let Some(x) = series.x.filter(|x| !axis.is_log || *x > 0.0) else {
            continue;
        };
        let Summary { low, median, high } = series.summary();
        let summary = Summary {
            low: low.min(MOST),
            median: median.min(MOST),
            high: high.min(MOST),
        };
        let point = (x.min(MOST), summary);
        let place = lines.len();
        match lines.iter_mut().find(|line| line.peer == series.peer) {
            Some(line) => line.points.push(point),
            None => lines.push(Line {
                peer: &series.peer,
                color: color_of(&series.peer, place),
                points: vec![point],
            }),
        }
    }
    for line in &mut lines {
        line.points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    }
    lines
}

fn draw(svg: &mut String, lines: &[Line<'_>], axis: &Axis, title: String) -> Result<(), Failure> {
    let names: Vec<&str> = lines.iter().map(|line| line.peer).collect();
    let (_, num_lines) = legend_places(&names, WIDTH - LEFT);
    let top = TITLE + num_lines * LEGEND;
    let area = SVGBackend::with_string(svg, (WIDTH, HEIGHT + top)).into_drawing_area();
    let (left, right) = (LEFT.cast_signed(), WIDTH.cast_signed() / 2);
    let middle = (right, TITLE.cast_signed() / 2);
    area.draw(&Text::new(title, middle, letters(HPos::Center, LETTERS)))?;
    let parts: Vec<(&str, RGBColor)> = lines.iter().map(|line| (line.peer, line.color)).collect();
    legend(&area, (left, TITLE.cast_signed()), WIDTH - LEFT, &parts)?;

    let points = || lines.iter().flat_map(|line| &line.points);
    let most = points().map(|(_, summary)| summary.high);
    let most = most.fold(0.0, f64::max).max(1e-9) * 1.08;
    let xs = || points().map(|(x, _)| *x);
    let (first, last) = (xs().fold(f64::MAX, f64::min), xs().fold(0.0, f64::max));
    let mut builder = ChartBuilder::on(&area);
    builder
        .margin_top(top)
        .margin_right(RIGHT)
        .margin_bottom(AXIS)
        .y_label_area_size(LEFT);
    match axis.is_log {
        true => {
            let range = (first / 1.15..last * 1.15).log_scale();
            on_axes(
                &area,
                builder.build_cartesian_2d(range, 0.0..most)?,
                lines,
                axis,
            )
        }
        false => {
            let last = last.max(1e-9) * 1.05;
            on_axes(
                &area,
                builder.build_cartesian_2d(0.0..last, 0.0..most)?,
                lines,
                axis,
            )
        }
    }?;
    area.present()
}

type Chart<'a, 'b, X> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, RangedCoordf64>>;

fn on_axes<X>(
    area: &Area<'_>,
    mut chart: Chart<'_, '_, X>,
    lines: &[Line<'_>],
    axis: &Axis,
) -> Result<(), Failure>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let grid = GRID.mix(0.35);
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_labels(5)
        .y_label_formatter(&|y| number(*y))
        .y_label_style(letters(HPos::Right, LETTERS - 2))
        .light_line_style(TRANSPARENT)
        .bold_line_style(grid)
        .axis_style(ink(1))
        .draw()?;
    for line in lines {
        let style = ShapeStyle::from(&line.color).stroke_width(2);
        let medians: Vec<(f64, f64)> = line
            .points
            .iter()
            .map(|(x, summary)| (*x, summary.median))
            .collect();
        let spreads = line.points.iter().map(|(x, summary)| {
            let ends = vec![(*x, summary.low), (*x, summary.high)];
            PathElement::new(ends, ShapeStyle::from(&line.color.mix(0.6)).stroke_width(4))
        });
        chart.draw_series(spreads)?;
        let dots = medians
            .iter()
            .map(|point| Circle::new(*point, 3, line.color.filled()));
        chart.draw_series(dots)?;
        chart.draw_series([PathElement::new(medians.clone(), style)])?;
    }
    let mut points: Vec<f64> = lines
        .iter()
        .flat_map(|line| line.points.iter().map(|(x, _)| *x))
        .collect();
    points.sort_by(f64::total_cmp);
    points.dedup();
    let mut free_from = i32::MIN;
    let mut bottom = 0;
    for x in points {
        let label = number(x);
        let (pixel, y) = chart.backend_coord(&(x, 0.0));
        bottom = y;
        stroke(area, (pixel, y), (pixel, y + 4), ink(1))?;
        let half = (num_letters(&label) * 4).cast_signed();
        // No label over another one.
        if pixel - half < free_from {
            continue;
        }
        free_from = pixel + half + 6;
        area.draw(&Text::new(
            label,
            (pixel, y + 12),
            letters(HPos::Center, LETTERS - 2),
        ))?;
    }
    let middle = (LEFT + (WIDTH - LEFT - RIGHT) / 2).cast_signed();
    area.draw(&Text::new(
        axis.title,
        (middle, bottom + 32),
        letters(HPos::Center, LETTERS - 1),
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::catalog::axis;
    use super::super::super::samples::series;
    use super::super::super::{Better, Role};
    use super::*;

    fn at(peer: &str, x: f64, values: &[f64]) -> Series {
        Series {
            x: Some(x),
            metric: "pps".into(),
            unit: "packets/s".into(),
            ..series(peer, Role::Peer, Better::More, values)
        }
    }

    fn draw(case: &str, series: &[Series]) -> Option<String> {
        lines(&series.iter().collect::<Vec<_>>(), &axis(case)).unwrap()
    }

    /// Left edges of the dots.
    fn dots(svg: &str) -> Vec<i32> {
        let circles = svg
            .lines()
            .filter_map(|line| line.strip_prefix("<circle cx=\""));
        let x = circles.map(|circle| circle.split('"').next().unwrap().parse().unwrap());
        x.collect()
    }

    #[test]
    fn each_peer_has_a_line_and_each_point_a_dot() {
        let svg = draw(
            "load",
            &[
                at("venet", 10.0, &[1.0, 2.0]),
                at("venet", 100.0, &[3.0]),
                at("venet", 50.0, &[2.0]),
                at("qemu", 10.0, &[1.0]),
                at("qemu", 100.0, &[2.0]),
            ],
        )
        .unwrap();

        assert_eq!(svg.matches("<circle").count(), 5, "{svg}");
        let line = |color: &str| format!("opacity=\"1\" stroke=\"{color}\" stroke-width=\"2\"");
        for color in ["#3A86D6", "#2EA064"] {
            assert_eq!(svg.matches(&line(color)).count(), 1, "{color}: {svg}");
        }
        assert!(svg.contains("pps, packets/s, more is better"));
        assert!(svg.contains("load, % of the most"));
        // From left to right, whatever the order of the file.
        let dots = dots(&svg);
        assert!(dots[0] < dots[1] && dots[1] < dots[2], "{dots:?}");
    }

    #[test]
    fn bytes_are_in_factors() {
        let points = |factor: f64| [1.0, factor, factor * factor].map(|x| at("venet", x, &[1.0]));
        let log = dots(&draw("size-udp-out", &points(8.0)).unwrap());
        let linear = dots(&draw("queues", &points(8.0)).unwrap());

        assert!((log[2] - log[1] - (log[1] - log[0])).abs() <= 1, "{log:?}");
        assert!(linear[2] - linear[1] > 5 * (linear[1] - linear[0]));
    }

    #[test]
    fn nothing_is_drawn_without_a_point_on_the_axis() {
        assert_eq!(draw("load", &[]), None);
        assert_eq!(draw("size-out", &[at("venet", 0.0, &[1.0])]), None);
        assert!(draw("load", &[at("venet", 0.0, &[0.0])]).is_some());
    }

    #[test]
    fn names_are_escaped() {
        let svg = draw("load", &[at("<b>&\"", 1.0, &[1.0])]).unwrap();

        assert!(svg.contains("&lt;b&gt;&amp;&quot;") && !svg.contains("<b>"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn any_values_can_be_drawn(
            points in prop::collection::vec((0.0..f64::MAX, 0.0..f64::MAX), 1..6),
            exponent in -300i32..300,
        ) {
            let scale = f64::from(exponent).exp2();
            let series: Vec<Series> = points.iter().map(|(x, y)| at("a", x * scale, &[y * scale])).collect();
            prop_assert!(draw("load", &series).is_some());
            draw("size-out", &series);
        }
    }
}
