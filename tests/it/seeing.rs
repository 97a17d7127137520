//! What a person or Prometheus can see: metrics with bounded labels, replicas, decisions, and why a request went where.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::backend::Backend;
use crate::support::gateway::{Gateway, Setup};
use crate::support::http::Client;
use crate::support::time::wait_for;
use crate::support::{chat, text};

const PATH: &str = "/v1/chat/completions";

fn fleet() -> (Vec<Backend>, Gateway) {
    let backends: Vec<Backend> = (0..2).map(|_| Backend::completing()).collect();
    let urls: Vec<String> = backends.iter().map(Backend::url).collect();
    let gateway = Setup::new(&urls).start();
    wait_for("the replicas' models to be known", Duration::from_secs(10), || {
        gateway.replicas().iter().all(|replica| replica["models"].is_array())
    });
    (backends, gateway)
}

/// Reads Prometheus text: the series (name and labels), after checking each line.
#[track_caller]
fn series(text: &str) -> BTreeSet<String> {
    let mut typed = BTreeSet::new();
    let mut series = BTreeSet::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.split(' ');
            if words.next() == Some("TYPE") {
                let name = words.next().unwrap().to_owned();
                assert!(["counter", "gauge", "histogram", "summary"].contains(&words.next().unwrap()), "{line}");
                assert!(typed.insert(name), "typed twice: {line}");
            }
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
        assert!(value.parse::<f64>().is_ok(), "not a number: {line}");
        let bare = name.split('{').next().unwrap();
        assert!(bare.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':'), "bad name: {line}");
        assert!(!name.contains('{') || name.ends_with('}'), "unclosed labels: {line}");
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| bare.strip_suffix(end)).unwrap_or(bare);
        assert!(typed.contains(bare) || typed.contains(family), "no TYPE before: {line}");
        assert!(series.insert(name.to_owned()), "twice: {line}");
    }
    series
}

#[test]
fn metrics_parse_and_count() {
    let (_backends, gateway) = fleet();
    for _ in 0..10 {
        gateway.assert_serves();
    }
    gateway.post(PATH, "not json");
    let answer = gateway.admin_get("/metrics");
    assert!(answer.head.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")), "{:?}", answer.head);
    let found = series(&answer.text());
    assert!(found.iter().any(|name| name.starts_with("emberlane_")), "{found:?}");
    wait_for("the refusal to be counted", Duration::from_secs(2), || {
        series(&gateway.admin_get("/metrics").text()).iter().any(|name| name.contains("body_not_json"))
    });
}

#[test]
fn labels_do_not_grow_with_what_clients_send() {
    let (_backends, gateway) = fleet();
    let send = |round: u64| {
        for turn in 0..100 {
            let name = format!("n{}", round * 1_000 + turn);
            let mut client = Client::connect(gateway.listen).unwrap();
            let headers = [
                ("x-emberlane-tenant", name.as_str()),
                ("x-emberlane-session", &name),
                ("x-emberlane-workflow", &name),
                ("user-agent", &name),
            ];
            let body = match turn % 3 {
                0 => chat(&text(turn, 300)),
                1 => chat("hi").replace("\"m\"", &format!("\"{name}\"")),
                _ => format!("{{\"{name}\":1}}"),
            };
            let path = if turn % 10 == 9 { format!("/v1/{name}") } else { PATH.to_owned() };
            client.exchange("POST", &path, &headers, body.as_bytes()).unwrap();
        }
        series(&gateway.admin_get("/metrics").text()).len()
    };
    let first = send(1);
    let second = send(2);
    assert!(second <= first + 4, "{first} series after 100 clients, {second} after 200");
}

#[test]
fn replicas_tell_their_state() {
    let (_backends, gateway) = fleet();
    gateway.assert_serves();
    let replicas = gateway.replicas();
    assert_eq!(replicas.len(), 2);
    for replica in replicas {
        let fields = replica.as_object().unwrap();
        for name in [
            "id",
            "url",
            "models",
            "state",
            "in_flight",
            "running",
            "waiting",
            "kv_usage",
            "load_source",
            "load_age_ms",
        ] {
            assert!(fields.contains_key(name), "no `{name}` in {replica}");
        }
        assert!(replica["id"].is_string() && replica["models"].is_array() && replica["state"].is_string(), "{replica}");
        assert_eq!(replica["in_flight"], 0);
    }
}

#[test]
fn the_explain_header_names_the_choice_and_its_reason() {
    let (_backends, gateway) = fleet();
    let mut client = Client::connect(gateway.listen).unwrap();
    let body = chat(&text(1, 4_000));
    let plain = client.exchange("POST", PATH, &[], body.as_bytes()).unwrap();
    let home = plain.head.header("x-emberlane-replica").expect("no x-emberlane-replica").to_owned();
    assert_eq!(plain.head.header("x-emberlane-decision"), None);
    let answer = client.exchange("POST", PATH, &[("x-emberlane-explain", "1")], body.as_bytes()).unwrap();
    let decision: Value = serde_json::from_str(answer.head.header("x-emberlane-decision").unwrap()).unwrap();
    assert_eq!(decision["chosen"]["replica"].as_str(), answer.head.header("x-emberlane-replica"), "{decision}");
    assert!(decision["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{decision}");
    assert_eq!(answer.head.header("x-emberlane-replica"), Some(home.as_str()), "the warm replica was not chosen again");
}

#[test]
fn decisions_are_kept() {
    let (_backends, gateway) = fleet();
    for turn in 0..20 {
        gateway.post(PATH, &chat(&text(turn, 1_000)));
    }
    gateway.post(PATH, "not json");
    let decisions = gateway.admin_get("/decisions").json();
    let decisions = decisions.as_array().unwrap_or_else(|| panic!("not an array: {decisions}"));
    assert!(decisions.len() >= 20, "{} decisions of 20", decisions.len());
    let placed: Vec<&Value> = decisions.iter().filter(|decision| decision["chosen"]["replica"].is_string()).collect();
    assert!(placed.len() >= 20, "{decisions:?}");
    for decision in placed {
        assert!(decision["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{decision}");
    }
}

#[test]
fn explain_tells_where_a_body_would_go() {
    let (backends, gateway) = fleet();
    let body = chat(&text(7, 4_000));
    let answer = gateway.post(PATH, &body);
    let home = answer.head.header("x-emberlane-replica").unwrap().to_owned();
    let before: usize = backends.iter().map(Backend::posts).sum();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &body).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_emberlane"))
        .args(["explain", "--body"])
        .arg(file.path())
        .args(["--admin", &format!("http://{}", gateway.admin)])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains(&home), "the warm replica {home} is not named:\n{told}");
    assert_eq!(backends.iter().map(Backend::posts).sum::<usize>(), before, "explain sent the request");
}

#[test]
fn the_gateway_lists_its_models() {
    let (_backends, gateway) = fleet();
    let listed = || crate::support::http::get(gateway.listen, "/v1/models").unwrap().json();
    wait_for("model m to be listed", Duration::from_secs(10), || {
        listed()["data"].as_array().is_some_and(|models| models.iter().any(|model| model["id"] == "m"))
    });
    assert_eq!(listed()["object"], "list");
}
