//! Health as a whole: who takes requests from the start on, what checks change, what draining loses (nothing), and what
//! clients are told when nobody takes any.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::backend::{Backend, Exchange};
use crate::support::gateway::{Gateway, Setup};
use crate::support::http::{self, Answer};
use crate::support::time::{now, pause, wait_for};
use crate::support::{chat, free_address};

const OPENAI: &str = "/v1/chat/completions";
const ANTHROPIC: &str = "/v1/messages";
/// Checks often enough for a test.
const OFTEN: &str = "health:\n  interval: 100ms\n  timeout: 100ms";
const SOON: Duration = Duration::from_secs(5);

fn complete(exchange: &mut Exchange<'_>) -> std::io::Result<()> {
    exchange.completion()
}

#[track_caller]
fn wait_for_states(gateway: &Gateway, states: &[&str]) {
    wait_for(&format!("{states:?}"), SOON, || gateway.states() == states);
}

/// Asks the admin listener to drain a replica, or to end that.
#[track_caller]
fn ask(gateway: &Gateway, id: &str, what: &str) -> Answer {
    http::post(gateway.admin, &format!("/replicas/{id}/{what}"), "").unwrap()
}

#[track_caller]
fn assert_unavailable(gateway: &Gateway) {
    for (path, kind) in [(OPENAI, "server_error"), (ANTHROPIC, "overloaded_error")] {
        let (start, answer) = (now(), gateway.post(path, &chat("hello")));
        assert_eq!(answer.status(), 503, "{path}: {}", answer.text());
        assert!(start.elapsed() < Duration::from_secs(1), "told after {:?}", start.elapsed());
        let body = answer.json();
        assert_eq!((&body["error"]["code"], &body["error"]["type"]), (&"no_replica".into(), &kind.into()), "{body}");
        assert_eq!(body["type"] == "error", path == ANTHROPIC, "{body}");
        let seconds: u32 = answer.head.header("retry-after").expect("no Retry-After").parse().unwrap();
        assert!((1..=3).contains(&seconds), "{seconds}");
    }
}

#[test]
fn a_slow_starter_holds_nobody_up_and_takes_nothing_until_it_is_well() {
    let (address, fast) = (free_address(), Backend::completing());
    let gateway = Setup::new(&[format!("http://{address}"), fast.url()]).policy("round_robin").start();
    wait_for_states(&gateway, &["starting", "healthy"]);
    for turn in 0..10 {
        let answer = gateway.post(OPENAI, &chat("hello"));
        assert_eq!(answer.status(), 200, "turn {turn}: {}", answer.text());
    }
    assert_eq!(fast.posts(), 10);
    let retries = gateway.admin_get("/metrics").text();
    assert!(retries.contains("emberlane_retries_total 0"), "somebody was sent to one that does not listen");
    let slow = Backend::start_at(address, complete);
    wait_for_states(&gateway, &["healthy", "healthy"]);
    let row = &gateway.replicas()[0];
    assert_eq!((&row["why"], &row["warming"]), (&"a health check succeeded".into(), &false.into()), "{row}");
    (0..4).for_each(|_| gateway.assert_serves());
    assert_eq!(slow.posts(), 2);
    gateway.wait_idle();
}

#[test]
fn when_all_are_down_clients_are_told_at_once_and_the_first_good_sign_is_enough() {
    let backends = [Backend::completing(), Backend::completing()];
    let gateway = Setup::new(&[backends[0].url(), backends[1].url()]).yaml(OFTEN).start();
    gateway.assert_serves();
    let start = now();
    backends.iter().for_each(|backend| backend.set_health(503));
    wait_for_states(&gateway, &["down", "down"]);
    assert!(start.elapsed() < Duration::from_secs(2), "down after {:?}", start.elapsed());
    assert_unavailable(&gateway);
    assert_eq!(backends[0].posts() + backends[1].posts(), 1, "one that is down was given a request");
    assert_eq!(gateway.replicas()[0]["why"], "health checks fail: HTTP 503");
    backends[1].set_health(200);
    wait_for_states(&gateway, &["down", "healthy"]);
    (0..4).for_each(|_| gateway.assert_serves());
    assert_eq!(backends[0].posts() + backends[1].posts(), 5);
    let log = gateway.process.output();
    let told = |id: &str, text: &str| log.lines().filter(|line| line.contains(id) && line.contains(text)).count();
    for backend in &backends {
        assert_eq!(told(&backend.id(), "replica takes no requests"), 1, "{log}");
    }
    // Once at the start, once again.
    let taken = backends.iter().map(|backend| told(&backend.id(), "replica takes requests")).collect::<Vec<_>>();
    assert_eq!(taken, [1, 2], "{log}");
    gateway.wait_idle();
}

#[test]
fn one_whose_process_dies_is_down_at_once_and_back_as_soon_as_it_is() {
    let (dies, stays) = (Backend::completing(), Backend::completing());
    let address = dies.id().parse().unwrap();
    let gateway = Setup::new(&[dies.url(), stays.url()]).policy("round_robin").yaml(OFTEN).start();
    drop(dies);
    for turn in 0..20 {
        let answer = gateway.post(OPENAI, &chat("hello"));
        assert_eq!(answer.status(), 200, "turn {turn}: {}", answer.text());
    }
    wait_for_states(&gateway, &["down", "healthy"]);
    assert_eq!(gateway.replicas()[0]["why"], "health checks fail: connection refused");
    let back = Backend::start_at(address, complete);
    wait_for_states(&gateway, &["healthy", "healthy"]);
    (0..4).for_each(|_| gateway.assert_serves());
    assert!(back.posts() >= 1);
    gateway.wait_idle();
}

/// Any answer to a check is a sign of life, but for one that says the replica is unwell.
#[test]
fn one_without_the_path_of_checks_is_well() {
    let backends: Vec<Backend> = [404, 405, 401].iter().map(|_| Backend::completing()).collect();
    for (backend, status) in backends.iter().zip([404, 405, 401]) {
        backend.set_health(status);
    }
    let urls: Vec<String> = backends.iter().map(Backend::url).collect();
    let gateway = Setup::new(&urls).yaml(OFTEN).start();
    let checks = |result: &str| {
        let text = gateway.admin_get("/metrics").text();
        let name = format!("emberlane_health_checks_total{{result=\"{result}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok()).unwrap_or_default()
    };
    wait_for("a few rounds of checks", SOON, || checks("ok") >= 12);
    assert_eq!(gateway.states(), ["healthy"; 3]);
    assert_eq!(checks("status"), 0);
    gateway.assert_serves();
}

#[test]
fn without_checks_all_are_taken_to_be_well() {
    let backend = Backend::completing();
    backend.set_health(503);
    let gateway = Setup::new(&[backend.url()]).yaml("health: off").start();
    gateway.assert_serves();
    assert_eq!(gateway.states(), ["healthy"]);
    assert_eq!(gateway.replicas()[0]["why"], "health checks are off");
}

/// A replica is drained and given back, over and over, under load: nothing is lost, and nothing new is sent to it.
#[test]
fn draining_under_load_loses_nothing() {
    let slowly = |exchange: &mut Exchange<'_>| {
        pause(Duration::from_millis(20)); // what an engine takes to answer
        exchange.completion()
    };
    let backends = [Backend::start(slowly), Backend::start(slowly)];
    let gateway = Setup::new(&[backends[0].url(), backends[1].url()]).policy("round_robin").yaml(OFTEN).start();
    let (is_over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    let answer = gateway.post(OPENAI, &chat("hello"));
                    assert_eq!(answer.status(), 200, "{}", answer.text());
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        // The threads above end whatever happens here.
        let drained = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..3 {
                drain_and_return(&gateway, &backends[0], &answered);
            }
        }));
        is_over.store(true, Ordering::SeqCst);
        drained.unwrap();
    });
    gateway.wait_idle();
    let served: usize = backends.iter().map(Backend::posts).sum();
    assert_eq!(served, answered.load(Ordering::SeqCst), "none failed, none was sent twice");
}

#[track_caller]
fn drain_and_return(gateway: &Gateway, backend: &Backend, answered: &AtomicUsize) {
    let id = backend.id();
    for _ in 0..2 {
        let answer = ask(gateway, &id, "drain");
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let body = answer.json();
        assert_eq!((&body["id"], &body["draining"]), (&id.clone().into(), &serde_json::json!(["admin"])), "{body}");
        assert!(body["in_flight"].is_u64(), "{body}");
    }
    wait_for("those in flight to end", SOON, || gateway.replicas()[0]["in_flight"] == 0);
    let (before, answered_before) = (backend.posts(), answered.load(Ordering::SeqCst));
    wait_for("more requests", SOON, || answered.load(Ordering::SeqCst) >= answered_before + 10);
    assert_eq!(backend.posts(), before, "a replica that drains was given requests");
    for _ in 0..2 {
        assert_eq!(ask(gateway, &id, "undrain").json()["draining"], serde_json::json!([]));
    }
    wait_for("requests to come back", SOON, || backend.posts() > before);
}

#[test]
fn drains_outlive_reloads_and_end_with_their_own_cause() {
    let backends = [Backend::completing(), Backend::completing()];
    let urls = [backends[0].url(), backends[1].url()];
    let gateway = Setup::new(&urls).yaml(OFTEN).start();
    let unknown = ask(&gateway, "nobody", "drain");
    assert_eq!((unknown.status(), &unknown.json()["error"]["code"]), (404, &"replica_not_found".into()));
    assert_eq!(http::get(gateway.admin, &format!("/replicas/{}/drain", backends[0].id())).unwrap().status(), 404);
    ask(&gateway, &backends[0].id(), "drain");
    let text = gateway.setup.file_text(&urls);
    let second = format!("  - url: \"{}\"\n", urls[1]);
    gateway.reload(&text.replace(&second, &format!("{second}    drain: true\n")));
    let draining = |index: usize| gateway.replicas()[index]["draining"].clone();
    wait_for("the drain of the file", SOON, || draining(1) == serde_json::json!(["file"]));
    assert_eq!(draining(0), serde_json::json!(["admin"]));
    assert_unavailable(&gateway);
    assert_eq!(ask(&gateway, &backends[1].id(), "undrain").json()["draining"], serde_json::json!(["file"]));
    gateway.reload(&text);
    wait_for("the end of it", SOON, || draining(1) == serde_json::json!([]));
    assert_eq!(draining(0), serde_json::json!(["admin"]));
    gateway.assert_serves();
    assert_eq!(backends[1].posts(), 1);
}
