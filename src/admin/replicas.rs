//! `/replicas`: what is known of each replica, where its load comes from, how old that is, and why nothing better is known.

use super::drain::health_fields;
use crate::clock::Now;
use crate::discovery::Source;
use crate::fleet::Replica;
use crate::load::columns::{Freshness, Heard, ReportColumns};
use crate::pipeline::Snapshot;
use crate::prefix::slots::Trust;
use crate::proxy::Core;
use serde_json::{Value, json};
use std::time::Duration;

/// A refused beacon older than this says nothing about now.
const REFUSAL_SHOWN: Duration = Duration::from_secs(60);

/// All replicas, in the order of their sources.
pub(super) fn all(core: &Core, reports: &ReportColumns, now: Now) -> Value {
    let snapshot = core.snapshot.load();
    let row = |replica| one(core, replica, &snapshot, reports.heard(replica.slot, now), now);
    Value::Array(snapshot.fleet.replicas.iter().map(|replica| row(replica)).collect())
}

fn one(core: &Core, replica: &Replica, snapshot: &Snapshot, heard: Option<Heard>, now: Now) -> Value {
    let slot = replica.slot;
    let rates = core.shared.rates.rates(slot);
    let limits = snapshot.limits(slot);
    let memory = core.shared.memory.learned(slot);
    let resident = core.shared.index.resident_blocks(slot);
    let in_flight = core.shared.load.in_flight(slot);
    let believed = heard.filter(|heard| heard.word.freshness() != Freshness::Stale);
    let running = replica.slots.map_or(in_flight, |slots| in_flight.min(slots));
    let waiting = in_flight.saturating_sub(running);
    let usage = (resident as f64 / f64::from(limits.kv_blocks)).min(1.0);
    let mut row = json!({
        "id": replica.config.id,
        "url": replica.config.url.as_str(),
        "source": core.discovery.load().source_of.get(&replica.config.id).unwrap_or(&Source::Static).as_str(),
        "address": replica.address().map(|address| address.to_string()),
        "models": replica.models,
        "engine": replica.engine.as_str(),
        "slots": replica.slots,
        "slots_known_by": core.shared.slots.trusted(slot).map(Trust::as_str),
        "in_flight": in_flight,
        "running": believed.map_or(running, |heard| heard.running),
        "waiting": believed.map_or(waiting, |heard| heard.waiting),
        "kv_usage": believed.and_then(|heard| heard.kv_usage).map_or(usage, f64::from),
        "load_source": believed.map_or("gateway", |heard| heard.word.source.as_str()),
        "load_age_ms": heard.map(|heard| heard.word.age.as_secs_f64() * 1e3),
        "load_freshness": heard.map_or(Freshness::Never, |heard| heard.word.freshness()).as_str(),
        "load_why": why(core, replica, heard, now),
        "prefill_tokens_waiting": core.shared.load.prefill_tokens(slot),
        "resident_blocks": resident,
        "capacity_blocks": memory.blocks,
        "capacity_factor": memory.factor,
        "predicted_cached_share": (memory.samples > 0).then_some(memory.predicted_share),
        "cached_share": (memory.samples > 0).then_some(memory.cached_share),
        "prefill_tokens_per_s": 1.0 / f64::from(rates.prefill_s_per_token),
        "decode_ms_per_token": f64::from(rates.decode_s_per_token) * 1e3,
        "samples": core.shared.rates.samples(slot),
    });
    if let Some(row) = row.as_object_mut() {
        row.extend(health_fields(core, replica, now));
    }
    row
}

/// By what load a replica is priced, and why.
fn why(core: &Core, replica: &Replica, heard: Option<Heard>, now: Now) -> String {
    let own = "priced by what the gateway has in flight there";
    let said = match heard {
        None => format!("its load was never heard of: {own}"),
        Some(Heard { word, period, .. }) => {
            let (source, age) = (word.source.as_str(), word.age.as_secs_f64());
            let due = format!("the last {source} came {age:.3} s ago, one is due every {:.3} s", period.as_secs_f64());
            match word.freshness() {
                Freshness::Fresh => return format!("{due}: priced by it and by what was sent since"),
                Freshness::Fading => format!("{due}: late, so believed by {:.0} %", word.weight * 100.0),
                Freshness::Stale | Freshness::Never => format!("{due}: {own}"),
            }
        }
    };
    match core.plane.gate.refused_last(replica.slot) {
        Some((refusal, at)) if now.since(at) < REFUSAL_SHOWN => {
            format!("{said}; its beacon {:.1} s ago was refused: {refusal}", now.seconds_since(at))
        }
        Some(_) | None => said,
    }
}
