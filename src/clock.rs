//! Time as a value. Only the edge layer reads a clock; everything below takes [`Now`] as an argument, so that tests
//! and the simulator run the production code under virtual time.

use std::time::Duration;

/// Nanoseconds since an arbitrary origin that is fixed for the process (or the simulation).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Now(pub u64);

impl Now {
    /// The time `after` later.
    #[must_use]
    pub fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// The time `before` earlier; the origin when that is later.
    #[must_use]
    pub fn minus(self, before: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(before.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Time passed since `earlier`; zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Seconds passed since `earlier`; zero when `earlier` is later.
    #[must_use]
    pub fn seconds_since(self, earlier: Self) -> f64 {
        self.since(earlier).as_secs_f64()
    }
}

/// The process's monotonic clock. Edge layer only.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: std::time::Instant,
}

impl Clock {
    /// A clock whose origin is now.
    #[expect(clippy::disallowed_methods, reason = "this is the one clock")]
    #[expect(clippy::new_without_default, reason = "two clocks are never equal: no default")]
    #[must_use]
    pub fn new() -> Self {
        Self { origin: std::time::Instant::now() }
    }

    /// The present time.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Now {
        Now(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Milliseconds since the Unix epoch, for what people read.
    #[expect(clippy::disallowed_methods, reason = "this is the one clock")]
    #[must_use]
    pub fn unix_ms() -> u64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
    }

    /// Nanoseconds since the Unix epoch, to judge other machines' clocks by.
    #[expect(clippy::disallowed_methods, reason = "this is the one clock")]
    #[must_use]
    pub fn unix_ns() -> u64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_never_runs_backwards() {
        let (early, late) = (Now(5), Now(9));
        assert_eq!(late.since(early), Duration::from_nanos(4));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(early.plus(Duration::from_nanos(4)), late);
        let clock = Clock::new();
        let first = clock.now();
        assert!(clock.now() >= first);
    }
}
