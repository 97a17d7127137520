//! The row that counts what decisions allocate. Not a time but an exact number, so it fails instead of falling short.

use tikv_jemalloc_ctl::thread;

use crate::{
    row::{Goal, Options, Row},
    world::{Chats, World},
};

/// Decisions until every buffer has met the largest prompt.
const WARM_UP: usize = 40_000;
/// Decisions counted.
const COUNTED: usize = 10_000;

pub(crate) fn rows(_: &Options) -> Vec<Row> {
    let allocated = thread::allocatedp::read().unwrap();
    let mut world = World::new(256);
    let mut chats = [1 << 10, 8 << 10, 32 << 10].map(|bytes| Chats::new(16, bytes));
    let mut serve = |number: usize| {
        let size = number % chats.len();
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
    assert_eq!(bytes, 0, "{COUNTED} decisions allocated {bytes} bytes");
    vec![Row::new("decision/allocated", bytes as f64, "bytes").goal(Goal::AtMost(0.0))]
}
