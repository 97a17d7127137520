//! The main job on real engines: four llama.cpp servers, groups of prompts with a long shared prefix, and how many
//! prompt tokens the engines themselves say they took from their caches.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::support::engine::{Engine, urls};
use crate::support::gateway::{Gateway, Setup};
use crate::support::http::{self, Client};
use crate::support::text;
use crate::support::time::wait_for;

const GROUPS: u64 = 12;
const REQUESTS_EACH: u64 = 10;
const AT_ONCE: u64 = 4;
/// Characters of a shared prefix: about 1,500 tokens of the tiny model.
const SHARED_CHARS: usize = 4_750;

/// What a run of requests came to.
#[derive(Debug, Default)]
struct Outcome {
    prompt_tokens: u64,
    cached_tokens: u64,
    answered: u64,
    /// Failures of requests whose answer had not begun.
    failures: Vec<String>,
    /// Streams that broke after they had begun.
    broken: u64,
}

impl Outcome {
    /// Counts one request; how many were answered so far.
    fn add(&mut self, sent: Sent) -> u64 {
        match sent {
            Sent::Whole(usage) => {
                self.prompt_tokens += usage["prompt_tokens"].as_u64().unwrap_or(0);
                self.cached_tokens += usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
                self.answered += 1;
            }
            Sent::Broken => self.broken += 1,
            Sent::Failed(why) => self.failures.push(why),
        }
        self.answered
    }

    #[expect(clippy::cast_precision_loss, reason = "token counts of a test")]
    fn cached_share(&self) -> f64 {
        self.cached_tokens as f64 / self.prompt_tokens as f64
    }
}

/// The requests of all groups, interleaved: each round holds one of every group, in an order given by `seed`. (Two
/// of a group at once, before its prefix was computed, are both computed from the start by these engines, wherever
/// they are sent: such pairs would measure chance and not placement.)
fn requests(seed: u64, stream: bool) -> Vec<String> {
    let shared: Vec<String> = (0..GROUPS).map(|group| text(seed * 1_000 + group, SHARED_CHARS)).collect();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bodies = Vec::new();
    for turn in 0..REQUESTS_EACH {
        let mut round: Vec<u64> = (0..GROUPS).collect();
        random.shuffle(&mut round);
        for group in round {
            let question = text(seed * 1_000_000 + group * 1_000 + turn, 60);
            let mut body = json!({
                "model": "m",
                "max_tokens": 8,
                "stream": stream,
                "messages": [
                    { "role": "system", "content": shared[usize::try_from(group).unwrap()] },
                    { "role": "user", "content": question },
                ],
            });
            if stream {
                body["stream_options"] = json!({ "include_usage": true });
            }
            bodies.push(body.to_string());
        }
    }
    bodies
}

/// Sends every body once, [`AT_ONCE`] at a time; `after_each` is told how many were answered.
fn send_all(address: SocketAddr, bodies: &[String], after_each: impl Fn(u64) + Sync) -> Outcome {
    let next = Mutex::new(bodies.iter());
    let outcome = Mutex::new(Outcome::default());
    let take = || next.lock().next();
    let worker = || {
        while let Some(body) = take() {
            let sent = send_one(address, body);
            let answered = outcome.lock().add(sent);
            after_each(answered);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(worker);
        }
    });
    outcome.into_inner()
}

/// How one request ended.
enum Sent {
    Whole(Value),
    Broken,
    Failed(String),
}

fn send_one(address: SocketAddr, body: &str) -> Sent {
    let headers = [("connection", "close")];
    let head = Client::connect(address).and_then(|mut client| {
        client.send_request("POST", "/v1/chat/completions", &headers, body.as_bytes())?;
        let head = client.read_head()?;
        Ok((client, head))
    });
    let (mut client, head) = match head {
        Ok(begun) => begun,
        Err(error) => return Sent::Failed(error.to_string()),
    };
    let Ok(bytes) = client.read_body(&head) else {
        return if head.status == 200 { Sent::Broken } else { Sent::Failed(format!("{}: cut short", head.status)) };
    };
    if head.status != 200 {
        return Sent::Failed(format!("{}: {}", head.status, String::from_utf8_lossy(&bytes)));
    }
    let usage_of = |text: &str| {
        let value: Value = serde_json::from_str(text).ok()?;
        value["usage"].is_object().then(|| value["usage"].clone())
    };
    let usage = if body.contains("\"stream\":true") {
        http::events(&bytes).iter().rev().find_map(|event| usage_of(event))
    } else {
        usage_of(&String::from_utf8_lossy(&bytes))
    };
    usage.map_or(Sent::Broken, Sent::Whole)
}

#[test]
fn the_engines_see_plain_traffic_as_we_mean_it() {
    let Some(engines) = Engine::llama(1, 4, 16_384) else { return };
    let outcome = send_all(engines[0].address, &requests(7, false)[..24], |_| {});
    assert_eq!(outcome.failures, Vec::<String>::new());
    let mean = outcome.prompt_tokens / outcome.answered;
    assert!((1_350..1_750).contains(&mean), "{mean} tokens a prompt, meant to be about 1,500");
}

/// How often each reason stands in the gateway's record of decisions.
fn reasons(gateway: &Gateway) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for decision in gateway.admin_get("/decisions").json().as_array().into_iter().flatten() {
        *counts.entry(decision["reason"].as_str().unwrap_or("none").to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn most_prompt_tokens_come_from_the_engines_caches() {
    let Some(engines) = Engine::llama(4, 4, 16_384) else { return };
    let gateway = Setup::new(&urls(&engines)).start();
    let bodies = requests(1, false);
    let outcome = send_all(gateway.listen, &bodies, |_| {});
    assert_eq!(outcome.failures, Vec::<String>::new());
    assert_eq!(outcome.answered, GROUPS * REQUESTS_EACH);
    let share = outcome.cached_share();
    eprintln!("cached: {} of {} prompt tokens, {:.1} %", outcome.cached_tokens, outcome.prompt_tokens, share * 100.0);
    eprintln!("reasons: {:?}", reasons(&gateway));
    assert!(share >= 0.84, "only {:.1} % of prompt tokens were cached", share * 100.0);
    gateway.wait_idle();
}

#[test]
fn a_killed_engine_fails_only_streams_that_had_begun() {
    let Some(engines) = Engine::llama(4, 4, 16_384) else { return };
    let gateway = Setup::new(&urls(&engines)).start();
    let engines = Mutex::new(engines);
    let bodies = requests(2, true);
    let outcome = send_all(gateway.listen, &bodies, |answered| {
        if answered == GROUPS * REQUESTS_EACH / 2 {
            engines.lock()[1].process.crash();
        }
    });
    assert_eq!(outcome.failures, Vec::<String>::new());
    assert!(outcome.broken <= AT_ONCE, "{} streams broke", outcome.broken);
    assert_eq!(outcome.answered + outcome.broken, GROUPS * REQUESTS_EACH);
    gateway.wait_idle();
    wait_for("the dead engine to be known", Duration::from_secs(10), || {
        gateway.assert_serves();
        gateway.replicas().iter().filter(|replica| replica["state"] == "healthy").count() == 3
    });
}
