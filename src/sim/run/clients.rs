//! Those who ask: users who run one script after the other, or scripts that come at their own times.

use super::super::workload::{Pace, Script, Segment, Workload};

/// Users of a closed loop come within this time, not all at once.
pub(super) const USERS_COME_WITHIN_S: f64 = 60.0;

/// A call that is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub(super) run: u32,
    pub(super) call: u32,
    pub(super) after_s: f64,
}

/// A call that was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) run: u32,
    pub(super) call: u32,
    /// Unique to script, call and round.
    pub(super) key: u64,
    /// Equal for the calls of one script, when it has several.
    pub(super) session: Option<u64>,
    pub(super) output_tokens: u32,
    pub(super) output: u64,
    pub(super) class: u8,
}

/// A script under way.
#[derive(Debug)]
struct ScriptRun {
    script: u32,
    /// Makes its segments differ from those of the same script in another round.
    salt: u64,
    session: u64,
    /// Calls that have yet to end before each can be made.
    blocked: Vec<u32>,
    left: usize,
}

/// All clients.
pub(super) struct Clients<'w> {
    workload: &'w Workload,
    order: Vec<u32>,
    next: usize,
    runs: Vec<ScriptRun>,
    spare: Vec<u32>,
    /// Users of a closed loop.
    users: usize,
}

impl<'w> Clients<'w> {
    /// The clients of `workload` at `load`, before `replicas` replicas.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "few")]
    pub(super) fn new(workload: &'w Workload, load: f64, replicas: usize, seed: u64) -> Self {
        let mut order: Vec<u32> = (0..).take(workload.scripts.len()).collect();
        if workload.pace == Pace::Closed {
            fastrand::Rng::with_seed(seed).shuffle(&mut order);
        }
        let users = if workload.pace == Pace::Closed { (load * replicas as f64).round() as usize } else { 0 };
        Self { workload, order, next: 0, runs: Vec::new(), spare: Vec::new(), users }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.workload.pace == Pace::Closed
    }

    /// When the next script of a timed workload begins, at a load of 1.
    pub(super) fn next_script_at_s(&self) -> Option<f64> {
        if self.is_closed() {
            return None;
        }
        self.workload.scripts.get(self.next).map(|script| script.at_s)
    }

    /// Users of a closed loop.
    pub(super) const fn users(&self) -> usize {
        self.users
    }

    /// Begins the next script; the first of each user somewhere in it, as if users had been there before. The calls that
    /// are due.
    pub(super) fn start(&mut self, draw: u64) -> Vec<Due> {
        let count = self.order.len();
        let Some(&script) = self.order.get(self.next % count.max(1)) else { return Vec::new() };
        let round = (self.next / count) as u64;
        let is_first = self.next < self.users;
        self.next += 1;
        let calls = &self.script(script).calls;
        let from = if is_first { usize::try_from(draw % calls.len().max(1) as u64).unwrap_or(0) } else { 0 };
        let salt = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1;
        let blocked_by = |after: &[u32]| after.iter().filter(|before| **before as usize >= from).count();
        let blocked = calls.iter().map(|call| super::narrow(blocked_by(&call.after))).collect();
        let session = mix(u64::from(script) + 1) ^ salt;
        let run = ScriptRun { script, salt, session, blocked, left: calls.len() - from };
        let place = match self.spare.pop() {
            Some(place) => {
                self.runs[place as usize] = run;
                place
            }
            None => {
                self.runs.push(run);
                super::narrow(self.runs.len() - 1)
            }
        };
        let free = (from..).zip(&self.runs[place as usize].blocked[from..]).filter(|(_, blocked)| **blocked == 0);
        free.map(|(call, _)| Due {
            run: place,
            call: super::narrow(call),
            // Who comes into the middle has not just had an answer.
            after_s: if call == from && from > 0 { 0.0 } else { f64::from(calls[call].think_s) },
        })
        .collect()
    }

    /// What call `call` of a script under way asks; its prompt is written to `prompt`.
    pub(super) fn ask(&self, run: u32, call: u32, prompt: &mut Vec<Segment>) -> Asked {
        let script_run = &self.runs[run as usize];
        let script = self.script(script_run.script);
        let asked = &script.calls[call as usize];
        let salt = script_run.salt;
        prompt.extend(asked.prompt.iter().map(|segment| Segment { id: segment.id ^ salt, ..*segment }));
        Asked {
            run,
            call,
            key: mix(script_run.session.wrapping_add(u64::from(call))),
            session: (script.calls.len() > 1).then_some(script_run.session),
            output_tokens: asked.output_tokens.max(1),
            output: if asked.output == 0 { 0 } else { asked.output ^ salt },
            class: asked.class,
        }
    }

    /// A call has ended: the calls that are due now, and whether the script is over.
    pub(super) fn ended(&mut self, run: u32, call: u32) -> (Vec<Due>, bool) {
        let workload = self.workload;
        let state = &mut self.runs[run as usize];
        state.left -= 1;
        if state.left == 0 {
            self.spare.push(run);
            return (Vec::new(), true);
        }
        let calls = &workload.scripts[state.script as usize].calls;
        let mut due = Vec::new();
        for (place, next) in (0_u32..).zip(calls).skip(call as usize + 1) {
            if next.after.contains(&call) {
                let blocked = &mut state.blocked[place as usize];
                *blocked -= 1;
                if *blocked == 0 {
                    due.push(Due { run, call: place, after_s: f64::from(next.think_s) });
                }
            }
        }
        (due, false)
    }

    fn script(&self, script: u32) -> &'w Script {
        &self.workload.scripts[script as usize]
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood, 2014).
pub(super) const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
