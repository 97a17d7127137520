//! Time for tests: the only place here that reads a clock or sleeps. Tests wait for a condition, never for a while.

use std::time::{Duration, Instant};

/// Now, on the real clock.
#[expect(clippy::disallowed_methods, reason = "tests of a real process run on the real clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Lets other threads run for a moment.
#[expect(clippy::disallowed_methods, reason = "a poll interval, not a wait for something to have happened")]
pub(crate) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// Polls `condition` until it holds; false when `limit` passed first.
pub(crate) fn holds_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        pause(Duration::from_millis(2));
    }
}

/// As [`holds_within`], failing the test with `what` was waited for.
#[track_caller]
pub(crate) fn wait_for(what: &str, limit: Duration, condition: impl FnMut() -> bool) {
    assert!(holds_within(limit, condition), "waited {limit:?} in vain for: {what}");
}
