//! What one shard last heard of each replica's load: columns by slot, folded from reports, each cell with its age.
//!
//! A report counts the requests of every gateway. Less the most that this one has had in flight there since it was made
//! ([`LoadColumns::most_since`]), it is the load of the others ([`Elsewhere`]); the gateway's own is added as it is now,
//! exact at any moment, so a request placed a microsecond ago is neither missed nor counted twice.
//!
//! - *Age.* A report is fresh for three periods: two may be lost and nothing changes. Over the next three its weight
//!   falls to nothing, and then the replica is stale: priced by what the gateway itself has in flight there. The fall is
//!   gradual so that many replicas that fall silent at once do not make the fleet look idle between two decisions.
//! - *Tenure.* Slots are reused. A report received before its slot was taken up speaks of somebody else, and is passed
//!   over when it comes, and dropped ([`ReportColumns::forget_former`]) if it had come before.
//! - *Changes.* Views of the fleet are kept from one decision to the next. What has changed since is in a log of slots,
//!   which each view follows at its own pace ([`ReportColumns::changed_since`]); time passing is a change too.

use super::LoadColumns;
use super::heard::PERIODS_UNTIL_STALE;
use super::report::{LoadReport, LoadSource};
use crate::clock::Now;
use crate::id::ReplicaSlot;
use std::hint::select_unpredictable;
use std::time::Duration;

/// Periods over which its weight then falls to nothing.
const FADING_PERIODS: u32 = 3;
/// While it falls, the weight is set anew so many times a period.
const FADING_STEPS: u32 = 4;
/// Periods are taken to lie between these, whatever is said.
const PERIOD_US: std::ops::RangeInclusive<u32> = 1_000..=60_000_000;
/// Reports in a row in which requests waited and no more ran than before: only then an engine is held to run no more. In
/// one report some always wait, for the step under way to end.
const STUCK_REPORTS: u8 = 3;
/// Slots whose next change of weight is looked for together.
const GROUP: usize = 64;
/// Changes that the log holds; who is further behind reads everything. A power of two.
const LOG: usize = 1024;

/// What was last heard of one replica: all of it on one cache line, for a fold writes all of it and few cells are in the
/// cache when their turn comes. A period of zero: nothing was ever heard.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Cell {
    received: Now,
    period_us: u32,
    source: LoadSource,
    running: u32,
    waiting: u32,
    /// Reports in a row that saw requests wait and no more run.
    stuck: u8,
    /// What is priced, at its full weight, and the weight.
    elsewhere: Elsewhere,
}

impl Cell {
    const NEVER: Self = Self {
        received: Now(0),
        period_us: 0,
        source: LoadSource::Beacon,
        running: 0,
        waiting: 0,
        stuck: 0,
        elsewhere: Elsewhere::UNKNOWN,
    };

    const fn period(&self) -> Duration {
        Duration::from_micros(self.period_us as u64)
    }

    /// Until when it is fresh. Plain arithmetic: this is most of what a fold computes.
    #[inline(always)]
    const fn fresh_until(&self) -> Now {
        Now(self.received.0.saturating_add(self.period_us as u64 * (PERIODS_UNTIL_STALE as u64 * 1_000)))
    }

    /// How much is left of what was heard: 1 while fresh, 0 once stale.
    #[expect(clippy::cast_possible_truncation, reason = "a share of 7 digits")]
    fn weight(&self, now: Now) -> f32 {
        let fading = (self.period() * FADING_PERIODS).as_secs_f64();
        if fading <= 0.0 {
            return 0.0;
        }
        (1.0 - now.seconds_since(self.fresh_until()) / fading).max(0.0) as f32
    }
}

/// The load of others at a replica, as far as it is to be believed now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Elsewhere {
    /// Requests of others there, running or waiting.
    pub requests: f32,
    /// Their prompt tokens that wait for prefill.
    pub prefill_tokens: f32,
    /// Requests that the engine can be seen to run at once: as many as it runs while others wait for long; infinite when
    /// none do.
    pub slots: f32,
    /// Share of its KV cache in use, when heard.
    pub kv_usage: Option<f32>,
    /// How much of this is believed: 1 when fresh, 0 when nothing was heard or it is stale. The counts above are cut by
    /// it already; `kv_usage` is to be mixed with what is believed otherwise.
    pub weight: f32,
}

impl Elsewhere {
    /// Nothing is known of others.
    pub const UNKNOWN: Self =
        Self { requests: 0.0, prefill_tokens: 0.0, slots: f32::INFINITY, kv_usage: None, weight: 0.0 };
}

impl Default for Elsewhere {
    fn default() -> Self {
        Self::UNKNOWN
    }
}

/// How far the last report of a replica is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Nothing was ever heard.
    Never,
    /// Within three periods.
    Fresh,
    /// Late: believed less and less.
    Fading,
    /// Silent for six periods: not believed at all.
    Stale,
}

impl Freshness {
    /// Name in `/replicas`, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "none",
            Self::Fresh => "fresh",
            Self::Fading => "fading",
            Self::Stale => "stale",
        }
    }

    /// All of them, for metrics.
    pub const ALL: [Self; 4] = [Self::Never, Self::Fresh, Self::Fading, Self::Stale];
}

/// When a replica's load was last heard of, seen at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Word {
    /// Who said so.
    pub source: LoadSource,
    /// How long ago.
    pub age: Duration,
    /// How much of it is believed: 1 when fresh, 0 when stale.
    pub weight: f32,
}

impl Word {
    /// The weight as a name.
    #[must_use]
    pub const fn freshness(&self) -> Freshness {
        match self.weight {
            weight if weight >= 1.0 => Freshness::Fresh,
            weight if weight > 0.0 => Freshness::Fading,
            _ => Freshness::Stale,
        }
    }
}

/// The last report of a replica, for people.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heard {
    /// From whom, when, and how far it is believed.
    pub word: Word,
    /// Between two reports.
    pub period: Duration,
    /// Requests it ran.
    pub running: u32,
    /// Requests in its queue.
    pub waiting: u32,
    /// Share of its KV cache in use, when heard.
    pub kv_usage: Option<f32>,
}

/// One shard's columns of what was heard.
#[derive(Debug)]
pub struct ReportColumns {
    cells: Box<[Cell]>,
    /// No cell of a group changes its weight before this.
    next_change: Box<[Now]>,
    /// The slots that changed last; `changes` is the count of all that ever did.
    log: Box<[ReplicaSlot]>,
    changes: u64,
    /// Reports that came for a slot's former replica, or after a later one.
    outdated: u64,
}

impl ReportColumns {
    /// Columns of `slots_max` cells of which nothing was heard.
    #[must_use]
    pub fn new(slots_max: usize) -> Self {
        Self {
            cells: vec![Cell::NEVER; slots_max].into(),
            next_change: vec![Now(u64::MAX); slots_max.div_ceil(GROUP)].into(),
            log: vec![ReplicaSlot(0); LOG].into(),
            changes: 0,
            outdated: 0,
        }
    }

    /// Takes up one report. `load` knows since when the slot is its replica's.
    #[inline]
    pub fn fold(&mut self, report: &LoadReport, load: &LoadColumns) {
        let place = report.slot.index();
        let (Some(cell), Some(next)) = (self.cells.get_mut(place), self.next_change.get_mut(place / GROUP)) else {
            return;
        };
        if report.received < cell.received || report.received < load.taken_up(report.slot) {
            self.outdated += 1;
            return;
        }
        // No branches on what reports say: nobody can foretell it, and a wrong guess costs as much as all the rest.
        let others = report.running.saturating_add(report.waiting).saturating_sub(report.own_in_flight);
        let some_wait = report.waiting > 0;
        let before = cell.stuck * u8::from(some_wait & (report.running <= cell.running));
        let stuck = before.saturating_add(u8::from(some_wait));
        let elsewhere = Elsewhere {
            requests: lossy(others),
            prefill_tokens: others_tokens(report, others),
            slots: select_unpredictable(stuck >= STUCK_REPORTS, lossy(report.running.max(1)), f32::INFINITY),
            kv_usage: report.kv_usage.filter(|share| share.is_finite()).map(|share| share.clamp(0.0, 1.0)),
            weight: 1.0,
        };
        // Most replicas say the same again, most of the time: nobody need look.
        let is_change = cell.elsewhere != elsewhere;
        *cell = Cell {
            received: report.received,
            period_us: report.period_us.clamp(*PERIOD_US.start(), *PERIOD_US.end()),
            source: report.source,
            running: report.running,
            waiting: report.waiting,
            stuck,
            elsewhere,
        };
        *next = (*next).min(cell.fresh_until());
        if is_change {
            self.note(report.slot);
        }
    }

    /// Lets time pass up to `now`: what is late weighs less.
    pub fn advance(&mut self, now: Now) {
        for group in 0..self.next_change.len() {
            if self.next_change[group] <= now {
                self.advance_group(group, now);
            }
        }
    }

    fn advance_group(&mut self, group: usize, now: Now) {
        let mut next = Now(u64::MAX);
        let last = self.cells.len().min((group + 1) * GROUP);
        for place in group * GROUP..last {
            let cell = &mut self.cells[place];
            let before = cell.elsewhere.weight;
            if before <= 0.0 {
                continue;
            }
            let weight = cell.weight(now);
            cell.elsewhere.weight = weight;
            if weight >= 1.0 {
                next = next.min(cell.fresh_until().plus(Duration::from_nanos(1)));
            } else if weight > 0.0 {
                next = next.min(now.plus(cell.period() / FADING_STEPS));
            }
            if weight.to_bits() != before.to_bits()
                && let Some(slot) = ReplicaSlot::from_index(place)
            {
                self.note(slot);
            }
        }
        self.next_change[group] = next;
    }

    /// Drops what was heard of replicas whose slot another has taken up since. Call it once the fleet has changed.
    pub fn forget_former(&mut self, load: &LoadColumns) {
        for place in 0..self.cells.len() {
            let Some(slot) = ReplicaSlot::from_index(place) else { return };
            if self.cells[place].period_us != 0 && self.cells[place].received < load.taken_up(slot) {
                self.cells[place] = Cell::NEVER;
                self.note(slot);
            }
        }
    }

    /// The load of others at `slot` as of the last [`Self::advance`].
    #[inline]
    #[must_use]
    pub fn elsewhere(&self, slot: ReplicaSlot) -> Elsewhere {
        let heard = self.cells.get(slot.index()).map_or(Elsewhere::UNKNOWN, |cell| cell.elsewhere);
        let weight = heard.weight;
        if weight <= 0.0 {
            return Elsewhere::UNKNOWN;
        }
        // A limit that is believed less is less of a limit.
        Elsewhere {
            requests: heard.requests * weight,
            prefill_tokens: heard.prefill_tokens * weight,
            slots: heard.slots / weight,
            ..heard
        }
    }

    /// When, and from whom, the load of `slot` was last heard; `None`: never.
    #[must_use]
    pub fn word(&self, slot: ReplicaSlot, now: Now) -> Option<Word> {
        let cell = self.cells.get(slot.index()).filter(|cell| cell.period_us != 0)?;
        Some(Word { source: cell.source, age: now.since(cell.received), weight: cell.weight(now) })
    }

    /// The last report of `slot`, for people; `None`: there was none.
    #[must_use]
    pub fn heard(&self, slot: ReplicaSlot, now: Now) -> Option<Heard> {
        let (word, cell) = (self.word(slot, now)?, self.cells.get(slot.index())?);
        let kv_usage = cell.elsewhere.kv_usage;
        Some(Heard { word, period: cell.period(), running: cell.running, waiting: cell.waiting, kv_usage })
    }

    /// Changes so far: a place in the log.
    #[must_use]
    pub const fn changes(&self) -> u64 {
        self.changes
    }

    /// The slots that changed since the count of changes was `seen`, some of them more than once. `None`: more than the
    /// log remembers.
    #[must_use]
    pub fn changed_since(&self, seen: u64) -> Option<impl Iterator<Item = ReplicaSlot> + use<'_>> {
        let behind = usize::try_from(self.changes - seen).ok().filter(|behind| *behind <= LOG)?;
        let first = place_in_log(seen);
        let (wrapped, ahead) = self.log.split_at(first);
        Some(ahead.iter().chain(wrapped).copied().take(behind))
    }

    /// Reports passed over because they spoke of a slot's former replica, or came after a later one.
    #[must_use]
    pub const fn outdated(&self) -> u64 {
        self.outdated
    }

    #[inline(always)]
    fn note(&mut self, slot: ReplicaSlot) {
        if let Some(cell) = self.log.get_mut(place_in_log(self.changes)) {
            *cell = slot;
        }
        self.changes += 1;
    }
}

/// Prompt tokens of the `others` requests that a report tells of, waiting for prefill. Engines count prompts whole until
/// they know how much of them is cached, where the gateway counts what is not: others have no more than their share.
#[inline(always)]
const fn others_tokens(report: &LoadReport, others: u32) -> f32 {
    let Some(tokens) = report.prefill_tokens else { return 0.0 };
    let beyond = lossy(tokens.saturating_sub(report.own_prefill_tokens));
    let all = lossy(report.running.saturating_add(report.waiting)).max(1.0);
    beyond.min(lossy(tokens) * lossy(others) / all)
}

#[expect(clippy::cast_possible_truncation, reason = "takes the lower bits")]
const fn place_in_log(change: u64) -> usize {
    change as usize % LOG
}

#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "good to 7 digits")]
const fn lossy(count: u32) -> f32 {
    count as f32
}

#[cfg(test)]
mod tests;
