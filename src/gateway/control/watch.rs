//! The watch for silence: a source of load that stops, or never begins, is told once, loudly, and so is its return.

use super::Control;
use crate::clock::Now;
use crate::fleet::Replica;
use crate::load::heard::LastWord;
use std::collections::HashMap;
use std::time::Duration;

/// How long a replica may take to be heard for the first time where others are heard.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// What was last told of a replica's load reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Nothing: it has just been met.
    Met(Now),
    /// It is heard.
    Heard,
    /// It is silent, or was never heard.
    Silent,
}

/// What was told of whom, by id; no more than there are replicas.
#[derive(Debug, Default)]
pub(super) struct Watch {
    told: HashMap<String, Told>,
}

/// What there is to tell of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    FellSilent,
    NeverHeard,
    Returned,
}

impl Watch {
    fn look(&mut self, id: &str, last: Option<LastWord>, now: Now) -> Option<News> {
        let told = *self.told.entry(id.to_owned()).or_insert(Told::Met(now));
        let (next, news) = match (last, told) {
            (Some(word), Told::Met(_) | Told::Heard) if word.is_stale(now) => (Told::Silent, Some(News::FellSilent)),
            (Some(word), Told::Silent) if !word.is_stale(now) => (Told::Heard, Some(News::Returned)),
            (Some(_), Told::Met(_)) => (Told::Heard, None),
            (None, Told::Met(since)) if now.since(since) >= FIRST_WORD => (Told::Silent, Some(News::NeverHeard)),
            (Some(_) | None, told) => (told, None),
        };
        self.told.insert(id.to_owned(), next);
        news
    }

    fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        self.told.retain(|id, _| stays(id));
    }
}

impl Control {
    /// Looks at all replicas, and tells what is new.
    pub(super) fn watch(&self) {
        let (snapshot, now) = (self.core.snapshot.load(), self.core.clock.now());
        let config = &snapshot.config;
        if config.beacons.listen.is_empty() && config.scrape.is_none() {
            return;
        }
        let mut watch = self.watch.lock();
        for replica in &snapshot.fleet.replicas {
            let last = self.core.plane.heard.last(replica.slot);
            if let Some(news) = watch.look(&replica.config.id, last, now) {
                self.tell_load(replica, news, now);
            }
        }
        watch.retain(|id| snapshot.fleet.replicas.iter().any(|replica| replica.config.id == id));
    }

    fn tell_load(&self, replica: &Replica, news: News, now: Now) {
        let id = &replica.config.id;
        let refused = self.core.plane.gate.refused_last(replica.slot);
        let refused = refused.map(|(why, at)| format!("{why}, {:.1} s ago", now.seconds_since(at)));
        match news {
            News::FellSilent => {
                self.core.metrics.load.silences.inc();
                tracing::warn!(
                    replica = id,
                    refused,
                    "its load reports have stopped: it is priced by what the gateway itself has in flight there"
                );
            }
            News::NeverHeard => tracing::warn!(
                replica = id,
                refused,
                "its load was never heard of, though load reports are configured: is its agent running?"
            ),
            News::Returned => tracing::info!(replica = id, "its load reports are back"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::report::LoadSource;

    fn at(ms: u64) -> Now {
        Now((1000 + ms) * 1_000_000)
    }

    fn word(ms: u64) -> Option<LastWord> {
        Some(LastWord { at: at(ms), period: Duration::from_millis(10), source: LoadSource::Beacon })
    }

    #[test]
    fn each_change_is_told_once() {
        let mut watch = Watch::default();
        assert_eq!(watch.look("a", None, at(0)), None);
        assert_eq!(watch.look("a", word(5), at(10)), None);
        assert_eq!(watch.look("a", word(5), at(35)), None, "three periods are no silence");
        assert_eq!(watch.look("a", word(5), at(36)), Some(News::FellSilent));
        assert_eq!(watch.look("a", word(5), at(900)), None);
        assert_eq!(watch.look("a", word(900), at(905)), Some(News::Returned));
        assert_eq!(watch.look("a", word(900), at(906)), None);
    }

    #[test]
    fn one_that_is_never_heard_is_told_of_after_a_while() {
        let mut watch = Watch::default();
        assert_eq!(watch.look("a", None, at(0)), None);
        assert_eq!(watch.look("a", None, at(9_999)), None);
        assert_eq!(watch.look("a", None, at(10_000)), Some(News::NeverHeard));
        assert_eq!(watch.look("a", None, at(20_000)), None);
        assert_eq!(watch.look("a", word(20_001), at(20_002)), Some(News::Returned));
        watch.retain(|_| false);
        assert_eq!(watch.look("a", None, at(50_000)), None, "another of that name is met anew");
    }
}
