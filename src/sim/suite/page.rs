//! The page of evidence: which claims held, where the reference loses, and for each scenario its figures and plots.

use std::fmt::Write as _;

use super::claim::{self, Claim, Finding, Loss, Outcome, Verdict};
use super::evidence::{Evidence, settings};
use super::{Entry, Suite};
use crate::sim::report::grid::{Grid, REFERENCE};
use crate::sim::report::html;
use crate::sim::report::measure::Measure;
use crate::sim::report::plot::{self, escape};
use crate::sim::report::statistics::Estimate;
use crate::sim::report::table::{self, Cell, Table};
use crate::sim::result::{RunResult, Series};

/// What the Markdown page plots and tells by load; the HTML page has all.
const BY_LOAD: [&str; 7] = [
    "ttft_p50_s",
    "ttft_p90_s",
    "ttft_from_arrival_p50_s",
    "ttft_from_arrival_p90_s",
    "hit_rate",
    "output_tokens_per_s",
    "admission_wait_mean_s",
];
/// What is told of hot prefixes, where there are any.
const OF_HOT: [&str; 5] = ["holders_before", "holders_while_hot", "holders_after", "holder_changes_per_min", "herding"];
/// What a baseline may be better in.
const COMPARED: [&str; 18] = [
    "hit_rate",
    "regenerated_share",
    "ttft_p50_s",
    "ttft_p90_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "ttft_from_arrival_p50_s",
    "ttft_from_arrival_p90_s",
    "ttft_from_arrival_p95_s",
    "ttft_from_arrival_p99_s",
    "tpot_p50_s",
    "tpot_p90_s",
    "e2e_p50_s",
    "e2e_p90_s",
    "output_tokens_per_s",
    "requests_per_s",
    "admission_wait_mean_s",
    "rejected_share",
];
/// Series that are files of their own.
const SERIES_MAX: usize = 12;

/// The runs of a scenario with nothing changed.
fn plain(evidence: &Evidence) -> Option<Grid<'_>> {
    Grid::lay_out(evidence.results.iter().filter(|run| run.variant.is_empty())).into_iter().next()
}

/// All its runs.
fn all(evidence: &Evidence) -> Option<Grid<'_>> {
    Grid::lay_out(&evidence.results).into_iter().next()
}

fn measures(keys: &[&str], grid: &Grid<'_>) -> Vec<Measure> {
    let mut measures: Vec<Measure> = keys.iter().filter_map(|key| Measure::of(key)).collect();
    for class in grid.classes() {
        measures.extend(Measure::of("ttft_p95_s").and_then(|measure| measure.of_class(&class)));
    }
    measures.retain(|measure| table::says_more(measure, grid));
    measures
}

/// A claim, where it was made, and what came of it.
struct Checked<'e> {
    entry: &'e Entry,
    claim: &'e Claim,
    verdict: Verdict,
}

fn checked(evidence: &[Evidence]) -> Vec<Checked<'_>> {
    let mut checked = Vec::new();
    for found in evidence {
        let grid = all(found);
        for claim in &found.entry.claims {
            let verdict = grid.as_ref().map(|grid| claim.check(grid));
            let verdict = verdict.unwrap_or(Verdict { outcome: Outcome::Untested, findings: Vec::new() });
            checked.push(Checked { entry: &found.entry, claim, verdict });
        }
    }
    checked
}

/// How many claims there are of each outcome: held, failed, untested.
#[must_use]
pub fn outcomes(evidence: &[Evidence]) -> [usize; 3] {
    let checked = checked(evidence);
    [Outcome::Held, Outcome::Failed, Outcome::Untested]
        .map(|outcome| checked.iter().filter(|checked| checked.verdict.outcome == outcome).count())
}

/// The claims as a table: one row each.
#[must_use]
pub fn claims(evidence: &[Evidence]) -> Table {
    let heading = ["claim", "scenario", "measure", "bound", "", "the figure that decides", "at each load"];
    let mut table = Table { heading: heading.map(str::to_owned).to_vec(), rows: Vec::new(), texts: 7 };
    for Checked { entry, claim, verdict } in checked(evidence) {
        let deciding = verdict.deciding(claim.loads);
        let closely = if deciding.is_some_and(|finding| finding.is_close) { ", narrowly" } else { "" };
        let outcome = format!("{}{closely}", verdict.outcome.as_str());
        let row = [
            claim.text.clone(),
            entry.name.clone(),
            if claim.variant.is_empty() {
                claim.measure.to_string()
            } else {
                format!("{}, {}", claim.measure, claim.variant)
            },
            claim.bounds(),
            outcome,
            deciding.map_or_else(|| "not run".to_owned(), |finding| in_words(claim, finding)),
            at_each_load(claim, &verdict),
        ];
        let mut row: Vec<Cell> = row.map(Cell::from).to_vec();
        if let Some(cell) = row.get_mut(4) {
            // What did not hold must not be overlooked.
            cell.is_best = verdict.outcome != Outcome::Held;
        }
        table.rows.push(row);
    }
    table
}

fn figure(claim: &Claim, finding: &Finding) -> String {
    if claim.against.is_empty() {
        return table::shown(&finding.figure, &claim.measure);
    }
    let half = finding.figure.half.map(|half| format!(" ±{half:.3}"));
    format!("{:.3}{}", finding.figure.mean, half.unwrap_or_default())
}

fn in_words(claim: &Claim, finding: &Finding) -> String {
    let place = finding.load.map_or_else(|| "at the knee".to_owned(), |load| format!("at load {load}"));
    let of = if finding.against.is_empty() { String::new() } else { format!(" × {}", finding.against) };
    format!("{}{of} {place}", figure(claim, finding))
}

/// The figure nearest to failing at each load.
fn at_each_load(claim: &Claim, verdict: &Verdict) -> String {
    let mut worst: Vec<&Finding> = Vec::new();
    for finding in &verdict.findings {
        match worst.iter_mut().find(|other| other.load.map(f64::to_bits) == finding.load.map(f64::to_bits)) {
            Some(other) if finding.margin < other.margin => *other = finding,
            Some(_) => {}
            None => worst.push(finding),
        }
    }
    let scale = if claim.against.is_empty() { claim.measure.metric.unit.scale() } else { 1.0 };
    let shown = |finding: &&Finding| {
        let value = finding.figure.mean * scale;
        let load = finding.load.map(|load| format!("{load}: "));
        format!("{}{value:.*}", load.unwrap_or_default(), table::decimals(value).min(3))
    };
    worst.iter().map(shown).collect::<Vec<_>>().join(" · ")
}

/// Every cell that the reference loses beyond doubt, the worst first within each scenario.
#[must_use]
pub fn losing_cells(evidence: &[Evidence]) -> Table {
    let heading = ["scenario", "load", "baseline", "measure", "price", "baseline's", "price as a multiple"];
    let mut table = Table { heading: heading.map(str::to_owned).to_vec(), rows: Vec::new(), texts: 4 };
    for found in evidence {
        let Some(grid) = plain(found).filter(|grid| grid.plain(REFERENCE).is_some()) else { continue };
        let mut losses = claim::losses(&grid, &measures(&COMPARED, &grid));
        let size = |loss: &Loss| loss.ratio.map_or(f64::INFINITY, |ratio| ratio.mean.max(1e-9).ln().abs());
        losses.sort_by(|a, b| size(b).total_cmp(&size(a)));
        for loss in losses {
            let half = |ratio: Estimate| format!("{:.3} ±{:.3}", ratio.mean, ratio.half.unwrap_or_default());
            let row = [
                found.entry.name.clone(),
                loss.load.to_string(),
                loss.against,
                loss.measure.heading(),
                table::shown(&loss.own, &loss.measure),
                table::shown(&loss.other, &loss.measure),
                loss.ratio.map_or_else(|| "–".to_owned(), half),
            ];
            table.rows.push(row.map(Cell::from).to_vec());
        }
    }
    table
}

/// What was changed, beside the same policy as it is: one table a load.
fn ablations(evidence: &Evidence) -> Vec<(f64, Table, Option<Table>)> {
    let Some(grid) = all(evidence) else { return Vec::new() };
    let changed: Vec<&str> =
        evidence.entry.ablations.iter().flat_map(|ablation| &ablation.policies).map(String::as_str).collect();
    let mut loads: Vec<f64> = evidence.entry.ablations.iter().flat_map(|ablation| ablation.loads.clone()).collect();
    loads.sort_by(f64::total_cmp);
    loads.dedup();
    let is_shown = |run: &&RunResult| changed.contains(&run.policy.as_str());
    let at = |load: f64| {
        let runs = evidence.results.iter().filter(is_shown).filter(move |run| run.load.total_cmp(&load).is_eq());
        let shown = Grid::lay_out(runs).into_iter().next()?;
        let columns = table::columns(&grid);
        Some((load, table::means(&shown, 0, &columns), table::differences(&shown, 0, &columns)))
    };
    loads.into_iter().filter_map(at).collect()
}

/// The page's plots, each with the name of its file.
#[must_use]
pub fn plots(evidence: &[Evidence]) -> Vec<(String, String)> {
    let mut plots = Vec::new();
    for found in evidence {
        let Some(grid) = plain(found) else { continue };
        for (measure, mut plot) in html::over_load(&grid) {
            if measure.class.is_some() || BY_LOAD.contains(&measure.metric.key) {
                plot.has_legend = true;
                plots.push((plot_file(&found.entry, &measure), plot::svg(&plot)));
            }
        }
        for (place, mut plot) in html::compared(&found.results).into_iter().enumerate() {
            plot.has_legend = true;
            plots.push((compared_file(&found.entry, place), plot::svg(&plot)));
        }
        for (place, (run, series)) in series_of(found).enumerate() {
            let mut plot = html::series_plot(run, series);
            plot.has_legend = true;
            plots.push((series_file(&found.entry, place), plot::svg(&plot)));
        }
    }
    plots
}

fn plot_file(entry: &Entry, measure: &Measure) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' };
    format!("{}-{}.svg", entry.name, measure.to_string().chars().map(plain).collect::<String>())
}

fn compared_file(entry: &Entry, place: usize) -> String {
    format!("{}-compared-{}.svg", entry.name, place + 1)
}

fn series_file(entry: &Entry, place: usize) -> String {
    format!("{}-over-time-{}.svg", entry.name, place + 1)
}

/// The series of the first run that kept any.
fn series_of(evidence: &Evidence) -> impl Iterator<Item = (&RunResult, &Series)> {
    let run = evidence.results.iter().find(|run| !run.series.is_empty());
    run.into_iter().flat_map(|run| run.series.iter().map(move |series| (run, series))).take(SERIES_MAX)
}

fn seeds(evidence: &[Evidence]) -> String {
    let (least, most) = evidence
        .iter()
        .map(|found| found.entry.scenario.seeds)
        .fold((u64::MAX, 0), |(least, most), n| (least.min(n), most.max(n)));
    if least >= most { most.to_string() } else { format!("{least} to {most}") }
}

/// What is said of the figures on either page.
fn preface(evidence: &[Evidence]) -> String {
    let runs: usize = evidence.iter().map(|found| found.results.len()).sum();
    let [held, failed, untested] = outcomes(evidence);
    let untested = if untested == 0 { String::new() } else { format!(", {untested} untested") };
    format!(
        "{runs} runs, {} seeds a cell. ± is the 95 % interval of the mean over seeds (Student's t); comparisons are paired \
         by seed. Claims: {held} held, {failed} failed{untested}.",
        seeds(evidence)
    )
}

const LOSING: &str = "Where a baseline is better than `price` and the paired interval leaves out equality. (Where nothing \
                      differs, one cell in forty gets here by chance.)";
const CLAIMS: &str = "Written down in the suite, checked by the command. A figure is a mean; *narrowly* means that the \
                      bound lies within its interval.";

/// The page as Markdown; plots lie in a directory of that name beside it.
#[must_use]
pub fn markdown(suite: &Suite, evidence: &[Evidence], name: &str) -> String {
    let mut out = format!("# {}\n\n{}\n\n", suite.title, suite.about);
    let _ = write!(
        out,
        "Made by `./x evidence` from [{name}.yaml]({name}.yaml); every run is in \
         [record/{name}.jsonl.gz](record/{name}.jsonl.gz), and [{name}.html]({name}.html) shows all plots with their \
         values.\n\n{}\n",
        preface(evidence)
    );
    let _ = write!(out, "\n## Claims\n\n{CLAIMS}\n\n{}", claims(evidence).to_markdown());
    let losing = losing_cells(evidence);
    let none = "None.\n".to_owned();
    let losing = if losing.rows.is_empty() { none } else { losing.to_markdown() };
    let _ = write!(out, "\n## Losing cells\n\n{LOSING}\n\n{losing}");
    for found in evidence {
        scenario_markdown(&mut out, found, name);
    }
    out
}

fn scenario_markdown(out: &mut String, evidence: &Evidence, name: &str) {
    let Evidence { entry, .. } = evidence;
    let separator = if entry.question.is_empty() { "" } else { "\n\n" };
    let _ = write!(out, "\n## {}\n\n{}{separator}{}\n", entry.name, entry.question, settings(&entry.scenario));
    let Some(grid) = plain(evidence) else { return };
    for measure in measures(&BY_LOAD, &grid).into_iter().filter(|measure| grid.has(measure)) {
        let table = table::by_load(&grid, &measure).to_markdown();
        let _ = write!(
            out,
            "\n{table}\n<details><summary>plot</summary>\n\n![{}]({name}/{})\n\n</details>\n",
            measure.title(),
            plot_file(entry, &measure)
        );
    }
    let of_hot: Vec<Measure> = OF_HOT.into_iter().filter_map(Measure::of).filter(|measure| grid.has(measure)).collect();
    for (place, load) in grid.loads.iter().enumerate().filter(|_| !of_hot.is_empty()) {
        let table = table::means(&grid, place, &of_hot).to_markdown();
        let _ = write!(out, "\nHot prefixes, at load {load}:\n\n{table}");
    }
    for (place, plot) in html::compared(&evidence.results).into_iter().enumerate() {
        let _ = write!(out, "\n![{}]({name}/{})\n", plot.title, compared_file(entry, place));
    }
    for (place, (_, series)) in series_of(evidence).enumerate() {
        let _ = write!(out, "\n![{}]({name}/{})\n", series.name, series_file(entry, place));
    }
    for (load, means, differences) in ablations(evidence) {
        let differences = differences.map(|table| format!("\n{}", table.to_markdown())).unwrap_or_default();
        let _ = write!(out, "\n### Changed, at load {load}\n\n{}{differences}", means.to_markdown());
    }
}

/// The page as one HTML file.
#[must_use]
pub fn html(suite: &Suite, evidence: &[Evidence]) -> String {
    let mut body = format!("<p>{}</p>\n<p>{}</p>\n", escape(&suite.about), escape(&preface(evidence)));
    let _ = write!(body, "<h2>Claims</h2>\n<p>{}</p>\n{}", escape(CLAIMS), html::to_html(&claims(evidence)));
    let losing = losing_cells(evidence);
    let count = losing.rows.len();
    let _ = write!(
        body,
        "<h2>Losing cells</h2>\n<p>{}</p>\n<details><summary>{count}</summary>{}</details>\n",
        escape(LOSING),
        html::to_html(&losing)
    );
    for found in evidence {
        let Evidence { entry, results } = found;
        let _ = write!(
            body,
            "<section id='{0}'><h2>{0}</h2>\n<p>{1}</p>\n<p>{2}</p>\n",
            entry.name,
            escape(&entry.question),
            escape(&settings(&entry.scenario))
        );
        body.push_str(&plain(found).map(|grid| html::grid_body(&grid)).unwrap_or_default());
        for (load, means, differences) in ablations(found) {
            let differences = differences.map(|table| html::to_html(&table)).unwrap_or_default();
            let _ = write!(body, "<h3>Changed, at load {load}</h3>\n{}{differences}", html::to_html(&means));
        }
        body.push_str("</section>\n");
        body.push_str(&html::over_time(results));
    }
    html::document(&suite.title, &body)
}
