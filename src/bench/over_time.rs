//! Memory of several guests over time, as a picture: a panel for each way to run them.

use std::path::{Path, PathBuf};

use plotters::chart::ChartBuilder;
use plotters::drawing::{DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::Polygon;
use plotters::prelude::SVGBackend;
use plotters::style::{Color, HSLColor, RGBColor, WHITE};

/// Pixels of a panel.
const PANEL: (u32, u32) = (900, 320);
/// More seconds or MiB than anything has.
const MOST: f64 = 1e12;
/// Points in time that are drawn.
const NUM_STEPS: u32 = 120;

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum OverTimeError {
    /// What was measured cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is something else.
    #[error(
        "{}, line {number}: not a panel, a guest, seconds and MiB between tabs; scripts/bench-reclaim \
         writes such files",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1 on.
        number: usize,
    },
    /// The picture cannot be written.
    #[error("cannot write {}: {reason}", path.display())]
    Draw {
        /// Where to.
        path: PathBuf,
        /// What the host said.
        reason: String,
    },
}

/// How much memory a guest took, in MiB, at which second.
#[derive(Debug, Default, PartialEq)]
struct Guest {
    name: String,
    samples: Vec<(f64, f64)>,
}

impl Guest {
    /// The last value until `seconds`; nothing before the first sample and after the last.
    fn mib_at(&self, seconds: f64) -> f64 {
        if self.samples.last().is_none_or(|(last, _)| *last < seconds) {
            return 0.0;
        }
        let until = self.samples.partition_point(|(at, _)| *at <= seconds);
        let sample = until.checked_sub(1).and_then(|idx| self.samples.get(idx));
        sample.map_or(0.0, |(_, mib)| *mib)
    }
}

/// One way to run guests.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Panel {
    name: String,
    guests: Vec<Guest>,
}

impl Panel {
    fn end(&self) -> f64 {
        let ends = self.guests.iter().filter_map(|guest| guest.samples.last());
        ends.map(|(at, _)| *at).fold(0.0, f64::max)
    }

    fn total_at(&self, seconds: f64) -> f64 {
        self.guests.iter().map(|guest| guest.mib_at(seconds)).sum()
    }
}

/// Draws the lines of `from`, as scripts/bench-reclaim writes them, into the file `to`: guests above each
/// other, the panels at one scale.
///
/// # Errors
/// [`OverTimeError`].
pub fn draw(from: &Path, to: &Path) -> Result<(), OverTimeError> {
    let text = std::fs::read_to_string(from).map_err(|source| OverTimeError::Read {
        path: from.into(),
        source,
    })?;
    let panels = parse(&text).map_err(|number| OverTimeError::Line {
        path: from.into(),
        number,
    })?;
    let failed = |reason: String| OverTimeError::Draw {
        path: to.into(),
        reason,
    };
    let svg = svg(&panels, Some(&WHITE)).map_err(|error| failed(error.to_string()))?;
    std::fs::write(to, svg).map_err(|error| failed(error.to_string()))
}

/// The panels and guests of `text`, in their order there, or the number of a line that is none.
pub(super) fn parse(text: &str) -> Result<Vec<Panel>, usize> {
    let mut panels: Vec<Panel> = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [panel, guest, seconds, mib] = fields.as_slice() else {
            return Err(number);
        };
        let value = |text: &str| {
            let value = text.parse::<f64>().ok();
            value
                .filter(|value| (0.0..MOST).contains(value))
                .ok_or(number)
        };
        let sample = (value(seconds)?, value(mib)?);
        let named = Panel {
            name: (*panel).to_owned(),
            guests: Vec::new(),
        };
        let panel = find_or_push(&mut panels, |known| known.name == *panel, named);
        let named = Guest {
            name: (*guest).to_owned(),
            samples: Vec::new(),
        };
        let guest = panel
            .and_then(|panel| find_or_push(&mut panel.guests, |known| known.name == *guest, named));
        guest.ok_or(number)?.samples.push(sample);
    }
    Ok(panels)
}

/// The one of `list` that `is_it`, or `new` at its end.
fn find_or_push<T>(list: &mut Vec<T>, is_it: impl Fn(&T) -> bool, new: T) -> Option<&mut T> {
    let idx = list.iter().position(is_it).unwrap_or_else(|| {
        list.push(new);
        list.len() - 1
    });
    list.get_mut(idx)
}

type Failure = DrawingAreaErrorKind<std::io::Error>;

/// The picture, black on `ground`.
///
/// # Errors
/// What `plotters` says.
pub(super) fn svg(panels: &[Panel], ground: Option<&RGBColor>) -> Result<String, Failure> {
    let mut svg = String::new();
    draw_panels(&mut svg, panels, ground)?;
    Ok(svg)
}

fn draw_panels(
    svg: &mut String,
    panels: &[Panel],
    ground: Option<&RGBColor>,
) -> Result<(), Failure> {
    let (width, height) = PANEL;
    let num_panels = u32::try_from(panels.len()).unwrap_or(1).max(1);
    let size = (width, height.saturating_mul(num_panels));
    let area = SVGBackend::with_string(svg, size).into_drawing_area();
    if let Some(ground) = ground {
        area.fill(ground)?;
    }
    let end = panels.iter().map(Panel::end).fold(1.0, f64::max);
    let times: Vec<f64> = (0..=NUM_STEPS)
        .map(|step| end * f64::from(step) / f64::from(NUM_STEPS))
        .collect();
    let totals = panels
        .iter()
        .flat_map(|panel| times.iter().map(|at| panel.total_at(*at)));
    let most = totals.fold(1.0, f64::max);
    for (panel, area) in panels.iter().zip(area.split_evenly((panels.len(), 1))) {
        let title = format!(
            "{}: {} guests, memory in MiB",
            panel.name,
            panel.guests.len()
        );
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(32)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..end, 0.0..most * 1.05)?;
        chart.configure_mesh().x_desc("seconds").draw()?;
        let mut below = vec![0.0; times.len()];
        for (guest, number) in panel.guests.iter().zip(0u8..) {
            let above: Vec<f64> = times
                .iter()
                .zip(&below)
                .map(|(at, below)| below + guest.mib_at(*at))
                .collect();
            let points = |mib: &[f64]| -> Vec<(f64, f64)> {
                times.iter().copied().zip(mib.iter().copied()).collect()
            };
            let mut outline = points(&above);
            outline.extend(points(&below).into_iter().rev());
            // Colours of neighbours are far apart.
            let hue = f64::from(number) * 0.618_034 % 1.0;
            let style = HSLColor(hue, 0.5, 0.6).filled();
            chart.draw_series([Polygon::new(outline, style)])?;
            below = above;
        }
    }
    area.present()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "none\tguest1\t0.0\t10\nnone\tguest2\t1.5\t20\nnone\tguest1\t2.0\t30\n\
        hints\tguest1\t4.0\t5\n";

    #[test]
    fn guests_are_told_apart() {
        let panels = parse(LINES).unwrap();
        let names: Vec<_> = panels.iter().map(|panel| panel.name.as_str()).collect();
        assert_eq!(names, ["none", "hints"]);
        let [one, two] = panels[0].guests.as_slice() else {
            panic!("{panels:?}")
        };
        assert_eq!(
            (one.mib_at(0.0), one.mib_at(1.9), one.mib_at(2.0)),
            (10.0, 10.0, 30.0)
        );
        // It has ended.
        assert_eq!(one.mib_at(2.1), 0.0);
        assert_eq!((two.mib_at(1.4), two.mib_at(1.5)), (0.0, 20.0));
        assert_eq!(panels[0].total_at(1.5), 30.0);
        assert_eq!((panels[0].end(), panels[1].end()), (2.0, 4.0));
    }

    #[test]
    fn lines_of_something_else_are_named() {
        assert_eq!(parse("none\tguest1\t0.0\t1\nnone\tguest1\t0.0"), Err(2));
        assert_eq!(parse("none\tguest1\tnan\t1"), Err(1));
        assert_eq!(parse("none\tguest1\t0\t1e300"), Err(1));
        assert_eq!(parse("none\tguest1\t-1\t1"), Err(1));
        assert_eq!(parse("none\tguest1\t0\tx"), Err(1));
        assert_eq!(parse(""), Ok(Vec::new()));
    }

    #[test]
    fn picture_has_an_area_for_each_guest() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("guests.tsv"), dir.path().join("guests.svg"));
        std::fs::write(&from, LINES).unwrap();
        draw(&from, &to).unwrap();
        let svg = std::fs::read_to_string(&to).unwrap();
        assert_eq!(svg.matches("<polygon").count(), 3);
        assert!(svg.contains("none: 2 guests") && svg.contains("hints: 1 guests"));

        let error = draw(&to, &from).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
        let error = draw(&from, Path::new("/nonexistent/x.svg")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/x.svg"));
    }
}
