//! What a decision paid and why: plain data, and its words for people.

use super::Placement;
use super::candidates::{Known, Seen, meets};
use super::objective::Bound;
use super::warming::Side;
use crate::clock::Now;
use crate::id::{DecisionId, PoolId, ReplicaSlot};
use crate::learn::{Features, Prediction};
use crate::load::columns::{Freshness, Word};
use crate::parse::Api;
use crate::policy::slo::{Objective, Standing};
use crate::policy::{Pick, View};
use std::time::Duration;

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
    /// Nobody holds any of the prompt, and the replica warms up: its share of such requests.
    WarmUp,
    /// Others hold more of the prompt, but waiting there costs more.
    Spill,
    /// The policy does not look at prices.
    Policy,
    /// The replica tried before failed.
    Retry,
    /// The policy's pick would be too late for the request's objectives; this one is not.
    Slo,
    /// All would be too late for the request's objectives: the least late.
    SloLate,
}

impl Reason {
    /// Name in `/decisions`, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Only => "only",
            Self::Warm => "warm",
            Self::Cold => "cold",
            Self::WarmUp => "warm_up",
            Self::Spill => "spill",
            Self::Policy => "policy",
            Self::Retry => "retry",
            Self::Slo => "slo",
            Self::SloLate => "slo_late",
        }
    }

    /// All of them, for metrics.
    pub const ALL: [Self; 9] = [
        Self::Only,
        Self::Warm,
        Self::Cold,
        Self::WarmUp,
        Self::Spill,
        Self::Policy,
        Self::Retry,
        Self::Slo,
        Self::SloLate,
    ];
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
    /// Of these, the ones it has to restore from host memory.
    pub restore_tokens: f32,
    /// Requests the gateway has in flight there.
    pub in_flight: u32,
    /// Requests of others there, as far as they were heard of and believed.
    pub elsewhere: u32,
    /// When, and from whom, its load was last heard; `None`: never. Where it is not stale, the price rests on it.
    pub load: Option<Word>,
    /// Expected seconds before the prompt's own prefill.
    pub wait_s: f32,
    /// Of these, until the slot that holds the prompt is free.
    pub prefix_wait_s: f32,
    /// Tokens of another conversation that would be pushed out of the slot it would be given.
    pub evicted_tokens: f32,
    /// Expected seconds that computing these again takes, by how likely they are asked for.
    pub eviction_s: f32,
    /// Expected seconds of the prompt's own prefill there, restoring what is in host memory included.
    pub prefill_s: f32,
    /// Expected seconds to compute again what the prompt pushes out of its cache and somebody will ask for.
    pub pushed_out_s: f32,
    /// Times predicted from what was learned of it.
    pub predicted: Prediction,
    prompt_tokens: f32,
}

impl Choice {
    /// The age of the load it was priced by; `None` when that is the gateway's own in-flight work alone.
    #[must_use]
    pub fn load_age(&self) -> Option<Duration> {
        self.load.filter(|word| word.freshness() != Freshness::Stale).map(|word| word.age)
    }

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
    /// Seconds it was held back before, for a place that costs others less.
    pub held_s: f32,
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
    /// How it stands to the request's objectives, where it has any.
    pub bound: Option<Bound>,
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
            held_s: 0.0,
            candidates: 0,
            chosen: Choice {
                slot: ReplicaSlot(0),
                cost: 0.0,
                warm_tokens: 0.0,
                restore_tokens: 0.0,
                in_flight: 0,
                elsewhere: 0,
                load: None,
                wait_s: 0.0,
                prefix_wait_s: 0.0,
                evicted_tokens: 0.0,
                eviction_s: 0.0,
                prefill_s: 0.0,
                pushed_out_s: 0.0,
                predicted: Prediction::default(),
                prompt_tokens,
            },
            runner_up: None,
            warmest: None,
            reason: Reason::Cold,
            priced: false,
            bound: None,
        }
    }

    /// Tokens of the prompt, whole ones.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped at zero; saturates")]
    pub const fn whole_prompt_tokens(&self) -> u64 {
        self.prompt_tokens.max(0.0) as u64
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
            let held = if choice.restore_tokens >= 1.0 {
                let Choice { warm_tokens: warm, restore_tokens: host, .. } = choice;
                format!("holds {warm:.0} of {:.0} tokens, {host:.0} of them in host memory", self.prompt_tokens)
            } else if choice.warm_tokens >= 1.0 {
                format!("holds {:.0} of {:.0} tokens", choice.warm_tokens, self.prompt_tokens)
            } else {
                format!("is cold ({:.0} tokens to compute)", self.prompt_tokens)
            };
            let busy = match (choice.in_flight, choice.elsewhere) {
                (0, 0) => ", idle".to_owned(),
                (own, 0) => format!(", {own} in flight"),
                (own, others) => format!(", {own} in flight and {others} of others"),
            };
            let busy = busy + &choice.load.map_or_else(String::new, |word| format!(" ({})", in_words(&word)));
            let price = if self.priced {
                format!(", {:.1} ms wait + {:.1} ms prefill", choice.wait_s * 1e3, choice.prefill_s * 1e3)
            } else {
                String::new()
            };
            let lost = if self.priced && choice.eviction_s > 0.0 {
                let Choice { evicted_tokens, eviction_s, .. } = choice;
                format!(
                    ", its slot's conversation of {evicted_tokens:.0} tokens would be lost: {:.1} ms",
                    eviction_s * 1e3
                )
            } else {
                String::new()
            };
            let pushed = if self.priced && choice.pushed_out_s >= 5e-5 {
                format!(", pushing out what takes {:.1} ms to compute again", choice.pushed_out_s * 1e3)
            } else {
                String::new()
            };
            format!("{} {held}{busy}{price}{lost}{pushed}", name(choice.slot))
        };
        let mut text = one(&self.chosen);
        if self.held_s > 0.0 {
            text.push_str(&format!(
                "; waited {:.1} ms at the gateway for a place that costs others less",
                self.held_s * 1e3
            ));
        }
        if self.reason == Reason::WarmUp {
            text.push_str("; cold everywhere, and it warms up: its share of such requests");
        }
        if let Some(bound) = &self.bound {
            text.push_str(&objectives_in_words(bound, &self.chosen.predicted));
        }
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

/// How a decision stands to the request's objectives, in plain words.
fn objectives_in_words(bound: &Bound, predicted: &Prediction) -> String {
    let one = |name: &str, wanted_s: Option<f32>, p50_s: f32, p90_s: f32| {
        wanted_s.map_or_else(String::new, |wanted_s| {
            let ms = [p50_s, p90_s, wanted_s].map(|seconds| seconds * 1e3);
            format!("; {name} predicted {:.1} ms, 9 in 10 within {:.1} ms, wanted within {:.1} ms", ms[0], ms[1], ms[2])
        })
    };
    let mut text = one("TTFT", bound.slo.ttft_s, predicted.ttft_p50_s, predicted.ttft_p90_s);
    text.push_str(&one("TPOT", bound.slo.tpot_s, predicted.tpot_p50_s, predicted.tpot_p90_s));
    text.push_str(match bound.standing {
        Standing::Met if bound.is_moved => ": the cheapest would be too late",
        Standing::Met => "",
        Standing::Late(late) if late.objective == Objective::Ttft => ": all are late, its TTFT the least",
        Standing::Late(_) => ": all are late, its TPOT the least",
    });
    text
}

/// Which load was used, in plain words.
fn in_words(word: &Word) -> String {
    let age = match word.age {
        age if age < Duration::from_secs(1) => format!("{} ms", age.as_millis()),
        age => format!("{:.0} s", age.as_secs_f64()),
    };
    let source = word.source.as_str();
    match word.freshness() {
        Freshness::Fresh => format!("load {age} old by {source}"),
        Freshness::Fading => format!("load {age} old by {source}, late: believed by {:.0} %", word.weight * 100.0),
        Freshness::Stale | Freshness::Never => format!("no fresh word for {age}: priced by own in-flight"),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts, never negative; saturates")]
const fn whole(count: f32) -> u64 {
    count as u64
}

/// Writes the pick into `placement`.
pub(super) fn note(
    placement: &mut Placement,
    seen: Seen<'_>,
    costs: &[f32],
    pick: Pick,
    bound: Option<Bound>,
    known: Known<'_>,
) {
    let view = seen.view;
    placement.placed_at = known.now;
    placement.features = meets(view, pick.best, known, known.now);
    let choice = |place: usize| one(seen, costs, place, &meets(view, place, known, known.now), known);
    let chosen = one(seen, costs, pick.best, &placement.features, known);
    let held = view.warm_tokens[pick.best];
    let warmer =
        view.warm.iter().filter(|place| view.barred.binary_search(place).is_err()).map(|place| usize::from(*place));
    let warmest = warmer.filter(|place| view.warm_tokens[*place] > held).reduce(|most, place| {
        // Of equals, the one that comes first.
        let is_more = (view.warm_tokens[place], most) > (view.warm_tokens[most], place);
        if is_more { place } else { most }
    });
    let again = placement.attempts > 0;
    if let Some(cell) = placement.tried.get_mut(placement.attempts) {
        *cell = chosen.slot;
        placement.attempts += 1;
    }
    let decision = &mut placement.decision;
    decision.candidates = u16::try_from(seen.candidates).unwrap_or(u16::MAX);
    decision.chosen = chosen;
    decision.runner_up = pick.runner_up.map(choice);
    decision.warmest = warmest.map(choice);
    decision.priced = known.snapshot.policy.is_priced();
    decision.bound = bound;
    let is_late = bound.is_some_and(|bound| matches!(bound.standing, Standing::Late(_)));
    decision.reason = match () {
        () if again => Reason::Retry,
        () if is_late => Reason::SloLate,
        () if bound.is_some_and(|bound| bound.is_moved) => Reason::Slo,
        () if seen.candidates == 1 => Reason::Only,
        () if seen.side == Some(Side::Warming) => Reason::WarmUp,
        () if !decision.priced => Reason::Policy,
        () if decision.warmest.is_some() => Reason::Spill,
        () if chosen.warm_tokens >= 1.0 => Reason::Warm,
        () => Reason::Cold,
    };
}

/// The request will be held at the gateway first, until what it reuses has been computed: `expected`, if at all; or until
/// the slot that holds it is free.
pub(super) fn hold(placement: &mut Placement, view: &View, place: usize, expected: Option<Now>, known: Known<'_>) {
    let slot_wait = Duration::from_secs_f32(view.prefix_wait_s[place].clamp(0.0, 3600.0));
    let until = expected.unwrap_or(known.now).max(known.now.plus(slot_wait));
    if until > known.now {
        placement.features = meets(view, place, known, until);
        placement.features.hold(until.since(known.now).as_secs_f32());
        placement.decision.chosen.predicted = view.latency.learned(place).predict(&placement.features);
    }
}

/// The candidate at `place`, where the request meets `features`.
fn one(seen: Seen<'_>, costs: &[f32], place: usize, features: &Features, known: Known<'_>) -> Choice {
    let view = seen.view;
    let (warm, uncached) = (view.warm_tokens[place], view.uncached_tokens(place));
    let own = view.in_flight[place] - view.elsewhere[place];
    let count = |requests: f32| u32::try_from(whole(requests.round())).unwrap_or(u32::MAX);
    Choice {
        slot: view.slots[place],
        cost: costs[place],
        warm_tokens: view.warm_tokens[place],
        in_flight: count(own),
        elsewhere: count(view.elsewhere[place]),
        load: known.reports.word(view.slots[place], known.now),
        wait_s: view.latency.ahead_s(place).max(view.prefix_wait_s[place]),
        prefix_wait_s: view.prefix_wait_s[place],
        restore_tokens: view.restore_tokens[place],
        evicted_tokens: view.evicted_tokens[place],
        eviction_s: view.eviction_s[place],
        prefill_s: view.base_s[place]
            + crate::policy::restore_s(view, place)
            + view.latency.prefill_s(place, uncached, warm),
        pushed_out_s: view.latency.prefill_s(place, uncached, warm) * view.pushed_out.share(place, uncached),
        predicted: view.latency.learned(place).predict(features),
        prompt_tokens: view.prompt_tokens,
    }
}
