//! One run: clients ask, the gateway places, engines compute, all under one virtual clock. What happens is a queue of
//! events in the order of their times; those of one moment keep the order in which they were put there, so that a run is
//! the same each time ([`queue`]).

mod bounds;
mod clients;
mod gateway;
mod history;
mod measure;
mod queue;
mod waiting;

use self::bounds::Bound;
use self::clients::{Asked, Clients};
use self::gateway::Gateway;
use self::history::History;
use self::measure::Measure;
use self::queue::{Lane, Queue};
use self::waiting::Waiting;
use super::cache::ById;
use super::engine::{Emitted, EngineRequest, SimEngine};
use super::model::EngineModel;
use super::result::RunResult;
use super::workload::{Segment, Workload};
use crate::clock::Now;
use crate::config::PolicyConfig;
use crate::id::ReplicaSlot;
use crate::pipeline::Placement;
use std::time::Duration;

/// What chooses replicas.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "one a run")]
pub enum Chooser {
    /// The production gateway with a policy.
    Policy(PolicyConfig),
    /// A bound that no gateway can reach.
    Bound(BoundName),
}

/// Bounds: what could be had with knowledge that no gateway has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoundName {
    /// Knows what each engine holds and what it has to do.
    Oracle,
    /// All that any engine ever computed is in every engine's cache.
    InfiniteCache,
    /// One cache as large as all together, which evicts what is needed last (Bélády).
    PooledBelady,
}

impl BoundName {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Oracle, Self::InfiniteCache, Self::PooledBelady];

    /// Name on the command line and in results.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Oracle => "oracle",
            Self::InfiniteCache => "infinite_cache",
            Self::PooledBelady => "pooled_belady",
        }
    }

    /// Whether it says itself what is cached, whatever engines hold.
    #[must_use]
    pub const fn dictates(self) -> bool {
        matches!(self, Self::InfiniteCache | Self::PooledBelady)
    }
}

/// How load reports reach the gateway.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beacons {
    /// Between two of a replica, seconds; zero: there are none.
    pub period_s: f64,
    /// From the engine's state to the gateway, seconds.
    pub delay_s: f64,
    /// Share that is lost.
    pub loss: f64,
}

/// What is switched off or made better, to see what it is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ablation {
    /// Nothing.
    #[default]
    None,
    /// The gateway knows of no prefix.
    IndexOff,
    /// The gateway learns nothing from answers.
    LearningOff,
    /// The gateway knows what each engine holds at the moment of each decision, as if engines told it of every block and
    /// that took no time; what it has sent there and what has not been computed yet, it knows itself.
    Precise,
}

/// A replica that becomes slower.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slowdown {
    /// Which.
    pub replica: usize,
    /// When, seconds after the start.
    pub at_s: f64,
    /// All takes so many times as long from then on.
    pub times: f64,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan<'w> {
    /// What is asked.
    pub workload: &'w Workload,
    /// The replicas.
    pub engines: Vec<EngineModel>,
    /// What chooses.
    pub chooser: Chooser,
    /// What is switched off.
    pub ablation: Ablation,
    /// Sessions a replica, or a multiple of the workload's rate.
    pub load: f64,
    /// All chance comes from this.
    pub seed: u64,
    /// Seconds that are measured.
    pub duration_s: f64,
    /// Seconds before that.
    pub warm_up_s: f64,
    /// One way between gateway and engine, seconds.
    pub network_delay_s: f64,
    /// Load reports.
    pub beacons: Beacons,
    /// A replica that becomes slower.
    pub slowdown: Option<Slowdown>,
    /// Seconds between two samples of the fleet's state; 0: none are kept.
    pub history_period_s: f64,
}

/// Seconds after the measured time until which answers are waited for.
const TAIL_S: f64 = 900.0;

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A script of a timed workload begins.
    Script,
    /// A user of a closed loop takes up a script.
    User,
    /// A call is made.
    Call { run: u32, call: u32 },
    /// A request that is not placed yet looks again.
    LookAgain { request: u32 },
    /// A request has been held at the gateway for long enough.
    HeldLongEnough { request: u32 },
    /// It reaches the engine's queue.
    Arrive { request: u32 },
    /// An engine's steps end, if nothing came between.
    Step { engine: u32, at: Now },
    /// The gateway sees the first token.
    First { request: u32, cached: u32 },
    /// The gateway sees the end of the answer.
    Finished { request: u32 },
    /// The gateway is told that the engine cannot take it.
    Refused { request: u32 },
    /// A replica looks at its load.
    Beacon { engine: u32 },
    /// What it said is heard.
    Report { engine: u32, said: Said },
    /// The replica becomes slower.
    Slow,
}

/// What a load report says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Said {
    running: u32,
    waiting: u32,
    /// Share of the KV cache in use, in millionths.
    kv_usage_ppm: u32,
    prefill_tokens: u32,
    blocks_evicted: u64,
}

/// A request between its arrival and its end.
#[derive(Debug)]
struct Live {
    asked: Asked,
    prompt: Vec<Segment>,
    prompt_tokens: u32,
    seen_tokens: u32,
    arrived: Now,
    admitted: Now,
    slot: ReplicaSlot,
    first: Option<(Now, u32)>,
    placed: Option<gateway::Placed>,
    /// It is not placed yet, and looks again then.
    waiting: Option<(Box<Placement>, Now)>,
    dictated: Option<u32>,
}

/// Prompts in the order of their arrival, each with its call's key.
type Order = Vec<(u64, Vec<Segment>)>;

/// Plays one run.
#[must_use]
pub fn run(plan: &Plan<'_>) -> RunResult {
    match plan.chooser {
        Chooser::Policy(_) | Chooser::Bound(BoundName::Oracle | BoundName::InfiniteCache) => Run::new(plan).play().0,
        Chooser::Bound(BoundName::PooledBelady) => {
            // In which order prompts come, and what of them is there, depend on each other: the order is that of a run
            // with the oracle.
            let chooser = Chooser::Bound(BoundName::Oracle);
            let order = Run::new(&Plan { chooser, ..plan.clone() }).play().1;
            let capacity = plan.engines.iter().map(|engine| engine.kv_tokens).sum();
            let mut run = Run::new(plan);
            run.dictated = bounds::belady(&order, capacity);
            run.play().0
        }
    }
}

struct Run<'p> {
    plan: &'p Plan<'p>,
    now: Now,
    events: Queue,
    engines: Vec<SimEngine>,
    clients: Clients<'p>,
    gateway: Gateway,
    bound: Bound,
    live: Vec<Option<Live>>,
    spare: Vec<u32>,
    emitted: Vec<Emitted>,
    /// Segments that some engine has computed.
    seen: ById<()>,
    waiting: Waiting,
    measure: Measure,
    history: History,
    /// Prompts in the order of their arrival, for Bélády.
    order: Order,
    dictated: ById<u32>,
    rng: fastrand::Rng,
}

impl<'p> Run<'p> {
    fn new(plan: &'p Plan<'p>) -> Self {
        let mut run = Self {
            plan,
            now: Now(0),
            events: Queue::default(),
            engines: plan.engines.iter().cloned().map(SimEngine::new).collect(),
            clients: Clients::new(plan.workload, plan.load, plan.engines.len(), plan.seed),
            gateway: Gateway::new(plan),
            bound: Bound::new(plan),
            live: Vec::new(),
            spare: Vec::new(),
            emitted: Vec::new(),
            seen: ById::default(),
            waiting: Waiting::default(),
            measure: Measure::new(plan),
            history: History::new(plan),
            order: Vec::new(),
            dictated: ById::default(),
            rng: fastrand::Rng::with_seed(plan.seed ^ 0x5eed),
        };
        run.begin();
        run
    }

    /// Puts the first events there.
    fn begin(&mut self) {
        if let Some(at_s) = self.clients.next_script_at_s() {
            self.at_s(at_s / self.plan.load, Event::Script);
        }
        for _ in 0..self.clients.users() {
            let at_s = self.rng.f64() * clients::USERS_COME_WITHIN_S;
            self.at_s(at_s, Event::User);
        }
        for engine in (0..self.engines.len()).filter(|_| self.plan.beacons.period_s > 0.0) {
            let at_s = self.rng.f64() * self.plan.beacons.period_s;
            self.at_s(at_s, Event::Beacon { engine: narrow(engine) });
        }
        if let Some(slowdown) = self.plan.slowdown {
            self.at_s(slowdown.at_s, Event::Slow);
        }
    }

    fn play(mut self) -> (RunResult, Order) {
        let end = Now(0).plus(seconds(self.plan.warm_up_s + self.plan.duration_s));
        let last = end.plus(seconds(TAIL_S));
        while let Some((now, event)) = self.events.pop() {
            if now > last || now > end && self.measure.pending == 0 {
                break;
            }
            self.now = now;
            self.measure.look_at(now, &self.engines);
            self.history.look_at(now, &self.engines);
            self.happen(event);
        }
        let now = self.now;
        for live in self.live.iter().flatten() {
            self.measure.unfinished(live.asked.class, (live.arrived, live.admitted), live.first.is_some(), now);
        }
        let mut result = self.measure.result(self.plan, &self.engines);
        self.history.tell(&mut result);
        (result, self.order)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Script => {
                let first = self.clients.start(0);
                self.call_all(first);
                if let Some(at_s) = self.clients.next_script_at_s() {
                    self.at_s(at_s / self.plan.load, Event::Script);
                }
            }
            Event::User => {
                let draw = self.rng.u64(..);
                let first = self.clients.start(draw);
                self.call_all(first);
            }
            Event::Call { run, call } => self.arrive_at_gateway(run, call),
            Event::LookAgain { request } => self.look_again(request),
            Event::HeldLongEnough { request } => {
                if let Some(at) = self.gateway.let_go(request) {
                    self.send(at);
                }
            }
            Event::Arrive { request } => self.arrive_at_engine(request),
            Event::Step { engine, at } => self.step(engine, at),
            Event::First { request, cached } => self.first(request, cached),
            Event::Finished { request } => self.finished(request, true),
            Event::Refused { request } => self.finished(request, false),
            Event::Beacon { engine } => self.beacon(engine),
            Event::Report { engine, said } => self.gateway.hear(engine, said, self.now),
            Event::Slow => {
                if let Some(slowdown) = self.plan.slowdown
                    && let Some(engine) = self.engines.get_mut(slowdown.replica)
                {
                    engine.slow_down(slowdown.times);
                }
            }
        }
    }

    fn at(&mut self, at: Now, event: Event) {
        self.events.push(at, event);
    }

    fn at_s(&mut self, at_s: f64, event: Event) {
        self.at(Now(0).plus(seconds(at_s)), event);
    }

    fn after_s(&mut self, after_s: f64, event: Event) {
        self.at(self.now.plus(seconds(after_s)), event);
    }

    fn call_all(&mut self, calls: Vec<clients::Due>) {
        for due in calls {
            self.after_s(due.after_s, Event::Call { run: due.run, call: due.call });
        }
    }

    /// A client's request comes to the gateway, which places it.
    fn arrive_at_gateway(&mut self, run: u32, call: u32) {
        let mut prompt = Vec::new();
        let asked = self.clients.ask(run, call, &mut prompt);
        let prompt_tokens = prompt.iter().map(|segment| segment.tokens).sum();
        let mut seen_tokens = 0;
        for segment in prompt.iter().take_while(|segment| self.seen.contains_key(&segment.id)) {
            seen_tokens += segment.tokens;
        }
        let dictated = self.bound.dictated(&self.dictated, asked.key, seen_tokens);
        if matches!(self.plan.chooser, Chooser::Bound(BoundName::Oracle)) {
            self.order.push((asked.key, prompt.clone()));
        }
        self.measure.arrived(self.now);
        let live = Live {
            asked,
            prompt,
            prompt_tokens,
            seen_tokens,
            arrived: self.now,
            admitted: self.now,
            slot: ReplicaSlot(0),
            first: None,
            placed: None,
            waiting: None,
            dictated,
        };
        let request = self.spare.pop().unwrap_or_else(|| {
            self.live.push(None);
            narrow(self.live.len() - 1)
        });
        let place = request as usize;
        if let Chooser::Bound(_) = self.plan.chooser {
            let slot = self.bound.choose(&self.engines, &live, request, &mut self.rng);
            self.history.placed(&live.prompt, slot.index(), &self.engines, self.now);
            self.live[place] = Some(Live { slot, ..live });
            return self.send(request);
        }
        self.see_steps();
        let placing = self.gateway.place(request, &live, &self.engines, self.now);
        self.decided(request, live, placing);
    }

    /// Tokens of answers under way come with each step of their engines.
    pub(super) fn see_steps(&self) {
        let delay = seconds(self.plan.network_delay_s);
        for (place, engine) in self.engines.iter().enumerate() {
            if let Some((ended, step_s)) = engine.last_step(self.now.minus(delay)) {
                self.gateway.see_steps(place, ended.plus(delay), step_s, 1);
            }
        }
    }

    /// The gateway forwards a request.
    fn send(&mut self, request: u32) {
        let Some(live) = self.live.get_mut(request as usize).and_then(Option::as_mut) else { return };
        if let Some(placed) = &mut live.placed {
            self.gateway.sent(placed, live.slot, self.now);
        }
        let model = self.engines.get(live.slot.index()).map(SimEngine::model);
        let after_s = self.plan.network_delay_s + model.map_or(0.0, |model| model.overhead_s);
        self.after_s(after_s, Event::Arrive { request });
    }

    fn arrive_at_engine(&mut self, request: u32) {
        let Some(live) = self.live.get_mut(request as usize).and_then(Option::as_mut) else { return };
        let slot = live.slot.index();
        self.bound.arrived(slot, request);
        let asked = EngineRequest {
            id: request,
            prompt: live.prompt.clone(),
            output_tokens: live.asked.output_tokens,
            output: live.asked.output,
            seen_tokens: live.seen_tokens,
            dictated: live.dictated,
        };
        if let Some(engine) = self.engines.get_mut(slot) {
            engine.submit(asked, self.now, &mut self.emitted);
        }
        self.told(slot);
    }

    fn step(&mut self, engine: u32, at: Now) {
        let place = engine as usize;
        if let Some(engine) =
            self.engines.get_mut(place).filter(|engine| engine.next_at() == Some(at) && at == self.now)
        {
            let steps = engine.steps_under_way(self.now);
            engine.advance(self.now, &mut self.emitted);
            if let Some((count, step_s)) = steps {
                let seen = self.now.plus(seconds(self.plan.network_delay_s));
                self.gateway.see_steps(place, seen, step_s, count);
            }
            self.told(place);
        }
    }

    /// Passes on what the engine has told, and notes when it goes on.
    fn told(&mut self, place: usize) {
        let delay_s = self.plan.network_delay_s;
        for told in std::mem::take(&mut self.emitted) {
            match told {
                Emitted::First { id, cached } => self.after_s(delay_s, Event::First { request: id, cached }),
                Emitted::Finished { id } => {
                    let output_tokens =
                        self.live.get(id as usize).and_then(Option::as_ref).map_or(0, |live| live.asked.output_tokens);
                    let each_s =
                        self.engines.get(place).map_or(0.0, |engine| engine.model().overhead_s_per_output_token);
                    self.after_s(delay_s + each_s * f64::from(output_tokens), Event::Finished { request: id });
                }
                Emitted::Refused { id } => self.after_s(delay_s, Event::Refused { request: id }),
            }
        }
        if let Some(at) = self.engines.get(place).and_then(SimEngine::next_at) {
            self.at(at, Event::Step { engine: narrow(place), at });
        }
    }

    fn first(&mut self, request: u32, cached: u32) {
        let Some(live) = self.live.get_mut(request as usize).and_then(Option::as_mut) else { return };
        live.first = Some((self.now, cached));
        self.gateway.prefilled(live);
        for segment in &live.prompt {
            self.seen.insert(segment.id, ());
        }
        let when = (live.arrived, live.admitted);
        self.measure.first(&live.asked, when, (live.prompt_tokens, cached), self.now);
        self.history.first(&live.asked, live.prompt_tokens, cached);
        if let Some(placed) = &mut live.placed {
            let (predicted_s, p90_s, real_s) = self.gateway.first(placed, self.now);
            self.measure.predicted(live.arrived, predicted_s, p90_s, real_s);
            let is_slowed =
                |slow: Slowdown| slow.replica == live.slot.index() && live.admitted >= Now(0).plus(seconds(slow.at_s));
            if self.plan.slowdown.is_some_and(is_slowed) {
                self.measure.predicted_slowed(predicted_s, real_s);
            }
        }
        self.release_held();
    }

    fn release_held(&mut self) {
        for request in self.gateway.released(self.now) {
            self.send(request);
        }
        self.freed();
    }

    fn finished(&mut self, request: u32, is_answered: bool) {
        let Some(mut live) = self.live.get_mut(request as usize).and_then(Option::take) else { return };
        self.spare.push(request);
        if live.asked.output != 0 && is_answered {
            self.seen.insert(live.asked.output, ());
        }
        let was_placed = live.placed.is_some();
        if let Some(placed) = live.placed.take() {
            self.gateway.prefilled(&live);
            self.gateway.finished(placed, &live, is_answered, self.now);
            self.release_held();
        }
        if !is_answered && !was_placed {
            self.measure.gave_up(&live.asked, live.arrived, self.now);
        }
        let first = live.first.map(|first| first.0);
        self.measure.ended(&live.asked, live.arrived, first, is_answered, self.now);
        let (due, is_over) = self.clients.ended(live.asked.run, live.asked.call);
        self.call_all(due);
        if is_over && self.clients.is_closed() {
            self.after_s(0.0, Event::User);
        }
    }

    fn beacon(&mut self, engine: u32) {
        let beacons = self.plan.beacons;
        let after = |after_s: f64| self.now.plus(seconds(after_s));
        let (again, heard) = (after(beacons.period_s), after(beacons.delay_s));
        self.events.push_in_order(Lane::Looks, again, Event::Beacon { engine });
        if beacons.loss > 0.0 && self.rng.f64() < beacons.loss {
            return;
        }
        let Some(engine_now) = self.engines.get(engine as usize) else { return };
        let gauges = engine_now.gauges();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share in millionths")]
        let said = Said {
            running: gauges.running,
            waiting: gauges.waiting,
            kv_usage_ppm: (gauges.kv_usage * 1e6) as u32,
            prefill_tokens: gauges.prefill_tokens,
            blocks_evicted: gauges.evicted_tokens / u64::from(engine_now.model().block_tokens.max(1)),
        };
        self.events.push_in_order(Lane::Reports, heard, Event::Report { engine, said });
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, 1e9))
}

fn narrow(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
