//! As a file.

use std::path::{Path, PathBuf};

use plotters::drawing::{DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::{Rectangle, Text};
use plotters::prelude::SVGBackend;
use plotters::style::{BLACK, Color, IntoFont, RGBColor, WHITE};

use super::{Rgb, color, legend, scale};
use crate::reclaim::census::MemoryMap;

/// Cells in a row.
const COLUMNS: usize = 128;
/// Pixels of a cell, and of what is around the picture.
const CELL: i32 = 6;
const MARGIN: i32 = 16;
const LINE: i32 = 20;
const FONT: (&str, i32) = ("sans-serif", 14);

/// The picture cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {reason}", path.display())]
pub struct DrawError {
    /// Where to.
    pub path: PathBuf,
    /// What the host said.
    pub reason: String,
}

/// Draws `map` into the file `path`, under `title`.
///
/// # Errors
/// [`DrawError`].
pub fn draw(path: &Path, title: &str, map: &MemoryMap) -> Result<(), DrawError> {
    try_draw(path, title, map).map_err(|error| DrawError {
        path: path.into(),
        reason: error.to_string(),
    })
}

type Failure = DrawingAreaErrorKind<std::io::Error>;

fn try_draw(path: &Path, title: &str, map: &MemoryMap) -> Result<(), Failure> {
    let legend = legend(map);
    let num_rows = map.cells.len().div_ceil(COLUMNS);
    let (top, map_height) = (MARGIN + LINE, pixels(num_rows) * CELL);
    let width = 2 * MARGIN + pixels(COLUMNS) * CELL;
    let height = top + map_height + MARGIN + pixels(legend.len()) * LINE + MARGIN;
    let size = (width.unsigned_abs(), height.unsigned_abs());
    let area = SVGBackend::new(path, size).into_drawing_area();
    area.fill(&WHITE)?;
    let title = format!("{title}, a cell is {}", scale(map));
    let font = || FONT.into_font().color(&BLACK);
    area.draw(&Text::new(title, (MARGIN, MARGIN), font()))?;
    for (idx, cell) in map.cells.iter().enumerate() {
        let x = MARGIN + pixels(idx % COLUMNS) * CELL;
        let y = top + pixels(idx / COLUMNS) * CELL;
        area.draw(&square((x, y), CELL, color(cell)))?;
    }
    for (idx, (rgb, line)) in legend.into_iter().enumerate() {
        let y = top + map_height + MARGIN + pixels(idx) * LINE;
        area.draw(&square((MARGIN, y), LINE - 6, rgb))?;
        let line = line.trim_start().to_owned();
        area.draw(&Text::new(line, (MARGIN + LINE, y), font()))?;
    }
    area.present()
}

fn square((x, y): (i32, i32), side: i32, (red, green, blue): Rgb) -> Rectangle<(i32, i32)> {
    let style = RGBColor(red, green, blue).filled();
    Rectangle::new([(x, y), (x + side, y + side)], style)
}

/// Few enough: a picture has at most [`super::MAX_CELLS`].
fn pixels(num: usize) -> i32 {
    i32::try_from(num).unwrap_or(i32::MAX / CELL / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picture_has_all_cells_and_a_legend() {
        let map = MemoryMap {
            pages_per_cell: 8,
            cells: vec![[0, 0, 0, 0, 0, 8, 0]; 300],
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map.svg");
        draw(&path, "guest", &map).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert_eq!(svg.matches("#4E9A06").count(), 300 + 1, "and the legend");
        assert!(svg.contains("a cell is 32 KiB") && svg.contains("9.4 MiB  dropped"));
    }

    #[test]
    fn bad_path_is_named() {
        let map = MemoryMap {
            pages_per_cell: 8,
            cells: Vec::new(),
        };
        let error = draw(Path::new("/nonexistent/map.svg"), "guest", &map).unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/map.svg"),
            "{error}"
        );
    }
}
