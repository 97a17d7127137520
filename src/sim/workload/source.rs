//! Where a workload comes from, as people name it: a trace's path, or `generate:NAME`, each with `,key=value` behind it.
//!
//! | name | what | arguments |
//! |---|---|---|
//! | a path | a trace ([`super::trace`]) | `system` (Azure), `block` (Mooncake) |
//! | `generate:groups` … | traffic from a few figures ([`super::generate`]) | those of the generator |

use std::path::Path;

use super::argument::{ArgumentFault, Arguments};
use super::generate::{self, Generator};
use super::trace::{self, Options, TOKENS_MAX, TraceFault};
use super::{Half, Workload};
use crate::config::error::excerpt;

/// What a workload is made from, read once for all seeds.
#[derive(Clone, Debug)]
pub enum Source {
    /// Recorded traffic.
    Trace(Workload),
    /// A generator with its parameters.
    Generator(Generator),
}

/// Why there is no such workload.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadFault {
    /// The trace cannot be used.
    #[error(transparent)]
    Trace(#[from] TraceFault),
    /// No generator has that name.
    #[error("no generator is named {}; there are: {}", excerpt(.0), generate::NAMES.join(", "))]
    UnknownGenerator(String),
    /// The arguments after the name are wrong.
    #[error("{}: {}", of, joined(faults))]
    Arguments {
        /// The trace's path or the generator's name.
        of: String,
        /// All that is wrong.
        faults: Vec<ArgumentFault>,
    },
}

fn joined(faults: &[ArgumentFault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Source {
    /// Reads `PATH[,key=value…]` or `generate:NAME[,key=value…]`.
    ///
    /// # Errors
    /// When there is no such trace or generator, or all that is wrong with the arguments.
    pub fn open(spec: &str) -> Result<Self, WorkloadFault> {
        if let Some(rest) = spec.strip_prefix("generate:") {
            let (name, arguments) = rest.split_once(',').unwrap_or((rest, ""));
            return Generator::read(name, arguments).map(Self::Generator);
        }
        let (path, arguments) = split(spec);
        let mut arguments = Arguments::new(arguments);
        let tokens = 1..=TOKENS_MAX;
        let options = Options {
            system_tokens: arguments.given_count("system", &(0..=TOKENS_MAX)),
            block_tokens: arguments.given_count("block", &tokens),
        };
        arguments.finish().map_err(|faults| WorkloadFault::Arguments { of: path.to_owned(), faults })?;
        Ok(Self::Trace(trace::open(Path::new(path), options)?))
    }

    /// The workload of a run: a trace as [`Workload::seeded`] varies it, or what the generator makes of the seed.
    #[must_use]
    pub fn workload(&self, seed: u64) -> Workload {
        match self {
            Self::Trace(workload) => workload.clone().seeded(seed),
            Self::Generator(generator) => generator.workload(seed),
        }
    }

    /// Likewise, of one half only: a trace is divided ([`Workload::part`]); a generator makes whole workloads, for tuning
    /// from seeds that [`Self::workload`] and the test half do not use.
    #[must_use]
    pub fn half(&self, half: Half, seed: u64) -> Workload {
        match (self, half) {
            (Self::Trace(workload), _) => workload.clone().part(half).seeded(seed),
            (Self::Generator(generator), Half::Tuning) => generator.workload(!seed),
            (Self::Generator(generator), Half::Test) => generator.workload(seed),
        }
    }
}

/// Reads a trace, as it was recorded.
///
/// # Errors
/// When it cannot be read or one of its lines is wrong.
pub fn from_file(path: &Path) -> Result<Workload, TraceFault> {
    trace::open(path, Options::default())
}

/// The workload of a run with that seed; to read a trace once for many seeds, keep a [`Source`].
///
/// # Errors
/// As [`Source::open`].
pub fn by_name(spec: &str, seed: u64) -> Result<Workload, WorkloadFault> {
    Source::open(spec).map(|source| source.workload(seed))
}

/// A path and the arguments behind it. A file whose own name looks as if it had arguments is found first.
fn split(spec: &str) -> (&str, &str) {
    if Path::new(spec).exists() {
        return (spec, "");
    }
    let is_key = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let begins = |(at, _): &(usize, &str)| {
        let tail = spec.as_bytes().get(at + 1..).unwrap_or_default();
        let key = tail.iter().take_while(|byte| is_key(**byte)).count();
        key > 0 && tail.get(key) == Some(&b'=')
    };
    match spec.match_indices(',').find(begins) {
        Some((at, _)) => {
            let (path, arguments) = spec.split_at(at);
            (path, arguments.trim_start_matches(','))
        }
        None => (spec, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(spec: &str) -> String {
        Source::open(spec).unwrap_err().to_string()
    }

    #[test]
    fn a_path_is_told_from_its_arguments() {
        assert_eq!(split("no/such.csv"), ("no/such.csv", ""));
        assert_eq!(split("no/such,old.csv,system=5,block=6"), ("no/such,old.csv", "system=5,block=6"));
        assert_eq!(split("no/such.csv,"), ("no/such.csv,", ""));
    }

    #[test]
    fn what_there_is_not_is_told() {
        assert!(told("no/such.csv,system=10").starts_with("cannot read no/such.csv: "));
        assert_eq!(told("no/such.csv,sistem=1"), "no/such.csv: unknown key \"sistem\"; known: system, block");
        assert_eq!(
            told("generate:grups"),
            "no generator is named \"grups\"; there are: groups, chat, hot, tenants, workflows"
        );
        assert!(told("generate:groups,prefx=3").contains("unknown key \"prefx\"; known: groups, prefix, "));
    }

    #[test]
    fn the_halves_of_a_generator_are_made_from_other_seeds() {
        let source = Source::open("generate:groups,duration=10").unwrap();
        assert_eq!(source.half(Half::Test, 3), source.workload(3));
        assert_ne!(source.half(Half::Tuning, 3), source.workload(3));
    }
}
