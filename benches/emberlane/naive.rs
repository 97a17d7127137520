//! The whole decision as gateways commonly make it: a tree of JSON values, the prompt's text put together, an xxh64 chain
//! over 64-byte blocks, a map behind a lock, a list of structs scored and sorted. Buffers are reused; nothing is done
//! twice; nothing is left out that is needed to decide.

use std::collections::VecDeque;

use serde_json::Value;
use xxhash_rust::xxh64::xxh64;

use crate::rival::{LockedMap, xxh64_chain};

/// Bytes in a block, as in llm-d.
pub(crate) const BLOCK_BYTES: usize = 64;
/// Requests in flight at each replica, on average.
const IN_FLIGHT: usize = 2;
/// Weights of the prefix, the queue and the KV usage: llm-d's.
const WEIGHTS: [f64; 3] = [3.0, 2.0, 2.0];

/// What is known of a replica.
struct Replica {
    healthy: bool,
    in_flight: u32,
    slots: u32,
    kv_usage: f64,
}

/// A replica with its score.
#[derive(Clone, Copy)]
struct Scored {
    replica: u16,
    warm: f64,
    score: f64,
}

/// One such gateway.
pub(crate) struct Naive {
    map: LockedMap,
    replicas: Vec<Replica>,
    text: String,
    chain: Vec<u64>,
    depths: Vec<u32>,
    scored: Vec<Scored>,
    flying: VecDeque<u16>,
}

impl Naive {
    /// A gateway before `replicas` idle and cold replicas.
    pub(crate) fn new(replicas: usize) -> Self {
        let replica = || Replica { healthy: true, in_flight: 0, slots: 256, kv_usage: 0.5 };
        Self {
            map: LockedMap::default(),
            replicas: (0..replicas).map(|_| replica()).collect(),
            text: String::new(),
            chain: Vec::new(),
            depths: vec![0; replicas],
            scored: Vec::new(),
            flying: VecDeque::new(),
        }
    }

    /// Notes that `replica` holds `blocks` random ones.
    pub(crate) fn fill(&self, replica: u16, blocks: usize, random: &mut fastrand::Rng) {
        self.map.record(replica, (0..blocks).map(|_| random.u64(..)));
    }

    /// One request: decided, put on record and in flight; the one longest in flight ends. Returns the share of the
    /// prompt's blocks that the chosen replica held.
    pub(crate) fn serve(&mut self, body: &[u8]) -> f64 {
        let best = self.consider(body);
        self.map.record(best.replica, self.chain.iter().copied());
        self.fly(best.replica);
        best.warm
    }

    /// As [`Naive::serve`], for a request that has no prompt to look at.
    pub(crate) fn serve_blind(&mut self) {
        self.depths.fill(0);
        let best = self.score();
        self.fly(best.replica);
    }

    /// The share that [`Naive::serve`] would find if nothing were in flight; leaves no trace.
    pub(crate) fn consider_idle(&mut self, body: &[u8]) -> f64 {
        self.flying.clear();
        self.replicas.iter_mut().for_each(|replica| replica.in_flight = 0);
        self.consider(body).warm
    }

    fn consider(&mut self, body: &[u8]) -> Scored {
        let request: Value = serde_json::from_slice(body).unwrap();
        let model = request["model"].as_str().unwrap();
        self.text.clear();
        prompt_text(&request, &mut self.text);
        xxh64_chain(xxh64(model.as_bytes(), 0), self.text.as_bytes(), BLOCK_BYTES, &mut self.chain);
        self.map.lookup(self.chain.iter().copied(), &mut self.depths);
        self.score()
    }

    /// Scores every replica and sorts; the first wins.
    fn score(&mut self) -> Scored {
        let busiest = self.replicas.iter().map(|replica| replica.in_flight).max().unwrap_or(0).max(1);
        let blocks = self.chain.len().max(1) as f64;
        self.scored.clear();
        for (replica, (number, depth)) in self.replicas.iter().zip((0..).zip(&self.depths)) {
            if !replica.healthy || replica.in_flight >= replica.slots {
                continue;
            }
            let warm = f64::from(*depth) / blocks;
            let queue = 1.0 - f64::from(replica.in_flight) / f64::from(busiest);
            let score = WEIGHTS[0] * warm + WEIGHTS[1] * queue + WEIGHTS[2] * (1.0 - replica.kv_usage);
            self.scored.push(Scored { replica: number, warm, score });
        }
        self.scored.sort_unstable_by(|a, b| b.score.total_cmp(&a.score));
        self.scored[0]
    }

    fn fly(&mut self, replica: u16) {
        self.replicas[usize::from(replica)].in_flight += 1;
        self.flying.push_back(replica);
        if self.flying.len() > IN_FLIGHT * self.replicas.len()
            && let Some(ended) = self.flying.pop_front()
        {
            self.replicas[usize::from(ended)].in_flight -= 1;
        }
    }
}

/// Tools, then each message's role and text.
fn prompt_text(request: &Value, text: &mut String) {
    if let Some(tools) = request.get("tools") {
        text.push_str(&tools.to_string());
    }
    for message in request["messages"].as_array().into_iter().flatten() {
        text.push_str(message["role"].as_str().unwrap_or_default());
        text.push('\n');
        match &message["content"] {
            Value::String(content) => text.push_str(content),
            Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).for_each(|t| text.push_str(t)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {}
        }
        text.push('\n');
    }
}
