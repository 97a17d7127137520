//! Claims, and what the figures say of them.

use std::collections::BTreeMap;

use crate::sim::report::grid::{Grid, Line};
use crate::sim::report::measure::{Better, Measure};
use crate::sim::report::statistics::{Estimate, ratio};

/// Instead of a policy's name: whichever baseline is best at that load.
pub const BEST: &str = "best";

/// What is claimed of a policy. Without rivals the bounds are of the measure itself, in its own unit (shares from 0 to
/// 1); with rivals they are of the measure as a multiple of each rival's.
#[derive(Clone, Debug)]
pub struct Claim {
    /// In words.
    pub text: String,
    /// Whose.
    pub policy: String,
    /// With what changed; empty for nothing.
    pub variant: String,
    /// What is measured.
    pub measure: Measure,
    /// Rivals: policies or [`BEST`].
    pub against: Vec<String>,
    /// What is changed of the rivals.
    pub against_variant: String,
    /// Upper bound.
    pub at_most: Option<f64>,
    /// Lower bound.
    pub at_least: Option<f64>,
    /// Where it must hold.
    pub loads: Loads,
    /// Lower loads are left out.
    pub from_load: f64,
    /// Compares the measure at the knee instead of at each load.
    pub knee: Option<Knee>,
    /// What is said when a bound lies within the interval.
    pub doubt: Doubt,
}

/// The highest load at which an objective is met.
#[derive(Clone, Debug)]
pub struct Knee {
    /// What the objective limits.
    pub measure: Measure,
    /// The most it allows.
    pub at_most: f64,
}

/// Where a claim must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loads {
    /// At each load, against each rival.
    Every,
    /// At one load at least, against each rival.
    Some,
}

/// What is said when a bound lies within the interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// As the mean has it.
    ByMean,
    /// Held: only what is beyond doubt fails it ("never worse than").
    Held,
    /// Failed: only what is beyond doubt holds it.
    Failed,
}

/// What the figures say.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Held or not.
    pub outcome: Outcome,
    /// The figures, one a load and rival.
    pub findings: Vec<Finding>,
}

/// Held or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Held,
    /// It does not.
    Failed,
    /// A run it needs is missing.
    Untested,
}

impl Outcome {
    /// In a word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Failed => "failed",
            Self::Untested => "untested",
        }
    }
}

/// One figure that a claim rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The load; `None` at the knee.
    pub load: Option<f64>,
    /// The rival, by its own name; empty without.
    pub against: String,
    /// The measure, or its ratio.
    pub figure: Estimate,
    /// Within the bounds.
    pub holds: bool,
    /// A bound lies within the interval.
    pub is_close: bool,
    /// How far inside the bounds it is (negative: outside), as a share of the bound.
    pub margin: f64,
}

impl Verdict {
    /// The figure that decided: of a claim for every load the one nearest to failing, else the one that holds best.
    #[must_use]
    pub fn deciding(&self, loads: Loads) -> Option<&Finding> {
        let by_margin = |a: &&Finding, b: &&Finding| a.margin.total_cmp(&b.margin);
        match loads {
            Loads::Every => self.findings.iter().min_by(by_margin),
            Loads::Some => self.findings.iter().max_by(by_margin),
        }
    }
}

impl Claim {
    /// Checks it against results.
    #[must_use]
    pub fn check(&self, grid: &Grid<'_>) -> Verdict {
        let line = Line { policy: self.policy.clone(), variant: self.variant.clone() };
        let Some(place) = grid.place_of(&line) else { return Verdict::untested() };
        let findings = if self.knee.is_some() { self.at_knee(grid, place) } else { self.at_loads(grid, place) };
        let Some(findings) = findings.filter(|findings| !findings.is_empty()) else { return Verdict::untested() };
        let holds_at = |load: Option<f64>| {
            let same = |other: Option<f64>| other.map(f64::to_bits) == load.map(f64::to_bits);
            findings.iter().filter(|finding| same(finding.load)).all(|finding| finding.holds)
        };
        let holds = match self.loads {
            Loads::Every => findings.iter().all(|finding| finding.holds),
            Loads::Some => findings.iter().any(|finding| holds_at(finding.load)),
        };
        Verdict { outcome: if holds { Outcome::Held } else { Outcome::Failed }, findings }
    }

    /// The places of rivals at a load; `None` when one was not run.
    fn rivals(&self, grid: &Grid<'_>, place: usize, load: Option<usize>) -> Option<Vec<usize>> {
        let rival = |name: &String| match (name.as_str(), load) {
            (BEST, Some(load)) => grid.best_but(Some(place), load, &self.measure),
            (policy, _) => grid.place_of(&Line { policy: policy.to_owned(), variant: self.against_variant.clone() }),
        };
        self.against.iter().map(rival).collect()
    }

    fn at_loads(&self, grid: &Grid<'_>, place: usize) -> Option<Vec<Finding>> {
        let mut findings = Vec::new();
        for (at, load) in grid.loads.iter().enumerate().filter(|(_, load)| **load >= self.from_load) {
            if grid.cell(place, at).is_empty() {
                continue;
            }
            if self.against.is_empty() {
                findings.push(self.finding(Some(*load), String::new(), grid.mean(place, at, &self.measure)?));
            }
            for rival in self.rivals(grid, place, Some(at))? {
                // What both have none of is equal.
                let figure = match grid.ratio(place, rival, at, &self.measure) {
                    Some(figure) => figure,
                    None if grid.mean(place, at, &self.measure)?.mean <= 0.0 => {
                        Estimate { mean: 1.0, half: Some(0.0), seeds: grid.cell(place, at).len() }
                    }
                    None => return None,
                };
                findings.push(self.finding(Some(*load), grid.lines.get(rival)?.policy.clone(), figure));
            }
        }
        Some(findings)
    }

    fn at_knee(&self, grid: &Grid<'_>, place: usize) -> Option<Vec<Finding>> {
        let knee = self.knee.as_ref()?;
        let own = knees(grid, place, knee, &self.measure);
        let mut findings = Vec::new();
        for rival in self.rivals(grid, place, None)? {
            let others = knees(grid, rival, knee, &self.measure);
            let pair = |(seed, found): (&u64, &KneeValue)| {
                // Below the lowest load that was run, what it reaches there is more than what it may; of the policy
                // itself that is nothing.
                let value = if found.is_met { found.value } else { 0.0 };
                Some((value, others.get(seed)?.value))
            };
            let pairs: Vec<(f64, f64)> = own.iter().filter_map(pair).collect();
            findings.push(self.finding(None, grid.lines.get(rival)?.policy.clone(), ratio(&pairs)?));
        }
        Some(findings)
    }

    fn finding(&self, load: Option<f64>, against: String, figure: Estimate) -> Finding {
        let relative = |distance: f64, bound: f64| distance / bound.abs().max(1e-9);
        let most = self.at_most.map_or(f64::INFINITY, |bound| relative(bound - figure.mean, bound));
        let least = self.at_least.map_or(f64::INFINITY, |bound| relative(figure.mean - bound, bound));
        let margin = most.min(least);
        let is_within = |bound: &f64| figure.low() < *bound && *bound < figure.high();
        let is_close = self.at_most.iter().chain(&self.at_least).any(is_within);
        let holds = match (is_close, self.doubt) {
            (false, _) | (true, Doubt::ByMean) => margin >= 0.0,
            (true, Doubt::Held) => true,
            (true, Doubt::Failed) => false,
        };
        Finding { load, against, figure, holds, is_close, margin }
    }

    /// The bounds in words.
    #[must_use]
    pub fn bounds(&self) -> String {
        let scale = if self.against.is_empty() { self.measure.metric.unit.scale() } else { 1.0 };
        let unit = if self.against.is_empty() { self.measure.metric.unit.symbol() } else { "×" };
        let rounded = |bound: f64| (bound * scale * 1e6).round() / 1e6;
        match (self.at_least, self.at_most) {
            (Some(least), Some(most)) => format!("{} to {} {unit}", rounded(least), rounded(most)),
            (Some(least), None) => format!("≥ {} {unit}", rounded(least)),
            (None, Some(most)) => format!("≤ {} {unit}", rounded(most)),
            (None, None) => String::new(),
        }
    }
}

impl Verdict {
    const fn untested() -> Self {
        Self { outcome: Outcome::Untested, findings: Vec::new() }
    }
}

/// What a policy reaches within the objective, with one seed.
struct KneeValue {
    value: f64,
    /// The objective is met at the lowest load.
    is_met: bool,
}

/// For each seed, the most of `measure` while the objective is met.
fn knees(grid: &Grid<'_>, line: usize, knee: &Knee, measure: &Measure) -> BTreeMap<u64, KneeValue> {
    let mut by_seed: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
    for run in (0..grid.loads.len()).flat_map(|load| grid.cell(line, load)) {
        if let (Some(limited), Some(value)) = (knee.measure.read(run), measure.read(run)) {
            by_seed.entry(run.seed).or_default().push((limited, value));
        }
    }
    by_seed.into_iter().filter_map(|(seed, points)| Some((seed, at_knee(&points, knee.at_most)?))).collect()
}

/// Of (limited, value) by load: the most of value up to where the limited first crosses its bound, between two loads
/// interpolated on a straight line.
fn at_knee(points: &[(f64, f64)], bound: f64) -> Option<KneeValue> {
    let mut before = *points.first()?;
    if before.0 > bound {
        return Some(KneeValue { value: before.1, is_met: false });
    }
    let mut most = before.1;
    for (limited, value) in points.iter().skip(1).copied() {
        if limited > bound {
            let share = (bound - before.0) / (limited - before.0);
            return Some(KneeValue { value: most.max(before.1 + share * (value - before.1)), is_met: true });
        }
        most = most.max(value);
        before = (limited, value);
    }
    Some(KneeValue { value: most, is_met: true })
}

/// A cell in which a baseline is better than the reference, beyond doubt.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The load.
    pub load: f64,
    /// The baseline.
    pub against: String,
    /// What it is better in.
    pub measure: Measure,
    /// The reference's mean.
    pub own: Estimate,
    /// The baseline's.
    pub other: Estimate,
    /// The reference as a multiple of the baseline; `None` where that has none of it.
    pub ratio: Option<Estimate>,
}

/// Every cell in which a baseline beats the reference with an interval that leaves out equality.
#[must_use]
pub fn losses(grid: &Grid<'_>, measures: &[Measure]) -> Vec<Loss> {
    let reference = grid.reference();
    let mut losses = Vec::new();
    let rivals = || grid.lines.iter().enumerate().filter(|(place, line)| *place != reference && line.competes());
    for (at, load) in grid.loads.iter().enumerate() {
        for ((place, line), measure) in rivals().flat_map(|rival| measures.iter().map(move |m| (rival, m))) {
            let better = measure.metric.better;
            let means = grid.mean(reference, at, measure).zip(grid.mean(place, at, measure));
            let Some((own, other)) = means.filter(|(own, other)| better.prefers(other.mean, own.mean)) else {
                continue;
            };
            let ratio = grid.ratio(reference, place, at, measure);
            let is_certain = match ratio {
                Some(ratio) => ratio.excludes(1.0),
                None => better == Better::Lower && own.excludes(0.0),
            };
            if is_certain {
                let against = line.policy.clone();
                losses.push(Loss { load: *load, against, measure: measure.clone(), own, other, ratio });
            }
        }
    }
    losses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::report::fake;
    use crate::sim::report::table::columns;

    fn claim(measure: &str, against: &[&str]) -> Claim {
        Claim {
            text: "it is so".to_owned(),
            policy: "price".to_owned(),
            variant: String::new(),
            measure: measure.parse().unwrap(),
            against: against.iter().map(|name| (*name).to_owned()).collect(),
            against_variant: String::new(),
            at_most: None,
            at_least: None,
            loads: Loads::Every,
            from_load: 0.0,
            knee: None,
            doubt: Doubt::ByMean,
        }
    }

    const POLICIES: [&str; 5] = ["price", "least_request", "round_robin", "sticky", "oracle"];

    #[test]
    fn ratios_are_held_against_each_rival_at_each_load() {
        let runs = fake::runs(&POLICIES, &[2.0, 4.0], 10);
        let grid = &Grid::lay_out(&runs)[0];
        let claim = Claim { at_most: Some(0.65), ..claim("ttft_p50_s", &["least_request", "round_robin"]) };
        let verdict = claim.check(grid);
        assert_eq!((verdict.outcome, verdict.findings.len()), (Outcome::Held, 4));
        let deciding = verdict.deciding(Loads::Every).unwrap();
        assert_eq!(deciding.against, "least_request");
        assert!((0.3..0.36).contains(&deciding.figure.mean) && !deciding.is_close, "{deciding:?}");
        // The best baseline is `sticky`; the oracle is none.
        let best = Claim { against: vec![BEST.to_owned()], ..claim.clone() };
        assert_eq!(best.check(grid).outcome, Outcome::Failed);
        assert!(best.check(grid).findings.iter().all(|finding| finding.against == "sticky"));
        let missing = Claim { against: vec!["dualmap".to_owned()], ..claim };
        assert_eq!(missing.check(grid).outcome, Outcome::Untested);
        assert_eq!(missing.bounds(), "≤ 0.65 ×");
    }

    #[test]
    fn values_have_bounds_of_their_own_and_doubt_is_settled_as_asked() {
        let runs = fake::runs(&POLICIES, &[2.0], 10);
        let grid = &Grid::lay_out(&runs)[0];
        let value = Claim { at_least: Some(0.88), at_most: Some(0.92), ..claim("ttft_p90_covered", &[]) };
        assert_eq!((value.check(grid).outcome, value.bounds().as_str()), (Outcome::Held, "88 to 92 %"));
        // Equal but for noise: the interval holds 1.
        let mut runs = fake::runs(&["price", "sticky"], &[2.0], 10);
        for run in runs.iter_mut().filter(|run| run.policy == "sticky") {
            run.ttft_p50_s =
                fake::run("price", "", 2.0, run.seed).ttft_p50_s * (1.0 + 0.01 * (run.seed % 2) as f64 - 0.006);
        }
        let grid = &Grid::lay_out(&runs)[0];
        let outcome = |doubt| Claim { at_most: Some(1.0), doubt, ..claim("ttft_p50_s", &["sticky"]) }.check(grid);
        assert!(outcome(Doubt::ByMean).findings[0].is_close);
        let outcomes = [Doubt::ByMean, Doubt::Held, Doubt::Failed].map(|doubt| outcome(doubt).outcome);
        assert_eq!(outcomes, [Outcome::Failed, Outcome::Held, Outcome::Failed]);
    }

    #[test]
    fn some_load_is_enough_where_it_says_so() {
        let mut runs = fake::runs(&["price", "sticky"], &[2.0, 4.0, 6.0], 5);
        for run in runs.iter_mut().filter(|run| run.policy == "sticky" && run.load > 5.0) {
            run.ttft_p50_s *= 10.0;
        }
        let grid = &Grid::lay_out(&runs)[0];
        let every = Claim { at_most: Some(0.2), ..claim("ttft_p50_s", &["sticky"]) };
        assert_eq!(every.check(grid).outcome, Outcome::Failed);
        let some = Claim { loads: Loads::Some, ..every.clone() };
        assert_eq!(some.check(grid).outcome, Outcome::Held);
        assert_eq!(some.check(grid).deciding(Loads::Some).unwrap().load, Some(6.0));
        assert_eq!(Claim { from_load: 5.0, ..every }.check(grid).outcome, Outcome::Held);
    }

    #[test]
    fn the_knee_lies_where_the_objective_is_crossed() {
        let value = |points: &[(f64, f64)]| at_knee(points, 2.0).map(|found| (found.value, found.is_met));
        assert_eq!(value(&[(1.0, 10.0), (3.0, 20.0), (9.0, 30.0)]), Some((15.0, true)));
        assert_eq!(value(&[(1.0, 10.0), (1.5, 20.0)]), Some((20.0, true)));
        assert_eq!(value(&[(3.0, 10.0)]), Some((10.0, false)));
        assert_eq!(value(&[]), None);
        let runs = fake::runs(&["price", "least_request"], &[2.0, 4.0, 8.0], 5);
        let grid = &Grid::lay_out(&runs)[0];
        let knee = Some(Knee { measure: Measure::of("ttft_p90_s").unwrap(), at_most: 0.7 });
        let claim = Claim { at_least: Some(1.1), knee, ..claim("output_tokens_per_s", &["least_request"]) };
        let verdict = claim.check(grid);
        assert_eq!((verdict.outcome, verdict.findings[0].load), (Outcome::Held, None));
    }

    #[test]
    fn losing_cells_are_those_beyond_doubt() {
        let mut runs = fake::runs(&["price", "sticky", "oracle"], &[2.0, 4.0], 10);
        for run in runs.iter_mut().filter(|run| run.policy == "sticky" && run.load > 3.0) {
            run.hit_rate = 0.99;
            run.rejected = 0;
        }
        let grid = &Grid::lay_out(&runs)[0];
        let found = losses(grid, &columns(grid));
        let found: Vec<(f64, &str, &str)> =
            found.iter().map(|loss| (loss.load, loss.against.as_str(), loss.measure.metric.key)).collect();
        assert_eq!(found, [(4.0, "sticky", "hit_rate"), (4.0, "sticky", "rejected_share")]);
    }
}
