//! What differs between two configurations, in words: what a reload changed, and what of it waits for a restart.

use std::collections::BTreeMap;

use serde_json::Value;

use super::write::plain;
use super::{Config, to_json};

/// One difference between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The field, such as `policy.name`; entries of lists are named by their id or name: `replicas.r3.slots`.
    pub path: String,
    /// What it was; `None` when it was not there.
    pub old: Option<String>,
    /// What it is; `None` when it is gone.
    pub new: Option<String>,
    /// Takes effect only when the process starts anew.
    pub needs_restart: bool,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.old, &self.new, self.path.split_once('.')) {
            (None, Some(new), Some((list, name))) => write!(f, "{list}: added {name} ({new})"),
            (Some(old), None, Some((list, name))) => write!(f, "{list}: removed {name} ({old})"),
            (old, new, _) => {
                let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
                write!(f, "{}: {} → {}", self.path, shown(old), shown(new))
            }
        }?;
        if self.needs_restart { f.write_str(" (after a restart)") } else { Ok(()) }
    }
}

/// Fields that are read once, at the start of the process.
const RESTART: [&str; 15] = [
    "listen",
    "admin",
    "shards",
    "process",
    "index.memory",
    "policy.prefill_tokens_per_s",
    "limits.json_depth",
    "limits.json_values",
    "log.format",
    "log.level",
    "beacons.listen",
    "beacons.interface",
    "beacons.threads",
    "beacons.bypass",
    "beacons.busy_poll",
];

fn needs_restart(path: &str) -> bool {
    let within = |field: &str| path.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    RESTART.iter().any(|field| within(field))
}

/// Everything that differs, in the order of the file. Empty exactly when the two are equal.
#[must_use]
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    compare("", &to_json(old), &to_json(new), &mut changes);
    changes
}

fn compare(path: &str, old: &Value, new: &Value, changes: &mut Vec<Change>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            // Both are written from the same type, so they have the same fields.
            for (name, value) in old {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                compare(&path, value, new.get(name).unwrap_or(&Value::Null), changes);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.iter().chain(new).any(Value::is_object) => {
            compare_entries(path, old, new, changes);
        }
        _ if old != new => changes.push(change(path, Some(shown(old)), Some(shown(new)))),
        _ => {}
    }
}

/// Lists of replicas and of models: entries are the same when their id or name is.
fn compare_entries(path: &str, old: &[Value], new: &[Value], changes: &mut Vec<Change>) {
    let known: BTreeMap<&str, &Value> = old.iter().map(|entry| (name(entry), entry)).collect();
    let wanted: BTreeMap<&str, &Value> = new.iter().map(|entry| (name(entry), entry)).collect();
    let before = changes.len();
    for entry in old.iter().filter(|entry| !wanted.contains_key(name(entry))) {
        changes.push(change(&format!("{path}.{}", name(entry)), Some(gist(entry)), None));
    }
    for entry in new {
        let path = format!("{path}.{}", name(entry));
        match known.get(name(entry)) {
            Some(old) => compare(&path, old, entry, changes),
            None => changes.push(change(&path, None, Some(gist(entry)))),
        }
    }
    if changes.len() == before && old != new {
        changes.push(change(path, Some("one order".to_owned()), Some("another order".to_owned())));
    }
}

fn change(path: &str, old: Option<String>, new: Option<String>) -> Change {
    Change { path: path.to_owned(), old, new, needs_restart: needs_restart(path) }
}

/// What identifies an entry of a list.
fn name(entry: &Value) -> &str {
    entry.get("id").or_else(|| entry.get("name")).and_then(Value::as_str).unwrap_or_default()
}

/// What an entry mainly says.
fn gist(entry: &Value) -> String {
    shown(entry.get("url").or_else(|| entry.get("served_as")).unwrap_or(entry))
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(shown).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => plain(value),
    }
}
