//! Results that are kept between runs of a suite, so that one that was stopped goes on where it was: a file of JSON
//! lines for each scenario, named by a hash of all that a result depends on.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::sim::batch::{Job, Runner};
use crate::sim::result::RunResult;
use crate::sim::scenario::{OutputFormat, Scenario};

/// Results of one scenario that are known.
#[derive(Debug)]
pub struct Cache {
    known: BTreeMap<String, RunResult>,
    file: Mutex<File>,
}

impl Cache {
    /// Opens what is known of a scenario in `directory`, or begins it. `build` stands for the code: what another build
    /// found is not taken for its own.
    ///
    /// # Errors
    /// When the file cannot be read or made.
    pub fn open(directory: &Path, name: &str, scenario: &Scenario, build: &str) -> std::io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let path = directory.join(format!("{name}-{}.jsonl", key(scenario, build)?));
        let mut file = File::options().read(true).append(true).create(true).open(path)?;
        let mut known = BTreeMap::new();
        let mut is_cut = false;
        for line in BufReader::new(&file).lines() {
            // A line that was cut off when the process ended is played again.
            let line = line?;
            is_cut = true;
            if let Ok(run) = serde_json::from_str::<RunResult>(&line) {
                is_cut = false;
                known.insert(of_result(&run), run);
            }
        }
        if is_cut {
            file.write_all(b"\n")?;
        }
        Ok(Self { known, file: Mutex::new(file) })
    }

    /// Results known when it was opened.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// True when nothing was known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    fn keep(&self, job: &Job, run: &RunResult) -> std::io::Result<()> {
        let named = RunResult {
            policy: job.policy.clone(),
            variant: job.variant.clone(),
            load: job.load,
            seed: job.seed,
            ..run.clone()
        };
        let mut line = serde_json::to_string(&named)?;
        line.push('\n');
        self.file.lock().write_all(line.as_bytes())
    }
}

/// Plays what is not known, and keeps it.
pub struct Cached<'a> {
    /// Who plays.
    pub runner: &'a dyn Runner,
    /// What is known.
    pub cache: &'a Cache,
}

impl std::fmt::Debug for Cached<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cached").field("known", &self.cache.len()).finish_non_exhaustive()
    }
}

impl Runner for Cached<'_> {
    fn check(&self, scenario: &Scenario, policy: &str, variant: &str) -> Result<(), String> {
        self.runner.check(scenario, policy, variant)
    }

    fn run(&self, scenario: &Scenario, job: &Job, simulated: &AtomicU64) -> Result<RunResult, String> {
        if let Some(run) = self.cache.known.get(&job.to_string()) {
            return Ok(run.clone());
        }
        let run = self.runner.run(scenario, job, simulated)?;
        self.cache.keep(job, &run).map_err(|error| format!("cannot keep its result: {error}"))?;
        Ok(run)
    }
}

fn of_result(run: &RunResult) -> String {
    let RunResult { policy, variant, load, seed, .. } = run;
    Job { policy: policy.clone(), variant: variant.clone(), load: *load, seed: *seed }.to_string()
}

/// A hash of all that a result of the scenario depends on beside its job: the code, the settings, the trace's bytes.
fn key(scenario: &Scenario, build: &str) -> std::io::Result<String> {
    let settings = Scenario {
        policies: Vec::new(),
        loads: Vec::new(),
        seeds: 0,
        first_seed: 0,
        output: OutputFormat::Table,
        ..scenario.clone()
    };
    let mut hash = Sha256::new();
    hash.update(format!("{build}\n{settings:?}\n"));
    // Arguments may stand behind a comma.
    let path = scenario.trace.split(',').next().unwrap_or_default();
    for trace in [Path::new(&scenario.trace), Path::new(path)] {
        if trace.is_file() {
            hash.update(std::fs::read(trace)?);
            break;
        }
    }
    Ok(hex(&hash.finalize(), 8))
}

/// The first bytes of a hash, for people.
pub(crate) fn hex(hash: &[u8], bytes: usize) -> String {
    let mut out = String::new();
    for byte in hash.iter().take(bytes) {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::sim::report::fake::FakeRunner;

    #[test]
    fn what_is_known_is_not_played_again() {
        let directory = tempfile::tempdir().unwrap();
        let scenario = Scenario::default();
        let job = |seed| Job { policy: "price".to_owned(), variant: String::new(), load: 2.0, seed };
        let play = |build: &str, scenario: &Scenario, seeds: std::ops::Range<u64>| {
            let cache = Cache::open(directory.path(), "coding", scenario, build).unwrap();
            let runner = FakeRunner::default();
            let cached = Cached { runner: &runner, cache: &cache };
            let runs: Vec<RunResult> =
                seeds.map(|seed| cached.run(scenario, &job(seed), &AtomicU64::new(0)).unwrap()).collect();
            (runner.played.load(Ordering::Relaxed), runs)
        };
        let (played, first) = play("1", &scenario, 0..3);
        let (again, second) = play("1", &Scenario { seeds: 20, loads: vec![9.0], ..scenario.clone() }, 0..5);
        assert_eq!((played, again), (3, 2));
        assert!(
            first
                .iter()
                .zip(&second)
                .all(|(a, b)| (a.seed, a.requests, a.classes.len()) == (b.seed, b.requests, b.classes.len()))
        );
        assert_eq!(play("2", &scenario, 0..3).0, 3, "another build");
        assert_eq!(play("1", &Scenario { beacon_loss: 0.5, ..scenario }, 0..3).0, 3, "another setting");
    }

    #[test]
    fn a_line_that_was_cut_off_is_played_again() {
        let directory = tempfile::tempdir().unwrap();
        let scenario = Scenario::default();
        let path = directory.path().join(format!("coding-{}.jsonl", key(&scenario, "1").unwrap()));
        std::fs::write(&path, "{\"policy\":\"pri").unwrap();
        let open = || Cache::open(directory.path(), "coding", &scenario, "1").unwrap();
        let cache = open();
        assert!(cache.is_empty());
        let job = Job { policy: "price".to_owned(), variant: String::new(), load: 2.0, seed: 1 };
        Cached { runner: &FakeRunner::default(), cache: &cache }.run(&scenario, &job, &AtomicU64::new(0)).unwrap();
        assert_eq!(open().len(), 1);
    }
}
