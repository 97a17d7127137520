//! Load reports on their way from who hears them (beacon threads, scrapers) to who prices by them (shards, the admin
//! pages): one bounded ring for each pair, so that nobody ever waits for anybody.
//!
//! A ring that is full refuses the newest report, which is the one that matters. So a reader is woken ([`Bell`]) long
//! before that, when its ring is a quarter full: a shard at work empties its rings with every decision, and an idle one
//! is woken by its bell. What is refused all the same is counted; the next report of that replica, a period later,
//! supersedes it. Meanwhile its column is older, and says so: a loss never makes old load look new.

use super::report::LoadReport;
use rtrb::{Consumer, Producer, RingBuffer};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::sync::Notify;

/// Fewest reports that a ring holds.
const CAPACITY_MIN: usize = 4;
/// A ring wakes its reader when it is one in so many full.
const WAKE_SHARE: usize = 4;

/// Rings of `capacity` reports from each of `writers` to each of `readers`: one end for every writer and every reader.
#[must_use]
pub fn rings(writers: usize, readers: usize, capacity: usize) -> (Vec<Publisher>, Vec<Inbox>) {
    let capacity = capacity.max(CAPACITY_MIN);
    let mut publishers: Vec<_> = (0..writers).map(|_| Publisher { lanes: Vec::with_capacity(readers) }).collect();
    let inboxes = (0..readers).map(|_| {
        let bell = Arc::new(Bell::default());
        let rings = publishers.iter_mut().map(|publisher| {
            let (producer, consumer) = RingBuffer::new(capacity);
            let free_min = capacity - capacity / WAKE_SHARE;
            publisher.lanes.push(Lane { ring: producer, free_min, bell: Arc::clone(&bell) });
            consumer
        });
        Inbox { rings: rings.collect(), first: 0, bell: Arc::clone(&bell) }
    });
    let inboxes = inboxes.collect();
    (publishers, inboxes)
}

/// Wakes a reader, and counts what did not reach it. Every writer to one reader has the same.
#[derive(Debug, Default)]
pub struct Bell {
    notify: Notify,
    dropped: AtomicU64,
}

impl Bell {
    /// Waits until a ring is a quarter full, or has been since this was last awaited.
    pub async fn rung(&self) {
        self.notify.notified().await;
    }

    /// Reports that found a ring of this reader full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

/// A writer's end: reaches every reader.
#[derive(Debug)]
pub struct Publisher {
    lanes: Vec<Lane>,
}

/// To one reader.
#[derive(Debug)]
struct Lane {
    ring: Producer<LoadReport>,
    /// With less room than this left, the reader is woken.
    free_min: usize,
    bell: Arc<Bell>,
}

impl Publisher {
    /// Hands `report` to every reader; never waits.
    pub fn publish(&mut self, report: LoadReport) {
        for lane in &mut self.lanes {
            if lane.ring.push(report).is_err() {
                lane.bell.dropped.fetch_add(1, Relaxed);
            }
            if lane.ring.slots() <= lane.free_min {
                lane.bell.notify.notify_one();
            }
        }
    }
}

/// A reader's end: hears every writer.
#[derive(Debug)]
pub struct Inbox {
    rings: Vec<Consumer<LoadReport>>,
    /// The ring read first: each in turn, so that no writer is passed over.
    first: usize,
    bell: Arc<Bell>,
}

impl Inbox {
    /// Passes at most `most` reports to `take`, those of one writer in the order it published them. What is left rings
    /// the bell. Returns how many there were.
    pub fn drain(&mut self, most: usize, mut take: impl FnMut(LoadReport)) -> usize {
        let mut left = most;
        let count = self.rings.len();
        for place in (self.first..count).chain(0..self.first) {
            let Some(ring) = self.rings.get_mut(place) else { continue };
            let ready = ring.slots();
            if ready == 0 {
                continue;
            }
            if let Ok(chunk) = ring.read_chunk(ready.min(left)) {
                left -= chunk.len();
                chunk.into_iter().for_each(&mut take);
            }
            if ready > left && left == 0 {
                self.bell.notify.notify_one();
            }
        }
        self.first = if self.first + 1 < count { self.first + 1 } else { 0 };
        most - left
    }

    /// What wakes this reader.
    #[must_use]
    pub const fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::LoadSource;
    use super::*;
    use crate::clock::Now;
    use crate::id::ReplicaSlot;
    use std::collections::VecDeque;

    fn report(number: u64) -> LoadReport {
        LoadReport {
            slot: ReplicaSlot(u16::try_from(number % 7).unwrap()),
            source: LoadSource::Beacon,
            received: Now(number),
            period_us: 10_000,
            running: 0,
            waiting: 0,
            own_in_flight: 0,
            prefill_tokens: None,
            own_prefill_tokens: 0,
            kv_usage: None,
        }
    }

    /// What rings do, in the plainest way: a bounded queue for each pair.
    struct Model {
        queues: Vec<Vec<VecDeque<u64>>>,
        dropped: Vec<u64>,
        capacity: usize,
    }

    impl Model {
        fn publish(&mut self, writer: usize, number: u64) {
            for (queue, dropped) in self.queues[writer].iter_mut().zip(&mut self.dropped) {
                if queue.len() < self.capacity {
                    queue.push_back(number);
                } else {
                    *dropped += 1;
                }
            }
        }
    }

    #[test]
    fn any_order_of_publishing_and_draining_does_what_bounded_queues_do() {
        bolero::check!().with_type::<(u8, u8, Vec<(bool, u8, u8)>)>().for_each(|(writers, readers, steps)| {
            let (writers, readers) = (usize::from(writers % 3) + 1, usize::from(readers % 3) + 1);
            let capacity = 8;
            let (mut publishers, mut inboxes) = rings(writers, readers, capacity);
            let queues = vec![vec![VecDeque::new(); readers]; writers];
            let mut model = Model { queues, dropped: vec![0; readers], capacity };
            for (number, (publishes, who, most)) in (0..).zip(steps) {
                if *publishes {
                    let writer = usize::from(*who) % writers;
                    publishers[writer].publish(report(number));
                    model.publish(writer, number);
                    continue;
                }
                let reader = usize::from(*who) % readers;
                let mut got = Vec::new();
                let count = inboxes[reader].drain(usize::from(*most), |report| got.push(report.received.0));
                let waiting: usize = model.queues.iter().map(|queues| queues[reader].len()).sum();
                assert_eq!((count, got.len()), (got.len(), waiting.min(usize::from(*most))));
                for number in got {
                    // The next of some writer: numbers are unique.
                    let from = model.queues.iter_mut().find(|queues| queues[reader].front() == Some(&number));
                    from.expect("out of order, or never published")[reader].pop_front();
                }
            }
            for (inbox, dropped) in inboxes.iter().zip(model.dropped) {
                assert_eq!(inbox.bell().dropped(), dropped);
            }
        });
    }

    #[tokio::test]
    async fn an_idle_reader_is_woken_before_the_newest_is_lost() {
        let (mut publishers, mut inboxes) = rings(1, 2, 64);
        let (idle, mut newest) = (inboxes.remove(0), Now(0));
        let bell = Arc::clone(idle.bell());
        let task = tokio::spawn(async move {
            let mut idle = idle;
            let mut last = Now(0);
            // What came since then is below a quarter: somebody who decides would read it.
            while last < Now(1000 - 16) {
                idle.bell().rung().await;
                idle.drain(usize::MAX, |report| last = report.received);
            }
            last
        });
        for number in 0..1000 {
            publishers[0].publish(report(number));
            newest = Now(number);
            if number % 16 == 15 {
                tokio::task::yield_now().await;
            }
        }
        let last = task.await.unwrap();
        assert!(newest.since(last).as_nanos() <= 16, "{last:?}");
        assert_eq!(bell.dropped(), 0);
        assert_eq!(inboxes[0].bell().dropped(), 1000 - 64, "the one that nobody reads");
    }

    #[test]
    fn what_one_draining_leaves_rings_the_bell() {
        let (mut publishers, mut inboxes) = rings(1, 1, 64);
        (0..10).for_each(|number| publishers[0].publish(report(number)));
        let is_rung = |inbox: &Inbox| {
            let bell = Arc::clone(inbox.bell());
            let mut rung = std::pin::pin!(bell.rung());
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            Future::poll(rung.as_mut(), &mut context).is_ready()
        };
        assert!(!is_rung(&inboxes[0]), "less than a quarter");
        assert_eq!(inboxes[0].drain(4, |_| ()), 4);
        assert!(is_rung(&inboxes[0]));
        assert_eq!(inboxes[0].drain(4, |_| ()) + inboxes[0].drain(4, |_| ()), 6);
    }

    #[test]
    fn writers_and_readers_on_threads_of_their_own_agree() {
        let (publishers, mut inboxes) = rings(2, 1, 32);
        let mut inbox = inboxes.remove(0);
        let threads: Vec<_> = (0..)
            .zip(publishers)
            .map(|(writer, mut publisher)| {
                std::thread::spawn(move || {
                    (0..20_000_u64).for_each(|number| publisher.publish(report(number * 2 + writer)));
                })
            })
            .collect();
        let (mut last, mut got) = ([None::<u64>; 2], 0);
        while threads.iter().any(|thread| !thread.is_finished()) {
            got += inbox.drain(64, |report| {
                let writer = usize::try_from(report.received.0 % 2).unwrap();
                assert!(last[writer] < Some(report.received.0), "in order");
                last[writer] = Some(report.received.0);
            });
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        got += inbox.drain(usize::MAX, |_| ());
        assert_eq!(got as u64 + inbox.bell().dropped(), 40_000);
    }
}
