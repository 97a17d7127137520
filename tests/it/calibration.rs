//! What the simulator says an engine would do, held against what a real one does.
//!
//! The model of llama.cpp's slots and a real server are given the same prompts, as token ids, one after the other. They
//! must agree on every single one: on the slot it got and on the tokens that were found there.

mod fleet;

use serde_json::{Value, json};

use emberlane::sim::slots::SlotCache;
use emberlane::sim::workload::Segment;

use crate::support::engine::Engine;
use crate::support::http;

const REQUESTS: usize = 150;
const SLOTS: u32 = 3;
const CONTEXT: u32 = 3 * 1024;

/// A conversation so far: its segments, and their tokens.
#[derive(Clone, Debug, Default)]
struct Talk {
    segments: Vec<Segment>,
    tokens: Vec<u32>,
}

impl Talk {
    fn say(&mut self, id: u64, tokens: &[u32]) {
        self.segments.push(Segment { id, tokens: u32::try_from(tokens.len()).unwrap() });
        self.tokens.extend(tokens);
    }
}

/// Prompts that go on, start over, branch off and begin alike, as a seed has it. What an engine said comes back in some.
struct Talks {
    dice: fastrand::Rng,
    talks: Vec<Talk>,
    next_id: u64,
}

impl Talks {
    fn new(seed: u64) -> Self {
        Self { dice: fastrand::Rng::with_seed(seed), talks: vec![Talk::default()], next_id: 1 }
    }

    /// A talk to go on from, with something new said.
    fn ask(&mut self) -> Talk {
        let from = if self.dice.u32(..6) == 0 {
            0
        } else {
            self.dice.usize(self.talks.len().saturating_sub(8)..self.talks.len())
        };
        let mut talk = self.talks[from].clone();
        if talk.tokens.len() > 700 {
            talk = Talk::default();
        }
        let length = if self.dice.bool() { 5..40 } else { 40..300 };
        let length = self.dice.usize(length);
        let mut tokens: Vec<u32> = (0..length).map(|_| self.dice.u32(1500..4000)).collect();
        let id = self.next_id;
        self.next_id += 1;
        tokens[0] = 300 + u32::try_from(id % 1000).unwrap();
        talk.say(id, &tokens);
        talk
    }

    /// Takes up what was said, and what was answered in one of two.
    fn heard(&mut self, mut talk: Talk, output: &[u32]) -> Segment {
        self.talks.push(talk.clone());
        let id = self.next_id;
        self.next_id += 1;
        talk.say(id, output);
        if self.dice.bool() {
            self.talks.push(talk);
        }
        Segment { id, tokens: u32::try_from(output.len()).unwrap() }
    }
}

fn complete(engine: &Engine, prompt: &[u32], output_tokens: u32) -> Value {
    let body = json!({ "prompt": prompt, "n_predict": output_tokens, "return_tokens": true, "ignore_eos": true,
                       "temperature": 0.0 });
    let answer = http::post(engine.address, "/completion", &body.to_string()).unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text());
    answer.json()
}

fn agrees_with_the_engine(seed: u64, host_tokens_max: u64) {
    let flags: &[&str] = if host_tokens_max == 0 { &["--no-host-cache"] } else { &[] };
    let Some(engines) = Engine::llama_with(1, SLOTS as usize, CONTEXT as usize, flags) else { return };
    let mut cache = SlotCache::new(SLOTS, CONTEXT, host_tokens_max);
    let mut talks = Talks::new(seed);
    let (mut asked, mut cached, mut restored) = (0, 0, 0);
    for number in 0..REQUESTS {
        let talk = talks.ask();
        let output_tokens = talks.dice.u32(1..12);
        let grant = cache.admit(&talk.segments).unwrap();
        let answer = complete(&engines[0], &talk.tokens, output_tokens);
        let real = (answer["id_slot"].as_u64().unwrap(), answer["timings"]["cache_n"].as_u64().unwrap());
        let expected = (grant.slot as u64, u64::from(grant.cached_tokens));
        assert_eq!(real, expected, "seed {seed}, request {number}: {:?} {grant:?}", talk.segments);
        asked += talk.tokens.len() as u64;
        cached += real.1;
        restored += grant.restored_tokens;
        let output: Vec<u32> = serde_json::from_value(answer["tokens"].clone()).unwrap();
        let output = talks.heard(talk, &output);
        cache.release(grant.slot, output);
    }
    assert!(cached * 10 > asked && cached * 10 < asked * 9, "too easy: {cached} of {asked} tokens");
    assert_eq!(restored > 0, host_tokens_max > 0, "the host cache is what differs");
}

#[test]
fn the_model_of_slots_agrees_with_the_engine_on_every_request() {
    for seed in 0..3 {
        agrees_with_the_engine(seed, 0);
    }
}

#[test]
fn and_with_one_that_has_a_host_cache() {
    // 8 GiB by default, far more than is sent here.
    for seed in 0..3 {
        agrees_with_the_engine(seed, 8_000_000);
    }
}
