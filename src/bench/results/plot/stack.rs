//! What a metric consists of: a bar for each peer, a part for each reason.

use plotters::chart::ChartBuilder;
use plotters::drawing::IntoDrawingArea;
use plotters::element::{PathElement, Rectangle, Text};
use plotters::prelude::SVGBackend;
use plotters::style::text_anchor::HPos;
use plotters::style::{Color, RGBColor, WHITE};

use super::super::catalog::Family;
use super::super::text::number;
use super::super::{Series, catalog};
use super::{
    BAR, Failure, LEGEND, LETTERS, MOST, color_of_reason, ink, legend, legend_places, letters,
    stroke, width,
};

/// Pixels: of the bars, of the sums at their right, and of the axis.
const BARS: u32 = 520;
const SUMS: u32 = 90;
const AXIS: u32 = 42;

/// A peer, at a point of a sweep.
struct Bar {
    name: String,
    /// By the place of the reason.
    parts: Vec<f64>,
    /// As it was measured by itself, else the sum of the parts.
    total: f64,
}

/// A picture of those of `series`, all of one case, that are parts of `family`; `None` if none is.
///
/// # Errors
/// What `plotters` says.
pub(in super::super) fn stacks(
    series: &[&Series],
    family: &'static Family,
) -> Result<Option<String>, Failure> {
    let part_of = |series: &'_ Series| {
        let (known, part) = catalog::family(&series.metric)?;
        (known == family && !series.rounds.is_empty()).then(|| part.to_owned())
    };
    let mut reasons: Vec<String> = series.iter().filter_map(|series| part_of(series)).collect();
    reasons.sort();
    reasons.dedup();
    // What has no name of its own comes last.
    reasons.sort_by_key(|reason| reason == "other");
    if reasons.is_empty() {
        return Ok(None);
    }
    let mut bars: Vec<Bar> = Vec::new();
    for part in series {
        let Some(reason) = part_of(part) else {
            continue;
        };
        let place = reasons.iter().position(|known| *known == reason);
        let name = match part.x {
            Some(x) => format!(
                "{}, {}{}",
                part.peer,
                number(x),
                catalog::axis(&part.case).unit
            ),
            None => part.peer.clone(),
        };
        let idx = bars.iter().position(|bar| bar.name == name);
        let idx = idx.unwrap_or_else(|| {
            let is_total = |total: &&&Series| {
                total.metric == family.total && total.peer == part.peer && total.x == part.x
            };
            let total = series.iter().find(is_total);
            bars.push(Bar {
                name,
                parts: vec![0.0; reasons.len()],
                total: total.map_or(0.0, |total| total.summary().median.min(MOST)),
            });
            bars.len() - 1
        });
        let value = part.summary().median.min(MOST);
        let parts = bars.get_mut(idx).map(|bar| &mut bar.parts);
        let slot = parts
            .zip(place)
            .and_then(|(parts, place)| parts.get_mut(place));
        if let Some(slot) = slot {
            *slot = value;
        }
    }
    for bar in &mut bars {
        if bar.total == 0.0 {
            bar.total = bar.parts.iter().sum();
        }
    }
    let mut svg = String::new();
    draw(&mut svg, &bars, &reasons, family)?;
    Ok(Some(svg))
}

fn draw(
    svg: &mut String,
    bars: &[Bar],
    reasons: &[String],
    family: &Family,
) -> Result<(), Failure> {
    let num_bars = u32::try_from(bars.len()).unwrap_or(1);
    let names = width(bars.iter().map(|bar| bar.name.as_str())).max(80) + 12;
    let all = names + BARS + SUMS;
    let parts: Vec<(&str, RGBColor)> = reasons
        .iter()
        .enumerate()
        .map(|(idx, reason)| (reason.as_str(), color_of_reason(reason, idx)))
        .collect();
    let labels: Vec<&str> = reasons.iter().map(String::as_str).collect();
    let (_, num_lines) = legend_places(&labels, BARS + SUMS);
    let top = num_lines * LEGEND + 6;
    let height = num_bars.saturating_mul(BAR).saturating_add(top + AXIS);
    let area = SVGBackend::with_string(svg, (all, height)).into_drawing_area();
    legend(&area, (names.cast_signed(), 0), BARS + SUMS, &parts)?;
    let sums = bars
        .iter()
        .map(|bar| bar.parts.iter().sum::<f64>().max(bar.total));
    let most = sums.fold(0.0, f64::max).max(1e-9);
    let end = f64::from(num_bars);
    let mut chart = ChartBuilder::on(&area)
        .margin_top(top)
        .margin_left(names)
        .margin_right(SUMS)
        .margin_bottom(AXIS)
        .build_cartesian_2d(0.0..most, 0.0..end)?;
    for (bar, idx) in bars.iter().zip(0u32..) {
        let middle = end - f64::from(idx) - 0.5;
        let mut from = 0.0;
        for (value, (_, color)) in bar.parts.iter().zip(&parts) {
            if *value == 0.0 {
                continue;
            }
            let corners = [(from, middle - 0.35), (from + value, middle + 0.35)];
            chart.draw_series([Rectangle::new(corners, color.filled())])?;
            // Neighbours with colours that somebody does not tell apart have an edge.
            chart.draw_series([Rectangle::new(corners, WHITE.mix(0.5).stroke_width(1))])?;
            from += value;
        }
        let (x, pixel) = chart.backend_coord(&(from.max(bar.total), middle));
        area.draw(&Text::new(
            bar.name.clone(),
            (names.cast_signed() - 8, pixel),
            letters(HPos::Right, LETTERS),
        ))?;
        area.draw(&Text::new(
            number(bar.total),
            (x + 8, pixel),
            letters(HPos::Left, LETTERS),
        ))?;
    }
    chart.draw_series([PathElement::new(vec![(0.0, 0.0), (0.0, end)], ink(1))])?;
    chart.draw_series([PathElement::new(vec![(0.0, 0.0), (most, 0.0)], ink(1))])?;
    for tick in steps(most) {
        let (x, y) = chart.backend_coord(&(tick, 0.0));
        stroke(&area, (x, y), (x, y + 4), ink(1))?;
        area.draw(&Text::new(
            number(tick),
            (x, y + 12),
            letters(HPos::Center, LETTERS - 2),
        ))?;
    }
    let (_, y) = chart.backend_coord(&(0.0, 0.0));
    area.draw(&Text::new(
        family.unit,
        ((names + BARS / 2).cast_signed(), y + 30),
        letters(HPos::Center, LETTERS - 1),
    ))?;
    area.present()
}

/// Round numbers from 0 to `most`, six or fewer.
fn steps(most: f64) -> Vec<f64> {
    let decade = 10f64.powf((most / 5.0).log10().floor());
    let choices = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade);
    let step = choices.into_iter().find(|step| most / step <= 5.0);
    let step = step.unwrap_or(most);
    (0u8..=5)
        .map(|num| f64::from(num) * step)
        .filter(|tick| *tick <= most * 1.001)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::catalog::FAMILIES;
    use super::super::super::samples::series;
    use super::super::super::{Better, Role};
    use super::*;

    fn of(peer: &str, metric: &str, value: f64) -> Series {
        Series {
            metric: metric.into(),
            ..series(peer, Role::Peer, Better::Neither, &[value])
        }
    }

    fn draw(series: &[Series]) -> Option<String> {
        stacks(&series.iter().collect::<Vec<_>>(), &FAMILIES[0]).unwrap()
    }

    #[test]
    fn each_peer_has_a_bar_and_each_reason_a_part() {
        let svg = draw(&[
            of("venet", "exits.other", 10.0),
            of("venet", "exits.halt", 300.0),
            of("qemu", "exits.halt", 500.0),
            of("qemu", "exits.io", 400.0),
            of("qemu", "exits_per_1000", 950.0),
            of("qemu", "pps", 7.0),
        ])
        .unwrap();

        let parts = |color: &str| {
            svg.matches(&format!("fill=\"{color}\" stroke=\"none\""))
                .count()
        };
        // In the legend too.
        assert_eq!(
            [parts("#3A86D6"), parts("#E2871E"), parts("#828282")],
            [3, 2, 2],
            "{svg}"
        );
        let place = |text: &str| {
            svg.find(&format!("\n{text}\n"))
                .unwrap_or_else(|| panic!("{text}: {svg}"))
        };
        assert!(place("halt") < place("io") && place("io") < place("other"));
        // Nobody counted those of venet by themselves.
        place("310");
        place("950");
    }

    #[test]
    fn points_of_a_sweep_have_bars_of_their_own() {
        let mut series = [of("venet", "exits.io", 1.0), of("venet", "exits.io", 2.0)];
        for (series, x) in series.iter_mut().zip([10.0, 100.0]) {
            series.case = "load".into();
            series.x = Some(x);
        }

        let svg = draw(&series).unwrap();

        assert!(
            svg.contains("venet, 10 %") && svg.contains("venet, 100 %"),
            "{svg}"
        );
    }

    #[test]
    fn nothing_is_drawn_without_parts_and_all_with_extremes() {
        assert_eq!(draw(&[of("venet", "exits_per_1000", 1.0)]), None);
        assert!(draw(&[of("venet", "exits.io", 0.0)]).is_some());
        assert!(
            draw(&[
                of("venet", "exits.io", f64::MAX),
                of("qemu", "exits.io", 1e-300)
            ])
            .is_some()
        );
    }

    #[test]
    fn names_are_escaped() {
        let svg = draw(&[of("<b>", "exits.<i>", 1.0)]).unwrap();

        assert!(svg.contains("&lt;b&gt;") && svg.contains("&lt;i&gt;"));
        assert!(!svg.contains("<b>") && !svg.contains("<i>"));
    }

    #[test]
    fn steps_are_round() {
        assert_eq!(steps(950.0), [0.0, 200.0, 400.0, 600.0, 800.0]);
        assert_eq!(steps(5.0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(steps(1e-9).len() <= 6);
    }
}
