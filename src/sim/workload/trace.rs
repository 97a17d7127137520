//! Files of real traffic → workloads, line by line, plain or gzipped. What a file is shows in its first line:
//! [`mooncake`], [`sessions`] or [`azure`]. All that is kept is bounded.

mod azure;
mod lines;
mod mooncake;
mod sessions;

use std::io::BufRead;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Call, Segment, Workload};
use crate::config::error::excerpt;
use lines::Lines;

/// Most calls of a workload.
pub(crate) const CALLS_MAX: usize = 4 << 20;
/// Most segments of all its prompts.
pub(crate) const SEGMENTS_MAX: usize = 32 << 20;
/// Most tokens of a prompt or an output.
pub(crate) const TOKENS_MAX: u32 = 1 << 24;

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceFault {
    /// The file cannot be read at all.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// One line is wrong.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What is wrong and what would be right.
        reason: LineFault,
    },
    /// There is no request in it.
    #[error("{}: no requests in it; expected a trace of at least one line", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A parameter was given that this kind of file has no use for.
    #[error("{}: `{key}` means nothing for {format}; remove it", path.display())]
    Unused {
        /// The file.
        path: PathBuf,
        /// The parameter.
        key: &'static str,
        /// What the file is.
        format: &'static str,
    },
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum LineFault {
    /// The file ends in the middle, or its compression is broken.
    #[error("cannot be read: {0}; is the file complete?")]
    Read(#[source] std::io::Error),
    /// Longer than is kept in memory.
    #[error("longer than {} bytes; one request or session a line", lines::LINE_BYTES_MAX)]
    TooLong,
    /// The first line is of no known trace.
    #[error(
        "{} is the beginning of no known trace; known are Mooncake's JSON lines (`timestamp`, `input_length`, \
         `output_length`, `hash_ids`), agent sessions' (`session_id`, `turns`) and Azure's CSV with the header \
         `TIMESTAMP,ContextTokens,GeneratedTokens`",
        excerpt(.0)
    )]
    UnknownFormat(String),
    /// It is not the JSON object that the lines before were.
    #[error("column {column}: {message}; expected {expected}")]
    Json {
        /// From 1.
        column: usize,
        /// What the parser found.
        message: String,
        /// What a line looks like.
        expected: &'static str,
    },
    /// It has not the columns of the header.
    #[error("expected `{expected}`, found {}", excerpt(.found))]
    Csv {
        /// What a line looks like.
        expected: &'static str,
        /// What this one looks like.
        found: String,
    },
    /// A prompt has no token.
    #[error("a prompt of 0 tokens; every request has at least 1")]
    NoTokens,
    /// A count of tokens is beyond what can be simulated.
    #[error("{0} tokens; at most {TOKENS_MAX} are allowed")]
    Tokens(u64),
    /// A time before the trace's beginning, or no number.
    #[error("the time {0} is not a number from 0 on")]
    Time(f64),
    /// Blocks and length do not belong together.
    #[error(
        "`input_length` {tokens} makes {expected} blocks of {block}, but `hash_ids` has {found}; give `block=` if they are longer or shorter"
    )]
    Blocks {
        /// Tokens of the prompt.
        tokens: u32,
        /// Tokens of a block.
        block: u32,
        /// How many blocks that makes.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A block stands for other prefixes in other lines.
    #[error(
        "the block {0} follows another block here than in an earlier line; `hash_ids` must be of a block and all before it"
    )]
    Unchained(u64),
    /// A turn takes more from before than its whole prompt.
    #[error("turn {turn} reuses {reused} of {input} tokens; at most all of them can be")]
    ReusesAll {
        /// From 1.
        turn: usize,
        /// Tokens it reuses.
        reused: u32,
        /// Tokens of its prompt.
        input: u32,
    },
    /// A turn takes more from before than there was.
    #[error("turn {turn} reuses {reused} tokens, but no turn before it had as many")]
    ReusesMore {
        /// From 1.
        turn: usize,
        /// Tokens it reuses.
        reused: u32,
    },
    /// A session is longer than is kept in memory.
    #[error("{0} turns in a session; at most {max} are read", max = sessions::TURNS_MAX)]
    Turns(usize),
    /// The trace is larger than is kept in memory.
    #[error("the trace has more than {CALLS_MAX} requests or {SEGMENTS_MAX} pieces of prompts; use a part of it")]
    TooLarge,
}

/// What a trace's file does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Azure: tokens at the beginning of every prompt that all have in common. Default 0.
    pub(crate) system_tokens: Option<u32>,
    /// Mooncake: tokens of a block. Default 512.
    pub(crate) block_tokens: Option<u32>,
}

/// Reads a file.
pub(crate) fn open(path: &Path, options: Options) -> Result<Workload, TraceFault> {
    let unreadable = |source| TraceFault::Unreadable { path: path.to_owned(), source };
    let input = lines::open(path).map_err(unreadable)?;
    read(path, input, options)
}

/// Reads a trace, whatever holds it; `path` is for its name and for messages.
fn read(path: &Path, input: impl BufRead, options: Options) -> Result<Workload, TraceFault> {
    let mut lines = Lines::new(input);
    let workload = recognized(&mut lines, path, options);
    let line = lines.number();
    workload.map_err(|stop| match stop {
        Stop::Line(reason) => TraceFault::Line { path: path.to_owned(), line, reason },
        Stop::Trace(fault) => fault,
    })
}

/// A fault of the line that was read last, or of the trace.
enum Stop {
    Line(LineFault),
    Trace(TraceFault),
}

impl From<LineFault> for Stop {
    fn from(fault: LineFault) -> Self {
        Self::Line(fault)
    }
}

/// What tells formats of JSON lines apart.
#[derive(Deserialize)]
struct Probe {
    hash_ids: Option<IgnoredAny>,
    turns: Option<IgnoredAny>,
}

fn recognized(lines: &mut Lines<impl BufRead>, path: &Path, options: Options) -> Result<Workload, Stop> {
    let empty = || Stop::Trace(TraceFault::Empty { path: path.to_owned() });
    let unused = |key, given: Option<u32>, format| match given {
        Some(_) => Err(Stop::Trace(TraceFault::Unused { path: path.to_owned(), key, format })),
        None => Ok(()),
    };
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let Some(first) = lines.next()? else { return Err(empty()) };
    let probe = serde_json::from_slice(first).unwrap_or(Probe { hash_ids: None, turns: None });
    let columns = azure::Columns::of_header(first);
    let unknown = LineFault::UnknownFormat(String::from_utf8_lossy(first).into_owned());
    let workload = if let Some(columns) = columns {
        unused("block", options.block_tokens, "Azure's CSV")?;
        azure::read(lines, name, columns, options.system_tokens.unwrap_or(0))?
    } else if probe.turns.is_some() {
        unused("block", options.block_tokens, "agent sessions")?;
        unused("system", options.system_tokens, "agent sessions")?;
        lines.again();
        sessions::read(lines, name)?
    } else if probe.hash_ids.is_some() {
        unused("system", options.system_tokens, "Mooncake's JSON lines")?;
        lines.again();
        mooncake::read(lines, name, options.block_tokens.unwrap_or(mooncake::BLOCK_TOKENS))?
    } else {
        return Err(unknown.into());
    };
    if workload.scripts.is_empty() { Err(empty()) } else { Ok(workload) }
}

/// Counts what is kept.
#[derive(Debug, Default)]
struct Kept {
    calls: usize,
    segments: usize,
}

impl Kept {
    /// Room for one more call.
    const fn add(&mut self, segments: usize) -> Result<(), LineFault> {
        self.calls += 1;
        self.segments = self.segments.saturating_add(segments);
        if self.calls > CALLS_MAX || self.segments > SEGMENTS_MAX { Err(LineFault::TooLarge) } else { Ok(()) }
    }
}

/// One line of JSON.
fn json<'l, T: Deserialize<'l>>(line: &'l [u8], expected: &'static str) -> Result<T, LineFault> {
    serde_json::from_slice(line).map_err(|error| {
        let text = error.to_string();
        let message = text.split(" at line ").next().unwrap_or_default().to_owned();
        LineFault::Json { column: error.column(), message, expected }
    })
}

/// A count of tokens that can be simulated. An engine makes one token before it can stop, so none is read as one.
fn output(tokens: u64) -> Result<u32, LineFault> {
    tokens_within(tokens).map(|tokens| tokens.max(1))
}

/// Likewise for a prompt, which cannot be empty.
fn input(tokens: u64) -> Result<u32, LineFault> {
    if tokens == 0 { Err(LineFault::NoTokens) } else { tokens_within(tokens) }
}

fn tokens_within(tokens: u64) -> Result<u32, LineFault> {
    u32::try_from(tokens).ok().filter(|tokens| *tokens <= TOKENS_MAX).ok_or(LineFault::Tokens(tokens))
}

/// A request that stands alone.
fn lone(prompt: Vec<Segment>, output_tokens: u32) -> Call {
    let prompt = prompt.into_boxed_slice();
    Call { prompt, output_tokens, output: 0, after: Box::default(), think_s: 0.0, class: 0, tenant: 0 }
}

#[cfg(test)]
mod tests;
