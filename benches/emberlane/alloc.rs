//! What decisions allocate once every buffer has met the largest prompt: an exact number, for a bench and a test. The
//! program that calls this must have jemalloc as its allocator.

use tikv_jemalloc_ctl::thread;

use crate::world::{Chats, World};

/// Replicas of the fleet.
const REPLICAS: usize = 256;
/// Decisions until every buffer has met the largest prompt.
const WARM_UP: usize = 40_000;
/// Decisions counted.
const COUNTED: usize = 10_000;

/// Bytes allocated by 10,000 decisions in steady state, over prompts of several sizes, warm and cold.
pub(crate) fn bytes_in_steady_state() -> u64 {
    let allocated = thread::allocatedp::read().unwrap();
    let mut world = World::new(REPLICAS);
    let mut chats = [1 << 10, 8 << 10, 32 << 10].map(|bytes| Chats::new(16, bytes));
    let mut serve = |number: usize| {
        let size = number % chats.len();
        world.report();
        world.serve(chats[size].request(number / chats.len()))
    };
    let cold = allocated.get();
    for number in 0..WARM_UP {
        serve(number);
    }
    assert!(allocated.get() > cold, "the allocator does not count");
    let before = allocated.get();
    let warm = (WARM_UP..WARM_UP + COUNTED).filter(|number| serve(*number).chosen.warm_tokens >= 1.0).count();
    let bytes = allocated.get() - before;
    assert!(warm > COUNTED / 2 && warm < COUNTED, "{warm} of {COUNTED} decisions were warm");
    bytes
}
