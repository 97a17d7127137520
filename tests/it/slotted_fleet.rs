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
    Answered, Decider, Hints, Placement, Shared, SharedConfig, Snapshot, PoolTraits, Underway, Wish,
};
use emberlane::prefix::pending::Awaited;
use emberlane::sim::slots::SlotCache;
use emberlane::sim::workload::{Segment, Source};
use serde_json::json;

use crate::support::root;

const SERVERS: usize = 4;
const SLOTS: u32 = 2;
const CONTEXT: u32 = 8192;
/// Tokens and seconds of the trace to one of ours.
const SCALE: f64 = 40.0;
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

/// A session as it is asked; each segment is a message of words that follow from its id.
fn session(number: usize, script: &emberlane::sim::workload::Script) -> Option<Vec<Call>> {
    let scaled = |tokens: u32| ((f64::from(tokens) / SCALE).round() as u32).max(3);
    let salt = (number as u64) << 40;
    let calls = script.calls.iter().take(TURNS).map(|call| {
        let segments: Vec<Segment> =
            call.prompt.iter().map(|one| Segment { id: one.id ^ salt, tokens: scaled(one.tokens) }).collect();
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
    let fits = calls.iter().all(|call| call.tokens + call.output.tokens < CONTEXT / SLOTS - 8);
    (fits && calls.len() >= 10).then_some(calls)
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

struct Server {
    cache: SlotCache,
    queue: VecDeque<usize>,
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
    fn new(policy: &str, sessions: VecDeque<Vec<Call>>, users: usize, tokens_per_s: f64, seed: u64) -> Self {
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
            slots: Some(SLOTS),
            kv_tokens: Some(u64::from(CONTEXT)),
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
        let server = |_| Server { cache: SlotCache::new(SLOTS, CONTEXT, 0), queue: VecDeque::new() };
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
            self.at(hold.again, Event::Look { request });
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
            let busy = self.servers[server].cache.busy() as f64;
            let live = self.live[request].as_mut().unwrap();
            (live.slot, live.cached) = (grant.slot, grant.cached_tokens);
            let call = &self.users[live.user][live.call];
            let uncached = f64::from(call.tokens - grant.cached_tokens);
            let prefill_s = BASE_S + uncached / self.tokens_per_s * (1.0 + 0.5 * (busy - 1.0));
            let decode_s = f64::from(call.output.tokens) * DECODE_S;
            let noise = 0.9 + 0.2 * self.dice.f64();
            self.after(prefill_s * noise, Event::First { request });
            self.after((prefill_s + decode_s) * noise, Event::End { request });
        }
    }

    fn first(&mut self, request: usize) {
        let live = self.live[request].as_mut().unwrap();
        live.underway.as_mut().unwrap().prefilled(self.now);
        live.placement.as_mut().unwrap().go_on(&self.shared, b"");
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
fn sessions(source: &Source, users: usize, seed: u64) -> VecDeque<Vec<Call>> {
    let Source::Trace(workload) = source else { panic!("not a trace") };
    let mut order: Vec<usize> = (0..workload.scripts.len()).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut order);
    let fitting = (1..).zip(order.iter().cycle()).filter_map(|(number, at)| session(number, &workload.scripts[*at]));
    fitting.take(users * SESSIONS_EACH).collect()
}

/// The mean of `values`, and how far the interval of 95 % reaches from it, of so many that a normal one will do.
fn interval(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    (mean, 2.2 * (variance / count).sqrt())
}

/// Runs with ten seeds.
fn outcomes(source: &Source, policy: &str, users_each: usize, tokens_per_s: f64) -> Vec<Outcome> {
    let one = |seed| {
        let users = users_each * SERVERS;
        Fleet::new(policy, sessions(source, users, seed), users, tokens_per_s, seed).run()
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

/// Engines that are fast and ones that are slow, with as many conversations as slots and with more: from room to spare to
/// saturation.
#[test]
fn more_is_found_cached_and_answers_come_sooner_than_by_who_knows_no_slots() {
    let source = Source::open(root().join("perf/traces/agent_sessions.jsonl.gz").to_str().unwrap()).unwrap();
    for (tokens_per_s, users_each) in [(6000.0, 2), (6000.0, 3), (6000.0, 4), (2000.0, 2), (2000.0, 3), (2000.0, 4)] {
        eprintln!("{tokens_per_s} tokens/s, {users_each} users a server of {SLOTS} slots");
        let own = outcomes(&source, "price", users_each, tokens_per_s);
        show("price", &own);
        let known = mean(&own, |one| 1.0 - one.mispredicted as f64 / one.requests as f64);
        assert!(known > 0.98, "{known} of what is cached was known");
        for policy in ["spill_gate", "sticky", "least_request"] {
            let other = outcomes(&source, policy, users_each, tokens_per_s);
            show(policy, &other);
            let gains = own.iter().zip(&other).map(|(own, other)| own.cached_share - other.cached_share);
            let (gain, reach) = interval(&gains.collect::<Vec<_>>());
            assert!(gain - reach > 0.03, "{policy}: {gain} ± {reach}");
            let (own_s, other_s) = (mean(&own, |one| one.mean_s), mean(&other, |one| one.mean_s));
            assert!(own_s < other_s, "{policy}: {own_s} s, {other_s} s");
        }
    }
}
