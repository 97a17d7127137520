//! Results as tables: means with their intervals, the best of each column marked, and below them each policy against
//! the reference, pair by pair. As text for terminals and as Markdown for pages.

use std::ops::Range;

use super::grid::{Grid, Line};
use super::measure::{Better, Measure, Unit};
use super::statistics::Estimate;

/// Columns that a table shows when there is something to show.
pub const COLUMNS: [&str; 13] = [
    "hit_rate",
    "regenerated_share",
    "ttft_p50_s",
    "ttft_p90_s",
    "ttft_p99_s",
    "ttft_from_arrival_p50_s",
    "ttft_from_arrival_p90_s",
    "tpot_p50_s",
    "e2e_p50_s",
    "output_tokens_per_s",
    "requests_per_s",
    "admission_wait_mean_s",
    "rejected_share",
];

/// Columns after those of classes.
const LAST: [&str; 7] = [
    "ttft_mape",
    "ttft_p90_covered",
    "holders_before",
    "holders_while_hot",
    "holders_after",
    "holder_changes_per_min",
    "herding",
];

/// The columns for a grid: [`COLUMNS`] that are not zero throughout, TTFT of each class, and [`LAST`].
#[must_use]
pub fn columns(grid: &Grid<'_>) -> Vec<Measure> {
    let mut columns: Vec<Measure> = COLUMNS.into_iter().filter_map(Measure::of).collect();
    for class in grid.classes() {
        columns.extend(["ttft_p50_s", "ttft_p95_s"].into_iter().filter_map(|key| Measure::of(key)?.of_class(&class)));
    }
    columns.extend(LAST.into_iter().filter_map(Measure::of));
    columns.retain(|measure| grid.has(measure) && says_more(measure, grid));
    columns
}

/// Where nobody waits, what is measured from arrival is what is measured from admission: it need not be shown twice.
#[must_use]
pub fn says_more(measure: &Measure, grid: &Grid<'_>) -> bool {
    let has_waits = || Measure::of("admission_wait_mean_s").is_some_and(|wait| grid.has(&wait));
    !measure.metric.key.starts_with("ttft_from_arrival") || has_waits()
}

/// Characters of a line of text; columns beyond go below.
const WIDTH: usize = 120;

/// Rows of cells under a heading.
#[derive(Debug, Default)]
pub struct Table {
    /// The first row.
    pub heading: Vec<String>,
    /// The others.
    pub rows: Vec<Vec<Cell>>,
    /// Columns at its beginning that are text and not figures; one at least.
    pub texts: usize,
}

/// What stands in a cell.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// Its text.
    pub text: String,
    /// The best of its column.
    pub is_best: bool,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, is_best: false }
    }
}

impl Table {
    /// For terminals: the best with a star.
    #[must_use]
    pub fn to_text(&self) -> String {
        let shown = |cell: &Cell| format!("{}{}", cell.text, if cell.is_best { "*" } else { " " });
        let heading: Vec<String> = self.heading.iter().map(|text| format!("{text} ")).collect();
        let rows: Vec<Vec<String>> = self.rows.iter().map(|row| row.iter().map(shown).collect()).collect();
        let width = |column: usize| {
            let cells = rows.iter().chain([&heading]).filter_map(|row| row.get(column));
            cells.map(|text| text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..heading.len()).map(width).collect();
        let mut out = String::new();
        for block in blocks(&widths) {
            for row in [&heading].into_iter().chain(&rows) {
                let cell = |place: usize| {
                    let (text, width) = (row.get(place).map_or("", String::as_str), widths[place]);
                    match place {
                        0 => format!("{text:<width$}"),
                        place if place < self.texts => format!(" {text:<width$}"),
                        _ => format!(" {text:>width$}"),
                    }
                };
                let line: String = [0].into_iter().chain(block.clone()).map(cell).collect();
                out.push_str(line.trim_end());
                out.push('\n');
            }
        }
        out
    }

    /// For pages: the best in bold.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let escaped = |text: &str| text.replace('|', "\\|");
        let mut out = row(self.heading.iter().map(|text| escaped(text)).collect());
        out.push_str(&row((0..self.heading.len())
            .map(|at| if at < self.texts.max(1) { "---" } else { "--:" }.to_owned())
            .collect()));
        for cells in &self.rows {
            let shown = |cell: &Cell| {
                let text = escaped(&cell.text);
                if cell.is_best { format!("**{text}**") } else { text }
            };
            out.push_str(&row(cells.iter().map(shown).collect()));
        }
        out
    }
}

/// The columns after the first, in blocks that fit in [`WIDTH`] beside it.
fn blocks(widths: &[usize]) -> Vec<Range<usize>> {
    let room = WIDTH.saturating_sub(widths.first().copied().unwrap_or(0));
    let mut blocks = Vec::new();
    let (mut from, mut used) = (1, 0);
    for (place, width) in widths.iter().enumerate().skip(1) {
        if used + width + 1 > room && place > from {
            blocks.push(from..place);
            (from, used) = (place, 0);
        }
        used += width + 1;
    }
    blocks.push(from..widths.len());
    blocks
}

/// Means over seeds at one load, policies as rows.
#[must_use]
pub fn means(grid: &Grid<'_>, load: usize, columns: &[Measure]) -> Table {
    let mut table = Table { heading: vec!["policy".to_owned()], rows: Vec::new(), texts: 1 };
    table.heading.extend(columns.iter().map(Measure::heading));
    let best: Vec<Option<f64>> = columns
        .iter()
        .map(|measure| {
            let counts = measure.metric.better != Better::Neither;
            let best = grid.best(load, measure).filter(|_| counts)?;
            let best = grid.mean(best, load, measure)?.mean;
            // Where all are equal none is best.
            let is_worse = |(place, line): (usize, &Line)| {
                let found = grid.mean(place, load, measure).filter(|_| line.competes());
                found.is_some_and(|found| measure.metric.better.prefers(best, found.mean))
            };
            grid.lines.iter().enumerate().any(is_worse).then_some(best)
        })
        .collect();
    for (place, line) in grid.lines.iter().enumerate().filter(|(place, _)| !grid.cell(*place, load).is_empty()) {
        let mut row = vec![Cell::from(line.to_string())];
        for (measure, best) in columns.iter().zip(&best) {
            let found = grid.mean(place, load, measure);
            let is_best = line.competes()
                && found.zip(*best).is_some_and(|(found, best)| !measure.metric.better.prefers(best, found.mean));
            row.push(Cell { text: found.map_or_else(|| "–".to_owned(), |found| shown(&found, measure)), is_best });
        }
        table.rows.push(row);
    }
    table
}

/// Each line against the reference at one load, in percent of the reference. `None` when there is no other line.
#[must_use]
pub fn differences(grid: &Grid<'_>, load: usize, columns: &[Measure]) -> Option<Table> {
    let reference = grid.reference();
    let mut table =
        Table { heading: vec![format!("% against {}", grid.lines.get(reference)?)], rows: Vec::new(), texts: 1 };
    table.heading.extend(columns.iter().map(|measure| measure.name()));
    for (place, line) in grid.lines.iter().enumerate() {
        if place == reference || grid.cell(place, load).is_empty() {
            continue;
        }
        let cell = |measure| grid.ratio(place, reference, load, measure);
        let text = |measure| cell(measure).map_or_else(|| "–".to_owned(), |ratio| percent_off(&ratio));
        let mut row = vec![Cell::from(line.to_string())];
        row.extend(columns.iter().map(|measure| Cell::from(text(measure))));
        table.rows.push(row);
    }
    (!table.rows.is_empty()).then_some(table)
}

/// Means of one measure over seeds, policies as rows and loads as columns.
#[must_use]
pub fn by_load(grid: &Grid<'_>, measure: &Measure) -> Table {
    let mut table = Table { heading: vec![measure.title_and_unit()], rows: Vec::new(), texts: 1 };
    table.heading.extend(grid.loads.iter().map(|load| format!("load {load}")));
    let columns = std::slice::from_ref(measure);
    let tables: Vec<Table> = (0..grid.loads.len()).map(|load| means(grid, load, columns)).collect();
    for line in &grid.lines {
        let mut row = vec![Cell::from(line.to_string())];
        for at_load in &tables {
            let found = at_load.rows.iter().find(|cells| cells.first().is_some_and(|cell| cell.text == row[0].text));
            row.push(found.and_then(|cells| cells.get(1)).cloned().unwrap_or_default());
        }
        table.rows.push(row);
    }
    table
}

/// All of a grid as text: a section a load.
#[must_use]
pub fn to_text(grid: &Grid<'_>) -> String {
    let columns = columns(grid);
    let mut out = format!("{}\n", grid.title());
    for (place, load) in grid.loads.iter().enumerate() {
        out.push_str(&format!("\nload {load}\n{}", means(grid, place, &columns).to_text()));
        if let Some(table) = differences(grid, place, &columns) {
            out.push_str(&format!("\n{}", table.to_text()));
        }
    }
    if grid.lines.len() > 1 {
        out.push_str("\n* best");
    }
    if grid.seeds() > 1 {
        out.push_str(if grid.lines.len() > 1 { "; " } else { "\n" });
        out.push_str("± 95 % (Student's t); differences are paired by seed");
    }
    out.push('\n');
    out
}

/// A mean with its interval, in the measure's unit.
#[must_use]
pub fn shown(estimate: &Estimate, measure: &Measure) -> String {
    let scale = measure.metric.unit.scale();
    let mean = estimate.mean * scale;
    let decimals = match measure.metric.unit {
        Unit::Share => 1,
        Unit::Count => 0,
        Unit::Seconds | Unit::PerSecond | Unit::Times => decimals(mean),
    };
    match estimate.half {
        Some(half) => format!("{mean:.decimals$} ±{:.decimals$}", half * scale),
        None => format!("{mean:.decimals$}"),
    }
}

/// How far a ratio is from one, in percent.
#[must_use]
pub fn percent_off(ratio: &Estimate) -> String {
    let off = (ratio.mean - 1.0) * 100.0;
    let decimals = usize::from(off.abs() < 9.95);
    let half = ratio.half.map(|half| format!(" ±{:.decimals$}", half * 100.0));
    format!("{off:+.decimals$}{}", half.unwrap_or_default())
}

/// Decimals that leave about three digits that count.
#[must_use]
pub fn decimals(value: f64) -> usize {
    match value.abs() {
        value if value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        value if value >= 0.9995 => 2,
        value if value >= 0.09995 => 3,
        value if value > 0.0 => 4,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::report::fake;

    #[test]
    fn the_table_is_as_people_read_it() {
        let runs =
            fake::runs(&["price", "oracle", "least_request", "weighted(prefix=3,queue=5,kv=2)"], &[3.0, 6.0], 10);
        insta::assert_snapshot!(to_text(&Grid::lay_out(&runs)[0]));
    }

    #[test]
    fn a_single_run_has_no_intervals_and_no_rivals() {
        let runs = fake::runs(&["price"], &[3.0], 1);
        let text = to_text(&Grid::lay_out(&runs)[0]);
        assert!(!text.contains(['±', '*']), "{text}");
    }

    #[test]
    fn markdown_marks_the_best_and_escapes_bars() {
        let runs = fake::runs(&["price", "a|b"], &[3.0], 4);
        let grids = Grid::lay_out(&runs);
        let text = means(&grids[0], 0, &columns(&grids[0])).to_markdown();
        assert!(
            text.starts_with("| policy | hit % |") && text.contains("\n| a\\|b |") && text.contains("**"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 4);
    }

    #[test]
    fn figures_have_three_digits_that_count() {
        let shown = |mean| format!("{mean:.*}", decimals(mean));
        assert_eq!(
            [0.0, 0.071_23, 0.5, 3.456_78, 42.0, 1234.5].map(shown),
            ["0", "0.0712", "0.500", "3.46", "42.0", "1234"]
        );
    }
}
