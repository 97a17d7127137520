//! A replica with a host tier: what is on its device follows the device's own LRU.

use super::*;

#[test]
fn what_is_on_the_device_follows_its_own_lru() {
    for (seed, device, total) in [(1, 640, 2560), (2, 2000, 3000), (3, 1000, 10_000)] {
        let index = PrefixIndex::new(32 << 20, 8).unwrap();
        index.set_tiers(slot(1), device as u64, total as u64);
        let bound = |capacity| ExactLru { capacity, ..ExactLru::default() };
        let mut exact = [bound(device), bound(total)];
        let (mut found, mut truth, mut in_host) = ([0; 2], [0; 2], 0);
        for chain in session_chains(seed, 3000) {
            let depths = depths(&index, &chain);
            let seen = [depths.on_device(slot(1)), depths.get(slot(1))];
            assert!(seen[0] <= seen[1]);
            in_host += seen[1] - seen[0];
            for tier in 0..2 {
                found[tier] += seen[tier] as usize;
                truth[tier] += exact[tier].depth(&chain);
                exact[tier].record(&chain);
            }
            index.record(slot(1), &chain);
        }
        assert!(in_host > 0);
        for tier in 0..2 {
            let ratio = found[tier] as f64 / truth[tier] as f64;
            assert!((0.9..1.05).contains(&ratio), "tier {tier} of {device} and {total}: {found:?} of {truth:?}");
        }
    }
}

#[test]
fn rows_and_entries_tell_the_tier_alike() {
    let index = PrefixIndex::new(MEMORY, 32).unwrap();
    let shared = chain(5, 100);
    // More holders than an entry has room for.
    for replica in 0..20 {
        index.set_tiers(slot(replica), if replica % 2 == 0 { 200 } else { 4000 }, 4000);
        index.record(slot(replica), &shared);
        index.record(slot(replica), &chain(100 + u64::from(replica), 400));
    }
    let found = depths(&index, &shared);
    for replica in 0..20 {
        let device = if replica % 2 == 0 { 0 } else { 100 };
        assert_eq!((found.get(slot(replica)), found.on_device(slot(replica))), (100, device), "{replica}");
    }
    // Used again, it is on the device again; without tiers, all that is held is.
    index.record(slot(0), &shared);
    assert_eq!(depths(&index, &shared).on_device(slot(0)), 100);
    index.set_capacity(slot(2), 4000);
    assert_eq!(depths(&index, &shared).on_device(slot(2)), 100);
}

#[test]
fn a_trail_says_how_long_ago_each_part_was_used() {
    let index = PrefixIndex::new(MEMORY, 4).unwrap();
    index.set_capacity(slot(1), 640);
    let session = chain(7, 60);
    index.record(slot(1), &session);
    (0..10).for_each(|other| index.record(slot(1), &chain(100 + other, 50)));
    index.record(slot(1), &session[..20]);
    (0..4).for_each(|other| index.record(slot(1), &chain(200 + other, 50)));
    let longer = [session, chain(8, 9)].concat();
    let trail = index.record_with_trail(slot(1), &longer, 0);
    let runs: Vec<_> = trail.runs().collect();
    assert_eq!((runs[0].from, runs.last().unwrap().to), (0, 60));
    for run in runs {
        // Out of the window or not: 700 blocks were used since the whole, 200 since its beginning.
        let expected = if run.to <= 20 { 200.0 } else { 720.0 };
        assert!((f64::from(run.since) / expected - 1.0).abs() < 0.2, "{run:?}");
    }
    index.forget(slot(1));
    assert!(index.record_with_trail(slot(1), &longer, 0).is_empty(), "another engine's past says nothing");
}

#[test]
fn what_new_blocks_push_out_is_what_was_used_longest_ago_and_is_not_in_use() {
    let index = PrefixIndex::new(MEMORY, 4).unwrap();
    index.set_capacity(slot(1), 400);
    let again = |idle_ms: u32| if idle_ms > 5_000 { 0.25 } else { 1.0 };
    let pushed_out = || index.pushed_out(slot(1), &[100.0, 200.0, 400.0], again);
    assert!(pushed_out().iter().all(|share| *share <= 0.0), "there is room");
    let at = |seconds: u64| index.set_now(Now(seconds * 1_000_000_000));
    at(10);
    index.record(slot(1), &chain(1, 100));
    at(18);
    (2..4).for_each(|seed| index.record(slot(1), &chain(seed, 100)));
    at(20);
    // There is room for a hundred, then go those idle for ten seconds, then the others.
    let near = |found: [f32; 3], wanted: [f32; 3]| {
        assert!(found.iter().zip(wanted).all(|(found, wanted)| (found - wanted).abs() < 0.03), "{found:?}");
    };
    near(pushed_out(), [0.0, 0.125, 225.0 / 400.0]);
    // A request under way holds on to the oldest: the others go before it.
    let _trail = index.record_with_trail(slot(1), &chain(1, 100), 0);
    let clock = index.clock(slot(1));
    index.hold(slot(1), clock);
    near(pushed_out(), [0.0, 0.5, 0.5]);
    index.release(slot(1), clock);
    near(pushed_out(), [0.0, 0.5, 0.75]);
    let nobody = index.pushed_out(slot(99), &[100.0], again);
    assert!(nobody[0] <= 0.0);
}
