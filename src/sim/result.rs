//! What one run measured: one JSON object a run.

use serde::{Deserialize, Serialize};

/// One run of one policy. Times are seconds; shares are between 0 and 1. Requests of the warm-up are not counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// The workload's name.
    pub workload: String,
    /// The policy, as in the configuration, or the bound.
    pub policy: String,
    /// What was changed of it, by name (an ablation, a parameter); empty for nothing.
    pub variant: String,
    /// The model the replicas serve.
    pub model: String,
    /// Replicas.
    pub replicas: u32,
    /// Sessions a replica (closed loop) or multiple of the trace's rate.
    pub load: f64,
    /// What the run was made from.
    pub seed: u64,
    /// Virtual seconds that were measured, after the warm-up.
    pub measured_s: f64,
    /// Requests that arrived while it was measured.
    pub requests: u64,
    /// Of these, the ones that were answered whole.
    pub completed: u64,
    /// Of these, the ones that the gateway or an engine refused.
    pub rejected: u64,
    /// Prompt tokens found in engines' caches, of all prompt tokens.
    pub hit_rate: f64,
    /// Of the engines' busy time, what went to tokens that some engine had computed before.
    pub regenerated_share: f64,
    /// Time to first token, from when the request was admitted, at quantiles.
    pub ttft_p50_s: f64,
    /// See [`Self::ttft_p50_s`].
    pub ttft_p90_s: f64,
    /// See [`Self::ttft_p50_s`].
    pub ttft_p95_s: f64,
    /// See [`Self::ttft_p50_s`].
    pub ttft_p99_s: f64,
    /// Mean time to first token.
    pub ttft_mean_s: f64,
    /// Time to first token as the client sees it, from when the request arrived, at quantiles.
    pub ttft_from_arrival_p50_s: f64,
    /// See [`Self::ttft_from_arrival_p50_s`].
    pub ttft_from_arrival_p90_s: f64,
    /// See [`Self::ttft_from_arrival_p50_s`].
    pub ttft_from_arrival_p95_s: f64,
    /// See [`Self::ttft_from_arrival_p50_s`].
    pub ttft_from_arrival_p99_s: f64,
    /// Its mean.
    pub ttft_from_arrival_mean_s: f64,
    /// Time per output token after the first, of each request, at quantiles.
    pub tpot_p50_s: f64,
    /// See [`Self::tpot_p50_s`].
    pub tpot_p90_s: f64,
    /// From arrival to the last token, the wait for admission included.
    pub e2e_p50_s: f64,
    /// See [`Self::e2e_p50_s`].
    pub e2e_p90_s: f64,
    /// Output tokens a second, of the fleet.
    pub output_tokens_per_s: f64,
    /// Answered requests a second, of the fleet.
    pub requests_per_s: f64,
    /// Mean wait for admission at the gateway.
    pub admission_wait_mean_s: f64,
    /// Share of the engines' time in which they computed.
    pub busy_share: f64,
    /// The time in which the busiest replica computed, as a multiple of the mean.
    pub imbalance: f64,
    /// Requests that engines had to start over for want of memory.
    pub preemptions: u64,
    /// Mean relative error of the predicted TTFT (absolute values), where the policy predicts it.
    pub ttft_mape: Option<f64>,
    /// Share of requests whose TTFT was within the predicted p90.
    pub ttft_p90_covered: Option<f64>,
    /// Of requests placed at a replica that has become slower, from the 201st on: as `ttft_mape`.
    #[serde(default)]
    pub slowed_mape: Option<f64>,
    /// After how many requests placed there the mean error of the next fifty is at most a tenth; all of them if never.
    #[serde(default)]
    pub slowed_recovered_after: Option<u64>,
    /// Replicas whose cache holds a hot prefix, before it is hot: the mean over the second half of that time, looked at
    /// once a second, as of the two that follow. The device's memory counts, from nine tenths of the prefix on. Only for
    /// workloads that have hot prefixes.
    #[serde(default)]
    pub holders_before: Option<f64>,
    /// While it is hot. Copies are worth their room only now.
    #[serde(default)]
    pub holders_while_hot: Option<f64>,
    /// After it has cooled.
    #[serde(default)]
    pub holders_after: Option<f64>,
    /// Flapping: times a minute that a replica came to hold a hot prefix or lost it, in the second half of the time in
    /// which it is hot. Once there are enough copies, none needs to move.
    #[serde(default)]
    pub holder_changes_per_min: Option<f64>,
    /// Herding: of the requests that come while reports are as old as they get (a period and a delay), the share that one
    /// replica got beyond what prices warrant and beyond what chance does. Warranted are the replicas that hold most of
    /// the prompt, each alike; 0 is a spread as even as by lot among these, 1 is all at one that none was warranted at.
    /// Only for workloads that have hot prefixes.
    #[serde(default)]
    pub herding: Option<f64>,
    /// The same figures for each class of calls, when the workload has more than one.
    pub classes: Vec<ClassResult>,
    /// How some figures went over the run, when the run kept them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<Series>,
}

/// How a figure went over a run: of each replica, or as the labels say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// What it is, in words.
    pub name: String,
    /// Its unit, as it stands after a number; empty for plain numbers.
    pub unit: String,
    /// What each line is of; empty: of the replicas, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// When it was looked at, seconds, ascending.
    pub at_s: Vec<f32>,
    /// For each line a value for each of these times.
    pub values: Vec<Vec<f32>>,
}

/// Figures of one class of calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassResult {
    /// Its name.
    pub class: String,
    /// Requests answered.
    pub completed: u64,
    /// Time to first token at quantiles.
    pub ttft_p50_s: f64,
    /// See [`Self::ttft_p50_s`].
    pub ttft_p90_s: f64,
    /// See [`Self::ttft_p50_s`].
    pub ttft_p95_s: f64,
    /// See [`Self::ttft_p50_s`].
    pub ttft_p99_s: f64,
    /// Time to first token from arrival, at quantiles.
    pub ttft_from_arrival_p50_s: f64,
    /// See [`Self::ttft_from_arrival_p50_s`].
    pub ttft_from_arrival_p90_s: f64,
    /// See [`Self::ttft_from_arrival_p50_s`].
    pub ttft_from_arrival_p95_s: f64,
    /// See [`Self::ttft_from_arrival_p50_s`].
    pub ttft_from_arrival_p99_s: f64,
}
