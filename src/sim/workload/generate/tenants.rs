//! Tenants of very different sizes: a few send most of the requests (ServeGen finds that of 2,412 clients of one model).

use super::super::argument::Arguments;
use super::draw::{Arrivals, Heavy, Popularity};
use super::groups::{OUTPUT_CV, QUESTION_CV};
use super::{Call, EXPONENT, KINDS, Maker, Script, TOKENS_MEAN, call};

/// Spread of system prompts' lengths: some are a line, some a manual.
const SYSTEM_CV: f64 = 1.0;

/// Each tenant has a system prompt of its own, with which all its requests begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tenants {
    /// `tenants`. Default 200.
    pub tenants: u32,
    /// `zipf`: exponent of their sizes. Default 1.1: the largest sends a fifth of all requests.
    pub zipf: f64,
    /// `system`: mean tokens of a system prompt. Default 3,000.
    pub system_tokens: f64,
    /// `question`: mean tokens after it. Default 400.
    pub question_tokens: f64,
    /// `output`: mean tokens of an output. Default 250.
    pub output_tokens: f64,
    /// `rate` 40, `cv` 1.5, `duration` 1,800.
    pub arrivals: Arrivals,
}

impl Default for Tenants {
    fn default() -> Self {
        Self {
            tenants: 200,
            zipf: 1.1,
            system_tokens: 3000.0,
            question_tokens: 400.0,
            output_tokens: 250.0,
            arrivals: Arrivals { rate_per_s: 40.0, cv: 1.5, duration_s: 1800.0 },
        }
    }
}

impl Tenants {
    pub(super) fn read(arguments: &mut Arguments<'_>) -> Self {
        let default = Self::default();
        Self {
            tenants: arguments.count("tenants", default.tenants, &KINDS),
            zipf: arguments.number("zipf", default.zipf, &EXPONENT),
            system_tokens: arguments.number("system", default.system_tokens, &TOKENS_MEAN),
            question_tokens: arguments.number("question", default.question_tokens, &TOKENS_MEAN),
            output_tokens: arguments.number("output", default.output_tokens, &TOKENS_MEAN),
            arrivals: default.arrivals.read(arguments, 1.0, 2.0),
        }
    }

    pub(super) fn scripts(&self, maker: &mut Maker) -> Vec<Script> {
        let system = Heavy::new(self.system_tokens, SYSTEM_CV);
        let mut systems = Vec::new();
        for _ in 0..self.tenants {
            let tokens = maker.draw.tokens(system);
            systems.push(maker.segment(tokens));
        }
        let popularity = Popularity::new(self.tenants, self.zipf);
        let times_s = self.arrivals.times_s(&mut maker.draw, 0.0, self.arrivals.duration_s);
        let script = |at_s| {
            let place = maker.draw.place(&popularity);
            let mut prompt: Vec<_> = systems.get(place).copied().into_iter().collect();
            let question = maker.draw.tokens(Heavy::new(self.question_tokens, QUESTION_CV));
            prompt.push(maker.segment(question));
            let output_tokens = maker.draw.tokens(Heavy::new(self.output_tokens, OUTPUT_CV));
            let tenant = u16::try_from(place).unwrap_or(u16::MAX);
            Script { at_s, calls: Box::new([Call { tenant, ..call(prompt, output_tokens) }]) }
        };
        times_s.into_iter().map(script).collect()
    }
}
