//! What a decision paid and why: plain data, and its words for people.

use super::{Placement, Snapshot};
use crate::clock::Now;
use crate::id::{DecisionId, PoolId, ReplicaSlot};
use crate::parse::Api;
use crate::policy::{Pick, View, column};

/// Name of the route of paths that are passed through.
pub const PASSTHROUGH: &str = "passthrough";

/// Why a replica was picked, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No other replica could take it.
    Only,
    /// It holds more of the prompt than any other, and waiting there costs less than computing it elsewhere.
    Warm,
    /// Nobody holds any of the prompt: the least wait.
    Cold,
    /// Others hold more of the prompt, but waiting there costs more.
    Spill,
    /// The policy does not look at prices.
    Policy,
    /// The replica tried before failed.
    Retry,
}

impl Reason {
    /// Name in `/decisions`, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Only => "only",
            Self::Warm => "warm",
            Self::Cold => "cold",
            Self::Spill => "spill",
            Self::Policy => "policy",
            Self::Retry => "retry",
        }
    }

    /// All of them, for metrics.
    pub const ALL: [Self; 6] = [Self::Only, Self::Warm, Self::Cold, Self::Spill, Self::Policy, Self::Retry];
}

/// One candidate as it was seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Which.
    pub slot: ReplicaSlot,
    /// What the policy made of it: seconds for `price`, else a score (lower is better).
    pub cost: f32,
    /// Tokens of the prompt it holds.
    pub warm_tokens: f32,
    /// Requests in flight there.
    pub in_flight: u32,
    /// Expected seconds before the prompt's own prefill.
    pub wait_s: f32,
    /// Of these, until the slot that holds the prompt is free.
    pub prefix_wait_s: f32,
    /// Expected seconds of the prompt's own prefill there.
    pub prefill_s: f32,
    prompt_tokens: f32,
}

impl Choice {
    /// Prompt tokens it would have to compute.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped at zero; saturates")]
    pub const fn uncached_tokens(&self) -> u64 {
        (self.prompt_tokens - self.warm_tokens).max(0.0) as u64
    }
}

/// A decision, as it is recorded: plain data, no allocation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// Number.
    pub id: DecisionId,
    /// What it speaks; `None` for a path that is passed through.
    pub api: Option<Api>,
    /// Pool.
    pub pool: PoolId,
    /// When.
    pub at: Now,
    /// Bytes of the prompt.
    pub prompt_bytes: u32,
    /// Tokens of the prompt, estimated from its bytes.
    pub prompt_tokens: f32,
    /// Replicas that could take it.
    pub candidates: u16,
    /// The one that was picked.
    pub chosen: Choice,
    /// The next cheapest.
    pub runner_up: Option<Choice>,
    /// The candidate that holds the most of the prompt, when that is not the one picked.
    pub warmest: Option<Choice>,
    /// Why.
    pub reason: Reason,
    /// Costs are seconds.
    pub priced: bool,
}

impl Decision {
    pub(super) fn new(
        id: DecisionId,
        api: Option<Api>,
        pool: PoolId,
        at: Now,
        prompt_bytes: usize,
        prompt_tokens: f32,
    ) -> Self {
        Self {
            id,
            api,
            pool,
            at,
            prompt_bytes: u32::try_from(prompt_bytes).unwrap_or(u32::MAX),
            prompt_tokens,
            candidates: 0,
            chosen: Choice {
                slot: ReplicaSlot(0),
                cost: 0.0,
                warm_tokens: 0.0,
                in_flight: 0,
                wait_s: 0.0,
                prefix_wait_s: 0.0,
                prefill_s: 0.0,
                prompt_tokens,
            },
            runner_up: None,
            warmest: None,
            reason: Reason::Cold,
            priced: false,
        }
    }

    /// Name of its route in metrics, records and logs.
    #[must_use]
    pub fn route(&self) -> &'static str {
        self.api.map_or(PASSTHROUGH, Api::as_str)
    }

    /// The decision in plain words; `name` gives a replica's id.
    #[must_use]
    pub fn explain<'n>(&self, name: impl Fn(ReplicaSlot) -> &'n str) -> String {
        let one = |choice: &Choice| {
            let held = if choice.warm_tokens >= 1.0 {
                format!("holds {:.0} of {:.0} tokens", choice.warm_tokens, self.prompt_tokens)
            } else {
                format!("is cold ({:.0} tokens to compute)", self.prompt_tokens)
            };
            let busy = match choice.in_flight {
                0 => ", idle".to_owned(),
                n => format!(", {n} in flight"),
            };
            let price = if self.priced {
                format!(", {:.1} ms wait + {:.1} ms prefill", choice.wait_s * 1e3, choice.prefill_s * 1e3)
            } else {
                String::new()
            };
            format!("{} {held}{busy}{price}", name(choice.slot))
        };
        let mut text = one(&self.chosen);
        if let Some(next) = &self.runner_up {
            text.push_str("; next best ");
            text.push_str(&one(next));
            let lost = (next.prefill_s - self.chosen.prefill_s) * 1e3;
            if self.priced && lost > 0.05 {
                text.push_str(&format!("; moving there would throw away {lost:.1} ms of prefill"));
            }
        }
        if let Some(warmest) = self.warmest.filter(|w| self.runner_up.is_none_or(|next| next.slot != w.slot)) {
            text.push_str("; warmest ");
            text.push_str(&one(&warmest));
        }
        text
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts, never negative; saturates")]
const fn whole(count: f32) -> u64 {
    count as u64
}

/// Writes the pick into `placement`.
pub(super) fn note(placement: &mut Placement, view: &View, costs: &[f32], pick: Pick, snapshot: &Snapshot) {
    let choice = |place: usize| seen(view, costs, place, snapshot);
    let chosen = choice(pick.best);
    let held = view.warm_tokens[pick.best];
    let most = column::most(&view.warm_tokens, held);
    let warmest = if most > held { view.warm_tokens.iter().position(|warm| *warm >= most) } else { None };
    let again = placement.attempts > 0;
    if let Some(cell) = placement.tried.get_mut(placement.attempts) {
        *cell = chosen.slot;
        placement.attempts += 1;
    }
    let decision = &mut placement.decision;
    decision.candidates = u16::try_from(view.len()).unwrap_or(u16::MAX);
    decision.chosen = chosen;
    decision.runner_up = pick.runner_up.map(choice);
    decision.warmest = warmest.map(choice);
    decision.priced = snapshot.policy.is_priced();
    decision.reason = match () {
        () if again => Reason::Retry,
        () if view.len() == 1 => Reason::Only,
        () if !decision.priced => Reason::Policy,
        () if decision.warmest.is_some() => Reason::Spill,
        () if chosen.warm_tokens >= 1.0 => Reason::Warm,
        () => Reason::Cold,
    };
}

fn seen(view: &View, costs: &[f32], place: usize, snapshot: &Snapshot) -> Choice {
    Choice {
        slot: view.slots[place],
        cost: costs[place],
        warm_tokens: view.warm_tokens[place],
        in_flight: u32::try_from(whole(view.in_flight[place])).unwrap_or(u32::MAX),
        wait_s: crate::policy::wait_s(view, place, snapshot.config.policy.decode_slowdown.as_secs_f32()),
        prefix_wait_s: view.prefix_wait_s[place],
        prefill_s: view.base_s[place]
            + (view.prompt_tokens - view.warm_tokens[place]).max(0.0) * view.prefill_s_per_token[place],
        prompt_tokens: view.prompt_tokens,
    }
}
