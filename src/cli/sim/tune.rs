//! `emberlane sim --tune`: tries each policy's own parameters on the split that is kept for that.

use std::io::Write;

use super::progress::Progress;
use super::{SimArgs, SimError, check_policy, scenario, threads};
use crate::sim::batch::{self, Job, Observer, Runner};
use crate::sim::report::grid::base_name;
use crate::sim::result::RunResult;
use crate::sim::scenario::{Scenario, Split};
use crate::sim::tune::{candidates, pick, scores, table};

/// Plays all candidates; prints their scores, and the picks as they stand in a suite.
pub(super) fn run(args: &SimArgs, runner: &dyn Runner, out: &mut dyn Write) -> Result<(), SimError> {
    let scenario = Scenario { split: Split::Tuning, ..scenario(args)? };
    let mut faults = scenario.faults();
    faults.extend(scenario.policies.iter().filter_map(|policy| check_policy(policy).err()));
    if !faults.is_empty() {
        return Err(SimError::Settings(faults));
    }
    let engines = scenario.engines().map_err(|fault| SimError::Settings(vec![fault]))?;
    let Some(engine) = engines.first() else { return Err(SimError::Settings(vec!["replicas: none".to_owned()])) };
    let mut names: Vec<&str> = scenario.policies.iter().map(|policy| base_name(policy)).collect();
    names.dedup();
    let grids: Vec<Vec<String>> = names.iter().map(|name| candidates(name, engine)).collect();
    let lines: Vec<(&str, &str)> = grids.iter().flatten().map(|spec| (spec.as_str(), "")).collect();
    for (spec, variant) in &lines {
        runner.check(&scenario, spec, variant).map_err(|fault| SimError::Settings(vec![fault]))?;
    }
    let jobs = batch::jobs_of(&scenario, &scenario.loads, &lines);
    let mut gather = Gather { progress: Progress::start(jobs.len(), args.quiet), results: Vec::new() };
    batch::run_all(&scenario, &jobs, threads(args), runner, &mut gather)?;
    let Gather { progress, results } = gather;
    progress.finish();
    let scored: Vec<_> = grids.iter().map(|grid| scores(grid, &results)).filter(|scores| !scores.is_empty()).collect();
    let mut text = table(&scored).to_text();
    let differ = |scores: &Vec<_>| pick(scores).filter(|picked| scores.first() != Some(*picked)).cloned();
    let picks: Vec<String> = scored.iter().filter_map(differ).map(|picked| format!("\"{}\"", picked.spec)).collect();
    text.push_str(&format!("\n* the best by more than 1 %, else what is documented\ntuned: [{}]\n", picks.join(", ")));
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(SimError::Print)
}

struct Gather {
    progress: Progress,
    results: Vec<RunResult>,
}

impl Observer for Gather {
    fn looked(&mut self, ended: usize, simulated: u64) {
        self.progress.look(ended, simulated, "tuning");
    }

    fn ended(&mut self, _job: &Job, run: RunResult) -> std::io::Result<()> {
        self.results.push(run);
        Ok(())
    }
}
