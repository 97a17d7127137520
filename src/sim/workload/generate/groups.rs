//! Groups of requests with a prefix in common: documents that are asked about, few-shot prompts, system prompts.

use super::super::argument::Arguments;
use super::draw::{Arrivals, Heavy, Popularity};
use super::{Call, EXPONENT, KINDS, Maker, Script, Segment, TOKENS, TOKENS_MEAN, call};

/// Spread of questions' lengths, as of Azure's conversations.
pub(super) const QUESTION_CV: f64 = 1.0;
/// Spread of outputs' lengths, likewise.
pub(super) const OUTPUT_CV: f64 = 1.1;

/// Each request is a prefix of one of the groups and a question of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Groups {
    /// `groups`: prefixes. Default 150: with 6,000 tokens each, twice what a replica of an 8B model holds.
    pub groups: u32,
    /// `prefix`: tokens of each. Default 6,000.
    pub prefix_tokens: u32,
    /// `question`: mean tokens after it. Default 300.
    pub question_tokens: f64,
    /// `output`: mean tokens of an output. Default 200.
    pub output_tokens: f64,
    /// `zipf`: exponent of the groups' popularity; 0: all alike. Default 0.
    pub zipf: f64,
    /// `rate` 40, `cv` 1 (Poisson), `duration` 1,800.
    pub arrivals: Arrivals,
}

impl Default for Groups {
    fn default() -> Self {
        Self {
            groups: 150,
            prefix_tokens: 6000,
            question_tokens: 300.0,
            output_tokens: 200.0,
            zipf: 0.0,
            arrivals: Arrivals { rate_per_s: 40.0, cv: 1.0, duration_s: 1800.0 },
        }
    }
}

impl Groups {
    pub(super) fn read(arguments: &mut Arguments<'_>) -> Self {
        Self::default().changed(arguments)
    }

    /// These, but for what the arguments say.
    pub(super) fn changed(self, arguments: &mut Arguments<'_>) -> Self {
        Self {
            groups: arguments.count("groups", self.groups, &KINDS),
            prefix_tokens: arguments.count("prefix", self.prefix_tokens, &TOKENS),
            question_tokens: arguments.number("question", self.question_tokens, &TOKENS_MEAN),
            output_tokens: arguments.number("output", self.output_tokens, &TOKENS_MEAN),
            zipf: arguments.number("zipf", self.zipf, &EXPONENT),
            arrivals: self.arrivals.read(arguments, 1.0, 2.0),
        }
    }

    pub(super) fn scripts(&self, maker: &mut Maker) -> Vec<Script> {
        let prefixes = maker.segments(self.groups, self.prefix_tokens);
        let popularity = Popularity::new(self.groups, self.zipf);
        let times_s = self.arrivals.times_s(&mut maker.draw, 0.0, self.arrivals.duration_s);
        let script = |at_s| {
            let place = maker.draw.place(&popularity);
            let prefix = prefixes.get(place).copied();
            Script { at_s, calls: prefix.map(|prefix| self.question(prefix, maker)).into_iter().collect() }
        };
        times_s.into_iter().map(script).collect()
    }

    /// A new question after a prefix.
    pub(super) fn question(&self, prefix: Segment, maker: &mut Maker) -> Call {
        let tokens = maker.draw.tokens(Heavy::new(self.question_tokens, QUESTION_CV));
        let question = maker.segment(tokens);
        call(vec![prefix, question], maker.draw.tokens(Heavy::new(self.output_tokens, OUTPUT_CV)))
    }
}
