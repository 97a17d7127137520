//! Many runs on a few threads, their results in the order in which they were asked for: what is printed does not
//! depend on how many threads there are or which was faster.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use super::result::RunResult;
use super::scenario::Scenario;

/// Most runs of one batch.
pub const JOBS_MAX: usize = 200_000;
/// Between two looks at how far it is.
const LOOK_PERIOD: Duration = Duration::from_millis(200);

/// One run to make.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The policy, or the bound, with its parameters.
    pub policy: String,
    /// What is changed of it or around it, by name; empty for nothing.
    pub variant: String,
    /// Sessions a replica (closed loop) or multiple of the trace's rate.
    pub load: f64,
    /// What the run is made from.
    pub seed: u64,
}

impl std::fmt::Display for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { policy, variant, load, seed } = self;
        let separator = if variant.is_empty() { "" } else { " · " };
        write!(f, "{policy}{separator}{variant} at load {load}, seed {seed}")
    }
}

/// All runs of a scenario: by load, then seed, then policy, so that runs on the same arrivals stand together.
#[must_use]
pub fn jobs(scenario: &Scenario) -> Vec<Job> {
    let plain: Vec<(&str, &str)> = scenario.policies.iter().map(|policy| (policy.as_str(), "")).collect();
    jobs_of(scenario, &scenario.loads, &plain)
}

/// The same for the given loads, and policies with their variants.
#[must_use]
pub fn jobs_of(scenario: &Scenario, loads: &[f64], lines: &[(&str, &str)]) -> Vec<Job> {
    let mut jobs = Vec::new();
    for load in loads {
        for seed in scenario.first_seed..scenario.first_seed.saturating_add(scenario.seeds) {
            for (policy, variant) in lines {
                if jobs.len() < JOBS_MAX {
                    let (policy, variant) = ((*policy).to_owned(), (*variant).to_owned());
                    jobs.push(Job { policy, variant, load: *load, seed });
                }
            }
        }
    }
    jobs
}

/// Plays runs. It may be asked from several threads at once.
pub trait Runner: Sync {
    /// Whether it can play this at all: asked for each policy before the first run.
    ///
    /// # Errors
    /// What is wrong, for people.
    fn check(&self, scenario: &Scenario, policy: &str, variant: &str) -> Result<(), String>;

    /// Plays one run, and adds the requests it simulates to `simulated`, at its end or as it goes.
    ///
    /// # Errors
    /// Why there is no result, for people.
    fn run(&self, scenario: &Scenario, job: &Job, simulated: &AtomicU64) -> Result<RunResult, String>;
}

/// Hears how a batch goes.
pub trait Observer {
    /// A few times a second: runs that ended, and requests simulated.
    fn looked(&mut self, ended: usize, simulated: u64);

    /// The result of each job, in the order of the jobs.
    ///
    /// # Errors
    /// When it cannot go on; the batch stops.
    fn ended(&mut self, job: &Job, run: RunResult) -> std::io::Result<()>;
}

/// Why a batch stopped before its end.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// A run has no result.
    #[error("{job}: {message}")]
    Run {
        /// Which.
        job: Box<Job>,
        /// Why.
        message: String,
    },
    /// The observer cannot go on.
    #[error("cannot write results: {0}")]
    Observer(#[from] std::io::Error),
}

/// Plays `jobs` on `threads` threads.
///
/// # Errors
/// With the first of the jobs (in their order) that has no result, or when `observer` cannot go on.
pub fn run_all(
    scenario: &Scenario,
    jobs: &[Job],
    threads: usize,
    runner: &dyn Runner,
    observer: &mut dyn Observer,
) -> Result<(), BatchError> {
    let (next, simulated, is_over) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let threads = threads.clamp(1, jobs.len().max(1));
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(threads);
        for _ in 0..threads {
            let sender = sender.clone();
            let work = Work { scenario, jobs, runner, next: &next, simulated: &simulated, is_over: &is_over };
            scope.spawn(move || work.go_on(&sender));
        }
        drop(sender);
        let mut pending = BTreeMap::new();
        let (mut told, mut ended) = (0, 0);
        let mut outcome = Ok(());
        loop {
            match receiver.recv_timeout(LOOK_PERIOD) {
                Ok((place, result)) => {
                    ended += 1;
                    pending.insert(place, result);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while let Some(result) = pending.remove(&told).filter(|_| outcome.is_ok()) {
                outcome = tell(&jobs[told], result, observer);
                told += 1;
            }
            if outcome.is_err() {
                is_over.store(true, Ordering::Relaxed);
            }
            observer.looked(ended, simulated.load(Ordering::Relaxed));
        }
        outcome
    })
}

fn tell(job: &Job, result: Result<RunResult, String>, observer: &mut dyn Observer) -> Result<(), BatchError> {
    match result {
        Ok(run) => Ok(observer.ended(job, run)?),
        Err(message) => Err(BatchError::Run { job: Box::new(job.clone()), message }),
    }
}

/// What a thread works on.
struct Work<'a> {
    scenario: &'a Scenario,
    jobs: &'a [Job],
    runner: &'a dyn Runner,
    next: &'a AtomicUsize,
    simulated: &'a AtomicU64,
    is_over: &'a AtomicBool,
}

impl Work<'_> {
    /// Takes one job after the other until there are none.
    fn go_on(&self, sender: &SyncSender<(usize, Result<RunResult, String>)>) {
        while !self.is_over.load(Ordering::Relaxed) {
            let place = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = self.jobs.get(place) else { return };
            let named = |run| RunResult {
                policy: job.policy.clone(),
                variant: job.variant.clone(),
                load: job.load,
                seed: job.seed,
                ..run
            };
            let result = self.runner.run(self.scenario, job, self.simulated).map(named);
            if sender.send((place, result)).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::report::fake::FakeRunner;

    #[derive(Debug, Default)]
    struct Log {
        told: Vec<String>,
        simulated: u64,
        stop_after: Option<usize>,
    }

    impl Observer for Log {
        fn looked(&mut self, _ended: usize, simulated: u64) {
            self.simulated = simulated;
        }

        fn ended(&mut self, job: &Job, run: RunResult) -> std::io::Result<()> {
            assert_eq!((job.seed, &job.policy), (run.seed, &run.policy));
            self.told.push(job.to_string());
            match self.stop_after {
                Some(most) if self.told.len() >= most => Err(std::io::Error::other("closed")),
                Some(_) | None => Ok(()),
            }
        }
    }

    fn scenario() -> Scenario {
        Scenario { loads: vec![2.0, 4.0], seeds: 5, ..Scenario::default() }
    }

    #[test]
    fn order_does_not_depend_on_threads() {
        let scenario = scenario();
        let jobs = jobs(&scenario);
        assert_eq!(jobs.len(), 30);
        assert_eq!(jobs[4].to_string(), "least_request at load 2, seed 2");
        let log = |threads| {
            let mut log = Log::default();
            run_all(&scenario, &jobs, threads, &FakeRunner::default(), &mut log).unwrap();
            log
        };
        let (one, four) = (log(1), log(4));
        assert_eq!(one.told, jobs.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!((one.told, one.simulated), (four.told, four.simulated));
        assert!(four.simulated > 0);
    }

    #[test]
    fn the_first_failure_ends_it_and_is_named() {
        let scenario = scenario();
        let runner = FakeRunner { fails: Some(("least_request".to_owned(), 2)), ..FakeRunner::default() };
        let mut log = Log::default();
        let error = run_all(&scenario, &jobs(&scenario), 3, &runner, &mut log).unwrap_err();
        assert_eq!(error.to_string(), "least_request at load 2, seed 2: it was told to fail");
        assert_eq!(log.told.len(), 4);
    }

    #[test]
    fn a_reader_that_left_ends_it() {
        let scenario = scenario();
        let mut log = Log { stop_after: Some(2), ..Log::default() };
        let error = run_all(&scenario, &jobs(&scenario), 2, &FakeRunner::default(), &mut log).unwrap_err();
        assert!(matches!(error, BatchError::Observer(_)), "{error}");
    }
}
