//! A picture of where an image's content lies, one cell per stretch of the disk.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use cowbell_block::Node;
use cowbell_host::terminal;
use cowbell_jobs::map::map;

use crate::size::human;

/// Rows of the picture.
const ROWS: usize = 6;
/// Columns where the terminal does not say, and at most.
const COLUMNS: u16 = 72;

/// Bytes of each kind in one cell.
#[derive(Clone, Copy, Default)]
struct Cell {
    own: u64,
    below: u64,
}

/// The cells, and the sums.
pub(super) struct Picture {
    cells: Vec<Cell>,
    cell_bytes: u64,
    columns: usize,
    own: u64,
    below: u64,
    len: u64,
}

impl Picture {
    /// Draws `node` and the layers below it.
    pub(super) async fn of(node: &Arc<dyn Node>) -> Result<Self> {
        let len = node.len();
        let columns =
            usize::from(terminal::stdout_columns().unwrap_or(COLUMNS + 4).clamp(24, COLUMNS + 4) - 4);
        let count = columns * ROWS;
        let cell_bytes = len.div_ceil(count as u64).max(1);
        let mut cells = vec![Cell::default(); len.div_ceil(cell_bytes) as usize];
        let (mut own, mut below) = (0, 0);
        let walked = map(node, 0, len, |entry| {
            if !entry.data {
                return;
            }
            if entry.depth == 0 {
                own += entry.len
            } else {
                below += entry.len
            }
            let mut at = entry.start;
            let end = entry.start + entry.len;
            while at < end {
                let index = at / cell_bytes;
                let n = ((index + 1) * cell_bytes).min(end) - at;
                let cell = &mut cells[index as usize];
                if entry.depth == 0 {
                    cell.own += n
                } else {
                    cell.below += n
                }
                at += n;
            }
        });
        walked.await.map_err(|e| anyhow!("cannot draw the picture: {e}"))?;
        Ok(Self { cells, cell_bytes, columns, own, below, len })
    }

    /// Prints it; in colours if somebody watches.
    pub(super) fn print(&self) {
        let colour = terminal::stdout_is_terminal();
        let paint = |text: &str, code: &str| match colour {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        };
        for row in self.cells.chunks(self.columns) {
            let line: String = row
                .iter()
                .map(|cell| match cell {
                    Cell { own: 0, below: 0 } => paint("·", "2"),
                    Cell { own: 0, below } if *below < self.cell_bytes / 2 => paint("░", "34"),
                    Cell { own: 0, .. } => paint("▒", "34"),
                    Cell { own, .. } if *own < self.cell_bytes / 2 => paint("▓", "33"),
                    Cell { .. } => paint("█", "33"),
                })
                .collect();
            println!("    {line}");
        }
        println!(
            "    {} {} in the overlay   {} {} in the base   {} {} zeroes; one cell is {}",
            paint("▓█", "33"),
            human(self.own),
            paint("░▒", "34"),
            human(self.below),
            paint("·", "2"),
            human(self.len.saturating_sub(self.own + self.below)),
            human(self.cell_bytes)
        );
    }
}
