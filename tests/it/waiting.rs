//! Requests that wait at the gateway while all replicas have prompts to compute: they go when one has time, they are told
//! when it takes too long or too many wait, and nothing is left of those that leave.

use std::time::Duration;

use crate::support::engine::{Engine, urls};
use crate::support::gateway::{Gateway, Setup};
use crate::support::http::Client;
use crate::support::time::wait_for;
use crate::support::{chat_with_system, text};

const PATH: &str = "/v1/chat/completions";
/// A second of each engine.
const PROMPT_TOKENS: usize = 4_000;
/// Two engines have one prompt each and another before them; of the others each waits.
const REQUESTS: u64 = 10;

fn fleet(yaml: &str) -> (Vec<Engine>, Gateway) {
    let engines = Engine::mocks(2, &["--prefill-tokens-per-s", "4000", "--decode-step-ms", "1"]);
    let gateway = Setup::new(&urls(&engines)).yaml(&format!("shards: 1\n{yaml}")).start();
    (engines, gateway)
}

/// As many clients, each of which has sent a long prompt of its own.
fn ask(gateway: &Gateway) -> Vec<Client> {
    let client = |number: u64| {
        let mut client = Client::connect(gateway.listen).unwrap();
        let body = chat_with_system(&text(900 + number, PROMPT_TOKENS * 4), "go on", true);
        client.send_request("POST", PATH, &[], body.as_bytes()).unwrap();
        client
    };
    (0..REQUESTS).map(client).collect()
}

fn waiting(gateway: &Gateway) -> u64 {
    let metrics = gateway.admin_get("/metrics").text();
    let lines = metrics.lines().filter(|line| line.starts_with("emberlane_waiting_requests{"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[test]
fn long_prompts_wait_while_engines_are_busy_and_all_are_answered() {
    let (_engines, gateway) = fleet("");
    let mut clients = ask(&gateway);
    wait_for("some to wait", Duration::from_secs(2), || waiting(&gateway) >= 2);
    for client in &mut clients {
        let answer = client.read_answer().unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    wait_for("all to be on record", Duration::from_secs(2), || gateway.decisions().len() == clients.len());
    let decisions = gateway.decisions();
    let why: Vec<&str> = decisions.iter().filter_map(|one| one["why"].as_str()).collect();
    assert!(why.iter().filter(|why| why.contains("ms at the gateway")).count() >= 2, "{why:#?}");
    assert_eq!(waiting(&gateway), 0);
    assert!(gateway.admin_get("/metrics").text().contains("emberlane_admission_wait_seconds_count"));
}

#[test]
fn a_line_that_is_full_and_a_wait_that_is_too_long_are_said_with_when_to_come_again() {
    for (yaml, code) in [("limits: {waiting: 1}", "line_full"), ("timeouts: {wait: 200ms}", "waited_too_long")] {
        let (_engines, gateway) = fleet(yaml);
        let answers: Vec<_> = ask(&gateway).iter_mut().map(|client| client.read_answer().unwrap()).collect();
        let (answered, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status() == 200);
        assert!(answered.len() >= 3 && refused.len() >= 2, "{yaml}: {} of {REQUESTS}", answered.len());
        for answer in refused {
            assert_eq!(answer.status(), 429, "{}", answer.text());
            assert_eq!(answer.json()["error"]["code"], code, "{}", answer.text());
            assert_eq!(answer.head.header("retry-after"), Some("10"));
        }
    }
}

#[test]
fn who_leaves_while_waiting_leaves_nothing_behind() {
    let (_engines, gateway) = fleet("");
    let clients = ask(&gateway);
    wait_for("some to wait", Duration::from_secs(2), || waiting(&gateway) >= 2);
    clients.into_iter().for_each(Client::leave);
    wait_for("nobody to wait", Duration::from_secs(2), || waiting(&gateway) == 0);
    gateway.wait_idle();
    gateway.assert_serves();
}

#[test]
fn with_waiting_off_all_are_sent_at_once() {
    let (_engines, gateway) = fleet("policy: {wait: false}");
    let clients = ask(&gateway);
    wait_for("all to be sent", Duration::from_secs(2), || gateway.in_flight() == REQUESTS);
    assert_eq!(waiting(&gateway), 0);
    clients.into_iter().for_each(Client::leave);
}

#[test]
fn replicas_that_join_meanwhile_take_some_of_those_who_wait() {
    let engines = Engine::mocks(3, &["--prefill-tokens-per-s", "4000", "--decode-step-ms", "1"]);
    let urls = urls(&engines);
    let gateway = Setup::new(&urls[..2]).yaml("shards: 1\nwarm_up: off").start();
    let mut clients = ask(&gateway);
    wait_for("some to wait", Duration::from_secs(2), || waiting(&gateway) >= 2);
    gateway.reload(&gateway.setup.file_text(&urls));
    for client in &mut clients {
        let answer = client.read_answer().unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    let computed: Vec<u64> = engines.iter().map(|engine| engine.stat("prompt_tokens")).collect();
    assert!(computed[2] > 0, "{computed:?}");
}
