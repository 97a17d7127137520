//! Bursty chat with some long prompts: behind a long one, short ones wait, unless they go elsewhere.

use super::super::argument::{ArgumentFault, Arguments};
use super::draw::{Arrivals, Heavy};
use super::groups::{OUTPUT_CV, QUESTION_CV};
use super::{Call, Maker, SECONDS, Script, Segment, TOKENS, TOKENS_MEAN, call};

/// Longest conversation, turns.
const TURNS_MAX: u32 = 32;
/// Spread of short first prompts: nine in ten have 200 to 1,100 tokens.
const SHORT_CV: f64 = 0.6;
/// Spread of the pauses in which people read and write.
const THINK_CV: f64 = 1.0;
const SHORT: u8 = 0;
const LONG: u8 = 1;

/// Conversations: each prompt is the one before, its answer, and a new question. A share of them begins with a long
/// prompt, and so all its prompts are long; they are a class of their own.
///
/// The defaults are for 8 replicas of an 8B model on H100: if no prefix is reused, each of the 72 requests a second
/// costs 68 ms of prefill on average (2,500 tokens), 61 % of the fleet's time; decoding comes on top.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chat {
    /// `long`: share of the conversations with a long first prompt. Default 0.1.
    pub long: f64,
    /// `short`: mean tokens of a short first prompt. Default 500.
    pub short_tokens: f64,
    /// `long_from`: tokens of the shortest long one. Default 8,000.
    pub long_tokens_min: u32,
    /// `long_to`: tokens of the longest. Default 30,000. Between the two, all orders of magnitude are alike.
    pub long_tokens_max: u32,
    /// `turns`: mean turns of a conversation (geometric, at most 32). Default 3.
    pub turns: f64,
    /// `question`: mean tokens of later questions. Default 100.
    pub question_tokens: f64,
    /// `output`: mean tokens of an output. Default 200.
    pub output_tokens: f64,
    /// `think`: mean seconds between an answer and the next question. Default 15.
    pub think_s: f64,
    /// Of conversations: `rate` 24, `cv` 3, `duration` 1,800.
    pub arrivals: Arrivals,
}

impl Default for Chat {
    fn default() -> Self {
        Self {
            long: 0.1,
            short_tokens: 500.0,
            long_tokens_min: 8000,
            long_tokens_max: 30_000,
            turns: 3.0,
            question_tokens: 100.0,
            output_tokens: 200.0,
            think_s: 15.0,
            arrivals: Arrivals { rate_per_s: 24.0, cv: 3.0, duration_s: 1800.0 },
        }
    }
}

impl Chat {
    pub(super) fn read(arguments: &mut Arguments<'_>) -> Self {
        let default = Self::default();
        let turns = arguments.number("turns", default.turns, &(1.0..=f64::from(TURNS_MAX)));
        let chat = Self {
            long: arguments.share("long", default.long),
            short_tokens: arguments.number("short", default.short_tokens, &TOKENS_MEAN),
            long_tokens_min: arguments.count("long_from", default.long_tokens_min, &TOKENS),
            long_tokens_max: arguments.count("long_to", default.long_tokens_max, &TOKENS),
            turns,
            question_tokens: arguments.number("question", default.question_tokens, &TOKENS_MEAN),
            output_tokens: arguments.number("output", default.output_tokens, &TOKENS_MEAN),
            think_s: arguments.number("think", default.think_s, &SECONDS),
            // A geometric number of turns has a mean square of twice its squared mean; a turn adds two segments.
            arrivals: default.arrivals.read(arguments, turns, 2.0 * turns * turns),
        };
        if chat.long_tokens_min > chat.long_tokens_max {
            arguments.fail(ArgumentFault::Order("long_from", "long_to"));
        }
        chat
    }

    pub(super) fn scripts(&self, maker: &mut Maker) -> Vec<Script> {
        let times_s = self.arrivals.times_s(&mut maker.draw, 0.0, self.arrivals.duration_s);
        times_s.into_iter().map(|at_s| Script { at_s, calls: self.conversation(maker) }).collect()
    }

    fn conversation(&self, maker: &mut Maker) -> Box<[Call]> {
        let class = if maker.draw.is_chosen(self.long) { LONG } else { SHORT };
        let first = if class == LONG {
            maker.draw.log_even(&(self.long_tokens_min..=self.long_tokens_max))
        } else {
            maker.draw.tokens(Heavy::new(self.short_tokens, SHORT_CV))
        };
        let mut prompt = vec![maker.segment(first)];
        let mut calls = Vec::new();
        let turns = maker.draw.repeats(self.turns, TURNS_MAX);
        for turn in 1..=turns {
            let output_tokens = maker.draw.tokens(Heavy::new(self.output_tokens, OUTPUT_CV));
            let mut call = Call { class, ..call(prompt.clone(), output_tokens) };
            if turn > 1 {
                call.after = Box::new([turn - 2]);
                call.think_s = maker.draw.seconds(Heavy::new(self.think_s, THINK_CV));
            }
            if turn < turns {
                call.output = maker.id();
                prompt.push(Segment { id: call.output, tokens: output_tokens });
                let question = maker.draw.tokens(Heavy::new(self.question_tokens, QUESTION_CV));
                prompt.push(maker.segment(question));
            }
            calls.push(call);
        }
        calls.into_boxed_slice()
    }
}
