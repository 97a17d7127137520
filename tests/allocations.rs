//! In steady state a decision allocates nothing. A program of its own, for its allocator counts.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "../benches/emberlane/alloc.rs"]
mod alloc;
#[path = "../benches/emberlane/bodies.rs"]
mod bodies;
#[path = "../benches/emberlane/world.rs"]
#[expect(dead_code, reason = "the bench needs more of it")]
mod world;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[test]
fn decisions_allocate_nothing_in_steady_state() {
    assert_eq!(alloc::bytes_in_steady_state(), 0);
}
