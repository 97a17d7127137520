//! An engine in virtual time, of the model that real ones were fitted to: continuous batching, prefill in chunks, first
//! come first served, and a cache without end.

use std::collections::VecDeque;

/// What a step takes: prefill of `n` tokens after `p` takes `a + b·n + c·n·(p + n/2)`, decoding `w + k·batch + m·Σcontext`
/// seconds, and a step with both takes both without `a`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Model {
    a: f64,
    b: f64,
    c: f64,
    w: f64,
    k: f64,
    m: f64,
}

pub(super) const LLAMA_8B: Model = Model { a: 1.5e-3, b: 2.07e-5, c: 8.0e-10, w: 6.1e-3, k: 4.0e-6, m: 4.2e-8 };
pub(super) const LLAMA_70B: Model = Model { a: 6.3e-3, b: 6.05e-5, c: 1.02e-9, w: 14.8e-3, k: 3.1e-5, m: 2.8e-8 };

/// What the API takes of each request, and of each output token, seconds.
const API_S: f64 = 15.6e-3;
const API_TOKEN_S: f64 = 0.046e-3;
/// Tokens a step computes, at most.
const STEP_TOKENS: f64 = 8192.0;
/// How far a step's time may be off, as a share.
const NOISE: f64 = 0.05;

#[derive(Clone, Debug)]
struct Job {
    id: usize,
    at: f64,
    /// To compute; zero once it is decoded.
    new: f64,
    context: f64,
    output: f64,
    made: f64,
    first: f64,
}

/// What a step has come to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// A request's first token.
    First { id: usize },
    /// One that is neither its first nor its last.
    Token { id: usize },
    /// Its last; seconds a token after the first.
    Last { id: usize, tpot_s: f64 },
}

/// One engine.
#[derive(Debug)]
pub(super) struct Engine {
    model: Model,
    /// How many times slower it is than its model.
    pub(super) slowness: f64,
    now: f64,
    /// The step under way: its end, and what will have happened then.
    step: Option<(f64, Vec<Event>)>,
    arriving: VecDeque<Job>,
    running: Vec<Job>,
    rng: fastrand::Rng,
}

impl Engine {
    pub(super) fn new(model: Model, seed: u64) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        Self { model, slowness: 1.0, now: 0.0, step: None, arriving: VecDeque::new(), running: Vec::new(), rng }
    }

    /// A request comes in at `at`, with `new` tokens to compute after `cached` ones.
    pub(super) fn send(&mut self, id: usize, at: f64, (new, cached): (f64, f64), output: f64) {
        let job = Job { id, at: at + API_S, new, context: cached, output, made: 0.0, first: 0.0 };
        self.arriving.push_back(job);
    }

    /// When something happens next.
    pub(super) fn next(&self) -> Option<f64> {
        match (&self.step, self.running.is_empty()) {
            (Some((end, _)), _) => Some(*end),
            (None, false) => Some(self.now),
            (None, true) => self.arriving.front().map(|job| job.at.max(self.now)),
        }
    }

    /// Ends the step under way, or begins the next.
    pub(super) fn advance(&mut self) -> Vec<Event> {
        if let Some((end, events)) = self.step.take() {
            self.now = end;
            return events;
        }
        self.now = self.next().unwrap_or(self.now);
        while self.arriving.front().is_some_and(|job| job.at <= self.now) {
            self.running.extend(self.arriving.pop_front());
        }
        let seconds = self.compute();
        let end = self.now + seconds * self.slowness * (1.0 + NOISE * (self.rng.f64() + self.rng.f64() - 1.0));
        self.step = Some((end, self.outcome(end)));
        Vec::new()
    }

    /// Moves all requests on by one step. Returns its seconds.
    fn compute(&mut self) -> f64 {
        let Model { a, b, c, w, k, m } = self.model;
        let decoded = || self.running.iter().filter(|job| job.new == 0.0);
        let (batch, context) = (decoded().count() as f64, decoded().map(|job| job.context).sum::<f64>());
        let mut seconds = if batch > 0.0 { w + k * batch + m * context } else { a };
        let mut budget = STEP_TOKENS - batch;
        for job in &mut self.running {
            if job.new == 0.0 {
                job.context += 1.0;
                job.made += 1.0;
                continue;
            }
            let chunk = job.new.min(budget);
            budget -= chunk;
            seconds += b * chunk + c * chunk * (job.context + chunk / 2.0);
            job.new -= chunk;
            job.context += chunk;
            job.made = if job.new == 0.0 { 1.0 } else { 0.0 };
        }
        seconds
    }

    fn outcome(&mut self, end: f64) -> Vec<Event> {
        let mut events = Vec::new();
        for job in self.running.iter_mut().filter(|job| job.made > 0.0) {
            if job.made < 1.5 {
                job.first = end;
                events.push(Event::First { id: job.id });
            } else if job.made < job.output {
                events.push(Event::Token { id: job.id });
            }
        }
        self.running.retain(|job| {
            let is_over = job.made >= job.output;
            if is_over {
                let tpot_s = (end - job.first) / (job.output - 1.0).max(1.0) + API_TOKEN_S;
                events.push(Event::Last { id: job.id, tpot_s });
            }
            !is_over
        });
        events
    }
}
