//! What replicas say of themselves, by id: when they are asked (`/v1/models`), and unasked (facts in beacons). A beacon
//! goes before an answer, field by field: it comes from beside the engine, and comes when something changes.

use crate::fleet::{Discovered, Engine};
use std::collections::HashMap;

#[derive(Debug, Default)]
struct Said {
    asked: Option<Discovered>,
    told: Option<Discovered>,
}

impl Said {
    fn merged(&self) -> Discovered {
        let (Some(told), Some(asked)) = (&self.told, &self.asked) else {
            return self.told.as_ref().or(self.asked.as_ref()).cloned().unwrap_or_default();
        };
        Discovered {
            models: if told.models.is_empty() { asked.models.clone() } else { told.models.clone() },
            engine: if told.engine == Engine::default() { asked.engine } else { told.engine },
            slots: told.slots.or(asked.slots),
            kv_tokens: told.kv_tokens.or(asked.kv_tokens),
            host_kv_tokens: told.host_kv_tokens.or(asked.host_kv_tokens),
        }
    }
}

/// What replicas say of themselves, by id.
#[derive(Debug, Default)]
pub struct Sayings {
    by_id: HashMap<String, Said>,
}

impl Sayings {
    /// The replica `id` answered. Returns whether that is news.
    pub fn answered(&mut self, id: &str, said: Discovered) -> bool {
        let known = &mut self.by_id.entry(id.to_owned()).or_default().asked;
        let is_news = known.as_ref() != Some(&said);
        *known = Some(said);
        is_news
    }

    /// The replica `id` told of itself in a beacon. Returns whether that is news.
    pub fn told(&mut self, id: &str, said: Discovered) -> bool {
        let known = &mut self.by_id.entry(id.to_owned()).or_default().told;
        let before = known.take();
        let said = updated(before.clone().unwrap_or_default(), said);
        let is_news = before.as_ref() != Some(&said);
        *known = Some(said);
        is_news
    }

    /// Whether the replica `id` has answered.
    #[must_use]
    pub fn has_answered(&self, id: &str) -> bool {
        self.by_id.get(id).is_some_and(|said| said.asked.is_some())
    }

    /// Forgets all but those for which `stays` holds.
    pub fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        self.by_id.retain(|id, _| stays(id));
    }

    /// Both words of each replica in one.
    #[must_use]
    pub fn merged(&self) -> HashMap<String, Discovered> {
        self.by_id.iter().map(|(id, said)| (id.clone(), said.merged())).collect()
    }

    /// Whether nobody has said anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

/// What was said `before`, and what is said now: a beacon may carry a part of it.
fn updated(before: Discovered, now: Discovered) -> Discovered {
    Discovered {
        models: if now.models.is_empty() { before.models } else { now.models },
        engine: if now.engine == Engine::default() { before.engine } else { now.engine },
        slots: now.slots.or(before.slots),
        kv_tokens: now.kv_tokens.or(before.kv_tokens),
        host_kv_tokens: now.host_kv_tokens.or(before.host_kv_tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beacon_goes_before_an_answer_field_by_field() {
        let mut sayings = Sayings::default();
        let models = vec!["m".to_owned()];
        let asked = Discovered { models, engine: Engine::LlamaCpp, slots: Some(4), ..Discovered::default() };
        let told = Discovered { slots: Some(8), kv_tokens: Some(1000), ..Discovered::default() };
        assert!(sayings.told("a", told.clone()) && !sayings.told("a", told.clone()));
        assert!(!sayings.has_answered("a"));
        assert_eq!(sayings.merged()["a"], told);
        assert!(sayings.answered("a", asked.clone()) && !sayings.answered("a", asked.clone()));
        assert_eq!(sayings.merged()["a"], Discovered { slots: Some(8), kv_tokens: Some(1000), ..asked });
        sayings.retain(|id| id != "a");
        assert!(sayings.is_empty());
    }
}
