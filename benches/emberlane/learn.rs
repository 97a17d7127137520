//! Rows of predictions: the times to first token of all candidates of one request, as columns in SIMD lanes and as a list
//! of structs that are asked one by one; and what learning from one answer takes.

use emberlane::{
    clock::Now,
    id::ReplicaSlot,
    learn::{Band, Coefficients, Features, LearnedRates, Member, Prediction, Rates, Timing},
    load::backlog::{Backlog, CHUNK_TOKENS},
    policy::latency::{LatencyColumns, Load},
};

use crate::{
    measure,
    row::{Goal, Options, Row},
};

/// Calls timed together.
const BATCH: usize = 64;
/// Inputs that take turns.
const INPUTS: usize = 16;
/// Tokens of a prompt, at most.
const PROMPT_TOKENS: f32 = 80_000.0;

pub(crate) fn rows(options: &Options) -> Vec<Row> {
    let mut rows: Vec<Row> = [16, 256, 4096].iter().map(|replicas| predict(options, *replicas)).collect();
    rows.push(learn(options));
    rows
}

/// A replica as structs have it.
struct Replica {
    learned: Coefficients,
    load: Load,
}

impl Replica {
    /// The same formula, for one replica.
    fn predict(&self, prompt_tokens: f32, warm_tokens: f32) -> Prediction {
        self.learned.predict(&self.load.features(prompt_tokens, warm_tokens))
    }
}

fn replica(random: &mut fastrand::Rng) -> Replica {
    let learned = Coefficients {
        base_s: 0.015 + 0.01 * random.f32(),
        token_s: 2e-5 * (1.0 + random.f32()),
        pair_s: 8e-10 * (1.0 + random.f32()),
        travel_s: 0.015,
        ahead: 1.0,
        steps: 1.0,
        ttft: [[1.0, 1.2]; Band::COUNT],
        step_s: 0.006,
        step_request_s: 4e-6,
        step_token_s: 4.2e-8,
        tpot: [[1.0, 1.2], [1.0, 1.4]],
        ..Coefficients::default()
    };
    let prefills = u32::from(random.u8(..3));
    let step_s = if random.bool() { 0.02 * random.f32() } else { 0.0 };
    let backlog = Backlog {
        prefills,
        // Where nothing stands before it, half a step is left.
        ahead_s: if prefills > 0 { random.f32() } else { 0.5 * step_s },
        room_tokens: CHUNK_TOKENS * random.f32(),
        step_s,
        is_full: false,
        decoding: 0,
        generated_tokens: 0.0,
        prefill_share: random.f32(),
    };
    let load = Load {
        backlog,
        others_s: if random.u8(..8) == 0 { random.f32() } else { 0.0 },
        requests: f32::from(random.u8(..32)),
        context_tokens: 4e5 * random.f32(),
    };
    Replica { learned, load }
}

/// The times to first token of one request at all of `replicas`.
fn predict(options: &Options, replicas: usize) -> Row {
    let (mut random, now) = (fastrand::Rng::with_seed(12), Now(7_000_000_000));
    let structs: Vec<Replica> = (0..replicas).map(|_| replica(&mut random)).collect();
    let mut columns = LatencyColumns::default();
    columns.reset(replicas);
    columns.set_now(now);
    for (place, replica) in structs.iter().enumerate() {
        columns.learn(place, &replica.learned);
        columns.settle(place, &replica.load);
    }
    let warm =
        |_| (0..replicas).map(|_| if random.u8(..8) == 0 { PROMPT_TOKENS * random.f32() } else { 0.0 }).collect();
    let inputs: Vec<Vec<f32>> = (0..INPUTS).map(warm).collect();
    let prompt = |call: usize| PROMPT_TOKENS - (call % 100) as f32;
    let [mut p50, mut p90, mut their_p50, mut their_p90] = [0, 1, 2, 3].map(|_| vec![0.0_f32; replicas]);
    let (ours, theirs) = measure::against(
        options.repeats(4000),
        BATCH,
        |call| columns.predict_ttft(prompt(call), &inputs[call % INPUTS], &mut p50, &mut p90),
        |call| {
            for (place, replica) in structs.iter().enumerate() {
                let said = replica.predict(prompt(call), inputs[call % INPUTS][place]);
                (their_p50[place], their_p90[place]) = (said.ttft_p50_s, said.ttft_p90_s);
            }
        },
    );
    for (ours, theirs) in p50.iter().chain(&p90).zip(their_p50.iter().chain(&their_p90)) {
        assert!((ours - theirs).abs() < 1e-4 + 1e-3 * theirs, "{ours} {theirs}");
    }
    let row = Row::new(format!("learn/predict/{replicas}-replicas"), ours.p50(), "ns").against("structs", theirs.p50());
    if replicas == 256 { row.goal(Goal::AtMost(100.0)) } else { row }
}

/// One answer, learned from.
fn learn(options: &Options) -> Row {
    let prior = Rates { base_s: 0.01, prefill_s_per_token: 1.25e-4, decode_s_per_token: 0.01 };
    let rates = LearnedRates::new(4, prior);
    rates.assign(&[Member { slot: ReplicaSlot(0), pool: "m", prefill_tokens_per_s: None }]);
    let mut random = fastrand::Rng::with_seed(5);
    let features = |random: &mut fastrand::Rng| Features {
        uncached_tokens: 4000.0 * random.f32(),
        cached_tokens: PROMPT_TOKENS * random.f32(),
        requests: f32::from(random.u8(..8)),
        context_tokens: 4e5 * random.f32(),
        step_s: if random.bool() { 0.01 } else { 0.0 },
        ..Features::default()
    };
    let inputs: Vec<Features> = (0..INPUTS).map(|_| features(&mut random)).collect();
    let mut learn = |call: usize| {
        let features = &inputs[call % INPUTS];
        let first_token_s = 0.02 + f64::from(features.uncached_tokens) * 3e-5;
        let predicted = rates.coefficients(ReplicaSlot(0)).predict(features);
        let timing =
            Timing { first_token_s, total_s: first_token_s + 2.0, output_tokens: Some(200), ..Timing::default() };
        rates.learn_times(ReplicaSlot(0), features, &predicted, &timing);
    };
    let (ours, _) = measure::against(options.repeats(2000), BATCH, &mut learn, |_| ());
    assert!(rates.is_predictable(ReplicaSlot(0)));
    Row::new("learn/answer", ours.p50(), "ns")
}
