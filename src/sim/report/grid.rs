//! Results laid out for comparison: lines (a policy, perhaps with something changed of it) by loads, in each cell one
//! run a seed.

use std::collections::BTreeMap;

use super::measure::Measure;
use super::statistics::{Estimate, mean, ratio};
use crate::sim::result::RunResult;

/// What no gateway can do, for comparison only: these are never called best, and beat nobody.
pub const BOUNDS: [&str; 3] = ["oracle", "infinite_cache", "pooled_belady"];

/// The policy others are compared with, where it was run.
pub const REFERENCE: &str = "price";

/// Whether a policy, parameters and all, is one of [`BOUNDS`].
#[must_use]
pub fn is_bound(policy: &str) -> bool {
    BOUNDS.contains(&base_name(policy))
}

/// A policy's name without its parameters.
#[must_use]
pub fn base_name(policy: &str) -> &str {
    policy.split('(').next().unwrap_or(policy).trim()
}

/// A policy and what was changed of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The policy with its parameters.
    pub policy: String,
    /// Empty for nothing changed.
    pub variant: String,
}

impl Line {
    /// The line of a run.
    #[must_use]
    pub fn of(run: &RunResult) -> Self {
        Self { policy: run.policy.clone(), variant: run.variant.clone() }
    }

    /// Whether it counts when the best is looked for: nothing changed, and no bound.
    #[must_use]
    pub fn competes(&self) -> bool {
        self.variant.is_empty() && !is_bound(&self.policy)
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.policy)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, " · {}", self.variant) }
    }
}

/// The runs of one workload on one fleet.
#[derive(Debug)]
pub struct Grid<'r> {
    /// The workload's name.
    pub workload: String,
    /// The model.
    pub model: String,
    /// Replicas.
    pub replicas: u32,
    /// Lines, in the order in which they first came.
    pub lines: Vec<Line>,
    /// Loads, ascending.
    pub loads: Vec<f64>,
    cells: BTreeMap<(usize, usize), Vec<&'r RunResult>>,
}

impl<'r> Grid<'r> {
    /// Lays out results; those of different workloads, models or fleets apart, in the order in which they first came.
    #[must_use]
    pub fn lay_out(results: impl IntoIterator<Item = &'r RunResult>) -> Vec<Self> {
        let mut apart: Vec<(&'r RunResult, Vec<&'r RunResult>)> = Vec::new();
        for run in results {
            let same = |other: &RunResult| {
                other.workload == run.workload && other.model == run.model && other.replicas == run.replicas
            };
            match apart.iter_mut().find(|(first, _)| same(first)) {
                Some((_, runs)) => runs.push(run),
                None => apart.push((run, vec![run])),
            }
        }
        apart.into_iter().map(|(first, runs)| Self::of(first, &runs)).collect()
    }

    fn of(first: &RunResult, runs: &[&'r RunResult]) -> Self {
        let mut loads: Vec<f64> = runs.iter().map(|run| run.load).collect();
        loads.sort_by(f64::total_cmp);
        loads.dedup();
        let mut grid = Self {
            workload: first.workload.clone(),
            model: first.model.clone(),
            replicas: first.replicas,
            lines: Vec::new(),
            loads,
            cells: BTreeMap::new(),
        };
        for run in runs {
            let line = Line::of(run);
            let at = grid.place_of(&line).unwrap_or_else(|| {
                grid.lines.push(line);
                grid.lines.len() - 1
            });
            let load = grid.loads.partition_point(|load| *load < run.load);
            grid.cells.entry((at, load)).or_default().push(run);
        }
        for cell in grid.cells.values_mut() {
            cell.sort_by_key(|run| run.seed);
            cell.dedup_by_key(|run| run.seed);
        }
        grid
    }

    /// The place of a line.
    #[must_use]
    pub fn place_of(&self, line: &Line) -> Option<usize> {
        self.lines.iter().position(|other| other == line)
    }

    /// The place of a policy as it is, nothing changed.
    #[must_use]
    pub fn plain(&self, policy: &str) -> Option<usize> {
        self.lines.iter().position(|line| line.policy == policy && line.variant.is_empty())
    }

    /// The line that others are compared with: [`REFERENCE`], else the first.
    #[must_use]
    pub fn reference(&self) -> usize {
        self.plain(REFERENCE).unwrap_or(0)
    }

    /// The runs of a line at a load (places of both), by seed.
    #[must_use]
    pub fn cell(&self, line: usize, load: usize) -> &[&'r RunResult] {
        self.cells.get(&(line, load)).map_or(&[], Vec::as_slice)
    }

    /// Most seeds of any cell.
    #[must_use]
    pub fn seeds(&self) -> usize {
        self.cells.values().map(Vec::len).max().unwrap_or(0)
    }

    /// The mean of a measure over the seeds of a cell.
    #[must_use]
    pub fn mean(&self, line: usize, load: usize, measure: &Measure) -> Option<Estimate> {
        let values: Vec<f64> = self.cell(line, load).iter().filter_map(|run| measure.read(run)).collect();
        mean(&values)
    }

    /// A measure of `line` as a multiple of that of `base`, over the seeds that both have.
    #[must_use]
    pub fn ratio(&self, line: usize, base: usize, load: usize, measure: &Measure) -> Option<Estimate> {
        let of = |line| {
            let values = self.cell(line, load).iter().filter_map(|run| Some((run.seed, measure.read(run)?)));
            values.collect::<BTreeMap<u64, f64>>()
        };
        let (values, bases) = (of(line), of(base));
        let pairs: Vec<(f64, f64)> =
            values.iter().filter_map(|(seed, value)| Some((*value, *bases.get(seed)?))).collect();
        ratio(&pairs)
    }

    /// The line with the best mean among those that compete.
    #[must_use]
    pub fn best(&self, load: usize, measure: &Measure) -> Option<usize> {
        self.best_but(None, load, measure)
    }

    /// The same without one line: the best of the others.
    #[must_use]
    pub fn best_but(&self, without: Option<usize>, load: usize, measure: &Measure) -> Option<usize> {
        let mut best: Option<(usize, f64)> = None;
        for (place, line) in self.lines.iter().enumerate() {
            if Some(place) == without || !line.competes() {
                continue;
            }
            let Some(found) = self.mean(place, load, measure) else { continue };
            if best.is_none_or(|(_, mean)| measure.metric.better.prefers(found.mean, mean)) {
                best = Some((place, found.mean));
            }
        }
        best.map(|(place, _)| place)
    }

    /// The classes of calls, when there are several.
    #[must_use]
    pub fn classes(&self) -> Vec<String> {
        let run = self.cells.values().flatten().find(|run| run.classes.len() > 1);
        run.map_or_else(Vec::new, |run| run.classes.iter().map(|class| class.class.clone()).collect())
    }

    /// Whether any run has that measure, other than zero.
    #[must_use]
    pub fn has(&self, measure: &Measure) -> bool {
        self.cells.values().flatten().any(|run| measure.read(run).is_some_and(|value| value > 0.0))
    }

    /// What it is of, in a line.
    #[must_use]
    pub fn title(&self) -> String {
        let Self { workload, model, replicas, .. } = self;
        let seeds = self.seeds();
        let plural = if seeds == 1 { "" } else { "s" };
        format!("{workload}, {}, {seeds} seed{plural}", fleet_shown(*replicas, model))
    }
}

/// What serves, in words: groups say themselves how many they are.
#[must_use]
pub fn fleet_shown(replicas: u32, model: &str) -> String {
    if model.contains('*') { model.replace('*', " × ").replace(',', ", ") } else { format!("{replicas} × {model}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::report::fake;

    #[test]
    fn results_are_laid_out_by_line_load_and_seed() {
        let runs = fake::runs(&["price", "oracle", "least_request"], &[2.0, 4.0], 3);
        let grids = Grid::lay_out(&runs);
        let [grid] = grids.as_slice() else { panic!("{} grids", grids.len()) };
        assert_eq!((grid.lines.len(), grid.loads.as_slice(), grid.seeds()), (3, &[2.0, 4.0][..], 3));
        assert_eq!(grid.cell(0, 1).iter().map(|run| run.seed).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(grid.reference(), 0);
        let ttft = Measure::of("ttft_p50_s").unwrap();
        // The bound is better, and does not count.
        assert_eq!((grid.best(0, &ttft), grid.best_but(Some(0), 0, &ttft)), (Some(0), Some(2)));
        assert!(grid.ratio(2, 0, 0, &ttft).unwrap().excludes(1.0));
        assert!(grid.title().ends_with("3 seeds"));
    }

    #[test]
    fn other_fleets_and_ablations_stand_apart() {
        let mut runs = fake::runs(&["price"], &[2.0], 2);
        runs[1].variant = "index_off".to_owned();
        runs.extend(fake::runs(&["price"], &[2.0], 1).into_iter().map(|run| RunResult { replicas: 64, ..run }));
        let grids = Grid::lay_out(&runs);
        assert_eq!((grids.len(), grids[0].lines.len(), grids[1].replicas), (2, 2, 64));
        assert_eq!(grids[0].lines[1].to_string(), "price · index_off");
        assert!(!grids[0].lines[1].competes() && grids[0].best(0, &Measure::of("hit_rate").unwrap()) == Some(0));
    }
}
