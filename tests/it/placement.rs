//! Where requests go: each policy spreads as its name says, a prefix stays where it is warm, and a burst with one new
//! prefix computes it once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use crate::support::backend::Backend;
use crate::support::engine::{Engine, urls};
use crate::support::gateway::{Gateway, Setup};
use crate::support::http::Client;
use crate::support::time::wait_for;
use crate::support::{chat, chat_with_system, text};

const PATH: &str = "/v1/chat/completions";

fn fleet(count: usize, policy: &'static str) -> (Vec<Backend>, Gateway) {
    let backends: Vec<Backend> = (0..count).map(|_| Backend::completing()).collect();
    let urls: Vec<String> = backends.iter().map(Backend::url).collect();
    let gateway = Setup::new(&urls).policy(policy).yaml("shards: 2").start();
    (backends, gateway)
}

/// Sends a request on a connection of its own, and so to any shard; the replica that answered.
#[track_caller]
fn replica_of(gateway: &Gateway, headers: &[(&str, &str)], body: &str) -> String {
    let answer = Client::connect(gateway.listen).unwrap().exchange("POST", PATH, headers, body.as_bytes()).unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text());
    answer.head.header("x-emberlane-replica").expect("no replica named").to_owned()
}

#[test]
fn round_robin_takes_turns_over_all_shards() {
    let (backends, gateway) = fleet(4, "round_robin");
    for turn in 0..40 {
        replica_of(&gateway, &[], &chat(&text(turn, 500)));
    }
    assert_eq!(backends.iter().map(Backend::posts).collect::<Vec<_>>(), [10; 4]);
}

#[test]
fn policies_that_look_at_load_or_at_nothing_reach_all_replicas() {
    for policy in ["least_request", "power_of_two", "random", "price", "weighted"] {
        let (backends, gateway) = fleet(3, policy);
        let prompts = 45;
        for turn in 0..prompts {
            replica_of(&gateway, &[], &chat(&text(1_000 + turn, 2_000)));
        }
        let posts: Vec<usize> = backends.iter().map(Backend::posts).collect();
        assert!(posts.iter().all(|count| *count >= 4), "{policy}: {posts:?} of {prompts}");
        let told = gateway.decisions()[0]["policy"].clone();
        assert_eq!(told, policy);
    }
}

#[test]
fn sticky_keeps_a_session_where_it_is() {
    let (backends, gateway) = fleet(4, "sticky");
    let mut homes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for turn in 0..48_u64 {
        let session = format!("session-{}", turn % 12);
        let replica = replica_of(&gateway, &[("x-session-id", &session)], &chat(&text(turn, 1_000)));
        homes.entry(session).or_default().insert(replica);
    }
    assert!(homes.values().all(|replicas| replicas.len() == 1), "{homes:?}");
    let used = backends.iter().filter(|backend| backend.posts() > 0).count();
    assert!(used >= 2, "12 sessions, one replica: {homes:?}");
}

#[test]
fn a_cached_prefix_is_used_where_it_is() {
    for policy in ["price", "weighted"] {
        let (_backends, gateway) = fleet(4, policy);
        let send = |group: u64, turn: u64| {
            let body = chat_with_system(&text(group, 8_000), &text(100 + turn, 200), false);
            replica_of(&gateway, &[], &body)
        };
        let homes: Vec<String> = (0..6).map(|group| send(group, 0)).collect();
        for turn in 1..6 {
            for (group, home) in (0..6).zip(&homes) {
                assert_eq!(&send(group, turn), home, "{policy}: group {group} left its cache in turn {turn}");
            }
        }
        let spread: BTreeSet<&String> = homes.iter().collect();
        assert!(spread.len() >= 2, "{policy}: six cold prefixes all went to {spread:?}");
    }
}

#[test]
fn a_retried_request_says_so() {
    let turn = std::sync::atomic::AtomicUsize::new(0);
    let failing = Backend::start(move |exchange| match turn.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 | 1 => exchange.json(503, "{}"),
        _ => exchange.completion(),
    });
    let healthy = Backend::completing();
    let gateway = Setup::new(&[failing.url(), healthy.url()])
        .policy("round_robin")
        .yaml("ejection:\n  consecutive_failures: 1000")
        .start();
    let mut reasons = Vec::new();
    for turn in 0..8 {
        let before = failing.posts();
        let mut client = Client::connect(gateway.listen).unwrap();
        let headers = [("x-emberlane-explain", "1")];
        let answer = client.exchange("POST", PATH, &headers, chat(&text(turn, 500)).as_bytes()).unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let decision: Value = serde_json::from_str(answer.head.header("x-emberlane-decision").unwrap()).unwrap();
        assert_eq!(decision["chosen"]["replica"].as_str(), answer.head.header("x-emberlane-replica"));
        let is_retried = (before..2).contains(&(failing.posts().wrapping_sub(1)));
        assert_eq!(decision["reason"], if is_retried { "retry" } else { "policy" }, "{decision}");
        reasons.push(is_retried);
    }
    assert_eq!(reasons.iter().filter(|retried| **retried).count(), 2, "{reasons:?}");
}

/// Eight streams with one new prefix, to two engines that take half a second to compute it. It is computed once, and
/// those that come second wait for that.
#[test]
fn a_burst_computes_its_prefix_once() {
    const PREFIX_TOKENS: usize = 2_000;
    let engines = Engine::mocks(2, &["--prefill-tokens-per-s", "4000", "--decode-step-ms", "1"]);
    let gateway = Setup::new(&urls(&engines)).start();
    let system = text(42, PREFIX_TOKENS * 4);
    let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(gateway.listen).unwrap()).collect();
    for (turn, client) in (0..).zip(&mut clients) {
        let body = chat_with_system(&system, &text(turn, 80), true);
        client.send_request("POST", PATH, &[], body.as_bytes()).unwrap();
        if turn == 0 {
            wait_for("the first to be placed", Duration::from_secs(2), || gateway.in_flight() > 0);
        }
    }
    for client in &mut clients {
        let answer = client.read_answer().unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    wait_for("all to be on record", Duration::from_secs(2), || gateway.decisions().len() == 8);
    let decisions = gateway.decisions();
    let told: Vec<String> = decisions.iter().map(|one| format!("{} {}", one["reason"], one["why"])).collect();
    let sum = |name: &str| engines.iter().map(|engine| engine.stat(name)).sum::<u64>();
    let computed = usize::try_from(sum("prompt_tokens") - sum("cached_tokens")).unwrap();
    assert!(computed >= PREFIX_TOKENS, "{computed} tokens cannot be all");
    assert!(
        computed * 10 <= PREFIX_TOKENS * 13,
        "{computed} tokens computed for a prefix of {PREFIX_TOKENS}:\n{}",
        told.join("\n")
    );
    let held = |decision: &&Value| decision["outcome"]["held_ms"].as_f64().is_some_and(|held| held > 0.0);
    let waited = decisions.iter().filter(held).count();
    assert!(waited >= 4, "{waited} of 8 waited for the first:\n{}", told.join("\n"));
}
