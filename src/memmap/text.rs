//! On a terminal: two rows of cells in a line.

use std::io::{self, Write};

use super::{Rgb, color, legend, scale};
use crate::reclaim::census::MemoryMap;

/// Cells in a row.
const COLUMNS: usize = 64;

/// Prints `map`; with colours only if `has_colors`, else the legend alone.
///
/// # Errors
/// Those of `out`.
pub fn print(out: &mut impl Write, map: &MemoryMap, has_colors: bool) -> io::Result<()> {
    if has_colors {
        let rows: Vec<_> = map.cells.chunks(COLUMNS).collect();
        for pair in rows.chunks(2) {
            let (upper, lower) = match pair {
                [upper, lower] => (*upper, *lower),
                [upper] => (*upper, &[][..]),
                _ => continue,
            };
            for (idx, cell) in upper.iter().enumerate() {
                let (red, green, blue): Rgb = color(cell);
                write!(out, "\x1b[38;2;{red};{green};{blue}m")?;
                if let Some(cell) = lower.get(idx) {
                    let (red, green, blue) = color(cell);
                    write!(out, "\x1b[48;2;{red};{green};{blue}m")?;
                } else {
                    write!(out, "\x1b[49m")?;
                }
                write!(out, "▀")?;
            }
            writeln!(out, "\x1b[0m")?;
        }
        writeln!(out)?;
    }
    for ((red, green, blue), line) in legend(map) {
        if has_colors {
            write!(out, "\x1b[38;2;{red};{green};{blue}m■\x1b[0m ")?;
        }
        writeln!(out, "{line}")?;
    }
    if has_colors {
        writeln!(out, "a cell is {}", scale(map))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(num_cells: usize, has_colors: bool) -> String {
        let map = MemoryMap {
            pages_per_cell: 256,
            cells: vec![[0, 256, 0, 0, 0, 0, 0]; num_cells],
        };
        let mut out = Vec::new();
        print(&mut out, &map, has_colors).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_cell_has_half_a_character() {
        for (num_cells, num_characters, num_lines) in
            [(1, 1, 1), (64, 64, 1), (65, 64, 1), (129, 65, 2)]
        {
            let text = text(num_cells, true);
            assert_eq!(text.matches('▀').count(), num_characters, "{num_cells}");
            let lines = text.lines().filter(|line| line.contains('▀'));
            assert_eq!(lines.count(), num_lines, "{num_cells}");
        }
    }

    #[test]
    fn without_colors_there_is_no_escape() {
        let text = text(10, false);
        assert!(!text.contains('\x1b'));
        assert!(text.contains("10.0 MiB  in memory: the only copy"));
    }
}
