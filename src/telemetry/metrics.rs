//! Prometheus metrics. Labels are bounded: routes, known statuses, codes and reasons of our own enums, and replica ids
//! from configuration; nothing a client sends becomes a label.
//!
//! Counters on the request path are resolved once a shard and then cost one atomic add.

use super::load::LoadMetrics;
use super::record::Ending;
use crate::parse::Api;
use crate::pipeline::{Decision, PASSTHROUGH, Reason};
use crate::reject::Reject;
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};
use std::sync::OnceLock;

/// Statuses with a label of their own; others are labelled by class.
const STATUSES: [u16; 18] = [200, 201, 400, 401, 403, 404, 405, 408, 409, 413, 422, 429, 431, 499, 500, 502, 503, 504];
const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];
const STATUS_CELLS: usize = STATUSES.len() + CLASSES.len();

/// Seconds, for decisions: 1 µs to 10 ms.
const DECIDE_BUCKETS: [f64; 12] = [1e-6, 2e-6, 4e-6, 6e-6, 8e-6, 1e-5, 2e-5, 5e-5, 1e-4, 3e-4, 1e-3, 1e-2];
/// Seconds, for what clients wait.
const WAIT_BUCKETS: [f64; 16] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 600.0];
/// Seconds, between tokens.
const GAP_BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.2, 1.0, 10.0];

/// Share of the actual time that a prediction was off by.
const ERROR_BUCKETS: [f64; 11] = [0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 10.0];

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    rejects: IntCounterVec,
    decisions: IntCounterVec,
    upstream_failures: IntCounterVec,
    decide: Histogram,
    ttft: Histogram,
    duration: Histogram,
    inter_token: Histogram,
    prefix_wait: Histogram,
    admission_wait: Histogram,
    prediction_error: Histogram,
    prompt_tokens: IntCounter,
    cached_tokens: IntCounter,
    predicted_cached_tokens: IntCounter,
    cached_tokens_error: IntCounter,
    output_tokens: IntCounter,
    retries: IntCounter,
    retries_refused: IntCounter,
    ejections: IntCounter,
    refused_heads: IntCounter,
    /// The load plane's.
    pub load: LoadMetrics,
    /// Reloads that took effect.
    pub reloads: IntCounter,
    /// Reloads that were refused.
    pub reload_failures: IntCounter,
    /// Times that a source of replicas began to fail, or a registration was refused, by source.
    pub discovery_failures: IntCounterVec,
}

/// Registers `metric` and gives it back. Names are fixed at compile time, so neither step fails twice the same way.
pub(super) fn registered<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> M {
    let metric = metric.expect("names and labels are constants that the tests exercise");
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}

impl Metrics {
    /// All metrics, at zero.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "registers names: not a value")]
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| registered(&registry, IntCounter::new(name, help));
        let counters = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            registered(&registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
        };
        Self {
            requests: counters("emberlane_requests_total", "Requests ended, by route and status.", &["api", "status"]),
            rejects: counters("emberlane_rejects_total", "Requests the gateway refused or lost, by code.", &["code"]),
            decisions: counters("emberlane_decisions_total", "Placements, by reason.", &["reason"]),
            upstream_failures: counters(
                "emberlane_upstream_failures_total",
                "Attempts that got no answer, by code.",
                &["code"],
            ),
            decide: histogram(
                "emberlane_decide_seconds",
                "Time to parse, fingerprint, price and pick.",
                &DECIDE_BUCKETS,
            ),
            ttft: histogram("emberlane_time_to_first_token_seconds", "From the request's head.", &WAIT_BUCKETS),
            duration: histogram("emberlane_request_seconds", "From a request's head to its end.", &WAIT_BUCKETS),
            inter_token: histogram("emberlane_inter_token_seconds", "Between content events.", &GAP_BUCKETS),
            prefix_wait: histogram(
                "emberlane_prefix_wait_seconds",
                "Waits, before sending, for a prefix that another request was having computed, or for a slot.",
                &WAIT_BUCKETS,
            ),
            admission_wait: histogram(
                "emberlane_admission_wait_seconds",
                "Waits of requests that were held back before a replica was found for them.",
                &WAIT_BUCKETS,
            ),
            prediction_error: histogram(
                "emberlane_ttft_prediction_error_ratio",
                "How far the predicted time to first token was off, as a share of the actual one.",
                &ERROR_BUCKETS,
            ),
            prompt_tokens: counter("emberlane_prompt_tokens_total", "Prompt tokens, as engines counted them."),
            cached_tokens: counter("emberlane_cached_tokens_total", "Prompt tokens that engines reused."),
            predicted_cached_tokens: counter(
                "emberlane_predicted_cached_tokens_total",
                "Prompt tokens that the index expected to be reused, where the engine then said how many were.",
            ),
            cached_tokens_error: counter(
                "emberlane_cached_tokens_error_total",
                "Sum of the absolute differences between predicted and actual cached tokens.",
            ),
            output_tokens: counter("emberlane_output_tokens_total", "Output tokens, as engines counted them."),
            retries: counter("emberlane_retries_total", "Requests moved to another replica."),
            retries_refused: counter("emberlane_retries_refused_total", "Retries the budget did not allow."),
            ejections: counter("emberlane_ejections_total", "Replicas left out because they kept failing."),
            refused_heads: counter("emberlane_refused_heads_total", "Requests whose head could not be read."),
            reloads: counter("emberlane_config_reloads_total", "Reloads that took effect."),
            reload_failures: counter("emberlane_config_reload_failures_total", "Reloads that were refused."),
            load: LoadMetrics::new(&registry),
            discovery_failures: counters(
                "emberlane_discovery_failures_total",
                "Times that a source of replicas began to fail, and registrations refused, by source.",
                &["source"],
            ),
            registry,
        }
    }

    /// The handles of one shard.
    #[must_use]
    pub fn shard(&self) -> ShardMetrics {
        ShardMetrics {
            requests: std::array::from_fn(|_| std::array::from_fn(|_| OnceLock::new())),
            request_family: self.requests.clone(),
            rejects: self.rejects.clone(),
            reasons: Reason::ALL.map(|reason| self.decisions.with_label_values(&[reason.as_str()])),
            upstream_failures: self.upstream_failures.clone(),
            decide: self.decide.clone(),
            load_age: self.load.age.clone(),
            ttft: self.ttft.clone(),
            duration: self.duration.clone(),
            inter_token: self.inter_token.clone(),
            prefix_wait: self.prefix_wait.clone(),
            admission_wait: self.admission_wait.clone(),
            prediction_error: self.prediction_error.clone(),
            prompt_tokens: self.prompt_tokens.clone(),
            cached: self.cached_tokens.clone(),
            predicted: self.predicted_cached_tokens.clone(),
            error: self.cached_tokens_error.clone(),
            output_tokens: self.output_tokens.clone(),
            retries: self.retries.clone(),
            retries_refused: self.retries_refused.clone(),
            ejections: self.ejections.clone(),
            refused_heads: self.refused_heads.clone(),
        }
    }

    /// The exposition text of all metrics, and of `gauges`.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub fn render(&self, gauges: Vec<MetricFamily>) -> prometheus::Result<Vec<u8>> {
        let mut families = self.registry.gather();
        families.extend(gauges);
        let mut text = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }
}

/// One shard's handles.
#[derive(Debug)]
pub struct ShardMetrics {
    requests: [[OnceLock<IntCounter>; STATUS_CELLS]; Api::COUNT + 1],
    request_family: IntCounterVec,
    rejects: IntCounterVec,
    reasons: [IntCounter; Reason::ALL.len()],
    /// Attempts without an answer; rare, so looked up.
    pub upstream_failures: IntCounterVec,
    /// Time of decisions.
    pub decide: Histogram,
    /// Age of the load that decisions went by.
    pub load_age: Histogram,
    ttft: Histogram,
    duration: Histogram,
    /// Time between content events.
    pub inter_token: Histogram,
    /// Waits for a prefix under way.
    pub prefix_wait: Histogram,
    /// Seconds that requests waited at the gateway before they were placed.
    pub admission_wait: Histogram,
    prediction_error: Histogram,
    prompt_tokens: IntCounter,
    cached: IntCounter,
    predicted: IntCounter,
    error: IntCounter,
    output_tokens: IntCounter,
    /// Requests moved to another replica.
    pub retries: IntCounter,
    /// Retries the budget did not allow.
    pub retries_refused: IntCounter,
    /// Replicas left out.
    pub ejections: IntCounter,
    /// Requests whose head could not be read.
    pub refused_heads: IntCounter,
}

impl ShardMetrics {
    /// A request was refused before it was decided.
    pub fn rejected(&self, reject: Reject) {
        self.rejects.with_label_values(&[reject.code()]).inc();
    }

    /// A request that no route takes.
    pub fn refused_route(&self, reject: Reject) {
        self.rejected(reject);
        self.request_family.with_label_values(&["none", &reject.status().to_string()]).inc();
    }

    /// An engine said how many tokens of a prompt it reused.
    pub fn cached_tokens(&self, predicted: f64, actual: u64, prompt: u64) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "token counts, never negative")]
        let predicted = (predicted.max(0.0) as u64).min(prompt);
        self.predicted.inc_by(predicted);
        self.cached.inc_by(actual.min(prompt));
        self.error.inc_by(predicted.abs_diff(actual));
    }

    /// A time to first token was predicted, seconds, and it came.
    pub fn predicted_ttft(&self, predicted_s: f64, actual_s: f64) {
        self.prediction_error.observe((predicted_s - actual_s).abs() / actual_s.max(1e-3));
    }

    /// A request ended.
    pub fn finished(&self, api: Option<Api>, decision: Option<&Decision>, ending: &Ending) {
        let status = status_cell(ending.status);
        let cell = &self.requests[api.map_or(Api::COUNT, Api::index)][status];
        cell.get_or_init(|| {
            self.request_family.with_label_values(&[api.map_or(PASSTHROUGH, Api::as_str), &status_label(status)])
        })
        .inc();
        if let Some(reject) = ending.reject {
            self.rejected(reject);
        }
        if let Some(decision) = decision {
            self.reasons[decision.reason as usize].inc();
        }
        self.duration.observe(ending.total_s);
        if let Some(ttft) = ending.ttft_s {
            self.ttft.observe(ttft);
        }
        self.prompt_tokens.inc_by(ending.usage.prompt_tokens.unwrap_or(0));
        self.output_tokens.inc_by(ending.usage.output_tokens.unwrap_or(0));
    }
}

fn status_cell(status: u16) -> usize {
    STATUSES.iter().position(|known| *known == status).unwrap_or_else(|| {
        let class = usize::from(status / 100);
        STATUSES.len() + if class < CLASSES.len() { class } else { 0 }
    })
}

fn status_label(cell: usize) -> String {
    match STATUSES.get(cell) {
        Some(status) => status.to_string(),
        None => CLASSES[cell - STATUSES.len()].to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_a_bounded_label() {
        let labels: std::collections::BTreeSet<_> = (0..=u16::MAX).map(|s| status_label(status_cell(s))).collect();
        assert!(labels.len() <= STATUS_CELLS);
        assert_eq!(status_label(status_cell(429)), "429");
        assert_eq!(status_label(status_cell(418)), "4xx");
        assert_eq!(status_label(status_cell(9999)), "other");
    }

    #[test]
    fn all_names_register() {
        let metrics = Metrics::new();
        let shard = metrics.shard();
        shard.finished(Some(Api::Messages), None, &Ending::default());
        shard.cached_tokens(10.0, 8, 20);
        assert!(!metrics.registry.gather().is_empty());
    }
}
