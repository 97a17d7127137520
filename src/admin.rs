//! The admin listener: health, metrics, the configuration in force, replicas, decisions, and what a request would cost.

mod drain;
mod gauges;

use crate::clock::Now;
use crate::parse::Api;
use crate::pipeline::{Decider, Hints};
use crate::proxy::{Core, Dialect};
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
    decider: Mutex<Decider>,
}

impl Admin {
    /// The admin pages of `core`.
    #[must_use]
    pub fn new(core: &Arc<Core>) -> Self {
        let snapshot = core.snapshot.load();
        let decider = Decider::new(&snapshot.config, core.slots_max, 0, 1, 0);
        Self { core: Arc::clone(core), decider: Mutex::new(decider) }
    }

    fn get(&self, path: &str, query: &str) -> Response<Vec<u8>> {
        match path {
            "/healthz" => text(200, "ok\n"),
            "/readyz" => self.ready(),
            "/metrics" => match gauges::read(&self.core).and_then(|gauges| self.core.metrics.render(gauges)) {
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
        });
        json_answer(200, &body)
    }

    fn replicas(&self) -> Value {
        let (core, snapshot, now) = (&self.core, self.core.snapshot.load(), self.core.clock.now());
        let rows = snapshot.fleet.replicas.iter().map(|replica| {
            let slot = replica.slot;
            let rates = core.shared.rates.rates(slot);
            let limits = snapshot.limits(slot);
            let resident = core.shared.index.resident_blocks(slot);
            let in_flight = core.shared.load.in_flight(slot);
            let running = replica.slots.map_or(in_flight, |slots| in_flight.min(slots));
            let mut row = json!({
                "id": replica.config.id,
                "url": replica.config.url.as_str(),
                "address": replica.address().map(|address| address.to_string()),
                "models": replica.models,
                "engine": replica.engine.as_str(),
                "slots": replica.slots,
                "in_flight": in_flight,
                "running": running,
                "waiting": in_flight.saturating_sub(running),
                "kv_usage": (resident as f64 / f64::from(limits.kv_blocks)).min(1.0),
                "load_source": "gateway",
                "load_age_ms": 0,
                "prefill_tokens_waiting": core.shared.load.prefill_tokens(slot),
                "resident_blocks": resident,
                "prefill_tokens_per_s": 1.0 / f64::from(rates.prefill_s_per_token),
                "decode_ms_per_token": f64::from(rates.decode_s_per_token) * 1e3,
                "samples": core.shared.rates.samples(slot),
            });
            if let Some(fields) = row.as_object_mut() {
                fields.extend(drain::health_fields(core, replica, now));
            }
            row
        });
        Value::Array(rows.collect())
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
        let hints = Hints { session: parameter(&query, "session") };
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
