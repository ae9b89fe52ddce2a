//! Pictures as SVG.
//!
//! | module | what it draws |
//! |---|---|
//! | [`bars`] | ratios of a case with their spread |
//! | [`sweep`] | a metric over the points of a sweep, a line for each peer |
//! | [`stack`] | what a metric consists of, a bar for each peer |
//! | [`headline`] | few ratios of everything, for the README |
//!
//! What is black is drawn in the colour of the text around it, so that a picture is readable on a dark ground
//! too; only data have colours of their own, which do on both.

pub(super) mod bars;
pub(super) mod headline;
pub(super) mod stack;
pub(super) mod sweep;

use std::io;

use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind};
use plotters::element::{PathElement, Rectangle, Text};
use plotters::prelude::SVGBackend;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{BLACK, Color, IntoFont, RGBColor, ShapeStyle, TextStyle};

use super::verdict::Verdict;

type Failure = DrawingAreaErrorKind<io::Error>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Pixels of a letter at most, of a bar with its gap, and of letters' height.
const LETTER: u32 = 7;
const BAR: u32 = 26;
const LETTERS: u32 = 15;
/// Values further away are drawn at the edge.
const MOST: f64 = 1e30;
const GRID: RGBColor = RGBColor(128, 128, 128);

/// Colours of subjects, told apart by people who see few colours too, as far as six can be.
const COLORS: [RGBColor; 8] = [
    RGBColor(58, 134, 214),
    RGBColor(226, 135, 30),
    RGBColor(46, 160, 100),
    RGBColor(205, 80, 60),
    RGBColor(150, 105, 200),
    RGBColor(130, 130, 130),
    RGBColor(30, 165, 175),
    RGBColor(190, 160, 40),
];

/// The colour of `number`; they repeat after eight.
fn color_at(number: usize) -> RGBColor {
    COLORS.get(number % COLORS.len()).copied().unwrap_or(GRID)
}

/// The same in every picture for those that are known, else by their place in this one.
fn color_of(peer: &str, place: usize) -> RGBColor {
    let number = match peer {
        "venet" | "switch" | "alacrity" | "vbus" => 0,
        "virtio" => 1,
        "qemu" => 2,
        "qemu-vhost" | "bridge" => 3,
        "kvmtool" | "qemu-vhost-pio" => 4,
        _ => place + 5,
    };
    color_at(number)
}

/// The same in every picture for those that are known, else by their place in this one.
fn color_of_reason(reason: &str, place: usize) -> RGBColor {
    let number = match reason {
        "halt" | "guest" => 0,
        "io" | "host" => 1,
        "mmio" => 2,
        "irq_window" => 3,
        "host_irq" => 4,
        "other" => 5,
        "hypercall" => 6,
        "timer" => 7,
        _ => place,
    };
    color_at(number)
}

/// The colour of a verdict.
fn color_of_verdict(verdict: Verdict) -> RGBColor {
    match verdict {
        Verdict::Won => RGBColor(46, 139, 87),
        Verdict::Tied => RGBColor(128, 128, 128),
        Verdict::Lost => RGBColor(205, 80, 60),
    }
}

fn ink(width: u32) -> ShapeStyle {
    ShapeStyle::from(&BLACK).stroke_width(width)
}

fn letters(horizontal: HPos, height: u32) -> TextStyle<'static> {
    let style = TextStyle::from(("sans-serif", height).into_font());
    style.pos(Pos::new(horizontal, VPos::Center))
}

/// How many letters there are, for a place of that width.
fn num_letters(text: &str) -> u32 {
    u32::try_from(text.chars().count()).unwrap_or(u32::MAX)
}

/// The longest of `texts`, in pixels, a hundred letters at most.
fn width<'a>(texts: impl IntoIterator<Item = &'a str>) -> u32 {
    let longest = texts.into_iter().map(num_letters).max();
    LETTER * longest.unwrap_or(0).min(100)
}

/// Where the parts of a legend of that width are: left edge and line of each, and how many lines there are.
fn legend_places(names: &[&str], width: u32) -> (Vec<(u32, u32)>, u32) {
    let (mut x, mut line) = (0, 0);
    let mut places = Vec::new();
    for name in names {
        let own = 22 + LETTER * num_letters(name).min(100) + 14;
        if x > 0 && x + own > width {
            (x, line) = (0, line + 1);
        }
        places.push((x, line));
        x += own;
    }
    (places, line + 1)
}

/// Pixels of a line of a legend.
const LEGEND: u32 = 20;

/// Names, each behind a box in its colour, from `(left, top)` on.
fn legend(
    area: &Area<'_>,
    (left, top): (i32, i32),
    width: u32,
    parts: &[(&str, RGBColor)],
) -> Result<(), Failure> {
    let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
    let (places, _) = legend_places(&names, width);
    for ((name, color), (x, line)) in parts.iter().zip(places) {
        let (x, y) = (
            left + x.cast_signed(),
            top + (line * LEGEND + LEGEND / 2).cast_signed(),
        );
        let corners = [(x, y - 5), (x + 14, y + 5)];
        area.draw(&Rectangle::new(corners, color.filled()))?;
        area.draw(&Text::new(
            (*name).to_owned(),
            (x + 20, y),
            letters(HPos::Left, LETTERS),
        ))?;
    }
    Ok(())
}

/// A line between two pixels.
fn stroke(
    area: &Area<'_>,
    from: (i32, i32),
    to: (i32, i32),
    style: ShapeStyle,
) -> Result<(), Failure> {
    area.draw(&PathElement::new(vec![from, to], style))
}

/// Round numbers from `least` to `most`, above 0, some eight at most; 1 is always one of them if it is between.
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

/// `svg` with the ink of its surroundings. Letters of files cannot match: their quotation marks are escaped.
fn with_ink(svg: &str) -> String {
    svg.replace("=\"#000000\"", "=\"currentColor\"")
}

/// `svg` as a part of a page, which needs no namespace, and with it no address.
pub(super) fn in_page(svg: &str) -> String {
    with_ink(svg).replace(" xmlns=\"http://www.w3.org/2000/svg\"", "")
}

/// `svg` as a file of its own, on a ground that follows the reader's choice of dark or light.
pub(super) fn alone(svg: &str) -> String {
    const GROUND: &str = "<style>svg { color: #1c1c1c; } .ground { fill: #ffffff; }\n\
        @media (prefers-color-scheme: dark) { svg { color: #e6e6e6; } .ground { fill: #16181a; } }</style>\n\
        <rect class=\"ground\" width=\"100%\" height=\"100%\" rx=\"6\"/>";
    let svg = with_ink(svg);
    match svg.split_once('>') {
        Some((head, rest)) => format!("{head}>\n{GROUND}{rest}"),
        None => svg,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(0.76, 1.31), [0.8, 1.0, 1.25]);
        assert_eq!(ticks(0.5, 30.0), [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(ticks(0.9, 1e6).len(), 7);
        assert_eq!(ticks(1e-6, 1e6).len(), 5);
        assert!(ticks(1e-6, 1e6).contains(&1.0));
    }

    #[test]
    fn legend_goes_on_in_the_next_line() {
        let (places, num_lines) = legend_places(&["halt", "io", "a longer reason"], 150);

        assert_eq!(places, [(0, 0), (64, 0), (0, 1)]);
        assert_eq!(num_lines, 2);
        // What is too wide anyway has a line of its own, not none.
        assert_eq!(legend_places(&["a long name"], 10).1, 1);
    }

    #[test]
    fn known_subjects_keep_their_colour() {
        assert_eq!(color_of("qemu", 0), color_of("qemu", 4));
        assert_ne!(color_of("venet", 0), color_of("virtio", 0));
        assert_ne!(color_of("x", 0), color_of("y", 1));
    }

    #[test]
    fn black_follows_the_page_and_letters_stay_letters() {
        let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\">\n<text fill=\"#000000\">#000000</text></svg>";

        assert_eq!(
            in_page(svg),
            "<svg>\n<text fill=\"currentColor\">#000000</text></svg>"
        );
        let alone = alone(svg);
        assert!(alone.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\">\n<style>"));
        assert!(alone.contains("prefers-color-scheme: dark"));
    }
}
