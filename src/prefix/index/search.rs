//! The look-up: every replica's depth in a chain, in a few rounds of parallel probes.
//!
//! A replica that holds a block has computed all blocks before it, so its depth is where "held" turns to "not held", and
//! a search finds that in log₁₆ steps instead of a walk. One round probes up to 15 depths in each interval where some
//! replica's depth may lie, all cache lines asked for before the first is read: memory latency is paid once a round.
//!
//! - *Closed over holes*: probes of a round are visited from the deepest. A replica found deep is taken to hold what is
//!   before, so an entry the table has dropped in between costs nothing, and one dropped at the end little.
//! - An interval is refined only while some replica's depth is exactly its lower end; others have no transition inside.
//! - *Heads*: the first round also probes the first two blocks. A replica found at neither (nor, looked at only then,
//!   at the next two) has lost its heads: whatever it holds deeper is of no use, and it counts as cold. A replica that
//!   the first round misses at most depths below its own is cut back to where the gap begins.
//! - *Guesses*: prompts that begin alike mostly part where their system prompt ends, and most replicas end there. Where
//!   they ended last time for the same heads is kept with the scratch, and the first round probes that depth and the
//!   next: a guess that holds saves refining that interval, one that does not costs two probes.

use super::{PrefixIndex, WarmDepths};
use crate::{
    id::{BlockHash, ReplicaSlot},
    prefix::index::{
        entries_of,
        entry::{Found, Key},
        residency::{ROW_MASK, STAMP_MASK},
    },
};

/// Depths the first round probes beside the heads. Wider rounds (up to 23, and 88 probes a round) measured the same or
/// worse at 2,048 blocks: what a round less saves, finding more pages costs.
const FIRST: u32 = 9;
/// Most depths probed in one interval.
const ARITY: u32 = 16;
/// Least, when there are many intervals.
const ARITY_MIN: u32 = 3;
/// Probes a round aims at.
const ROUND: u32 = 16;
/// Most intervals a round refines; the deepest are kept. Replicas in the others keep the depth they were found at.
const INTERVALS: usize = 32;
/// Most probes in a round.
const POINTS: usize = INTERVALS * ARITY_MIN as usize;
/// First blocks that the first round probes.
const HEADS: u32 = 2;
/// Fewest replicas whose common end is worth remembering.
const GUESS_MIN: u32 = 2;
/// Marks in `WarmDepths::seen` for the two blocks after the heads.
const LATE_HEADS: [u32; 2] = [1 << 30, 1 << 31];

/// Depths strictly between `low` and `high` are unknown for replicas whose depth is `low`.
#[derive(Clone, Copy, Default)]
struct Interval {
    low: u32,
    high: u32,
    /// Replicas at `low`.
    count: u32,
}

/// Intervals still to refine, deepest first.
#[derive(Default)]
struct Intervals {
    list: [Interval; INTERVALS],
    len: usize,
    /// Where most replicas were found to end, and how many.
    end: (u32, u32),
}

impl Intervals {
    /// None yet, in a look-up that found most replicas to end at `end`.
    fn after(end: (u32, u32)) -> Self {
        Self { end, ..Self::default() }
    }

    /// Adds an interval if it holds something to find.
    #[inline(always)]
    fn push(&mut self, low: u32, high: u32, count: u32) {
        if count > self.end.1 && high - low == 1 {
            self.end = (low, count);
        }
        if count > 0 && high - low > 1 && self.len < INTERVALS {
            self.list[self.len] = Interval { low, high, count };
            self.len += 1;
        }
    }

    fn as_slice(&self) -> &[Interval] {
        &self.list[..self.len]
    }
}

/// A round's probes: depth and cache lines.
struct Probes {
    depths: [u32; POINTS],
    places: [[usize; 2]; POINTS],
    len: usize,
}

impl Probes {
    const fn new() -> Self {
        Self { depths: [0; POINTS], places: [[0; 2]; POINTS], len: 0 }
    }

    #[inline(always)]
    fn push(&mut self, index: &PrefixIndex, chain: &[BlockHash], depth: u32) {
        let places = index.places(chain[depth as usize - 1]);
        index.prefetch(places);
        self.depths[self.len] = depth;
        self.places[self.len] = places;
        self.len += 1;
    }
}

pub(super) fn search(index: &PrefixIndex, chain: &[BlockHash], depths: &mut WarmDepths) {
    depths.clear();
    let len = u32::try_from(chain.len()).unwrap_or(u32::MAX - 1);
    if len == 0 {
        return;
    }
    let mut probes = Probes::new();
    let mut firsts = Firsts::default();
    let key = chain[HEADS.min(len) as usize - 1];
    let guess = depths.guess(key);
    let mut intervals = first_round(index, chain, guess, depths, &mut probes, &mut firsts);
    while intervals.len > 0 {
        intervals = round(index, chain, &intervals, depths, &mut probes);
    }
    let (end, count) = intervals.end;
    if count >= GUESS_MIN && end != guess && end < len {
        depths.set_guess(key, end);
    }
    judge(index, chain, firsts.as_slice(), depths);
    if depths.has_host() {
        depths.settle_tiers(|slot, low, high| device_depth(index, chain, slot, low, high));
    }
}

/// How many blocks of `chain` are on the device of `slot`, which holds `high` of them, `low` of these there for sure: what
/// lies deeper was used longer ago, or as long, so that one search by halves finds the end.
fn device_depth(index: &PrefixIndex, chain: &[BlockHash], slot: ReplicaSlot, low: u32, high: u32) -> u32 {
    let is_on_device = |depth: u32| {
        let stamp = index.stamp_of(slot, chain[depth as usize - 1]);
        stamp.is_some_and(|stamp| index.residency.is_on_device(slot, stamp, depth))
    };
    let (mut low, mut high) = (low, high + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if is_on_device(middle) { low = middle } else { high = middle }
    }
    low
}

/// Depths that the first round probes whatever was guessed: what a replica was seen at counts among these.
#[derive(Default)]
struct Firsts {
    depths: [u32; (HEADS + FIRST) as usize],
    len: usize,
}

impl Firsts {
    fn push(&mut self, depth: u32) {
        self.depths[self.len] = depth;
        self.len += 1;
    }

    fn as_slice(&self) -> &[u32] {
        &self.depths[..self.len]
    }
}

/// Probes the heads, some depths up to the last, and on both sides of the end that is guessed.
fn first_round(
    index: &PrefixIndex,
    chain: &[BlockHash],
    guess: u32,
    depths: &mut WarmDepths,
    probes: &mut Probes,
    firsts: &mut Firsts,
) -> Intervals {
    let len = u32::try_from(chain.len()).unwrap_or(u32::MAX - 1);
    let heads = HEADS.min(len);
    let rest = len - heads;
    let arity = FIRST.min(rest);
    (1..=heads).for_each(|depth| firsts.push(depth));
    (1..=arity).for_each(|i| firsts.push(heads + fraction(rest, i, arity)));
    let mut last = 0;
    for first in firsts.as_slice() {
        for depth in [guess, guess + 1] {
            if guess > heads && last < depth && depth < *first {
                probes.push(index, chain, depth);
            }
        }
        probes.push(index, chain, *first);
        last = *first;
    }
    let mut next = Intervals::default();
    let mut high = len + 1;
    let mut first = firsts.len;
    for i in (heads as usize..probes.len).rev() {
        let depth = probes.depths[i];
        let is_first = firsts.depths[first - 1] == depth;
        first -= usize::from(is_first);
        let seen = if is_first { 1 << first } else { 0 };
        let found = visit(index, chain, probes, i, seen, u32::MAX, depths);
        next.push(depth, high, found.raised);
        high = depth;
    }
    // The heads count as one: a replica missing at the second block alone may still end after it.
    let mut count = 0;
    for i in (0..heads as usize).rev() {
        count += visit(index, chain, probes, i, 1 << i, u32::MAX, depths).raised;
    }
    next.push(heads, high, count);
    next
}

/// Probes inside every interval and says where to look next.
fn round(
    index: &PrefixIndex,
    chain: &[BlockHash],
    intervals: &Intervals,
    depths: &mut WarmDepths,
    probes: &mut Probes,
) -> Intervals {
    let arity = (ROUND / u32::try_from(intervals.len).unwrap_or(ROUND)).clamp(ARITY_MIN, ARITY);
    probes.len = 0;
    for interval in intervals.as_slice() {
        let gap = interval.high - interval.low;
        let arity = arity.min(gap - 1);
        for i in (1..=arity).rev() {
            probes.push(index, chain, interval.low + fraction(gap, i, arity + 1));
        }
    }
    let mut next = Intervals::after(intervals.end);
    let intervals = intervals.as_slice();
    let mut i = 0;
    for interval in intervals {
        let (mut high, mut left) = (interval.high, interval.count);
        while i < probes.len && probes.depths[i] > interval.low && probes.depths[i] < interval.high {
            // Once every replica of the interval is known to be deeper, nothing is left to find before.
            if left > 0 {
                let found = visit(index, chain, probes, i, 0, interval.low, depths);
                next.push(probes.depths[i], high, found.raised);
                left = left.saturating_sub(found.raised_from_low);
                high = probes.depths[i];
            }
            i += 1;
        }
        next.push(interval.low, high, left);
    }
    next
}

/// How many replicas a probe raised to its depth, and how many of them stood at the interval's lower end.
#[derive(Default)]
struct Raised {
    raised: u32,
    raised_from_low: u32,
}

/// Reads one probe's lines and raises the replicas found alive there.
#[inline(always)]
fn visit(
    index: &PrefixIndex,
    chain: &[BlockHash],
    probes: &Probes,
    i: usize,
    seen: u32,
    low: u32,
    depths: &mut WarmDepths,
) -> Raised {
    let depth = probes.depths[i];
    let hash = chain[depth as usize - 1];
    let key = Key::of(hash);
    let mut found = Raised::default();
    let mut raise = |slot, stamp: u32, mask: u32| {
        let Some(window) = index.residency.window(slot) else { return };
        if !window.reaches(stamp, depth, mask) {
            return;
        }
        let before = depths.raise(slot, depth, seen);
        found.raised += u32::from(before < depth);
        found.raised_from_low += u32::from(before == low);
        if window.has_host() {
            depths.found_in_tiers(slot, depth, index.residency.is_on_device(slot, stamp, depth));
        }
    };
    for place in probes.places[i] {
        for entry in entries_of(&index.table.lines()[place]) {
            let Found::Yes(header) = entry.find(key) else { continue };
            entry.for_each(|holder| raise(holder.slot(), holder.stamp(), STAMP_MASK));
            if let Some(row) = index.rows.get(header.row(), hash) {
                row.for_each(|slot, stamp| raise(slot, u32::from(stamp), ROW_MASK));
            }
        }
    }
    found
}

/// Cuts back replicas whose shallow blocks are gone.
fn judge(index: &PrefixIndex, chain: &[BlockHash], firsts: &[u32], depths: &mut WarmDepths) {
    let heads = (1 << HEADS) - 1;
    // Most replicas hold a system prompt and no more: their head is all there is to check.
    let first_deep = firsts.get(HEADS as usize).copied().unwrap_or(u32::MAX);
    let (mut is_deep, mut is_headless) = (false, false);
    for slot in depths.touched() {
        is_deep |= depths.get(*slot) >= first_deep;
        is_headless |= depths.seen[slot.index()] & heads == 0;
    }
    if is_headless {
        let mut probes = Probes::new();
        let late = (HEADS + 1..).zip(LATE_HEADS).take(chain.len().saturating_sub(HEADS as usize));
        late.clone().for_each(|(depth, _)| probes.push(index, chain, depth));
        for (i, (_, mark)) in late.enumerate() {
            visit(index, chain, &probes, i, mark, u32::MAX, depths);
        }
    }
    if is_deep || is_headless {
        depths.settle(|depth, seen| {
            let has_head = seen & (heads | LATE_HEADS[0] | LATE_HEADS[1]) != 0;
            if has_head { cut_back(firsts, depth, seen | heads) } else { 0 }
        });
    }
}

/// The depth, unless the first round missed the replica at most of its probes up to there: then where the gap begins.
#[inline(always)]
fn cut_back(firsts: &[u32], depth: u32, seen: u32) -> u32 {
    if firsts.get(HEADS as usize).is_none_or(|first_deep| depth < *first_deep) {
        return depth;
    }
    let below = firsts.iter().filter(|first| **first <= depth).count();
    let mask = (1_u32 << below) - 1;
    if 2 * (seen & mask).count_ones() >= mask.count_ones() {
        return depth;
    }
    let unbroken = seen.trailing_ones() as usize;
    unbroken.checked_sub(1).and_then(|last| firsts.get(last)).map_or(0, |first| (*first).min(depth))
}

/// `len · part / whole`, without overflow.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "at most len")]
const fn fraction(len: u32, part: u32, whole: u32) -> u32 {
    (len as u64 * part as u64 / whole as u64) as u32
}
