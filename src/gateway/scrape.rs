//! The gateway reads engines' metrics pages itself: the way to know their load where no agent runs. On a thread of its
//! own, a task a replica; a replica whose beacons come is left alone.

use super::ingest::{emptied, report};
use crate::agent::{Seen, Unseen, Watcher};
use crate::clock::Now;
use crate::config::ScrapeConfig;
use crate::fleet::Replica;
use crate::load::heard::LastWord;
use crate::load::report::LoadSource;
use crate::load::ring::Publisher;
use crate::proxy::Core;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;
use url::Url;

/// How often the fleet is compared with the tasks that run.
const FOLLOW: Duration = Duration::from_millis(250);
/// Longest wait for a page.
const PAGE_LIMIT: Duration = Duration::from_secs(2);
/// Longest pause between two looks at a page that cannot be had.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The thread that reads pages. Dropping it stops it.
#[derive(Debug)]
pub(super) struct ScrapeThread {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ScrapeThread {
    /// Starts the thread. It reads nothing as long as the configuration does not ask for it.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn start(core: &Arc<Core>, publisher: Publisher) -> std::io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let scrape = Arc::new(Scrape { core: Arc::clone(core), publisher: Mutex::new(publisher) });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
        let thread = std::thread::Builder::new().name("scrape".to_owned()).spawn(move || {
            runtime.block_on(scrape.run(stopped));
            runtime.shutdown_background();
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for ScrapeThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so already.
            let _panicked = thread.join();
        }
    }
}

/// What all tasks share; they are all on one thread, so that the lock is never waited for.
#[derive(Debug)]
struct Scrape {
    core: Arc<Core>,
    publisher: Mutex<Publisher>,
}

/// The running tasks, by slot: what each reads, and of whom.
type Tasks = BTreeMap<u16, (Target, Arc<Replica>, AbortHandle)>;

/// What a task reads: another page, another rate or another replica is another task.
#[derive(Clone, Debug, PartialEq)]
struct Target {
    id: String,
    page: Url,
    interval: Duration,
}

impl Scrape {
    async fn run(self: Arc<Self>, mut stopped: oneshot::Receiver<()>) {
        let mut tasks = Tasks::new();
        let mut ticks = tokio::time::interval(FOLLOW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _told = &mut stopped => return,
                _now = ticks.tick() => {}
            }
            if self.core.stopping.load(Relaxed) {
                return;
            }
            self.follow(&mut tasks);
        }
    }

    /// Starts and ends tasks as the fleet and the configuration say.
    fn follow(self: &Arc<Self>, tasks: &mut Tasks) {
        let snapshot = self.core.snapshot.load();
        let wanted: BTreeMap<u16, (Target, &Arc<Replica>)> = match &snapshot.config.scrape {
            Some(config) => {
                let replicas = snapshot.fleet.replicas.iter();
                replicas.filter_map(|one| Some((one.slot.0, (target(one, config)?, one)))).collect()
            }
            None => BTreeMap::new(),
        };
        tasks.retain(|slot, (target, replica, task)| {
            let stays = wanted.get(slot).is_some_and(|(wanted, now)| wanted == target && now.is_same(replica));
            if !stays {
                task.abort();
            }
            stays
        });
        for (slot, (target, replica)) in wanted {
            tasks.entry(slot).or_insert_with(|| {
                let task = tokio::spawn(Arc::clone(self).read(Arc::clone(replica), target.clone()));
                (target, Arc::clone(replica), task.abort_handle())
            });
        }
    }

    /// Reads one replica's page again and again.
    async fn read(self: Arc<Self>, replica: Arc<Replica>, target: Target) {
        // Not all at the same moment.
        tokio::time::sleep(target.interval.mul_f64(fastrand::f64())).await;
        let mut watcher = Watcher::new(&target.page, self.core.clock);
        let (mut is_idle, mut asked_last) = (false, None::<Now>);
        let mut ticks = tokio::time::interval(target.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut pause, mut is_failing) = (target.interval, false);
        loop {
            ticks.tick().await;
            if self.has_beacons(&replica) {
                is_idle = true;
                continue;
            }
            if std::mem::take(&mut is_idle) {
                // Beacons have told of what happened meanwhile.
                watcher = Watcher::new(&target.page, self.core.clock);
                asked_last = None;
            }
            // A report is as old as the question, not as the answer.
            let asked = self.core.clock.now();
            match watcher.look(PAGE_LIMIT).await {
                Ok(seen) => {
                    if is_failing {
                        tracing::info!(replica = target.id, "its metrics page can be read again");
                    }
                    (pause, is_failing) = (target.interval, false);
                    // A busy engine answers late: the next word is then due that much later, too.
                    let took = self.core.clock.now().since(asked);
                    let between = asked_last.map_or(target.interval, |last| asked.since(last));
                    asked_last = Some(asked);
                    self.heard(&replica, &seen, target.interval.max(took).max(between), asked);
                }
                Err(Unseen { kind, why }) => {
                    asked_last = None;
                    self.core.metrics.load.scrapes.with_label_values(&[kind]).inc();
                    if !is_failing {
                        tracing::warn!(replica = target.id, page = %target.page, why, "its metrics page cannot be read");
                    }
                    is_failing = true;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX.max(target.interval));
                    ticks.reset();
                }
            }
        }
    }

    /// Whether beacons tell of `replica` what the page would.
    fn has_beacons(&self, replica: &Replica) -> bool {
        let last = self.core.plane.heard.last(replica.slot);
        last.is_some_and(|word| word.source == LoadSource::Beacon && !word.is_stale(self.core.clock.now()))
    }

    fn heard(&self, replica: &Replica, seen: &Seen, period: Duration, asked: Now) {
        let (core, slot) = (&self.core, replica.slot);
        core.metrics.load.scrapes.with_label_values(&["ok"]).inc();
        if !core.snapshot.load().fleet.replica(slot).is_some_and(|now| now.is_same(replica)) {
            return;
        }
        if seen.is_restart {
            emptied(core, slot, true, core.clock.now());
        }
        let load = seen.reading.load();
        core.plane.heard.note(slot, LastWord { at: asked, period, source: LoadSource::Scrape });
        self.publisher.lock().publish(report(core, slot, LoadSource::Scrape, (period, Duration::ZERO), &load, asked));
    }
}

/// The page of `replica`; `None` when its URL has no room for a path.
fn target(replica: &Replica, config: &ScrapeConfig) -> Option<Target> {
    let page = match &replica.config.metrics {
        Some(page) => page.clone(),
        None => replica.config.url.join(&config.path).ok()?,
    };
    Some(Target { id: replica.config.id.clone(), page, interval: config.interval })
}
