//! Line plots as SVG that reads well in a light or dark page, shows its values under the pointer, and needs nothing
//! but itself.
//!
//! Written by hand, because what plots are needed for here — colours that follow the reader's theme, bands of
//! confidence, values on hover, lines that a legend switches off — are classes and titles on SVG elements, and the
//! plotting crates at hand write fixed colours and no titles (plotters), or bring megabytes of script (plotly, charming).

use std::fmt::Write as _;

/// How an axis is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps are equal differences; from zero.
    Linear,
    /// Equal steps are equal ratios.
    Log,
}

/// A point of a curve, and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Across.
    pub x: f64,
    /// Up.
    pub y: f64,
    /// The lower end of its interval; as `y` when there is none.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// A line and its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// Its name.
    pub label: String,
    /// Which of the styles it has: the same line has the same in every plot of a page.
    pub style: usize,
    /// Its points, by `x`.
    pub points: Vec<Point>,
}

/// A plot to draw.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Above it.
    pub title: String,
    /// Below the horizontal axis.
    pub x_label: String,
    /// The vertical axis.
    pub y_scale: Scale,
    /// The unit of its values, as it stands after a number.
    pub unit: String,
    /// The lines.
    pub curves: Vec<Curve>,
    /// Where the horizontal axis is labelled; by even steps when empty.
    pub x_ticks: Vec<f64>,
    /// Whether names are drawn beside it; a page with many plots has them once.
    pub has_legend: bool,
    /// Whether points are marked; not where there are hundreds.
    pub has_points: bool,
}

/// Lines' colours differ in hue and lightness, read on white and on near black (after Paul Tol's bright scheme).
const COLOURS: usize = 8;
/// Lines beyond [`COLOURS`] are dashed.
const DASHES: [&str; 3] = ["", " stroke-dasharray='7 3'", " stroke-dasharray='2 3'"];
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 290.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 40.0;
const LEGEND: f64 = 200.0;
const LEGEND_LINE: f64 = 15.0;
/// Points of a line at most; more are not seen.
const POINTS_MAX: usize = 400;

/// What the classes of a plot look like: for the head of a page, and within every plot that stands alone.
pub const STYLE: &str = "\
.plot{--ink:#222;--faint:#8886;--c0:#0b62c4;--c1:#d1495b;--c2:#1a8a4a;--c3:#b8860b;--c4:#7b4bb7;--c5:#0797a8;--c6:#c2571a;\
--c7:#6b7280;font:11px system-ui,sans-serif;fill:var(--ink)}\
@media(prefers-color-scheme:dark){.plot{--ink:#ddd;--c0:#6cb0ff;--c1:#ff8090;--c2:#5fd08a;--c3:#e5bd4a;--c4:#bd9bf0;\
--c5:#52d3e0;--c6:#ff9d5c;--c7:#a8b0bc}}\
.plot .t{font-weight:600;font-size:13px}.plot .g{stroke:var(--faint);stroke-width:1}\
.plot path.l{fill:none;stroke-width:1.8;stroke-linejoin:round}.plot path.b{stroke:none;opacity:.15}\
.plot circle{stroke:none}.plot circle:hover{stroke:var(--ink);stroke-width:2}.plot .off{display:none}";

/// How the line of a style is coloured and dashed.
#[must_use]
pub fn stroke(style: usize) -> String {
    let dash = DASHES[(style / COLOURS) % DASHES.len()];
    format!("style='stroke:var(--c{})'{dash}", style % COLOURS)
}

/// The plot as an SVG element.
#[must_use]
pub fn svg(plot: &Plot) -> String {
    let frame = Frame::around(plot);
    let width = if plot.has_legend { WIDTH + LEGEND } else { WIDTH };
    let legend_height = TOP + LEGEND_LINE * (plot.curves.len() as f64 + 1.0);
    let height = if plot.has_legend { HEIGHT.max(legend_height) } else { HEIGHT };
    let mut out = format!(
        "<svg class='plot' xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' role='img'>"
    );
    if plot.has_legend {
        let _ = write!(out, "<style>{STYLE}</style>");
    }
    let _ = write!(out, "<text class='t' x='{LEFT}' y='16'>{}</text>", escape(&plot.title));
    axes(&mut out, plot, &frame);
    for curve in &plot.curves {
        draw(&mut out, curve, plot, &frame);
    }
    if plot.has_legend {
        legend(&mut out, plot);
    }
    out.push_str("</svg>");
    out
}

/// From values to places in the picture.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
    scale: Scale,
}

impl Frame {
    fn around(plot: &Plot) -> Self {
        let points = || plot.curves.iter().flat_map(|curve| &curve.points);
        let x = span(points().map(|point| point.x).chain(plot.x_ticks.iter().copied()));
        let y = match plot.y_scale {
            Scale::Linear => {
                let (low, high) = span(points().flat_map(|point| [point.y, point.high, point.low]));
                (low.min(0.0), high.max(0.0) + (high - low.min(0.0)) * 0.05)
            }
            // Whole steps of 1, 2 and 5.
            Scale::Log => {
                let (low, high) = span(points().map(|point| point.y).filter(|y| *y > 0.0));
                (step_below(low), step_above(high))
            }
        };
        Self { x: widened(x), y: widened(y), scale: plot.y_scale }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + (value - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.y.0) / (self.y.1 - self.y.0),
            Scale::Log => (value.max(self.y.0) / self.y.0).ln() / (self.y.1 / self.y.0).ln(),
        };
        HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }

    fn y_ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => even_ticks(self.y),
            Scale::Log => {
                let fine = (self.y.1 / self.y.0).log10() < 3.1;
                let mut ticks = Vec::new();
                let mut tick = self.y.0;
                while tick <= self.y.1 * 1.001 && ticks.len() < 40 {
                    if fine || (mantissa(tick) - 1.0).abs() < 0.1 {
                        ticks.push(tick);
                    }
                    tick = step_above(tick * 1.01);
                }
                ticks
            }
        }
    }
}

/// The least and the most; 0 to 1 of nothing.
fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let bounds = |(low, high): (f64, f64), value: f64| (low.min(value), high.max(value));
    let found = values.filter(|value| value.is_finite()).fold((f64::INFINITY, f64::NEG_INFINITY), bounds);
    if found.0 <= found.1 { found } else { (0.0, 1.0) }
}

/// Never empty.
fn widened((low, high): (f64, f64)) -> (f64, f64) {
    let least = high.abs().max(1e-9) * 1e-6;
    if high - low > least { (low, high) } else { (low, low + high.abs().max(1e-9)) }
}

/// Its first digits, from 1 to 10.
fn mantissa(value: f64) -> f64 {
    value / 10_f64.powf((value.log10() + 1e-9).floor())
}

/// The next of …, 1, 2, 5, 10, … at or above a positive value.
fn step_above(value: f64) -> f64 {
    let value = value.max(1e-9);
    let (digits, power) = (mantissa(value), value / mantissa(value));
    [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| *step >= digits * 0.999_999).unwrap_or(10.0) * power
}

/// The last of them at or below.
fn step_below(value: f64) -> f64 {
    let value = value.max(1e-9);
    let (digits, power) = (mantissa(value), value / mantissa(value));
    [10.0, 5.0, 2.0, 1.0].into_iter().find(|step| *step <= digits * 1.000_001).unwrap_or(1.0) * power
}

/// About five even steps.
fn even_ticks((low, high): (f64, f64)) -> Vec<f64> {
    let step = step_above((high - low) / 6.0);
    let first = (low / step - 1e-9).ceil();
    (0..12_u8).map(|tick| (first + f64::from(tick)) * step).take_while(|tick| *tick <= high + step * 1e-6).collect()
}

fn axes(out: &mut String, plot: &Plot, frame: &Frame) {
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    let unit = if plot.unit.is_empty() { String::new() } else { format!(" {}", plot.unit) };
    for tick in frame.y_ticks() {
        let y = frame.y(tick);
        let _ = write!(
            out,
            "<path class='g' d='M{LEFT} {y:.1}H{right}'/><text x='{}' y='{:.1}' text-anchor='end'>{}{unit}</text>",
            LEFT - 5.0,
            y + 4.0,
            number(tick)
        );
    }
    let even = even_ticks(frame.x);
    for tick in if plot.x_ticks.is_empty() { &even } else { &plot.x_ticks } {
        let x = frame.x(*tick);
        let _ = write!(
            out,
            "<path class='g' d='M{x:.1} {bottom}v4'/><text x='{x:.1}' y='{}' text-anchor='middle'>{}</text>",
            bottom + 16.0,
            number(*tick)
        );
    }
    let middle = f64::midpoint(LEFT, right);
    let label = escape(&plot.x_label);
    let _ = write!(
        out,
        "<path class='g' d='M{LEFT} {bottom}H{right}'/><text x='{middle}' y='{}' text-anchor='middle'>{label}</text>",
        HEIGHT - 6.0
    );
}

fn draw(out: &mut String, curve: &Curve, plot: &Plot, frame: &Frame) {
    let every = curve.points.len().div_ceil(POINTS_MAX).max(1);
    let is_drawn = |point: &&Point| point.x.is_finite() && point.y.is_finite();
    let points: Vec<&Point> = curve.points.iter().step_by(every).filter(is_drawn).collect();
    if points.is_empty() {
        return;
    }
    let style = curve.style;
    let place = |x: f64, y: f64| format!("{:.1} {:.1}", frame.x(x), frame.y(y));
    let _ = write!(out, "<g class='k{style}'>");
    if points.iter().any(|point| point.high > point.low) {
        let upper = points.iter().map(|point| place(point.x, point.high));
        let lower = points.iter().rev().map(|point| place(point.x, point.low));
        let around: Vec<String> = upper.chain(lower).collect();
        let _ = write!(out, "<path class='b' style='fill:var(--c{})' d='M{}Z'/>", style % COLOURS, around.join("L"));
    }
    let along: Vec<String> = points.iter().map(|point| place(point.x, point.y)).collect();
    let label = escape(&curve.label);
    let _ = write!(out, "<path class='l' {} d='M{}'><title>{label}</title></path>", stroke(style), along.join("L"));
    for point in points.iter().filter(|_| plot.has_points) {
        let _ = write!(
            out,
            "<circle cx='{:.1}' cy='{:.1}' r='3.5' style='fill:var(--c{})'><title>{label}\n{}: {} {}{}</title></circle>",
            frame.x(point.x),
            frame.y(point.y),
            style % COLOURS,
            number(point.x),
            number(point.y),
            plot.unit,
            if point.high > point.low {
                format!(" ({} to {})", number(point.low), number(point.high))
            } else {
                String::new()
            }
        );
    }
    out.push_str("</g>");
}

fn legend(out: &mut String, plot: &Plot) {
    let mut y = TOP + 6.0;
    for curve in &plot.curves {
        let (from, text) = (WIDTH + 6.0, WIDTH + 36.0);
        let _ = write!(
            out,
            "<path class='l' {} d='M{from} {y}h24'/><text x='{text}' y='{}'>{}</text>",
            stroke(curve.style),
            y + 4.0,
            escape(&curve.label)
        );
        y += LEGEND_LINE;
    }
}

/// Three digits that count, without zeros after them.
fn number(value: f64) -> String {
    let text = format!("{value:.*}", super::table::decimals(value));
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Text as it may stand in an element or an attribute.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&quot;"),
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(y_scale: Scale, values: &[f64]) -> Plot {
        let point = |(x, y): (u32, &f64)| Point { x: f64::from(x), y: *y, low: y * 0.9, high: y * 1.1 };
        let points = (1..).zip(values).map(point).collect();
        Plot {
            title: "TTFT <p50>".to_owned(),
            x_label: "load".to_owned(),
            y_scale,
            unit: "s".to_owned(),
            curves: vec![Curve { label: "price".to_owned(), style: 9, points }],
            x_ticks: Vec::new(),
            has_legend: true,
            has_points: true,
        }
    }

    #[test]
    fn a_plot_has_its_line_band_points_and_values() {
        let svg = svg(&plot(Scale::Log, &[0.07, 0.5, 12.0]));
        for part in ["TTFT &lt;p50&gt;", "class='b'", "class='l'", "--c1", "dasharray", "2: 0.5 s (0.45 to 0.55)"] {
            assert!(svg.contains(part), "no {part} in {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains(">0.1 s</text>") && svg.contains(">20 s</text>"), "{svg}");
    }

    #[test]
    fn whatever_the_values_are_places_are_numbers() {
        for values in [&[][..], &[0.0], &[0.0, 0.0], &[-3.0, 5.0], &[1e-12, 1e12], &[f64::NAN, 1.0], &[7.0, 7.0]] {
            for scale in [Scale::Linear, Scale::Log] {
                let svg = svg(&plot(scale, values));
                let without = svg.replace("system-ui", "");
                assert!(!without.contains("inf"), "{scale:?} of {values:?}: {svg}");
                assert!(!without.contains("NaN"), "{values:?}: {svg}");
            }
        }
    }

    #[test]
    fn steps_are_ones_twos_and_fives() {
        assert_eq!(
            [0.03, 0.05, 1.0, 3.0, 70.0].map(|value| number(step_above(value))),
            ["0.05", "0.05", "1", "5", "100"]
        );
        assert_eq!(
            [0.03, 0.05, 1.0, 3.0, 70.0].map(|value| number(step_below(value))),
            ["0.02", "0.05", "1", "2", "50"]
        );
        assert_eq!(even_ticks((0.0, 0.97)).len(), 5);
    }

    #[test]
    fn long_lines_are_thinned() {
        let values: Vec<f64> = (0..5000).map(f64::from).collect();
        let drawn = Plot { has_points: false, has_legend: false, ..plot(Scale::Linear, &values) };
        assert!(svg(&drawn).len() < 30_000);
    }
}
