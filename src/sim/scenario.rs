//! What a comparison in the simulator is made of: the trace, the fleet, the policies, the loads and the seeds. The same
//! knobs come from a YAML file ([`Scenario::read`]) or from the command line, which changes fields of the default.
//!
//! ```yaml
//! trace: perf/traces/agent_sessions.jsonl.gz    # or generate:chat,long=0.1
//! replicas: 8
//! model: llama-3.1-8b
//! policies: [price, least_request, round_robin]
//! loads: [2, 4, 6]
//! seeds: 10
//! duration: 30m
//! warm_up: 5m
//! beacons: { period: 100ms, delay: 200ms, loss: 0 }
//! network_delay: 500us
//! ```
//!
//! `fleet` instead of `replicas` makes replicas that differ; see [`super::fleet`].

use std::ops::RangeInclusive;
use std::time::Duration;

use super::fleet::{self, Group};
use super::model::EngineModel;
use crate::config::ConfigError;
use crate::config::error::Errors;
use crate::config::read::{Field, Section};
use crate::config::yaml;

const NAMES_MAX: usize = 64;
const NAME_BYTES_MAX: usize = 4096;
const LOADS_MAX: usize = 64;
const REPLICAS: RangeInclusive<u32> = 1..=4096;
const SEEDS: RangeInclusive<u64> = 1..=100_000;
const FIRST_SEED: RangeInclusive<u64> = 0..=1 << 53;
const LOAD: RangeInclusive<f64> = 0.001..=10_000.0;
/// Of times, seconds.
const DURATION_S: RangeInclusive<f64> = 1.0..=604_800.0;
const PERIOD_S: RangeInclusive<f64> = 0.001..=3600.0;
const DELAY_S: RangeInclusive<f64> = 0.0..=3600.0;
const SHARE: RangeInclusive<f64> = 0.0..=1.0;
/// Values of one series, at most.
const SAMPLES_MAX: f64 = 1e6;
const HOST_TIER_GB: RangeInclusive<f64> = 0.0..=1e6;

/// A comparison: each policy at each load with each seed is one run.
///
/// All fields are public and [`Default`] gives every one of them, so that a caller may start from the default or from
/// [`Self::read`], overwrite what its flags say, and ask [`Self::faults`] before it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// A trace's path or `generate:NAME[,key=value…]`, as [`super::workload::Source`] reads it. Default `generate:chat`.
    pub trace: String,
    /// Which part of it is played. Default all.
    pub split: Split,
    /// Replicas of the fleet. Default 8.
    pub replicas: u32,
    /// Groups of replicas that differ; empty: all are alike. `replicas` is how many they are together.
    pub fleet: Vec<Group>,
    /// The simulated engines' model, by name. Default `llama-3.1-8b`.
    pub model: String,
    /// Policies and bounds, by name, each with each load and seed. Default `price`, `least_request`, `round_robin`.
    pub policies: Vec<String>,
    /// Sessions a replica (closed loop) or multiples of the trace's own rate (timed). Default 1.
    pub loads: Vec<f64>,
    /// How many seeds. Default 10.
    pub seeds: u64,
    /// The first of them; the others follow it. Default 1.
    pub first_seed: u64,
    /// Virtual seconds of a run, the warm-up among them. Default 1,800.
    pub duration_s: f64,
    /// Virtual seconds at the beginning that are not measured. Default 300.
    pub warm_up_s: f64,
    /// Seconds between two load reports of a replica. Default 0.1.
    pub beacon_period_s: f64,
    /// Seconds from when a report is made until the gateway knows it. Default 0.2.
    pub beacon_delay_s: f64,
    /// Share of the reports that are lost. Default 0.
    pub beacon_loss: f64,
    /// Seconds from the gateway to a replica, one way. Default 0.0005.
    pub network_delay_s: f64,
    /// GB of host memory a replica for blocks that its GPU evicted; 0: none. Default 0.
    pub host_tier_gb: f64,
    /// Seconds between two samples of the fleet's state, for plots over time; 0: none. Default 0.
    pub history_period_s: f64,
    /// How results are written. Default a table.
    pub output: OutputFormat,
}

/// A part of a trace; see [`super::workload::Source::half`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Split {
    /// All of it.
    #[default]
    Whole,
    /// The half on which policies are compared.
    Test,
    /// The half on which their parameters are chosen.
    Tuning,
}

impl Split {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Whole, Self::Test, Self::Tuning];

    /// The name in a scenario.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Test => "test",
            Self::Tuning => "tuning",
        }
    }
}

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputFormat {
    /// One row a policy and load, for people.
    #[default]
    Table,
    /// One JSON object a run, a line each.
    Json,
    /// A page with plots.
    Html,
}

impl OutputFormat {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Table, Self::Json, Self::Html];

    /// The name in a scenario.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Json => "json",
            Self::Html => "html",
        }
    }
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            trace: "generate:chat".to_owned(),
            split: Split::Whole,
            replicas: 8,
            fleet: Vec::new(),
            model: "llama-3.1-8b".to_owned(),
            policies: ["price", "least_request", "round_robin"].map(str::to_owned).to_vec(),
            loads: vec![1.0],
            seeds: 10,
            first_seed: 1,
            duration_s: 1800.0,
            warm_up_s: 300.0,
            beacon_period_s: 0.1,
            beacon_delay_s: 0.2,
            beacon_loss: 0.0,
            network_delay_s: 0.0005,
            host_tier_gb: 0.0,
            history_period_s: 0.0,
            output: OutputFormat::Table,
        }
    }
}

impl Scenario {
    /// Reads a scenario file's text; what it leaves out is as in the default.
    ///
    /// # Errors
    /// Everything that is wrong with it, in the order of the file.
    pub fn read(text: &str) -> Result<Self, Vec<ConfigError>> {
        let errors = Errors::default();
        let root = yaml::read(text, &errors);
        let scenario = root.as_ref().and_then(|root| Section::root(root, &errors)).map(Self::from_section);
        match (scenario, errors.into_list()) {
            (Some(scenario), None) => Ok(scenario),
            (_, errors) => Err(errors.unwrap_or_default()),
        }
    }

    /// Reads a scenario that stands in another file.
    pub(crate) fn from_section(mut section: Section<'_>) -> Self {
        let default = Self::default();
        let fleet = section.read("fleet", default.fleet, fleet::groups);
        let many = fleet::replicas(&fleet);
        let mut scenario = Self {
            trace: section.read("trace", default.trace, |field| name(field, "a path or `generate:NAME`")),
            split: section
                .read("split", default.split, |field| field.choice(&Split::ALL.map(|split| (split.as_str(), split)))),
            replicas: section.read("replicas", many.unwrap_or(default.replicas), |field| field.count(REPLICAS)),
            fleet,
            model: section.read("model", default.model, |field| name(field, "a model's name")),
            policies: section.read("policies", default.policies, policies),
            loads: section.read("loads", default.loads, loads),
            seeds: section.read("seeds", default.seeds, |field| field.count(SEEDS)),
            first_seed: section.read("first_seed", default.first_seed, |field| field.count(FIRST_SEED)),
            duration_s: section.read("duration", default.duration_s, |field| seconds(field, &DURATION_S)),
            warm_up_s: section.read("warm_up", default.warm_up_s, |field| seconds(field, &DELAY_S)),
            network_delay_s: section.read("network_delay", default.network_delay_s, |field| seconds(field, &DELAY_S)),
            host_tier_gb: section.read("host_tier_gb", default.host_tier_gb, |field| field.number(HOST_TIER_GB)),
            history_period_s: section.read("history_period", default.history_period_s, |field| {
                if field.is("off") { Some(0.0) } else { seconds(field, &PERIOD_S) }
            }),
            output: section.read("output", default.output, |field| {
                field.choice(&OutputFormat::ALL.map(|format| (format.as_str(), format)))
            }),
            ..default
        };
        if let Some(mut beacons) = section.get("beacons").and_then(|field| field.section("fields such as `period`")) {
            let period_s = scenario.beacon_period_s;
            scenario.beacon_period_s = beacons.read("period", period_s, |field| seconds(field, &PERIOD_S));
            scenario.beacon_delay_s = beacons.read("delay", scenario.beacon_delay_s, |field| seconds(field, &DELAY_S));
            scenario.beacon_loss = beacons.read("loss", scenario.beacon_loss, Field::share);
            beacons.finish();
        }
        if section.is_clean() && scenario.warm_up_s >= scenario.duration_s {
            section.fail_at("warm_up", WARM_UP_FAULT);
        }
        if section.is_clean() && many.is_some_and(|many| many != scenario.replicas || !REPLICAS.contains(&many)) {
            section.fail_at("fleet", format!("{} replicas, but {FLEET_FAULT}", many.unwrap_or_default()));
        }
        if section.is_clean() && scenario.samples() > SAMPLES_MAX {
            section.fail_at("history_period", HISTORY_FAULT);
        }
        section.finish();
        scenario
    }

    /// What the replicas are, as on the command line: the model's name, or the groups.
    #[must_use]
    pub fn model_shown(&self) -> String {
        if self.fleet.is_empty() {
            return self.model.clone();
        }
        let named = |group: &Group| {
            let model = group.model.as_ref().unwrap_or(&self.model);
            Group { model: Some(model.clone()), ..group.clone() }
        };
        self.fleet.iter().map(|group| named(group).to_string()).collect::<Vec<_>>().join(",")
    }

    /// The engine of each replica.
    ///
    /// # Errors
    /// When there is no such model.
    pub fn engines(&self) -> Result<Vec<EngineModel>, String> {
        let alike = [Group { count: self.replicas, ..Group::default() }];
        let groups = if self.fleet.is_empty() { &alike[..] } else { &self.fleet };
        let mut engines = Vec::new();
        for group in groups {
            let engine = group.engine(&self.model, self.host_tier_gb)?;
            engines.extend(std::iter::repeat_n(engine, group.count as usize));
        }
        Ok(engines)
    }

    /// Values that each series of a run would have.
    fn samples(&self) -> f64 {
        if self.history_period_s > 0.0 {
            self.duration_s / self.history_period_s * f64::from(self.replicas)
        } else {
            0.0
        }
    }

    /// What cannot be run of it, a message each that begins with the field's name: for scenarios that flags changed. One
    /// that [`Self::read`] gave and nobody changed has none.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let numbers = [
            ("duration", self.duration_s, DURATION_S),
            ("warm_up", self.warm_up_s, DELAY_S),
            ("beacons.period", self.beacon_period_s, PERIOD_S),
            ("beacons.delay", self.beacon_delay_s, DELAY_S),
            ("beacons.loss", self.beacon_loss, SHARE),
            ("network_delay", self.network_delay_s, DELAY_S),
            ("host_tier_gb", self.host_tier_gb, HOST_TIER_GB),
            ("replicas", f64::from(self.replicas), f64::from(*REPLICAS.start())..=f64::from(*REPLICAS.end())),
        ];
        let loads = self.loads.iter().map(|load| ("loads", *load, LOAD));
        for (field, value, range) in numbers.into_iter().chain(loads) {
            if !range.contains(&value) {
                faults.push(format!("{field}: {value} is out of range: from {} to {}", range.start(), range.end()));
            }
        }
        if self.history_period_s != 0.0 && !PERIOD_S.contains(&self.history_period_s) {
            faults.push(format!("history_period: {} is neither 0 nor a period", self.history_period_s));
        }
        if let Some(many) = fleet::replicas(&self.fleet).filter(|many| *many != self.replicas) {
            faults.push(format!("fleet: {many} replicas, but {FLEET_FAULT}"));
        }
        if self.samples() > SAMPLES_MAX {
            faults.push(format!("history_period: {HISTORY_FAULT}"));
        }
        if !SEEDS.contains(&self.seeds) || !FIRST_SEED.contains(&self.first_seed) {
            faults.push(format!("seeds: from 1 to {}, the first at most {}", SEEDS.end(), FIRST_SEED.end()));
        }
        if self.warm_up_s >= self.duration_s {
            faults.push(format!("warm_up: {WARM_UP_FAULT}"));
        }
        for (field, count) in [("policies", self.policies.len()), ("loads", self.loads.len())] {
            if count == 0 || count > LOADS_MAX.min(NAMES_MAX) {
                faults.push(format!("{field}: {count} of them; name 1 to {LOADS_MAX}"));
            }
        }
        faults
    }
}

const FLEET_FAULT: &str = "`replicas` says otherwise, or there are more than 4096: leave `replicas` out";
const HISTORY_FAULT: &str = "more than a million values of each figure: look less often, or at fewer replicas";
const WARM_UP_FAULT: &str = "nothing is left to measure: it must be shorter than `duration`";

fn name(field: &Field<'_>, what: &str) -> Option<String> {
    let text = field.text(what)?;
    if text.is_empty() || text.len() > NAME_BYTES_MAX {
        return field.fail(format!("expected {what} of 1 to {NAME_BYTES_MAX} bytes"));
    }
    Some(text.to_owned())
}

fn policies(field: &Field<'_>) -> Option<Vec<String>> {
    let items = field.one_or_more(NAMES_MAX, "a policy's name or a list of them")?;
    let names: Vec<String> = items.iter().filter_map(|item| name(item, "a policy's name")).collect();
    if names.is_empty() { field.fail("name at least one policy") } else { Some(names) }
}

fn loads(field: &Field<'_>) -> Option<Vec<f64>> {
    let items = field.one_or_more(LOADS_MAX, "a load or a list of them")?;
    let loads: Vec<f64> = items.iter().filter_map(|item| item.number(LOAD)).collect();
    if loads.is_empty() { field.fail("name at least one load") } else { Some(loads) }
}

fn seconds(field: &Field<'_>, range_s: &RangeInclusive<f64>) -> Option<f64> {
    let range = Duration::from_secs_f64(*range_s.start())..=Duration::from_secs_f64(*range_s.end());
    field.duration(range).map(|duration| duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        Scenario::read(text).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_empty_file_is_the_default_and_can_be_run() {
        assert_eq!(Scenario::read("").unwrap(), Scenario::default());
        assert_eq!(Scenario::default().faults(), Vec::<String>::new());
    }

    #[test]
    fn every_field_is_read() {
        let text = "
trace: perf/traces/mooncake_conversation.jsonl.gz
split: test
fleet: [{count: 3}, {speed: 0.5, model: llama-3.1-8b, kv_tokens: 100k}]
model: qwen3-32b
policies: [price, oracle]
loads: [0.5, 2]
seeds: 3
first_seed: 100
duration: 20m
warm_up: 90s
beacons: {period: 250ms, delay: 1s, loss: 5%}
network_delay: 2ms
host_tier_gb: 64
history_period: 500ms
output: json
";
        let expected = Scenario {
            trace: "perf/traces/mooncake_conversation.jsonl.gz".to_owned(),
            split: Split::Test,
            replicas: 4,
            fleet: fleet::from_spec("3*x,llama-3.1-8b(speed=0.5,kv_tokens=100000)")
                .map(|mut groups| {
                    groups[0].model = None;
                    groups
                })
                .unwrap(),
            model: "qwen3-32b".to_owned(),
            policies: vec!["price".to_owned(), "oracle".to_owned()],
            loads: vec![0.5, 2.0],
            seeds: 3,
            first_seed: 100,
            duration_s: 1200.0,
            warm_up_s: 90.0,
            beacon_period_s: 0.25,
            beacon_delay_s: 1.0,
            beacon_loss: 0.05,
            network_delay_s: 0.002,
            host_tier_gb: 64.0,
            history_period_s: 0.5,
            output: OutputFormat::Json,
        };
        assert_eq!(Scenario::read(text).unwrap(), expected);
        assert_eq!(expected.faults(), Vec::<String>::new());
    }

    #[test]
    fn a_fleet_is_named_by_its_groups_and_counted() {
        let scenario = Scenario::read("fleet: [{count: 3}, {speed: 0.5, slots: 8}]").unwrap();
        assert_eq!((scenario.replicas, scenario.engines().unwrap().len()), (4, 4));
        assert_eq!(scenario.model_shown(), "3*llama-3.1-8b,1*llama-3.1-8b(speed=0.5,slots=8)");
        assert_eq!(Scenario::default().model_shown(), "llama-3.1-8b");
        assert!(faults("replicas: 5\nfleet: [{count: 3}]")[0].starts_with("line 2: fleet: 3 replicas, but"));
        assert_eq!(faults("fleet:\n- {count: 2, speed: 0}\n- {cont: 2}").len(), 2);
        assert!(Scenario { model: "x".to_owned(), ..scenario }.engines().unwrap_err().contains("no model"));
    }

    #[test]
    fn one_policy_or_load_needs_no_brackets() {
        let scenario = Scenario::read("policies: price\nloads: 3").unwrap();
        assert_eq!((scenario.policies, scenario.loads), (vec!["price".to_owned()], vec![3.0]));
    }

    #[test]
    fn all_faults_are_told_at_once_with_their_lines() {
        let found = faults("replicas: 0\nlods: 2\nbeacons: {perod: 1s, loss: 200%}\nloads: [1, -1]\noutput: xml");
        assert_eq!(found.len(), 6, "{found:#?}");
        assert!(found[0].starts_with("line 1: replicas: "), "{found:#?}");
        assert_eq!(found[1], "line 2: lods: unknown field; did you mean `loads`?");
        assert!(found.iter().any(|fault| fault == "line 3: beacons.perod: unknown field; did you mean `period`?"));
        assert!(found.iter().any(|fault| fault.starts_with("line 4: loads[1]: ")), "{found:#?}");
    }

    #[test]
    fn a_warm_up_that_leaves_nothing_is_a_fault() {
        assert_eq!(faults("duration: 5m\nwarm_up: 5m"), [format!("line 2: warm_up: {WARM_UP_FAULT}")]);
        assert_eq!(faults("duration: 2m"), [format!("line 1: warm_up: {WARM_UP_FAULT}")]);
    }

    #[test]
    fn flags_are_held_to_the_same_bounds() {
        let wrong = Scenario { replicas: 0, loads: vec![f64::NAN], policies: Vec::new(), ..Scenario::default() };
        assert_eq!(wrong.faults().len(), 3, "{:#?}", wrong.faults());
        let wrong = Scenario { history_period_s: -1.0, seeds: 0, warm_up_s: 1800.0, ..Scenario::default() };
        assert_eq!(wrong.faults().len(), 3, "{:#?}", wrong.faults());
    }

    #[test]
    fn any_text_is_read_or_refused() {
        bolero::check!().for_each(|bytes: &[u8]| {
            if let Ok(scenario) = Scenario::read(&String::from_utf8_lossy(bytes)) {
                assert_eq!(scenario.faults(), Vec::<String>::new());
            }
        });
    }
}
