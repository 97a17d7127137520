//! A fleet: one trace of conversations through a real gateway before four real llama.cpp servers that are too small for
//! it, and through the simulator, whole. The hit rates must agree.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;

use emberlane::config::PolicyConfig;
use emberlane::sim::model::EngineModel;
use emberlane::sim::run::{Ablation, Beacons, Chooser, Plan, run};
use emberlane::sim::workload::{Call, Pace, Script, Segment, Workload};

use crate::support::engine::{Engine, urls};
use crate::support::gateway::Setup;
use crate::support::http::Client;
use crate::support::time::{now, pause};

const REPLICAS: usize = 4;
const SLOTS: u32 = 3;
const CONTEXT: u32 = 3 * 1024;
const CONVERSATIONS: u64 = 40;
const TURNS: u64 = 7;
/// Each is played so often for real: what is found depends on who comes a millisecond before whom.
const ROUNDS: u64 = 2;
/// Of the prompt tokens.
const AGREE_WITHIN: f64 = 0.05;

/// Conversations that begin one after the other, more of them at a time than there are slots. What is asked grows by a few
/// dozen tokens a turn.
fn trace() -> Workload {
    let mut dice = fastrand::Rng::with_seed(17);
    let mut at_s = 0.0;
    let conversation = |number: u64| {
        at_s += 0.7 * dice.f64();
        let mut prompt = Vec::new();
        let calls = (0..TURNS).map(|turn| {
            let tokens = if turn == 0 { dice.u32(100..300) } else { dice.u32(20..90) };
            prompt.push(Segment { id: number * 100 + turn + 1, tokens });
            Call {
                prompt: prompt.clone().into(),
                output_tokens: dice.u32(4..16),
                output: 0,
                after: turn.checked_sub(1).map(|before| u32::try_from(before).unwrap()).into_iter().collect(),
                think_s: if turn == 0 { 0.0 } else { 0.2 + 0.8 * dice.f32() },
                class: 0,
                tenant: 0,
            }
        });
        Script { at_s, calls: calls.collect() }
    };
    let scripts = (0..CONVERSATIONS).map(conversation).collect();
    let classes = vec!["all".to_owned()];
    Workload { name: "conversations".to_owned(), pace: Pace::Timed, classes, scripts, hot: None }
}

/// What a segment is made of: as many tokens, which differ from those of any other from the first on.
fn tokens(segment: &Segment) -> impl Iterator<Item = u32> {
    let mut dice = fastrand::Rng::with_seed(segment.id);
    let first = 300 + u32::try_from(segment.id % 1_000 + segment.id / 1_000).unwrap();
    std::iter::once(first).chain((1..segment.tokens).map(move |_| dice.u32(1_500..4_000)))
}

/// Plays the trace for real; prompt tokens in all, and those that engines found.
fn real(workload: &Workload, policy: &'static str) -> Option<(u64, u64)> {
    let engines = Engine::llama_with(REPLICAS, SLOTS as usize, CONTEXT as usize, &["--no-host-cache"])?;
    let gateway = Setup::new(&urls(&engines)).policy(policy).yaml("warm_up: off").start();
    let (asked, found) = (AtomicU64::new(0), AtomicU64::new(0));
    let start = now();
    let wait_until = |at_s: f64| pause(Duration::from_secs_f64(at_s).saturating_sub(start.elapsed()));
    let talk = |script: &Script| {
        wait_until(script.at_s);
        for call in &script.calls {
            pause(Duration::from_secs_f32(call.think_s));
            let prompt: Vec<u32> = call.prompt.iter().flat_map(tokens).collect();
            let body = json!({"model": "m", "prompt": prompt, "max_tokens": call.output_tokens, "ignore_eos": true,
                              "temperature": 0.0});
            let mut client = Client::connect(gateway.listen).unwrap();
            let answer = client.exchange("POST", "/v1/completions", &[], body.to_string().as_bytes()).unwrap();
            assert_eq!(answer.status(), 200, "{}", answer.text());
            let usage = &answer.json()["usage"];
            assert_eq!(usage["prompt_tokens"], prompt.len(), "{usage}");
            asked.fetch_add(prompt.len() as u64, Ordering::Relaxed);
            let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().expect("engines say what they found");
            found.fetch_add(cached, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for script in &workload.scripts {
            scope.spawn(|| talk(script));
        }
    });
    Some((asked.into_inner(), found.into_inner()))
}

/// Plays it in the simulator.
fn simulated(workload: &Workload, policy: &str) -> f64 {
    let model = EngineModel::by_name("llama.cpp").unwrap();
    let model = EngineModel { kv_tokens: CONTEXT.into(), sequences_max: SLOTS as usize, ..model };
    let result = run(&Plan {
        workload,
        engines: vec![model; REPLICAS],
        chooser: Chooser::Policy(PolicyConfig::from_spec(policy).unwrap()),
        ablation: Ablation::None,
        load: 1.0,
        seed: 1,
        duration_s: 120.0,
        warm_up_s: 0.0,
        network_delay_s: 0.0002,
        // The gateway scrapes nothing either.
        beacons: Beacons { period_s: 0.0, delay_s: 0.0, loss: 0.0 },
        slowdown: None,
        history_period_s: 0.0,
    });
    assert_eq!(result.completed, CONVERSATIONS * TURNS, "{result:?}");
    result.hit_rate
}

#[test]
fn a_fleet_finds_what_the_simulator_says_it_finds() {
    let workload = trace();
    for policy in ["price", "round_robin"] {
        let (mut asked, mut found) = (0, 0);
        for _ in 0..ROUNDS {
            let Some(round) = real(&workload, policy) else { return };
            (asked, found) = (asked + round.0, found + round.1);
        }
        let (real, simulated) = (found as f64 / asked as f64, simulated(&workload, policy));
        assert!(
            (real - simulated).abs() < AGREE_WITHIN,
            "{policy}: {real:.3} of {asked} found, {simulated:.3} in the simulator"
        );
    }
}
