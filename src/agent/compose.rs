//! What the next beacon says: the load in all, the facts in the first few, at once when they change, and every second.
//! Facts that are too long for one beacon are spread over several, each list whole, as the format asks.

use std::time::Duration;

use crate::clock::Now;
use crate::wire::beacon::{Facts, Head, Load, Message, SenderId};

/// The facts are said again after this long.
const FACTS_EVERY: Duration = Duration::from_secs(1);
/// How often facts are said at once when they are new: datagrams get lost.
const FACTS_AT_ONCE: u32 = 3;

/// Puts beacons together.
#[derive(Debug)]
pub(super) struct Composer {
    sender: SenderId,
    next_sequence: u64,
    facts: Facts,
    /// The facts as they are sent, one element a beacon.
    parts: Vec<Facts>,
    next_part: usize,
    /// Parts still to be sent before a pause.
    owed: usize,
    said: Option<Now>,
}

impl Composer {
    /// Beacons of `sender`; `unix_us` is now.
    pub(super) const fn new(sender: SenderId, unix_us: u64) -> Self {
        Self {
            sender,
            next_sequence: unix_us,
            facts: Facts {
                url: None,
                engine: None,
                slots: None,
                models: Vec::new(),
                adapters_loaded: Vec::new(),
                adapters_waiting: Vec::new(),
                labels: Vec::new(),
            },
            parts: Vec::new(),
            next_part: 0,
            owed: 0,
            said: None,
        }
    }

    /// What there is to say from now on.
    pub(super) fn set_facts(&mut self, facts: Facts) {
        if facts != self.facts || self.parts.is_empty() {
            self.parts = facts.parts();
            self.facts = facts;
            self.next_part = 0;
            self.owed = self.parts.len() * FACTS_AT_ONCE as usize;
        }
    }

    /// Says all facts anew: the engine has restarted, and gateways have forgotten them.
    pub(super) const fn repeat_facts(&mut self) {
        self.owed = self.parts.len() * FACTS_AT_ONCE as usize;
    }

    /// The facts as they are said.
    pub(super) const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The next beacon.
    pub(super) fn next(&mut self, load: Load, times: Times) -> Message {
        if self.owed == 0 && self.said.is_none_or(|said| times.now.since(said) >= FACTS_EVERY) {
            self.owed = self.parts.len();
        }
        let mut facts = Facts::default();
        if self.owed > 0 {
            facts = self.parts.get(self.next_part).cloned().unwrap_or_default();
            self.next_part = (self.next_part + 1) % self.parts.len().max(1);
            self.owed -= 1;
            self.said = Some(times.now);
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let head = Head {
            sender: self.sender,
            incarnation: times.incarnation,
            sequence,
            sent_unix_ns: times.unix_ns,
            period_us: times.period_us,
        };
        Message { head, load, facts }
    }
}

/// The times in a beacon's head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) now: Now,
    pub(super) unix_ns: u64,
    pub(super) incarnation: u64,
    pub(super) period_us: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(now_ms: u64) -> Times {
        Times { now: Now(now_ms * 1_000_000), unix_ns: now_ms, incarnation: 7, period_us: 50_000 }
    }

    fn facts(models: usize) -> Facts {
        let url = Some("http://10.0.0.1:8000".to_owned());
        Facts { url, models: (0..models).map(|model| format!("model-number-{model:04}")).collect(), ..Facts::default() }
    }

    #[test]
    fn facts_are_said_at_first_every_second_and_when_they_change() {
        let mut composer = Composer::new(SenderId(1), 1_000);
        composer.set_facts(facts(1));
        let mut said = |at: u64| composer.next(Load::default(), times(at)).facts != Facts::default();
        let heard: Vec<u64> = (0..50).map(|tick| tick * 50).filter(|at| said(*at)).collect();
        assert_eq!(heard, [0, 50, 100, 1_100, 2_100]);
        composer.set_facts(facts(1));
        assert_eq!(composer.next(Load::default(), times(2_500)).facts, Facts::default());
        composer.set_facts(facts(2));
        assert_eq!(composer.next(Load::default(), times(2_550)).facts, facts(2));
    }

    #[test]
    fn sequences_rise_and_heads_are_filled() {
        let mut composer = Composer::new(SenderId(1), 1_000);
        let first = composer.next(Load::default(), times(1)).head;
        let second = composer.next(Load::default(), times(2)).head;
        assert_eq!((first.sequence, second.sequence), (1_000, 1_001));
        assert_eq!((second.incarnation, second.sent_unix_ns, second.period_us), (7, 2, 50_000));
    }

    #[test]
    fn long_facts_are_spread() {
        let mut long = facts(40);
        long.adapters_loaded = (0..60).map(|adapter| format!("adapter-{adapter}")).collect();
        let mut composer = Composer::new(SenderId(1), 0);
        composer.set_facts(long.clone());
        let sent: Vec<Message> = (0..4).map(|at| composer.next(Load::default(), times(at))).collect();
        assert!(sent.iter().all(|message| message.encode(None, &mut Vec::new()).is_ok()));
        assert!(sent.iter().any(|message| message.facts.models == long.models));
        assert!(sent.iter().any(|message| message.facts.adapters_loaded == long.adapters_loaded));
    }
}
