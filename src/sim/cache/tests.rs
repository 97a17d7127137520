//! The cache by itself: its books, its order, and the order of a plain one.

mod reference;

use super::*;

fn prompt(segments: &[(u64, u32)]) -> Vec<Segment> {
    segments.iter().map(|(id, tokens)| Segment { id: *id, tokens: *tokens }).collect()
}

/// One request from admission to its end.
fn serve(cache: &mut KvCache, prompt: &[Segment]) -> Held {
    let held = cache.held(prompt);
    let total: u32 = prompt.iter().map(|segment| segment.tokens).sum();
    let mut path = cache.acquire(prompt);
    assert!(cache.reserve(u64::from(total - held.device)));
    cache.fill(&path, prompt, held.device, total);
    cache.release(&mut path);
    held
}

fn check(cache: &KvCache) {
    let resident: u64 = cache.nodes.iter().map(|node| u64::from(node.resident)).sum();
    assert_eq!(cache.used, resident, "nothing is reserved");
    assert_eq!(cache.idle, resident, "nothing is in use");
    let host: u64 = cache.nodes.iter().map(|node| u64::from(node.host_end.saturating_sub(node.resident))).sum();
    assert_eq!(cache.host_used, host);
    assert!(cache.used <= cache.capacity && cache.host_used <= cache.host_capacity);
}

#[test]
fn what_was_computed_is_held_in_whole_blocks() {
    let mut cache = KvCache::new(10_000, 0, 16);
    assert_eq!(serve(&mut cache, &prompt(&[(1, 1000), (2, 500)])).device, 0);
    assert_eq!(serve(&mut cache, &prompt(&[(1, 1000), (3, 100)])).device, 992);
    assert_eq!(serve(&mut cache, &prompt(&[(1, 1000), (2, 500)])).device, 1488, "never the last token");
    check(&cache);
}

#[test]
fn the_least_recently_used_goes_first_and_tails_before_heads() {
    let mut cache = KvCache::new(2_000, 0, 16);
    serve(&mut cache, &prompt(&[(1, 480), (2, 320)]));
    serve(&mut cache, &prompt(&[(3, 800)]));
    serve(&mut cache, &prompt(&[(4, 560)]));
    check(&cache);
    assert_eq!(cache.held(&prompt(&[(1, 480), (2, 320), (9, 99)])).device, 640, "160 of the tail are gone");
    serve(&mut cache, &prompt(&[(5, 640)]));
    assert_eq!(cache.held(&prompt(&[(1, 480), (2, 320), (9, 99)])).device, 0);
    assert_eq!(cache.held(&prompt(&[(3, 800), (9, 99)])).device, 800);
    check(&cache);
}

#[test]
fn what_the_device_has_no_room_for_is_in_the_hosts_memory() {
    let mut cache = KvCache::new(1_600, 1_600, 16);
    serve(&mut cache, &prompt(&[(1, 800)]));
    serve(&mut cache, &prompt(&[(2, 800)]));
    serve(&mut cache, &prompt(&[(3, 400)]));
    let first = prompt(&[(1, 800), (9, 99)]);
    assert_eq!(cache.held(&first), Held { device: 400, host: 400 });
    serve(&mut cache, &first);
    check(&cache);
    assert_eq!(cache.held(&first).device, 896);
    check(&cache);
}

#[test]
fn the_books_balance_whatever_comes() {
    let mut random = fastrand::Rng::with_seed(5);
    for host in [0, 3_000] {
        let mut cache = KvCache::new(5_000, host, 16);
        let mut running: Vec<(Path, u64)> = Vec::new();
        for number in 0..20_000 {
            let (a, b) = (random.u64(1..6), random.u64(1..9));
            let wanted = prompt(&[(a, 700), (100 + 10 * a + b, 200), (1_000 + number, random.u32(1..300))]);
            let total = wanted.iter().map(|segment| segment.tokens).sum();
            let held = cache.held(&wanted);
            let mut path = cache.acquire(&wanted);
            if cache.reserve(u64::from(total - held.device)) {
                cache.fill(&path, &wanted, held.device, total);
                let more = u64::from(random.u32(0..50));
                let reserved = cache.reserve(more);
                running.push((path, if reserved { more } else { 0 }));
            } else {
                cache.release(&mut path);
            }
            while running.len() > 4 || random.u8(..4) == 0 && !running.is_empty() {
                let (mut path, reserved) = running.swap_remove(random.usize(..running.len()));
                cache.unreserve(reserved);
                cache.release(&mut path);
            }
            assert!(cache.used <= cache.capacity && cache.idle <= cache.used);
        }
        for (mut path, reserved) in running {
            cache.unreserve(reserved);
            cache.release(&mut path);
        }
        check(&cache);
        assert!(cache.by_id.len() < 400, "forgotten nodes are gone: {}", cache.by_id.len());
    }
}
