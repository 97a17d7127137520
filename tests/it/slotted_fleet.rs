//! The production gateway before servers with slots, in virtual time: coding-agent sessions, more of them than slots, and
//! what of their prompts the servers find cached under each policy.
//!
//! The servers are the model that agrees with a real one on every request (see `calibration`), the requests are bodies that
//! the gateway reads itself, and what it is told is what the edge tells it. All chance comes from a seed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use emberlane::clock::Now;
use emberlane::config::{Config, PolicyConfig, ReplicaConfig};
use emberlane::fleet::{Discovered, Engine, Registry};
use emberlane::learn::Rates;
use emberlane::parse::Api;
use emberlane::parse::usage::Usage;
use emberlane::pipeline::{
    Answered, Decider, Hints, Hold, Placement, PoolTraits, Shared, SharedConfig, Snapshot, Underway, Wish,
};
use emberlane::prefix::pending::Awaited;
use emberlane::sim::slots::SlotCache;
use emberlane::sim::workload::{Script, Segment, Source, Workload};
use serde_json::json;

use crate::support::root;

const SERVERS: usize = 4;
/// Tokens of one slot.
const SLOT_TOKENS: u32 = 4096;
/// Tokens and seconds of the trace to one of ours.
const SCALE: u32 = 40;
const TIME_SCALE: f64 = 20.0;
const TURNS: usize = 20;
/// Sessions that each user has, on average.
const SESSIONS_EACH: usize = 2;
/// Seconds of an output token, and before the first prompt token.
const DECODE_S: f64 = 0.004;
const BASE_S: f64 = 0.01;

/// A turn of a session.
#[derive(Clone, Debug)]
struct Call {
    body: String,
    segments: Vec<Segment>,
    tokens: u32,
    output: Segment,
    think_s: f64,
}

/// A session as it is asked, if it fits; each segment is a message of words that follow from its id, the first of them the
/// same for all.
fn session(number: usize, script: &Script, system_tokens: u32) -> Option<Vec<Call>> {
    let scaled = |tokens: u32| ((tokens + SCALE / 2) / SCALE).max(3);
    let salt = (number as u64) << 40;
    let calls = script.calls.iter().take(TURNS).map(|call| {
        let mut segments: Vec<Segment> =
            call.prompt.iter().map(|one| Segment { id: one.id ^ salt, tokens: scaled(one.tokens) }).collect();
        segments.insert(0, Segment { id: 1 << 62, tokens: system_tokens });
        let message = |one: &Segment| {
            let mut random = fastrand::Rng::with_seed(one.id);
            // Two tokens are the template's.
            let words = (2..one.tokens).map(|_| format!("{:06x} ", random.u32(..1 << 24)));
            json!({ "role": "user", "content": words.collect::<String>() })
        };
        let messages: Vec<_> = segments.iter().map(message).collect();
        let output = Segment { id: call.output ^ salt, tokens: scaled(call.output_tokens).min(60) };
        Call {
            body: json!({ "model": "m", "stream": true, "messages": messages }).to_string(),
            tokens: segments.iter().map(|one| one.tokens).sum(),
            segments,
            output,
            think_s: f64::from(call.think_s) / TIME_SCALE,
        }
    });
    let calls: Vec<Call> = calls.collect();
    let fits = calls.iter().all(|call| call.tokens + call.output.tokens < SLOT_TOKENS - 8);
    fits.then_some(calls)
}

/// One request on its way.
struct Live {
    user: usize,
    call: usize,
    arrived: Now,
    placement: Option<Placement>,
    underway: Option<Underway>,
    awaited: Option<Awaited>,
    sent: Now,
    tokens_ahead: u64,
    slot: usize,
    cached: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ask {
        user: usize,
    },
    /// A request that is held back looks again, or has waited for long enough.
    Look {
        request: usize,
    },
    First {
        request: usize,
    },
    End {
        request: usize,
    },
}

/// The servers: slots of each, and how fast they are.
#[derive(Clone, Copy, Debug)]
struct Load {
    slots: u32,
    tokens_per_s: f64,
}

struct Server {
    cache: SlotCache,
    queue: VecDeque<usize>,
    /// Requests whose prompts it computes: they share its time.
    prefilling: u32,
}

/// What came of a run.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    cached_share: f64,
    mean_s: f64,
    p90_s: f64,
    total_s: f64,
    held: usize,
    mispredicted: usize,
    requests: usize,
}

struct Fleet {
    tokens_per_s: f64,
    dice: fastrand::Rng,
    now: Now,
    events: BinaryHeap<Reverse<(Now, u64, Event)>>,
    count: u64,
    servers: Vec<Server>,
    shared: Arc<Shared>,
    snapshot: Snapshot,
    decider: Decider,
    sessions: VecDeque<Vec<Call>>,
    users: Vec<Vec<Call>>,
    /// Number of each user's session, and its next call.
    places: Vec<(usize, usize)>,
    started: usize,
    live: Vec<Option<Live>>,
    held: Vec<usize>,
    waiting: Vec<usize>,
    took_s: Vec<f64>,
    cached: u64,
    asked: u64,
    outcome: Outcome,
}

impl Fleet {
    fn new(policy: &str, load: &Load, users: usize, sessions: VecDeque<Vec<Call>>, seed: u64) -> Self {
        let Load { slots, tokens_per_s } = *load;
        let replica = |number: usize| {
            ReplicaConfig::new(format!("r{number}"), format!("http://10.0.0.{number}:80").parse().unwrap())
        };
        let config = Config {
            replicas: (0..SERVERS).map(replica).collect(),
            policy: PolicyConfig::from_spec(policy).unwrap(),
            warm_up: None,
            ..Config::default()
        };
        let said = Discovered {
            models: vec!["m".to_owned()],
            engine: Engine::LlamaCpp,
            slots: Some(slots),
            kv_tokens: Some(u64::from(slots * SLOT_TOKENS)),
            ..Discovered::default()
        };
        let discovered: HashMap<_, _> = (0..SERVERS).map(|number| (format!("r{number}"), said.clone())).collect();
        let prior = Rates::prior(&config.policy);
        let sizes = SharedConfig { slots_max: SERVERS, index_bytes: 8 << 20, hash_key: [7; 32], prior };
        let shared = Shared::new(&sizes).unwrap();
        // Who is new has not been asked yet.
        let mut registry = Registry::new(SERVERS);
        let (_, change) = registry.rebuild(&config.replicas, &[], &HashMap::new(), |_| true).unwrap();
        let (fleet, _) = registry.rebuild(&config.replicas, &[], &discovered, |_| true).unwrap();
        let decider = Decider::new(&config, SERVERS, 0, 1, seed);
        let snapshot = Snapshot::new(config, fleet, &PoolTraits::default());
        shared.apply(&change, &snapshot, Now(0));
        let server =
            |_| Server { cache: SlotCache::new(slots, slots * SLOT_TOKENS, 0), queue: VecDeque::new(), prefilling: 0 };
        Self {
            tokens_per_s,
            dice: fastrand::Rng::with_seed(seed),
            now: Now(1),
            events: BinaryHeap::new(),
            count: 0,
            servers: (0..SERVERS).map(server).collect(),
            shared: Arc::new(shared),
            snapshot,
            decider,
            sessions,
            users: vec![Vec::new(); users],
            places: vec![(0, 0); users],
            started: 0,
            live: Vec::new(),
            held: Vec::new(),
            waiting: Vec::new(),
            took_s: Vec::new(),
            cached: 0,
            asked: 0,
            outcome: Outcome::default(),
        }
    }

    fn run(mut self) -> Outcome {
        (0..self.users.len()).for_each(|user| self.next_session(user));
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            self.now = now;
            match event {
                Event::Ask { user } => self.ask(user),
                Event::Look { request } => self.look(request),
                Event::First { request } => self.first(request),
                Event::End { request } => self.end(request),
            }
        }
        self.took_s.sort_by(f64::total_cmp);
        Outcome {
            cached_share: self.cached as f64 / self.asked as f64,
            mean_s: self.took_s.iter().sum::<f64>() / self.took_s.len() as f64,
            p90_s: self.took_s[self.took_s.len() * 9 / 10],
            total_s: self.now.seconds_since(Now(1)),
            requests: self.took_s.len(),
            ..self.outcome
        }
    }

    fn after(&mut self, seconds: f64, event: Event) {
        self.at(self.now.plus(Duration::from_secs_f64(seconds)), event);
    }

    fn at(&mut self, at: Now, event: Event) {
        self.count += 1;
        self.events.push(Reverse((at, self.count, event)));
    }

    fn next_session(&mut self, user: usize) {
        if let Some(calls) = self.sessions.pop_front() {
            self.places[user] = (self.started, 0);
            self.started += 1;
            let think_s = calls[0].think_s;
            self.users[user] = calls;
            self.after(think_s, Event::Ask { user });
        }
    }

    fn call(&self, live: &Live) -> &Call {
        &self.users[live.user][live.call]
    }

    fn ask(&mut self, user: usize) {
        let (session, call) = self.places[user];
        let name = format!("session {session}");
        let hints = Hints { session: Some(&name), wish: Wish::default() };
        let body = self.users[user][call].body.as_bytes();
        let placement =
            self.decider.decide(&self.shared, &self.snapshot, Api::ChatCompletions, body, hints, self.now).unwrap();
        let request = self.live.len();
        self.live.push(Some(Live {
            user,
            call,
            arrived: self.now,
            placement: Some(placement),
            underway: None,
            awaited: None,
            sent: self.now,
            tokens_ahead: 0,
            slot: 0,
            cached: 0,
        }));
        self.outcome.held += usize::from(!self.go(request));
    }

    /// Forwards a request that has been placed, unless it is held back.
    fn go(&mut self, request: usize) -> bool {
        let live = self.live[request].as_mut().unwrap();
        let placement = live.placement.as_ref().unwrap();
        if let Some(hold) = placement.hold() {
            self.held.push(request);
            let Hold::Slot { again } = hold else { panic!("{hold:?}") };
            self.at(again, Event::Look { request });
            return false;
        }
        let mut underway = Underway::begin(&self.shared, &self.snapshot, placement, self.now);
        live.awaited = underway.take_awaited();
        live.underway = Some(underway);
        match live.awaited.as_ref().map(|awaited| awaited.until) {
            Some(until) => {
                self.waiting.push(request);
                self.at(until, Event::Look { request });
            }
            None => self.send(request),
        }
        true
    }

    fn look(&mut self, request: usize) {
        if let Some(at) = self.held.iter().position(|held| *held == request) {
            self.held.remove(at);
            let placement = self.live[request].as_mut().unwrap().placement.as_mut().unwrap();
            self.decider.look_again(&self.shared, &self.snapshot, placement, self.now).unwrap();
            self.go(request);
        } else if let Some(at) = self.waiting.iter().position(|waiting| *waiting == request) {
            self.waiting.remove(at);
            self.send(request);
        }
    }

    fn send(&mut self, request: usize) {
        let live = self.live[request].as_mut().unwrap();
        let placement = live.placement.as_ref().unwrap();
        let replica = placement.decision.chosen.slot;
        live.underway.as_mut().unwrap().sent(&self.shared, placement, self.now);
        (live.sent, live.tokens_ahead) = (self.now, self.shared.load.prefill_tokens(replica));
        self.servers[replica.index()].queue.push_back(request);
        self.serve(replica.index());
    }

    /// Gives the requests in a server's queue slots, as long as there are any.
    fn serve(&mut self, server: usize) {
        while let Some(&request) = self.servers[server].queue.front() {
            let segments = self.call(self.live[request].as_ref().unwrap()).segments.clone();
            let Some(grant) = self.servers[server].cache.admit(&segments) else { return };
            self.servers[server].queue.pop_front();
            self.servers[server].prefilling += 1;
            let sharing = f64::from(self.servers[server].prefilling);
            let live = self.live[request].as_mut().unwrap();
            (live.slot, live.cached) = (grant.slot, grant.cached_tokens);
            let call = &self.users[live.user][live.call];
            let uncached = f64::from(call.tokens - grant.cached_tokens);
            let prefill_s = BASE_S + uncached / self.tokens_per_s * (1.0 + 0.5 * (sharing - 1.0));
            let decode_s = f64::from(call.output.tokens) * DECODE_S;
            let noise = 0.9 + 0.2 * self.dice.f64();
            self.after(prefill_s * noise, Event::First { request });
            self.after((prefill_s + decode_s) * noise, Event::End { request });
        }
    }

    fn first(&mut self, request: usize) {
        let live = self.live[request].as_mut().unwrap();
        live.underway.as_mut().unwrap().prefilled(self.now);
        let server = live.placement.as_ref().unwrap().decision.chosen.slot.index();
        self.servers[server].prefilling -= 1;
    }

    fn end(&mut self, request: usize) {
        let mut live = self.live[request].take().unwrap();
        let call = self.users[live.user][live.call].clone();
        let placement = live.placement.take().unwrap();
        let server = placement.decision.chosen.slot.index();
        self.servers[server].cache.release(live.slot, call.output);
        let mut underway = live.underway.take().unwrap();
        underway.ended(self.now);
        drop(underway);
        self.serve(server);
        self.shared.confirm(&placement);
        let (prompt_tokens, cached_tokens) = (u64::from(call.tokens), u64::from(live.cached));
        let usage = Usage {
            prompt_tokens: Some(prompt_tokens),
            cached_tokens: Some(cached_tokens),
            output_tokens: Some(u64::from(call.output.tokens)),
        };
        let total_s = self.now.seconds_since(live.sent);
        let answered = Answered {
            tokens_ahead: live.tokens_ahead,
            held_s: live.sent.seconds_since(placement.placed_at()),
            first_token_s: Some(total_s - f64::from(call.output.tokens) * DECODE_S),
            total_s,
            usage,
            is_followed: false,
        };
        self.shared.learn(&self.snapshot, &placement, &answered, true);
        let off = f64::from(placement.decision.chosen.warm_tokens) - f64::from(live.cached);
        self.outcome.mispredicted += usize::from(off.abs() > 0.1 * f64::from(call.tokens));
        self.decider.recycle(placement);
        (self.cached, self.asked) = (self.cached + cached_tokens, self.asked + prompt_tokens);
        self.took_s.push(self.now.seconds_since(live.arrived));
        self.wake();
        self.go_on(live.user);
    }

    /// A slot has become free: those who wait for one look.
    fn wake(&mut self) {
        for request in self.held.clone() {
            self.look(request);
        }
        let is_over = |request: &usize| {
            let awaited = self.live[*request].as_ref().and_then(|live| live.awaited.as_ref());
            awaited.is_none_or(|awaited| awaited.ticket.is_over())
        };
        let released: Vec<usize> = self.waiting.iter().copied().filter(is_over).collect();
        released.into_iter().for_each(|request| self.look(request));
    }

    fn go_on(&mut self, user: usize) {
        self.places[user].1 += 1;
        match self.users[user].get(self.places[user].1) {
            Some(next) => self.after(next.think_s, Event::Ask { user }),
            None => self.next_session(user),
        }
    }
}

/// As many sessions of the trace as `users` have.
fn sessions(workload: &Workload, users: usize, system_tokens: u32, seed: u64) -> VecDeque<Vec<Call>> {
    let mut order: Vec<usize> = (0..workload.scripts.len()).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut order);
    let fitting = (1..)
        .zip(order.iter().cycle())
        .filter_map(|(number, at)| session(number, &workload.scripts[*at], system_tokens));
    fitting.filter(|calls| calls.len() >= 10).take(users * SESSIONS_EACH).collect()
}

/// A part of a trace of requests that come at their own times, so many a second.
fn timed(workload: &Workload, count: usize, requests_per_s: f64, seed: u64) -> VecDeque<Vec<Call>> {
    let first = fastrand::Rng::with_seed(seed).usize(..workload.scripts.len() - count);
    let part = &workload.scripts[first..first + count];
    let (start_s, end_s) = (part[0].at_s, part[count - 1].at_s);
    let speed = requests_per_s * (end_s - start_s) / count as f64;
    let at = |script: &Script| {
        let mut calls = session(0, script, 3)?;
        calls[0].think_s = (script.at_s - start_s) / speed;
        Some(calls)
    };
    part.iter().filter_map(at).collect()
}

fn trace(name: &str) -> Workload {
    match Source::open(root().join("perf/traces").join(name).to_str().unwrap()).unwrap() {
        Source::Trace(workload) => workload,
        Source::Generator(_) => panic!("{name} is no trace"),
    }
}

/// The mean of `values`, and how far the interval of 95 % reaches from it, of so many that a normal one will do.
fn interval(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    (mean, 2.2 * (variance / count).sqrt())
}

/// Runs with ten seeds, each with the sessions of so many users.
fn outcomes(policy: &str, load: &Load, sessions: impl Fn(u64) -> (usize, VecDeque<Vec<Call>>)) -> Vec<Outcome> {
    let one = |seed| {
        let (users, sessions) = sessions(seed);
        Fleet::new(policy, load, users, sessions, seed).run()
    };
    (0..10).map(one).collect()
}

fn mean(outcomes: &[Outcome], what: impl Fn(&Outcome) -> f64) -> f64 {
    outcomes.iter().map(what).sum::<f64>() / outcomes.len() as f64
}

fn show(policy: &str, outcomes: &[Outcome]) {
    let mean = |what: fn(&Outcome) -> f64| mean(outcomes, what);
    eprintln!(
        "  {policy:14} {:.3} cached, {:.3} s mean, {:.3} s p90, {:.0} s in all, {:.0} held back, {:.0} of {:.0} mispredicted",
        mean(|one| one.cached_share),
        mean(|one| one.mean_s),
        mean(|one| one.p90_s),
        mean(|one| one.total_s),
        mean(|one| one.held as f64),
        mean(|one| one.mispredicted as f64),
        mean(|one| one.requests as f64),
    );
}

/// The figures of `price` less those of each other policy: what is found cached more (a share of all prompts), with the
/// interval that holds it, and seconds that an answer takes.
struct Gain {
    policy: &'static str,
    cached: f64,
    reach: f64,
    seconds: f64,
}

/// Plays the sessions of ten seeds under each policy, and shows what came of it. What is cached must be known.
fn gains(load: &Load, sessions: impl Fn(u64) -> (usize, VecDeque<Vec<Call>>)) -> Vec<Gain> {
    eprintln!("{load:?}");
    let own = outcomes("price", load, &sessions);
    show("price", &own);
    let against = |policy| {
        let other = outcomes(policy, load, &sessions);
        show(policy, &other);
        let cached: Vec<f64> =
            own.iter().zip(&other).map(|(own, other)| own.cached_share - other.cached_share).collect();
        let (cached, reach) = interval(&cached);
        let seconds = mean(&own, |one| one.mean_s) - mean(&other, |one| one.mean_s);
        eprintln!("    price less that: {cached:+.3} ± {reach:.3}, {seconds:+.3} s");
        Gain { policy, cached, reach, seconds }
    };
    let gains = ["spill_gate", "sticky", "least_request"].map(against).into();
    let known = mean(&own, |one| 1.0 - one.mispredicted as f64 / one.requests as f64);
    assert!(known > 0.9, "{known} of what is cached was known");
    gains
}

/// Engines that are fast and ones that are slow, with as many conversations as slots and with more: from room to spare to
/// saturation.
#[test]
fn more_is_found_cached_and_answers_come_sooner_than_by_who_knows_no_slots() {
    let workload = trace("agent_sessions.jsonl.gz");
    for (tokens_per_s, users_each) in [(6000.0, 2), (6000.0, 4), (2000.0, 3), (2000.0, 4)] {
        let users = users_each * SERVERS;
        let load = Load { slots: 2, tokens_per_s };
        for gain in gains(&load, |seed| (users, sessions(&workload, users, 3, seed))) {
            let Gain { policy, cached, reach, seconds } = gain;
            assert!(cached - reach > 0.03, "{policy}, {users_each} users each: {cached} ± {reach}");
            assert!(seconds < 0.0, "{policy}: {seconds} s");
        }
    }
}

/// Whoever shares a tenth of a prompt takes that slot, be others empty or not.
#[test]
fn and_where_all_begin_with_the_same_system_prompt() {
    let workload = trace("agent_sessions.jsonl.gz");
    let (users, load) = (3 * SERVERS, Load { slots: 2, tokens_per_s: 3000.0 });
    for gain in gains(&load, |seed| (users, sessions(&workload, users, 400, seed))) {
        let Gain { policy, cached, reach, seconds } = gain;
        assert!(cached - reach > 0.03 && seconds < 0.0, "{policy}: {cached} ± {reach}, {seconds} s");
    }
}

/// Conversations of many people, most of whom ask once: what there is to find is in slots that were last used some hundred
/// requests ago, and who follows prefixes finds as much as who knows slots.
#[test]
fn and_no_less_of_requests_that_come_at_their_own_times() {
    let workload = trace("mooncake_conversation.jsonl.gz");
    let load = Load { slots: 64, tokens_per_s: 6000.0 };
    let requests = |seed| {
        let requests = timed(&workload, 1200, 10.0, seed);
        (requests.len(), requests)
    };
    for Gain { policy, cached, reach, .. } in gains(&load, requests) {
        let least = if policy == "spill_gate" { -0.02 } else { 0.03 };
        assert!(cached - reach > least, "{policy}: {cached} ± {reach}");
    }
}
