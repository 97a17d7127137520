//! Real llama.cpp servers with fewer slots than conversations: what the gateway says a request will find is what the server
//! says it found, once answers have shown that the server keeps nothing beside its slots; and where it does, in its host's
//! memory, the slots are not what counts.

use serde_json::{Value, json};

use crate::support::engine::{Engine, urls};
use crate::support::gateway::{Gateway, Setup};
use crate::support::http::Client;
use crate::support::text;

const TALKS: usize = 5;
const TURNS: u64 = 60;

/// One request: what it was said to find, what it found, its length, and what it was said to push out.
#[derive(Debug)]
struct Turn {
    warm: f64,
    cached: f64,
    prompt: f64,
    evicted: f64,
    why: String,
}

/// Conversations that go on in an order of chance, one turn at a time, before two servers of two slots.
fn turns(gateway: &Gateway) -> Vec<Turn> {
    let mut dice = fastrand::Rng::with_seed(3);
    let mut talks: Vec<Vec<Value>> = (0..TALKS).map(|_| Vec::new()).collect();
    let mut client = Client::connect(gateway.listen).unwrap();
    let mut turn = |number: u64| {
        let talk = dice.usize(..TALKS);
        if talks[talk].len() > 12 {
            talks[talk].clear();
        }
        talks[talk].push(json!({"role": "user", "content": text(number, 900)}));
        let body = json!({"model": "m", "max_tokens": 3, "messages": talks[talk]}).to_string();
        let headers = [("x-emberlane-explain", "1")];
        let answer = client.exchange("POST", "/v1/chat/completions", &headers, body.as_bytes()).unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let decision: Value = serde_json::from_str(answer.head.header("x-emberlane-decision").unwrap()).unwrap();
        let usage = &answer.json()["usage"];
        Turn {
            warm: decision["chosen"]["warm_tokens"].as_f64().unwrap(),
            cached: usage["prompt_tokens_details"]["cached_tokens"].as_f64().unwrap(),
            prompt: usage["prompt_tokens"].as_f64().unwrap(),
            evicted: decision["chosen"]["evicted_tokens"].as_f64().unwrap(),
            why: decision["why"].as_str().unwrap().to_owned(),
        }
    };
    (0..TURNS).map(&mut turn).collect()
}

/// Turns of which another share was found than was said, by more than a block and the unevenness of text.
fn surprises(turns: &[Turn]) -> Vec<&Turn> {
    turns.iter().filter(|turn| (turn.warm - turn.cached).abs() > 100.0 + 0.15 * turn.prompt).collect()
}

fn known_by(gateway: &Gateway) -> Vec<Value> {
    gateway.replicas().iter().map(|replica| replica["slots_known_by"].clone()).collect()
}

#[test]
fn what_is_in_which_slot_is_known() {
    let Some(engines) = Engine::llama_with(2, 2, 8192, &["--no-host-cache"]) else { return };
    let gateway = Setup::new(&urls(&engines)).yaml("shards: 1").start();
    let turns = turns(&gateway);
    let (early, late) = turns.split_at(turns.len() / 3);
    eprintln!("surprises early: {}, late: {:?}", surprises(early).len(), surprises(late));
    assert!(surprises(late).is_empty());
    assert!(late.iter().any(|turn| turn.cached > 0.0) && late.iter().any(|turn| turn.warm <= 0.0), "{late:?}");
    let told = late.iter().filter(|turn| turn.evicted > 0.0);
    for turn in told.clone() {
        let said = format!("its slot's conversation of {} tokens would be lost", turn.evicted);
        assert!(turn.why.contains(&said), "{}", turn.why);
    }
    assert!(told.count() > 3, "{late:?}");
    assert_eq!(known_by(&gateway), ["book", "book"]);
}

/// The share of all prompt tokens that was found.
fn found(turns: &[Turn]) -> f64 {
    turns.iter().map(|turn| turn.cached).sum::<f64>() / turns.iter().map(|turn| turn.prompt).sum::<f64>()
}

#[test]
fn slots_that_share_one_context_are_slots() {
    // Each slot is said to have all of it, which is more than both use here.
    let Some(engines) = Engine::llama_with(2, 2, 8192, &["--no-host-cache", "--kv-unified"]) else { return };
    let gateway = Setup::new(&urls(&engines)).yaml("shards: 1").start();
    let turns = turns(&gateway);
    let late = &turns[turns.len() / 3..];
    eprintln!("{:.3} found; {:?}; surprises {:?}", found(&turns), known_by(&gateway), surprises(late));
    assert!(surprises(late).len() <= 2, "{:?}", surprises(late));
    assert!(!known_by(&gateway).contains(&json!("index")), "{:?}", known_by(&gateway));
}

#[test]
fn a_host_cache_keeps_more_than_slots_do_and_is_found() {
    let Some(engines) = Engine::llama_with(2, 2, 8192, &[]) else { return };
    let gateway = Setup::new(&urls(&engines)).yaml("shards: 1").start();
    let turns = turns(&gateway);
    let share = found(&turns);
    eprintln!("{share:.3} found; {:?}", known_by(&gateway));
    // Of 12 turns, the last 11 go on.
    assert!(share > 0.7, "{share}");
    assert!(!known_by(&gateway).contains(&json!("book")), "{:?}", known_by(&gateway));
}
