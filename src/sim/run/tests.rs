//! Whole runs of small workloads.

use super::*;
use crate::sim::workload::{Call, HotPrefixes, Pace, Script, Source};

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
        hot: None,
    }
}

fn plan<'w>(workload: &'w Workload, chooser: Chooser, seed: u64) -> Plan<'w> {
    Plan {
        workload,
        engines: vec![EngineModel::by_name("llama-3.1-8b").unwrap(); 4],
        chooser,
        ablation: Ablation::None,
        load: 6.0,
        seed,
        duration_s: 300.0,
        warm_up_s: 60.0,
        network_delay_s: 0.0005,
        beacons: Beacons { period_s: 0.1, delay_s: 0.2, loss: 0.1 },
        slowdown: None,
        history_period_s: 0.0,
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

/// Lone requests with a prefix of 8,000 tokens each: one of forty, or, between 100 and 200 s, mostly the first.
fn hot_prefix() -> Workload {
    let mut random = fastrand::Rng::with_seed(3);
    let mut at_s = 0.0;
    let script = |number: u64| {
        at_s += if (100.0..200.0).contains(&at_s) { 0.05 } else { 0.2 };
        let is_hot = (100.0..200.0).contains(&at_s) && random.u8(..4) > 0;
        let prefix = if is_hot { 1 } else { random.u64(1..=40) };
        Script { at_s, calls: Box::new([call(&[(prefix, 8_000), (100 + number, 50)], 0, &[], 0.0)]) }
    };
    let scripts = (0..4_000).map(script).take_while(|script| script.at_s < 300.0).collect();
    let hot = HotPrefixes { prefixes: vec![Segment { id: 1, tokens: 8_000 }], from_s: 100.0, until_s: 200.0 };
    let classes = vec!["all".to_owned()];
    Workload { name: "hot".to_owned(), pace: Pace::Timed, classes, scripts, hot: Some(hot) }
}

#[test]
fn who_holds_a_hot_prefix_is_seen() {
    let workload = hot_prefix();
    let played = |name: &str| {
        let plan = plan(&workload, named(name), 5);
        run(&Plan { load: 1.0, history_period_s: 10.0, duration_s: 240.0, ..plan })
    };
    let (sticky, spread) = (played("sticky"), played("round_robin"));
    for found in [sticky.holders_before, sticky.holders_while_hot, sticky.holders_after] {
        assert_eq!(found, Some(1.0), "{sticky:?}");
    }
    assert_eq!((spread.holders_while_hot, sticky.holder_changes_per_min), (Some(4.0), Some(0.0)));
    let shares = |result: &RunResult| {
        let series = result.series.iter().find(|series| series.name.starts_with("share of")).unwrap();
        let at = series.at_s.iter().position(|at| *at >= 150.0).unwrap();
        series.values.iter().map(|values| values[at]).collect::<Vec<_>>()
    };
    assert!(shares(&sticky).contains(&100.0), "{:?}", shares(&sticky));
    assert!(shares(&spread).iter().all(|share| (20.0..30.0).contains(share)), "{:?}", shares(&spread));
    let lengths =
        spread.series.iter().flat_map(|series| series.values.iter().map(|values| (values.len(), &series.at_s)));
    assert!(lengths.clone().all(|(values, at_s)| values == at_s.len() && values == 30), "{lengths:?}");
    let holding = spread.series.iter().find(|series| series.name.contains("hold")).unwrap();
    assert!((holding.values[0][15] - 4.0).abs() < 1e-6, "{holding:?}");
}

#[test]
fn herds_are_seen() {
    let workload = hot_prefix();
    let herding = |name: &str, beacons: Beacons| {
        let plan = plan(&workload, named(name), 5);
        run(&Plan { load: 1.0, duration_s: 240.0, beacons, ..plan }).herding.unwrap()
    };
    let late = Beacons { period_s: 1.0, delay_s: 0.5, loss: 0.0 };
    assert!(herding("random", late).abs() < 0.02, "{}", herding("random", late));
    // In turn is more even than by lot.
    assert!(herding("round_robin", late) < -0.05);
    // Where the prefix is held by one replica only, none goes astray.
    assert!(herding("sticky", late).abs() < 0.02, "{}", herding("sticky", late));
}

/// Runs `workload` on two replicas as they are and two that `change` makes others; the share of requests that the latter
/// got.
fn on_unlike(
    workload: &Workload,
    name: &str,
    load: f64,
    change: impl Fn(EngineModel) -> EngineModel,
) -> (RunResult, f64) {
    let mut plan = plan(workload, named(name), 11);
    (plan.load, plan.history_period_s, plan.duration_s) = (load, 5.0, 600.0);
    for engine in plan.engines.iter_mut().skip(2) {
        *engine = change(engine.clone());
    }
    let result = run(&plan);
    let series = result.series.iter().find(|series| series.name.starts_with("requests placed")).unwrap();
    let sums: Vec<f32> = series.values.iter().map(|values| values.iter().sum()).collect();
    let share = f64::from(sums[2] + sums[3]) / f64::from(sums.iter().sum::<f32>());
    (result, share)
}

#[test]
fn the_share_of_requests_follows_speed() {
    // Lone prompts, so that nothing but speed tells replicas apart, at nine tenths of what the four can do together.
    let mut random = fastrand::Rng::with_seed(2);
    let mut at_s = 0.0;
    let script = |number: u64| {
        at_s += -random.f64().ln() * 0.085;
        Script { at_s, calls: Box::new([call(&[(number + 1, 8_000)], 0, &[], 0.0)]) }
    };
    let scripts = (0..9_000).map(script).collect();
    let classes = vec!["all".to_owned()];
    let workload = Workload { name: "lone".to_owned(), pace: Pace::Timed, classes, scripts, hot: None };
    let half = |engine: EngineModel| engine.at_speed(0.5);
    let (price, share) = on_unlike(&workload, "price", 1.0, half);
    assert!((0.2..0.4).contains(&share), "a third of the work is right: {share}");
    let (blind, even) = on_unlike(&workload, "round_robin", 1.0, half);
    assert!((even - 0.5).abs() < 0.01, "{even}");
    assert!(price.ttft_p90_s < blind.ttft_p90_s / 2.0, "{} {}", price.ttft_p90_s, blind.ttft_p90_s);
}

#[test]
fn half_the_memory_is_known_or_learned() {
    let workload = conversations(400, 30);
    // Contexts of four to twenty thousand tokens: eight a replica fill half of the smaller ones.
    let smaller = |tokens: u64, is_configured: bool| {
        move |engine: EngineModel| EngineModel { kv_tokens: tokens, is_configured, ..engine }
    };
    let (told, _) = on_unlike(&workload, "price", 10.0, smaller(60_000, true));
    let (learned, _) = on_unlike(&workload, "price", 10.0, smaller(60_000, false));
    let (blind, _) = on_unlike(&workload, "least_request", 10.0, smaller(60_000, true));
    assert!(told.hit_rate > blind.hit_rate + 0.1, "{} {}", told.hit_rate, blind.hit_rate);
    assert!((told.hit_rate - learned.hit_rate).abs() < 0.05, "{} {}", told.hit_rate, learned.hit_rate);
}

#[test]
fn what_cannot_run_is_rejected() {
    let mut workload = conversations(3, 1);
    workload.scripts[0].calls[0].prompt[0].tokens = 500_000;
    let result = run(&plan(&workload, named("price"), 1));
    assert!(result.rejected > 0 && result.rejected + result.completed == result.requests, "{result:?}");
}

#[test]
fn requests_wait_at_the_gateway_when_there_is_too_much_to_do_and_none_is_lost() {
    let workload = conversations(400, 12);
    let overloaded = |spec: &str| {
        let chooser = Chooser::Policy(PolicyConfig::from_spec(spec).unwrap());
        let engines = vec![EngineModel::by_name("llama-3.1-70b").unwrap(); 4];
        run(&Plan { load: 60.0, engines, ..plan(&workload, chooser, 5) })
    };
    let (waiting, at_once) = (overloaded("price"), overloaded("price(wait=false)"));
    assert!(waiting.admission_wait_mean_s > 0.1, "{waiting:?}");
    assert!(at_once.admission_wait_mean_s <= 0.0, "{at_once:?}");
    assert_eq!(waiting.rejected, 0);
    assert!(waiting.ttft_p90_s < at_once.ttft_p90_s, "{waiting:?}\n{at_once:?}");
    assert!(waiting.output_tokens_per_s > 0.95 * at_once.output_tokens_per_s, "{waiting:?}\n{at_once:?}");
}

#[test]
fn beyond_what_caches_hold_conversations_stay_warm_and_all_have_their_turn() {
    let workload = Source::open("perf/traces/agent_sessions.jsonl.gz").unwrap().workload(1);
    let overloaded = |spec: &str| {
        let chooser = Chooser::Policy(PolicyConfig::from_spec(spec).unwrap());
        let engines = vec![EngineModel::by_name("qwen3-32b").unwrap(); 8];
        run(&Plan { load: 8.0, duration_s: 1_500.0, engines, ..plan(&workload, chooser, 1) })
    };
    let (ours, in_turn) = (overloaded("price"), overloaded("price(patience=0,regeneration_max=1000)"));
    let at_once = overloaded("price(wait=false)");
    assert_eq!((ours.rejected, ours.completed), (0, ours.requests));
    for other in [&in_turn, &at_once] {
        assert!(ours.output_tokens_per_s > 1.1 * other.output_tokens_per_s, "{ours:?}\n{other:?}");
        assert!(ours.hit_rate > other.hit_rate + 0.2, "{ours:?}\n{other:?}");
        assert!(ours.ttft_from_arrival_p50_s < 0.5 * other.ttft_from_arrival_p50_s, "{ours:?}\n{other:?}");
        assert!(ours.ttft_from_arrival_mean_s < 1.1 * other.ttft_from_arrival_mean_s, "{ours:?}\n{other:?}");
    }
    assert!(ours.ttft_from_arrival_p50_s >= ours.ttft_p50_s && ours.ttft_from_arrival_p99_s < 600.0, "{ours:?}");
}
