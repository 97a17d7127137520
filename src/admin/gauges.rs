//! Gauges: what is read when somebody asks, rather than counted: columns, index, process.

use crate::clock::Now;
use crate::fleet::Replica;
use crate::load::columns::{Freshness, Heard, ReportColumns};
use crate::pipeline::Snapshot;
use crate::proxy::Core;
use crate::telemetry::process;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};
use std::sync::atomic::Ordering::Relaxed;

/// Name, help and reader of a gauge with one value a replica.
type Column = (&'static str, &'static str, fn(&Core, &Replica) -> f64);

/// What is known of each replica.
const COLUMNS: [Column; 10] = [
    ("emberlane_replica_in_flight", "Requests the gateway has in flight there.", |core, replica| {
        f64::from(core.shared.load.in_flight(replica.slot))
    }),
    ("emberlane_replica_prefill_tokens", "Uncached prompt tokens waiting for prefill there.", |core, replica| {
        core.shared.load.prefill_tokens(replica.slot) as f64
    }),
    ("emberlane_replica_resident_blocks", "Prefix blocks it is believed to hold.", |core, replica| {
        core.shared.index.resident_blocks(replica.slot) as f64
    }),
    ("emberlane_replica_prefill_seconds_per_token", "Price of an uncached prompt token.", |core, replica| {
        f64::from(core.shared.rates.rates(replica.slot).prefill_s_per_token)
    }),
    ("emberlane_replica_decode_seconds_per_token", "Learned time of an output token.", |core, replica| {
        f64::from(core.shared.rates.rates(replica.slot).decode_s_per_token)
    }),
    ("emberlane_replica_capacity_blocks", "Prefix blocks it is taken to hold, learned.", |core, replica| {
        f64::from(core.shared.memory.learned(replica.slot).blocks)
    }),
    ("emberlane_replica_capacity_factor", "The same over what is configured, said or assumed.", |core, replica| {
        f64::from(core.shared.memory.learned(replica.slot).factor)
    }),
    (
        "emberlane_replica_predicted_cached_share",
        "Share of the last prompts' tokens that was predicted to be in its cache.",
        |core, replica| f64::from(core.shared.memory.learned(replica.slot).predicted_share),
    ),
    (
        "emberlane_replica_cached_share",
        "Share of the same prompts' tokens that it found there, as it said.",
        |core, replica| f64::from(core.shared.memory.learned(replica.slot).cached_share),
    ),
    ("emberlane_replica_samples", "Answers behind its price.", |core, replica| {
        f64::from(core.shared.rates.samples(replica.slot))
    }),
];

/// What is read when asked: columns, index, process.
pub(super) fn read(core: &Core, reports: &ReportColumns) -> prometheus::Result<Vec<prometheus::proto::MetricFamily>> {
    let registry = Registry::new();
    let snapshot = core.snapshot.load();
    let gauge = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<GaugeVec> {
        let family = GaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(family.clone()))?;
        Ok(family)
    };
    let single = |name: &str, help: &str, value: f64| -> prometheus::Result<()> {
        gauge(name, help, &[])?.with_label_values::<&str>(&[]).set(value);
        Ok(())
    };
    let (connections, requests) = core.open();
    let index = core.shared.index.stats();
    single("emberlane_client_connections", "Client connections open.", connections as f64)?;
    single("emberlane_requests_in_flight", "Requests open.", requests as f64)?;
    single("emberlane_index_entries", "Blocks on record in the prefix index.", index.entries as f64)?;
    single("emberlane_index_entries_max", "Blocks the prefix index has room for.", index.entries_max as f64)?;
    single("emberlane_index_evictions", "Blocks the index dropped for want of room.", index.evictions as f64)?;
    single("emberlane_index_bytes", "Memory of the prefix index.", index.bytes as f64)?;
    single("process_resident_memory_bytes", "Resident memory.", process::resident_bytes() as f64)?;
    single("process_cpu_seconds_total", "CPU time, user and system.", process::cpu_seconds())?;
    gauge("emberlane_build_info", "Version of the binary.", &["version"])?
        .with_label_values(&[env!("CARGO_PKG_VERSION")])
        .set(1.0);
    predictions(core, &registry)?;
    let state =
        IntGaugeVec::new(Opts::new("emberlane_replica_state", "1 for the state it is in."), &["replica", "state"])?;
    registry.register(Box::new(state.clone()))?;
    for (name, help, read) in COLUMNS {
        let family = gauge(name, help, &["replica"])?;
        for replica in &snapshot.fleet.replicas {
            family.with_label_values(&[&replica.config.id]).set(read(core, replica));
        }
    }
    for replica in &snapshot.fleet.replicas {
        let now = core.clock.now();
        let name = core.shared.health.state(replica.slot, now).as_str();
        state.with_label_values(&[replica.config.id.as_str(), name]).set(1);
    }
    read_heard(&registry, &snapshot, reports, core.clock.now())?;
    show_receivers(&registry, core)?;
    show_pools(&registry, core, &snapshot)?;
    single("emberlane_stopping", "1 once the process is stopping.", f64::from(u8::from(core.stopping.load(Relaxed))))?;
    Ok(registry.gather())
}

/// What is known of each model's prompts, and who waits for it.
fn show_pools(registry: &Registry, core: &Core, snapshot: &Snapshot) -> prometheus::Result<()> {
    let gauge = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<GaugeVec> {
        let family = GaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(family.clone()))?;
        Ok(family)
    };
    let ratio = gauge("emberlane_model_bytes_per_token", "Prompt bytes to a token, learned.", &["model"])?;
    let waiting = gauge("emberlane_waiting_requests", "Requests that wait for a replica.", &["model"])?;
    let spent = gauge(
        "emberlane_regeneration_spent_seconds",
        "Seconds for which prompts that would push out what is needed wait for engines without any request.",
        &["model"],
    )?;
    let again = gauge(
        "emberlane_model_reuse_share",
        "Share of the prompt blocks that have been idle for so many seconds which are used again, learned.",
        &["model", "idle"],
    )?;
    for pool in &snapshot.fleet.pools {
        waiting.with_label_values(&[&pool.model]).set(core.shared.room.len(pool.id) as f64);
        let spent_s = core.shared.room.regeneration(pool.id).spent_s(core.clock.now());
        spent.with_label_values(&[&pool.model]).set(spent_s);
        let Some(traits) = snapshot.traits.get(pool.id) else { continue };
        ratio.with_label_values(&[&pool.model]).set(traits.ratio.bytes_per_token());
        for (idle_ms, share) in traits.reuse.curve().step_by(4) {
            let idle = format!("{}", f64::from(idle_ms) / 1e3);
            again.with_label_values(&[pool.model.as_str(), idle.as_str()]).set(f64::from(share));
        }
    }
    Ok(())
}

fn show_receivers(registry: &Registry, core: &Core) -> prometheus::Result<()> {
    let help = Opts::new("emberlane_beacon_receiver", "1 for the way beacons come in there.");
    let family = GaugeVec::new(help, &["address", "mode"])?;
    registry.register(Box::new(family.clone()))?;
    for one in core.plane.receivers.lock().iter() {
        family.with_label_values(&[one.address.to_string().as_str(), one.mode]).set(1.0);
    }
    Ok(())
}

/// Name, help and reader of a gauge of what a replica said of itself.
type Said = (&'static str, &'static str, fn(&Heard) -> Option<f64>);

/// What replicas said of their load: a replica that said nothing has no value.
fn read_heard(registry: &Registry, snapshot: &Snapshot, reports: &ReportColumns, now: Now) -> prometheus::Result<()> {
    let said: [Said; 4] = [
        ("emberlane_replica_load_age_seconds", "Time since its load was last heard of.", |heard| {
            Some(heard.word.age.as_secs_f64())
        }),
        ("emberlane_replica_running", "Requests it said that it runs.", |heard| Some(f64::from(heard.running))),
        ("emberlane_replica_waiting", "Requests it said that wait there.", |heard| Some(f64::from(heard.waiting))),
        ("emberlane_replica_kv_usage", "Share of its KV cache that it said is in use.", |heard| {
            heard.kv_usage.map(f64::from)
        }),
    ];
    for (name, help, read) in said {
        let family = GaugeVec::new(Opts::new(name, help), &["replica"])?;
        registry.register(Box::new(family.clone()))?;
        for replica in &snapshot.fleet.replicas {
            if let Some(value) = reports.heard(replica.slot, now).as_ref().and_then(read) {
                family.with_label_values(&[&replica.config.id]).set(value);
            }
        }
    }
    let name = "emberlane_replica_load_freshness";
    let help = "1 for how far what was heard of its load is believed; none and stale: priced by own in-flight.";
    let family = IntGaugeVec::new(Opts::new(name, help), &["replica", "freshness"])?;
    registry.register(Box::new(family.clone()))?;
    for replica in &snapshot.fleet.replicas {
        let freshness = reports.word(replica.slot, now).map_or(Freshness::Never, |word| word.freshness());
        family.with_label_values(&[replica.config.id.as_str(), freshness.as_str()]).set(1);
    }
    Ok(())
}

/// How good predictions are, by the model that replicas are priced as.
fn predictions(core: &Core, registry: &Registry) -> prometheus::Result<()> {
    let gauge = |name: &str, help: &str| -> prometheus::Result<GaugeVec> {
        let family = GaugeVec::new(Opts::new(name, help), &["model"])?;
        registry.register(Box::new(family.clone()))?;
        Ok(family)
    };
    let error = gauge(
        "emberlane_ttft_prediction_mape",
        "Mean error of predicted times to first token, as a share of the actual ones, of the last hundred or so.",
    )?;
    let covered = gauge(
        "emberlane_ttft_prediction_p90_coverage",
        "Share of times to first token within their predicted ninetieth percentile, of the last hundred or so.",
    )?;
    let drifts = IntCounterVec::new(
        Opts::new("emberlane_replica_drifts_total", "Times that a replica was no longer what was learned of it."),
        &["model"],
    )?;
    registry.register(Box::new(drifts.clone()))?;
    for (model, accuracy) in core.shared.rates.accuracy() {
        drifts.with_label_values(&[&model]).inc_by(accuracy.drifts);
        if accuracy.samples > 0 {
            error.with_label_values(&[&model]).set(f64::from(accuracy.ttft_mape));
            covered.with_label_values(&[&model]).set(f64::from(accuracy.ttft_p90_covered));
        }
    }
    Ok(())
}
