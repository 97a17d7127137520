//! Rows of the load plane's way to the decision: a report through a ring, its fold into a shard's columns, and whole
//! decisions while every replica reports a hundred times a second, by the size of the fleet.

use std::cell::RefCell;

use emberlane::{
    clock::Now,
    id::ReplicaSlot,
    load::{
        LoadColumns,
        columns::ReportColumns,
        report::{LoadReport, LoadSource},
        ring::rings,
    },
};

use crate::{
    decision, measure,
    row::{Goal, Options, Row},
    world::{Chats, World},
};

/// Replicas of the largest fleet.
const REPLICAS_MAX: usize = ReplicaSlot::LIMIT;
/// Replicas of the smallest, beside which the others are measured in the same run.
const REPLICAS_MIN: usize = 16;
/// Bytes of a prompt.
const PROMPT: usize = 8 << 10;
/// Conversations that take turns.
const CHATS: usize = 512;
/// Requests in a row to each contender.
const TURN: usize = 50;
/// Reports timed together.
const BATCH: usize = 512;

pub(crate) fn rows(options: &Options) -> Vec<Row> {
    let mut rows = vec![ring(options), fold(options)];
    rows.extend([256, 1024, REPLICAS_MAX].into_iter().flat_map(|replicas| decisions(options, replicas)));
    rows
}

/// Reports of all replicas in an order without a pattern, each saying something new.
fn reports() -> Vec<LoadReport> {
    let mut random = fastrand::Rng::with_seed(9);
    let report = |number: u64| LoadReport {
        slot: ReplicaSlot::from_index(random.usize(..REPLICAS_MAX)).unwrap(),
        source: LoadSource::Beacon,
        received: Now(number),
        period_us: 10_000,
        running: random.u32(..200),
        waiting: random.u32(..4),
        own_in_flight: random.u32(..100),
        prefill_tokens: Some(random.u32(..10_000)),
        own_prefill_tokens: random.u32(..5_000),
        kv_usage: Some(random.f32()),
    };
    (0..64 * BATCH as u64).map(report).collect()
}

/// Publishes to one reader and drains, both on this core; beside it, what a locked queue takes.
fn ring(options: &Options) -> Row {
    let reports = reports();
    let (mut publishers, mut inboxes) = rings(1, 1, 4 * BATCH);
    let (publisher, inbox) = (&mut publishers[0], &mut inboxes[0]);
    let queue = parking_lot::Mutex::new(std::collections::VecDeque::with_capacity(BATCH));
    let (mut sum, mut drained) = (0, 0);
    let (ours, theirs) = measure::against(
        options.repeats(4000),
        1,
        |call| {
            let from = call % 64 * BATCH;
            reports[from..from + BATCH].iter().for_each(|report| publisher.publish(*report));
            drained += inbox.drain(BATCH, |report| sum += u64::from(report.running));
        },
        |call| {
            let from = call % 64 * BATCH;
            reports[from..from + BATCH].iter().for_each(|report| queue.lock().push_back(*report));
            while let Some(report) = queue.lock().pop_front() {
                std::hint::black_box(report.running);
            }
        },
    );
    assert!(sum > 0 && drained % BATCH == 0 && inbox.bell().dropped() == 0);
    let each = |nanoseconds: f64| nanoseconds / BATCH as f64;
    Row::new("load/ring", each(ours.p50()), "ns").against("locked queue", each(theirs.p50()))
}

/// Folds reports of 4,096 replicas; beside it, what a map by slot takes.
fn fold(options: &Options) -> Row {
    let mut reports = reports();
    let load = LoadColumns::new(REPLICAS_MAX);
    let mut columns = ReportColumns::new(REPLICAS_MAX);
    let mut map = std::collections::HashMap::new();
    let mut rival = reports.clone();
    let next = |reports: &mut Vec<LoadReport>, call: usize| {
        let from = call % 64 * BATCH;
        // Each time they come round, they are newer.
        reports[from..from + BATCH].iter_mut().for_each(|report| report.received.0 += 64 * BATCH as u64);
        from
    };
    let prepared = RefCell::new((&mut reports, &mut rival));
    let (ours, theirs) = measure::prepared(
        options.repeats(4000),
        1,
        1,
        |call| {
            let mut both = prepared.borrow_mut();
            next(both.0, call);
            next(both.1, call);
        },
        |call| {
            let both = prepared.borrow();
            both.0[call % 64 * BATCH..][..BATCH].iter().for_each(|report| columns.fold(report, &load));
        },
        |call| {
            let both = prepared.borrow();
            both.1[call % 64 * BATCH..][..BATCH].iter().for_each(|report| {
                map.insert(report.slot, *report);
            });
        },
    );
    assert_eq!(columns.outdated(), 0);
    let each = |nanoseconds: f64| nanoseconds / BATCH as f64;
    Row::new("load/fold", each(ours.p50()), "ns").against("map", each(theirs.p50())).goal(Goal::AtMost(10.0))
}

/// Whole decisions with live reports, beside those of the smallest fleet in the same run.
fn decisions(options: &Options, replicas: usize) -> Vec<Row> {
    let mut worlds = [replicas, REPLICAS_MIN].map(|replicas| {
        let mut world = decision::filled(options, replicas);
        let chats = Chats::new(if options.quick { CHATS / 16 } else { CHATS }, PROMPT);
        for body in chats.originals() {
            for _ in 0..3 {
                world.report();
                world.serve(body);
            }
        }
        (world, chats)
    });
    let [(large, large_chats), (small, small_chats)] = &mut worlds;
    let (large, small) = (RefCell::new(large), RefCell::new(small));
    let sockets = RefCell::new((Vec::with_capacity(2 * PROMPT), Vec::with_capacity(2 * PROMPT)));
    let mut turn = 0;
    let (ours, theirs) = measure::prepared(
        options.repeats(6000),
        1,
        TURN,
        |call| {
            let (ours, theirs) = &mut *sockets.borrow_mut();
            for (socket, chats) in [(ours, &mut *large_chats), (theirs, &mut *small_chats)] {
                socket.clear();
                socket.extend_from_slice(chats.request(call));
            }
            let world = if (turn / TURN).is_multiple_of(2) { &large } else { &small };
            world.borrow_mut().report();
            turn += 1;
        },
        |_| serve(&mut large.borrow_mut(), &sockets.borrow().0),
        |_| serve(&mut small.borrow_mut(), &sockets.borrow().1),
    );
    let decision = |count: usize, time: f64| Row::new(format!("load/decision/{count}-replicas"), time / 1e3, "µs");
    let mut rows = vec![decision(replicas, ours.p50()).against("16 replicas", theirs.p50() / 1e3)];
    if replicas == REPLICAS_MAX {
        rows.push(decision(REPLICAS_MIN, theirs.p50()));
        let ratio = Row::ratio("load/decision/4096-to-16", ours.p50() / theirs.p50(), "16 replicas");
        rows.push(ratio.goal(Goal::AtMost(2.0)));
    }
    rows
}

/// One request, decided by what was heard a moment ago.
fn serve(world: &mut World, body: &[u8]) {
    let decision = world.serve(body);
    assert_eq!(usize::from(decision.candidates), world.replicas());
    assert!(decision.chosen.load_age().is_some_and(|age| age.as_millis() <= 30));
}
