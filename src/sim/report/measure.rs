//! The figures of a run that reports show, each with its unit and which way is better.

use crate::sim::result::{ClassResult, RunResult};

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// A share from 0 to 1, shown in percent.
    Share,
    /// Events a second.
    PerSecond,
    /// A multiple.
    Times,
    /// Events.
    Count,
}

impl Unit {
    /// As it stands after a name; empty for plain numbers.
    #[must_use]
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Share => "%",
            Self::PerSecond => "1/s",
            Self::Times => "×",
            Self::Count => "",
        }
    }

    /// What a value is multiplied by to be shown.
    #[must_use]
    pub const fn scale(self) -> f64 {
        match self {
            Self::Share => 100.0,
            Self::Seconds | Self::PerSecond | Self::Times | Self::Count => 1.0,
        }
    }
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Less of it.
    Lower,
    /// More of it.
    Higher,
    /// Neither: it explains the others.
    Neither,
}

impl Better {
    /// Whether `value` is better than `other`.
    #[must_use]
    pub fn prefers(self, value: f64, other: f64) -> bool {
        match self {
            Self::Lower => value < other,
            Self::Higher => value > other,
            Self::Neither => false,
        }
    }
}

/// One figure that a run has.
#[derive(Debug)]
pub struct Metric {
    /// Its field in [`RunResult`], or a name made from several.
    pub key: &'static str,
    /// For people.
    pub title: &'static str,
    /// For headings of columns.
    pub short: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// Which way is better.
    pub better: Better,
    read: fn(&RunResult) -> Option<f64>,
    read_class: Option<fn(&ClassResult) -> f64>,
}

/// A time that exists only when something was answered.
fn answered(run: &RunResult, value: f64) -> Option<f64> {
    (run.completed > 0).then_some(value)
}

macro_rules! metric {
    ($key:ident, $title:expr, $short:expr, $unit:ident, $better:ident, $read:expr) => {
        metric!($key, $title, $short, $unit, $better, $read, None)
    };
    ($key:ident, $title:expr, $short:expr, $unit:ident, $better:ident, $read:expr, $class:expr) => {
        Metric {
            key: stringify!($key),
            title: $title,
            short: $short,
            unit: Unit::$unit,
            better: Better::$better,
            read: $read,
            read_class: $class,
        }
    };
}

/// A time to first token, which is kept for classes, too.
macro_rules! first_token {
    ($key:ident, $title:expr, $short:expr) => {
        metric!($key, $title, $short, Seconds, Lower, |run| answered(run, run.$key), Some(|class| class.$key))
    };
}

/// All figures, in the order in which they are shown.
pub static METRICS: [Metric; 32] = [
    metric!(hit_rate, "prompt tokens found in cache", "hit", Share, Higher, |run| Some(run.hit_rate)),
    metric!(regenerated_share, "engine time regenerating KV", "regen", Share, Lower, |run| Some(run.regenerated_share)),
    first_token!(ttft_p50_s, "TTFT p50", "TTFT p50"),
    first_token!(ttft_p90_s, "TTFT p90", "p90"),
    first_token!(ttft_p95_s, "TTFT p95", "p95"),
    first_token!(ttft_p99_s, "TTFT p99", "p99"),
    metric!(ttft_mean_s, "mean TTFT", "TTFT mean", Seconds, Lower, |run| answered(run, run.ttft_mean_s)),
    first_token!(ttft_from_arrival_p50_s, "TTFT p50 from arrival", "from arrival p50"),
    first_token!(ttft_from_arrival_p90_s, "TTFT p90 from arrival", "p90"),
    first_token!(ttft_from_arrival_p95_s, "TTFT p95 from arrival", "p95"),
    first_token!(ttft_from_arrival_p99_s, "TTFT p99 from arrival", "p99"),
    metric!(ttft_from_arrival_mean_s, "mean TTFT from arrival", "from arrival mean", Seconds, Lower, |run| {
        answered(run, run.ttft_from_arrival_mean_s)
    }),
    metric!(tpot_p50_s, "TPOT p50", "TPOT p50", Seconds, Lower, |run| answered(run, run.tpot_p50_s)),
    metric!(tpot_p90_s, "TPOT p90", "TPOT p90", Seconds, Lower, |run| answered(run, run.tpot_p90_s)),
    metric!(e2e_p50_s, "end to end p50, admission included", "E2E p50", Seconds, Lower, |run| {
        answered(run, run.e2e_p50_s)
    }),
    metric!(e2e_p90_s, "end to end p90, admission included", "E2E p90", Seconds, Lower, |run| {
        answered(run, run.e2e_p90_s)
    }),
    metric!(output_tokens_per_s, "output tokens a second", "out tok/s", PerSecond, Higher, |run| {
        Some(run.output_tokens_per_s)
    }),
    metric!(requests_per_s, "requests answered a second", "req/s", PerSecond, Higher, |run| Some(run.requests_per_s)),
    metric!(admission_wait_mean_s, "mean wait for admission", "wait", Seconds, Lower, |run| {
        answered(run, run.admission_wait_mean_s)
    }),
    metric!(rejected_share, "requests refused", "refused", Share, Lower, |run| {
        (run.requests > 0).then(|| run.rejected as f64 / run.requests as f64)
    }),
    metric!(busy_share, "engine time spent computing", "busy", Share, Neither, |run| Some(run.busy_share)),
    metric!(imbalance, "busiest replica's computing, of the mean", "imbalance", Times, Neither, |run| {
        Some(run.imbalance)
    }),
    metric!(preemptions, "preemptions", "preempted", Count, Lower, |run| Some(run.preemptions as f64)),
    metric!(ttft_mape, "error of the predicted TTFT (MAPE)", "MAPE", Share, Lower, |run| run.ttft_mape),
    metric!(ttft_p90_covered, "requests within the predicted p90", "p90 covers", Share, Neither, |run| {
        run.ttft_p90_covered
    }),
    metric!(slowed_mape, "MAPE at a slower replica, from its 201st request", "slowed MAPE", Share, Lower, |run| {
        run.slowed_mape
    }),
    metric!(slowed_recovered_after, "requests until a slower replica is predicted", "recovered", Count, Lower, |run| {
        run.slowed_recovered_after.map(|requests| requests as f64)
    }),
    metric!(holders_before, "replicas that hold a prefix before it is hot", "holders before", Count, Neither, |run| {
        run.holders_before
    }),
    metric!(holders_while_hot, "replicas that hold a prefix while it is hot", "hot", Count, Neither, |run| {
        run.holders_while_hot
    }),
    metric!(holders_after, "replicas that hold a prefix after it was hot", "after", Count, Neither, |run| {
        run.holders_after
    }),
    metric!(holder_changes_per_min, "changes of a hot prefix's holders a minute", "changes/min", Count, Lower, |run| {
        run.holder_changes_per_min
    }),
    metric!(herding, "requests in herds between beacons", "herding", Share, Lower, |run| run.herding),
];

/// A figure, of all requests of a run or of one class of them. Written `ttft_p95_s` or `ttft_p95_s/short`.
#[derive(Clone, Debug)]
pub struct Measure {
    /// The figure.
    pub metric: &'static Metric,
    /// The class, as the workload names it.
    pub class: Option<String>,
}

impl Measure {
    /// Of all requests; `None` when no figure has that key.
    #[must_use]
    pub fn of(key: &str) -> Option<Self> {
        let metric = METRICS.iter().find(|metric| metric.key == key)?;
        Some(Self { metric, class: None })
    }

    /// Of one class of calls; `None` when that figure is not kept for classes.
    #[must_use]
    pub fn of_class(&self, class: &str) -> Option<Self> {
        self.metric.read_class.map(|_| Self { metric: self.metric, class: Some(class.to_owned()) })
    }

    /// Its value in a run; `None` when the run has none.
    #[must_use]
    pub fn read(&self, run: &RunResult) -> Option<f64> {
        let value = match &self.class {
            None => (self.metric.read)(run),
            Some(name) => {
                let class = run.classes.iter().find(|class| class.class == *name && class.completed > 0)?;
                self.metric.read_class.map(|read| read(class))
            }
        };
        value.filter(|value| value.is_finite())
    }

    /// Its title, with the class.
    #[must_use]
    pub fn title(&self) -> String {
        self.with_class(self.metric.title)
    }

    /// Its title, with the class and the unit.
    #[must_use]
    pub fn title_and_unit(&self) -> String {
        match self.metric.unit.symbol() {
            "" | "×" | "1/s" => self.title(),
            symbol => format!("{}, {symbol}", self.title()),
        }
    }

    /// The heading of its column, with the class and the unit.
    #[must_use]
    pub fn heading(&self) -> String {
        let name = self.name();
        // A name that ends in its unit says it already.
        match self.metric.unit.symbol() {
            "" | "×" | "1/s" => name,
            symbol => format!("{name} {symbol}"),
        }
    }

    /// Its short name, with the class.
    #[must_use]
    pub fn name(&self) -> String {
        self.with_class(self.metric.short)
    }

    fn with_class(&self, name: &str) -> String {
        self.class.as_ref().map_or_else(|| name.to_owned(), |class| format!("{name} of {class}"))
    }
}

impl std::fmt::Display for Measure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.metric.key)?;
        self.class.as_ref().map_or(Ok(()), |class| write!(f, "/{class}"))
    }
}

/// Why a text names no measure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no measure; known: {known}; `ttft_…/CLASS` for one class", known = keys())]
pub struct UnknownMeasure(String);

impl std::str::FromStr for Measure {
    type Err = UnknownMeasure;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = match text.split_once('/') {
            None => Self::of(text),
            Some((key, class)) => Self::of(key).and_then(|measure| measure.of_class(class)),
        };
        found.ok_or_else(|| UnknownMeasure(text.to_owned()))
    }
}

fn keys() -> String {
    METRICS.iter().map(|metric| metric.key).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_are_read_from_runs_and_their_classes() {
        let short = ClassResult { class: "short".to_owned(), completed: 2, ttft_p95_s: 0.5, ..ClassResult::default() };
        let run = RunResult { completed: 3, ttft_p95_s: 2.0, classes: vec![short], ..RunResult::default() };
        let read = |text: &str| text.parse::<Measure>().unwrap().read(&run);
        assert_eq!(read("ttft_p95_s"), Some(2.0));
        assert_eq!(read("ttft_p95_s/short"), Some(0.5));
        assert_eq!(read("ttft_p95_s/long"), None);
        assert_eq!(read("rejected_share"), None);
        let nothing = RunResult::default();
        assert_eq!("ttft_p50_s".parse::<Measure>().unwrap().read(&nothing), None);
    }

    #[test]
    fn unknown_measures_name_the_known() {
        let error = "ttft".parse::<Measure>().unwrap_err().to_string();
        assert!(error.contains("ttft_p99_s") && error.contains("hit_rate"), "{error}");
        assert!("hit_rate/short".parse::<Measure>().is_err());
    }

    #[test]
    fn keys_are_fields_of_the_result_or_made_from_them() {
        let run = serde_json::to_value(RunResult::default()).unwrap();
        for metric in METRICS.iter().filter(|metric| metric.key != "rejected_share") {
            assert!(run.get(metric.key).is_some(), "{} is no field", metric.key);
        }
    }
}
