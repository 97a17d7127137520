//! Fleets of unlike replicas: groups that differ in speed, memory or block size. The same from a scenario's list and
//! from one word on the command line:
//!
//! ```yaml
//! fleet:
//!   - { count: 4 }
//!   - { count: 4, speed: 0.5, kv_tokens: 200k, block_tokens: 32 }
//! ```
//! `--fleet '4*llama-3.1-8b,4*llama-3.1-8b(speed=0.5,kv_tokens=200k,block_tokens=32)'`
//!
//! Of `llama.cpp`, `kv_tokens` is the context that its `slots` share, and the host tier its host cache:
//! `--fleet '4*llama.cpp(slots=4,kv_tokens=16k)'`.

use std::fmt;
use std::ops::RangeInclusive;

use super::model::EngineModel;
use crate::config::error::{Errors, excerpt};
use crate::config::read::{Field, Section};
use crate::config::spec::{entries, entry, split_specs};
use crate::config::yaml::{Mark, Node, Value};
use crate::config::{ConfigError, unit};

/// Groups of a fleet, at most.
pub const GROUPS_MAX: usize = 64;
const COUNT: RangeInclusive<u32> = 1..=4096;
const SPEED: RangeInclusive<f64> = 0.01..=100.0;
const KV_TOKENS: RangeInclusive<u64> = 256..=1 << 40;
const BLOCK_TOKENS: RangeInclusive<u32> = 1..=65_536;
const SLOTS: RangeInclusive<u32> = 1..=65_536;
const HOST_TIER_GB: RangeInclusive<f64> = 0.0..=1e6;
const NAME_BYTES_MAX: usize = 256;
/// What errors of the command line are said of.
const PATH: &str = "fleet";

/// Replicas that are alike. What is `None` is as the model has it, or the scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// How many. Default 1.
    pub count: u32,
    /// The engine's model. Default: the scenario's.
    pub model: Option<String>,
    /// All it computes goes so many times as fast as the model says. Default 1.
    pub speed: f64,
    /// Tokens that its KV cache holds.
    pub kv_tokens: Option<u64>,
    /// Tokens of a block.
    pub block_tokens: Option<u32>,
    /// GB of host memory for what the device evicted.
    pub host_tier_gb: Option<f64>,
    /// Requests it runs at once.
    pub slots: Option<u32>,
    /// Whether the gateway is configured to know the size of its memory; else it learns that. Default true.
    pub is_configured: bool,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            count: 1,
            model: None,
            speed: 1.0,
            kv_tokens: None,
            block_tokens: None,
            host_tier_gb: None,
            slots: None,
            is_configured: true,
        }
    }
}

impl Group {
    /// The engine of each of them; `model` and `host_tier_gb` are the scenario's.
    ///
    /// # Errors
    /// When there is no such model.
    pub fn engine(&self, model: &str, host_tier_gb: f64) -> Result<EngineModel, String> {
        let name = self.model.as_deref().unwrap_or(model);
        let known = || EngineModel::all().iter().map(|model| model.name).collect::<Vec<_>>().join(", ");
        let Some(engine) = EngineModel::by_name(name) else {
            return Err(format!("no model is named `{name}`; there are: {}", known()));
        };
        let mut engine = engine.at_speed(self.speed);
        engine.kv_tokens = self.kv_tokens.unwrap_or(engine.kv_tokens);
        engine.block_tokens = self.block_tokens.unwrap_or(engine.block_tokens);
        if let Some(slots) = self.slots {
            engine.sequences_max = slots as usize;
        }
        engine.is_configured = self.is_configured;
        Ok(engine.with_host_tier_gb(self.host_tier_gb.unwrap_or(host_tier_gb)))
    }
}

/// How many replicas `fleet` has; `None` when it has no groups.
#[must_use]
pub fn replicas(fleet: &[Group]) -> Option<u32> {
    (!fleet.is_empty()).then(|| fleet.iter().fold(0, |sum: u32, group| sum.saturating_add(group.count)))
}

/// As on the command line.
impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parameters = Vec::new();
        let mut add = |key: &str, value: Option<String>| parameters.extend(value.map(|value| format!("{key}={value}")));
        add("speed", ((self.speed - 1.0).abs() > 1e-12).then(|| self.speed.to_string()));
        add("kv_tokens", self.kv_tokens.map(|tokens| tokens.to_string()));
        add("block_tokens", self.block_tokens.map(|tokens| tokens.to_string()));
        add("host_tier_gb", self.host_tier_gb.map(|gb| gb.to_string()));
        add("slots", self.slots.map(|slots| slots.to_string()));
        add("configured", (!self.is_configured).then(|| "false".to_owned()));
        write!(f, "{}*{}", self.count, self.model.as_deref().unwrap_or_default())?;
        if parameters.is_empty() { Ok(()) } else { write!(f, "({})", parameters.join(",")) }
    }
}

/// Reads a scenario's list.
pub(crate) fn groups(field: &Field<'_>) -> Option<Vec<Group>> {
    let items = field.items(GROUPS_MAX, "a list of groups such as { count: 4, speed: 0.5 }")?;
    let groups: Vec<Group> = items.iter().filter_map(|item| group(item)).collect();
    if groups.is_empty() { field.fail("name at least one group, or leave `fleet` out") } else { Some(groups) }
}

fn group(field: &Field<'_>) -> Option<Group> {
    let section = field.section("fields such as `count` and `speed`")?;
    Some(from_section(section))
}

fn from_section(mut section: Section<'_>) -> Group {
    let default = Group::default();
    let group = Group {
        count: section.read("count", default.count, |field| field.count(COUNT)),
        model: section.read("model", default.model, |field| name(field).map(Some)),
        speed: section.read("speed", default.speed, |field| field.number(SPEED)),
        kv_tokens: section.read("kv_tokens", default.kv_tokens, |field| field.count(KV_TOKENS).map(Some)),
        block_tokens: section.read("block_tokens", default.block_tokens, |field| field.count(BLOCK_TOKENS).map(Some)),
        host_tier_gb: section.read("host_tier_gb", default.host_tier_gb, |field| field.number(HOST_TIER_GB).map(Some)),
        slots: section.read("slots", default.slots, |field| field.count(SLOTS).map(Some)),
        is_configured: section.read("configured", default.is_configured, Field::flag),
    };
    section.finish();
    group
}

fn name(field: &Field<'_>) -> Option<String> {
    const WHAT: &str = "a model's name";
    let name = field.text(WHAT)?;
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return field.fail(format!("expected {WHAT} of 1 to {NAME_BYTES_MAX} bytes"));
    }
    Some(name.to_owned())
}

/// Reads `4*MODEL,4*MODEL(key=value,…)`; without `4*` a group is one replica.
///
/// # Errors
/// Everything that is wrong with it.
pub fn from_spec(spec: &str) -> Result<Vec<Group>, Vec<ConfigError>> {
    let errors = Errors::default();
    let parts = split_specs(spec).map_err(|error| vec![ConfigError { path: PATH.to_owned(), ..error }])?;
    let nodes: Vec<Node> = parts.iter().filter_map(|part| node(part, &errors)).collect();
    let tree = Node { mark: Mark::FLAG, value: Value::List(nodes) };
    let groups = groups(&Field::named(PATH, &tree, &errors));
    match (groups, errors.into_list()) {
        (Some(groups), None) => Ok(groups),
        (_, errors) => Err(errors.unwrap_or_default()),
    }
}

/// One group as the map that a file would have.
fn node(part: &str, errors: &Errors) -> Option<Node> {
    let fail = |message: String| errors.stop(Mark::FLAG, PATH, message);
    let (head, parameters) = match part.split_once('(') {
        None => (part, ""),
        Some((head, rest)) => match rest.strip_suffix(')') {
            Some(parameters) => (head.trim_end(), parameters),
            None => return fail(format!("expected COUNT*MODEL(key=value,...), found {}", excerpt(part))),
        },
    };
    let (count, model) = match head.split_once('*') {
        None => ("1", head),
        Some((count, model)) => (count.trim(), model.trim()),
    };
    if unit::count(count).is_err() {
        return fail(format!("expected COUNT*MODEL such as 4*llama-3.1-8b, found {}", excerpt(part)));
    }
    let mut fields = entries(parameters, PATH, errors)?;
    if let Some(twice) = fields.iter().find(|entry| ["count", "model"].contains(&entry.key.as_str())) {
        return fail(format!("`{}` stands before the parentheses, as in 4*llama-3.1-8b", twice.key));
    }
    fields.push(entry("count", Value::Scalar(count.to_owned())));
    fields.push(entry("model", Value::Scalar(model.to_owned())));
    Some(Node { mark: Mark::FLAG, value: Value::Map(fields) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(spec: &str) -> String {
        let errors = from_spec(spec).expect_err("it should be refused");
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_word_says_what_a_list_says() {
        let spec = "4*llama-3.1-8b,2*llama-3.1-8b(speed=0.5,kv_tokens=200k,block_tokens=32,configured=false)";
        let groups = from_spec(spec).unwrap();
        assert_eq!((groups[0].count, groups[0].model.as_deref()), (4, Some("llama-3.1-8b")));
        let slow = Group {
            count: 2,
            model: Some("llama-3.1-8b".to_owned()),
            speed: 0.5,
            kv_tokens: Some(200_000),
            block_tokens: Some(32),
            is_configured: false,
            ..Group::default()
        };
        assert_eq!(groups[1], slow);
        let shown = groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        assert_eq!(shown, spec.replace("200k", "200000"));
        assert_eq!(from_spec(&shown).unwrap(), groups);
        assert_eq!(from_spec("qwen3-32b").unwrap()[0].count, 1);
    }

    #[test]
    fn engines_differ_as_their_groups_do() {
        let plain = Group::default().engine("llama-3.1-8b", 0.0).unwrap();
        assert_eq!(plain, EngineModel::by_name("llama-3.1-8b").unwrap());
        let slow = Group { speed: 0.5, host_tier_gb: Some(13.1072), slots: Some(8), ..Group::default() };
        let slow = slow.engine("llama-3.1-8b", 64.0).unwrap();
        assert!((slow.prefill_s(1000.0, 500.0) / plain.prefill_s(1000.0, 500.0) - 2.0).abs() < 1e-9);
        assert!((slow.decode_base_s / plain.decode_base_s - 2.0).abs() < 1e-9);
        assert_eq!((slow.host_tokens, slow.sequences_max, slow.kv_tokens), (100_000, 8, plain.kv_tokens));
        assert!(Group::default().engine("llama-9", 0.0).unwrap_err().contains("there are: llama-3.1-8b"));
    }

    #[test]
    fn all_that_is_wrong_is_told() {
        for (spec, part) in [
            ("x*llama-3.1-8b", "fleet: expected COUNT*MODEL such as 4*llama-3.1-8b"),
            ("4*llama-3.1-8b(speed=0)", "fleet[0].speed: "),
            ("a,4*b(sped=1)", "fleet[1].sped: unknown field; did you mean `speed`?"),
            ("4*b(count=1)", "`count` stands before the parentheses"),
            ("4*b(speed)", "fleet: expected key=value"),
            ("4*b(speed=1", "parentheses"),
            ("0*b", "fleet[0].count: "),
            ("4*", "fleet[0].model: "),
            ("", "fleet: an empty place"),
        ] {
            assert!(wrong(spec).contains(part), "no {part} in {}", wrong(spec));
        }
        assert_eq!(wrong("4*a(speed=0),4*b(slots=0)").lines().count(), 2);
    }

    #[test]
    fn any_text_is_an_answer() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            if let Ok(groups) = from_spec(&String::from_utf8_lossy(bytes)) {
                let shown = groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                assert_eq!(from_spec(&shown), Ok(groups));
            }
        });
    }
}
