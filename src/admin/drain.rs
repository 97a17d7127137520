//! Draining a replica by hand, and what `/replicas` says of health: so that people can see when it is safe to stop one.

use super::json_answer;
use crate::clock::{Clock, Now};
use crate::fleet::Replica;
use crate::health::DrainCause;
use crate::proxy::Core;
use http::Response;
use serde_json::{Map, Value, json};

/// What is asked of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// No new requests.
    Drain,
    /// New requests again.
    Undrain,
}

/// Reads `/replicas/{id}/drain` and `/replicas/{id}/undrain`; the id may be percent-encoded.
pub(super) fn read_path(path: &str) -> Option<(String, Ask)> {
    let (id, ask) = path.strip_prefix("/replicas/")?.rsplit_once('/')?;
    let ask = match ask {
        "drain" => Ask::Drain,
        "undrain" => Ask::Undrain,
        _ => return None,
    };
    (!id.is_empty()).then(|| (percent_decoded(id), ask))
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        match (first, after) {
            (b'%', [high, low, tail @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                bytes.push(hex(*high).unwrap_or_default() << 4 | hex(*low).unwrap_or_default());
                rest = tail;
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Drains the replica `id`, or ends that. Asking twice is asking once.
pub(super) fn answer(core: &Core, id: &str, ask: Ask) -> Response<Vec<u8>> {
    let snapshot = core.snapshot.load();
    let Some(replica) = snapshot.fleet.replicas.iter().find(|replica| replica.config.id == id) else {
        let message = format!("there is no replica `{id}`; GET /replicas lists them");
        return json_answer(404, &json!({"error": {"message": message, "code": "replica_not_found"}}));
    };
    let slot = replica.slot;
    let health = &core.shared.health;
    match ask {
        Ask::Drain => health.set_drain(slot, DrainCause::Admin, true),
        Ask::Undrain => {
            health.set_drain(slot, DrainCause::Admin, false);
            // Its next beacon says so again, if that is still so.
            health.set_drain(slot, DrainCause::Beacon, false);
        }
    }
    let now = core.clock.now();
    let mut body = Map::new();
    body.insert("id".to_owned(), json!(id));
    body.extend(health_fields(core, replica, now));
    body.insert("in_flight".to_owned(), json!(core.shared.load.in_flight(slot)));
    json_answer(200, &Value::Object(body))
}

/// What `/replicas` says of the health of `replica`: `state`, `since` (milliseconds of Unix time), `why`, `draining` (the
/// causes) and `warming`.
pub(super) fn health_fields(core: &Core, replica: &Replica, now: Now) -> Map<String, Value> {
    let found = core.shared.health.describe(replica.slot, now);
    let age_ms = u64::try_from(now.since(found.since).as_millis()).unwrap_or(u64::MAX);
    let causes: Vec<_> = found.drains.causes().map(DrainCause::as_str).collect();
    let fields = json!({
        "state": found.state.as_str(),
        "since": Clock::unix_ms().saturating_sub(age_ms),
        "why": found.why.to_string(),
        "draining": causes,
        "warming": found.is_warming,
    });
    match fields {
        Value::Object(fields) => fields,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_a_replica_and_what_is_asked_of_it() {
        let read = |path| read_path(path).map(|(id, ask)| (id, ask == Ask::Drain));
        assert_eq!(read("/replicas/127.0.0.1:80/drain"), Some(("127.0.0.1:80".to_owned(), true)));
        assert_eq!(read("/replicas/a%3A1%2f%zz/undrain"), Some(("a:1/%zz".to_owned(), false)));
        assert_eq!(read("/replicas/a/b/drain"), Some(("a/b".to_owned(), true)));
        for other in ["/replicas", "/replicas//drain", "/replicas/a", "/replicas/a/stop", "/replicas/drain"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
