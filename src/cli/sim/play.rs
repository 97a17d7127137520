//! What plays a run for the command line.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::config::PolicyConfig;
use crate::sim::batch::{Job, Runner};
use crate::sim::result::RunResult;
use crate::sim::run::{Ablation, Beacons, BoundName, Chooser, Plan, Slowdown, run};
use crate::sim::scenario::{Scenario, Split};
use crate::sim::workload::{Half, Pace, Source, Workload};

/// Beacons of the variant in which they are late.
const LATE_BEACONS_S: f64 = 1.0;
/// How many times slower a replica becomes in the variant in which one does.
const SLOWED_TIMES: f64 = 2.0;
/// A trace's warm-up is no more than this share of its time.
const WARM_UP_SHARE_MAX: f64 = 0.2;

/// Plays runs with the production policies and the simulated engines; each trace is read once.
#[derive(Debug, Default)]
pub(crate) struct Player {
    sources: Mutex<HashMap<String, Arc<Source>>>,
}

impl Player {
    fn source(&self, spec: &str) -> Result<Arc<Source>, String> {
        let mut sources = self.sources.lock();
        if let Some(source) = sources.get(spec) {
            return Ok(Arc::clone(source));
        }
        let source = Arc::new(Source::open(spec).map_err(|fault| fault.to_string())?);
        sources.insert(spec.to_owned(), Arc::clone(&source));
        Ok(source)
    }
}

impl Runner for Player {
    fn check(&self, scenario: &Scenario, policy: &str, variant: &str) -> Result<(), String> {
        chooser(policy)?;
        scenario.engines()?;
        changed(scenario, variant)?;
        self.source(&scenario.trace).map(|_| ())
    }

    fn run(&self, scenario: &Scenario, job: &Job, simulated: &AtomicU64) -> Result<RunResult, String> {
        let source = self.source(&scenario.trace)?;
        let workload = match scenario.split {
            Split::Whole => source.workload(job.seed),
            Split::Test => source.half(Half::Test, job.seed),
            Split::Tuning => source.half(Half::Tuning, job.seed),
        };
        let Changed { beacons, ablation, is_slowed } = changed(scenario, &job.variant)?;
        let (duration_s, warm_up_s) = times(scenario, &workload, job.load);
        let plan = Plan {
            workload: &workload,
            engines: scenario.engines()?,
            chooser: chooser(&job.policy)?,
            ablation,
            load: job.load,
            seed: job.seed,
            duration_s: duration_s - warm_up_s,
            warm_up_s,
            network_delay_s: scenario.network_delay_s,
            beacons,
            slowdown: is_slowed.then_some(Slowdown { replica: 0, at_s: warm_up_s, times: SLOWED_TIMES }),
            history_period_s: scenario.history_period_s,
        };
        let result = run(&plan);
        simulated.fetch_add(result.requests, Ordering::Relaxed);
        let model = scenario.model_shown();
        Ok(RunResult { policy: job.policy.clone(), variant: job.variant.clone(), model, ..result })
    }
}

/// Seconds of a run, and of these the warm-up: a trace ends when it ends.
fn times(scenario: &Scenario, workload: &Workload, load: f64) -> (f64, f64) {
    let Some(last) = workload.scripts.last().filter(|_| workload.pace == Pace::Timed) else {
        return (scenario.duration_s, scenario.warm_up_s);
    };
    let duration_s = scenario.duration_s.min((last.at_s / load).max(1.0));
    (duration_s, scenario.warm_up_s.min(duration_s * WARM_UP_SHARE_MAX))
}

fn chooser(policy: &str) -> Result<Chooser, String> {
    if let Some(bound) = BoundName::ALL.into_iter().find(|bound| bound.as_str() == policy) {
        return Ok(Chooser::Bound(bound));
    }
    PolicyConfig::from_spec(policy)
        .map(Chooser::Policy)
        .map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

/// What a variant changes.
#[derive(Clone, Copy, Debug)]
struct Changed {
    beacons: Beacons,
    ablation: Ablation,
    /// One replica becomes slower when the warm-up is over.
    is_slowed: bool,
}

fn changed(scenario: &Scenario, variant: &str) -> Result<Changed, String> {
    let beacons =
        Beacons { period_s: scenario.beacon_period_s, delay_s: scenario.beacon_delay_s, loss: scenario.beacon_loss };
    let plain = Changed { beacons, ablation: Ablation::None, is_slowed: false };
    match variant {
        "" => Ok(plain),
        "index_off" => Ok(Changed { ablation: Ablation::IndexOff, ..plain }),
        "learning_off" => Ok(Changed { ablation: Ablation::LearningOff, ..plain }),
        "precise" => Ok(Changed { ablation: Ablation::Precise, ..plain }),
        "beacons_1s" => Ok(Changed { beacons: Beacons { delay_s: LATE_BEACONS_S, ..beacons }, ..plain }),
        "beacons_lost" => Ok(Changed { beacons: Beacons { loss: 1.0, ..beacons }, ..plain }),
        "slowed" => Ok(Changed { is_slowed: true, ..plain }),
        _ => Err(format!(
            "no variant is named `{variant}`; there are: index_off, learning_off, precise, beacons_1s, beacons_lost, \
             slowed"
        )),
    }
}
