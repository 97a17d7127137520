//! How a run went over time, for those who want to see it: series of the fleet's state at a period, and, where the
//! workload has hot prefixes, who held them and whether requests went in herds.

mod herd;
mod holders;

use self::herd::Herd;
use self::holders::Holders;
use super::super::engine::SimEngine;
use super::super::result::{RunResult, Series};
use super::super::workload::Segment;
use super::clients::Asked;
use super::{Chooser, Plan};
use crate::clock::Now;
use std::time::Duration;

/// What is kept of a run.
#[derive(Debug)]
pub(super) struct History {
    /// `None`: no series are kept.
    series: Option<Kept>,
    holders: Option<Holders>,
    herd: Option<Herd>,
}

/// The series so far.
#[derive(Debug)]
struct Kept {
    period: Duration,
    next: Now,
    end: Now,
    at_s: Vec<f32>,
    in_flight: Vec<Vec<f32>>,
    kv_usage: Vec<Vec<f32>>,
    prefill_tokens: Vec<Vec<f32>>,
    /// Of all requests, then of each class: prompt tokens and cached ones since the last look.
    tokens: Vec<(u64, u64)>,
    hit_rates: Vec<Vec<f32>>,
    classes: Vec<String>,
    /// Requests that each replica got since the last look.
    requests: Vec<u32>,
    requests_per_s: Vec<Vec<f32>>,
    /// Of these, the ones for hot prefixes.
    hot_requests: Vec<u32>,
    hot_shares: Vec<Vec<f32>>,
    holding: Vec<Vec<f32>>,
}

impl History {
    pub(super) fn new(plan: &Plan<'_>) -> Self {
        let replicas = plan.engines.len();
        // A bound that says itself what is cached leaves engines' caches empty.
        let is_real = !matches!(plan.chooser, Chooser::Bound(name) if name.dictates());
        let hot = plan.workload.hot.as_ref().filter(|_| is_real);
        Self {
            series: (plan.history_period_s > 0.0).then(|| Kept::new(plan, hot.map_or(0, |hot| hot.prefixes.len()))),
            holders: hot.map(|hot| Holders::new(plan, hot)),
            herd: hot.map(|_| Herd::new(plan, replicas)),
        }
    }

    /// Time is about to come to `now`: what was looked at before then is as `engines` are.
    pub(super) fn look_at(&mut self, now: Now, engines: &[SimEngine]) {
        if let Some(holders) = &mut self.holders {
            holders.look_at(now, engines);
        }
        if let Some(kept) = &mut self.series {
            kept.look_at(now, engines, self.holders.as_ref());
        }
    }

    /// A request with `prompt` has been placed at the engine at `place`.
    pub(super) fn placed(&mut self, prompt: &[Segment], place: usize, engines: &[SimEngine], now: Now) {
        if let Some(herd) = &mut self.herd {
            herd.placed(prompt, place, engines, now);
        }
        if let Some(kept) = &mut self.series {
            let is_hot = self.holders.as_ref().is_some_and(|holders| holders.is_hot(prompt));
            let counts = [Some(&mut kept.requests), is_hot.then_some(&mut kept.hot_requests)];
            for count in counts.into_iter().flatten().filter_map(|counts| counts.get_mut(place)) {
                *count += 1;
            }
        }
    }

    /// A first token has come.
    pub(super) fn first(&mut self, asked: &Asked, prompt_tokens: u32, cached: u32) {
        if let Some(kept) = &mut self.series {
            kept.first(asked.class, (prompt_tokens, cached));
        }
    }

    /// Puts all of it into the run's result.
    pub(super) fn tell(self, result: &mut RunResult) {
        if let Some(holders) = &self.holders {
            holders.tell(result);
        }
        result.herding = self.herd.as_ref().and_then(Herd::mean);
        if let Some(kept) = self.series {
            result.series = kept.into_series();
        }
    }
}

impl Kept {
    fn new(plan: &Plan<'_>, hot: usize) -> Self {
        let replicas = plan.engines.len();
        let columns = |count: usize| vec![Vec::new(); count];
        let classes = if plan.workload.classes.len() > 1 { plan.workload.classes.clone() } else { Vec::new() };
        let period = super::seconds(plan.history_period_s);
        Self {
            period,
            next: Now(0).plus(period),
            end: Now(0).plus(super::seconds(plan.warm_up_s + plan.duration_s)),
            at_s: Vec::new(),
            in_flight: columns(replicas),
            kv_usage: columns(replicas),
            prefill_tokens: columns(replicas),
            tokens: vec![(0, 0); 1 + classes.len()],
            hit_rates: columns(1 + classes.len()),
            classes,
            requests: vec![0; replicas],
            requests_per_s: columns(replicas),
            hot_requests: vec![0; replicas],
            hot_shares: columns(if hot > 0 { replicas } else { 0 }),
            holding: columns(hot),
        }
    }

    fn look_at(&mut self, now: Now, engines: &[SimEngine], holders: Option<&Holders>) {
        while self.next <= now && self.next <= self.end {
            let at = self.next;
            self.next = at.plus(self.period);
            self.sample(at, engines, holders);
        }
    }

    fn sample(&mut self, at: Now, engines: &[SimEngine], holders: Option<&Holders>) {
        #[expect(clippy::cast_precision_loss, reason = "for plots")]
        let lossy = |count: u32| count as f32;
        self.at_s.push(narrow(at.seconds_since(Now(0))));
        for (place, engine) in engines.iter().enumerate() {
            let gauges = engine.gauges();
            self.in_flight[place].push(lossy(gauges.running + gauges.waiting));
            self.kv_usage[place].push(gauges.kv_usage * 100.0);
            self.prefill_tokens[place].push(lossy(gauges.prefill_tokens));
        }
        for ((prompt, cached), rates) in self.tokens.iter_mut().zip(&mut self.hit_rates) {
            // Where nothing was asked, it stays as it was.
            let before = rates.last().copied().unwrap_or(0.0);
            rates.push(if *prompt > 0 { percent(*cached, *prompt) } else { before });
            (*prompt, *cached) = (0, 0);
        }
        let period_s = narrow(self.period.as_secs_f64());
        for (count, rates) in self.requests.iter_mut().zip(&mut self.requests_per_s) {
            rates.push(lossy(std::mem::take(count)) / period_s);
        }
        let all: u32 = self.hot_requests.iter().sum();
        for (count, shares) in self.hot_requests.iter_mut().zip(&mut self.hot_shares) {
            shares.push(percent(u64::from(*count), u64::from(all.max(1))));
            *count = 0;
        }
        for (prefix, holding) in self.holding.iter_mut().enumerate() {
            holding.push(holders.map_or(0.0, |holders| lossy(holders.holding(prefix))));
        }
    }

    fn first(&mut self, class: u8, (prompt_tokens, cached_tokens): (u32, u32)) {
        let of_class = 1 + usize::from(class);
        for place in [0, of_class] {
            if let Some((prompt, cached)) = self.tokens.get_mut(place) {
                *prompt += u64::from(prompt_tokens);
                *cached += u64::from(cached_tokens);
            }
        }
    }

    fn into_series(self) -> Vec<Series> {
        let at_s = self.at_s;
        let series = |name: &str, unit: &str, labels: Vec<String>, values: Vec<Vec<f32>>| Series {
            name: name.to_owned(),
            unit: unit.to_owned(),
            labels,
            at_s: at_s.clone(),
            values,
        };
        let mut all = vec![
            series("requests placed a second", "", Vec::new(), self.requests_per_s),
            series("requests in flight", "", Vec::new(), self.in_flight),
            series("KV cache in use", "%", Vec::new(), self.kv_usage),
            series("prompt tokens waiting for prefill", "", Vec::new(), self.prefill_tokens),
        ];
        let classes = std::iter::once("all".to_owned()).chain(self.classes).collect();
        all.push(series("prompt tokens found in cache", "%", classes, self.hit_rates));
        if !self.holding.is_empty() {
            let prefixes = (1..=self.holding.len()).map(|number| format!("prefix {number}")).collect();
            all.push(series("replicas that hold a hot prefix", "", prefixes, self.holding));
            all.push(series("share of the requests for hot prefixes", "%", Vec::new(), self.hot_shares));
        }
        all
    }
}

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "for plots")]
fn percent(part: u64, whole: u64) -> f32 {
    (part as f64 / whole as f64 * 100.0) as f32
}

#[expect(clippy::cast_possible_truncation, reason = "for plots")]
const fn narrow(seconds: f64) -> f32 {
    seconds as f32
}
