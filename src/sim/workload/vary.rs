//! One trace, many runs: an order or a beginning of its own for each seed, and two halves that do not overlap, so that
//! what is tuned on one is measured on the other.

use super::{Pace, Script, Workload};

/// A half of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// On which parameters of policies are chosen.
    Tuning,
    /// On which policies are compared.
    Test,
}

impl Workload {
    /// The same scripts as another run of the world might have brought them.
    ///
    /// In a closed loop users take them up in an order that the seed shuffles. A timed trace begins at a moment that the
    /// seed picks evenly from its span, and what came before that follows its end, a mean gap later: rates, bursts and
    /// the distance between requests with a common prefix stay as they were recorded, but for that one seam.
    #[must_use]
    pub fn seeded(mut self, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        match self.pace {
            Pace::Closed => random.shuffle(&mut self.scripts),
            Pace::Timed => rotate(&mut self.scripts, random.f64()),
        }
        self
    }

    /// One of two halves without a script in common; of two or more scripts, neither is empty.
    ///
    /// In a closed loop, a hash of each pair of neighbours decides which of the two goes where. A timed trace is cut in the
    /// middle of its span, so that each half keeps the rate, the bursts and the prefixes that follow each other; the test
    /// half's times begin at 0 again.
    #[must_use]
    pub fn part(mut self, half: Half) -> Self {
        match self.pace {
            Pace::Closed => {
                let mut place = 0_u64;
                self.scripts.retain(|_| {
                    let is_tuning = (mixed(place / 2) ^ place) & 1 == 0;
                    place += 1;
                    is_tuning == (half == Half::Tuning)
                });
            }
            Pace::Timed => {
                let (first_s, last_s) = span(&self.scripts);
                let middle_s = f64::midpoint(first_s, last_s);
                self.scripts.retain(|script| (script.at_s <= middle_s) == (half == Half::Tuning));
                let begin_s = if half == Half::Test { middle_s } else { 0.0 };
                self.scripts.iter_mut().for_each(|script| script.at_s -= begin_s);
            }
        }
        self
    }
}

/// When the first and the last of timed scripts start.
fn span(scripts: &[Script]) -> (f64, f64) {
    match (scripts.first(), scripts.last()) {
        (Some(first), Some(last)) => (first.at_s, last.at_s),
        _ => (0.0, 0.0),
    }
}

/// Lets timed scripts begin at a share of their span.
fn rotate(scripts: &mut [Script], share: f64) {
    let (first_s, last_s) = span(scripts);
    let Some(gaps) = scripts.len().checked_sub(1).and_then(|gaps| u32::try_from(gaps).ok()).filter(|gaps| *gaps > 0)
    else {
        return;
    };
    let period_s = (last_s - first_s) * (1.0 + 1.0 / f64::from(gaps));
    let begin_s = first_s + share * period_s;
    for script in scripts.iter_mut() {
        script.at_s -= begin_s;
        if script.at_s < 0.0 {
            script.at_s += period_s;
        }
    }
    scripts.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
}

/// The finalizer of SplitMix64: every bit of the result depends on every bit of the value.
const fn mixed(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::{Call, Segment};
    use super::*;

    fn workload(pace: Pace, times_s: &[f64]) -> Workload {
        let script = |(place, at_s): (usize, &f64)| {
            let prompt = Box::new([Segment { id: place as u64 + 1, tokens: 1 }]);
            let (output, after, think_s, class, tenant) = (0, Box::default(), 0.0, 0, 0);
            let call = Call { prompt, output_tokens: 1, output, after, think_s, class, tenant };
            Script { at_s: *at_s, calls: Box::new([call]) }
        };
        let scripts = times_s.iter().enumerate().map(script).collect();
        Workload { name: "test".to_owned(), pace, classes: vec!["all".to_owned()], scripts, hot: None }
    }

    fn ids(workload: &Workload) -> Vec<u64> {
        workload.scripts.iter().map(|script| script.calls[0].prompt[0].id).collect()
    }

    #[test]
    fn a_closed_loop_is_shuffled_by_its_seed() {
        let workload = workload(Pace::Closed, &[0.0; 50]);
        let (one, two) = (ids(&workload.clone().seeded(1)), ids(&workload.clone().seeded(2)));
        assert_eq!(one, ids(&workload.clone().seeded(1)));
        assert_ne!(one, two);
        let mut sorted = one;
        sorted.sort_unstable();
        assert_eq!(sorted, ids(&workload));
    }

    #[test]
    fn a_timed_trace_begins_elsewhere_and_keeps_its_gaps() {
        let times_s: Vec<f64> = (0..100).map(f64::from).collect();
        let workload = workload(Pace::Timed, &times_s);
        for seed in 0..20 {
            let rotated = workload.clone().seeded(seed);
            assert_eq!(rotated, workload.clone().seeded(seed));
            let times = rotated.scripts.iter().map(|script| script.at_s);
            assert!(times.clone().zip(times.skip(1)).all(|(a, b)| (b - a - 1.0).abs() < 1e-9));
            let order = ids(&rotated);
            let neighbours = order.iter().zip(order.iter().skip(1));
            assert_eq!(neighbours.filter(|(a, b)| **a % 100 + 1 != **b).count(), 0);
            assert!((0.0..1.0).contains(&rotated.scripts[0].at_s));
        }
        assert_ne!(ids(&workload.clone().seeded(1)), ids(&workload.seeded(2)));
    }

    #[test]
    fn few_scripts_are_no_fault() {
        for pace in [Pace::Closed, Pace::Timed] {
            for times_s in [&[][..], &[3.0], &[3.0, 3.0]] {
                let workload = workload(pace, times_s);
                assert_eq!(workload.clone().seeded(7).scripts.len(), times_s.len());
                let halves = [Half::Tuning, Half::Test].map(|half| workload.clone().part(half).scripts.len());
                assert_eq!(halves[0] + halves[1], times_s.len());
            }
        }
    }

    #[test]
    fn halves_have_nothing_in_common_and_lose_nothing() {
        let times_s: Vec<f64> = (0..101).map(|place| f64::from(place) * 2.0).collect();
        for pace in [Pace::Closed, Pace::Timed] {
            let workload = workload(pace, &times_s);
            let [tuning, test] = [Half::Tuning, Half::Test].map(|half| workload.clone().part(half));
            assert!(tuning.scripts.len().abs_diff(test.scripts.len()) <= 1);
            let mut all = [ids(&tuning), ids(&test)].concat();
            all.sort_unstable();
            assert_eq!(all, ids(&workload));
            let from_zero = |script: &Script| (0.0..=100.0).contains(&script.at_s);
            assert!(pace == Pace::Closed || test.scripts.iter().all(from_zero));
        }
        let tuning = ids(&workload(Pace::Closed, &times_s).part(Half::Tuning));
        assert!(tuning.iter().any(|id| id % 2 == 0) && tuning.iter().any(|id| id % 2 == 1));
    }
}
