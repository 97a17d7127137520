//! A gateway's state as it is after a while at work: a fleet whose caches are full of other conversations, requests in
//! flight, and chats that come back with more in them. For benches and tests.

use std::{collections::VecDeque, sync::Arc};

use emberlane::{
    clock::Now,
    config::{Config, ReplicaConfig},
    fleet::Registry,
    id::{BlockHash, ReplicaSlot},
    learn::Rates,
    load::Flight,
    load::report::{LoadReport, LoadSource},
    load::ring::{Publisher, rings},
    parse::Api,
    pipeline::{Decider, Decision, Hints, Placement, PoolTraits, Shared, SharedConfig, Snapshot},
};

use crate::bodies::chat;

/// What the bodies ask for.
const MODEL: &str = "meta-llama/Llama-3.3-70B-Instruct";
/// Memory of the prefix index, bytes.
const INDEX_BYTES: usize = 64 << 20;
/// Requests in flight at each replica, on average.
const IN_FLIGHT: usize = 2;
/// One in so many requests in flight waits for its first token; the others have it.
const PREFILLING: usize = 8;
/// Nanoseconds between two requests.
const BETWEEN_NS: u64 = 100_000;
/// Bytes rewritten to make a chat a new one.
const MARK: usize = 16;

/// Reports that wait for a shard, at most.
const REPORTS_MAX: usize = 1024;
/// Nanoseconds between two reports of a replica: a hundred a second.
const REPORT_NS: u64 = 10_000_000;

/// One gateway.
pub(crate) struct World {
    shared: Arc<Shared>,
    snapshot: Snapshot,
    decider: Decider,
    flying: VecDeque<(Flight, Placement)>,
    flying_max: usize,
    now: Now,
    publisher: Publisher,
    /// Whose report is next, and reports that are due.
    reports: (usize, u64),
}

impl World {
    /// A gateway before `replicas` idle and cold replicas of one model.
    pub(crate) fn new(replicas: usize) -> Self {
        let replica = |number: usize| ReplicaConfig {
            models: vec![MODEL.to_owned()],
            ..ReplicaConfig::new(
                format!("replica-{number}"),
                format!("http://10.0.{}.{}:8000", number / 250, number % 250).parse().unwrap(),
            )
        };
        let config = Config { replicas: (0..replicas).map(replica).collect(), ..Config::default() };
        let (fleet, change) =
            Registry::new(replicas).rebuild(&config.replicas, &[], &Default::default(), |_| true).unwrap();
        let prior = Rates { base_s: 0.01, prefill_s_per_token: 1.25e-4, decode_s_per_token: 0.01 };
        let sizes = SharedConfig { slots_max: replicas, index_bytes: INDEX_BYTES, hash_key: [7; 32], prior };
        let shared = Shared::new(&sizes).unwrap();
        let mut decider = Decider::new(&config, replicas, 0, 1, 1);
        let (mut publishers, inboxes) = rings(1, 1, REPORTS_MAX);
        inboxes.into_iter().for_each(|inbox| decider.attach(inbox));
        let snapshot = Snapshot::new(config, fleet, &PoolTraits::default());
        shared.apply(&change, &snapshot, Now(0));
        let flying_max = IN_FLIGHT * replicas;
        let flying = VecDeque::with_capacity(flying_max + 1);
        let publisher = publishers.remove(0);
        Self {
            shared: Arc::new(shared),
            snapshot,
            decider,
            flying,
            flying_max,
            now: Now(1),
            publisher,
            reports: (0, 0),
        }
    }

    /// Replicas behind it.
    pub(crate) const fn replicas(&self) -> usize {
        self.flying_max / IN_FLIGHT
    }

    /// Notes that `replica` holds `blocks` random ones.
    pub(crate) fn fill(&self, replica: u16, blocks: usize, random: &mut fastrand::Rng) {
        let chain: Vec<_> = (0..blocks).map(|_| BlockHash(random.u64(..))).collect();
        self.shared.index.record(ReplicaSlot(replica), &chain);
    }

    /// One request, as the proxy takes it: decided, put on record and in flight; the one longest in flight ends.
    pub(crate) fn serve(&mut self, body: &[u8]) -> Decision {
        self.now.0 += BETWEEN_NS;
        let Self { shared, snapshot, decider, now, .. } = self;
        let placed = decider.decide(shared, snapshot, Api::ChatCompletions, body, Hints::default(), *now).unwrap();
        self.fly(placed)
    }

    /// As [`World::serve`], for a request that has no prompt to look at.
    pub(crate) fn serve_blind(&mut self) -> Decision {
        self.now.0 += BETWEEN_NS;
        let placed = self.decider.place_blind(&self.shared, &self.snapshot, self.now).unwrap();
        self.fly(placed)
    }

    /// What [`World::serve`] would decide if nothing were in flight; leaves no trace.
    pub(crate) fn consider_idle(&mut self, body: &[u8]) -> Decision {
        self.flying.clear();
        let Self { shared, snapshot, decider, now, .. } = self;
        let placed = decider.consider(shared, snapshot, Api::ChatCompletions, body, Hints::default(), *now).unwrap();
        let decision = placed.decision;
        decider.recycle(placed);
        decision
    }

    /// What replicas have said since the last request, at a hundred reports a second each, waits for the next decision.
    /// Each says that others have a few requests there, another number of them every time.
    pub(crate) fn report(&mut self) {
        let (next, due) = &mut self.reports;
        *due += BETWEEN_NS * (self.flying_max / IN_FLIGHT) as u64;
        while *due >= REPORT_NS {
            *due -= REPORT_NS;
            *next = (*next + 1) % (self.flying_max / IN_FLIGHT);
            let slot = ReplicaSlot::from_index(*next).unwrap();
            let own = self.shared.load.read(slot);
            let others = u32::try_from((self.now.0 / BETWEEN_NS + *next as u64) % 3).unwrap();
            self.publisher.publish(LoadReport {
                slot,
                source: LoadSource::Beacon,
                received: self.now,
                period_us: 10_000,
                running: own.requests + others,
                waiting: 0,
                own_in_flight: own.requests,
                prefill_tokens: Some(256 * others),
                own_prefill_tokens: 0,
                kv_usage: Some(0.5),
            });
        }
    }

    fn fly(&mut self, placed: Placement) -> Decision {
        let decision = placed.decision;
        let flight = Flight::start(
            &self.shared.load,
            decision.chosen.slot,
            decision.chosen.uncached_tokens(),
            decision.whole_prompt_tokens(),
            self.now,
        );
        self.flying.push_back((flight, placed));
        let prefilled = self.flying.len().checked_sub(self.flying_max / PREFILLING + 1);
        if let Some((flight, _)) = prefilled.and_then(|place| self.flying.get_mut(place)) {
            flight.prefilled();
        }
        if self.flying.len() > self.flying_max
            && let Some((_, ended)) = self.flying.pop_front()
        {
            self.decider.recycle(ended);
        }
        decision
    }
}

/// Chats of one size that come back: every other request repeats one as it was, one in four has a new last turn, and one
/// in four parts after the system prompt.
pub(crate) struct Chats {
    bodies: Vec<Vec<u8>>,
    /// Where each may be made new: after the system prompt, and in the last turn.
    marks: Vec<[usize; 2]>,
}

impl Chats {
    /// `count` chats of about `bytes` bytes each.
    pub(crate) fn new(count: usize, bytes: usize) -> Self {
        let bodies: Vec<_> = (0..count as u64).map(|seed| chat(bytes, seed)).collect();
        let marks = bodies.iter().map(|body| marks(body)).collect();
        Self { bodies, marks }
    }

    /// The chats as they were made.
    pub(crate) fn originals(&self) -> &[Vec<u8>] {
        &self.bodies
    }

    /// The body of request `number`. Ask for them in order; the last ones, fewer than there are chats, can be had again.
    pub(crate) fn request(&mut self, number: usize) -> &[u8] {
        let place = number % self.bodies.len();
        let round = number / self.bodies.len() + place;
        let at = match round % 4 {
            0 => self.marks[place][0],
            1 => self.marks[place][1],
            _ => return &self.bodies[place],
        };
        let hex = b"0123456789abcdef";
        for (digit, byte) in self.bodies[place][at..at + MARK].iter_mut().enumerate() {
            *byte = hex[number >> (4 * digit) & 15];
        }
        &self.bodies[place]
    }
}

/// Two places where [`MARK`] plain bytes of a user's text stand: in the first user's turn and in the last.
fn marks(body: &[u8]) -> [usize; 2] {
    let text = str::from_utf8(body).unwrap();
    let is_plain = |window: &[u8]| window.iter().all(|byte| byte.is_ascii_lowercase() || *byte == b' ');
    [text.find(r#"{"role":"user""#), text.rfind(r#"{"role":"user""#)].map(|turn| {
        let from = turn.unwrap();
        from + body[from..].windows(MARK).position(is_plain).unwrap()
    })
}
