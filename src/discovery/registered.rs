//! Replicas that registered themselves by beacon: each stays for as long as it is heard.

use super::{Found, Source};
use crate::clock::Now;
use crate::config::{ReplicaConfig, endpoint, replica_url};
use crate::fleet::Discovered;
use crate::id::ReplicaSlot;
use crate::wire::beacon::SenderId;
use std::collections::BTreeMap;
use std::time::Duration;

/// Most labels kept of one replica.
const LABELS_MAX: usize = 16;

/// A replica that nobody else has named says where it is. Only from beacons whose key was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// `http://host:port`, as it says.
    pub url: String,
    /// What it says of itself.
    pub said: Discovered,
    /// Labels for people.
    pub labels: Vec<(String, String)>,
    /// When it said so.
    pub heard: Now,
    /// Who it is in beacons.
    pub sender: SenderId,
}

/// What the threads that receive beacons tell the control thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A stranger with a key says where it is.
    Registration(Registration),
    /// A replica of the fleet says what it is.
    Facts {
        /// Whose place it has, as the receiver knows it.
        slot: ReplicaSlot,
        /// Who it is in beacons: the place may be another's by now.
        sender: SenderId,
        /// What it says of itself.
        said: Discovered,
    },
}

/// Why a registration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationFault {
    /// Its URL cannot be used.
    #[error("its URL: {0}")]
    Url(String),
    /// There are as many as may be.
    #[error("{0} replicas have registered, and no more fit")]
    Full(usize),
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    found: Found,
    sender: SenderId,
    labels: Vec<(String, String)>,
    heard: Now,
}

/// Replicas that registered themselves, by `host:port`.
#[derive(Debug, Default)]
pub struct Registered {
    entries: BTreeMap<String, Entry>,
}

impl Registered {
    /// Takes a registration in, the first or a later one. Returns whether the list changed.
    ///
    /// # Errors
    /// [`RegistrationFault`]; `most` is how many there may be.
    pub fn register(&mut self, registration: Registration, most: usize) -> Result<bool, RegistrationFault> {
        let Registration { url, said, mut labels, heard, sender } = registration;
        let url = replica_url(&url).map_err(RegistrationFault::Url)?;
        let own = endpoint(&url);
        if self.entries.len() >= most && !self.entries.contains_key(&own) {
            return Err(RegistrationFault::Full(most));
        }
        labels.truncate(LABELS_MAX);
        let replica = ReplicaConfig {
            models: said.models,
            slots: said.slots,
            kv_tokens: said.kv_tokens,
            ..ReplicaConfig::new(own.clone(), url)
        };
        let entry = Entry { found: replica.into(), sender, labels, heard };
        let before = self.entries.insert(own, entry.clone());
        Ok(before.is_none_or(|before| before.found != entry.found || before.sender != entry.sender))
    }

    /// The replica at `own` says anew what it is, if it registered itself. Returns whether the list changed.
    pub fn update(&mut self, own: &str, said: &Discovered) -> bool {
        let Some(entry) = self.entries.get_mut(own) else { return false };
        let replica = &mut entry.found.replica;
        let before = (replica.slots, replica.kv_tokens);
        replica.slots = said.slots.or(replica.slots);
        replica.kv_tokens = said.kv_tokens.or(replica.kv_tokens);
        let mut is_changed = before != (replica.slots, replica.kv_tokens);
        if !said.models.is_empty() && replica.models != said.models {
            replica.models.clone_from(&said.models);
            is_changed = true;
        }
        is_changed
    }

    /// Removes those that were not heard for longer than `after`; `heard` tells when a replica at a `host:port` was last
    /// heard, if it is known to have been. Returns those removed.
    pub fn expire(&mut self, after: Duration, now: Now, heard: impl Fn(&str) -> Option<Now>) -> Vec<String> {
        let mut gone = Vec::new();
        self.entries.retain(|own, entry| {
            entry.heard = entry.heard.max(heard(own).unwrap_or_default());
            let stays = now.since(entry.heard) <= after;
            if !stays {
                gone.push(own.clone());
            }
            stays
        });
        gone
    }

    /// Forgets all of them. Returns whether there were any.
    pub fn clear(&mut self) -> bool {
        let had_any = !self.entries.is_empty();
        self.entries.clear();
        had_any
    }

    /// The list of them, to be merged as [`Source::Beacon`].
    #[must_use]
    pub fn list(&self) -> (Source, Vec<Found>) {
        (Source::Beacon, self.entries.values().map(|entry| entry.found.clone()).collect())
    }

    /// Who the replica at `own` is in beacons, if it registered itself.
    #[must_use]
    pub fn sender(&self, own: &str) -> Option<SenderId> {
        self.entries.get(own).map(|entry| entry.sender)
    }

    /// Labels of the replica at `own`, for people.
    #[must_use]
    pub fn labels(&self, own: &str) -> &[(String, String)] {
        self.entries.get(own).map(|entry| entry.labels.as_slice()).unwrap_or_default()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now(seconds * 1_000_000_000)
    }

    fn registration(url: &str, second: u64) -> Registration {
        let said = Discovered { models: vec!["m".to_owned()], ..Discovered::default() };
        Registration { url: url.to_owned(), said, labels: Vec::new(), heard: at(second), sender: SenderId(7) }
    }

    #[test]
    fn a_registration_lasts_as_long_as_it_is_heard() {
        let (mut registered, after) = (Registered::default(), Duration::from_secs(30));
        assert_eq!(registered.register(registration("http://10.0.0.1:80/", 100), 9), Ok(true));
        assert_eq!(registered.register(registration("http://10.0.0.1", 110), 9), Ok(false), "the same");
        let own = "10.0.0.1:80";
        assert!(registered.expire(after, at(140), |_| None).is_empty());
        assert!(registered.expire(after, at(165), |_| Some(at(140))).is_empty(), "as a member of the fleet");
        assert!(registered.expire(after, at(170), |_| None).is_empty(), "what was heard once is not unheard");
        assert_eq!(registered.expire(after, at(171), |_| Some(at(139))), [own]);
        assert!(registered.is_empty());
    }

    #[test]
    fn registrations_are_bounded_and_checked() {
        let mut registered = Registered::default();
        assert_eq!(registered.register(registration("http://h:1", 1), 1), Ok(true));
        assert_eq!(registered.register(registration("http://h:2", 1), 1), Err(RegistrationFault::Full(1)));
        assert_eq!(registered.register(registration("http://h:1", 2), 1), Ok(false), "those that are in stay in");
        for url in ["h:1", "https://h:1", "http://u:p@h:1", "http://h:1/v1", "http://h:0", "file:///etc/passwd", ""] {
            let refused = registered.register(registration(url, 1), 9);
            assert!(matches!(refused, Err(RegistrationFault::Url(_))), "{url}");
        }
        assert_eq!(registered.len(), 1);
    }

    #[test]
    fn what_it_says_later_counts_and_what_it_leaves_out_stays() {
        let mut registered = Registered::default();
        registered.register(registration("http://h:1", 1), 1).unwrap();
        let said = Discovered { slots: Some(8), ..Discovered::default() };
        assert!(registered.update("h:1", &said) && !registered.update("h:1", &said));
        assert!(!registered.update("h:2", &said), "it did not register itself");
        let (source, list) = registered.list();
        assert_eq!((source, list[0].replica.slots, list[0].replica.models.len()), (Source::Beacon, Some(8), 1));
        assert_eq!(registered.sender("h:1"), Some(SenderId(7)));
    }
}
