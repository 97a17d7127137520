//! What is remembered of one sender: its order, and what it said last, as far as it takes to tell what is new.

use super::Refusal;
use super::order::Order;
use crate::clock::Now;
use crate::wire::beacon::{Beacon, FactKinds};
use std::hash::{DefaultHasher, Hasher as _};

/// What is new in a beacon; see [`super::Heard`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "four independent things that may be new")]
pub(super) struct Change {
    pub(super) is_first: bool,
    pub(super) is_restart: bool,
    pub(super) is_cache_reset: bool,
    pub(super) are_facts_new: bool,
}

/// What is remembered of one sender.
#[derive(Clone, Copy, Debug)]
pub(super) struct Track {
    order: Option<Order>,
    /// What was said last; nothing before the first beacon.
    said: Option<Said>,
}

/// What was said last.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    cache_resets: u32,
    facts: SaidFacts,
}

impl Track {
    /// That of a sender of which nothing was heard in its present place, but whose order is known from another.
    pub(super) const fn after(order: Option<Order>) -> Self {
        Self { order, said: None }
    }

    /// The order so far.
    pub(super) const fn order(&self) -> Option<Order> {
        self.order
    }

    /// Whether the beacon comes in its order, and what is new in it.
    pub(super) fn admit(&mut self, beacon: &Beacon<'_>, now: Now) -> Result<Change, Refusal> {
        let head = beacon.head();
        let is_other_engine = match &mut self.order {
            Some(order) => order.admit(&head, now)?,
            None => {
                self.order = Some(Order::begin(&head, now));
                false
            }
        };
        let cache_resets = beacon.load().cache_resets;
        let before = self.said;
        let mut said = before.filter(|_| !is_other_engine).unwrap_or_default();
        let change = Change {
            is_first: before.is_none(),
            is_restart: before.is_some() && is_other_engine,
            is_cache_reset: before.is_some() && !is_other_engine && said.cache_resets != cache_resets,
            are_facts_new: said.facts.are_new(beacon.fact_kinds(), beacon.facts_bytes()),
        };
        said.cache_resets = cache_resets;
        self.said = Some(said);
        Ok(change)
    }
}

/// Parts in which a sender may say its facts without their being taken for new each time.
const PARTS: usize = 4;

/// The hashes of the facts that stand. Facts come in parts, each with kinds of its own; a part stands until another
/// says one of its kinds.
#[derive(Clone, Copy, Debug, Default)]
struct SaidFacts {
    /// Kinds and hash of each part; no kinds: free.
    parts: [(FactKinds, u64); PARTS],
}

impl SaidFacts {
    /// Whether facts are other than those that stand; they stand from now on. No facts are nothing new.
    fn are_new(&mut self, kinds: FactKinds, bytes: &[u8]) -> bool {
        if kinds.is_empty() {
            return false;
        }
        let mut hasher = DefaultHasher::new();
        hasher.write(bytes);
        let part = (kinds, hasher.finish());
        if self.parts.contains(&part) {
            return false;
        }
        for old in self.parts.iter_mut().filter(|(old, _)| old.overlaps(kinds)) {
            *old = Default::default();
        }
        // Seven kinds can be said in more parts than there is room for; then the first is forgotten, and found new.
        if !self.parts.iter().any(|(kinds, _)| kinds.is_empty()) {
            self.parts.rotate_left(1);
            self.parts[PARTS - 1] = Default::default();
        }
        if let Some(free) = self.parts.iter_mut().find(|(kinds, _)| kinds.is_empty()) {
            *free = part;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::beacon::{DATAGRAM_MAX, FactKind, Facts, Head, Load, Message, SenderId};

    fn encoded(facts: Facts) -> Vec<u8> {
        let head = Head { sender: SenderId(1), incarnation: 1, sequence: 1, sent_unix_ns: 1, period_us: 1000 };
        let mut bytes = Vec::with_capacity(DATAGRAM_MAX);
        Message { head, load: Load::default(), facts }.encode(None, &mut bytes).unwrap();
        bytes
    }

    fn are_new(said: &mut SaidFacts, facts: Facts) -> bool {
        let bytes = encoded(facts);
        let beacon = Beacon::parse(&bytes).unwrap();
        said.are_new(beacon.fact_kinds(), beacon.facts_bytes())
    }

    #[test]
    fn facts_are_new_when_they_differ_from_what_stands() {
        let models = |name: &str| Facts { models: vec![name.to_owned()], ..Facts::default() };
        let engine = |name: &str| Facts { engine: Some(name.to_owned()), ..Facts::default() };
        let slots = |slots| Facts { slots: Some(slots), ..Facts::default() };
        let url = Facts { url: Some("u".to_owned()), ..Facts::default() };
        let mut said = SaidFacts::default();
        assert!(!are_new(&mut said, Facts::default()));
        for (facts, expected) in [
            (models("a"), true),
            (engine("x"), true),
            (models("a"), false),
            (engine("x"), false),
            (models("b"), true),
            (models("a"), true), // what stood before does not stand any more
            (models(""), true),  // there are none
            (Facts { engine: Some("x".to_owned()), ..models("a") }, true),
            (engine("x"), true), // a part of another part
            (Facts { engine: Some("x".to_owned()), ..models("a") }, true),
            (slots(4), true),
            (slots(4), false),
            (url.clone(), true),
            (slots(4), false),
            (url, false),
        ] {
            assert_eq!(are_new(&mut said, facts.clone()), expected, "{facts:?}");
        }
    }

    #[test]
    fn more_parts_than_there_is_room_for_are_new_rather_than_lost() {
        let mut said = SaidFacts::default();
        let texts = || vec!["a".to_owned()];
        let parts = [
            Facts { url: Some("u".to_owned()), ..Facts::default() },
            Facts { models: texts(), ..Facts::default() },
            Facts { adapters_loaded: texts(), ..Facts::default() },
            Facts { adapters_waiting: texts(), ..Facts::default() },
            Facts { slots: Some(1), ..Facts::default() },
        ];
        for facts in parts.iter().cycle().take(15) {
            assert!(are_new(&mut said, facts.clone()));
        }
        assert!(!are_new(&mut said, parts[4].clone()));
        assert!(said.parts.iter().any(|(kinds, _)| kinds.contains(FactKind::Slots)));
    }
}
