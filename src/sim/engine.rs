//! One simulated engine: continuous batching with chunked prefill over a prefix cache, as vLLM's V1 scheduler has it.
//!
//! Each step gives one token to every sequence that decodes, then prefills in chunks as far as the step's tokens go, then
//! admits from the queue in order while memory lasts, or, of an engine with slots, while one is idle. When memory runs
//! out for those that decode, the last admitted starts over. Steps that only decode are played in one go up to the first
//! that ends an answer; an arrival cuts that short.

use super::cache::Held;
use super::memory::{Grant, Memory};
use super::model::EngineModel;
use super::workload::Segment;
use crate::clock::Now;
use std::collections::VecDeque;
use std::time::Duration;

/// Ids of what was generated and nobody goes on from have this bit: no workload uses it.
const PRIVATE: u64 = 1 << 63;

/// A request as an engine takes it.
#[derive(Clone, Debug)]
pub struct EngineRequest {
    /// Whose this is, for [`Emitted`].
    pub id: u32,
    /// Its prompt.
    pub prompt: Vec<Segment>,
    /// Tokens it generates; at least one.
    pub output_tokens: u32,
    /// The segment that its output becomes; 0: none that anybody goes on from.
    pub output: u64,
    /// Prompt tokens that some engine has computed before.
    pub seen_tokens: u32,
    /// Cached tokens as somebody else says, whatever the cache holds: for bounds.
    pub dictated: Option<u32>,
}

/// What an engine tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emitted {
    /// The first token is there.
    First {
        /// Of which request.
        id: u32,
        /// Prompt tokens found in the cache, those restored from the host's memory included.
        cached: u32,
    },
    /// The last token is there.
    Finished {
        /// Of which request.
        id: u32,
    },
    /// It can never run here.
    Refused {
        /// Which.
        id: u32,
    },
}

/// Sums over an engine's life.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Seconds in which it computed.
    pub busy_s: f64,
    /// Of these, for tokens that some engine had computed before.
    pub regenerated_s: f64,
    /// Requests that started over.
    pub preemptions: u64,
}

/// What the engine's metrics page would say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Requests it runs.
    pub running: u32,
    /// Requests in its queue.
    pub waiting: u32,
    /// Share of its KV cache that requests use.
    pub kv_usage: f32,
    /// Tokens evicted so far.
    pub evicted_tokens: u64,
    /// Prompt tokens that wait for their prefill.
    pub prefill_tokens: u32,
}

#[derive(Debug)]
struct Sequence {
    request: EngineRequest,
    grant: Grant,
    prompt_tokens: u32,
    cached: u32,
    /// Prompt tokens whose KV is there.
    computed: u32,
    /// Tokens to compute in the step under way.
    chunk: u32,
    /// Tokens to bring back from the host in the step under way.
    restored: u32,
    /// Reserved and not resident yet.
    reserved: u64,
    generated: u32,
    /// Generated before it had to start over: part of its prompt since.
    generated_before: u32,
    is_first_out: bool,
}

impl Sequence {
    const fn is_prefilled(&self) -> bool {
        self.computed >= self.prompt_tokens
    }

    const fn context(&self) -> u32 {
        self.computed + self.generated
    }
}

/// The steps under way.
#[derive(Clone, Copy, Debug)]
struct Steps {
    began: Now,
    ends: Now,
    /// One, or many that only decode.
    count: u32,
    /// Sequences that decode, and their context at the first step.
    decoding: u32,
    context: u64,
}

/// One engine.
#[derive(Debug)]
pub struct SimEngine {
    model: EngineModel,
    memory: Memory,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    steps: Option<Steps>,
    work: Work,
    next_private: u64,
    /// All takes so many times as long.
    slowness: f64,
}

impl SimEngine {
    /// An idle engine with an empty cache.
    #[must_use]
    pub fn new(model: EngineModel) -> Self {
        let memory = Memory::new(&model);
        Self {
            model,
            memory,
            waiting: VecDeque::new(),
            running: Vec::new(),
            steps: None,
            work: Work::default(),
            next_private: PRIVATE,
            slowness: 1.0,
        }
    }

    /// The next moment at which something happens here by itself.
    #[must_use]
    pub fn next_at(&self) -> Option<Now> {
        self.steps.map(|steps| steps.ends)
    }

    /// From now on all takes `slowness` times as long as the model says.
    pub const fn slow_down(&mut self, slowness: f64) {
        self.slowness = slowness;
    }

    /// What it has done so far.
    #[must_use]
    pub const fn work(&self) -> Work {
        self.work
    }

    /// The model it computes.
    #[must_use]
    pub const fn model(&self) -> &EngineModel {
        &self.model
    }

    /// How much of `prompt` it holds: what only an oracle knows.
    #[must_use]
    pub fn held(&self, prompt: &[Segment]) -> Held {
        self.memory.held(prompt)
    }

    /// What its metrics page says now.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a share of 7 digits")]
    pub fn gauges(&self) -> Gauges {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let ahead = |sequence: &Sequence| sequence.prompt_tokens.saturating_sub(sequence.computed.max(sequence.cached));
        Gauges {
            running: count(self.running.len()),
            waiting: count(self.waiting.len()),
            kv_usage: self.memory.usage(&self.model) as f32,
            evicted_tokens: self.memory.evicted(),
            prefill_tokens: self.waiting.iter().chain(&self.running).map(ahead).sum(),
        }
    }

    /// Seconds until a new request that needs `tokens` more of the cache would begin its prefill, as far as can be known:
    /// the prefills before it, and answers that must end for want of memory.
    #[must_use]
    pub fn expected_wait_s(&self, tokens: u64) -> f64 {
        let ahead = |sequence: &Sequence| {
            let done = match sequence.computed {
                0 => self.memory.held(&sequence.request.prompt).device,
                computed => computed,
            };
            self.model.prefill_s(f64::from(sequence.prompt_tokens.saturating_sub(done)), f64::from(done))
        };
        let prefill_s = self.waiting.iter().chain(&self.running).map(ahead).sum::<f64>();
        let queued: u64 = self.waiting.iter().map(|sequence| u64::from(sequence.prompt_tokens)).sum();
        let step_s = self.model.decode_base_s + self.model.decode_s(self.running.len() as f64, 0.0);
        // Answers end in the order of what they have left; each gives its context back.
        let mut ends: Vec<(u32, u32)> = self
            .running
            .iter()
            .map(|one| (one.request.output_tokens - one.generated.min(one.request.output_tokens), one.context()))
            .collect();
        ends.sort_unstable();
        let (mut room, mut wait_s) = (self.memory.available(), 0.0);
        let free = self.model.sequences_max.saturating_sub(self.running.len());
        for (places, (left, context)) in (free..).zip(ends) {
            if room >= tokens + queued && places > self.waiting.len() {
                break;
            }
            room += u64::from(context);
            wait_s = f64::from(left) * step_s;
        }
        (prefill_s + wait_s) * self.slowness
    }

    /// The last step that ended by `now` and made further tokens of answers under way: when it ended, and what it took.
    #[must_use]
    pub fn last_step(&self, now: Now) -> Option<(Now, f64)> {
        let steps = self.steps.as_ref().filter(|steps| steps.decoding > 0 && steps.count > 1)?;
        let passed_s = now.seconds_since(steps.began);
        let took_s = |count| decode_time(&self.model, steps, count) * self.slowness;
        let (mut low, mut high) = (0, steps.count);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if took_s(middle) <= passed_s { low = middle } else { high = middle - 1 }
        }
        (low > 0).then(|| (steps.began.plus(seconds(took_s(low))), took_s(low) - took_s(low - 1)))
    }

    /// The steps under way: how many, how long one of them takes, and whether there are answers under way.
    #[must_use]
    pub fn steps_under_way(&self, now: Now) -> Option<(u32, f64)> {
        let steps = self.steps.as_ref().filter(|steps| steps.decoding > 0)?;
        Some((steps.count, now.seconds_since(steps.began) / f64::from(steps.count)))
    }

    /// A request arrives.
    pub fn submit(&mut self, mut request: EngineRequest, now: Now, out: &mut Vec<Emitted>) {
        let prompt_tokens: u32 = request.prompt.iter().map(|segment| segment.tokens).sum();
        request.output_tokens = self.memory.output_tokens_max(&self.model, prompt_tokens, request.output_tokens);
        if request.output_tokens == 0 {
            out.push(Emitted::Refused { id: request.id });
            return;
        }
        self.waiting.push_back(Sequence {
            request,
            grant: Grant::None,
            prompt_tokens,
            cached: 0,
            computed: 0,
            chunk: 0,
            restored: 0,
            reserved: 0,
            generated: 0,
            generated_before: 0,
            is_first_out: false,
        });
        match &mut self.steps {
            None => self.begin(now),
            Some(steps) if steps.count > 1 && self.waiting.len() == 1 => {
                // The step under way is the last of those in a row.
                let (model, slowness) = (&self.model, self.slowness);
                let passed = now.seconds_since(steps.began);
                let (mut low, mut high) = (1, steps.count);
                while low < high {
                    let middle = low + (high - low) / 2;
                    if decode_time(model, steps, middle) * slowness >= passed {
                        high = middle
                    } else {
                        low = middle + 1
                    }
                }
                steps.count = low;
                steps.ends = steps.began.plus(seconds(decode_time(model, steps, low) * slowness));
            }
            Some(_) => {}
        }
    }

    /// The steps under way end at `now`, which is [`Self::next_at`]; the next begin.
    pub fn advance(&mut self, now: Now, out: &mut Vec<Emitted>) {
        let Some(steps) = self.steps.take() else { return };
        self.work.busy_s += now.seconds_since(steps.began);
        for sequence in &mut self.running {
            if sequence.is_prefilled() {
                sequence.generated += steps.count;
                continue;
            }
            let to = sequence.computed + sequence.chunk + sequence.restored;
            let computed = u64::from(to - sequence.computed);
            if sequence.request.dictated.is_none() {
                self.memory.fill(&sequence.grant, &sequence.request.prompt, sequence.computed, to);
                sequence.reserved = sequence.reserved.saturating_sub(computed);
            }
            sequence.computed = to;
            (sequence.chunk, sequence.restored) = (0, 0);
            if sequence.is_prefilled() {
                sequence.generated = 1;
                if !sequence.is_first_out {
                    sequence.is_first_out = true;
                    out.push(Emitted::First { id: sequence.request.id, cached: sequence.cached });
                }
            }
        }
        let mut place = 0;
        while place < self.running.len() {
            let sequence = &self.running[place];
            if sequence.is_prefilled()
                && sequence.generated + sequence.generated_before >= sequence.request.output_tokens
            {
                let sequence = self.running.remove(place);
                out.push(Emitted::Finished { id: sequence.request.id });
                self.end(sequence);
            } else {
                place += 1;
            }
        }
        self.begin(now);
    }

    /// Keeps what the sequence computed, for others.
    fn end(&mut self, mut sequence: Sequence) {
        let whole = sequence.request.output != 0 && sequence.generated_before == 0;
        let id = if whole { sequence.request.output } else { self.private() };
        let output = Segment { id, tokens: sequence.generated };
        self.memory.release(std::mem::take(&mut sequence.grant), sequence.reserved, Some(output));
    }

    const fn private(&mut self) -> u64 {
        self.next_private += 1;
        self.next_private
    }

    /// Plans the next step, if there is anything to do.
    fn begin(&mut self, now: Now) {
        let decoding = self.reserve_for_decoding();
        let mut left = self.model.step_tokens_max.saturating_sub(decoding);
        let (mut prefill_s, mut restore_s, mut prefills) = (0.0, 0.0, 0_u32);
        for place in 0..self.running.len() {
            if left > 0 && !self.running[place].is_prefilled() {
                left -= self.plan_chunk(place, left, &mut prefill_s);
                prefills += 1;
            }
        }
        while left > 0 && self.running.len() < self.model.sequences_max && self.admit() {
            let place = self.running.len() - 1;
            left -= self.plan_chunk(place, left, &mut prefill_s);
            restore_s += f64::from(self.running[place].restored) * self.model.restore_s_per_token;
            prefills += 1;
        }
        if self.running.is_empty() {
            return;
        }
        let is_decoding = |sequence: &&Sequence| sequence.is_prefilled();
        let context = self.running.iter().filter(is_decoding).map(|sequence| u64::from(sequence.context())).sum();
        let mut steps = Steps { began: now, ends: now, count: 1, decoding, context };
        let took = if prefills == 0 {
            steps.count = self.steps_in_a_row(decoding);
            if !self.reserve_output(steps.count) {
                steps.count = 1;
            }
            decode_time(&self.model, &steps, steps.count)
        } else if decoding == 0 {
            self.model.prefill_base_s + prefill_s + restore_s
        } else {
            decode_time(&self.model, &steps, 1) + prefill_s + restore_s
        };
        steps.ends = now.plus(seconds(took * self.slowness));
        self.steps = Some(steps);
    }

    /// Room for one more token of each that decodes; the last admitted start over until there is. Returns how many
    /// decode.
    fn reserve_for_decoding(&mut self) -> u32 {
        loop {
            let decoding = self.running.iter().filter(|sequence| sequence.is_prefilled()).count();
            if self.reserve_output(1) {
                return u32::try_from(decoding).unwrap_or(u32::MAX);
            }
            let Some(sequence) = self.running.pop() else { return 0 };
            self.preempt(sequence);
        }
    }

    /// Room for the tokens that `steps` steps feed back to those that decode; false when there is not enough.
    fn reserve_output(&mut self, steps: u32) -> bool {
        let wanted = |sequence: &Sequence| {
            // A token that has just come is fed back, and so has its KV computed, in the next step.
            let fed = if sequence.is_prefilled() { sequence.generated + steps - 1 } else { 0 };
            u64::from(fed).saturating_sub(sequence.reserved)
        };
        if !self.memory.reserve(self.running.iter().map(wanted).sum()) {
            return false;
        }
        for sequence in &mut self.running {
            sequence.reserved += wanted(sequence);
        }
        true
    }

    /// Starts `sequence` over: what it has generated is part of its prompt from now on.
    fn preempt(&mut self, mut sequence: Sequence) {
        self.work.preemptions += 1;
        self.memory.release(std::mem::take(&mut sequence.grant), sequence.reserved, None);
        if sequence.generated > 0 {
            let id = self.private();
            sequence.request.prompt.push(Segment { id, tokens: sequence.generated });
            sequence.prompt_tokens += sequence.generated;
            sequence.generated_before += sequence.generated;
        }
        // All of it has been computed once.
        sequence.request.seen_tokens = sequence.request.seen_tokens.max(sequence.computed + sequence.generated);
        (sequence.computed, sequence.generated, sequence.chunk, sequence.reserved) = (0, 0, 0, 0);
        self.waiting.push_front(sequence);
    }

    /// Takes the first of the queue in, if there is memory for all of its prompt.
    fn admit(&mut self) -> bool {
        let Some(mut sequence) = self.waiting.pop_front() else { return false };
        let granted = match sequence.request.dictated {
            None => self.memory.admit(&sequence.request.prompt, sequence.prompt_tokens),
            Some(cached) => {
                let tokens = u64::from(sequence.prompt_tokens);
                let device = cached.min(sequence.prompt_tokens.saturating_sub(1));
                self.memory.reserve(tokens).then_some((Grant::None, Held { device, host: 0 }, tokens))
            }
        };
        let Some((grant, held, reserved)) = granted else {
            self.waiting.push_front(sequence);
            return false;
        };
        (sequence.grant, sequence.reserved) = (grant, reserved);
        sequence.computed = held.device;
        sequence.restored = held.host;
        if !sequence.is_first_out {
            sequence.cached = held.device + held.host;
        }
        self.running.push(sequence);
        true
    }

    /// Gives the sequence at `place` a chunk of at most `left` tokens; returns how many.
    fn plan_chunk(&mut self, place: usize, left: u32, prefill_s: &mut f64) -> u32 {
        let sequence = &mut self.running[place];
        let before = sequence.computed + sequence.restored;
        sequence.chunk = (sequence.prompt_tokens - before).min(left);
        let took = self.model.prefill_s(f64::from(sequence.chunk), f64::from(before));
        *prefill_s += took;
        let again = sequence.request.seen_tokens.saturating_sub(before).min(sequence.chunk);
        if again > 0 {
            self.work.regenerated_s += self.model.prefill_s(f64::from(again), f64::from(before)) * self.slowness;
        }
        sequence.chunk
    }

    /// Steps until one of those that decode ends, or until memory runs out.
    fn steps_in_a_row(&self, decoding: u32) -> u32 {
        let left = |sequence: &Sequence| {
            sequence.request.output_tokens.saturating_sub(sequence.generated + sequence.generated_before).max(1)
        };
        let ends = self.running.iter().map(left).min().unwrap_or(1);
        let room = self.memory.available() / u64::from(decoding.max(1));
        ends.min(u32::try_from(room).unwrap_or(u32::MAX).saturating_add(1))
    }
}

/// Seconds that the first `count` of `steps` take: each token makes all later steps a little longer.
fn decode_time(model: &EngineModel, steps: &Steps, count: u32) -> f64 {
    let (count, decoding) = (f64::from(count), f64::from(steps.decoding));
    #[expect(clippy::cast_precision_loss, reason = "tokens are far below 2^52")]
    let first = model.decode_base_s + model.decode_s(decoding, steps.context as f64);
    count * first + model.decode_s_per_context_token * decoding * count * (count - 1.0) / 2.0
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, 1e6))
}

#[cfg(test)]
mod tests;
