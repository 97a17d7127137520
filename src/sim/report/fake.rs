//! Results that look like results, for tests of what is made from them.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::{AtomicU64, Ordering};

use super::grid::base_name;
use crate::sim::batch::{Job, Runner};
use crate::sim::result::{ClassResult, RunResult, Series};
use crate::sim::scenario::Scenario;

/// How much slower than the best a policy is.
fn slowness(policy: &str) -> f64 {
    match base_name(policy) {
        "oracle" | "infinite_cache" | "pooled_belady" => 0.9,
        "price" => 1.0,
        "least_request" => 3.0,
        "round_robin" => 5.0,
        _ => 1.5,
    }
}

/// One result: the same each time.
pub(crate) fn run(policy: &str, variant: &str, load: f64, seed: u64) -> RunResult {
    let mut rng = fastrand::Rng::with_seed(seed * 1000 + policy.bytes().map(u64::from).sum::<u64>());
    let arrivals = 1.0 + 0.2 * fastrand::Rng::with_seed(seed).f64();
    let slow = slowness(policy) * if variant.is_empty() { 1.0 } else { 1.3 };
    let ttft = 0.05 * slow * load * arrivals * (1.0 + 0.04 * rng.f64());
    let class = |name: &str, times: f64| ClassResult {
        class: name.to_owned(),
        completed: 500,
        ttft_p50_s: ttft * times,
        ttft_p90_s: ttft * times * 2.0,
        ttft_p95_s: ttft * times * 3.0,
        ttft_p99_s: ttft * times * 5.0,
        ttft_from_arrival_p50_s: ttft * times,
        ttft_from_arrival_p90_s: ttft * times * 2.0,
        ttft_from_arrival_p95_s: ttft * times * 3.0,
        ttft_from_arrival_p99_s: ttft * times * 5.0,
    };
    RunResult {
        workload: "fake".to_owned(),
        policy: policy.to_owned(),
        variant: variant.to_owned(),
        model: "llama-3.1-8b".to_owned(),
        replicas: 8,
        load,
        seed,
        measured_s: 1500.0,
        requests: 1000,
        completed: 990,
        rejected: 10,
        hit_rate: (0.95 / slow.sqrt()).min(0.99),
        regenerated_share: 0.02 * slow,
        ttft_p50_s: ttft,
        ttft_p90_s: ttft * 2.0,
        ttft_p95_s: ttft * 3.0,
        ttft_p99_s: ttft * 5.0,
        ttft_mean_s: ttft * 1.2,
        ttft_from_arrival_p50_s: ttft,
        ttft_from_arrival_p90_s: ttft * 2.0,
        ttft_from_arrival_p95_s: ttft * 3.0,
        ttft_from_arrival_p99_s: ttft * 5.0,
        ttft_from_arrival_mean_s: ttft * 1.2,
        tpot_p50_s: 0.008 + 0.001 * load,
        tpot_p90_s: 0.012 + 0.001 * load,
        e2e_p50_s: 4.0 + ttft,
        e2e_p90_s: 9.0 + ttft,
        output_tokens_per_s: 2000.0 * load / slow.sqrt(),
        requests_per_s: 6.0 * load / slow.sqrt(),
        admission_wait_mean_s: 0.0,
        busy_share: 0.6,
        imbalance: 1.2,
        preemptions: 0,
        ttft_mape: (base_name(policy) == "price").then_some(0.08),
        ttft_p90_covered: (base_name(policy) == "price").then_some(0.903),
        classes: vec![class("short", 0.5), class("long", 4.0)],
        ..RunResult::default()
    }
}

/// A result of each of these.
pub(crate) fn runs(policies: &[&str], loads: &[f64], seeds: u64) -> Vec<RunResult> {
    let mut runs = Vec::new();
    for load in loads {
        for seed in 1..=seeds {
            runs.extend(policies.iter().map(|policy| run(policy, "", *load, seed)));
        }
    }
    runs
}

/// Four replicas' figures over two minutes.
pub(crate) fn series() -> Series {
    let at_s: Vec<f32> = (0..1200_u16).map(|at| f32::from(at) / 10.0).collect();
    let values = (0..4_u8).map(|replica| at_s.iter().map(|at| (at / 10.0 + f32::from(replica)).sin()).collect());
    Series {
        name: "replicas that hold the prefix".to_owned(),
        unit: String::new(),
        labels: Vec::new(),
        values: values.collect(),
        at_s,
    }
}

/// Gives [`run`].
#[derive(Debug, Default)]
pub(crate) struct FakeRunner {
    /// Runs played.
    pub(crate) played: AtomicUsize,
    /// The policy and seed that has no result.
    pub(crate) fails: Option<(String, u64)>,
}

impl Runner for FakeRunner {
    fn check(&self, _scenario: &Scenario, policy: &str, _variant: &str) -> Result<(), String> {
        if policy == "no_such" { Err("no policy `no_such`".to_owned()) } else { Ok(()) }
    }

    fn run(&self, scenario: &Scenario, job: &Job, simulated: &AtomicU64) -> Result<RunResult, String> {
        self.played.fetch_add(1, Ordering::Relaxed);
        if self.fails.as_ref().is_some_and(|(policy, seed)| *policy == job.policy && *seed == job.seed) {
            return Err("it was told to fail".to_owned());
        }
        let run = run(&job.policy, &job.variant, job.load, job.seed);
        simulated.fetch_add(run.requests, Ordering::Relaxed);
        Ok(RunResult { model: scenario.model_shown(), replicas: scenario.replicas, ..run })
    }
}
