//! A resolved configuration → the form of a file, as JSON or as YAML that reads back as the same configuration.

use serde_json::{Map, Value};

use super::Config;
use super::raw::RawConfig;

/// The resolved form as JSON, in the names and units of the file.
#[must_use]
pub fn to_json(config: &Config) -> Value {
    // The form is made of text, finite numbers, lists and maps, all of which JSON can hold.
    serde_json::to_value(RawConfig::from(config)).unwrap_or_default()
}

/// The resolved form as YAML: a complete file that [`super::parse`] reads as the same configuration.
#[must_use]
pub fn to_yaml(config: &Config) -> String {
    let mut out = String::new();
    if let Value::Object(fields) = to_json(config) {
        write_fields(&fields, 0, "", &mut out);
    }
    out
}

/// Writes the fields of a map, one a line; `first` stands before the first one instead of the indentation.
fn write_fields(fields: &Map<String, Value>, indent: usize, first: &str, out: &mut String) {
    for (index, (name, value)) in fields.iter().enumerate() {
        if index == 0 && !first.is_empty() {
            out.push_str(first);
        } else {
            out.extend(std::iter::repeat_n(' ', indent));
        }
        out.push_str(name);
        out.push(':');
        write_value(value, indent, out);
    }
}

fn write_value(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(fields) => {
            out.push('\n');
            write_fields(fields, indent + 2, "", out);
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            out.push('\n');
            let bullet = format!("{}- ", " ".repeat(indent + 2));
            for item in items {
                if let Value::Object(fields) = item {
                    write_fields(fields, indent + 4, &bullet, out);
                }
            }
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(scalar).collect();
            out.push_str(&format!(" [{}]\n", items.join(", ")));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            out.push_str(&format!(" {}\n", scalar(value)));
        }
    }
}

/// A scalar as it stands in YAML: bare where every reader takes it for the same text, else quoted as in JSON.
fn scalar(value: &Value) -> String {
    let Value::String(text) = value else { return plain(value) };
    let bare_start = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/');
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | ':' | '-' | '+' | '@' | '%' | '=');
    let taken_for_another_type = text.parse::<f64>().is_ok()
        || matches!(text.to_ascii_lowercase().as_str(), "null" | "true" | "false" | "yes" | "no" | "on" | "y" | "n");
    if bare_start && text.chars().all(bare) && !text.ends_with(':') && !taken_for_another_type {
        return text.clone();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            ' '..='~' => quoted.push(c),
            _ => quoted.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    quoted.push('"');
    quoted
}

/// A number, true or false as people write it: `3` rather than `3.0`.
pub(crate) fn plain(value: &Value) -> String {
    let mut text = value.to_string();
    if value.is_f64() && text.ends_with(".0") {
        text.truncate(text.len() - 2);
    }
    text
}
