//! Results as one HTML file that needs no network: plots over load with a legend that switches lines on and off, plots
//! over time where runs kept them, and the tables. It follows the reader's light or dark theme.

use std::fmt::Write as _;

use super::grid::Grid;
use super::measure::{Measure, Unit};
use super::plot::{self, Curve, Plot, Point, Scale, escape};
use super::table::{self, Table};
use crate::sim::result::{RunResult, Series};

/// What is plotted over load, and how the axis is divided.
const PLOTTED: [(&str, Scale); 14] = [
    ("ttft_p50_s", Scale::Log),
    ("ttft_p90_s", Scale::Log),
    ("ttft_p99_s", Scale::Log),
    ("ttft_from_arrival_p50_s", Scale::Log),
    ("ttft_from_arrival_p90_s", Scale::Log),
    ("hit_rate", Scale::Linear),
    ("regenerated_share", Scale::Linear),
    ("output_tokens_per_s", Scale::Linear),
    ("requests_per_s", Scale::Linear),
    ("e2e_p50_s", Scale::Linear),
    ("e2e_p90_s", Scale::Linear),
    ("tpot_p50_s", Scale::Linear),
    ("admission_wait_mean_s", Scale::Linear),
    ("rejected_share", Scale::Linear),
];
/// Replicas that a plot over time draws.
const REPLICAS_MAX: usize = 16;
/// Runs whose series are drawn.
const SERIES_RUNS_MAX: usize = 24;

const PAGE_STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--best:#1a8a4a}\
@media(prefers-color-scheme:dark){:root{--best:#5fd08a}}\
body{font:15px/1.5 system-ui,sans-serif;max-width:1440px;margin:2em auto;padding:0 1em}\
h1,h2,h3{line-height:1.2}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px;margin:.5em 0}\
td,th{padding:2px 9px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}\
td:first-child,th:first-child,td.text,th.text{text-align:left}td.best{font-weight:700;color:var(--best)}\
.plots{display:flex;flex-wrap:wrap;gap:14px}.plots svg{max-width:100%;height:auto}.scroll{overflow-x:auto}\
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;padding:0;list-style:none}\
.legend button{all:unset;cursor:pointer;display:flex;gap:6px;align-items:center}\
.legend button:focus-visible{outline:2px solid}.legend [aria-pressed=false]{opacity:.35}\
.legend svg{width:28px;height:10px}";

/// Switches the line of a legend's entry off and on in all plots of its section.
const SCRIPT: &str = "\
for(const b of document.querySelectorAll('.legend button'))b.onclick=()=>{\
const on=b.getAttribute('aria-pressed')==='true';b.setAttribute('aria-pressed',!on);\
for(const g of b.closest('section').querySelectorAll('.over-load g.k'+b.dataset.k))g.classList.toggle('off',on)}";

/// A whole document around `body`.
#[must_use]
pub fn document(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>\
         <title>{title}</title><style>{PAGE_STYLE}{}</style></head>\n<body>\n<h1>{title}</h1>\n{body}\
         <script>{SCRIPT}</script></body></html>\n",
        plot::STYLE
    )
}

/// The report of some results.
#[must_use]
pub fn report(results: &[RunResult]) -> String {
    let grids = Grid::lay_out(results);
    let mut body = String::new();
    for grid in &grids {
        let _ = write!(body, "<section><h2>{}</h2>\n{}</section>\n", escape(&grid.title()), grid_body(grid));
    }
    body.push_str(&over_time(results));
    document("emberlane sim", &body)
}

/// Legend, plots and tables of a grid, for a `section` of its own.
#[must_use]
pub fn grid_body(grid: &Grid<'_>) -> String {
    let mut out = legend(grid);
    out.push_str("<div class='plots over-load'>\n");
    for (_, plot) in over_load(grid) {
        out.push_str(&plot::svg(&plot));
        out.push('\n');
    }
    out.push_str("</div>\n");
    let columns = table::columns(grid);
    for (place, load) in grid.loads.iter().enumerate() {
        let means = to_html(&table::means(grid, place, &columns));
        let differences = table::differences(grid, place, &columns).map(|table| to_html(&table));
        let differences = differences.unwrap_or_default();
        let _ = writeln!(out, "<details><summary>load {load}, in figures</summary>{means}{differences}</details>");
    }
    out
}

/// Plots over load, each with the measure it shows: those that are not zero throughout.
#[must_use]
pub fn over_load(grid: &Grid<'_>) -> Vec<(Measure, Plot)> {
    let mut measures: Vec<(Measure, Scale)> =
        PLOTTED.iter().filter_map(|(key, scale)| Some((Measure::of(key)?, *scale))).collect();
    for class in grid.classes() {
        let of_class = Measure::of("ttft_p95_s").and_then(|measure| measure.of_class(&class));
        measures.extend(of_class.map(|measure| (measure, Scale::Log)));
    }
    measures.retain(|(measure, _)| grid.has(measure) && table::says_more(measure, grid));
    measures.into_iter().map(|(measure, scale)| (measure.clone(), plot_of(grid, &measure, scale))).collect()
}

fn plot_of(grid: &Grid<'_>, measure: &Measure, y_scale: Scale) -> Plot {
    let scale = measure.metric.unit.scale();
    let curve = |(place, line): (usize, &super::grid::Line)| {
        let point = |(at, load): (usize, &f64)| {
            let found = grid.mean(place, at, measure)?;
            let (low, high) = (found.low() * scale, found.high() * scale);
            Some(Point { x: *load, y: found.mean * scale, low: low.max(0.0), high })
        };
        let points = grid.loads.iter().enumerate().filter_map(point).collect();
        Curve { label: line.to_string(), style: place, points }
    };
    let unit = match measure.metric.unit {
        unit @ (Unit::Seconds | Unit::Share) => unit.symbol().to_owned(),
        Unit::PerSecond | Unit::Times | Unit::Count => String::new(),
    };
    Plot {
        title: measure.title(),
        x_label: "load".to_owned(),
        y_scale,
        unit,
        curves: grid.lines.iter().enumerate().map(curve).filter(|curve| !curve.points.is_empty()).collect(),
        x_ticks: grid.loads.clone(),
        has_legend: false,
        has_points: true,
    }
}

fn legend(grid: &Grid<'_>) -> String {
    let mut out = String::from("<ul class='legend'>\n");
    for (place, line) in grid.lines.iter().enumerate() {
        let _ = writeln!(
            out,
            "<li><button data-k='{place}' aria-pressed='true'><svg class='plot'><path class='l' {} d='M0 5h28'/></svg>{}\
             </button></li>",
            plot::stroke(place),
            escape(&line.to_string())
        );
    }
    out.push_str("</ul>\n");
    out
}

/// Plots of the series that runs kept, for the first seed of each line and load.
#[must_use]
pub fn over_time(results: &[RunResult]) -> String {
    let drawn = first_of_each(results);
    if drawn.is_empty() {
        return String::new();
    }
    let mut out = String::from("<section><h2>Over time</h2>\n<div class='plots'>\n");
    let compared = compared(results).into_iter().map(|plot| Plot { has_legend: true, ..plot });
    let series = drawn.iter().flat_map(|run| run.series.iter().map(|series| series_plot(run, series)));
    for plot in compared.chain(series) {
        out.push_str(&plot::svg(&plot));
        out.push('\n');
    }
    out.push_str("</div></section>\n");
    out
}

/// The first run of each line and load that kept series.
fn first_of_each(results: &[RunResult]) -> Vec<&RunResult> {
    let mut first: Vec<&RunResult> = Vec::new();
    for run in results.iter().filter(|run| !run.series.is_empty()) {
        let same = |other: &&RunResult| {
            (&other.workload, &other.policy, &other.variant) == (&run.workload, &run.policy, &run.variant)
                && other.load.total_cmp(&run.load).is_eq()
        };
        if first.len() < SERIES_RUNS_MAX && !first.iter().any(same) {
            first.push(run);
        }
    }
    first
}

/// Plots that set policies side by side over time: of series that are one line a run, at each load.
#[must_use]
pub fn compared(results: &[RunResult]) -> Vec<Plot> {
    let runs = first_of_each(results);
    let mut loads: Vec<f64> = runs.iter().map(|run| run.load).collect();
    loads.sort_by(f64::total_cmp);
    loads.dedup();
    let mut plots = Vec::new();
    for load in loads {
        let here: Vec<&RunResult> = runs.iter().copied().filter(|run| run.load.total_cmp(&load).is_eq()).collect();
        let named = here.first().map_or(&[][..], |run| &run.series).iter().filter(|series| series.values.len() == 1);
        for name in named.map(|series| &series.name) {
            let of = |run: &&RunResult| run.series.iter().find(|series| series.name == *name).cloned();
            let curves = here.iter().enumerate().filter_map(|(place, run)| {
                let plot = series_plot(run, &of(run)?);
                let label = super::grid::Line::of(run).to_string();
                plot.curves.into_iter().next().map(|curve| Curve { label, style: place, ..curve })
            });
            let curves: Vec<Curve> = curves.collect();
            let first = here.first().and_then(|run| Some(series_plot(run, &of(run)?)));
            plots.extend(first.filter(|_| curves.len() > 1).map(|plot| Plot {
                title: format!("{name} (load {load})"),
                curves,
                ..plot
            }));
        }
    }
    plots
}

/// A series of a run as a plot: a line for each of the first replicas, or whatever it is of.
#[must_use]
pub fn series_plot(run: &RunResult, series: &Series) -> Plot {
    let curve = |(replica, values): (usize, &Vec<f32>)| {
        let point = |(at, value): (&f32, &f32)| {
            let (x, y) = (f64::from(*at), f64::from(*value));
            Point { x, y, low: y, high: y }
        };
        let points = series.at_s.iter().zip(values).map(point).collect();
        let label = series.labels.get(replica).cloned().unwrap_or_else(|| format!("r{replica}"));
        Curve { label, style: replica, points }
    };
    let line = super::grid::Line::of(run);
    Plot {
        title: format!("{} ({line}, load {})", series.name, run.load),
        x_label: "seconds".to_owned(),
        y_scale: Scale::Linear,
        unit: series.unit.clone(),
        curves: series.values.iter().take(REPLICAS_MAX).enumerate().map(curve).collect(),
        x_ticks: Vec::new(),
        has_legend: false,
        has_points: false,
    }
}

/// A table as HTML.
#[must_use]
pub fn to_html(table: &Table) -> String {
    let mut out = String::from("<div class='scroll'><table><tr>");
    let text_class = |place: usize| if place < table.texts { " class='text'" } else { "" };
    for (place, text) in table.heading.iter().enumerate() {
        let _ = write!(out, "<th{}>{}</th>", text_class(place), escape(text));
    }
    out.push_str("</tr>\n");
    for row in &table.rows {
        out.push_str("<tr>");
        for (place, cell) in row.iter().enumerate() {
            let class = if cell.is_best { " class='best'" } else { text_class(place) };
            let _ = write!(out, "<td{class}>{}</td>", escape(&cell.text));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::report::fake;

    #[test]
    fn there_is_a_plot_for_each_measure_that_has_values() {
        let runs = fake::runs(&["price", "least_request", "oracle"], &[2.0, 4.0, 8.0], 4);
        let page = report(&runs);
        let grid = &Grid::lay_out(&runs)[0];
        let measures: Vec<String> = over_load(grid).iter().map(|(measure, _)| measure.to_string()).collect();
        for key in ["ttft_p50_s", "ttft_p90_s", "ttft_p99_s", "hit_rate", "regenerated_share", "output_tokens_per_s"] {
            assert!(measures.iter().any(|measure| measure == key), "no {key} in {measures:?}");
        }
        assert!(measures.contains(&"ttft_p95_s/short".to_owned()) && measures.contains(&"rejected_share".to_owned()));
        assert!(!measures.contains(&"admission_wait_mean_s".to_owned()), "nobody waited");
        assert_eq!(page.matches("role='img'").count(), measures.len());
        for (measure, _) in over_load(grid) {
            assert!(page.contains(&format!("<text class='t' x='58' y='16'>{}</text>", measure.title())), "{measure}");
        }
        assert_eq!(page.matches("<button").count(), 3);
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let runs = fake::runs(&["price"], &[2.0], 2);
        let page = report(&runs).replace("http://www.w3.org/2000/svg", "");
        for word in ["http", "<link", "src=", "@import", "url("] {
            assert!(!page.contains(word), "{word}");
        }
    }

    #[test]
    fn names_cannot_become_markup() {
        let runs = fake::runs(&["<script>alert(1)</script>"], &[2.0], 2);
        assert!(!report(&runs).contains("<script>alert"));
    }

    #[test]
    fn series_are_drawn_once_a_line_and_load() {
        let mut runs = fake::runs(&["price"], &[2.0], 3);
        assert_eq!(over_time(&runs), "");
        for run in &mut runs {
            run.series = vec![fake::series()];
        }
        let drawn = over_time(&runs);
        assert_eq!((drawn.matches("<svg").count(), drawn.matches("class='l'").count()), (1, 4));
        assert!(drawn.contains("replicas that hold the prefix (price, load 2)"));
    }

    #[test]
    fn series_of_one_line_are_drawn_policies_side_by_side() {
        let mut runs = fake::runs(&["price", "sticky"], &[2.0], 3);
        for run in &mut runs {
            let series = fake::series();
            run.series = vec![Series { values: series.values[..1].to_vec(), ..series.clone() }, series];
        }
        let plots = compared(&runs);
        assert_eq!((plots.len(), plots[0].curves.len()), (1, 2));
        assert_eq!(plots[0].title, "replicas that hold the prefix (load 2)");
        assert_eq!(over_time(&runs).matches("<svg").count(), 1 + 4);
    }
}
