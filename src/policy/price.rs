//! The default: each candidate is priced in seconds, and the cheapest wins.
//!
//! ```text
//! cost = predicted time to the first token      base + queue there + own prefill, as learned
//!      + restored × restore                     what it holds in host memory comes back to the device first
//!      + own prefill × reuse bonus              work done twice is time of the engine that others wait for
//!      + own prefill × eviction weight × pushed out
//!      + own prefill × decode weight × requests there
//!      + answer weight × expected answer        where that is wanted
//! ```
//! The middle lines are what others lose. New blocks push old ones out of a cache that is full; `pushed out` is the share
//! of what goes that is expected to be used again ([`super::pushed_out`]): conversations that pause, and not those that
//! have ended. It will have to be computed again, and that pushes out more, so it counts more than once. And while a
//! prompt is computed, the answers under way there are held up ("LMetric", arXiv 2603.15202, multiplies the two).
//!
//! A prompt may also wait at the gateway ([`Policy::waits`]): while the best replica for it has prefill to do anyway, and
//! what it would push out there is needed, or while that takes long, it gains nothing by being sent. When an engine has
//! time for it, it is placed by what is known then. So engines are not idle for it, and warm prompts do not queue behind
//! cold ones more than they must. It waits, too, while engines that have something to do spend more of their time than they
//! may on computing again what was pushed out: that far beyond what the caches hold, each cold prompt that is let in costs
//! another that is warm.

use super::latency::{FirstToken, larger};
use super::{Policy, Standing, View};
use crate::config::PolicyConfig;

/// Prefill of less than this, seconds, is not worth a wait.
const WAIT_PREFILL_LEAST_S: f32 = 0.3;
/// Prefill ahead of less than this, seconds, is about to be over.
const BUSY_LEAST_S: f32 = 0.1;
/// Prefill ahead of more than this, seconds, keeps an engine busy for long enough to decide later, when more is known.
const BUSY_MOST_S: f32 = 0.5;
/// Of what is pushed out, so much may be used again by chance.
const NEEDED_LEAST: f32 = 0.1;
/// Warm candidates that are priced by what is new to each.
const WARM_MAX: usize = 32;

/// Least expected seconds.
#[derive(Debug)]
pub struct Price {
    reuse_bonus: f32,
    eviction_weight: f32,
    decode_weight: f32,
    answer_weight: f32,
    may_wait: bool,
}

impl Price {
    /// The policy with the parameters of `config`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "prices need 7 digits")]
    pub const fn new(config: &PolicyConfig) -> Self {
        Self {
            reuse_bonus: config.reuse_bonus as f32,
            eviction_weight: config.eviction_weight as f32,
            decode_weight: config.decode_weight as f32,
            answer_weight: config.answer_weight as f32,
            may_wait: config.wait,
        }
    }

    /// What is warm is not pushed in: where most of the prompt is, what is new is of another size than the prompt. Where
    /// very many hold it, it is short or hot, and what is new is little everywhere.
    fn add_what_little_pushes_out(&self, view: &View, costs: &mut [f32]) {
        for place in view.warm.iter().take(WARM_MAX).map(|place| usize::from(*place)) {
            let (uncached, warm) = (view.uncached_tokens(place), view.warm_tokens[place]);
            let (as_priced, is) =
                (view.pushed_out.share(place, view.prompt_tokens), view.pushed_out.share(place, uncached));
            costs[place] += view.latency.prefill_s(place, uncached, warm) * self.eviction_weight * (is - as_priced);
        }
    }

    /// Of a prompt that is long enough at `place` to be worth a wait: seconds of its own prefill, and the share of what it
    /// pushes out that will be needed.
    fn worth_a_wait(&self, view: &View, place: usize) -> Option<(f32, f32)> {
        let (uncached, warm) = (view.uncached_tokens(place), view.warm_tokens[place]);
        let prefill_s = view.latency.prefill_s(place, uncached, warm);
        let is_long = self.may_wait && prefill_s >= WAIT_PREFILL_LEAST_S;
        is_long.then(|| (prefill_s, view.pushed_out.share(place, uncached)))
    }
}

impl Policy for Price {
    fn cost(&self, view: &View, _rng: &mut fastrand::Rng, costs: &mut [f32]) {
        cost_columns(self, view, costs);
        self.add_what_little_pushes_out(view, costs);
        let answer = self.answer_weight * view.answer_tokens;
        if answer > 0.0 {
            costs.iter_mut().zip(view.latency.tpot_column()).for_each(|(cost, tpot_s)| *cost += answer * tpot_s);
        }
        // Who waits for a slot waits for the prefill in it, too: the longer of the two, not both.
        for place in view.warm.iter().filter(|_| view.is_awaited).map(|place| usize::from(*place)) {
            let ahead_s = view.latency.ahead_s(place);
            costs[place] += larger(view.prefix_wait_s[place] - ahead_s, 0.0);
        }
        for place in view.warm.iter().filter(|_| view.is_restored).map(|place| usize::from(*place)) {
            costs[place] += restore_s(view, place);
        }
        for place in view.evicting.iter().map(|place| usize::from(*place)) {
            costs[place] += view.eviction_s[place] * (1.0 + self.reuse_bonus);
        }
        for place in &view.barred {
            costs[usize::from(*place)] = f32::INFINITY;
        }
    }

    fn spends_s(&self, view: &View, place: usize) -> f32 {
        let pushes_out = self.worth_a_wait(view, place).filter(|(_, needed)| *needed > NEEDED_LEAST);
        pushes_out.map_or(0.0, |(prefill_s, needed)| prefill_s * needed)
    }

    fn waits(&self, view: &View, place: usize, Standing { ahead_s, is_first, is_spent }: Standing) -> bool {
        let Some((_, needed)) = self.worth_a_wait(view, place) else { return false };
        // An engine without any request is not kept so.
        let is_spent = is_spent && view.in_flight[place] > 0.0;
        let is_busy = !is_first || is_spent || ahead_s > BUSY_LEAST_S;
        ahead_s > BUSY_MOST_S || is_busy && needed > NEEDED_LEAST
    }

    fn is_priced(&self) -> bool {
        true
    }
}

/// The time to the first token and what others lose by this prompt's prefill, in the widest lanes this CPU has. The
/// result is the same on all of them.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn cost_columns(price: &Price, view: &View, costs: &mut [f32]) {
    // Columns of one known length: the loop has no bounds to check and no branch. Of thousands of candidates it takes
    // as long as the columns take to come: one pass reads each of them once.
    let n = costs.len();
    let terms = view.latency.terms(n);
    let (warm_tokens, in_flight) = (&view.warm_tokens[..n], &view.in_flight[..n]);
    let pushed_out = &view.pushed_out.column(view.prompt_tokens)[..n];
    for place in 0..n {
        let FirstToken { median_s, prefill_s } = terms.first_token(place, view.prompt_tokens, warm_tokens[place]);
        let lost =
            price.reuse_bonus + price.eviction_weight * pushed_out[place] + price.decode_weight * in_flight[place];
        costs[place] = median_s + prefill_s * lost;
    }
}

/// Seconds until what candidate `place` holds of the prompt in host memory is on its device.
#[must_use]
pub fn restore_s(view: &View, place: usize) -> f32 {
    view.restore_tokens[place] * view.restore_s_per_token[place]
}

#[cfg(test)]
mod tests;
