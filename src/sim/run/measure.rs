//! What a run measures of the requests that arrive between the end of the warm-up and the end.

use super::super::engine::{SimEngine, Work};
use super::super::result::{ClassResult, RunResult};
use super::clients::Asked;
use super::{Chooser, Plan};
use crate::clock::Now;

/// Requests after which predictions for a replica that has become slower should be right again.
const SLOWED_REQUESTS: usize = 200;
/// They are right again when so many have this error in the mean.
const RECOVERED_OVER: usize = 50;
const GOOD_ERROR: f64 = 0.1;

/// Samples of one class.
#[derive(Debug, Default)]
struct Samples {
    ttft_s: Vec<f32>,
    from_arrival_s: Vec<f32>,
    completed: u64,
}

#[derive(Debug)]
pub(super) struct Measure {
    from: Now,
    to: Now,
    /// Measured requests that have not ended.
    pub(super) pending: u64,
    requests: u64,
    completed: u64,
    rejected: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    /// Answers that ended within the measured time, whenever they began.
    ended: u64,
    admission_wait_s: f64,
    ttft_s: Vec<f32>,
    /// The same with the wait for admission.
    from_arrival_s: Vec<f32>,
    tpot_s: Vec<f32>,
    e2e_s: Vec<f32>,
    classes: Vec<Samples>,
    /// Relative errors of the predicted TTFT; how many there were, and within the p90.
    error_sum: f64,
    errors: u64,
    covered: u64,
    /// The same errors of requests that were placed at a replica after it had become slower.
    slowed_errors: Vec<f32>,
    /// What engines had done by the beginning and the end of the measured time.
    work: [Vec<Work>; 2],
}

impl Measure {
    pub(super) fn new(plan: &Plan<'_>) -> Self {
        let from = Now(0).plus(super::seconds(plan.warm_up_s));
        Self {
            from,
            to: from.plus(super::seconds(plan.duration_s)),
            pending: 0,
            requests: 0,
            completed: 0,
            rejected: 0,
            prompt_tokens: 0,
            cached_tokens: 0,
            output_tokens: 0,
            ended: 0,
            admission_wait_s: 0.0,
            ttft_s: Vec::new(),
            from_arrival_s: Vec::new(),
            tpot_s: Vec::new(),
            e2e_s: Vec::new(),
            classes: plan.workload.classes.iter().map(|_| Samples::default()).collect(),
            error_sum: 0.0,
            errors: 0,
            covered: 0,
            slowed_errors: Vec::new(),
            work: [Vec::new(), Vec::new()],
        }
    }

    fn is_measured(&self, arrived: Now) -> bool {
        (self.from..self.to).contains(&arrived)
    }

    /// Time has come to `now`.
    pub(super) fn look_at(&mut self, now: Now, engines: &[SimEngine]) {
        for (at, work) in [self.from, self.to].into_iter().zip(&mut self.work) {
            if work.is_empty() && now >= at {
                work.extend(engines.iter().map(SimEngine::work));
            }
        }
    }

    pub(super) fn arrived(&mut self, now: Now) {
        if self.is_measured(now) {
            self.requests += 1;
            self.pending += 1;
        }
    }

    /// The first token of a request with so many prompt tokens, and of these so many from a cache.
    pub(super) fn first(
        &mut self,
        asked: &Asked,
        (arrived, admitted): (Now, Now),
        (prompt_tokens, cached): (u32, u32),
        now: Now,
    ) {
        if !self.is_measured(arrived) {
            return;
        }
        self.prompt_tokens += u64::from(prompt_tokens);
        self.cached_tokens += u64::from(cached);
        self.ttft(asked.class, (arrived, admitted), now);
    }

    /// A first token came, or has not come until now.
    fn ttft(&mut self, class: u8, (arrived, admitted): (Now, Now), now: Now) {
        let ttft_s = narrow(now.seconds_since(admitted));
        let from_arrival_s = narrow(now.seconds_since(arrived));
        self.ttft_s.push(ttft_s);
        self.from_arrival_s.push(from_arrival_s);
        self.admission_wait_s += admitted.seconds_since(arrived);
        if let Some(samples) = self.classes.get_mut(usize::from(class)) {
            samples.ttft_s.push(ttft_s);
            samples.from_arrival_s.push(from_arrival_s);
        }
    }

    /// A first token came after `real_s` that was predicted to come after `predicted_s`, and nine times in ten within
    /// `p90_s`.
    pub(super) fn predicted(&mut self, arrived: Now, predicted_s: f64, p90_s: Option<f64>, real_s: f64) {
        if self.is_measured(arrived) && real_s > 0.0 {
            self.errors += 1;
            self.error_sum += (predicted_s / real_s - 1.0).abs();
            self.covered += u64::from(p90_s.is_some_and(|p90_s| real_s <= p90_s));
        }
    }

    /// As [`Self::predicted`], of a request that was placed at a replica after it had become slower.
    pub(super) fn predicted_slowed(&mut self, predicted_s: f64, real_s: f64) {
        if real_s > 0.0 {
            self.slowed_errors.push(narrow((predicted_s / real_s - 1.0).abs()));
        }
    }

    /// A request is over; `first` is when its first token came.
    pub(super) fn ended(&mut self, asked: &Asked, arrived: Now, first: Option<Now>, is_answered: bool, now: Now) {
        if is_answered && self.is_measured(now) {
            self.ended += 1;
            self.output_tokens += u64::from(asked.output_tokens);
        }
        if !self.is_measured(arrived) {
            return;
        }
        self.pending -= 1;
        if !is_answered {
            self.rejected += 1;
            return;
        }
        self.completed += 1;
        if let Some(samples) = self.classes.get_mut(usize::from(asked.class)) {
            samples.completed += 1;
        }
        self.e2e_s.push(narrow(now.seconds_since(arrived)));
        if let Some(first) = first.filter(|_| asked.output_tokens > 1) {
            self.tpot_s.push(narrow(now.seconds_since(first) / f64::from(asked.output_tokens - 1)));
        }
    }

    /// The gateway refused a request. If it had waited, its client has seen no token for so long at least.
    pub(super) fn gave_up(&mut self, asked: &Asked, arrived: Now, now: Now) {
        if self.is_measured(arrived) && now > arrived {
            let waited_s = narrow(now.seconds_since(arrived));
            self.from_arrival_s.push(waited_s);
            if let Some(samples) = self.classes.get_mut(usize::from(asked.class)) {
                samples.from_arrival_s.push(waited_s);
            }
        }
    }

    /// A request that is still there at the very end has waited so long at least: leaving it out would flatter whoever
    /// keeps requests waiting.
    pub(super) fn unfinished(&mut self, class: u8, (arrived, admitted): (Now, Now), has_first: bool, now: Now) {
        if self.is_measured(arrived) {
            self.e2e_s.push(narrow(now.seconds_since(arrived)));
            if !has_first {
                self.ttft(class, (arrived, admitted), now);
            }
        }
    }

    /// All of it.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub(super) fn result(&mut self, plan: &Plan<'_>, engines: &[SimEngine]) -> RunResult {
        let measured_s = plan.duration_s;
        let work: Vec<Work> = engines
            .iter()
            .enumerate()
            .map(|(place, engine)| {
                let end = self.work[1].get(place).copied().unwrap_or_else(|| engine.work());
                let begin = self.work[0].get(place).copied().unwrap_or_default();
                Work {
                    busy_s: end.busy_s - begin.busy_s,
                    regenerated_s: end.regenerated_s - begin.regenerated_s,
                    preemptions: end.preemptions - begin.preemptions,
                }
            })
            .collect();
        let busy_s: f64 = work.iter().map(|work| work.busy_s).sum();
        let busiest = work.iter().map(|work| work.busy_s).fold(0.0, f64::max);
        let share = |part: f64, all: f64| if all > 0.0 { part / all } else { 0.0 };
        let ttft = quantiles(&mut self.ttft_s);
        let from_arrival = quantiles(&mut self.from_arrival_s);
        let tpot = quantiles(&mut self.tpot_s);
        let e2e = quantiles(&mut self.e2e_s);
        let many = engines.len() as f64;
        RunResult {
            workload: plan.workload.name.clone(),
            policy: match &plan.chooser {
                Chooser::Policy(policy) => policy.name.as_str().to_owned(),
                Chooser::Bound(bound) => bound.as_str().to_owned(),
            },
            variant: String::new(),
            model: plan.engines.first().map(|engine| engine.name.to_owned()).unwrap_or_default(),
            replicas: u32::try_from(engines.len()).unwrap_or(u32::MAX),
            load: plan.load,
            seed: plan.seed,
            measured_s,
            requests: self.requests,
            completed: self.completed,
            rejected: self.rejected,
            hit_rate: share(self.cached_tokens as f64, self.prompt_tokens as f64),
            regenerated_share: share(work.iter().map(|work| work.regenerated_s).sum(), busy_s),
            ttft_p50_s: ttft.p50,
            ttft_p90_s: ttft.p90,
            ttft_p95_s: ttft.p95,
            ttft_p99_s: ttft.p99,
            ttft_mean_s: ttft.mean,
            ttft_from_arrival_p50_s: from_arrival.p50,
            ttft_from_arrival_p90_s: from_arrival.p90,
            ttft_from_arrival_p95_s: from_arrival.p95,
            ttft_from_arrival_p99_s: from_arrival.p99,
            ttft_from_arrival_mean_s: from_arrival.mean,
            tpot_p50_s: tpot.p50,
            tpot_p90_s: tpot.p90,
            e2e_p50_s: e2e.p50,
            e2e_p90_s: e2e.p90,
            output_tokens_per_s: self.output_tokens as f64 / measured_s,
            requests_per_s: self.ended as f64 / measured_s,
            admission_wait_mean_s: share(self.admission_wait_s, self.ttft_s.len() as f64),
            busy_share: busy_s / (measured_s * many),
            imbalance: share(busiest * many, busy_s),
            preemptions: work.iter().map(|work| work.preemptions).sum(),
            ttft_mape: (self.errors > 0).then(|| self.error_sum / self.errors as f64),
            ttft_p90_covered: (self.covered > 0).then(|| self.covered as f64 / self.errors as f64),
            slowed_mape: mean(self.slowed_errors.get(SLOWED_REQUESTS..).unwrap_or_default()),
            slowed_recovered_after: recovered_after(&self.slowed_errors),
            classes: self.class_results(plan),
            ..RunResult::default()
        }
    }

    fn class_results(&mut self, plan: &Plan<'_>) -> Vec<ClassResult> {
        if self.classes.len() < 2 {
            return Vec::new();
        }
        let of = |(class, samples): (&String, &mut Samples)| {
            let ttft = quantiles(&mut samples.ttft_s);
            let from_arrival = quantiles(&mut samples.from_arrival_s);
            ClassResult {
                class: class.clone(),
                completed: samples.completed,
                ttft_p50_s: ttft.p50,
                ttft_p90_s: ttft.p90,
                ttft_p95_s: ttft.p95,
                ttft_p99_s: ttft.p99,
                ttft_from_arrival_p50_s: from_arrival.p50,
                ttft_from_arrival_p90_s: from_arrival.p90,
                ttft_from_arrival_p95_s: from_arrival.p95,
                ttft_from_arrival_p99_s: from_arrival.p99,
            }
        };
        plan.workload.classes.iter().zip(&mut self.classes).map(of).collect()
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Quantiles {
    p50: f64,
    p90: f64,
    p95: f64,
    p99: f64,
    mean: f64,
}

/// Quantiles by the nearest rank.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ranks")]
fn quantiles(samples: &mut [f32]) -> Quantiles {
    if samples.is_empty() {
        return Quantiles::default();
    }
    samples.sort_unstable_by(f32::total_cmp);
    let at = |share: f64| {
        let rank = (share * samples.len() as f64).ceil() as usize;
        f64::from(samples[rank.clamp(1, samples.len()) - 1])
    };
    let mean = samples.iter().copied().map(f64::from).sum::<f64>() / samples.len() as f64;
    Quantiles { p50: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99), mean }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn mean(values: &[f32]) -> Option<f64> {
    let sum: f64 = values.iter().copied().map(f64::from).sum();
    (!values.is_empty()).then(|| sum / values.len() as f64)
}

/// After how many requests the mean of the next few errors is what it should be; all, where it never is.
fn recovered_after(errors: &[f32]) -> Option<u64> {
    let is_good = |window: &[f32]| mean(window).is_some_and(|error| error <= GOOD_ERROR);
    let over = RECOVERED_OVER.min(errors.len());
    let after = if over > 0 { errors.windows(over).position(is_good).unwrap_or(errors.len()) } else { return None };
    u64::try_from(after).ok()
}

#[expect(clippy::cast_possible_truncation, reason = "times of 7 digits")]
const fn narrow(seconds: f64) -> f32 {
    seconds as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_have_recovered_when_many_in_a_row_are_right() {
        let errors: Vec<f32> = (0..80).map(|place| if place < 30 { 0.5 } else { 0.05 }).collect();
        // Of the fifty from the 25th on, five are off by a half: 0.095 in the mean.
        assert_eq!(recovered_after(&errors), Some(25));
        assert_eq!(recovered_after(&[0.5; 70]), Some(70));
        assert_eq!((recovered_after(&[0.01; 9]), recovered_after(&[])), (Some(0), None));
    }

    #[test]
    fn quantiles_are_samples() {
        let mut samples: Vec<f32> = (1..=100_u8).rev().map(f32::from).collect();
        let found = quantiles(&mut samples);
        let expected = [50.0, 90.0, 95.0, 99.0];
        assert!([found.p50, found.p90, found.p95, found.p99].iter().zip(expected).all(|(s, at)| (s - at).abs() < 1e-9));
        assert!((found.mean - 50.5).abs() < 1e-9);
    }
}
