//! Access lines: a sample of requests, and failures up to a rate, so that a flood of either cannot drown the log.

use super::shard::Shard;
use crate::clock::Now;
use crate::parse::Api;
use crate::pipeline::{PASSTHROUGH, Placement, Snapshot};
use crate::telemetry::record::Ending;
use parking_lot::Mutex;

/// Lines for failures that one shard writes a second.
const FAILURES_PER_S: f64 = 100.0;

/// Decides which requests get a line.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sampled: f64,
    failures: f64,
    at: Now,
}

impl Sampler {
    fn takes(&self, share: f64, failed: bool, now: Now) -> bool {
        let Some(mut state) = self.state.try_lock() else { return false };
        state.sampled += share;
        let earned = now.seconds_since(state.at) * FAILURES_PER_S;
        state.failures = (state.failures + earned).min(FAILURES_PER_S);
        state.at = now;
        if failed && state.failures >= 1.0 {
            state.failures -= 1.0;
            return true;
        }
        let sampled = state.sampled >= 1.0;
        if sampled {
            state.sampled -= 1.0;
        }
        sampled
    }
}

/// Writes the request's line, if it is to have one.
pub(super) fn log(
    shard: &Shard,
    snapshot: &Snapshot,
    api: Option<Api>,
    placement: Option<&Placement>,
    ending: &Ending,
) {
    let failed = ending.status >= 500 || ending.reject.is_some_and(|reject| reject.status() >= 500);
    let share = snapshot.config.log.access_sample;
    if (share <= 0.0 && !failed) || !shard.access.takes(share, failed, shard.core.clock.now()) {
        return;
    }
    let replica = placement.and_then(|p| snapshot.fleet.replica(p.decision.chosen.slot));
    tracing::info!(
        target: "emberlane::access",
        api = api.map_or(PASSTHROUGH, Api::as_str),
        status = ending.status,
        code = ending.reject.map(crate::reject::Reject::code),
        replica = replica.map(|replica| replica.config.id.as_str()),
        decision = placement.map(|p| p.decision.id.0),
        reason = placement.map(|p| p.decision.reason.as_str()),
        attempts = ending.attempts,
        ttft_ms = ending.ttft_s.map(|s| s * 1e3),
        total_ms = ending.total_s * 1e3,
        prompt_tokens = ending.usage.prompt_tokens,
        cached_tokens = ending.usage.cached_tokens,
        output_tokens = ending.usage.output_tokens,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_keep_their_share_and_failures_their_rate() {
        let sampler = Sampler::default();
        let taken = (0..1000).filter(|_| sampler.takes(0.1, false, Now(0))).count();
        assert!((95..=105).contains(&taken), "{taken}");
        let second = Now(1_000_000_000);
        let failures = (0..1000).filter(|_| sampler.takes(0.0, true, second)).count();
        assert_eq!(failures, 100);
    }
}
