//! Agents' workflows: a planner reads the task, parallel steps work on parts of its plan, a join reads what they found
//! and becomes the next round's context.

use super::super::argument::Arguments;
use super::draw::{Arrivals, Heavy};
use super::groups::{OUTPUT_CV, QUESTION_CV};
use super::{Call, KINDS, Maker, SECONDS, Script, Segment, TOKENS, TOKENS_MEAN, call};

/// Most rounds of a workflow.
const ROUNDS_MAX: u32 = 32;
/// Most parallel steps of a round, twice the mean that may be asked for.
const FAN_MAX: u32 = 64;
/// Spread of the time that tools take: most are done in less than a second, some run for half a minute.
const TOOL_CV: f64 = 4.0;
const PLAN: u8 = 0;
const STEP: u8 = 1;
const JOIN: u8 = 2;

/// In each round: a plan, steps whose prompts are the planner's, its plan, and an instruction each, and a join, whose
/// prompt is the planner's, its plan, and what the steps said. The next round's planner goes on from the join.
///
/// With the defaults, a workflow is 18 requests with contexts of 7,000 to 13,000 tokens; 1 a second keeps 8 replicas of an
/// 8B model on H100 busy for about 60 % of their time if no prefix is reused, and for 10 % if all are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workflows {
    /// `kinds`: kinds of agents, all alike in popularity; each is a tenant. Default 20.
    pub kinds: u32,
    /// `system`: tokens of the system prompt and the tools that all workflows of a kind begin with. Default 5,000.
    pub system_tokens: u32,
    /// `task`: mean tokens of a workflow's task. Default 1,500.
    pub task_tokens: f64,
    /// `fan`: mean parallel steps; evenly from half of it to one and a half times. Default 4.
    pub fan: u32,
    /// `rounds`: in each workflow. Default 3.
    pub rounds: u32,
    /// `instruction`: mean tokens after what a plan, step or join goes on from. Default 200.
    pub instruction_tokens: f64,
    /// `output`: mean tokens of an output. Default 300.
    pub output_tokens: f64,
    /// `tool`: mean seconds that tools take before a join. Default 1.5.
    pub tool_s: f64,
    /// Of workflows: `rate` 1, `cv` 1, `duration` 1,800.
    pub arrivals: Arrivals,
}

impl Default for Workflows {
    fn default() -> Self {
        Self {
            kinds: 20,
            system_tokens: 5000,
            task_tokens: 1500.0,
            fan: 4,
            rounds: 3,
            instruction_tokens: 200.0,
            output_tokens: 300.0,
            tool_s: 1.5,
            arrivals: Arrivals { rate_per_s: 1.0, cv: 1.0, duration_s: 1800.0 },
        }
    }
}

/// A workflow as it is made.
struct Draft<'m> {
    maker: &'m mut Maker,
    of: Workflows,
    tenant: u16,
    calls: Vec<Call>,
}

impl Workflows {
    pub(super) fn read(arguments: &mut Arguments<'_>) -> Self {
        let default = Self::default();
        let fan = arguments.count("fan", default.fan, &(1..=FAN_MAX / 2));
        let rounds = arguments.count("rounds", default.rounds, &(1..=ROUNDS_MAX));
        let calls = f64::from(rounds * (fan + 2));
        Self {
            kinds: arguments.count("kinds", default.kinds, &KINDS),
            system_tokens: arguments.count("system", default.system_tokens, &TOKENS),
            task_tokens: arguments.number("task", default.task_tokens, &TOKENS_MEAN),
            fan,
            rounds,
            instruction_tokens: arguments.number("instruction", default.instruction_tokens, &TOKENS_MEAN),
            output_tokens: arguments.number("output", default.output_tokens, &TOKENS_MEAN),
            tool_s: arguments.number("tool", default.tool_s, &SECONDS),
            // A round adds four segments to the context, a call one or two.
            arrivals: default.arrivals.read(arguments, calls, calls * f64::from(2 * rounds + 4)),
        }
    }

    pub(super) fn scripts(&self, maker: &mut Maker) -> Vec<Script> {
        let systems = maker.segments(self.kinds, self.system_tokens);
        let times_s = self.arrivals.times_s(&mut maker.draw, 0.0, self.arrivals.duration_s);
        let script = |at_s| {
            let kind = maker.draw.even(0..=self.kinds.saturating_sub(1));
            let system = usize::try_from(kind).ok().and_then(|kind| systems.get(kind)).copied();
            let tenant = u16::try_from(kind).unwrap_or(u16::MAX);
            let mut draft = Draft { maker, of: *self, tenant, calls: Vec::new() };
            draft.rounds(system.into_iter().collect());
            Script { at_s, calls: draft.calls.into_boxed_slice() }
        };
        times_s.into_iter().map(script).collect()
    }
}

impl Draft<'_> {
    fn rounds(&mut self, mut context: Vec<Segment>) {
        context.push(self.text(self.of.task_tokens));
        let mut before: Box<[u32]> = Box::default();
        for round in 1..=self.of.rounds {
            let plan = self.place();
            self.add(&context, PLAN, before, 0.0);
            context.push(self.output_of_last());
            let fan = self.of.fan;
            let steps = self.maker.draw.even(fan.div_ceil(2)..=fan + fan / 2);
            let mut found_tokens = 0;
            for _ in 0..steps {
                let mut prompt = context.clone();
                prompt.push(self.text(self.of.instruction_tokens));
                found_tokens += self.add(&prompt, STEP, Box::new([plan]), 0.0);
            }
            let joined = (plan + 1..self.place()).collect();
            // What the steps said stands in an order and with headings that no step knew: it is a new text.
            context.push(self.maker.segment(found_tokens));
            context.push(self.text(self.of.instruction_tokens));
            let join = self.place();
            let tool_s = self.maker.draw.seconds(Heavy::new(self.of.tool_s, TOOL_CV));
            self.add(&context, JOIN, joined, tool_s);
            if round < self.of.rounds {
                context.push(self.output_of_last());
                context.push(self.text(self.of.instruction_tokens));
            }
            before = Box::new([join]);
        }
    }

    /// Where the next call will stand.
    fn place(&self) -> u32 {
        u32::try_from(self.calls.len()).unwrap_or(u32::MAX)
    }

    fn text(&mut self, mean_tokens: f64) -> Segment {
        let tokens = self.maker.draw.tokens(Heavy::new(mean_tokens, QUESTION_CV));
        self.maker.segment(tokens)
    }

    /// Adds a call; returns the tokens of its output.
    fn add(&mut self, prompt: &[Segment], class: u8, after: Box<[u32]>, think_s: f32) -> u32 {
        let output_tokens = self.maker.draw.tokens(Heavy::new(self.of.output_tokens, OUTPUT_CV));
        let call = call(prompt.to_vec(), output_tokens);
        self.calls.push(Call { class, after, think_s, tenant: self.tenant, ..call });
        output_tokens
    }

    /// The last call's output as a segment that prompts go on from.
    fn output_of_last(&mut self) -> Segment {
        let id = self.maker.id();
        let tokens = self.calls.last_mut().map_or(1, |call| {
            call.output = id;
            call.output_tokens
        });
        Segment { id, tokens }
    }
}
