//! What is wrong with a configuration, and the list in which all of it is gathered before anything is reported.

use std::cell::{Cell, RefCell};

use super::yaml::Mark;

/// Most errors reported for one file; how many more there are is told.
const ERRORS_MAX: usize = 100;
/// Most errors gathered before they are put in order.
const GATHERED_MAX: usize = 1_000;

/// One thing wrong in a configuration file or on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Line in the file, from 1; 0 when the error has no place (a command-line flag).
    pub line: u32,
    /// Column, from 1; 0 when unknown.
    pub column: u32,
    /// Path such as `replicas[2].url`.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Errors as they are found, by readers that go on after one.
#[derive(Debug, Default)]
pub(crate) struct Errors {
    list: RefCell<Vec<ConfigError>>,
    dropped: Cell<usize>,
}

impl Errors {
    /// Records an error.
    pub(crate) fn add(&self, mark: Mark, path: &str, message: impl Into<String>) {
        let mut list = self.list.borrow_mut();
        if list.len() >= GATHERED_MAX {
            self.dropped.set(self.dropped.get() + 1);
            return;
        }
        list.push(ConfigError { line: mark.line, column: mark.column, path: path.to_owned(), message: message.into() });
    }

    /// How many there are so far.
    pub(crate) fn count(&self) -> usize {
        self.list.borrow().len() + self.dropped.get()
    }

    /// Records an error after which there is nothing to go on with.
    pub(crate) fn stop<T>(&self, mark: Mark, path: &str, message: impl Into<String>) -> Option<T> {
        self.add(mark, path, message);
        None
    }

    /// All of them in the order of the file, or `None` when there are none.
    pub(crate) fn into_list(self) -> Option<Vec<ConfigError>> {
        let mut list = self.list.into_inner();
        list.sort_by_key(|error| (error.line, error.column));
        let more = self.dropped.get() + list.len().saturating_sub(ERRORS_MAX);
        list.truncate(ERRORS_MAX);
        if more > 0 {
            let message = format!("and {more} more errors");
            list.push(ConfigError { line: 0, column: 0, path: String::new(), message });
        }
        if list.is_empty() { None } else { Some(list) }
    }
}

/// Outside text for a message: quoted, escaped, and not longer than a person reads.
pub(crate) fn excerpt(text: &str) -> String {
    const SHOWN: usize = 60;
    let shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() { format!("{shown:?}…") } else { format!("{shown:?}") }
}
