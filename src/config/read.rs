//! Typed access to the tree of a configuration file. A reader that fails records why, with what was expected, and goes
//! on: the caller fills the hole with the default, which is never used, because a file with errors gives no
//! configuration.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::{Errors, excerpt};
use super::unit::{self, UnitError};
use super::yaml::{Entry, Mark, Node, Value};

/// A map whose fields are read by name.
#[derive(Debug)]
pub(crate) struct Section<'a> {
    path: String,
    mark: Mark,
    entries: &'a [Entry],
    known: Vec<&'static str>,
    errors: &'a Errors,
    errors_before: usize,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(crate) fn root(node: &'a Node, errors: &'a Errors) -> Option<Self> {
        match &node.value {
            Value::Null => Some(Self::new(String::new(), node.mark, &[], errors)),
            Value::Map(entries) => Some(Self::new(String::new(), node.mark, entries, errors)),
            Value::Scalar(_) | Value::List(_) => {
                let message = format!("expected fields such as `replicas:`, found {}", node.kind());
                errors.stop(node.mark, "", message)
            }
        }
    }

    fn new(path: String, mark: Mark, entries: &'a [Entry], errors: &'a Errors) -> Self {
        Self { path, mark, entries, known: Vec::new(), errors, errors_before: errors.count() }
    }

    /// Whether no field of this section was wrong so far: only then do comparisons between fields mean anything.
    pub(crate) fn is_clean(&self) -> bool {
        self.errors.count() == self.errors_before
    }

    /// The field of that name, unless it is absent or left empty.
    pub(crate) fn get(&mut self, name: &'static str) -> Option<Field<'a>> {
        self.known.push(name);
        let entry = self.entries.iter().find(|entry| entry.key == name)?;
        if matches!(entry.value.value, Value::Null) {
            return None;
        }
        let path = match entry.label {
            Some(label) => label.to_owned(),
            None => self.path_of(name),
        };
        Some(Field { path, node: &entry.value, errors: self.errors })
    }

    /// Reads the field of that name; `default` when it is absent or wrong.
    pub(crate) fn read<T>(&mut self, name: &'static str, default: T, read: impl FnOnce(&Field<'a>) -> Option<T>) -> T {
        self.get(name).as_ref().and_then(read).unwrap_or(default)
    }

    /// Records that a field this section cannot do without is missing.
    pub(crate) fn missing(&self, name: &str, message: &str) {
        self.errors.add(self.mark, &self.path_of(name), format!("missing; {message}"));
    }

    /// Records an error about a field, at its place, or at the section when the field is not in the file.
    pub(crate) fn fail_at(&self, name: &str, message: impl Into<String>) {
        let mark = self.entries.iter().find(|entry| entry.key == name).map_or(self.mark, |entry| entry.value.mark);
        self.errors.add(mark, &self.path_of(name), message);
    }

    /// Records every field that nobody asked for. Call it when all fields have been read.
    pub(crate) fn finish(self) {
        for entry in self.entries.iter().filter(|entry| !self.known.contains(&entry.key.as_str())) {
            let message = match (entry.key.as_str(), closest(&entry.key, &self.known)) {
                ("<<", _) => "merge keys (`<<`) are not supported; write the fields out".to_owned(),
                (_, Some(known)) => format!("unknown field; did you mean `{known}`?"),
                (_, None) => format!("unknown field; known here: {}", self.known.join(", ")),
            };
            let key: String = entry.key.chars().take(60).collect();
            self.errors.add(entry.mark, &self.path_of(&key), message);
        }
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

/// The known name a person most likely meant.
pub(crate) fn closest<'n>(name: &str, known: &[&'n str]) -> Option<&'n str> {
    const ALIKE: f64 = 0.8;
    if name.len() > 64 {
        return None;
    }
    let name = name.to_ascii_lowercase().replace('-', "_");
    let scored = known.iter().map(|candidate| (strsim::jaro_winkler(&name, candidate), *candidate));
    scored.filter(|(score, _)| *score >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, candidate)| candidate)
}

/// One value, its place and its path.
#[derive(Clone, Debug)]
pub(crate) struct Field<'a> {
    path: String,
    node: &'a Node,
    errors: &'a Errors,
}

impl<'a> Field<'a> {
    /// A whole file that is one value.
    pub(crate) const fn root(node: &'a Node, errors: &'a Errors) -> Self {
        Self { path: String::new(), node, errors }
    }

    /// A value that is no file's, by the path that errors say.
    pub(crate) fn named(path: &str, node: &'a Node, errors: &'a Errors) -> Self {
        Self { path: path.to_owned(), node, errors }
    }

    /// Whether it was left empty.
    pub(crate) const fn is_nothing(&self) -> bool {
        matches!(self.node.value, Value::Null)
    }

    /// Where it is, in words for another field's message: `replicas[0] at line 4`.
    pub(crate) fn place(&self) -> String {
        format!("`{}` {}", self.path, self.node.mark)
    }

    /// Records an error here.
    pub(crate) fn fail<T>(&self, message: impl Into<String>) -> Option<T> {
        self.errors.stop(self.node.mark, &self.path, message)
    }

    /// Records what was expected here instead of what is.
    fn expected<T>(&self, what: &str) -> Option<T> {
        self.fail(format!("expected {what}, found {}", self.node.kind()))
    }

    /// The text of a scalar, if it is one.
    pub(crate) const fn scalar(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar(text) => Some(text.as_str()),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// Whether it is a scalar with that text.
    pub(crate) fn is(&self, text: &str) -> bool {
        self.scalar() == Some(text)
    }

    /// The text of a scalar, or an error telling what was expected.
    pub(crate) fn text(&self, what: &str) -> Option<&'a str> {
        match self.scalar() {
            Some(text) => Some(text),
            None => self.expected(what),
        }
    }

    /// A map, or an error telling what was expected.
    pub(crate) fn section(&self, what: &str) -> Option<Section<'a>> {
        match &self.node.value {
            Value::Map(entries) => Some(Section::new(self.path.clone(), self.node.mark, entries, self.errors)),
            Value::Null | Value::Scalar(_) | Value::List(_) => self.expected(what),
        }
    }

    /// The items of a list of at most `most`.
    pub(crate) fn items(&self, most: usize, what: &str) -> Option<Vec<Self>> {
        let Value::List(items) = &self.node.value else { return self.expected(what) };
        if items.len() > most {
            return self.fail(format!("{} items; at most {most} are allowed", items.len()));
        }
        let item = |(index, node)| Field { path: format!("{}[{index}]", self.path), node, errors: self.errors };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// Whether it is a list of nothing.
    pub(crate) fn is_empty_list(&self) -> bool {
        matches!(&self.node.value, Value::List(items) if items.is_empty())
    }

    /// The items of a list, or the value itself where one needs no brackets.
    pub(crate) fn one_or_more(&self, most: usize, what: &str) -> Option<Vec<Self>> {
        if self.scalar().is_some() { Some(vec![self.clone()]) } else { self.items(most, what) }
    }

    /// `true` or `false`.
    pub(crate) fn flag(&self) -> Option<bool> {
        match self.scalar() {
            Some("true") => Some(true),
            Some("false") => Some(false),
            _ => self.expected("true or false"),
        }
    }

    /// One of a few names.
    pub(crate) fn choice<T: Copy>(&self, choices: &[(&'static str, T)]) -> Option<T> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let what = format!("one of {}", names.join(", "));
        let text = self.text(&what)?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*choice);
        }
        let hint = closest(text, &names).map(|name| format!("; did you mean `{name}`?"));
        self.fail(format!("expected {what}, found {}{}", excerpt(text), hint.unwrap_or_default()))
    }

    /// An address to listen on.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        const WHAT: &str = "an IP address and a port, such as 127.0.0.1:8080 or [::]:8080";
        let text = self.text(WHAT)?;
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        let hint = match text.split_once(':') {
            Some(("", port)) => format!("; for every interface write 0.0.0.0:{}", port.trim()),
            Some(("localhost", port)) => format!("; names are not looked up, write 127.0.0.1:{}", port.trim()),
            Some(_) => String::new(),
            None if text.parse::<u16>().is_ok() => format!("; a port alone is not enough, write 0.0.0.0:{text}"),
            None => String::new(),
        };
        self.fail(format!("expected {WHAT}, found {}{}", excerpt(text), shortened(hint)))
    }

    /// A duration within a range.
    pub(crate) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let shown = (unit::format_duration(*range.start()), unit::format_duration(*range.end()));
        self.measured("a duration such as 250ms, 1s or 2m", unit::duration, &range, &shown)
    }

    /// A size in bytes within a range.
    pub(crate) fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let shown = (unit::format_size(*range.start()), unit::format_size(*range.end()));
        self.measured("a size such as 64MiB", unit::size, &range, &shown)
    }

    /// A whole number within a range.
    pub(crate) fn count<T: TryFrom<u64> + Into<u64> + Copy>(&self, range: RangeInclusive<T>) -> Option<T> {
        let range = (*range.start()).into()..=(*range.end()).into();
        let shown = (range.start().to_string(), range.end().to_string());
        let value = self.measured("a whole number", unit::count, &range, &shown)?;
        T::try_from(value).ok()
    }

    /// A number within a range.
    pub(crate) fn number(&self, range: RangeInclusive<f64>) -> Option<f64> {
        let shown = (range.start().to_string(), range.end().to_string());
        self.measured("a number", unit::number, &range, &shown)
    }

    /// A share within 0 to 1, written as such or in percent.
    pub(crate) fn share(&self) -> Option<f64> {
        let shown = ("0".to_owned(), "1 (0% to 100%)".to_owned());
        self.measured("a share such as 0.2 or 20%", unit::share, &(0.0..=1.0), &shown)
    }

    /// A whole number of percent, with or without the sign.
    pub(crate) fn percent(&self) -> Option<u8> {
        let shown = ("0".to_owned(), "100".to_owned());
        let read = |text: &str| unit::count(text.strip_suffix('%').unwrap_or(text));
        let value = self.measured("whole percent such as 50", read, &(0..=100), &shown)?;
        u8::try_from(value).ok()
    }

    fn measured<T: PartialOrd>(
        &self,
        what: &str,
        read: impl FnOnce(&str) -> Result<T, UnitError>,
        range: &RangeInclusive<T>,
        shown: &(String, String),
    ) -> Option<T> {
        let text = self.text(what)?;
        match read(text) {
            Ok(value) if range.contains(&value) => Some(value),
            Ok(_) => self.fail(format!("{} is out of range: from {} to {}", excerpt(text), shown.0, shown.1)),
            Err(reason) => self.fail(format!("expected {what}, found {}: {reason}", excerpt(text))),
        }
    }
}

/// Hints repeat outside text: not more of it than a person reads.
fn shortened(hint: String) -> String {
    if hint.len() > 120 { String::new() } else { hint }
}
