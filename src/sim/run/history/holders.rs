//! Which replicas hold the hot prefixes: what their caches really have, looked at once a second.

use super::super::super::engine::SimEngine;
use super::super::super::result::RunResult;
use super::super::super::workload::{HotPrefixes, Segment};
use super::super::{Plan, seconds};
use crate::clock::Now;
use std::time::Duration;

/// Between two looks.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// Who has this share of a prefix holds it.
const HELD_SHARE: f64 = 0.9;

/// What is known of one span of the run.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: Now,
    until: Now,
    /// Looks, and what they saw: replicas that held a prefix, over all prefixes.
    looks: u64,
    holding: u64,
    /// Times that a replica came to hold a prefix or lost it between two looks.
    changes: u64,
}

/// The holders of hot prefixes.
#[derive(Debug)]
pub(super) struct Holders {
    prefixes: Vec<Segment>,
    next: Now,
    /// For each prefix, for each replica.
    is_held: Vec<Vec<bool>>,
    /// Before, while and after they are hot: of each the second half, when things have settled.
    spans: [Span; 3],
}

impl Holders {
    pub(super) fn new(plan: &Plan<'_>, hot: &HotPrefixes) -> Self {
        let end_s = plan.warm_up_s + plan.duration_s;
        let at_s = |at_s: f64| (at_s / plan.load).clamp(plan.warm_up_s, end_s);
        let (from_s, until_s) = (at_s(hot.from_s), at_s(hot.until_s));
        let second_half = |from_s: f64, until_s: f64| Span {
            from: Now(0).plus(seconds(f64::midpoint(from_s, until_s))),
            until: Now(0).plus(seconds(until_s)),
            looks: 0,
            holding: 0,
            changes: 0,
        };
        Self {
            prefixes: hot.prefixes.clone(),
            next: Now(0).plus(LOOK_PERIOD),
            is_held: vec![vec![false; plan.engines.len()]; hot.prefixes.len()],
            spans: [second_half(plan.warm_up_s, from_s), second_half(from_s, until_s), second_half(until_s, end_s)],
        }
    }

    /// Whether `prompt` begins with a hot prefix.
    pub(super) fn is_hot(&self, prompt: &[Segment]) -> bool {
        prompt.first().is_some_and(|first| self.prefixes.iter().any(|prefix| prefix.id == first.id))
    }

    /// Replicas that held a prefix at the last look.
    pub(super) fn holding(&self, prefix: usize) -> u32 {
        let holding = self.is_held.get(prefix).map_or(0, |held| held.iter().filter(|held| **held).count());
        u32::try_from(holding).unwrap_or(u32::MAX)
    }

    pub(super) fn look_at(&mut self, now: Now, engines: &[SimEngine]) {
        while self.next <= now {
            let at = self.next;
            self.next = at.plus(LOOK_PERIOD);
            self.look(at, engines);
        }
    }

    fn look(&mut self, at: Now, engines: &[SimEngine]) {
        let mut changes = 0;
        for (prefix, held) in self.prefixes.iter().zip(&mut self.is_held) {
            for (engine, is_held) in engines.iter().zip(held) {
                let tokens = f64::from(engine.held(std::slice::from_ref(prefix)).device);
                let holds = tokens >= HELD_SHARE * f64::from(prefix.tokens);
                changes += u64::from(holds != *is_held);
                *is_held = holds;
            }
        }
        let holding = self.is_held.iter().flatten().filter(|held| **held).count() as u64;
        if let Some(span) = self.spans.iter_mut().find(|span| (span.from..span.until).contains(&at)) {
            span.looks += 1;
            span.holding += holding;
            span.changes += changes;
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub(super) fn tell(&self, result: &mut RunResult) {
        let prefixes = self.prefixes.len() as f64;
        let mean = |span: &Span| (span.looks > 0).then(|| span.holding as f64 / (span.looks as f64 * prefixes));
        let [before, hot, after] = &self.spans;
        (result.holders_before, result.holders_while_hot, result.holders_after) =
            (mean(before), mean(hot), mean(after));
        let minutes = hot.looks as f64 * LOOK_PERIOD.as_secs_f64() / 60.0;
        result.holder_changes_per_min = (hot.looks > 0).then(|| hot.changes as f64 / (minutes * prefixes));
    }
}
