//! A suite: the scenarios of a page of evidence, what each is to answer, and the claims that are checked against what
//! comes of it. Suites are data, so that a claim is written down before its figures are known.
//!
//! ```yaml
//! title: Scheduling
//! seeds_quick: 3
//! scenarios:
//!   - name: coding-8b
//!     question: Does it hold that sessions stay where their context is?
//!     scenario: { trace: perf/traces/agent_sessions.jsonl.gz, policies: [price, round_robin], loads: [2, 4] }
//!     tuned: ["chwbl(load_factor=2)"]     # baselines with parameters of their own, found by `emberlane sim --tune`
//!     ablations:
//!       - { variant: index_off, policies: price, loads: [4] }
//!     claims:
//!       - { claim: TTFT p50 35 % lower, measure: ttft_p50_s, against: round_robin, at_most: 0.65 }
//! ```

pub mod cache;
pub mod claim;
pub mod evidence;
pub mod page;

use super::report::measure::Measure;
use super::scenario::Scenario;
use crate::config::ConfigError;
use crate::config::error::Errors;
use crate::config::read::{Field, Section};
use crate::config::yaml;
use claim::{Claim, Doubt, Knee, Loads};

const SCENARIOS_MAX: usize = 64;
const ABLATIONS_MAX: usize = 64;
const CLAIMS_MAX: usize = 64;
const RIVALS_MAX: usize = 64;
const NAME_BYTES_MAX: usize = 60;

/// All of a page.
#[derive(Clone, Debug)]
pub struct Suite {
    /// The page's heading.
    pub title: String,
    /// What stands below it.
    pub about: String,
    /// Seeds where there is little time.
    pub seeds_quick: u64,
    /// Its parts, in the page's order.
    pub entries: Vec<Entry>,
}

/// A scenario, why it is run, and what is claimed of it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// In the names of files: lower-case letters, digits and `-`.
    pub name: String,
    /// What it answers.
    pub question: String,
    /// What is run.
    pub scenario: Scenario,
    /// What is run beside that.
    pub ablations: Vec<Ablation>,
    /// What is claimed.
    pub claims: Vec<Claim>,
}

/// Policies that are run again with something changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Ablation {
    /// What, as the runner names it.
    pub variant: String,
    /// Which.
    pub policies: Vec<String>,
    /// At which loads.
    pub loads: Vec<f64>,
}

impl Suite {
    /// Reads a suite's text.
    ///
    /// # Errors
    /// Everything that is wrong with it, in the order of the file.
    pub fn read(text: &str) -> Result<Self, Vec<ConfigError>> {
        let errors = Errors::default();
        let root = yaml::read(text, &errors);
        let suite = root.as_ref().and_then(|root| Section::root(root, &errors)).map(suite);
        match (suite, errors.into_list()) {
            (Some(suite), None) => Ok(suite),
            (_, errors) => Err(errors.unwrap_or_default()),
        }
    }
}

fn suite(mut section: Section<'_>) -> Suite {
    let suite = Suite {
        title: section.read("title", String::new(), |field| text(field, "a title")),
        about: section.read("about", String::new(), |field| text(field, "some text")),
        seeds_quick: section.read("seeds_quick", 3, |field| field.count(1..=1_000_u64)),
        entries: section.read("scenarios", Vec::new(), entries),
    };
    section.finish();
    suite
}

fn entries(field: &Field<'_>) -> Option<Vec<Entry>> {
    let items = field.items(SCENARIOS_MAX, "a list of scenarios")?;
    let entries: Vec<Entry> = items.iter().filter_map(entry).collect();
    for (place, item) in items.iter().enumerate() {
        let name = entries.get(place).map(|entry| &entry.name);
        if entries.iter().take(place).any(|other| Some(&other.name) == name) {
            return item.fail("another scenario has that name; plots are files of that name");
        }
    }
    Some(entries)
}

fn entry(field: &Field<'_>) -> Option<Entry> {
    let mut section = field.section("fields such as `name` and `scenario`")?;
    let name = section.get("name").and_then(|field| name(&field));
    if name.is_none() && section.is_clean() {
        section.missing("name", "it names the plots' files");
    }
    let scenario = section.get("scenario").and_then(|field| field.section("fields such as `trace`"));
    let mut scenario = scenario.map_or_else(Scenario::default, Scenario::from_section);
    for tuned in section.read("tuned", Vec::new(), texts) {
        if !scenario.policies.contains(&tuned) {
            scenario.policies.push(tuned);
        }
    }
    let entry = Entry {
        name: name.unwrap_or_default(),
        question: section.read("question", String::new(), |field| text(field, "a question")),
        ablations: section.read("ablations", Vec::new(), |field| ablations(field, &scenario)),
        claims: section.read("claims", Vec::new(), claims),
        scenario,
    };
    section.finish();
    Some(entry)
}

fn name(field: &Field<'_>) -> Option<String> {
    const WHAT: &str = "a name of lower-case letters, digits and `-`";
    let name = field.text(WHAT)?;
    let is_plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !is_plain {
        return field.fail(format!("expected {WHAT}, at most {NAME_BYTES_MAX}"));
    }
    Some(name.to_owned())
}

fn text(field: &Field<'_>, what: &str) -> Option<String> {
    field.text(what).map(|text| text.trim().to_owned())
}

fn texts(field: &Field<'_>) -> Option<Vec<String>> {
    let items = field.one_or_more(RIVALS_MAX, "a policy or a list of them")?;
    Some(items.iter().filter_map(|item| text(item, "a policy")).collect())
}

fn ablations(field: &Field<'_>, scenario: &Scenario) -> Option<Vec<Ablation>> {
    let items = field.items(ABLATIONS_MAX, "a list of ablations")?;
    let ablation = |item: &Field<'_>| {
        let mut section = item.section("fields such as `variant`")?;
        let ablation = Ablation {
            variant: section.read("variant", String::new(), |field| text(field, "a variant's name")),
            policies: section.read("policies", vec!["price".to_owned()], texts),
            loads: section.read("loads", scenario.loads.clone(), |field| {
                let items = field.one_or_more(RIVALS_MAX, "a load or a list of them")?;
                Some(items.iter().filter_map(|item| item.number(0.001..=10_000.0)).collect())
            }),
        };
        if ablation.variant.is_empty() && section.is_clean() {
            section.missing("variant", "it says what is changed");
        }
        section.finish();
        Some(ablation)
    };
    Some(items.iter().filter_map(ablation).collect())
}

fn claims(field: &Field<'_>) -> Option<Vec<Claim>> {
    let items = field.items(CLAIMS_MAX, "a list of claims")?;
    Some(items.iter().filter_map(claim).collect())
}

fn claim(field: &Field<'_>) -> Option<Claim> {
    let mut section = field.section("fields such as `claim` and `measure`")?;
    let said = section.read("claim", String::new(), |field| text(field, "what is claimed"));
    let measure = section.get("measure").and_then(|field| measure(&field));
    let bound = |field: &Field<'_>| field.number(-1e12..=1e12).map(Some);
    let variant = section.read("variant", String::new(), |field| text(field, "a variant's name"));
    let claim = Claim {
        text: said,
        policy: section.read("policy", "price".to_owned(), |field| text(field, "a policy")),
        against: section.read("against", Vec::new(), texts),
        against_variant: section.read("against_variant", variant.clone(), |field| text(field, "a variant's name")),
        variant,
        at_most: section.read("at_most", None, bound),
        at_least: section.read("at_least", None, bound),
        loads: section
            .read("loads", Loads::Every, |field| field.choice(&[("every", Loads::Every), ("some", Loads::Some)])),
        from_load: section.read("from_load", 0.0, |field| field.number(0.0..=10_000.0)),
        knee: section.read("knee", None, |field| knee(field).map(Some)),
        doubt: section.read("in_doubt", Doubt::ByMean, |field| {
            field.choice(&[("by_mean", Doubt::ByMean), ("held", Doubt::Held), ("failed", Doubt::Failed)])
        }),
        // Never used when missing: a file with errors gives no suite.
        measure: measure.clone().or_else(|| Measure::of("hit_rate"))?,
    };
    if section.is_clean() {
        if claim.text.is_empty() {
            section.missing("claim", "say it in words");
        }
        if measure.is_none() {
            section.missing("measure", "such as ttft_p50_s");
        }
        if claim.at_most.is_none() && claim.at_least.is_none() {
            section.missing("at_most", "or `at_least`: without a bound nothing is claimed");
        }
        if claim.knee.is_some() && claim.against.is_empty() {
            section.missing("against", "the knees of policies are compared");
        }
    }
    section.finish();
    Some(claim)
}

fn knee(field: &Field<'_>) -> Option<Knee> {
    let mut section = field.section("fields `measure` and `at_most`")?;
    let limited = section.get("measure").and_then(|field| measure(&field));
    let at_most = section.get("at_most").and_then(|field| field.number(0.0..=1e12));
    if section.is_clean() && (limited.is_none() || at_most.is_none()) {
        section.missing("measure", "name a measure and, with `at_most`, how much of it the objective allows");
    }
    section.finish();
    Some(Knee { measure: limited?, at_most: at_most? })
}

fn measure(field: &Field<'_>) -> Option<Measure> {
    match field.text("a measure such as ttft_p50_s")?.parse::<Measure>() {
        Ok(measure) => Some(measure),
        Err(unknown) => field.fail(unknown.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUITE: &str = "
title: Scheduling
seeds_quick: 2
scenarios:
  - name: coding
    question: Where do sessions go?
    scenario: { policies: &all [price, least_request, oracle], loads: [2, 4] }
    tuned: [chwbl(load_factor=2), price]
    ablations:
      - { variant: index_off }
      - { variant: beacons_1s, policies: [price, least_request], loads: 4 }
    claims: &claims
      - { claim: faster, measure: ttft_p50_s, against: [least_request], at_most: 0.65 }
      - { claim: sure, measure: ttft_p95_s/short, against: best, at_most: 1.05, loads: some, from_load: 3 }
      - claim: throughput at the objective
        measure: output_tokens_per_s
        knee: { measure: ttft_p90_s, at_most: 2 }
        against: least_request
        at_least: 1.1
  - { name: coding-32b, scenario: { policies: *all, model: qwen3-32b }, claims: *claims }
";

    #[test]
    fn a_suite_is_read_with_its_aliases() {
        let suite = Suite::read(SUITE).unwrap();
        assert_eq!((suite.title.as_str(), suite.seeds_quick, suite.entries.len()), ("Scheduling", 2, 2));
        let entry = &suite.entries[0];
        assert_eq!(entry.scenario.policies, ["price", "least_request", "oracle", "chwbl(load_factor=2)"]);
        assert_eq!(entry.ablations[0].loads, [2.0, 4.0]);
        assert_eq!((entry.ablations[1].policies.len(), entry.ablations[1].loads.as_slice()), (2, &[4.0][..]));
        assert_eq!((entry.claims.len(), entry.claims[1].loads, entry.claims[1].from_load), (3, Loads::Some, 3.0));
        assert_eq!(entry.claims[2].knee.as_ref().unwrap().measure.to_string(), "ttft_p90_s");
        assert_eq!((suite.entries[1].claims.len(), suite.entries[1].scenario.model.as_str()), (3, "qwen3-32b"));
    }

    #[test]
    fn all_that_is_wrong_is_told_with_its_line() {
        let text = "scenarios:\n- name: A\n- name: b\n  claims:\n  - {measure: ttft}\n  - {claim: x, measure: hit_rate}\n\
                    \x20 ablations: [{policies: price}]\n  scenaro: {}\n- {scenario: {replicas: 0}}\n";
        let found: Vec<String> = Suite::read(text).unwrap_err().iter().map(ToString::to_string).collect();
        for part in [
            "line 2: scenarios[0].name",
            "line 5: scenarios[1].claims[0].measure: `ttft` is no measure; known: hit_rate",
            "line 6: scenarios[1].claims[1].at_most: missing",
            "scenarios[1].ablations[0].variant: missing",
            "did you mean `scenario`?",
            "scenarios[2].scenario.replicas",
        ] {
            assert!(found.iter().any(|error| error.contains(part)), "no {part} in {found:#?}");
        }
        let twice = Suite::read("scenarios: [{name: a}, {name: a}]").unwrap_err();
        assert!(twice[0].message.contains("another scenario"), "{twice:?}");
    }

    #[test]
    fn the_suite_of_the_page_is_whole() {
        let suite = Suite::read(include_str!("../../perf/scheduling.yaml")).unwrap();
        assert!(suite.entries.len() >= 10, "{}", suite.entries.len());
        for entry in &suite.entries {
            assert_eq!(entry.scenario.faults(), Vec::<String>::new(), "{}", entry.name);
            for claim in &entry.claims {
                // A rival that is not run makes a claim that cannot be tested.
                let is_run = |policy: &String, variant: &str| {
                    let ablations = entry.ablations.iter().filter(|ablation| ablation.variant == variant);
                    match variant {
                        "" => entry.scenario.policies.contains(policy),
                        _ => ablations.clone().any(|ablation| ablation.policies.contains(policy)),
                    }
                };
                assert!(is_run(&claim.policy, &claim.variant), "{}: {}", entry.name, claim.text);
                for rival in claim.against.iter().filter(|rival| *rival != claim::BEST) {
                    assert!(is_run(rival, &claim.against_variant), "{}: {}: {rival}", entry.name, claim.text);
                }
            }
        }
    }

    #[test]
    fn any_text_is_read_or_refused() {
        bolero::check!().for_each(|bytes: &[u8]| drop(Suite::read(&String::from_utf8_lossy(bytes))));
    }
}
