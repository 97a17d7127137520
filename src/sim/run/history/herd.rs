//! Whether requests go in herds: many to one replica before the first of them shows in what is known of it.
//!
//! Looked at are windows as long as reports are old at most. A request's price warrants the replicas that hold most of its
//! prompt, any of them as well as the other; of a prompt that nobody holds, all. What a replica got beyond that, each
//! request counted in equal parts for its candidates, is its excess. Chance alone makes some: the same requests are given
//! out by lot beside it, each among its candidates, and what that makes is taken off.

use super::super::super::engine::SimEngine;
use super::super::super::workload::Segment;
use super::super::{Plan, seconds};
use crate::clock::Now;
use std::time::Duration;

/// Windows with fewer requests say nothing.
const REQUESTS_MIN: u32 = 4;

/// The requests of a window, and sums over windows.
#[derive(Debug)]
pub(super) struct Herd {
    from: Now,
    until: Now,
    window: Duration,
    ends: Now,
    requests: u32,
    /// What each replica got in this window, less what was warranted; and what it was given by lot, less the same.
    excess: Vec<f32>,
    by_lot: Vec<f32>,
    candidates: Vec<usize>,
    rng: fastrand::Rng,
    windows: u64,
    sum: f64,
}

impl Herd {
    pub(super) fn new(plan: &Plan<'_>, replicas: usize) -> Self {
        let from = Now(0).plus(seconds(plan.warm_up_s));
        Self {
            from,
            until: from.plus(seconds(plan.duration_s)),
            window: seconds((plan.beacons.period_s + plan.beacons.delay_s).max(0.001)),
            ends: Now(0),
            requests: 0,
            excess: vec![0.0; replicas],
            by_lot: vec![0.0; replicas],
            candidates: Vec::new(),
            rng: fastrand::Rng::with_seed(plan.seed ^ 0x4e4d),
            windows: 0,
            sum: 0.0,
        }
    }

    pub(super) fn placed(&mut self, prompt: &[Segment], place: usize, engines: &[SimEngine], now: Now) {
        if !(self.from..self.until).contains(&now) {
            return;
        }
        if now >= self.ends {
            self.close();
            self.ends = now.plus(self.window);
        }
        self.find_candidates(prompt, engines);
        #[expect(clippy::cast_precision_loss, reason = "few")]
        let part = 1.0 / self.candidates.len().max(1) as f32;
        for candidate in &self.candidates {
            self.excess[*candidate] -= part;
            self.by_lot[*candidate] -= part;
        }
        if let Some(drawn) = self.rng.choice(&self.candidates) {
            self.by_lot[*drawn] += 1.0;
            self.excess[place] += 1.0;
            self.requests += 1;
        }
    }

    /// Those that hold as much of the prompt as any does, but for a block.
    fn find_candidates(&mut self, prompt: &[Segment], engines: &[SimEngine]) {
        self.candidates.clear();
        let held = |engine: &SimEngine| {
            let held = engine.held(prompt);
            held.device + held.host
        };
        let most = engines.iter().map(held).max().unwrap_or(0);
        for (place, engine) in engines.iter().enumerate() {
            if held(engine) + engine.model().block_tokens >= most {
                self.candidates.push(place);
            }
        }
    }

    /// Counts the window that is over.
    fn close(&mut self) {
        let most = |excess: &[f32]| f64::from(excess.iter().copied().fold(0.0, f32::max));
        if self.requests >= REQUESTS_MIN {
            self.windows += 1;
            self.sum += (most(&self.excess) - most(&self.by_lot)) / f64::from(self.requests);
        }
        self.requests = 0;
        self.excess.fill(0.0);
        self.by_lot.fill(0.0);
    }

    /// The mean over all windows; `None` when there were none.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub(super) fn mean(&self) -> Option<f64> {
        (self.windows > 0).then(|| self.sum / self.windows as f64)
    }
}
