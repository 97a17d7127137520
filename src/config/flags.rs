//! What the command line may say without a file, or over one: turned into the same tree that a file is read into, so
//! that both are checked by the same code.

use super::PolicyName;
use super::error::Errors;
use super::yaml::{Entry, Mark, Node, Value};

/// The flags of `emberlane serve` that stand for fields of the file. What is not given leaves the file's value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--listen ADDR`, any number; replaces `listen`.
    pub listen: Vec<String>,
    /// `--admin ADDR` or `off`; replaces `admin`.
    pub admin: Option<String>,
    /// `--replica URL`, any number; replaces `replicas`.
    pub replicas: Vec<String>,
    /// `--policy NAME`; replaces `policy.name` and leaves its parameters.
    pub policy: Option<PolicyName>,
    /// `--beacons ADDR`, any number; replaces `beacons.listen`.
    pub beacons: Vec<String>,
    /// `--beacon-keys FILE`; replaces `beacons.keys`.
    pub beacon_keys: Option<String>,
    /// `--discovery-file FILE`; replaces `discovery.file`.
    pub discovery_file: Option<String>,
    /// `--dns NAME:PORT`, or NAME alone for SRV records, any number; replaces `discovery.dns`.
    pub dns: Vec<String>,
}

impl Flags {
    /// The tree of a command line without a file.
    pub(crate) fn tree(&self, errors: &Errors) -> Node {
        let mut root = Node { mark: Mark::FLAG, value: Value::Map(Vec::new()) };
        self.apply(&mut root);
        if self.replicas.is_empty() && self.dns.is_empty() && self.discovery_file.is_none() {
            errors.add(Mark::FLAG, "--replica", "missing; give at least one, such as --replica http://10.0.0.1:8000");
            put(&mut root, "replicas", "--replica", Value::List(Vec::new()));
        }
        root
    }

    /// Replaces what the flags say in a file's tree.
    pub(crate) fn apply(&self, root: &mut Node) {
        if !self.listen.is_empty() {
            put(root, "listen", "--listen", list(&self.listen));
        }
        if let Some(admin) = &self.admin {
            put(root, "admin", "--admin", Value::Scalar(admin.clone()));
        }
        if !self.replicas.is_empty() {
            put(root, "replicas", "--replica", list(&self.replicas));
        }
        if let Some(policy) = self.policy {
            let name = Value::Scalar(policy.as_str().to_owned());
            match policy_parameters(root) {
                Some(parameters) => put(parameters, "name", "--policy", name),
                None => put(root, "policy", "--policy", name),
            }
        }
        let scalar = |text: &String| Value::Scalar(text.clone());
        let lists = |texts: &[String]| (!texts.is_empty()).then(|| list(texts));
        put_within(root, "beacons", "listen", "--beacons", lists(&self.beacons));
        put_within(root, "beacons", "keys", "--beacon-keys", self.beacon_keys.as_ref().map(scalar));
        put_within(root, "discovery", "file", "--discovery-file", self.discovery_file.as_ref().map(scalar));
        put_within(root, "discovery", "dns", "--dns", lists(&self.dns));
    }
}

fn policy_parameters(root: &mut Node) -> Option<&mut Node> {
    let Value::Map(entries) = &mut root.value else { return None };
    let policy = entries.iter_mut().find(|entry| entry.key == "policy")?;
    matches!(policy.value.value, Value::Map(_)).then_some(&mut policy.value)
}

/// A list of texts.
pub(crate) fn list(texts: &[String]) -> Value {
    Value::List(texts.iter().map(|text| Node { mark: Mark::FLAG, value: Value::Scalar(text.clone()) }).collect())
}

/// Sets a field of a section, which is made if it is not there.
fn put_within(root: &mut Node, section: &'static str, key: &str, label: &'static str, value: Option<Value>) {
    let Some(value) = value else { return };
    let has = |entry: &Entry| entry.key == section && !matches!(entry.value.value, Value::Null);
    if !matches!(&root.value, Value::Map(entries) if entries.iter().any(has)) {
        put(root, section, section, Value::Map(Vec::new()));
    }
    let Value::Map(entries) = &mut root.value else { return };
    if let Some(entry) = entries.iter_mut().find(|entry| entry.key == section) {
        put(&mut entry.value, key, label, value);
    }
}

/// Sets a field of a map. Anything but a map or an empty file is left as it is: reading it is an error anyway.
pub(crate) fn put(map: &mut Node, key: &str, label: &'static str, value: Value) {
    if matches!(map.value, Value::Null) {
        map.value = Value::Map(Vec::new());
    }
    let Value::Map(entries) = &mut map.value else { return };
    entries.retain(|entry| entry.key != key);
    let value = Node { mark: Mark::FLAG, value };
    entries.push(Entry { key: key.to_owned(), label: Some(label), mark: Mark::FLAG, value });
}
