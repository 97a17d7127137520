//! What a workload holds, in a few figures: to check a reader against what is published of a trace, and for reports.

use std::collections::HashSet;

use serde::Serialize;

use super::Workload;

/// A workload in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Facts {
    /// Conversations, workflows or lone requests.
    pub scripts: usize,
    /// Requests.
    pub calls: usize,
    /// Mean length of a prompt, tokens.
    pub prompt_tokens_mean: f64,
    /// Mean length of an output, tokens.
    pub output_tokens_mean: f64,
    /// Prompt tokens that a cache without bound would have held, of all, when calls run one after the other in the order
    /// of the scripts. What calls generate is in that cache too.
    pub ideal_hit_rate: f64,
    /// From the first script's start to the last one's, seconds; 0 in a closed loop.
    pub span_s: f64,
}

impl Workload {
    /// Counts it through.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let mut seen = HashSet::new();
        let (mut calls, mut prompts, mut outputs, mut hits) = (0_usize, 0_u64, 0_u64, 0_u64);
        for call in self.scripts.iter().flat_map(|script| &script.calls) {
            calls += 1;
            outputs += u64::from(call.output_tokens);
            let mut is_held = true;
            for segment in &call.prompt {
                prompts += u64::from(segment.tokens);
                is_held &= !seen.insert(segment.id);
                if is_held {
                    hits += u64::from(segment.tokens);
                }
            }
            if call.output != 0 {
                seen.insert(call.output);
            }
        }
        let span_s = match (self.scripts.first(), self.scripts.last()) {
            (Some(first), Some(last)) => last.at_s - first.at_s,
            _ => 0.0,
        };
        Facts {
            scripts: self.scripts.len(),
            calls,
            prompt_tokens_mean: ratio(prompts, count(calls)),
            output_tokens_mean: ratio(outputs, count(calls)),
            ideal_hit_rate: ratio(hits, prompts),
            span_s,
        }
    }
}

fn count(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// 0 of nothing.
#[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^53")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
