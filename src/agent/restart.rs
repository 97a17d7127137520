//! When the engine started: the incarnation that beacons carry. It stays the same while the engine runs, through
//! restarts of the agent too where the engine says when it started, and rises when the engine restarts.
//!
//! What tells of a restart, the best first: the start time on the page; llama.cpp's `Process-Start-Time-Unix`; counters
//! that fell; for engines with neither time nor mark, that nothing listened at the address for a while.

/// Start times closer than this, microseconds, are one: some libraries work them out anew each time.
const SAME_START_US: u64 = 1_000_000;
/// Before the engine was seen at all, beacons say that it started this long before the agent: later than the engine
/// that was there before, and yet not later than one that loads while nothing listens.
const UNSEEN_US: u64 = 60_000_000;
/// What the machine's uptime is told in, microseconds.
const UPTIME_STEP_US: u64 = 10_000;

/// One look at the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sight {
    /// When its process started, microseconds of Unix time, as its page tells.
    pub(super) started: Option<u64>,
    /// A number that changes when its process restarts.
    pub(super) mark: Option<u64>,
    /// What `mark` means as Unix time, microseconds, where that is known.
    pub(super) mark_started: Option<u64>,
    /// Counters that rise as long as it runs.
    pub(super) counters: [Option<u64>; 3],
}

/// Follows one engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incarnation {
    current: u64,
    last: Option<Sight>,
    /// Nothing listened since the last sight.
    was_gone: bool,
}

impl Incarnation {
    /// An engine that has not been seen; `now` is Unix time in microseconds.
    pub(super) const fn new(now: u64) -> Self {
        Self { current: now.saturating_sub(UNSEEN_US), last: None, was_gone: false }
    }

    /// The number.
    pub(super) const fn current(&self) -> u64 {
        self.current
    }

    /// Nothing listens at its address.
    pub(super) const fn gone(&mut self) {
        self.was_gone = true;
    }

    /// Takes what was seen at `now`, Unix time in microseconds; whether the engine has restarted since the last sight.
    pub(super) fn see(&mut self, sight: Sight, now: u64) -> bool {
        let known = sight.started.or(sight.mark_started).unwrap_or(now);
        let Some(last) = self.last else {
            // Nothing was said of an engine that was seen at once: its start is said as it is, however long ago.
            self.current = if self.was_gone { known.max(self.current + 1) } else { known };
            self.last = Some(sight);
            self.was_gone = false;
            return false;
        };
        let differs = |before: Option<u64>, after: Option<u64>, least: u64| {
            before.zip(after).is_some_and(|(before, after)| before.abs_diff(after) >= least)
        };
        let fell = last.counters.iter().zip(&sight.counters).any(|(before, after)| {
            // Gone is not fallen: some counters appear with the first request.
            before.zip(*after).is_some_and(|(before, after)| after < before)
        });
        let is_nameless = sight.started.is_none() && sight.mark.is_none();
        let restarted = differs(last.started, sight.started, SAME_START_US)
            || differs(last.mark, sight.mark, 1)
            || fell
            || self.was_gone && is_nameless;
        if restarted {
            self.current = known.max(self.current + 1);
        }
        self.was_gone = false;
        self.last = Some(sight);
        restarted
    }
}

/// When a process started that says it by microseconds of the machine's uptime, as llama.cpp does: microseconds of
/// Unix time, in whole seconds, so that it comes to the same whenever it is worked out (the two clocks keep their
/// distance, but are not read at one moment). `None` when the mark is no such thing. The uptime comes in hundredths of a
/// second, so that an engine which has just started may seem to start a little later than now.
pub(super) fn started_from_uptime(mark: u64, uptime_us: u64, now: u64) -> Option<u64> {
    let age = (uptime_us + UPTIME_STEP_US).checked_sub(mark)?.saturating_sub(UPTIME_STEP_US);
    Some(now.checked_sub(age)? / 1_000_000 * 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_750_000_000_000_000;

    fn counted(count: u64) -> Sight {
        Sight { counters: [Some(count), None, None], ..Sight::default() }
    }

    #[test]
    fn a_start_time_is_the_incarnation() {
        let sight = |started| Sight { started: Some(started), ..Sight::default() };
        let mut incarnation = Incarnation::new(NOW);
        assert!(!incarnation.see(sight(NOW - 5_000_000_000), NOW + 1));
        assert_eq!(incarnation.current(), NOW - 5_000_000_000);
        assert!(!incarnation.see(sight(NOW - 5_000_000_009), NOW + 2), "jitter");
        assert_eq!(incarnation.current(), NOW - 5_000_000_000);
        incarnation.gone();
        assert!(!incarnation.see(sight(NOW - 5_000_000_000), NOW + 3), "it was only out of reach");
        assert!(incarnation.see(sight(NOW + 10_000_000), NOW + 4));
        assert_eq!(incarnation.current(), NOW + 10_000_000);
        // A clock that was set back does not lower it.
        assert!(incarnation.see(sight(NOW - 9_000_000), NOW + 5));
        assert_eq!(incarnation.current(), NOW + 10_000_001);
    }

    #[test]
    fn without_a_start_time_counters_and_absence_tell() {
        let mut incarnation = Incarnation::new(NOW);
        assert!(!incarnation.see(counted(5), NOW + 10));
        assert_eq!(incarnation.current(), NOW + 10);
        assert!(!incarnation.see(counted(7), NOW + 20));
        assert!(!incarnation.see(Sight::default(), NOW + 25), "a counter that is gone has not fallen");
        assert!(!incarnation.see(counted(7), NOW + 27));
        assert!(incarnation.see(counted(6), NOW + 30));
        assert_eq!(incarnation.current(), NOW + 30);
        incarnation.gone();
        assert!(incarnation.see(counted(6), NOW + 40));
        assert_eq!(incarnation.current(), NOW + 40);
    }

    #[test]
    fn marks_tell_whatever_they_mean() {
        let sight = |mark| Sight { mark: Some(mark), ..counted(5) };
        let mut incarnation = Incarnation::new(NOW);
        assert!(!incarnation.see(sight(100), NOW + 10));
        incarnation.gone();
        assert!(!incarnation.see(sight(100), NOW + 20));
        assert!(incarnation.see(sight(99), NOW + 30));
        assert_eq!(incarnation.current(), NOW + 30);
    }

    #[test]
    fn an_engine_that_loads_is_later_than_its_predecessor_and_not_later_than_itself() {
        let mut incarnation = Incarnation::new(NOW);
        let unseen = incarnation.current();
        assert!(unseen < NOW);
        incarnation.gone();
        // It began to load two seconds before the agent, and listens half a minute later.
        let started = NOW - 2_000_000;
        assert!(!incarnation.see(Sight { started: Some(started), ..Sight::default() }, NOW + 30_000_000));
        assert_eq!(incarnation.current(), started);
        assert!(started > unseen);
    }

    #[test]
    fn uptimes_become_times() {
        assert_eq!(started_from_uptime(2_000_000, 5_000_000, NOW), Some(NOW - 3_000_000));
        assert_eq!(started_from_uptime(2_000_000, 5_000_900, NOW + 400), Some(NOW - 4_000_000));
        assert_eq!(started_from_uptime(5_009_000, 5_000_000, NOW), Some(NOW), "it has only just started");
        assert_eq!(started_from_uptime(9_000_000, 5_000_000, NOW), None);
    }
}
