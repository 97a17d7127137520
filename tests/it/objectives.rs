//! Objectives of requests (SLO headers) and priorities: who is moved, who is served late, who is refused; and predictions
//! beside what came of them.

use std::time::Duration;

use serde_json::Value;

use crate::support::engine::{Engine, urls};
use crate::support::gateway::{Gateway, Setup};
use crate::support::http::{Answer, Client};
use crate::support::time::wait_for;
use crate::support::{chat_with_system, text};

const PATH: &str = "/v1/chat/completions";
const TTFT: &str = "x-emberlane-slo-ttft-ms";
const PRIORITY: &str = "x-emberlane-priority";

/// `count` engines that prefill 20,000 tokens a second, and a gateway that has learned so.
fn learned(count: usize, policy: &'static str) -> (Vec<Engine>, Gateway) {
    let engines = Engine::mocks(count, &["--prefill-tokens-per-s", "20000", "--decode-step-ms", "1"]);
    let gateway = Setup::new(&urls(&engines)).policy(policy).start();
    for turn in 0..24 {
        let length = 2_000 + 1_700 * usize::try_from(turn % 8).unwrap();
        let answer = send(&gateway, &[("x-session-id", &turn.to_string())], &prompt(turn, length));
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    wait_for("all to be on record", Duration::from_secs(2), || gateway.decisions().len() == 24);
    (engines, gateway)
}

/// A streamed request with a prompt of its own, of `bytes` bytes.
fn prompt(seed: u64, bytes: usize) -> String {
    chat_with_system(&text(seed, bytes), "go on", true)
}

fn send(gateway: &Gateway, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut client = Client::connect(gateway.listen).unwrap();
    let headers = [headers, &[("x-emberlane-explain", "1")]].concat();
    client.exchange("POST", PATH, &headers, body.as_bytes()).unwrap()
}

fn decision(answer: &Answer) -> Value {
    serde_json::from_str(answer.head.header("x-emberlane-decision").unwrap()).unwrap()
}

#[test]
fn a_header_that_means_nothing_is_an_error_that_names_it() {
    let (_engines, gateway) = learned(1, "price");
    for (name, value) in [(TTFT, "soon"), ("x-llm-d-slo-tpot-ms", "0"), (PRIORITY, "high")] {
        let answer = send(&gateway, &[(name, value)], &prompt(1, 100));
        assert_eq!((answer.status(), &answer.json()["error"]["code"]), (400, &Value::from("invalid_header")));
        assert_eq!(answer.json()["error"]["param"], name);
        assert!(answer.text().contains(name), "{}", answer.text());
    }
}

#[test]
fn what_would_be_late_everywhere_is_served_late_or_refused_by_its_priority() {
    let (_engines, gateway) = learned(2, "price");
    // Ten thousand tokens take half a second.
    let body = prompt(100, 40_000);
    let refused = send(&gateway, &[(TTFT, "100"), (PRIORITY, "-1")], &body);
    assert_eq!(refused.status(), 429, "{}", refused.text());
    let error = &refused.json()["error"];
    assert_eq!((&error["code"], &error["type"]), (&"slo_unreachable".into(), &"rate_limit_exceeded".into()));
    assert!(
        error["message"].as_str().is_some_and(|told| told.contains("100 ms") && told.contains("priority")),
        "{error}"
    );
    assert_eq!(refused.head.header("retry-after"), Some("1"));

    let mut client = Client::connect(gateway.listen).unwrap();
    let headers = [("x-slo-ttft-ms", "100"), (PRIORITY, "-1"), ("anthropic-version", "2023-06-01")];
    let refused = client.exchange("POST", "/v1/messages", &headers, body.as_bytes()).unwrap();
    assert_eq!(refused.status(), 429, "{}", refused.text());
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    assert_eq!(refused.json()["error"]["code"], "slo_unreachable");

    let late = send(&gateway, &[(TTFT, "100")], &body);
    assert_eq!((late.status(), &decision(&late)["reason"]), (200, &"slo_late".into()));
    assert_eq!(decision(&late)["slo"]["is_met"], false);
    assert!(decision(&late)["why"].as_str().is_some_and(|why| why.contains("all are late")), "{}", decision(&late));

    // Now it is cached where it went.
    let met = send(&gateway, &[(TTFT, "100"), (PRIORITY, "-1")], &body);
    assert_eq!((met.status(), &decision(&met)["slo"]["is_met"]), (200, &true.into()), "{}", decision(&met));
    let metrics = gateway.admin_get("/metrics").text();
    assert!(metrics.contains("emberlane_rejects_total{code=\"slo_unreachable\"} 2"), "{metrics}");
}

#[test]
fn a_request_that_would_be_late_where_its_policy_has_it_goes_where_it_is_not() {
    let (engines, gateway) = learned(2, "sticky");
    let session = [("x-session-id", "one")];
    let home = decision(&send(&gateway, &session, &prompt(200, 1_000)))["chosen"]["replica"].clone();
    // Two seconds of prefill at its home.
    let mut busy = Client::connect(gateway.listen).unwrap();
    busy.send_request("POST", PATH, &session, prompt(201, 160_000).as_bytes()).unwrap();
    wait_for("the long prompt to be there", Duration::from_secs(2), || gateway.in_flight() == 1);
    let moved = send(&gateway, &[session[0], (TTFT, "800")], &prompt(202, 1_000));
    let moved = decision(&moved);
    assert_eq!(moved["reason"], "slo", "{moved}");
    assert_ne!(moved["chosen"]["replica"], home);
    let stays = decision(&send(&gateway, &[session[0], (TTFT, "60000")], &prompt(203, 1_000)));
    assert_eq!((&stays["chosen"]["replica"], &stays["reason"]), (&home, &"policy".into()), "{stays}");
    assert_eq!(busy.read_answer().unwrap().status(), 200);
    drop(engines);
}

#[test]
fn predictions_stand_beside_what_came_of_them() {
    let (_engines, gateway) = learned(1, "price");
    let answer = send(&gateway, &[], &prompt(300, 20_000));
    assert_eq!(answer.status(), 200);
    wait_for("it to be on record", Duration::from_secs(2), || gateway.decisions().len() == 25);
    let [latest, ..] = &gateway.decisions()[..] else { panic!("no decisions") };
    let ms = |name: &str| latest["prediction"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {latest}"));
    // 5,000 tokens; the machine may be busy, which only makes it later.
    assert!((100.0..1000.0).contains(&ms("ttft_p50_ms")) && ms("ttft_p90_ms") >= ms("ttft_p50_ms"), "{latest}");
    assert!(ms("ttft_ms") > 200.0 && ms("tpot_p50_ms") > 0.0, "{latest}");
    let metrics = gateway.admin_get("/metrics").text();
    for name in [
        "emberlane_ttft_prediction_error_ratio_count",
        "emberlane_ttft_prediction_mape{model=",
        "emberlane_ttft_prediction_p90_coverage{model=",
        "emberlane_replica_drifts_total{model=",
    ] {
        assert!(metrics.contains(name), "no {name} in:\n{metrics}");
    }
}
