//! `alacrity memmap`: guest memory as a picture, a cell for some pages each.

mod svg;
mod text;

use crate::reclaim::census::{Cell, MemoryMap, PageKind};

pub use svg::{DrawError, draw};
pub use text::print;

pub use crate::control_socket::protocol::MAX_CELLS;

/// Most cells on a terminal: 32 lines of 64 characters.
pub const TERMINAL_CELLS: u64 = 64 * 64;

/// Red, green, blue.
type Rgb = (u8, u8, u8);

/// How a kind is drawn, and what it is called.
fn look(kind: PageKind) -> (Rgb, &'static str) {
    match kind {
        PageKind::Absent => ((238, 238, 238), "absent: zeros, or never touched"),
        PageKind::Only => ((52, 101, 164), "in memory: the only copy"),
        PageKind::Volatile => (
            (115, 190, 170),
            "in memory: volatile, a disk may have the same",
        ),
        PageKind::Unused => ((245, 215, 110), "in memory: unused by the guest"),
        PageKind::Pinned => ((32, 32, 32), "in memory: pinned"),
        PageKind::Dropped => ((78, 154, 6), "dropped: on its disk"),
        PageKind::Swapped => ((204, 60, 40), "swapped: in the swap file"),
    }
}

/// The mean colour of the pages in `cell`.
fn color(cell: &Cell) -> Rgb {
    let mut sums = [0u64; 3];
    let mut num_pages = 0;
    for (kind, num) in PageKind::ALL.into_iter().zip(cell) {
        let ((red, green, blue), _) = look(kind);
        let num = u64::from(*num);
        num_pages += num;
        for (sum, part) in sums.iter_mut().zip([red, green, blue]) {
            *sum += num * u64::from(part);
        }
    }
    let [red, green, blue] = sums.map(|sum| {
        let mean = sum.checked_div(num_pages).unwrap_or(255);
        u8::try_from(mean).unwrap_or(u8::MAX)
    });
    (red, green, blue)
}

/// The names of what there is in `map`, with their colours and sizes.
fn legend(map: &MemoryMap) -> Vec<(Rgb, String)> {
    let entries = PageKind::ALL.into_iter().zip(map.total());
    let entries = entries.map(|(kind, num_pages)| {
        let (rgb, name) = look(kind);
        let mib = f64::from(num_pages) / 256.0;
        (rgb, format!("{mib:>9.1} MiB  {name}"))
    });
    entries.collect()
}

/// How much a cell is.
fn scale(map: &MemoryMap) -> String {
    match map.pages_per_cell * 4 {
        kib if kib < 1024 => format!("{kib} KiB"),
        kib => format!("{} MiB", kib / 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn color_is_that_of_the_pages() {
        assert_eq!(color(&[4, 0, 0, 0, 0, 0, 0]), (238, 238, 238));
        assert_eq!(color(&[0, 0, 0, 0, 0, 0, 1]), (204, 60, 40));
        assert_eq!(color(&[1, 0, 0, 0, 0, 0, 1]), (221, 149, 139));
    }

    #[test]
    fn legend_has_the_sizes() {
        let map = MemoryMap {
            pages_per_cell: 512,
            cells: vec![[512, 0, 0, 0, 0, 0, 0], [0, 256, 0, 0, 0, 256, 0]],
        };
        let lines: Vec<_> = legend(&map).into_iter().map(|(_, line)| line).collect();
        assert_eq!(lines[0], "      2.0 MiB  absent: zeros, or never touched");
        assert_eq!(lines[5], "      1.0 MiB  dropped: on its disk");
        assert_eq!(scale(&map), "2 MiB");
    }
}
