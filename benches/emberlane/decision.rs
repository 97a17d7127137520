//! Rows of the whole decision, from a body's bytes to a placement on record, and of its price alone.

use std::cell::RefCell;

use crate::{
    measure::{self, Times},
    naive::{self, Naive},
    row::{Goal, Options, Row},
    world::{Chats, World},
};
use emberlane::{pipeline::Reason, prefix::BLOCK_BYTES};

/// Replicas, where nothing else is said.
const REPLICAS: usize = 256;
/// Prompt bytes that a replica holds of other conversations: what the default configuration believes of it.
const HELD_BYTES: usize = 1_600_000;
/// The most that all hold together: what fits the index.
const HELD_BYTES_MAX: usize = 256 * HELD_BYTES;
/// Requests in a row to each contender.
const TURN: usize = 50;
/// Bytes of the chats that take turns: as many conversations as a fleet has open at once, so that what is known of one
/// has left the caches when it comes back.
const CHATS_BYTES: usize = 32 << 20;

pub(crate) fn rows(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut gateways_256 = gateways(options, REPLICAS);
    for (label, bytes) in [("1K", 1 << 10), ("8K", 8 << 10), ("32K", 32 << 10), ("128K", 128 << 10)] {
        let (ours, theirs) = decisions(options, bytes, &mut gateways_256);
        let row = Row::new(format!("decision/{label}"), ours.p50() / 1e3, "µs").against("naive", theirs.p50() / 1e3);
        let ratio = Row::ratio(format!("decision/{label}/ratio"), theirs.p50() / ours.p50(), "naive");
        if label == "8K" {
            rows.push(row.goal(Goal::AtMost(10.0)));
            rows.push(ratio.goal(Goal::AtLeast(7.0)));
            rows.push(Row::new("decision/8K/min", ours.min() / 1e3, "µs").against("naive", theirs.min() / 1e3));
            rows.push(Row::new("decision/8K/p99", ours.p99() / 1e3, "µs").against("naive", theirs.p99() / 1e3));
        } else {
            rows.extend([row, ratio]);
        }
    }
    let mut prices = vec![price(options, &mut gateways_256)];
    drop(gateways_256);
    for replicas in [16, 1024, 4096] {
        let mut gateways = gateways(options, replicas);
        let (ours, theirs) = decisions(options, 8 << 10, &mut gateways);
        rows.push(
            Row::new(format!("decision/8K/{replicas}-replicas"), ours.p50() / 1e3, "µs")
                .against("naive", theirs.p50() / 1e3),
        );
        prices.push(price(options, &mut gateways));
    }
    rows.append(&mut prices);
    rows
}

/// A gateway and its rival, whose `replicas` hold the same amount of other conversations.
fn gateways(options: &Options, replicas: usize) -> (World, Naive) {
    let (world, naive) = (filled(options, replicas), Naive::new(replicas));
    let mut random = fastrand::Rng::with_seed(6);
    for replica in 0..u16::try_from(replicas).unwrap() {
        naive.fill(replica, held_bytes(options, replicas) / naive::BLOCK_BYTES, &mut random);
    }
    (world, naive)
}

/// A gateway whose `replicas` hold the same amount of other conversations.
pub(crate) fn filled(options: &Options, replicas: usize) -> World {
    let world = World::new(replicas);
    let mut random = fastrand::Rng::with_seed(5);
    for replica in 0..u16::try_from(replicas).unwrap() {
        world.fill(replica, held_bytes(options, replicas) / BLOCK_BYTES, &mut random);
    }
    world
}

fn held_bytes(options: &Options, replicas: usize) -> usize {
    HELD_BYTES.min(HELD_BYTES_MAX / replicas) / if options.quick { 16 } else { 1 }
}

/// Times whole decisions over chats of `bytes` bytes.
fn decisions(options: &Options, bytes: usize, (world, naive): &mut (World, Naive)) -> (Times, Times) {
    let room = (world.replicas() * HELD_BYTES / 4).min(CHATS_BYTES);
    let chats_bytes = if options.quick { room / 16 } else { room };
    let mut chats = Chats::new((chats_bytes / bytes).min(4096), bytes);
    for body in chats.originals() {
        for _ in 0..3 {
            world.serve(body);
            naive.serve(body);
        }
    }
    assert_warm(&chats, world, naive);
    // Both find the body where reading it from the socket has left it: in cache.
    let socket = RefCell::new(Vec::with_capacity(2 * bytes));
    let (ours, theirs) = measure::prepared(
        options.repeats(6000),
        1,
        TURN,
        |call| {
            socket.borrow_mut().clear();
            socket.borrow_mut().extend_from_slice(chats.request(call));
        },
        |_| world.serve(&socket.borrow()),
        |_| naive.serve(&socket.borrow()),
    );
    // Shorter prompts cost less to compute than to wait for: there we rightly find less.
    if bytes >= 8 << 10 {
        assert_alike(&mut chats, world, naive);
    }
    (ours, theirs)
}

/// Where a warm replica exists and is idle, both pick it. The index may lack a few blocks to its evictions.
fn assert_warm(chats: &Chats, world: &mut World, naive: &mut Naive) {
    let (mut held, mut full) = (0.0, 0.0);
    for body in chats.originals() {
        let decision = world.consider_idle(body);
        assert_eq!((decision.reason, usize::from(decision.candidates)), (Reason::Warm, world.replicas()));
        held += decision.chosen.warm_tokens;
        full += decision.prompt_tokens - (decision.prompt_bytes as usize % BLOCK_BYTES) as f32 / 4.0;
        assert!(naive.consider_idle(body) >= 0.95);
    }
    assert!(held >= 0.99 * full, "{held} of {full} tokens found");
}

/// Under way too, what we find cached is close to what the rival finds: three requests in four could be warm.
fn assert_alike(chats: &mut Chats, world: &mut World, naive: &mut Naive) {
    let (mut ours, mut theirs, count) = (0.0, 0.0, 1024);
    for number in 1_000_000..1_000_000 + count {
        let body = chats.request(number);
        let decision = world.serve(body);
        ours += f64::from(decision.chosen.warm_tokens / decision.prompt_tokens);
        theirs += naive.serve(body);
    }
    let [ours, theirs] = [ours, theirs].map(|shares| shares / f64::from(u32::try_from(count).unwrap()));
    assert!(ours >= 0.5 && ours >= 0.75 * theirs, "cached: {ours} of a prompt, the rival {theirs}");
}

/// The row of the price alone, for requests without a prompt.
fn price(options: &Options, (world, naive): &mut (World, Naive)) -> Row {
    let replicas = world.replicas();
    let (ours, theirs) = measure::against(
        options.repeats(4000),
        1,
        |_| assert_eq!(usize::from(world.serve_blind().candidates), replicas),
        |_| naive.serve_blind(),
    );
    Row::new(format!("decision/price/{replicas}-replicas"), ours.p50() / 1e3, "µs").against("naive", theirs.p50() / 1e3)
}
