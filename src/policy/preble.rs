//! Preble's E2 (Srivatsa and others, *Preble: Efficient Distributed Prompt Scheduling for LLM Serving*, arXiv 2407.00023):
//! exploit or explore.
//!
//! If the replica that holds most of the prompt holds more of it than is left to compute, one that holds so much is picked
//! (of several, the least loaded). Else the least loaded of all, with this prompt's own work there.
//!
//! ```text
//! load = seconds of prefill placed there in the last three minutes + requests in flight · seconds a request stays
//! ```
//! Source: `multi_node/global_scheduler_with_time.py` of WukLab/preble (`runtime_selector`, `get_node_cost`). The paper
//! adds what the prompt would push out of the cache, which is not known at a gateway, and moves prefixes from replicas with
//! far more load than others.
//!
//! Known weakness: what is warm is exploited whatever the load, and load is a history: a replica that has just become slow
//! looks idle for minutes.

use super::{Policy, View, column};
use crate::clock::Now;
use crate::config::PrebleConfig;
use crate::id::ReplicaSlot;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The warmest if most of the prompt is warm there, else the least loaded of late.
#[derive(Debug)]
pub struct Preble {
    window: Window,
}

impl Preble {
    /// The policy with the parameters of `config`.
    #[must_use]
    pub fn new(config: &PrebleConfig) -> Self {
        Self { window: Window::new(config) }
    }
}

impl Policy for Preble {
    fn cost(&self, view: &View, _rng: &mut fastrand::Rng, costs: &mut [f32]) {
        let most = column::most(&view.warm_tokens, 0.0);
        let is_exploited = most > view.prompt_tokens - most;
        for (place, cost) in costs.iter_mut().enumerate() {
            if is_exploited && view.warm_tokens[place] < most {
                *cost = f32::INFINITY;
                continue;
            }
            let load_s = self.window.sum_s(view.slots[place], view.now) + view.in_flight[place] * view.service_s[place];
            *cost = load_s + view.uncached_tokens(place) * view.prefill_s_per_token[place];
        }
    }

    fn placed(&self, view: &View, place: usize) {
        let prefill_s = view.uncached_tokens(place) * view.prefill_s_per_token[place];
        self.window.add(view.slots[place], view.now, prefill_s);
    }
}

/// Steps of the window: what is added leaves it a step at a time.
const STEPS: usize = 18;
/// Bits of a cell that hold microseconds: twelve days; those above hold the step.
const WORK_BITS: u32 = 40;
const WORK: u64 = (1 << WORK_BITS) - 1;
/// Steps are told apart by this many bits.
const STEP_MASK: u64 = (1 << (64 - WORK_BITS)) - 1;

/// Seconds of work given to each slot in the last while. Each cell is one step of one slot, and says which step it is of:
/// cells need not be cleared, and none is written but by those who add to it.
struct Window {
    step_ns: u64,
    cells: Box<[AtomicU64]>,
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Window").field("step_ns", &self.step_ns).finish_non_exhaustive()
    }
}

impl Window {
    fn new(config: &PrebleConfig) -> Self {
        let step = config.window.as_nanos() / STEPS as u128;
        Self {
            step_ns: u64::try_from(step).unwrap_or(u64::MAX).max(1),
            cells: (0..ReplicaSlot::LIMIT * STEPS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn cells(&self, slot: ReplicaSlot) -> &[AtomicU64] {
        self.cells.get(slot.index() * STEPS..(slot.index() + 1) * STEPS).unwrap_or_default()
    }

    fn add(&self, slot: ReplicaSlot, now: Now, seconds: f32) {
        let step = now.0 / self.step_ns;
        #[expect(clippy::cast_possible_truncation, reason = "below STEPS")]
        let Some(cell) = self.cells(slot).get((step % STEPS as u64) as usize) else { return };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative; saturates")]
        let work = ((f64::from(seconds) * 1e6) as u64).min(WORK / 1024);
        let (tag, seen) = ((step & STEP_MASK) << WORK_BITS, cell.load(Relaxed));
        // Who is not the first of a step adds to what the first has written.
        if seen & !WORK == tag || cell.compare_exchange(seen, tag | work, Relaxed, Relaxed).is_err() {
            cell.fetch_add(work, Relaxed);
        }
    }

    fn sum_s(&self, slot: ReplicaSlot, now: Now) -> f32 {
        let step = (now.0 / self.step_ns) & STEP_MASK;
        let recent = |cell: &AtomicU64| {
            let seen = cell.load(Relaxed);
            let age = step.wrapping_sub(seen >> WORK_BITS) & STEP_MASK;
            if age < STEPS as u64 { seen & WORK } else { 0 }
        };
        let work: u64 = self.cells(slot).iter().map(recent).sum();
        #[expect(clippy::cast_precision_loss, reason = "microseconds, as seconds of 7 digits")]
        let micros = work as f32;
        micros / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{best, place, view};
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn policy() -> Preble {
        Preble::new(&PrebleConfig::default())
    }

    #[test]
    fn more_than_half_held_is_exploited_and_less_is_not() {
        let policy = policy();
        policy.window.add(ReplicaSlot(0), Now(0), 10.0);
        assert_eq!(best(&policy, &view(&[0.0; 3], &[501.0, 0.0, 400.0])), 0);
        assert_eq!(best(&policy, &view(&[0.0; 3], &[500.0, 0.0, 400.0])), 2, "the least loaded, its own work included");
        assert_eq!(best(&policy, &view(&[0.0; 3], &[900.0, 900.0, 0.0])), 1, "of two holders the less loaded");
    }

    #[test]
    fn load_is_what_was_placed_in_three_minutes_and_what_is_in_flight() {
        let policy = policy();
        let mut rng = fastrand::Rng::with_seed(3);
        let mut view = view(&[0.0; 3], &[0.0; 3]);
        let mut places: Vec<_> = (0..6).map(|_| place(&policy, &view, &mut rng)).collect();
        places.sort_unstable();
        assert_eq!(places, [0, 0, 1, 1, 2, 2]);
        view.in_flight = vec![1.0, 0.0, 1.0];
        view.service_s = vec![2.0; 3];
        assert_eq!(best(&policy, &view), 1);
        policy.window.add(ReplicaSlot(1), view.now, 3.0);
        assert_ne!(super::super::sample::picked(&policy, &view)[1], 400);
        view.now = Now(181 * SECOND);
        assert_eq!(best(&policy, &view), 1, "it is forgotten");
    }

    #[test]
    fn the_window_forgets_a_step_at_a_time() {
        let window = Window::new(&PrebleConfig::default());
        let at = |second: u64| Now(second * SECOND);
        for second in (0..100).step_by(5) {
            window.add(ReplicaSlot(7), at(second), 0.5);
        }
        for (second, sum_s) in [(99, 10.0), (170, 10.0), (180, 9.0), (190, 8.0), (270, 0.0), (280, 0.0), (100_000, 0.0)]
        {
            assert!((window.sum_s(ReplicaSlot(7), at(second)) - sum_s).abs() < 1e-3, "at {second}");
        }
        assert!(window.sum_s(ReplicaSlot(8), at(99)).abs() < f32::EPSILON);
        window.add(ReplicaSlot(7), at(185), 2.0);
        assert!((window.sum_s(ReplicaSlot(7), at(189)) - 11.0).abs() < 1e-3, "a cell of an old step starts over");
        window.add(ReplicaSlot(4095), at(1), f32::MAX);
        window.add(ReplicaSlot(4095), at(1), -1.0);
        assert!(window.sum_s(ReplicaSlot(4095), at(1)).is_finite());
    }

    #[test]
    fn its_weakness_what_is_warm_is_exploited_whatever_the_load() {
        assert_eq!(best(&policy(), &view(&[900.0, 0.0], &[600.0, 0.0])), 0);
    }
}
