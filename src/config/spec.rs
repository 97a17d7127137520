//! A policy and its parameters in one word, for command lines: `chwbl`, `chwbl(load_factor=1.5)`,
//! `weighted(prefix=3,queue=5,kv=2)`. The keys are those of the policy's own section in a file, or, for `price`, of
//! `policy` itself; the same code checks both.

use super::error::{ConfigError, Errors, excerpt};
use super::read::Field;
use super::yaml::{Entry, Mark, Node, Value};
use super::{PolicyConfig, PolicyName, resolve};

/// Most policies in one list.
const SPECS_MAX: usize = 256;
/// Most parameters of one policy.
const PARAMETERS_MAX: usize = 64;
/// What errors of form are said of.
const PATH: &str = "policy";

impl PolicyConfig {
    /// Reads `name` or `name(key=value,key=value)`; what is not given is as [`PolicyConfig::default`] has it.
    ///
    /// # Errors
    /// Everything that is wrong with it, with the names and keys that are known.
    pub fn from_spec(spec: &str) -> Result<Self, Vec<ConfigError>> {
        let errors = Errors::default();
        let policy = read(spec.trim(), &errors);
        match (policy, errors.into_list()) {
            (Some(policy), None) => Ok(policy),
            (_, errors) => Err(errors.unwrap_or_default()),
        }
    }
}

/// Splits a list of specifications at the commas outside parentheses.
///
/// # Errors
/// An empty one, parentheses that do not match, or more than 256 of them.
pub fn split_specs(list: &str) -> Result<Vec<&str>, ConfigError> {
    let (mut is_open, mut is_wrong) = (false, false);
    let is_end = |letter: char| {
        match letter {
            '(' | ')' => {
                is_wrong |= is_open == (letter == '(');
                is_open = letter == '(';
            }
            _ => return letter == ',' && !is_open,
        }
        false
    };
    let specs: Vec<&str> = list.split(is_end).map(str::trim).take(SPECS_MAX + 1).collect();
    match () {
        () if specs.len() > SPECS_MAX => Err(wrong(format!("more than {SPECS_MAX} policies"))),
        () if is_wrong || is_open => Err(wrong(format!("parentheses that do not match in {}", excerpt(list)))),
        () if specs.contains(&"") => Err(wrong(format!(
            "an empty place in {}; write names separated by commas, such as price,chwbl(load_factor=1.25)",
            excerpt(list)
        ))),
        () => Ok(specs),
    }
}

fn wrong(message: String) -> ConfigError {
    ConfigError { line: 0, column: 0, path: PATH.to_owned(), message }
}

/// The field of `policy` that holds the parameters of `name` alone; `None` where it has none, or they stand in `policy`.
const fn section(name: PolicyName) -> Option<&'static str> {
    match name {
        PolicyName::Weighted => Some("weights"),
        PolicyName::StickyUntilSaturated
        | PolicyName::Chwbl
        | PolicyName::CacheAware
        | PolicyName::SpillGate
        | PolicyName::Dynamo
        | PolicyName::DualMap
        | PolicyName::Preble => Some(name.as_str()),
        PolicyName::Price
        | PolicyName::LeastRequest
        | PolicyName::RoundRobin
        | PolicyName::PowerOfTwo
        | PolicyName::Sticky
        | PolicyName::LMetric
        | PolicyName::Random => None,
    }
}

fn read(spec: &str, errors: &Errors) -> Option<PolicyConfig> {
    let fail = |message: String| errors.stop(Mark::FLAG, PATH, message);
    let (name, parameters) = match spec.split_once('(') {
        None => (spec, ""),
        Some((name, rest)) => match rest.strip_suffix(')') {
            Some(parameters) => (name.trim_end(), parameters),
            None => return fail(format!("expected name(key=value,...), found {}", excerpt(spec))),
        },
    };
    let scalar = Node { mark: Mark::FLAG, value: Value::Scalar(name.to_owned()) };
    let known = resolve::policy_name(&Field::named(PATH, &scalar, errors))?;
    let parameters = entries(parameters, PATH, errors)?;
    let parameters = match section(known) {
        _ if parameters.is_empty() => Vec::new(),
        Some(section) => vec![entry(section, Value::Map(parameters))],
        None if known == PolicyName::Price => parameters,
        None => return fail(format!("{} has no parameters", known.as_str())),
    };
    let mut fields = vec![entry("name", scalar.value)];
    fields.extend(parameters);
    let tree = Node { mark: Mark::FLAG, value: Value::Map(fields) };
    resolve::policy(&Field::named(PATH, &tree, errors))
}

/// A field of a map.
pub(crate) fn entry(key: &str, value: Value) -> Entry {
    Entry { key: key.to_owned(), label: None, mark: Mark::FLAG, value: Node { mark: Mark::FLAG, value } }
}

/// `key=value,key=value` as the fields of a map; errors of form are said of `path`.
pub(crate) fn entries(text: &str, path: &str, errors: &Errors) -> Option<Vec<Entry>> {
    let mut found: Vec<Entry> = Vec::new();
    for item in text.split(',').filter(|_| !text.trim().is_empty()) {
        let Some((key, value)) = item.split_once('=') else {
            return errors.stop(Mark::FLAG, path, format!("expected key=value, found {}", excerpt(item.trim())));
        };
        let (key, value) = (key.trim(), value.trim());
        if found.iter().any(|entry| entry.key == key) {
            return errors.stop(Mark::FLAG, path, format!("{} is given twice", excerpt(key)));
        }
        if found.len() == PARAMETERS_MAX {
            return errors.stop(Mark::FLAG, path, format!("more than {PARAMETERS_MAX} parameters"));
        }
        found.push(entry(key, Value::Scalar(value.to_owned())));
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::super::{ChwblConfig, Weights};
    use super::*;
    use std::time::Duration;

    fn wrong(spec: &str) -> String {
        let errors = PolicyConfig::from_spec(spec).expect_err("it should be refused");
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_policy_is_its_name_with_what_differs() {
        for name in PolicyName::ALL {
            let plain = PolicyConfig { name, ..PolicyConfig::default() };
            assert_eq!(PolicyConfig::from_spec(name.as_str()).as_ref(), Ok(&plain));
            assert_eq!(PolicyConfig::from_spec(&format!(" {}( ) ", name.as_str())), Ok(plain));
        }
        let policy = PolicyConfig::from_spec("weighted(prefix=3, queue=5,no_hit_lru=2)").unwrap();
        assert_eq!(policy.weights, Weights { prefix: 3.0, queue: 5.0, kv: 2.0, no_hit_lru: 2.0 });
        let policy = PolicyConfig::from_spec("chwbl(load_factor=1.5)").unwrap();
        assert_eq!(policy.chwbl, ChwblConfig { load_factor: 1.5, ..ChwblConfig::default() });
        let policy = PolicyConfig::from_spec("sticky_until_saturated(affinity=50%,break_after=250ms)").unwrap();
        assert_eq!(policy.sticky_until_saturated.break_after, Duration::from_millis(250));
        assert!(!PolicyConfig::from_spec("price(wait=false)").unwrap().wait);
    }

    #[test]
    fn a_spec_says_what_its_section_in_a_file_says() {
        let file = "replicas: []\npolicy: { name: dualmap, dualmap: { ttft_slo: 2s, virtual_nodes: 7 } }";
        let file = super::super::parse(file).unwrap();
        assert_eq!(PolicyConfig::from_spec("dualmap(ttft_slo=2s,virtual_nodes=7)"), Ok(file.policy));
    }

    #[test]
    fn errors_name_what_is_known() {
        for spec in [
            "chwb",
            "cache_aware(cache_treshold=1)",
            "preble(span=1s)",
            "chwbl(load_factor=0.9)",
            "spill_gate(margin_min=9,margin_max=8)",
            "weighted(prefix=0,queue=0,kv=0)",
            "random(x=1)",
            "chwbl(1.25)",
            "chwbl(load_factor=1,load_factor=2)",
            "chwbl(load_factor=1",
            "",
        ] {
            assert!(PolicyConfig::from_spec(spec).is_err(), "{spec}");
        }
        let shown = [
            wrong("chwb"),
            wrong("cache_aware(cache_treshold=1)"),
            wrong("preble(span=1s)"),
            wrong("random(x=1)"),
            wrong("chwbl(load_factor=0.9)"),
            wrong("chwbl(1.25)"),
            wrong("chwbl(load_factor=1"),
        ];
        insta::assert_snapshot!(shown.join("\n"), @r#"
        policy: expected one of price, weighted, sticky_until_saturated, least_request, round_robin, power_of_two, sticky, chwbl, cache_aware, spill_gate, dynamo, lmetric, dualmap, preble, random, found "chwb"; did you mean `chwbl`?
        policy.cache_aware.cache_treshold: unknown field; did you mean `cache_threshold`?
        policy.preble.span: unknown field; known here: window
        policy: random has no parameters
        policy.chwbl.load_factor: "0.9" is out of range: from 1 to 1000
        policy: expected key=value, found "1.25"
        policy: expected name(key=value,...), found "chwbl(load_factor=1"
        "#);
    }

    #[test]
    fn lists_are_split_outside_parentheses() {
        let list = "price, weighted(prefix=3,queue=5) ,chwbl(load_factor=1.5)";
        let specs = ["price", "weighted(prefix=3,queue=5)", "chwbl(load_factor=1.5)"];
        assert_eq!(split_specs(list), Ok(specs.to_vec()));
        assert_eq!(split_specs("random"), Ok(vec!["random"]));
        for list in ["", "price,", "chwbl(load_factor=1", "chwbl)", "chwbl((x=1))", &"random,".repeat(300)] {
            assert!(split_specs(list).is_err(), "{list}");
        }
    }

    #[test]
    fn any_text_is_an_answer() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            let _policy = PolicyConfig::from_spec(&text);
            for spec in split_specs(&text).into_iter().flatten() {
                let _policy = PolicyConfig::from_spec(spec);
            }
            let _policy = PolicyConfig::from_spec(&format!("chwbl({text})"));
        });
    }
}
