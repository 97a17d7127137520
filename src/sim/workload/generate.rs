//! Traffic from a few figures: what traces do not show alone, such as one prefix that becomes hot, or an agent's fan-out.
//!
//! The same parameters and seed give the same workload. All are timed: `rate` is for the whole fleet at a load of 1 and
//! `duration` its length then, seconds. Lengths are log-normal around their means and arrivals may be burstier than
//! Poisson, as they are in published traffic: in Azure's conversations outputs have a mean of 211 tokens and a
//! coefficient of variation of 1.1; BurstGPT (Wang et al., 2024) and ServeGen (Xiang et al., 2025) fit arrivals with
//! Gamma-distributed gaps whose coefficient of variation is well above 1.
//!
//! | name | what |
//! |---|---|
//! | [`groups`](Groups) | prompts that share one of many prefixes |
//! | [`chat`](Chat) | bursty conversations, some with long prompts |
//! | [`hot`](Hot) | groups, of which a few become hot for a while |
//! | [`tenants`](Tenants) | tenants of very different sizes, each with its own system prompt |
//! | [`workflows`](Workflows) | agents' workflows: plan, parallel steps, join, in rounds |

mod chat;
mod draw;
mod groups;
mod hot;
mod tenants;
mod workflows;

pub use chat::Chat;
pub use draw::Arrivals;
pub use groups::Groups;
pub use hot::Hot;
pub use tenants::Tenants;
pub use workflows::Workflows;

use std::ops::RangeInclusive;

use super::argument::Arguments;
use super::source::WorkloadFault;
use super::{Call, Pace, Script, Segment, Workload};
use draw::Draw;

/// Lengths that may be asked for, tokens.
const TOKENS: RangeInclusive<u32> = 1..=1_000_000;
/// Means of them.
const TOKENS_MEAN: RangeInclusive<f64> = 1.0..=1e6;
/// Kinds of prefixes that may be asked for.
const KINDS: RangeInclusive<u32> = 1..=65_535;
/// Exponents of Zipf's law; 0 is even.
const EXPONENT: RangeInclusive<f64> = 0.0..=10.0;
/// Of times, seconds.
const SECONDS: RangeInclusive<f64> = 0.0..=604_800.0;

/// The generators' names, in the order of help.
pub(crate) const NAMES: [&str; 5] = ["groups", "chat", "hot", "tenants", "workflows"];

/// A generator with its parameters.
#[derive(Clone, Debug, PartialEq)]
pub enum Generator {
    /// Shared prefixes.
    Groups(Groups),
    /// Bursty chat.
    Chat(Chat),
    /// Hot prefixes.
    Hot(Hot),
    /// Unequal tenants.
    Tenants(Tenants),
    /// Workflows with fan-out.
    Workflows(Workflows),
}

impl Generator {
    /// The generator of that name with `key=value,…`.
    pub(crate) fn read(name: &str, arguments: &str) -> Result<Self, WorkloadFault> {
        let mut arguments = Arguments::new(arguments);
        let generator = match name {
            "groups" => Self::Groups(Groups::read(&mut arguments)),
            "chat" => Self::Chat(Chat::read(&mut arguments)),
            "hot" => Self::Hot(Hot::read(&mut arguments)),
            "tenants" => Self::Tenants(Tenants::read(&mut arguments)),
            "workflows" => Self::Workflows(Workflows::read(&mut arguments)),
            _ => return Err(WorkloadFault::UnknownGenerator(name.to_owned())),
        };
        let of = || format!("generate:{name}");
        arguments.finish().map_err(|faults| WorkloadFault::Arguments { of: of(), faults })?;
        Ok(generator)
    }

    /// What it makes of a seed.
    #[must_use]
    pub fn workload(&self, seed: u64) -> Workload {
        let mut maker = Maker { draw: Draw::new(seed), ids: 0 };
        let hot = match self {
            Self::Hot(hot) => Some(hot.prefixes()),
            Self::Groups(_) | Self::Chat(_) | Self::Tenants(_) | Self::Workflows(_) => None,
        };
        let (name, classes, mut scripts) = match self {
            Self::Groups(groups) => ("groups", &["all"][..], groups.scripts(&mut maker)),
            Self::Chat(chat) => ("chat", &["short", "long"][..], chat.scripts(&mut maker)),
            Self::Hot(hot) => ("hot", &["base", "hot"][..], hot.scripts(&mut maker)),
            Self::Tenants(tenants) => ("tenants", &["all"][..], tenants.scripts(&mut maker)),
            Self::Workflows(workflows) => ("workflows", &["plan", "step", "join"][..], workflows.scripts(&mut maker)),
        };
        scripts.sort_by(|a: &Script, b: &Script| a.at_s.total_cmp(&b.at_s));
        let classes = classes.iter().map(|class| (*class).to_owned()).collect();
        Workload { name: name.to_owned(), pace: Pace::Timed, classes, scripts, hot }
    }
}

/// Makes segments that no other has.
#[derive(Debug)]
struct Maker {
    draw: Draw,
    ids: u64,
}

impl Maker {
    fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    fn segment(&mut self, tokens: u32) -> Segment {
        Segment { id: self.id(), tokens }
    }

    /// Segments of one length.
    fn segments(&mut self, count: u32, tokens: u32) -> Vec<Segment> {
        (0..count).map(|_| self.segment(tokens)).collect()
    }
}

/// A call that waits for none and that none goes on from.
fn call(prompt: Vec<Segment>, output_tokens: u32) -> Call {
    let prompt = prompt.into_boxed_slice();
    Call { prompt, output_tokens, output: 0, after: Box::default(), think_s: 0.0, class: 0, tenant: 0 }
}

#[cfg(test)]
mod tests;
