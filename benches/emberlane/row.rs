//! What a bench prints: rows, aligned for people or as JSON lines for machines.

use std::fmt::Write as _;

/// One measured figure beside its rival's and its goal.
pub(crate) struct Row {
    /// What is measured, `group/figure/variant`.
    pub(crate) name: String,
    /// Measured value.
    pub(crate) value: f64,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// Who it is compared with; empty when nobody.
    pub(crate) rival: &'static str,
    /// The rival's value in the same unit, from the same run.
    pub(crate) rival_value: Option<f64>,
    /// What it should reach; `None` when the figure is only to be known.
    pub(crate) goal: Option<Goal>,
}

/// What a value should reach.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// At least this much.
    AtLeast(f64),
    /// At most this much.
    AtMost(f64),
}

impl Goal {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!("≥ {least}"),
            Self::AtMost(most) => format!("≤ {most}"),
        }
    }
}

impl Row {
    /// A figure without rival or goal; see [`Row::against`] and [`Row::goal`].
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, rival: "", rival_value: None, goal: None }
    }

    /// How many times better than the rival, as a row of its own. `faster` and `rival_value` are rates or times; the
    /// caller divides the right way round.
    pub(crate) fn ratio(name: impl Into<String>, ratio: f64, rival: &'static str) -> Self {
        Self { rival, rival_value: Some(1.0), ..Self::new(name, ratio, "x") }
    }

    /// Names the rival and its value in the same unit.
    pub(crate) fn against(self, rival: &'static str, rival_value: f64) -> Self {
        Self { rival, rival_value: Some(rival_value), ..self }
    }

    /// Sets the goal.
    pub(crate) fn goal(self, goal: Goal) -> Self {
        Self { goal: Some(goal), ..self }
    }

    /// `ok`, or `short` when the goal is missed.
    pub(crate) fn ok(&self) -> &'static str {
        if self.goal.is_none_or(|goal| goal.is_met(self.value)) { "ok" } else { "short" }
    }

    /// One line of JSON.
    pub(crate) fn json(&self) -> String {
        serde_json::json!({
            "name": self.name,
            "value": round(self.value),
            "unit": self.unit,
            "rival": self.rival,
            "rival_value": self.rival_value.map(round),
            "goal": self.goal.map_or_else(String::new, Goal::text),
            "ok": self.ok(),
            "status": self.ok(),
        })
        .to_string()
    }

    fn cells(&self) -> [String; 6] {
        let rival = self.rival_value.map_or_else(String::new, |value| format!("{} {}", self.rival, round(value)));
        let goal = self.goal.map_or_else(String::new, Goal::text);
        [self.name.clone(), round(self.value).to_string(), self.unit.to_owned(), rival, goal, self.ok().to_owned()]
    }
}

/// The rows as an aligned table with a head.
pub(crate) fn table(rows: &[Row]) -> String {
    let head = ["name", "value", "unit", "rival", "goal", "ok"].map(str::to_owned);
    let lines: Vec<[String; 6]> = std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    for line in &lines {
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            let _ = if column == 1 { write!(text, "{cell:>width$}  ") } else { write!(text, "{cell:<width$}  ") };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Four significant digits.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10_f64.powf(3.0 - value.abs().log10().floor());
    (value * scale).round() / scale
}

/// What the command line asks for.
pub(crate) struct Options {
    /// JSON lines instead of a table.
    pub(crate) json: bool,
    /// Fewer repetitions: shows that the benches work, not how fast things are.
    pub(crate) quick: bool,
    only: Option<String>,
}

impl Options {
    /// Reads `--json`, `--quick` and `--only SUBSTR`; ignores what cargo adds.
    pub(crate) fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut options = Self { json: false, quick: false, only: None };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--json" => options.json = true,
                "--quick" => options.quick = true,
                "--only" => options.only = arguments.next(),
                _ => {}
            }
        }
        options
    }

    /// True when `--only` is not given, or is part of the group's name.
    pub(crate) fn wants(&self, group: &str) -> bool {
        self.only.as_ref().is_none_or(|only| group.contains(only.as_str()))
    }

    /// `full` repetitions, or a twentieth of them when quick.
    pub(crate) fn repeats(&self, full: usize) -> usize {
        if self.quick { (full / 20).max(3) } else { full }
    }
}
