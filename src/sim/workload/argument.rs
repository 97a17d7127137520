//! `key=value,key=value` after a trace's or a generator's name → numbers within their ranges. As with configuration
//! files, all that is wrong is told at once, and an unknown key lists the known ones.

use std::ops::RangeInclusive;

use crate::config::error::excerpt;
use crate::config::unit;

/// Most arguments of one workload; no generator has as many.
const ARGUMENTS_MAX: usize = 32;

/// What is wrong with one argument.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ArgumentFault {
    /// It is not `key=value`.
    #[error("{} is not `key=value`", excerpt(.0))]
    NoValue(String),
    /// The key is there already.
    #[error("`{}` is given twice", .0.escape_debug())]
    Twice(String),
    /// Nothing has this key.
    #[error("unknown key {}; known: {}", excerpt(.key), .known.join(", "))]
    Unknown {
        /// What was written.
        key: String,
        /// What could have been.
        known: Vec<&'static str>,
    },
    /// The value is no number, or none of the allowed ones.
    #[error("{key}={}: expected {what} from {from} to {to}", excerpt(.text))]
    Value {
        /// Of which key.
        key: &'static str,
        /// What was written.
        text: String,
        /// What was expected.
        what: &'static str,
        /// The least that is allowed.
        from: f64,
        /// The most that is allowed.
        to: f64,
    },
    /// The second key's value must be larger than the first's.
    #[error("{0} must be less than {1}")]
    Order(&'static str, &'static str),
    /// There are too many.
    #[error("more than {ARGUMENTS_MAX} arguments")]
    TooMany,
    /// Together they ask for more than is kept in memory.
    #[error("{asked:.0} calls; at most {most} are made: lower `rate` or `duration`")]
    Calls {
        /// How many would be made.
        asked: f64,
        /// How many may be.
        most: usize,
    },
}

/// Arguments that are read one key at a time.
#[derive(Debug, Default)]
pub(crate) struct Arguments<'t> {
    items: Vec<(&'t str, &'t str)>,
    known: Vec<&'static str>,
    faults: Vec<ArgumentFault>,
}

impl<'t> Arguments<'t> {
    /// Splits `key=value,key=value`; the empty text has none.
    pub(crate) fn new(text: &'t str) -> Self {
        let mut arguments = Self::default();
        for item in text.split(',').filter(|item| !item.trim().is_empty()) {
            if arguments.items.len() >= ARGUMENTS_MAX {
                arguments.faults.push(ArgumentFault::TooMany);
                break;
            }
            match item.split_once('=').map(|(key, value)| (key.trim(), value.trim())) {
                None => arguments.faults.push(ArgumentFault::NoValue(item.to_owned())),
                Some((key, _)) if arguments.items.iter().any(|(other, _)| *other == key) => {
                    arguments.faults.push(ArgumentFault::Twice(key.to_owned()));
                }
                Some(pair) => arguments.items.push(pair),
            }
        }
        arguments
    }

    /// A number within a range; `default` when it is absent or wrong.
    pub(crate) fn number(&mut self, key: &'static str, default: f64, range: &RangeInclusive<f64>) -> f64 {
        self.value(key, "a number", range, |text| unit::number(text).ok()).unwrap_or(default)
    }

    /// A share within 0 to 1, perhaps in percent.
    pub(crate) fn share(&mut self, key: &'static str, default: f64) -> f64 {
        self.value(key, "a share", &(0.0..=1.0), |text| unit::share(text).ok()).unwrap_or(default)
    }

    /// A whole number within a range.
    pub(crate) fn count(&mut self, key: &'static str, default: u32, range: &RangeInclusive<u32>) -> u32 {
        self.given_count(key, range).unwrap_or(default)
    }

    /// A whole number within a range, if it is given.
    pub(crate) fn given_count(&mut self, key: &'static str, range: &RangeInclusive<u32>) -> Option<u32> {
        let bounds = f64::from(*range.start())..=f64::from(*range.end());
        let mut count = None;
        self.value(key, "a whole number", &bounds, |text| {
            count = unit::count(text).ok().and_then(|value| u32::try_from(value).ok());
            count.map(f64::from)
        })?;
        count
    }

    fn value(
        &mut self,
        key: &'static str,
        what: &'static str,
        range: &RangeInclusive<f64>,
        read: impl FnOnce(&str) -> Option<f64>,
    ) -> Option<f64> {
        self.known.push(key);
        let (_, text) = *self.items.iter().find(|(name, _)| *name == key)?;
        let value = read(text).filter(|value| range.contains(value));
        if value.is_none() {
            let (from, to) = (*range.start(), *range.end());
            self.faults.push(ArgumentFault::Value { key, text: text.to_owned(), what, from, to });
        }
        value
    }

    /// Records what no key alone can tell.
    pub(crate) fn fail(&mut self, fault: ArgumentFault) {
        self.faults.push(fault);
    }

    /// All that was wrong, unknown keys among it. Call it when every key has been read.
    pub(crate) fn finish(mut self) -> Result<(), Vec<ArgumentFault>> {
        for (key, _) in &self.items {
            if !self.known.contains(key) {
                self.faults.push(ArgumentFault::Unknown { key: (*key).to_owned(), known: self.known.clone() });
            }
        }
        if self.faults.is_empty() { Ok(()) } else { Err(self.faults) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_units_and_defaults() {
        let mut arguments = Arguments::new("a=6k, b=10%,c=0.5");
        assert_eq!(arguments.count("a", 1, &(1..=10_000)), 6000);
        assert!((arguments.share("b", 0.0) - 0.1).abs() < 1e-12);
        assert!((arguments.number("c", 0.0, &(0.0..=1.0)) - 0.5).abs() < 1e-12);
        assert_eq!(arguments.count("d", 7, &(1..=10)), 7);
        assert_eq!(arguments.finish(), Ok(()));
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let mut arguments = Arguments::new("a=0,a=1,b,zz=1,c=1.5");
        arguments.count("a", 1, &(1..=9));
        arguments.given_count("c", &(1..=9));
        let faults = arguments.finish().unwrap_err();
        let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "`a` is given twice",
                "\"b\" is not `key=value`",
                "a=\"0\": expected a whole number from 1 to 9",
                "c=\"1.5\": expected a whole number from 1 to 9",
                "unknown key \"zz\"; known: a, c",
            ]
        );
    }
}
