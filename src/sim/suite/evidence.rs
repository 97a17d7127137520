//! Runs a suite and writes its page: Markdown, plots, one HTML file, and every result as compressed JSON lines.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

use super::cache::{Cache, Cached};
use super::{Entry, Suite, page};
use crate::sim::batch::{self, BatchError, Job, Observer, Runner};
use crate::sim::report::grid::fleet_shown;
use crate::sim::result::RunResult;
use crate::sim::scenario::{Scenario, Split};

/// A scenario and its results.
#[derive(Debug)]
pub struct Evidence {
    /// The scenario, with the seeds that were run.
    pub entry: Entry,
    /// Its results, in the order of its jobs.
    pub results: Vec<RunResult>,
}

/// How a suite is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Runs at once.
    pub threads: usize,
    /// Only as many seeds as the suite says for quick looks.
    pub is_quick: bool,
    /// Only these scenarios; all when empty.
    pub only: Vec<String>,
    /// Where results are kept between runs.
    pub cache: PathBuf,
    /// What stands for the code that makes them.
    pub build: String,
}

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// A scenario that was asked for is not in the suite.
    #[error("no scenario `{name}`; the suite has {known}")]
    NoScenario {
        /// Its name.
        name: String,
        /// All names.
        known: String,
    },
    /// A scenario cannot be run.
    #[error("{name}: {message}")]
    Unfit {
        /// Its name.
        name: String,
        /// Why.
        message: String,
    },
    /// A run failed.
    #[error("{name}: {source}")]
    Batch {
        /// The scenario's name.
        name: String,
        /// Which, and why.
        source: BatchError,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Hears how far a suite is: the scenario's name, runs ended in all, runs in all, requests simulated in all.
pub type Progress<'a> = &'a mut dyn FnMut(&str, usize, usize, u64);

/// Runs all scenarios of a suite, except what is known already.
///
/// # Errors
/// When a scenario cannot be run: before any is, where that can be known.
pub fn collect(
    suite: &Suite,
    options: &Options,
    runner: &dyn Runner,
    progress: Progress<'_>,
) -> Result<Vec<Evidence>, EvidenceError> {
    let mut chosen: Vec<(Entry, Vec<Job>)> = Vec::new();
    for entry in chosen_of(suite, options)? {
        check(&entry, runner)?;
        let jobs = jobs_of(&entry);
        chosen.push((entry, jobs));
    }
    let total = chosen.iter().map(|(_, jobs)| jobs.len()).sum();
    let (mut ended, mut simulated) = (0, 0);
    let mut evidence = Vec::new();
    for (entry, jobs) in chosen {
        let cache = Cache::open(&options.cache, &entry.name, &entry.scenario, &options.build)
            .map_err(|source| EvidenceError::File { path: options.cache.clone(), source })?;
        let runner = Cached { runner, cache: &cache };
        let mut tell = |now, of_entry| progress(&entry.name, ended + now, total, simulated + of_entry);
        let mut gather = Gather { results: Vec::new(), simulated: 0, tell: &mut tell };
        batch::run_all(&entry.scenario, &jobs, options.threads, &runner, &mut gather)
            .map_err(|source| EvidenceError::Batch { name: entry.name.clone(), source })?;
        let Gather { results, simulated: of_entry, .. } = gather;
        ended += jobs.len();
        simulated += of_entry;
        evidence.push(Evidence { entry, results });
    }
    Ok(evidence)
}

/// Keeps results and passes on how far it is.
struct Gather<'a> {
    results: Vec<RunResult>,
    simulated: u64,
    tell: &'a mut dyn FnMut(usize, u64),
}

impl Observer for Gather<'_> {
    fn looked(&mut self, ended: usize, simulated: u64) {
        self.simulated = simulated;
        (self.tell)(ended, simulated);
    }

    fn ended(&mut self, _job: &Job, run: RunResult) -> std::io::Result<()> {
        self.results.push(run);
        Ok(())
    }
}

fn chosen_of(suite: &Suite, options: &Options) -> Result<Vec<Entry>, EvidenceError> {
    if let Some(name) = options.only.iter().find(|name| !suite.entries.iter().any(|entry| entry.name == **name)) {
        let known = suite.entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(EvidenceError::NoScenario { name: name.clone(), known });
    }
    let mut entries = suite.entries.clone();
    entries.retain(|entry| options.only.is_empty() || options.only.contains(&entry.name));
    if options.is_quick {
        for entry in &mut entries {
            entry.scenario.seeds = entry.scenario.seeds.min(suite.seeds_quick);
        }
    }
    Ok(entries)
}

fn check(entry: &Entry, runner: &dyn Runner) -> Result<(), EvidenceError> {
    let unfit = |message| EvidenceError::Unfit { name: entry.name.clone(), message };
    if let Some(fault) = entry.scenario.faults().into_iter().next() {
        return Err(unfit(fault));
    }
    for (policy, variant) in lines(entry) {
        runner.check(&entry.scenario, policy, variant).map_err(unfit)?;
    }
    Ok(())
}

/// Policies as they are and with something changed.
fn lines(entry: &Entry) -> impl Iterator<Item = (&str, &str)> {
    let plain = entry.scenario.policies.iter().map(|policy| (policy.as_str(), ""));
    let changed = entry
        .ablations
        .iter()
        .flat_map(|ablation| ablation.policies.iter().map(move |policy| (policy.as_str(), ablation.variant.as_str())));
    plain.chain(changed)
}

/// The scenario's runs, then those of each ablation.
fn jobs_of(entry: &Entry) -> Vec<Job> {
    let mut jobs = batch::jobs(&entry.scenario);
    for ablation in &entry.ablations {
        let lines: Vec<(&str, &str)> =
            ablation.policies.iter().map(|policy| (policy.as_str(), ablation.variant.as_str())).collect();
        jobs.extend(batch::jobs_of(&entry.scenario, &ablation.loads, &lines));
    }
    jobs
}

/// Writes the page `name`: `out/name.md`, `out/name.html`, `out/name/*.svg` and `out/record/name.jsonl.gz`. Plots of an
/// earlier page that this one has not are removed.
///
/// # Errors
/// When a file cannot be written.
pub fn write(suite: &Suite, evidence: &[Evidence], out: &Path, name: &str) -> Result<Vec<PathBuf>, EvidenceError> {
    let mut written = Vec::new();
    let mut put = |path: PathBuf, bytes: &[u8]| {
        std::fs::write(&path, bytes).map_err(|source| EvidenceError::File { path: path.clone(), source })?;
        written.push(path);
        Ok(())
    };
    let directory = |path: PathBuf| match std::fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(EvidenceError::File { path, source }),
    };
    let plots = directory(out.join(name))?;
    let record = directory(out.join("record"))?;
    let drawn = page::plots(evidence);
    for old in std::fs::read_dir(&plots).into_iter().flatten().map_while(Result::ok) {
        let file = old.file_name().to_string_lossy().into_owned();
        if file.ends_with(".svg") && !drawn.iter().any(|(name, _)| *name == file) {
            std::fs::remove_file(old.path()).map_err(|source| EvidenceError::File { path: old.path(), source })?;
        }
    }
    put(out.join(format!("{name}.md")), page::markdown(suite, evidence, name).as_bytes())?;
    put(out.join(format!("{name}.html")), page::html(suite, evidence).as_bytes())?;
    for (file, svg) in &drawn {
        put(plots.join(file), svg.as_bytes())?;
    }
    let path = record.join(format!("{name}.jsonl.gz"));
    let lines = json_lines(evidence).map_err(|source| EvidenceError::File { path: path.clone(), source })?;
    put(path, &lines)?;
    Ok(written)
}

/// Every result, its scenario's name first, compressed; the same bytes for the same results.
fn json_lines(evidence: &[Evidence]) -> std::io::Result<Vec<u8>> {
    let mut out = GzEncoder::new(Vec::new(), Compression::best());
    for Evidence { entry, results } in evidence {
        for run in results {
            let run = RunResult { series: Vec::new(), ..run.clone() };
            let mut line = serde_json::Map::new();
            line.insert("scenario".to_owned(), Value::from(entry.name.as_str()));
            if let Value::Object(fields) = rounded(serde_json::to_value(run)?) {
                line.extend(fields);
            }
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")?;
        }
    }
    out.finish()
}

/// Fractions to six digits that count: more say nothing, and do not compress.
fn rounded(value: Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            let value = number.as_f64().and_then(|value| format!("{value:.5e}").parse::<f64>().ok());
            value.map_or(Value::Null, Value::from)
        }
        Value::Array(items) => Value::Array(items.into_iter().map(rounded).collect()),
        Value::Object(fields) => Value::Object(fields.into_iter().map(|(key, value)| (key, rounded(value))).collect()),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => other,
    }
}

/// The scenario's settings, in a line.
#[must_use]
pub fn settings(scenario: &Scenario) -> String {
    let Scenario { trace, replicas, seeds, duration_s, warm_up_s, .. } = scenario;
    let fleet = fleet_shown(*replicas, &scenario.model_shown());
    let mut out = format!(
        "`{trace}`, {fleet}, {seeds} seeds, {duration_s} s of which {warm_up_s} s warm-up; beacons every \
         {} s, {} s late, {} % lost; network {} ms",
        scenario.beacon_period_s,
        scenario.beacon_delay_s,
        scenario.beacon_loss * 100.0,
        scenario.network_delay_s * 1e3
    );
    if scenario.split != Split::Whole {
        out.push_str(&format!("; the {} half of the trace", scenario.split.as_str()));
    }
    if scenario.host_tier_gb > 0.0 {
        out.push_str(&format!("; host tier {} GB", scenario.host_tier_gb));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::sim::report::fake::FakeRunner;

    const SUITE: &str = "
title: Scheduling
about: How it decides.
seeds_quick: 3
scenarios:
  - name: coding-8b
    question: Where do sessions go?
    scenario: { policies: &all [price, least_request, round_robin, oracle], loads: [2, 4], seeds: 5 }
    ablations:
      - { variant: index_off, loads: [4] }
    claims: &claims
      - { claim: Faster than those who do not look, measure: ttft_p50_s, against: [least_request, round_robin], at_most: 0.65 }
      - { claim: As good as the oracle, measure: ttft_p50_s, against: oracle, at_most: 1.0 }
      - { claim: Better than one that was not run, measure: hit_rate, against: sticky, at_least: 1 }
  - { name: coding-32b, scenario: { policies: *all, model: qwen3-32b, seeds: 5 }, claims: *claims }
";

    fn options(cache: &Path) -> Options {
        Options { threads: 2, is_quick: true, only: Vec::new(), cache: cache.to_owned(), build: "1".to_owned() }
    }

    #[test]
    fn a_suite_is_run_once_and_its_page_written() {
        let directory = tempfile::tempdir().unwrap();
        let suite = Suite::read(SUITE).unwrap();
        let options = options(&directory.path().join("kept"));
        let runner = FakeRunner::default();
        let mut last = (0, 0);
        let mut tell = |_: &str, ended, total, _| last = (ended, total);
        let evidence = collect(&suite, &options, &runner, &mut tell).unwrap();
        let runs = 4 * 2 * 3 + 3 + 4 * 3;
        assert_eq!((last, runner.played.load(Ordering::Relaxed)), ((runs, runs), runs));
        collect(&suite, &options, &runner, &mut |_, _, _, _| {}).unwrap();
        assert_eq!(runner.played.load(Ordering::Relaxed), runs, "all was known");

        let out = directory.path();
        std::fs::create_dir(out.join("scheduling")).unwrap();
        std::fs::write(out.join("scheduling/old.svg"), "").unwrap();
        let written = write(&suite, &evidence, out, "scheduling").unwrap();
        assert!(written.iter().all(|path| path.is_file()) && !out.join("scheduling/old.svg").exists());
        let markdown = std::fs::read_to_string(out.join("scheduling.md")).unwrap();
        insta::assert_snapshot!(markdown);
        // The suite itself lies beside the page already.
        std::fs::write(out.join("scheduling.yaml"), SUITE).unwrap();
        for link in markdown.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            assert!(out.join(link).is_file(), "{link}");
        }
        let mut lines = String::new();
        let record = std::fs::File::open(out.join("record/scheduling.jsonl.gz")).unwrap();
        flate2::read::GzDecoder::new(record).read_to_string(&mut lines).unwrap();
        assert_eq!(lines.lines().count(), runs);
        assert!(lines.starts_with("{\"scenario\":\"coding-8b\",\"workload\":\"fake\",\"policy\":\"price\""), "{lines}");
    }

    #[test]
    fn what_cannot_be_run_is_told_before_anything_is() {
        let directory = tempfile::tempdir().unwrap();
        let suite = Suite::read("scenarios:\n- name: a\n- {name: b, scenario: {policies: no_such}}").unwrap();
        let runner = FakeRunner::default();
        let fails =
            |options: &Options| collect(&suite, options, &runner, &mut |_, _, _, _| {}).unwrap_err().to_string();
        let all = options(directory.path());
        assert_eq!(fails(&all), "b: no policy `no_such`");
        assert_eq!(fails(&Options { only: vec!["c".to_owned()], ..all }), "no scenario `c`; the suite has a, b");
        assert_eq!(runner.played.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn fractions_are_rounded_and_counts_are_not() {
        let value = serde_json::json!({"a": 0.123_456_789, "b": 123_456_789, "c": [1_234.567_89]});
        assert_eq!(rounded(value).to_string(), r#"{"a":0.123457,"b":123456789,"c":[1234.57]}"#);
    }
}
