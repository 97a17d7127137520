//! Ingest: threads that receive beacons, let the gate judge them, and pass on what they say: to health and the index at
//! once, to every shard through its ring, and what changes rarely to the control thread.
//!
//! ```text
//! receiver → gate → (restart: forget the prefixes) → health, last heard → rings → shards
//!                 → facts, strangers → control thread
//! ```
//!
//! A flood of bad datagrams costs a bounded share of one core: after [`REFUSED_MAX`] of them in one [`WINDOW`] the thread
//! sleeps until the window is over, and drops what has come meanwhile unread: what waited is old, and is not to look new.
//! Good beacons do not count.

mod threads;

pub use threads::IngestError;
pub(super) use threads::{IngestThreads, Opening, read_keys, threads};

use crate::clock::Now;
use crate::discovery::{News, Registration};
use crate::fleet::{Discovered, Engine};
use crate::id::ReplicaSlot;
use crate::load::gate::{Heard, Refusal, Rules, Who};
use crate::load::heard::LastWord;
use crate::load::report::{LoadReport, LoadSource};
use crate::load::ring::Publisher;
use crate::prefix::memory::Said;
use crate::proxy::Core;
use crate::wire::beacon::{Facts, Load};
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Bad datagrams are counted in windows of this length.
const WINDOW: Duration = Duration::from_millis(10);
/// What the bad datagrams of a window may cost: 40,000 forged ones a second, some hundredths of a core.
const REFUSED_MAX: u32 = 4_000;
/// What one costs that may be anybody's. One that bears a key of ours (an agent reaches us twice, or speaks for another
/// fleet) costs 1: it is no attack.
const FORGED_COST: u32 = 10;
/// For each reason, a refusal is logged once in this time.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// What an engine's metrics page says is as old as its last step, at most this.
const ENGINE_LOOKS_EVERY: Duration = Duration::from_millis(100);
/// No beacon is taken to have been on its way for longer: where clocks differ by more, that is not its age.
const AGE_MAX: Duration = Duration::from_millis(500);
/// What one ingest thread works with.
pub(super) struct Ingest {
    core: Arc<Core>,
    publisher: Publisher,
    news: mpsc::Sender<News>,
    /// Whose facts found no room with the control thread; no more than there are slots.
    owed: HashSet<ReplicaSlot>,
    logged: [Option<Now>; Refusal::ALL.len()],
    window: Window,
}

impl std::fmt::Debug for Ingest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingest").field("window", &self.window).finish_non_exhaustive()
    }
}

impl Ingest {
    /// An ingest that publishes through `publisher` and tells the control thread `news`.
    pub(super) fn new(core: Arc<Core>, publisher: Publisher, news: mpsc::Sender<News>) -> Self {
        Self {
            core,
            publisher,
            news,
            owed: HashSet::new(),
            logged: [None; Refusal::ALL.len()],
            window: Window::default(),
        }
    }

    /// One datagram, received at `now` from `from`, when the clock said `unix_ns`.
    fn hear(&mut self, from: IpAddr, datagram: &[u8], unix_ns: u64, now: Now) {
        let core = Arc::clone(&self.core);
        let (keys, snapshot) = (core.plane.keys.load(), core.snapshot.load());
        let rules = Rules {
            keys: &keys,
            clock_skew: snapshot.config.beacons.clock_skew,
            registration: snapshot.config.discovery.beacons,
        };
        match core.plane.gate.admit(datagram, from, &rules, unix_ns, now) {
            Ok(heard) => self.take(&heard, unix_ns, now),
            Err(refusal) => self.refuse(refusal, from, !keys.is_empty(), now),
        }
    }

    fn refuse(&mut self, refusal: Refusal, from: IpAddr, is_keyed: bool, now: Now) {
        self.core.metrics.load.refused[refusal.index()].inc();
        self.window.refuse(if is_keyed && is_past_the_key(refusal) { 1 } else { FORGED_COST }, now);
        let logged = &mut self.logged[refusal.index()];
        if logged.is_none_or(|at| now.since(at) >= LOG_EVERY) {
            *logged = Some(now);
            tracing::warn!(%from, reason = refusal.as_str(), "a beacon is refused: {refusal} (others are only counted)");
        }
    }

    fn take(&mut self, heard: &Heard<'_>, unix_ns: u64, now: Now) {
        self.core.metrics.load.beacons.inc();
        let head = heard.beacon.head();
        self.tell_if_new(heard, now);
        let slot = match heard.who {
            Who::Replica(slot) => slot,
            // It is heard once it has a slot.
            Who::Stranger(_) => return,
        };
        if heard.is_restart || heard.is_cache_reset {
            emptied(&self.core, slot, heard.is_restart, now);
        }
        let load = heard.beacon.load();
        let period = Duration::from_micros(u64::from(head.period_us));
        self.core.shared.health.beacon(slot, load.ready, load.draining, period, now);
        self.core.plane.heard.note(slot, LastWord { at: now, period, source: LoadSource::Beacon });
        let age = Duration::from_nanos(unix_ns.saturating_sub(head.sent_unix_ns)).min(AGE_MAX);
        self.publisher.publish(report(&self.core, slot, LoadSource::Beacon, (period, age), &load, now));
    }

    /// Tells the control thread what is new; what found no room is told again when it is said again. A stranger is told of
    /// as often as it says where it is: there may have been no slot for it before.
    fn tell_if_new(&mut self, heard: &Heard<'_>, now: Now) {
        match heard.who {
            Who::Stranger(_) => {
                self.tell(heard, now);
            }
            Who::Replica(slot) => {
                let is_owed = self.owed.contains(&slot) && !heard.beacon.fact_kinds().is_empty();
                if !heard.are_facts_new && !is_owed {
                    return;
                }
                if self.tell(heard, now) {
                    self.owed.remove(&slot);
                } else {
                    self.owed.insert(slot);
                }
            }
        }
    }

    /// Returns whether there was room for it.
    fn tell(&self, heard: &Heard<'_>, now: Now) -> bool {
        let (facts, load, sender) = (heard.beacon.facts(), heard.beacon.load(), heard.beacon.head().sender);
        let said = discovered(&facts, &load);
        let news = match (heard.who, facts.url) {
            (Who::Replica(slot), _) => News::Facts { slot, sender, said },
            (Who::Stranger(sender), Some(url)) => {
                News::Registration(Registration { url, said, labels: facts.labels, heard: now, sender })
            }
            (Who::Stranger(_), None) => return true,
        };
        let has_room = self.news.try_send(news).is_ok();
        if !has_room {
            self.core.metrics.load.lost_news.inc();
        }
        has_room
    }
}

/// What a beacon says of its replica, as if it had been asked.
fn discovered(facts: &Facts, load: &Load) -> Discovered {
    let engine = match facts.engine.as_deref() {
        Some("llamacpp") => Engine::LlamaCpp,
        Some(_) | None => Engine::Shared,
    };
    let kv_tokens =
        load.kv_blocks.zip(load.kv_block_tokens).map(|(blocks, tokens)| u64::from(blocks) * u64::from(tokens));
    let kv_tokens = kv_tokens.filter(|tokens| *tokens > 0);
    Discovered { models: facts.models.clone(), engine, slots: facts.slots, kv_tokens, host_kv_tokens: None }
}

/// The cache of the engine at `slot` is empty: what it held is forgotten before the next decision.
pub(super) fn emptied(core: &Core, slot: ReplicaSlot, is_restart: bool, now: Now) {
    core.shared.emptied(slot);
    core.metrics.load.restarts.inc();
    let snapshot = core.snapshot.load();
    if is_restart {
        core.shared.health.restarted(slot, now);
    }
    let replica = snapshot.fleet.replica(slot).map_or("", |replica| &replica.config.id);
    let what = if is_restart { "the engine restarted" } else { "the engine emptied its cache" };
    tracing::info!(replica, "{what}: its prefixes are forgotten");
}

/// What shards are told of `slot` by a report that was `age` on its way to be heard at `now`, one each `period`; what is
/// said of its cache is taken up here.
pub(super) fn report(
    core: &Core,
    slot: ReplicaSlot,
    source: LoadSource,
    (period, age): (Duration, Duration),
    load: &Load,
    now: Now,
) -> LoadReport {
    let Load { blocks_evicted: evicted, kv_usage: usage, kv_blocks: blocks, kv_block_tokens: block_tokens, .. } = *load;
    core.shared.hear_cache(slot, Said { evicted, usage, block_tokens, blocks }, now);
    let own = core.shared.load.most_since(slot, made_after(now, period, age), core.clock.now());
    LoadReport {
        slot,
        source,
        received: now,
        period_us: u32::try_from(period.as_micros()).unwrap_or(u32::MAX),
        running: load.running,
        waiting: load.waiting,
        own_in_flight: own.requests,
        prefill_tokens: load.prefill_tokens,
        own_prefill_tokens: own.prefill_tokens,
        kv_usage: load.kv_usage,
    }
}

/// The earliest time of which a report may tell that was `age` on its way to be heard at `now`: whoever sent it looked at
/// the engine at most a `period` before, and the engine at itself.
fn made_after(now: Now, period: Duration, age: Duration) -> Now {
    now.minus(age.saturating_add(period).saturating_add(ENGINE_LOOKS_EVERY))
}

/// Whether a beacon had to bear a good MAC, where there are keys, to be refused for this.
const fn is_past_the_key(refusal: Refusal) -> bool {
    match refusal {
        Refusal::UnknownSender | Refusal::Clock | Refusal::Replayed | Refusal::Late | Refusal::Leftover => true,
        Refusal::NotABeacon
        | Refusal::Version
        | Refusal::Length
        | Refusal::Malformed
        | Refusal::NotSigned
        | Refusal::NotLoopback
        | Refusal::UnknownKey
        | Refusal::WrongMac => false,
    }
}

/// What the bad datagrams of the present window cost.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    since: Now,
    refused: u32,
}

impl Window {
    /// Counts one that was refused at `now`.
    fn refuse(&mut self, cost: u32, now: Now) {
        if now.since(self.since) >= WINDOW {
            *self = Self { since: now, refused: 0 };
        }
        self.refused = self.refused.saturating_add(cost);
    }

    /// How long to sleep, once a window has had its fill.
    fn pause(&self, now: Now) -> Option<Duration> {
        let left = WINDOW.saturating_sub(now.since(self.since));
        (self.refused >= REFUSED_MAX && !left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_that_has_had_its_fill_ends_in_sleep() {
        let mut window = Window::default();
        let at = |micros: u64| Now(1_000_000_000 + micros * 1000);
        for _ in 1..REFUSED_MAX / FORGED_COST {
            window.refuse(FORGED_COST, at(0));
        }
        assert_eq!(window.pause(at(1)), None);
        window.refuse(FORGED_COST, at(4_000));
        assert_eq!(window.pause(at(4_000)), Some(Duration::from_millis(6)));
        assert_eq!(window.pause(at(10_000)), None, "the window is over");
        window.refuse(1, at(10_000));
        assert_eq!(window.pause(at(10_001)), None, "and another has begun");
    }
}
