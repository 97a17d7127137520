//! Paths that are no inference routes, where the configuration lets them pass.

use serde_json::Value;

use crate::support::backend::Backend;
use crate::support::checksum;
use crate::support::engine::{Engine, urls};
use crate::support::gateway::{Gateway, Setup};
use crate::support::http::{self, Client};

const PATH: &str = "/custom/deep/path?x=1&y=a%20b&empty=&x=2";

fn passing(replicas: &[String]) -> Gateway {
    Setup::new(replicas).policy("round_robin").yaml("passthrough: true").start()
}

#[test]
fn unknown_paths_reach_a_replica_as_they_are() {
    let engines = Engine::mocks(2, &[]);
    let gateway = passing(&urls(&engines));
    let body = format!("not json at all \u{0} {}", crate::support::text(3, 50_000));
    for (method, body) in [("GET", ""), ("POST", body.as_str()), ("PUT", "{}"), ("DELETE", ""), ("OPTIONS", "")] {
        let mut client = Client::connect(gateway.listen).unwrap();
        let headers = [("x-mock-echo", "1"), ("x-custom", "Kept As It Is"), ("content-type", "text/odd")];
        let answer = client.exchange(method, PATH, &headers, body.as_bytes()).unwrap();
        assert_eq!(answer.status(), 200, "{method}: {}", answer.text());
        let echo = answer.json();
        assert_eq!((&echo["method"], &echo["path"]), (&Value::from(method), &Value::from(PATH)));
        let (length, sum) = (Value::from(body.len()), Value::from(format!("{:016x}", checksum(body.as_bytes()))));
        assert_eq!((&echo["len"], &echo["fnv1a64"]), (&length, &sum), "{method}: the body changed");
        for (name, value) in &headers[1..] {
            let header = serde_json::json!([name, value]);
            assert!(echo["headers"].as_array().unwrap().contains(&header), "{method}: no {header} in {echo}");
        }
        assert!(answer.head.header("x-emberlane-replica").is_some());
    }
    let asked: Vec<u64> = engines.iter().map(|engine| engine.stat("requests")).collect();
    assert!(asked.iter().all(|count| *count >= 1), "one replica got everything: {asked:?}");
}

#[test]
fn what_may_not_run_twice_is_sent_once() {
    let failing = || Backend::start(|exchange| exchange.json(500, r#"{"detail":"broken"}"#));
    let backends = [failing(), failing()];
    let gateway = passing(&[backends[0].url(), backends[1].url()]);
    let asked = || backends.iter().map(Backend::posts).sum::<usize>();
    let answer = gateway.post(PATH, "{}");
    assert_eq!((answer.status(), asked()), (500, 1), "{}", answer.text());
    assert!(answer.text().contains("broken"), "{}", answer.text());
    // What may is tried at the other replica, too.
    let answer = Client::connect(gateway.listen).unwrap().exchange("PUT", PATH, &[], b"{}").unwrap();
    assert_eq!((answer.status(), asked()), (500, 3), "{}", answer.text());
}

/// A replica that takes a request and closes: it may have done what it was asked.
#[test]
fn what_may_not_run_twice_is_sent_once_over_a_kept_connection_too() {
    let backend = Backend::start({
        let turn = std::sync::atomic::AtomicUsize::new(0);
        move |exchange| match turn.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            1 => {
                exchange.close();
                Ok(())
            }
            _ => exchange.json(200, "{}"),
        }
    });
    let gateway = Setup::new(&[backend.url()]).yaml("passthrough: true\nshards: 1").start();
    let post = || http::post(gateway.listen, PATH, "{}").unwrap().status();
    assert_eq!(post(), 200); // leaves a connection in the pool
    assert_eq!((post(), backend.posts()), (502, 2), "a request that may have run was sent again");
    assert_eq!(post(), 200);
    gateway.wait_idle();
}
