//! Lists of replicas: `replicas` of the configuration, and the files that `discovery.file` names, which have the same
//! form.

use std::collections::BTreeMap;

use url::Url;

use super::super::ConfigError;
use super::super::error::{Errors, excerpt};
use super::super::read::{Field, Section};
use super::super::yaml;
use super::{BLOCK_TOKENS_MAX, RATE_MAX, ReplicaConfig, SLOTS_MAX, TOKENS_MAX, or_auto};
use crate::id::ReplicaSlot;

const MODELS_PER_REPLICA_MAX: usize = 1024;
const MODEL_NAME_BYTES_MAX: usize = 256;
const REPLICA_ID_BYTES_MAX: usize = 128;
const LIST: &str = "a list of URLs such as http://10.0.0.1:8000";

/// Reads the text of a file that holds a list of replicas, as `replicas` has it (YAML, and so JSON). A file of nothing is
/// an error, not an empty list: it is taken for one that somebody is still writing.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file.
pub fn parse_replicas(text: &str) -> Result<Vec<ReplicaConfig>, Vec<ConfigError>> {
    let errors = Errors::default();
    let replicas = yaml::read(text, &errors).map(|root| {
        let list = Field::root(&root, &errors);
        if list.is_nothing() { list.fail("an empty file; write [] for no replicas") } else { Some(listed(&list)) }
    });
    match (replicas.flatten(), errors.into_list()) {
        (Some(replicas), None) => Ok(replicas),
        (_, errors) => Err(errors.unwrap_or_default()),
    }
}

/// Reads the URL of a replica, as `replicas` takes it.
///
/// # Errors
/// What is wrong with it, in words.
pub fn replica_url(text: &str) -> Result<Url, String> {
    read_url(text, Path::Refused)
}

/// The file's replicas; none need be there when they come from elsewhere.
pub(super) fn replicas(file: &mut Section<'_>, more_to_come: bool) -> Vec<ReplicaConfig> {
    match file.get("replicas") {
        Some(field) => listed(&field),
        None if more_to_come => Vec::new(),
        None => {
            let what = "list the engines' URLs, such as `- http://10.0.0.1:8000`, or write [] for none yet";
            file.missing("replicas", what);
            Vec::new()
        }
    }
}

fn listed(field: &Field<'_>) -> Vec<ReplicaConfig> {
    let items = field.items(ReplicaSlot::LIMIT, LIST);
    let (mut ids, mut endpoints) = (BTreeMap::new(), BTreeMap::new());
    let mut replicas = Vec::new();
    for item in items.unwrap_or_default() {
        let Some(replica) = replica(&item) else { continue };
        if let Some(first) = endpoints.insert(endpoint(&replica.url), item.place()) {
            item.fail::<()>(format!("the address {} is already that of {first}", endpoint(&replica.url)));
        } else if let Some(first) = ids.insert(replica.id.clone(), item.place()) {
            item.fail::<()>(format!("the id {} is already that of {first}", excerpt(&replica.id)));
        }
        replicas.push(replica);
    }
    replicas
}

fn replica(field: &Field<'_>) -> Option<ReplicaConfig> {
    if field.scalar().is_some() {
        let url = replica_url_of(field)?;
        let id = endpoint(&url);
        return Some(ReplicaConfig::new(id, url));
    }
    let mut section = field.section("a URL such as http://10.0.0.1:8000, or fields such as `url`")?;
    let url_field = section.get("url");
    if url_field.is_none() {
        section.missing("url", "where the engine listens, such as http://10.0.0.1:8000");
    }
    let url = url_field.as_ref().and_then(replica_url_of);
    let id = section.get("id").as_ref().map(replica_id);
    let models = section.read("models", Vec::new(), model_names);
    let slots = section.read("slots", None, |field| or_auto(field, |field| field.count(1..=SLOTS_MAX)));
    let kv_tokens = section.read("kv_tokens", None, |field| or_auto(field, |field| field.count(1..=TOKENS_MAX)));
    let kv_block_tokens =
        section.read("kv_block_tokens", None, |field| or_auto(field, |field| field.count(1..=BLOCK_TOKENS_MAX)));
    let host_kv_tokens =
        section.read("host_kv_tokens", None, |field| or_auto(field, |field| field.count(1..=TOKENS_MAX)));
    let restore_tokens_per_s =
        section.read("restore_tokens_per_s", None, |field| or_auto(field, |field| field.number(1.0..=RATE_MAX)));
    let prefill_tokens_per_s =
        section.read("prefill_tokens_per_s", None, |field| or_auto(field, |field| field.number(1.0..=RATE_MAX)));
    let metrics = section.read("metrics", None, |field| or_auto(field, metrics_url));
    let drain = section.read("drain", false, Field::flag);
    section.finish();
    let url = url?;
    let id = id.unwrap_or_else(|| Some(endpoint(&url)))?;
    Some(ReplicaConfig {
        id,
        url,
        models,
        slots,
        kv_tokens,
        kv_block_tokens,
        host_kv_tokens,
        restore_tokens_per_s,
        prefill_tokens_per_s,
        metrics,
        drain,
    })
}

/// Models that are served at one place.
pub(super) fn model_names(field: &Field<'_>) -> Option<Vec<String>> {
    let names = field.items(MODELS_PER_REPLICA_MAX, "a list of model names")?;
    Some(names.iter().filter_map(model_name).collect())
}

/// Ids stand in headers, metrics and logs: visible ASCII only.
fn replica_id(field: &Field<'_>) -> Option<String> {
    let text = field.text("a name")?;
    let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.is_empty() || !visible || text.len() > REPLICA_ID_BYTES_MAX {
        return field.fail(format!(
            "expected 1 to {REPLICA_ID_BYTES_MAX} visible ASCII characters without spaces, found {}",
            excerpt(text)
        ));
    }
    Some(text.to_owned())
}

/// `host:port`, the port given or not.
#[must_use]
pub fn endpoint(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default())
}

fn replica_url_of(field: &Field<'_>) -> Option<Url> {
    let text = field.text("a URL such as http://10.0.0.1:8000")?;
    read_url(text, Path::Refused).map_or_else(|wrong| field.fail(wrong), Some)
}

fn metrics_url(field: &Field<'_>) -> Option<Url> {
    let text = field.text("a URL such as http://10.0.0.1:8001/metrics, or `auto`")?;
    read_url(text, Path::Wanted).map_or_else(|wrong| field.fail(wrong), Some)
}

/// Whether a URL names a page or only where a replica is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    Refused,
    Wanted,
}

fn read_url(text: &str, path: Path) -> Result<Url, String> {
    let what = match path {
        Path::Refused => "expected a URL such as http://10.0.0.1:8000",
        Path::Wanted => "expected a URL such as http://10.0.0.1:8001/metrics",
    };
    if !text.contains("://") {
        return Err(format!("{what}, found {}; begin it with http://", excerpt(text)));
    }
    let url = Url::parse(text).map_err(|reason| format!("{what}, found {}: {reason}", excerpt(text)))?;
    let wrong = match url.scheme() {
        "http" if !url.username().is_empty() || url.password().is_some() => {
            "user names and passwords are not sent; remove them"
        }
        "http" if url.query().is_some() && path == Path::Refused || url.fragment().is_some() => {
            "a replica's URL has no query and no fragment; remove it"
        }
        "http" if url.path() != "/" && path == Path::Refused => {
            "a replica's URL ends after the port; remove the path (clients' paths are passed on)"
        }
        "http" if url.port() == Some(0) => "port 0 cannot be connected to",
        "http" if url.host_str().is_none_or(|host| host.len() > 100) => "a host of 1 to 100 characters is needed",
        "http" => return Ok(url),
        "https" => "TLS to replicas is not supported yet; use http on a network you trust",
        _ => "only http is spoken to replicas",
    };
    Err(format!("{wrong} (found {})", excerpt(text)))
}

pub(super) fn model_name(field: &Field<'_>) -> Option<String> {
    let text = field.text("a model name")?;
    if text.is_empty() || text.len() > MODEL_NAME_BYTES_MAX || text.chars().any(char::is_control) {
        let message =
            format!("expected 1 to {MODEL_NAME_BYTES_MAX} bytes without control characters, found {}", excerpt(text));
        return field.fail(message);
    }
    Some(text.to_owned())
}
