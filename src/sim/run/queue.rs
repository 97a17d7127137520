//! What happens next: events in the order of their times; those of one moment in the order in which they were put there.
//!
//! Most events of a run are load reports, and they come in order by themselves: one replica looks a period after it last
//! did, and what it says is heard a fixed delay later. Such events stand in lanes, each in order, and only the others in a
//! heap; a run of few long requests takes a third less time for that.

use super::Event;
use crate::clock::Now;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Events that come in order among themselves.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lane {
    /// Replicas look at their load.
    Looks = 0,
    /// What they said is heard.
    Reports = 1,
}

type Entry = (Now, u64, Event);

/// The events.
#[derive(Debug, Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
    lanes: [VecDeque<Entry>; 2],
    count: u64,
}

impl Queue {
    /// Puts an event there.
    pub(super) fn push(&mut self, at: Now, event: Event) {
        self.count += 1;
        self.heap.push(Reverse((at, self.count, event)));
    }

    /// Puts an event there that is not before any other of its lane.
    pub(super) fn push_in_order(&mut self, lane: Lane, at: Now, event: Event) {
        let entries = &mut self.lanes[lane as usize];
        if entries.back().is_some_and(|last| last.0 > at) {
            return self.push(at, event);
        }
        self.count += 1;
        entries.push_back((at, self.count, event));
    }

    /// Takes the next.
    pub(super) fn pop(&mut self) -> Option<(Now, Event)> {
        let key = |entry: Option<&Entry>| entry.map_or((Now(u64::MAX), u64::MAX), |(at, count, _)| (*at, *count));
        let lanes = [key(self.lanes[0].front()), key(self.lanes[1].front())];
        let heap = key(self.heap.peek().map(|Reverse(entry)| entry));
        let lane = usize::from(lanes[1] < lanes[0]);
        let next =
            if lanes[lane] < heap { self.lanes[lane].pop_front() } else { self.heap.pop().map(|Reverse(entry)| entry) };
        next.map(|(at, _, event)| (at, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_the_order_of_their_times_and_of_one_moment_as_they_were_put() {
        for seed in 0..50 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let (mut queue, mut expected) = (Queue::default(), Vec::new());
            let mut last = [0, 0];
            for request in 0..500 {
                let event = Event::HeldLongEnough { request };
                let at = match dice.usize(..4) {
                    lane @ (0 | 1) => {
                        // Now and then not in order: it must not matter.
                        last[lane] = (last[lane] + dice.u64(0..20)).saturating_sub(dice.u64(0..3));
                        let at = Now(last[lane]);
                        queue.push_in_order([Lane::Looks, Lane::Reports][lane], at, event);
                        at
                    }
                    _ => {
                        let at = Now(dice.u64(0..2_000));
                        queue.push(at, event);
                        at
                    }
                };
                expected.push((at, event));
                if dice.u8(..3) == 0 {
                    let first = (0..expected.len()).min_by_key(|place| expected[*place].0).unwrap();
                    assert_eq!(queue.pop(), Some(expected.remove(first)));
                }
            }
            expected.sort_by_key(|(at, _)| *at);
            let rest: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
            assert_eq!(rest, expected, "seed {seed}");
        }
    }
}
