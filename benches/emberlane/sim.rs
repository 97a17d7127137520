//! Rows of the simulator: requests simulated a minute on one core, for each workload of the page of evidence, with the
//! production gateway and `price` before eight replicas. Traces are read before the clock starts.

use std::path::Path;
use std::time::Instant;

use emberlane::config::PolicyConfig;
use emberlane::sim::model::EngineModel;
use emberlane::sim::run::{Ablation, Beacons, Chooser, Plan, run};
use emberlane::sim::workload::Source;

use crate::row::{Goal, Options, Row};

/// Workloads, each at a load in the middle of its sweep; the coding sessions, whose prompts are the longest by far, also
/// at the most.
const WORKLOADS: [(&str, f64); 9] = [
    ("perf/traces/agent_sessions.jsonl.gz", 3.0),
    ("perf/traces/agent_sessions.jsonl.gz", 8.0),
    ("perf/traces/mooncake_conversation.jsonl.gz", 4.0),
    ("perf/traces/azure_2023_conv.csv.gz", 8.0),
    ("generate:chat,long=0.1", 1.0),
    ("generate:groups", 1.0),
    ("generate:hot", 1.0),
    ("generate:tenants", 1.0),
    ("generate:workflows", 1.0),
];
const REPLICAS: usize = 8;
/// Requests a minute.
const GOAL: f64 = 1e6;

pub(crate) fn rows(options: &Options) -> Vec<Row> {
    let (seeds, duration_s) = if options.quick { (1, 120.0) } else { (3, 1_800.0) };
    WORKLOADS.iter().map(|(spec, load)| row(spec, *load, seeds, duration_s)).collect()
}

fn row(spec: &str, load: f64, seeds: u64, duration_s: f64) -> Row {
    let source = Source::open(spec).unwrap();
    let (mut requests, mut took_s) = (0, 0.0);
    for seed in 1..=seeds {
        let workload = source.workload(seed);
        let plan = Plan {
            workload: &workload,
            engines: vec![EngineModel::by_name("llama-3.1-8b").unwrap(); REPLICAS],
            chooser: Chooser::Policy(PolicyConfig::default()),
            ablation: Ablation::None,
            load,
            seed,
            duration_s,
            warm_up_s: 0.0,
            network_delay_s: 0.0005,
            beacons: Beacons { period_s: 0.1, delay_s: 0.2, loss: 0.0 },
            slowdown: None,
            history_period_s: 0.0,
        };
        let start = Instant::now();
        let result = run(&plan);
        took_s += start.elapsed().as_secs_f64();
        assert!(result.completed > 0 && result.rejected == 0, "{result:?}");
        requests += result.requests;
    }
    let name = Path::new(spec.split(',').next().unwrap_or(spec)).file_name().unwrap_or_default().to_string_lossy();
    let name = name.split('.').next().unwrap_or_default().trim_start_matches("generate:").to_owned();
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let a_minute = requests as f64 / took_s * 60.0;
    Row::new(format!("sim/{name}/load {load}"), a_minute, "requests/min").goal(Goal::AtLeast(GOAL))
}
