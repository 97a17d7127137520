//! Metrics of the load plane: what was heard of the replicas, what was dropped and why, and how old it was when used.

use super::metrics::registered;
use crate::load::gate::Refusal;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry};

/// Seconds, for the age of what a decision went by: 1 ms to 30 s.
const AGE_BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 10.0, 30.0];

/// Metrics of the load plane.
#[derive(Clone, Debug)]
pub struct LoadMetrics {
    /// Beacons that were taken.
    pub beacons: IntCounter,
    /// Datagrams that were not, one counter a [`Refusal`], in its order.
    pub refused: [IntCounter; Refusal::ALL.len()],
    /// Datagrams by the way they came in.
    pub received: IntCounterVec,
    /// Datagrams lost before anybody looked at them, by place.
    pub lost: IntCounterVec,
    /// Reports that found the ring of a reader full.
    pub lost_reports: IntCounter,
    /// Facts for which the control thread had no room.
    pub lost_news: IntCounter,
    /// Pages read by the gateway itself, by result.
    pub scrapes: IntCounterVec,
    /// Health checks, by result.
    pub checks: IntCounterVec,
    /// Engines that restarted or emptied their cache, as beacons told.
    pub restarts: IntCounter,
    /// Times a replica that was heard fell silent.
    pub silences: IntCounter,
    /// Times the ingest slept because of a flood.
    pub floods: IntCounter,
    /// Age of the load report behind each placement.
    pub age: Histogram,
}

impl LoadMetrics {
    /// All of them, at zero.
    pub(super) fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str| registered(registry, IntCounter::new(name, help));
        let counters = |name: &str, help: &str, label: &str| {
            registered(registry, IntCounterVec::new(Opts::new(name, help), &[label]))
        };
        let age = HistogramOpts::new(
            "emberlane_load_age_seconds",
            "Age of the load report of the chosen replica when it was chosen; of replicas that were heard.",
        );
        let refused = counters("emberlane_beacons_refused_total", "Datagrams that were dropped, by reason.", "reason");
        let lost = counters(
            "emberlane_beacons_lost_total",
            "Datagrams lost before they were read, and reports and facts that found no room, by place.",
            "place",
        );
        Self {
            beacons: counter("emberlane_beacons_total", "Beacons taken."),
            refused: Refusal::ALL.map(|refusal| refused.with_label_values(&[refusal.as_str()])),
            received: counters("emberlane_beacon_datagrams_total", "Datagrams by the way they came in.", "through"),
            lost_reports: lost.with_label_values(&["reader_ring_full"]),
            lost_news: lost.with_label_values(&["news_full"]),
            lost,
            scrapes: counters("emberlane_scrapes_total", "Metrics pages of engines read, by result.", "result"),
            checks: counters("emberlane_health_checks_total", "Health checks that ended, by result.", "result"),
            restarts: counter("emberlane_replica_restarts_total", "Engines that restarted or emptied their cache."),
            silences: counter("emberlane_replica_silences_total", "Times the load reports of a replica stopped."),
            floods: counter("emberlane_beacon_floods_total", "Times ingest paused because of too many bad datagrams."),
            age: registered(registry, Histogram::with_opts(age.buckets(AGE_BUCKETS.to_vec()))),
        }
    }
}
