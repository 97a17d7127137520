//! What is asked of a fleet: scripts of calls, from a trace or a generator, with prompts as chains of segments.
//!
//! [`Source`] reads them: [`trace`] files of real traffic, or [`generate`]d ones. [`Workload::seeded`] and
//! [`Workload::part`] make runs that differ and splits that do not overlap; [`Workload::facts`] describes what is there.

mod argument;
mod fact;
pub mod generate;
mod source;
pub mod trace;
mod vary;

pub use argument::ArgumentFault;
pub use fact::Facts;
pub use source::{Source, WorkloadFault, by_name, from_file};
pub use trace::{LineFault, TraceFault};
pub use vary::Half;

/// A piece of a prompt. Two prompts that both have a segment with this id are equal up to its end: the id stands for
/// its tokens and all before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    /// Unique in the workload for this content after this prefix.
    pub id: u64,
    /// Its length; never zero.
    pub tokens: u32,
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The prompt, from its first token.
    pub prompt: Box<[Segment]>,
    /// Tokens it generates; at least one.
    pub output_tokens: u32,
    /// The segment that its output becomes in a later prompt, right after this prompt; 0 when none goes on from it.
    pub output: u64,
    /// Calls of the same script, by place, that must have ended before; each is earlier in the script.
    pub after: Box<[u32]>,
    /// Seconds between the last of those (or the script's start) and this call.
    pub think_s: f32,
    /// Which of the workload's [`Workload::classes`] it is of.
    pub class: u8,
    /// Whose it is.
    pub tenant: u16,
}

impl Call {
    /// Tokens of its prompt.
    #[must_use]
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt.iter().map(|segment| segment.tokens).sum()
    }
}

/// A conversation, a workflow or a lone request: calls that belong together, one session at the gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    /// When it starts, seconds, at a load of 1; zero in a closed loop.
    pub at_s: f64,
    /// Its calls, in an order in which they can run.
    pub calls: Box<[Call]>,
}

/// How scripts start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Each at its own time; the load is a multiple of the rate.
    Timed,
    /// Load × replicas users, each of whom runs one script after the other.
    Closed,
}

/// All that is asked in a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// For reports: the trace's file name or the generator's.
    pub name: String,
    /// How scripts start.
    pub pace: Pace,
    /// Names of the classes of calls that are reported apart, at least one.
    pub classes: Vec<String>,
    /// The scripts; of a timed workload, in the order of their times.
    pub scripts: Vec<Script>,
    /// Prefixes that are hot for a while, where the workload is made so.
    pub hot: Option<HotPrefixes>,
}

/// Prefixes that get many more requests for a while.
#[derive(Clone, Debug, PartialEq)]
pub struct HotPrefixes {
    /// The first segments of their prompts.
    pub prefixes: Vec<Segment>,
    /// When they become hot, seconds, at a load of 1.
    pub from_s: f64,
    /// When they cool.
    pub until_s: f64,
}
