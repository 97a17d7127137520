//! The view follows what changes, and shows who may take the request.

use super::super::{Decision, PoolTraits, SharedConfig};
use super::*;
use crate::config::{Config, EjectionConfig, ReplicaConfig};
use crate::fleet::Registry;
use crate::id::{DecisionId, ReplicaSlot};
use crate::learn::{Member, Rates, Sample};
use crate::load::Flight;
use crate::load::report::{LoadReport, LoadSource};
use crate::policy::pick;

const PRIOR: Rates = Rates { base_s: 0.0, prefill_s_per_token: 1e-4, decode_s_per_token: 0.0 };

struct Bench {
    shared: Shared,
    registry: Registry,
    candidates: Candidates,
    chain: Vec<BlockHash>,
    depths: WarmDepths,
    placement: Placement,
    reports: ReportColumns,
    rng: fastrand::Rng,
}

impl Bench {
    fn new() -> Self {
        let sizes = SharedConfig { slots_max: 64, index_bytes: 4 << 20, hash_key: [1; 32], prior: PRIOR };
        let decision = Decision::new(DecisionId(0), None, PoolId(0), Now(0), 4096, 1024.0);
        Self {
            shared: Shared::new(&sizes).unwrap(),
            registry: Registry::new(64),
            candidates: Candidates::default(),
            chain: Vec::new(),
            depths: WarmDepths::new(64),
            placement: Placement::new(decision, 7),
            reports: ReportColumns::new(64),
            rng: fastrand::Rng::with_seed(3),
        }
    }

    /// A fleet of replicas that each serve the model of the same place.
    fn snapshot(&mut self, models: &[&str]) -> Snapshot {
        let replica = |(place, model): (usize, &&str)| ReplicaConfig {
            models: vec![(*model).to_owned()],
            ..ReplicaConfig::new(format!("r{place}"), format!("http://r{place}:8000").parse().unwrap())
        };
        let replicas = models.iter().enumerate().map(replica).collect();
        let config = Config { replicas, ..Config::default() };
        let (fleet, _) = self.registry.rebuild(&config.replicas, &[], &Default::default(), |_| true).unwrap();
        Snapshot::new(config, fleet, &PoolTraits::default())
    }

    fn seen(&mut self, snapshot: &Snapshot, pool: usize, at_ms: u64) -> Seen<'_> {
        let (pool, now) = (&snapshot.fleet.pools[pool], Now(at_ms * 1_000_000));
        self.reports.advance(now);
        let known = Known { shared: &self.shared, snapshot, reports: &self.reports, now };
        self.candidates.view(known, pool, (&self.chain, &self.depths), &self.placement, &mut self.rng)
    }

    fn view(&mut self, snapshot: &Snapshot, pool: usize, at_ms: u64) -> &View {
        self.seen(snapshot, pool, at_ms).view
    }

    fn slots(&mut self, snapshot: &Snapshot, pool: usize, at_ms: u64) -> Vec<u16> {
        let view = self.view(snapshot, pool, at_ms);
        let is_open = |place: &u16| !view.barred.contains(place);
        (0..).take(view.len()).filter(is_open).map(|place| view.slots[usize::from(place)].0).collect()
    }

    /// The slots whose learned prefill rate differs from the prior.
    fn learned(&mut self, snapshot: &Snapshot, at_ms: u64) -> usize {
        let rates = &self.view(snapshot, 0, at_ms).prefill_s_per_token;
        rates.iter().filter(|rate| (**rate - PRIOR.prefill_s_per_token).abs() > 1e-6).count()
    }
}

#[test]
fn load_and_warmth_are_as_of_now() {
    let mut bench = Bench::new();
    let snapshot = bench.snapshot(&["m"; 3]);
    let chain: Vec<_> = (1..9).map(BlockHash).collect();
    bench.shared.index.record(ReplicaSlot(1), &chain);
    bench.shared.index.lookup(&chain, &mut bench.depths);
    let flight = Flight::start(&bench.shared.load, ReplicaSlot(2), 50, 80, Now(0));
    let view = bench.view(&snapshot, 0, 1);
    assert_eq!((view.in_flight.as_slice(), view.prefill_tokens[2]), ([0.0, 0.0, 1.0].as_slice(), 50.0));
    assert_eq!((view.context_tokens[2], view.kv_tokens[2], view.now), (80.0, 400_000.0, Now(1_000_000)));
    assert_eq!(view.warm_tokens, [0.0, 512.0, 0.0]);
    drop(flight);
    bench.shared.index.lookup(&[BlockHash(99)], &mut bench.depths);
    let view = bench.view(&snapshot, 0, 1);
    assert_eq!((view.in_flight.as_slice(), view.prefill_tokens[2]), ([0.0; 3].as_slice(), 0.0));
    assert_eq!(view.warm_tokens, [0.0; 3]);
}

#[test]
fn ejected_and_tried_replicas_are_no_candidates_and_come_back() {
    let mut bench = Bench::new();
    let snapshot = bench.snapshot(&["m"; 4]);
    let rules = EjectionConfig { consecutive_failures: 1, ..EjectionConfig::default() };
    bench.shared.health.failed(ReplicaSlot(2), &snapshot.fleet.pools[0].members, &rules, Now(0));
    assert_eq!(bench.slots(&snapshot, 0, 1), [0, 1, 3]);
    (bench.placement.tried[0], bench.placement.attempts) = (ReplicaSlot(0), 1);
    assert_eq!(bench.slots(&snapshot, 0, 1), [1, 3]);
    bench.placement.attempts = 0;
    assert_eq!(bench.slots(&snapshot, 0, 2001), [0, 1, 2, 3], "on probation");
    bench.shared.health.succeeded(ReplicaSlot(2));
    assert_eq!(bench.slots(&snapshot, 0, 2001), [0, 1, 2, 3]);
}

#[test]
fn what_changes_slowly_is_read_once_a_sweep() {
    let mut bench = Bench::new();
    let snapshot = bench.snapshot(&["m"; 10]);
    assert_eq!(bench.learned(&snapshot, 1000), 0);
    for _ in 0..200 {
        let sample = Sample { tokens_ahead: 1000.0, output_tokens: 1.0, seconds: 0.4 };
        bench.shared.rates.learn(ReplicaSlot(0), sample);
    }
    let seen = [1000, 1004, 1005, 1014, 1015, 1049, 1050].map(|at_ms| bench.learned(&snapshot, at_ms));
    assert_eq!(seen, [0, 0, 1, 2, 3, 9, 10], "five milliseconds each");
    let configured = Member { slot: ReplicaSlot(0), pool: "m", prefill_tokens_per_s: Some(10.0) };
    bench.shared.rates.assign(&[configured]);
    let rate = bench.view(&snapshot, 0, 9000).prefill_s_per_token[0];
    assert!((rate - 0.1).abs() < 1e-6, "all at once after a pause");
}

#[test]
fn pools_and_snapshots_do_not_mix() {
    let mut bench = Bench::new();
    let models: Vec<String> = (0..POOLS + 2).map(|number| format!("m{number:02}")).collect();
    let models: Vec<&str> = models.iter().map(String::as_str).collect();
    let many = bench.snapshot(&models);
    for _ in 0..2 {
        assert_eq!(bench.slots(&many, 0, 1), [0]);
        assert_eq!(bench.slots(&many, POOLS, 1), [16], "shares its place with the first");
    }
    let fewer = bench.snapshot(&["m00"; 2]);
    assert_eq!(bench.slots(&fewer, 0, 1), [0, 1]);
    assert_eq!(bench.slots(&many, 0, 1), [0]);
}

fn report(slot: u16, at_ms: u64, running: u32, waiting: u32, own: u32) -> LoadReport {
    LoadReport {
        slot: ReplicaSlot(slot),
        source: LoadSource::Beacon,
        received: Now(at_ms * 1_000_000),
        period_us: 10_000,
        running,
        waiting,
        own_in_flight: own,
        prefill_tokens: Some(900),
        own_prefill_tokens: 100,
        kv_usage: Some(0.75),
    }
}

#[test]
fn what_others_have_there_is_added_to_our_own_as_it_is_now_and_fades() {
    let mut bench = Bench::new();
    let snapshot = bench.snapshot(&["m"; 3]);
    bench.view(&snapshot, 0, 100);
    let _before = Flight::start(&bench.shared.load, ReplicaSlot(1), 100, 200, Now(0));
    (0..3).for_each(|_| bench.reports.fold(&report(1, 100, 4, 2, 1), &bench.shared.load));
    let _since = Flight::start(&bench.shared.load, ReplicaSlot(1), 30, 40, Now(0));
    let view = bench.view(&snapshot, 0, 110);
    assert_eq!((view.in_flight[1], view.elsewhere[1], view.prefill_tokens[1]), (7.0, 5.0, 880.0));
    assert_eq!((view.slots_limit[1], view.kv_usage[1]), (4.0, 0.75), "it runs four while two wait");
    assert_eq!((view.in_flight[0], view.kv_usage[0]), (0.0, 0.0));
    assert!(view.latency.ahead_s(1) > view.latency.ahead_s(0));
    let view = bench.view(&snapshot, 0, 145);
    assert_eq!((view.in_flight[1], view.elsewhere[1], view.slots_limit[1]), (4.5, 2.5, 8.0));
    let view = bench.view(&snapshot, 0, 160);
    assert_eq!((view.in_flight[1], view.elsewhere[1], view.prefill_tokens[1]), (2.0, 0.0, 130.0));
    assert_eq!((view.slots_limit[1], view.kv_usage[1]), (f32::INFINITY, 0.0));
}

#[test]
fn each_pool_follows_what_is_heard_at_its_own_pace() {
    let mut bench = Bench::new();
    let snapshot = bench.snapshot(&["m", "n", "m"]);
    assert_eq!(bench.slots(&snapshot, 0, 1), [0, 2]);
    assert_eq!(bench.slots(&snapshot, 1, 1), [1]);
    for ms in 1..9 {
        (0..3).for_each(|slot| {
            bench
                .reports
                .fold(&report(slot, ms, u32::from(slot) + u32::try_from(ms).unwrap(), 0, 0), &bench.shared.load);
        });
        assert_eq!(bench.view(&snapshot, 0, ms).elsewhere, [ms as f32, ms as f32 + 2.0]);
    }
    assert_eq!(bench.view(&snapshot, 1, 9).elsewhere, [9.0]);
}

/// The columns of a view that has followed all along.
fn columns(view: &View) -> [Vec<f32>; 8] {
    let View { in_flight, elsewhere, prefill_tokens, context_tokens, slots_limit, kv_usage, kv_tokens, .. } = view;
    let ahead_s = &(0..view.len()).map(|place| view.latency.ahead_s(place)).collect();
    [in_flight, elsewhere, prefill_tokens, context_tokens, slots_limit, kv_usage, kv_tokens, ahead_s].map(Clone::clone)
}

#[test]
fn a_view_that_follows_changes_is_the_view_that_reads_everything() {
    bolero::check!().with_type::<Vec<(u8, u8, u8)>>().for_each(|steps| {
        let mut bench = Bench::new();
        let snapshot = bench.snapshot(&["m"; 40]);
        let (mut flights, mut at_ms) = (Vec::new(), 1);
        for (kind, slot, count) in steps {
            let slot = u16::from(*slot) % 40;
            at_ms += u64::from(count % 5);
            match kind % 6 {
                0 | 1 => {
                    flights.push(Flight::start(&bench.shared.load, ReplicaSlot(slot), u64::from(*count), 9, Now(0)))
                }
                2 => drop(flights.pop()),
                3 => flights.last_mut().into_iter().for_each(Flight::prefilled),
                4 => bench
                    .reports
                    .fold(&report(slot, at_ms, u32::from(*count), u32::from(kind / 64), 1), &bench.shared.load),
                _ => {
                    let kept = columns(bench.view(&snapshot, 0, at_ms));
                    let followed = std::mem::take(&mut bench.candidates);
                    assert_eq!(kept, columns(bench.view(&snapshot, 0, at_ms)));
                    bench.candidates = followed;
                }
            }
        }
    });
}

impl Bench {
    /// Where `count` requests go, by replica, and how many of them were drawn to those that warm up.
    fn place(&mut self, snapshot: &Snapshot, count: usize) -> (Vec<usize>, usize) {
        let (mut seen, mut drawn, mut costs) = (vec![0; 64], 0, Vec::new());
        for _ in 0..count {
            let found = self.seen(snapshot, 0, 10);
            let (view, side) = (found.view.slots.clone(), found.side);
            costs.resize(found.view.len(), 0.0);
            snapshot.policy.cost(found.view, &mut fastrand::Rng::with_seed(1), &mut costs);
            let best = pick(&costs, &mut self.rng).unwrap().best;
            seen[view[best].index()] += 1;
            drawn += usize::from(side == Some(Side::Warming));
        }
        (seen, drawn)
    }
}

#[test]
fn those_that_warm_up_get_their_share_of_what_is_cold_and_of_nothing_else() {
    let mut bench = Bench::new();
    let snapshot = bench.snapshot(&["m"; 8]);
    // The others are busy: by price alone, all that is cold would go to the newcomer.
    let _busy: Vec<_> =
        (0..7).map(|slot| Flight::start(&bench.shared.load, ReplicaSlot(slot), 50, 90, Now(0))).collect();
    assert_eq!(bench.place(&snapshot, 100).0[7], 100);
    bench.shared.health.warm_up(ReplicaSlot(7), Now(1_000_000_000));
    let (seen, drawn) = bench.place(&snapshot, 4000);
    assert_eq!(seen[7], drawn);
    assert!((900..1100).contains(&drawn), "a quarter of {seen:?}");
    assert!(seen[..7].iter().all(|count| (350..510).contains(count)), "{seen:?}");
    // What is warm somewhere is priced as ever.
    let chain: Vec<_> = (1..17).map(BlockHash).collect();
    bench.shared.index.record(ReplicaSlot(2), &chain);
    bench.shared.index.lookup(&chain, &mut bench.depths);
    let (seen, drawn) = bench.place(&snapshot, 100);
    assert_eq!((seen[2], drawn), (100, 0));
}

#[test]
fn a_fleet_that_warms_up_as_a_whole_and_a_lone_replica_are_not_touched() {
    for count in [1, 3] {
        let mut bench = Bench::new();
        let snapshot = bench.snapshot(&["m"; 3][..count]);
        (0..3).for_each(|slot| bench.shared.health.warm_up(ReplicaSlot(slot), Now(1_000_000_000)));
        let (seen, drawn) = bench.place(&snapshot, 300);
        assert_eq!((drawn, seen.iter().sum::<usize>()), (0, 300));
        assert!(seen[..count].iter().all(|seen| *seen > 60));
    }
}

#[test]
fn without_a_share_of_their_own_newcomers_are_priced_as_ever() {
    let mut bench = Bench::new();
    let mut snapshot = bench.snapshot(&["m"; 4]);
    snapshot.config.warm_up = None;
    bench.shared.health.warm_up(ReplicaSlot(3), Now(1_000_000_000));
    let (seen, drawn) = bench.place(&snapshot, 400);
    assert_eq!(drawn, 0);
    assert!(seen[..4].iter().all(|seen| *seen > 60), "{seen:?}");
}

#[test]
fn hits_are_whole_blocks_of_each_engine_and_what_is_in_host_memory_is_restored() {
    let mut bench = Bench::new();
    let yaml = "replicas:\n\
        - {id: a, url: 'http://a:1', models: [m], kv_block_tokens: 100}\n\
        - {id: b, url: 'http://b:1', models: [m], kv_tokens: 640, host_kv_tokens: 6400, restore_tokens_per_s: 1000000}\n\
        - {id: c, url: 'http://c:1', models: [m], prefill_tokens_per_s: 500}\n\
        - {id: d, url: 'http://d:1', models: [m], kv_tokens: 640}\n";
    let config = crate::config::parse(yaml).unwrap();
    let (fleet, change) = bench.registry.rebuild(&config.replicas, &[], &Default::default(), |_| true).unwrap();
    let snapshot = Snapshot::new(config, fleet, &PoolTraits::default());
    bench.shared.apply(&change, &snapshot, Now(0));
    let said = crate::prefix::memory::Said { block_tokens: Some(64), ..Default::default() };
    bench.shared.hear_cache(ReplicaSlot(2), said, Now(0));
    let chain: Vec<_> = (1..9).map(BlockHash).collect();
    for slot in (0..4).map(ReplicaSlot) {
        bench.shared.index.record(slot, &chain);
        // More than the small ones have room for on their devices.
        let others: Vec<_> = (100..112).map(BlockHash).collect();
        bench.shared.index.record(slot, &others);
    }
    bench.shared.index.lookup(&chain, &mut bench.depths);
    let view = bench.view(&snapshot, 0, 1);
    assert_eq!(view.warm_tokens, [500.0, 512.0, 512.0, 0.0]);
    assert_eq!(view.restore_tokens, [0.0, 512.0, 0.0, 0.0]);
    assert!(view.is_restored);
    let close = |value: f32, wanted: f32| (value / wanted - 1.0).abs() < 1e-2;
    assert!(close(view.restore_s_per_token[1], 1e-6) && close(view.restore_s_per_token[0], 3.4e-6));
    // The whole of a prompt is never found: its last token is computed.
    bench.placement.decision.prompt_tokens = 512.0;
    assert_eq!(bench.view(&snapshot, 0, 2).warm_tokens, [500.0, 512.0, 448.0, 0.0]);
}
