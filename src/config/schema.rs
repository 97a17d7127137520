//! The JSON schema of a configuration file, for editors and other tools, made from the types that files are written
//! from. `conf/emberlane.schema.json` is its committed copy.

use schemars::{Schema, SchemaGenerator, generate::SchemaSettings, json_schema};

use super::raw::{RawConfig, RawDns, RawHealth, RawPolicy, RawReplica, RawScrape, RawWarmUp};
use super::{Bypass, LogFormat, PolicyName};

/// The JSON schema of a configuration file.
#[must_use]
pub fn schema() -> serde_json::Value {
    let generator = SchemaSettings::draft07().into_generator();
    generator.into_root_schema_for::<RawConfig>().to_value()
}

fn text_like(pattern: &str) -> Schema {
    json_schema!({ "type": "string", "pattern": pattern })
}

pub(crate) fn duration(_: &mut SchemaGenerator) -> Schema {
    text_like("^[0-9][0-9_]*(\\.[0-9]+)? ?(us|ms|s|m|h)$")
}

pub(crate) fn size(_: &mut SchemaGenerator) -> Schema {
    text_like("^[0-9][0-9_]*(\\.[0-9]+)? ?(B|kB|KB|MB|GB|KiB|MiB|GiB|TiB)$")
}

pub(crate) fn count(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9][0-9_]*(\\.[0-9]+)? ?[kMG]?$" })
}

pub(crate) fn count_or_auto(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["integer", "string"], "minimum": 1, "pattern": "^(auto|[0-9][0-9_]*(\\.[0-9]+)? ?[kMG]?)$" })
}

pub(crate) fn number(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "number", "minimum": 0 })
}

pub(crate) fn number_or_auto(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [{ "type": "number", "minimum": 1 }, { "const": "auto" }] })
}

pub(crate) fn share(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["number", "string"], "minimum": 0, "maximum": 1, "pattern": "^[0-9.]+ ?%$" })
}

pub(crate) fn percent(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["integer", "string"], "minimum": 0, "maximum": 100, "pattern": "^[0-9]+%?$" })
}

pub(crate) fn url(_: &mut SchemaGenerator) -> Schema {
    text_like("^http://[^/?#@]+/?$")
}

const ADDRESS: &str = "^[0-9a-fA-F.:\\[\\]%]+:[0-9]+$";

pub(crate) fn addresses(_: &mut SchemaGenerator) -> Schema {
    let address = text_like(ADDRESS);
    json_schema!({ "anyOf": [address, { "type": "array", "minItems": 1, "maxItems": 64, "items": address }] })
}

pub(crate) fn addresses_or_none(_: &mut SchemaGenerator) -> Schema {
    let address = text_like(ADDRESS);
    json_schema!({ "anyOf": [address, { "type": "array", "maxItems": 16, "items": address }] })
}

pub(crate) fn address_or_off(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [text_like(ADDRESS), { "enum": ["off", false] }] })
}

pub(crate) fn path_or_off(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [{ "type": "string", "minLength": 1 }, { "const": false }] })
}

pub(crate) fn replicas(generator: &mut SchemaGenerator) -> Schema {
    let full = generator.subschema_for::<RawReplica>();
    let short = url(generator);
    json_schema!({ "type": "array", "maxItems": crate::id::ReplicaSlot::LIMIT, "items": { "anyOf": [short, full] } })
}

pub(crate) fn policy(generator: &mut SchemaGenerator) -> Schema {
    let full = generator.subschema_for::<RawPolicy>();
    let short = policy_name(generator);
    json_schema!({ "anyOf": [short, full] })
}

pub(crate) fn policy_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "enum": PolicyName::ALL.map(PolicyName::as_str) })
}

pub(crate) fn log_format(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "enum": LogFormat::ALL.map(LogFormat::as_str) })
}

pub(crate) fn bypass(_: &mut SchemaGenerator) -> Schema {
    let names: Vec<serde_json::Value> = Bypass::ALL.map(|bypass| bypass.as_str().into()).into();
    json_schema!({ "anyOf": [{ "enum": names }, { "const": false }] })
}

pub(crate) fn path(_: &mut SchemaGenerator) -> Schema {
    text_like("^/[!-~]*$")
}

pub(crate) fn page_or_auto(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [text_like("^http://[^/?#@]+(/[^#]*)?$"), { "const": "auto" }] })
}

pub(crate) fn names(generator: &mut SchemaGenerator) -> Schema {
    let full = generator.subschema_for::<RawDns>();
    let short = text_like("^[A-Za-z0-9._-]+(:[0-9]+)?$");
    json_schema!({ "type": "array", "maxItems": 64, "items": { "anyOf": [short, full] } })
}

pub(crate) fn port_or_srv(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [{ "type": "integer", "minimum": 1, "maximum": 65535 }, { "const": "srv" }] })
}

pub(crate) fn scrape(generator: &mut SchemaGenerator) -> Schema {
    let full = generator.subschema_for::<RawScrape>();
    json_schema!({ "anyOf": [{ "enum": ["off", "on", false, true] }, full] })
}

pub(crate) fn health(generator: &mut SchemaGenerator) -> Schema {
    let full = generator.subschema_for::<RawHealth>();
    json_schema!({ "anyOf": [{ "enum": ["off", false] }, full] })
}

pub(crate) fn warm_up(generator: &mut SchemaGenerator) -> Schema {
    let full = generator.subschema_for::<RawWarmUp>();
    json_schema!({ "anyOf": [{ "enum": ["off", false] }, full] })
}
