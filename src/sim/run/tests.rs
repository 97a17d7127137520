//! Whole runs of small workloads.

use super::*;
use crate::sim::workload::{Call, Pace, Script};

fn call(prompt: &[(u64, u32)], output: u64, after: &[u32], think_s: f32) -> Call {
    Call {
        prompt: prompt.iter().map(|(id, tokens)| Segment { id: *id, tokens: *tokens }).collect(),
        output_tokens: 65,
        output,
        after: after.into(),
        think_s,
        class: 0,
        tenant: 0,
    }
}

/// Conversations whose every turn is the one before with its answer and a question.
fn conversations(count: u64, turns: u64) -> Workload {
    let script = |number: u64| {
        let id = |turn: u64, part: u64| 1 + (number * turns + turn) * 2 + part;
        let mut prompt = vec![(id(0, 0), 4_000)];
        let calls = (0..turns).map(|turn| {
            if turn > 0 {
                prompt.extend([(id(turn - 1, 1), 64), (id(turn, 0), 512)]);
            }
            let after: Vec<u32> =
                turn.checked_sub(1).map(|before| u32::try_from(before).unwrap()).into_iter().collect();
            call(&prompt, id(turn, 1), &after, 2.0)
        });
        Script { at_s: 0.0, calls: calls.collect() }
    };
    Workload {
        name: "conversations".to_owned(),
        pace: Pace::Closed,
        classes: vec!["all".to_owned()],
        scripts: (0..count).map(script).collect(),
    }
}

fn plan<'w>(workload: &'w Workload, chooser: Chooser, seed: u64) -> Plan<'w> {
    Plan {
        workload,
        engines: vec![EngineModel::by_name("llama-3.1-8b").unwrap(); 4],
        host_tokens: 0,
        chooser,
        ablation: Ablation::None,
        load: 6.0,
        seed,
        duration_s: 300.0,
        warm_up_s: 60.0,
        network_delay_s: 0.0005,
        beacons: Beacons { period_s: 0.1, delay_s: 0.2, loss: 0.1 },
        slowdown: None,
    }
}

fn named(name: &str) -> Chooser {
    Chooser::Policy(PolicyConfig { name: name.parse().unwrap(), ..PolicyConfig::default() })
}

#[test]
fn a_run_is_the_same_each_time() {
    let workload = conversations(200, 12);
    let one = |seed| run(&plan(&workload, named("price"), seed));
    assert_eq!(one(3), one(3));
    assert_ne!(one(3), one(4));
}

#[test]
fn all_are_answered_and_the_books_balance() {
    let workload = conversations(200, 12);
    for name in ["price", "round_robin", "least_request", "sticky"] {
        let result = run(&plan(&workload, named(name), 5));
        assert!(result.requests > 1_000, "{name}: {result:?}");
        assert_eq!((result.completed, result.rejected), (result.requests, 0), "{name}");
        assert!((0.0..1.0).contains(&result.hit_rate) && result.busy_share < 1.0, "{name}: {result:?}");
        assert!(result.ttft_p50_s > 0.015 && result.ttft_p50_s <= result.ttft_p99_s, "{name}: {result:?}");
    }
}

#[test]
fn bounds_bound() {
    let workload = conversations(200, 12);
    let hit = |chooser| run(&plan(&workload, chooser, 7)).hit_rate;
    let [oracle, infinite, belady] = BoundName::ALL.map(|bound| hit(Chooser::Bound(bound)));
    let price = hit(named("price"));
    assert!(infinite >= belady - 0.01 && infinite >= oracle - 0.01, "{infinite} {belady} {oracle}");
    assert!(oracle >= price - 0.02 && price > hit(named("round_robin")), "{oracle} {price}");
    assert!(price > 0.8, "{price}");
}

#[test]
fn what_cannot_run_is_rejected() {
    let mut workload = conversations(3, 1);
    workload.scripts[0].calls[0].prompt[0].tokens = 500_000;
    let result = run(&plan(&workload, named("price"), 1));
    assert!(result.rejected > 0 && result.rejected + result.completed == result.requests, "{result:?}");
}
