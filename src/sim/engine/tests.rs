//! What one engine does, request by request.

use super::*;

fn model() -> EngineModel {
    EngineModel::by_name("llama-3.1-8b").unwrap()
}

fn request(id: u32, segments: &[(u64, u32)], output_tokens: u32) -> EngineRequest {
    let prompt = segments.iter().map(|(id, tokens)| Segment { id: *id, tokens: *tokens }).collect();
    EngineRequest { id, prompt, output_tokens, output: 0, seen_tokens: 0, dictated: None }
}

/// Plays `arrivals` (seconds, request) to the end; when each told what.
fn play(engine: &mut SimEngine, arrivals: Vec<(f64, EngineRequest)>) -> Vec<(f64, Emitted)> {
    let mut told = Vec::new();
    let mut out = Vec::new();
    let mut arrivals = arrivals.into_iter().peekable();
    loop {
        let next = arrivals.peek().map(|(at, _)| Now(0).plus(seconds(*at)));
        let now = match (engine.next_at(), next) {
            (Some(own), Some(next)) => own.min(next),
            (own, next) => match own.or(next) {
                Some(now) => now,
                None => return told,
            },
        };
        if engine.next_at() == Some(now) {
            engine.advance(now, &mut out);
        } else if let Some((_, request)) = arrivals.next() {
            engine.submit(request, now, &mut out);
        }
        told.extend(out.drain(..).map(|one| (now.seconds_since(Now(0)), one)));
    }
}

fn at(told: &[(f64, Emitted)], wanted: impl Fn(&Emitted) -> bool) -> f64 {
    told.iter().find(|(_, one)| wanted(one)).unwrap().0
}

#[test]
fn a_lone_request_takes_what_the_model_says() {
    let mut engine = SimEngine::new(model());
    let told = play(&mut engine, vec![(0.0, request(0, &[(1, 8_000)], 101))]);
    let prefill = 1.5e-3 + 8_000.0 * (0.0207e-3 + 8e-10 * 4_000.0);
    assert!((at(&told, |one| matches!(one, Emitted::First { .. })) - prefill).abs() < 1e-6);
    let decode = 100.0 * (6.1e-3 + 0.004e-3 + 4.2e-8 * 8_001.0) + 4.2e-8 * 100.0 * 99.0 / 2.0;
    let end = at(&told, |one| matches!(one, Emitted::Finished { .. }));
    assert!((end - prefill - decode).abs() < 1e-6, "{end}");
    assert!((engine.work().busy_s - end).abs() < 1e-6);
}

#[test]
fn the_second_with_a_prefix_reuses_it_and_its_output_too() {
    let mut engine = SimEngine::new(model());
    let first = EngineRequest { output: 7, ..request(0, &[(1, 8_000)], 129) };
    let told = play(&mut engine, vec![(0.0, first), (9.0, request(1, &[(1, 8_000), (7, 128), (8, 100)], 2))]);
    assert!(told.iter().any(|(_, one)| *one == Emitted::First { id: 1, cached: 8_128 }), "{told:?}");
}

#[test]
fn an_arrival_cuts_a_row_of_steps_short() {
    let mut engine = SimEngine::new(model());
    let told = play(&mut engine, vec![(0.0, request(0, &[(1, 100)], 1_000)), (1.0, request(1, &[(2, 100)], 1))]);
    let first = at(&told, |one| matches!(one, Emitted::First { id: 1, .. }));
    assert!((1.0..1.03).contains(&first), "{first}");
}

#[test]
fn long_prompts_come_in_chunks_and_short_ones_wait_for_one_only() {
    let mut engine = SimEngine::new(model());
    let told = play(&mut engine, vec![(0.0, request(0, &[(1, 80_000)], 1)), (0.01, request(1, &[(2, 100)], 1))]);
    let (long, short) =
        [0, 1].map(|wanted| at(&told, |one| matches!(one, Emitted::First { id, .. } if *id == wanted))).into();
    assert!(long > 3.0 && short >= long, "in order: the step's tokens go to the first: {long} {short}");
}

#[test]
fn memory_runs_out_in_order_and_all_end() {
    let small = EngineModel { kv_tokens: 3_000, ..model() };
    let mut engine = SimEngine::new(small);
    let arrivals = (0..40).map(|n| (f64::from(n) * 0.001, request(n, &[(u64::from(n) + 1, 500)], 400))).collect();
    let told = play(&mut engine, arrivals);
    let ends = told.iter().filter(|(_, one)| matches!(one, Emitted::Finished { .. })).count();
    let firsts = told.iter().filter(|(_, one)| matches!(one, Emitted::First { .. })).count();
    assert_eq!((ends, firsts), (40, 40));
    assert!(engine.work().preemptions > 0);
    assert_eq!(engine.gauges(), Gauges { evicted_tokens: engine.gauges().evicted_tokens, ..Gauges::default() });
    assert_eq!(engine.memory.available(), 3_000, "nothing leaks");
    let refused = play(&mut engine, vec![(0.0, request(99, &[(9, 2_900)], 200))]);
    assert_eq!(refused, [(0.0, Emitted::Refused { id: 99 })]);
}

#[test]
fn a_step_that_does_both_takes_the_decodes_and_the_prefill_without_its_base() {
    let model = model();
    let mut engine = SimEngine::new(model.clone());
    let arrivals = vec![(0.0, request(0, &[(1, 1_000)], 500)), (1.0, request(1, &[(2, 4_000)], 2))];
    let told = play(&mut engine, arrivals);
    let first = at(&told, |one| matches!(one, Emitted::First { id: 1, .. }));
    // It waits for the end of the step under way; then one step for both.
    let both = model.decode_base_s + model.decode_s(1.0, 1_150.0) + model.prefill_s(4_000.0, 0.0);
    assert!((both..both + 0.0066).contains(&(first - 1.0)), "{first} {both}");
}

#[test]
fn no_more_run_at_once_than_the_engine_takes() {
    let mut engine = SimEngine::new(model());
    let mut out = Vec::new();
    for id in 0..300 {
        engine.submit(request(id, &[(u64::from(id) + 1, 20)], 100), Now(0), &mut out);
    }
    // The first has begun alone; the others come with the next step, together.
    let now = engine.next_at().unwrap();
    engine.advance(now, &mut out);
    let gauges = engine.gauges();
    assert_eq!((gauges.running, gauges.waiting), (256, 44));
}

#[test]
fn a_step_has_no_more_tokens_than_it_may() {
    let mut engine = SimEngine::new(model());
    let arrivals = vec![(0.0, request(0, &[(1, 20_000)], 1))];
    let told = play(&mut engine, arrivals);
    // Three steps: 8,192 and 8,192 and 3,616 tokens, each with its base.
    let model = model();
    let steps = [(8_192.0, 0.0), (8_192.0, 8_192.0), (3_616.0, 16_384.0)];
    let expected: f64 = steps.iter().map(|(new, before)| model.prefill_base_s + model.prefill_s(*new, *before)).sum();
    let first = at(&told, |one| matches!(one, Emitted::First { .. }));
    assert!((first - expected).abs() < 1e-6, "{first} {expected}");
}

#[test]
fn what_is_in_the_hosts_memory_comes_back_at_26_ms_a_gigabyte() {
    let small = EngineModel { kv_tokens: 10_000, ..model() }.with_host_tier_gb(10.0);
    let mut engine = SimEngine::new(small);
    let arrivals = vec![
        (0.0, request(0, &[(1, 9_600)], 1)),
        (5.0, request(1, &[(2, 9_600)], 1)),
        (10.0, request(2, &[(1, 9_600), (3, 160)], 1)),
    ];
    let told = play(&mut engine, arrivals);
    let cached = told.iter().find_map(|(_, one)| match one {
        Emitted::First { id: 2, cached } => Some(*cached),
        Emitted::First { .. } | Emitted::Finished { .. } | Emitted::Refused { .. } => None,
    });
    assert_eq!(cached, Some(9_600));
    let first = at(&told, |one| matches!(one, Emitted::First { id: 2, .. })) - 10.0;
    let model = model();
    let restored_s = 9_600.0 * 131_072.0 / 1e9 * 0.026;
    let expected = model.prefill_base_s + model.prefill_s(160.0, 9_600.0) + restored_s;
    // What of the first prompt is still on the device need not come back.
    assert!(first <= expected + 1e-6 && first > expected * 0.9, "{first} {expected}");
}

#[test]
fn an_engine_with_slots_runs_as_many_as_it_has_and_keeps_one_each() {
    let model = EngineModel { sequences_max: 2, kv_tokens: 2_048, ..EngineModel::by_name("llama.cpp").unwrap() };
    let mut engine = SimEngine::new(model);
    let arrivals = (0..4).map(|n| (0.0, request(n, &[(u64::from(n) + 1, 500)], 20))).collect();
    let told = play(&mut engine, arrivals);
    let ends = told.iter().filter(|(_, one)| matches!(one, Emitted::Finished { .. })).count();
    let first = |wanted: u32| at(&told, |one| matches!(one, Emitted::First { id, .. } if *id == wanted));
    let end = at(&told, |one| matches!(one, Emitted::Finished { .. }));
    assert!(ends == 4 && first(1) < end && first(2) > end, "{told:?}");
    // The last two are there; a prompt that goes on from one of them finds it, one from the first does not.
    let held = |id: u64| engine.held(&[Segment { id, tokens: 500 }, Segment { id: 99, tokens: 50 }]).device;
    assert_eq!((held(4), held(1)), (500, 0));
    let refused = play(&mut engine, vec![(0.0, request(9, &[(9, 1_024)], 10))]);
    assert_eq!(refused, [(0.0, Emitted::Refused { id: 9 })], "it fits into no slot");
    assert_eq!(engine.work().preemptions, 0);
}
