//! The admin listener: health, metrics, the configuration in force, replicas, decisions, and what a request would cost.

mod drain;
mod gauges;
mod replicas;

use crate::clock::Now;
use crate::discovery::DiscoveryStatus;
use crate::load::columns::ReportColumns;
use crate::load::plane::ReceiverStatus;
use crate::load::ring::Inbox;
use crate::parse::Api;
use crate::pipeline::{Decider, Hints};
use crate::proxy::{Core, Dialect, wish};
use crate::reject::Reject;
use crate::telemetry::record::{decision_json, ending_json, record_json};
use async_trait::async_trait;
use http::{Method, Response};
use parking_lot::Mutex;
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Decisions shown when the caller does not say how many.
const DECISIONS_DEFAULT: usize = 50;
/// Largest body that `/explain` reads.
const EXPLAIN_BYTES_MAX: usize = 64 << 20;

/// Serves the admin listener.
#[derive(Debug)]
pub struct Admin {
    core: Arc<Core>,
    decider: Arc<Mutex<Decider>>,
}

impl Admin {
    /// The admin pages of `core`, which hear load reports through `inbox`.
    #[must_use]
    pub fn new(core: &Arc<Core>, inbox: Inbox) -> Self {
        let snapshot = core.snapshot.load();
        let mut decider = Decider::new(&snapshot.config, core.slots_max, 0, 1, 0);
        decider.attach(inbox);
        Self { core: Arc::clone(core), decider: Arc::new(Mutex::new(decider)) }
    }

    /// Hears load reports while nobody asks: for the thread of the admin pages, and without end.
    pub fn hearing(&self) -> impl Future<Output = ()> + Send + use<> {
        crate::proxy::hear(Arc::clone(&self.core), Arc::clone(&self.decider))
    }

    /// Calls `read` with all that was heard up to now.
    fn with_reports<R>(&self, now: Now, read: impl FnOnce(&ReportColumns) -> R) -> R {
        let mut decider = self.decider.lock();
        decider.hear(&self.core.shared, now);
        read(decider.reports())
    }

    fn metrics(&self) -> prometheus::Result<Vec<u8>> {
        let gauges = self.with_reports(self.core.clock.now(), |reports| gauges::read(&self.core, reports))?;
        self.core.metrics.render(gauges)
    }

    fn get(&self, path: &str, query: &str) -> Response<Vec<u8>> {
        match path {
            "/healthz" => text(200, "ok\n"),
            "/readyz" => self.ready(),
            "/metrics" => match self.metrics() {
                Ok(body) => answer(200, "text/plain; version=0.0.4; charset=utf-8", body),
                Err(error) => text(500, &format!("{error}\n")),
            },
            "/config" => self.config(),
            "/replicas" => json_answer(200, &self.replicas()),
            "/decisions" => json_answer(200, &self.decisions(limit(query))),
            "/" => text(200, "emberlane\n\n/healthz /readyz /metrics /config /replicas /decisions /explain\n"),
            _ => text(404, "no such page\n"),
        }
    }

    fn ready(&self) -> Response<Vec<u8>> {
        let snapshot = self.core.snapshot.load();
        if self.core.stopping.load(Relaxed) {
            return text(503, "stopping\n");
        }
        if snapshot.fleet.replicas.is_empty() {
            return text(503, "no replicas\n");
        }
        if !self.core.asked.load(Relaxed) {
            return text(503, "replicas are being asked what they serve\n");
        }
        if !self.core.checked.load(Relaxed) {
            return text(503, "replicas are being asked how they are\n");
        }
        text(200, "ready\n")
    }

    fn config(&self) -> Response<Vec<u8>> {
        let snapshot = self.core.snapshot.load();
        let error = self.core.reload_error.load();
        let body = json!({
            "config": crate::config::to_json(&snapshot.config),
            "reloads": self.core.metrics.reloads.get(),
            "reload_failures": self.core.metrics.reload_failures.get(),
            "last_reload_error": error.as_ref(),
            "discovery": discovery_json(&self.core.discovery.load()),
            "beacon_receivers": self.receivers(),
        });
        json_answer(200, &body)
    }

    fn receivers(&self) -> Value {
        let receivers = self.core.plane.receivers.lock();
        let row = |receiver: &ReceiverStatus| json!({ "address": receiver.address.to_string(), "mode": receiver.mode, "fallback": receiver.fallback });
        Value::Array(receivers.iter().map(row).collect())
    }

    fn replicas(&self) -> Value {
        let now = self.core.clock.now();
        self.with_reports(now, |reports| replicas::all(&self.core, reports, now))
    }

    fn decisions(&self, most: usize) -> Value {
        let now = self.core.clock.now();
        let mut records: Vec<_> = self.core.rings.iter().flat_map(|ring| ring.read()).collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.decision.at));
        let age = |at: Now| now.since(at).as_millis();
        let rows = records.iter().take(most).map(|record| record_json(record, age(record.decision.at)));
        Value::Array(rows.collect())
    }

    fn refusals(&self) -> Value {
        Value::Array(self.core.rings.iter().flat_map(|ring| ring.read_refusals()).map(|e| ending_json(&e)).collect())
    }

    async fn explain(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let query = session.req_header().uri.query().unwrap_or_default().to_owned();
        let path = parameter(&query, "path").unwrap_or("/v1/chat/completions").replace("%2F", "/");
        let Some(api) = Api::from_path(&path) else {
            return text(404, "path: not an inference route\n");
        };
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = session.read_request_body().await {
            if body.len() + chunk.len() > EXPLAIN_BYTES_MAX {
                return text(413, "body too large\n");
            }
            body.extend_from_slice(&chunk);
        }
        let snapshot = self.core.snapshot.load();
        let named = |name: &'static str| parameter(&query, name).map(|text| (name, text));
        let wish = match wish::from_text(named("slo-ttft-ms"), named("slo-tpot-ms"), named("priority")) {
            Ok(wish) => wish,
            Err(reject) => return refuse(&path, reject),
        };
        let hints = Hints { session: parameter(&query, "session"), wish };
        let now = self.core.clock.now();
        let mut decider = self.decider.lock();
        match decider.consider(&self.core.shared, &snapshot, api, &body, hints, now) {
            Ok(placement) => {
                let decision = decision_json(&placement.decision, &snapshot);
                decider.recycle(placement);
                json_answer(200, &decision)
            }
            Err(reject) => refuse(&path, reject),
        }
    }
}

fn discovery_json(status: &DiscoveryStatus) -> Value {
    let sources = status.sources.iter().map(
        |row| json!({ "source": row.source.as_str(), "name": row.name, "replicas": row.replicas, "error": row.error }),
    );
    json!({ "sources": sources.collect::<Vec<_>>(), "left_out": status.left_out })
}

fn refuse(path: &str, reject: Reject) -> Response<Vec<u8>> {
    answer(reject.status(), "application/json", Dialect::of(path, false).error_body(reject))
}

fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
}

fn limit(query: &str) -> usize {
    parameter(query, "limit").and_then(|value| value.parse().ok()).unwrap_or(DECISIONS_DEFAULT)
}

fn text(status: u16, body: &str) -> Response<Vec<u8>> {
    answer(status, "text/plain; charset=utf-8", body.as_bytes().to_vec())
}

fn json_answer(status: u16, body: &Value) -> Response<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(body).unwrap_or_default();
    bytes.push(b'\n');
    answer(status, "application/json", bytes)
}

fn answer(status: u16, kind: &str, body: Vec<u8>) -> Response<Vec<u8>> {
    let length = body.len();
    let built = Response::builder().status(status).header("content-type", kind).header("content-length", length);
    built.body(body).unwrap_or_else(|_| Response::new(Vec::new()))
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let request = session.req_header();
        let (method, path) = (request.method.clone(), request.uri.path().to_owned());
        let query = request.uri.query().unwrap_or_default().to_owned();
        match (&method, path.as_str()) {
            (&Method::POST, "/explain") => self.explain(session).await,
            (&Method::GET | &Method::HEAD, "/decisions/refused") => json_answer(200, &self.refusals()),
            (&Method::GET | &Method::HEAD, _) => self.get(&path, &query),
            (&Method::POST, _) if let Some((id, ask)) = drain::read_path(&path) => drain::answer(&self.core, &id, ask),
            _ => text(405, "method not allowed\n"),
        }
    }
}
