//! Predictions against engines that follow the published model, in virtual time, seen as a gateway sees them: what it has
//! in flight is exact, how much of a prompt is cached is nearly right.

mod engine;

use super::super::{Member, Rates};
use super::*;
use crate::clock::Now;
use crate::learn::Band;
use crate::load::backlog::{Backlogs, Cache, Prompt, Task, Work};
use engine::{Engine, Event, LLAMA_8B, LLAMA_70B, Model};
use std::collections::HashMap;
use std::sync::Arc;

const PRIOR: Rates = Rates { base_s: 0.02, prefill_s_per_token: 1.25e-4, decode_s_per_token: 0.01 };

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Traffic {
    /// Coding sessions: prompts of 78,000 tokens, 96 % of them cached.
    Agents,
    /// Conversations of short turns.
    Chat,
    /// The same, and one in ten a long prompt.
    BurstyChat,
    /// One prompt, over and over.
    Constant,
}

/// The next request of a session.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    cached: f64,
    new: f64,
    output: f64,
    left: u32,
}

#[derive(Debug)]
struct Sent {
    at: f64,
    replica: usize,
    turn: Turn,
    work: Work,
    features: Features,
    predicted: Prediction,
    ttft_s: f64,
}

/// What came of one request: predicted and actual seconds.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    replica: usize,
    predicted: Prediction,
    ttft_s: f64,
    tpot_s: Option<f64>,
}

/// A gateway, its replicas, and their clients.
struct World {
    engines: Vec<Engine>,
    rates: LearnedRates,
    backlogs: Arc<Backlogs>,
    traffic: Traffic,
    /// When each session's next request is due, its replica, and the request.
    due: Vec<(f64, usize, Turn)>,
    sent: HashMap<usize, Sent>,
    in_flight: Vec<f32>,
    /// Prompt tokens in flight.
    context: Vec<f32>,
    ids: usize,
    rng: fastrand::Rng,
}

fn log_normal(rng: &mut fastrand::Rng, median: f64, deviation: f64) -> f64 {
    let normal: f64 = (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0;
    (median * (normal * deviation).exp()).round().max(2.0)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "times and tokens of a test")]
const fn whole(value: f64) -> u64 {
    value as u64
}

fn now(seconds: f64) -> Now {
    Now(whole(seconds * 1e9))
}

impl World {
    /// `models.len()` replicas of one pool, with `sessions` clients each.
    fn new(models: &[Model], traffic: Traffic, sessions: usize) -> Self {
        let rates = LearnedRates::new(16, PRIOR);
        let member = |slot| Member { slot, pool: "m", prefill_tokens_per_s: None };
        let members: Vec<_> = (0..16).filter_map(ReplicaSlot::from_index).map(member).collect();
        rates.assign(&members);
        let mut world = Self {
            engines: (0..).zip(models).map(|(seed, model)| Engine::new(*model, seed)).collect(),
            rates,
            backlogs: Arc::new(Backlogs::new(16)),
            traffic,
            due: Vec::new(),
            sent: HashMap::new(),
            in_flight: vec![0.0; models.len()],
            context: vec![0.0; models.len()],
            ids: 0,
            rng: fastrand::Rng::with_seed(17),
        };
        for session in 0..sessions * models.len() {
            let turn = world.turn_after(Turn::default());
            world.due.push((world.rng.f64() * 20.0, session % models.len(), turn));
        }
        world
    }

    /// A session's request after `last`.
    fn turn_after(&mut self, last: Turn) -> Turn {
        let rng = &mut self.rng;
        let cached = if last.left > 0 { last.cached + last.new + last.output } else { 0.0 };
        let left = last.left.checked_sub(1);
        match self.traffic {
            Traffic::Agents => Turn {
                cached,
                new: if left.is_some() { log_normal(rng, 900.0, 0.9) } else { log_normal(rng, 55_000.0, 0.3) },
                output: log_normal(rng, 250.0, 0.8),
                left: left.unwrap_or_else(|| rng.u32(30..50)),
            },
            Traffic::Chat | Traffic::BurstyChat => {
                let is_long = self.traffic == Traffic::BurstyChat && rng.f64() < 0.1;
                let new = if is_long { 8000.0 + (8000.0 * rng.f64()).round() } else { log_normal(rng, 400.0, 0.9) };
                let output = log_normal(rng, 150.0, 0.7);
                Turn { cached, new, output, left: left.unwrap_or_else(|| rng.u32(1..12)) }
            }
            Traffic::Constant => Turn { cached: 0.0, new: 2000.0, output: 100.0, left: 0 },
        }
    }

    /// The features of `turn` at `replica`, as a gateway knows them.
    fn features(&mut self, replica: usize, turn: Turn, at: f64) -> Features {
        // Blocks are whole, and bytes are not tokens.
        let uncached = turn.new * (1.0 + 0.06 * (self.rng.f64() - 0.5)) + 64.0 * self.rng.f64();
        let slot = ReplicaSlot::from_index(replica).unwrap();
        let pace = self.rates.coefficients(slot).pace();
        let prompt = Prompt { new: narrow(uncached), cached: narrow(turn.cached) };
        let backlog = self.backlogs.read(slot, (&pace, &Cache::default()), prompt, now(at));
        Features {
            uncached_tokens: prompt.new,
            cached_tokens: prompt.cached,
            ahead_s: backlog.ahead_s,
            room_tokens: backlog.room_tokens,
            step_s: backlog.step_s,
            band: match () {
                () if backlog.prefills > 0 => Band::Queued,
                () if backlog.step_s > 0.0 => Band::Decoding,
                () => Band::Idle,
            },
            requests: self.in_flight[replica],
            context_tokens: self.context[replica] + backlog.generated_tokens,
            prefill_share: backlog.prefill_share,
            ..Features::default()
        }
    }

    fn send(&mut self, at: f64, replica: usize, turn: Turn) {
        let slot = ReplicaSlot::from_index(replica).unwrap();
        let coefficients = self.rates.coefficients(slot);
        let features = self.features(replica, turn, at);
        let predicted = coefficients.predict(&features);
        let Features { uncached_tokens: new_tokens, cached_tokens, .. } = features;
        let task = Task { new_tokens, cached_tokens, sent: now(at) };
        let work = Work::start(&self.backlogs, slot, &task, &coefficients.pace(), now(at));
        self.in_flight[replica] += 1.0;
        self.context[replica] += narrow(turn.new + turn.cached);
        self.engines[replica].send(self.ids, at, (turn.new, turn.cached), turn.output);
        self.sent.insert(self.ids, Sent { at, replica, turn, work, features, predicted, ttft_s: 0.0 });
        self.ids += 1;
    }

    fn end(&mut self, id: usize, at: f64, tpot_s: f64) -> Outcome {
        let Sent { at: sent_at, replica, turn, mut work, features, predicted, ttft_s } = self.sent.remove(&id).unwrap();
        work.ended();
        self.in_flight[replica] -= 1.0;
        self.context[replica] -= narrow(turn.new + turn.cached);
        let timing = Timing {
            first_token_s: ttft_s,
            total_s: ttft_s + tpot_s * (turn.output - 1.0),
            output_tokens: Some(whole(turn.output)),
            prompt: Some((whole(turn.new + turn.cached), whole(turn.cached))),
            is_followed: work.followers() > 0,
            ended_at: now(at),
        };
        self.rates.learn_times(ReplicaSlot::from_index(replica).unwrap(), &features, &predicted, &timing);
        assert!(at > sent_at);
        let think = -(1.0 - self.rng.f64()).ln() * if self.traffic == Traffic::Agents { 12.0 } else { 5.0 };
        let next = self.turn_after(turn);
        self.due.push((at + think, replica, next));
        Outcome { replica, predicted, ttft_s, tpot_s: (turn.output >= 8.0).then_some(tpot_s) }
    }

    fn hear(&mut self, event: Event, at: f64) -> Option<Outcome> {
        match event {
            Event::First { id } => {
                let sent = self.sent.get_mut(&id).unwrap();
                sent.work.prefilled(now(at));
                sent.ttft_s = at - sent.at;
                None
            }
            Event::Token { id } => {
                let step = self.sent.get_mut(&id).unwrap().work.token(now(at));
                step.into_iter().for_each(|step| self.rates.learn_step(self.sent[&id].work.slot(), &step));
                None
            }
            Event::Last { id, tpot_s } => Some(self.end(id, at, tpot_s)),
        }
    }

    /// Goes on until `count` requests have ended.
    fn run(&mut self, count: usize) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        while outcomes.len() < count {
            let due = (0..self.due.len()).min_by(|a, b| self.due[*a].0.total_cmp(&self.due[*b].0));
            let busy = (0..self.engines.len()).filter_map(|place| Some((self.engines[place].next()?, place)));
            let busy = busy.min_by(|a, b| a.0.total_cmp(&b.0));
            match (due, busy) {
                (Some(due), busy) if busy.is_none_or(|(at, _)| self.due[due].0 <= at) => {
                    let (at, replica, turn) = self.due.swap_remove(due);
                    self.send(at, replica, turn);
                }
                (_, Some((at, replica))) => {
                    for event in self.engines[replica].advance() {
                        outcomes.extend(self.hear(event, at));
                    }
                }
                (_, None) => unreachable!("sessions never end"),
            }
        }
        outcomes
    }
}

/// Mean relative error of the TTFT's median and of the TPOT's, and the shares within their ninetieth percentiles.
fn accuracy<'o>(outcomes: impl IntoIterator<Item = &'o Outcome>) -> [f64; 4] {
    let (mut ttft, mut tpot) = (Vec::new(), Vec::new());
    for outcome in outcomes {
        let Prediction { ttft_p50_s, ttft_p90_s, tpot_p50_s, tpot_p90_s } = outcome.predicted;
        ttft.push((ttft_p50_s, ttft_p90_s, outcome.ttft_s));
        tpot.extend(outcome.tpot_s.map(|tpot_s| (tpot_p50_s, tpot_p90_s, tpot_s)));
    }
    let mean = |of: &[(f32, f32, f64)], value: fn(&(f32, f32, f64)) -> f64| {
        of.iter().map(value).sum::<f64>() / of.len() as f64
    };
    let error = |times: &(f32, f32, f64)| (f64::from(times.0) / times.2 - 1.0).abs();
    let is_covered = |times: &(f32, f32, f64)| if times.2 <= f64::from(times.1) { 1.0 } else { 0.0 };
    [mean(&ttft, error), mean(&tpot, error), mean(&ttft, is_covered), mean(&tpot, is_covered)]
}

#[test]
fn times_are_predicted_within_a_tenth_and_nine_in_ten_are_within_the_p90() {
    for (traffic, model, sessions, tpot_error) in [
        (Traffic::Agents, LLAMA_8B, 3, 0.15),
        (Traffic::Agents, LLAMA_8B, 6, 0.2),
        (Traffic::Agents, LLAMA_70B, 4, 0.2),
        (Traffic::Chat, LLAMA_8B, 30, 0.1),
        (Traffic::Chat, LLAMA_70B, 20, 0.15),
        (Traffic::BurstyChat, LLAMA_8B, 20, 0.2),
    ] {
        let mut world = World::new(&[model; 2], traffic, sessions);
        world.run(1000);
        let [ttft, tpot, ttft_covered, tpot_covered] = accuracy(&world.run(4000));
        let told = format!("{traffic:?} {sessions}: {ttft:.3} {tpot:.3} {ttft_covered:.3} {tpot_covered:.3}");
        assert!(ttft <= 0.1 && tpot <= tpot_error, "{told}");
        assert!((0.88..=0.92).contains(&ttft_covered) && (0.88..=0.92).contains(&tpot_covered), "{told}");
    }
}

#[test]
fn a_replica_that_slows_down_or_recovers_is_predicted_again_within_two_hundred_answers() {
    for (traffic, sessions) in [(Traffic::Agents, 4), (Traffic::Chat, 30), (Traffic::Constant, 8)] {
        for slowed in [1, 2] {
            let mut world = World::new(&[LLAMA_8B; 2], traffic, sessions);
            let before = accuracy(&world.run(3000))[0];
            for slowness in [2.0, 1.0] {
                world.engines[..slowed].iter_mut().for_each(|engine| engine.slowness = slowness);
                let mut after = Vec::new();
                while after.len() < 300 {
                    let outcomes = world.run(1);
                    after.extend(outcomes.into_iter().filter(|outcome| outcome.replica == 0));
                }
                let recovered = accuracy(&after[200..])[0];
                let told = format!("{traffic:?} x{slowness} of {slowed}: {before:.3} before, {recovered:.3} after");
                assert!(recovered <= 0.12, "{told}");
                world.run(2000);
            }
        }
    }
}

#[test]
fn a_newcomer_is_predicted_as_its_pool_and_an_unlike_one_as_itself() {
    let mut world = World::new(&[LLAMA_8B, LLAMA_8B, LLAMA_8B, LLAMA_70B], Traffic::Agents, 3);
    world.due.retain(|(_, replica, _)| *replica < 2);
    world.run(1500);
    // Two more join; the first is like the others, the second is not.
    let started = world.due.iter().map(|(at, ..)| *at).fold(f64::MAX, f64::min);
    for replica in [2, 2, 2, 3, 3, 3] {
        let turn = world.turn_after(Turn::default());
        world.due.push((started, replica, turn));
    }
    let outcomes = world.run(600);
    let of = |outcomes: &[Outcome], replica| -> Vec<Outcome> {
        outcomes.iter().filter(|outcome| outcome.replica == replica).copied().collect()
    };
    let first = accuracy(&of(&outcomes, 2)[..20])[0];
    assert!(first < 0.12, "{first} from the first answer on");
    world.run(2000);
    let outcomes = world.run(2000);
    for replica in 0..4 {
        let [ttft, ..] = accuracy(&of(&outcomes, replica));
        assert!(ttft < 0.1, "{replica}: {ttft}");
    }
    let of = |slot| world.rates.coefficients(ReplicaSlot(slot));
    assert_eq!((of(0), of(1)), (of(2), of(2)), "replicas that are alike tie");
    assert!(of(3).token_s > 2.0 * of(0).token_s);
}

#[test]
fn before_the_first_answer_predictions_are_those_of_the_prior() {
    let world = World::new(&[LLAMA_8B], Traffic::Chat, 1);
    let idle = Features { uncached_tokens: 8000.0, ..Features::default() };
    let said = world.rates.coefficients(ReplicaSlot(0)).predict(&idle);
    assert!(!world.rates.is_predictable(ReplicaSlot(0)));
    assert!((said.ttft_p50_s - 1.02).abs() < 1e-3 && (said.ttft_p90_s - 2.04).abs() < 1e-3, "{said:?}");
    assert!((said.tpot_p50_s - 0.01).abs() < 0.002, "{said:?}");
    assert_eq!(world.rates.coefficients(ReplicaSlot(99)), Coefficients::default());
}

#[test]
fn traffic_that_never_varies_leaves_predictions_of_other_requests_sane() {
    let mut world = World::new(&[LLAMA_8B], Traffic::Constant, 4);
    world.run(20_000);
    let coefficients = world.rates.coefficients(ReplicaSlot(0));
    let idle = Features { uncached_tokens: 2000.0, ..Features::default() };
    let same = coefficients.predict(&idle).ttft_p50_s;
    assert!((0.05..0.08).contains(&same), "{same}");
    let other = coefficients.predict(&Features { uncached_tokens: 8000.0, ..idle }).ttft_p50_s;
    assert!((0.08..0.8).contains(&other), "{other}");
}

#[test]
fn coefficients_stay_finite_and_none_is_negative_whatever_is_told() {
    type Told = ([f32; 6], bool, [f64; 2], Option<(u64, u64)>);
    bolero::check!().with_type::<Vec<Told>>().for_each(|answers| {
        let rates = LearnedRates::new(1, PRIOR);
        let slot = ReplicaSlot(0);
        for ([uncached, cached, ahead, requests, context, share], is_decoding, [first, total], prompt) in answers {
            for scale in [f32::INFINITY, 1e6] {
                let bounded = |value: &f32| if scale.is_finite() { value.abs() % scale } else { *value };
                let features = Features {
                    uncached_tokens: bounded(uncached),
                    cached_tokens: bounded(cached),
                    ahead_s: bounded(ahead),
                    step_s: if *is_decoding { 0.01 } else { 0.0 },
                    band: if *is_decoding { Band::Decoding } else { Band::Queued },
                    requests: bounded(requests),
                    context_tokens: bounded(context),
                    prefill_share: bounded(share),
                    ..Features::default()
                };
                let predicted = rates.coefficients(slot).predict(&features);
                let timing = Timing {
                    first_token_s: first.abs() % 4000.0,
                    total_s: *total,
                    output_tokens: Some(100),
                    prompt: *prompt,
                    is_followed: *is_decoding && first > total,
                    ended_at: Now(0),
                };
                rates.learn_times(slot, &features, &predicted, &timing);
                rates.learn_times(slot, &features, &predicted, &Timing { first_token_s: *first, ..timing });
                let now = rates.coefficients(slot);
                let Prediction { ttft_p50_s, ttft_p90_s, tpot_p50_s, tpot_p90_s } =
                    now.predict(&Features { uncached_tokens: 1000.0, cached_tokens: 5e4, ..Features::default() });
                let sane = 0.0..1e12_f32;
                assert!([ttft_p50_s, ttft_p90_s, tpot_p50_s, tpot_p90_s].iter().all(|s| sane.contains(s)), "{now:?}");
                assert!(ttft_p90_s >= ttft_p50_s && tpot_p90_s >= tpot_p50_s, "{now:?}");
            }
        }
        let [(_, accuracy)] = &rates.accuracy()[..] else { return };
        assert!((0.0..=100.0).contains(&accuracy.ttft_mape) && (0.0..=1.0).contains(&accuracy.ttft_p90_covered));
    });
}
