//! Decision records: a ring of the last ones in each shard, written without allocation, read by people.

use crate::load::columns::Freshness;
use crate::parse::usage::Usage;
use crate::pipeline::{Choice, Decision, Snapshot};
use crate::policy::slo::Standing;
use crate::reject::Reject;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Records that one shard keeps.
const RING: usize = 512;

/// How a request ended.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ending {
    /// Status the client got (499 when it left).
    pub status: u16,
    /// What it was told instead of an answer, or why the answer broke off.
    pub reject: Option<Reject>,
    /// From its head to its end, seconds.
    pub total_s: f64,
    /// To its first token, seconds; streams only.
    pub ttft_s: Option<f64>,
    /// The times that were predicted, as they were; streams only.
    pub taken: Option<Taken>,
    /// What the engine counted.
    pub usage: Usage,
    /// Replicas tried.
    pub attempts: usize,
    /// Seconds waited, before it was sent, for a prefix under way.
    pub held_s: f64,
}

/// Times of a streamed answer, from where predictions count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Taken {
    /// From its placement to its first token, seconds.
    pub ttft_s: f64,
    /// Per output token after that, seconds.
    pub tpot_s: Option<f64>,
}

/// One request: what was decided and what came of it.
#[derive(Clone, Debug)]
pub struct Record {
    /// What was decided.
    pub decision: Decision,
    /// What it was decided by: slots and pools mean others after a reload. Kept no longer than the ring keeps the record.
    pub snapshot: Arc<Snapshot>,
    /// What came of it.
    pub ending: Ending,
}

/// The last records of one shard.
#[derive(Debug, Default)]
pub struct Ring {
    records: Mutex<Records>,
    missed: AtomicU64,
}

#[derive(Debug, Default)]
struct Records {
    cells: Vec<Record>,
    refusals: Vec<Ending>,
    next: usize,
    next_refusal: usize,
}

impl Ring {
    /// Adds a record, over the oldest. While somebody reads, records are counted as missed instead of waiting.
    pub fn push(&self, record: Record) {
        match self.records.try_lock() {
            Some(mut records) => {
                let next = records.next;
                put(&mut records.cells, next, record);
                records.next = (next + 1) % RING;
            }
            None => {
                self.missed.fetch_add(1, Relaxed);
            }
        }
    }

    /// Adds a request that was refused before it was decided.
    pub fn refused(&self, ending: Ending) {
        match self.records.try_lock() {
            Some(mut records) => {
                let next = records.next_refusal;
                put(&mut records.refusals, next, ending);
                records.next_refusal = (next + 1) % RING;
            }
            None => {
                self.missed.fetch_add(1, Relaxed);
            }
        }
    }

    /// The records, in no order.
    #[must_use]
    pub fn read(&self) -> Vec<Record> {
        self.records.lock().cells.clone()
    }

    /// The refusals, in no order.
    #[must_use]
    pub fn read_refusals(&self) -> Vec<Ending> {
        self.records.lock().refusals.clone()
    }
}

fn put<T>(cells: &mut Vec<T>, place: usize, value: T) {
    match cells.get_mut(place) {
        Some(cell) => *cell = value,
        None => {
            if cells.capacity() == 0 {
                cells.reserve_exact(RING);
            }
            cells.push(value);
        }
    }
}

/// A decision as JSON, with replicas by name and the reason in words.
#[must_use]
pub fn decision_json(decision: &Decision, snapshot: &Snapshot) -> Value {
    let name = |slot| snapshot.fleet.replica(slot).map_or("(left)", |replica| replica.config.id.as_str());
    let model = snapshot.fleet.pools.get(usize::from(decision.pool.0)).map(|pool| pool.model.as_str());
    let choice = |choice: &Choice| {
        json!({
            "replica": name(choice.slot),
            "cost": round(choice.cost, 6),
            "wait_ms": round(choice.wait_s * 1e3, 3),
            "prefill_ms": round(choice.prefill_s * 1e3, 3),
            "ttft_p50_ms": round(choice.predicted.ttft_p50_s * 1e3, 3),
            "ttft_p90_ms": round(choice.predicted.ttft_p90_s * 1e3, 3),
            "tpot_p50_ms": round(choice.predicted.tpot_p50_s * 1e3, 3),
            "tpot_p90_ms": round(choice.predicted.tpot_p90_s * 1e3, 3),
            "warm_tokens": round(choice.warm_tokens, 0),
            "restore_tokens": round(choice.restore_tokens, 0),
            "pushed_out_ms": round(choice.pushed_out_s * 1e3, 3),
            "evicted_tokens": round(choice.evicted_tokens, 0),
            "eviction_ms": round(choice.eviction_s * 1e3, 3),
            "in_flight": choice.in_flight,
            "in_flight_elsewhere": choice.elsewhere,
            "load_source": choice.load_age().map_or("gateway", |_| choice.load.map_or("gateway", |w| w.source.as_str())),
            "load_age_ms": choice.load.map(|word| round(word.age.as_secs_f64() * 1e3, 3)),
            "load_freshness": choice.load.map_or(Freshness::Never, |word| word.freshness()).as_str(),
        })
    };
    json!({
        "id": decision.id.0,
        "api": decision.route(),
        "model": model,
        "policy": snapshot.config.policy.name.as_str(),
        "reason": decision.reason.as_str(),
        "prompt_bytes": decision.prompt_bytes,
        "prompt_tokens": round(decision.prompt_tokens, 0),
        "candidates": decision.candidates,
        "slo": decision.bound.map(|bound| json!({
            "ttft_ms": bound.slo.ttft_s.map(|s| round(s * 1e3, 3)),
            "tpot_ms": bound.slo.tpot_s.map(|s| round(s * 1e3, 3)),
            "is_met": bound.standing == Standing::Met,
        })),
        "chosen": choice(&decision.chosen),
        "runner_up": decision.runner_up.as_ref().map(choice),
        "warmest": decision.warmest.as_ref().map(choice),
        "why": decision.explain(name),
    })
}

/// A record as JSON; `age_ms` is how long ago it was decided.
#[must_use]
pub fn record_json(record: &Record, age_ms: u128) -> Value {
    let mut value = decision_json(&record.decision, &record.snapshot);
    value["age_ms"] = json!(u64::try_from(age_ms).unwrap_or(u64::MAX));
    value["outcome"] = ending_json(&record.ending);
    if let Some(Taken { ttft_s, tpot_s }) = record.ending.taken {
        let predicted = &record.decision.chosen.predicted;
        value["prediction"] = json!({
            "ttft_ms": round(ttft_s * 1e3, 3),
            "ttft_p50_ms": round(predicted.ttft_p50_s * 1e3, 3),
            "ttft_p90_ms": round(predicted.ttft_p90_s * 1e3, 3),
            "tpot_ms": tpot_s.map(|s| round(s * 1e3, 3)),
            "tpot_p50_ms": round(predicted.tpot_p50_s * 1e3, 3),
            "tpot_p90_ms": round(predicted.tpot_p90_s * 1e3, 3),
        });
    }
    value
}

/// An ending as JSON.
#[must_use]
pub fn ending_json(ending: &Ending) -> Value {
    json!({
        "status": ending.status,
        "code": ending.reject.map(Reject::code),
        "attempts": ending.attempts,
        "ttft_ms": ending.ttft_s.map(|s| round(s * 1e3, 3)),
        "held_ms": round(ending.held_s * 1e3, 3),
        "total_ms": round(ending.total_s * 1e3, 3),
        "prompt_tokens": ending.usage.prompt_tokens,
        "cached_tokens": ending.usage.cached_tokens,
        "output_tokens": ending.usage.output_tokens,
    })
}

fn round(value: impl Into<f64>, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value.into() * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_and_no_more() {
        let ring = Ring::default();
        for status in 0..2000 {
            ring.refused(Ending { status, ..Ending::default() });
        }
        let kept = ring.read_refusals();
        assert_eq!(kept.len(), RING);
        assert!(kept.iter().all(|ending| usize::from(ending.status) >= 2000 - RING));
    }

    #[test]
    fn a_record_names_what_it_was_decided_by_whatever_is_reloaded_since() {
        use crate::clock::Now;
        use crate::fleet::Registry;
        use crate::learn::Rates;
        use crate::pipeline::{Decider, Hints, PoolTraits, Shared, SharedConfig};
        use std::collections::HashMap;

        let mut registry = Registry::new(1);
        let mut snapshot = |id: &str, model: &str| {
            let yaml = format!("replicas: [{{id: {id}, url: 'http://{id}:1', models: [{model}]}}]");
            let config = crate::config::parse(&yaml).unwrap();
            let (fleet, _) = registry.rebuild(&config.replicas, &[], &HashMap::new(), |_| true).unwrap();
            Arc::new(Snapshot::new(config, fleet, &PoolTraits::default()))
        };
        let (before, after) = (snapshot("old", "m"), snapshot("new", "n"));
        assert_eq!(before.fleet.replicas[0].slot, after.fleet.replicas[0].slot);
        let prior = Rates { base_s: 0.0, prefill_s_per_token: 1e-4, decode_s_per_token: 0.0 };
        let shared =
            Shared::new(&SharedConfig { slots_max: 1, index_bytes: 4 << 20, hash_key: [0; 32], prior }).unwrap();
        let mut decider = Decider::new(&before.config, 1, 0, 1, 0);
        let body = br#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;
        let api = crate::parse::Api::from_path("/v1/chat/completions").unwrap();
        let placed = decider.decide(&shared, &before, api, body, Hints::default(), Now(0)).unwrap();
        let ring = Ring::default();
        ring.push(Record { decision: placed.decision, snapshot: before, ending: Ending::default() });
        let shown = record_json(&ring.read()[0], 0);
        assert_eq!((shown["model"].as_str(), shown["chosen"]["replica"].as_str()), (Some("m"), Some("old")));
        assert!(shown["why"].as_str().unwrap().starts_with("old "), "{shown}");
    }
}
