//! Candidates whose engines keep prompts in slots: what a request would find there, what it would push out, and whether it
//! is better held back until a slot is free that costs less.
//!
//! A cold request takes somebody's slot, wherever it goes. Pushing out a conversation that goes on costs computing it
//! again, and that pushes out another: with more conversations than slots, engines can spend most of their time on work
//! they have done before. So what is pushed out has a price ([`View::eviction_s`]: the time to compute it, times how likely
//! it comes back), and a request is held back while waiting spares more than it costs:
//!
//! ```text
//! returns a second × time to compute it again × crowd > 1
//! crowd = (1 + requests there + requests held back / candidates) / (1 − share of its time that prefill takes)
//! ```
//! The crowd is how many seconds all others lose by a second of work: those who are there, those who wait, and all that
//! come as long as the engine is not idle. Meanwhile conversations end, or have been idle for so long that they are likely
//! over, and those whose own slot is free pass. An engine that has time to spare has no crowd, and nobody waits for it.
//!
//! Nobody is held for longer than what it spares may be worth, the price times the crowd: whoever waits for as long as the
//! loss that it may avert is at most twice as badly off as who knows beforehand (the ski rental). Nor for longer than the
//! same multiple of its own prefill: who brings little work waits little.

use super::candidates::Known;
use super::{Hold, Placement, Snapshot};
use crate::fleet::Pool;
use crate::id::{BlockHash, ReplicaSlot};
use crate::policy::View;
use crate::prefix::BLOCK_BYTES;
use crate::prefix::index::WarmDepths;
use crate::prefix::slots::{Asked, BOOKS_MAX, HELD_BACK_MAX, Loss, Prospect, Trust};
use std::time::Duration;

/// A busy slot is waited for as long as that takes less than this many times what computing the prefix again would: work
/// done twice also keeps others waiting.
const BUSY_SLOT_PATIENCE: f32 = 2.0;
/// Longest a request is held back.
const HOLD_MAX: Duration = Duration::from_secs(10);
/// The share of an engine's time that prefill takes is not believed beyond this: nobody counts for more than four.
const PREFILL_SHARE_MAX: f32 = 0.75;
/// Of the time that is left, the part after which a held request looks again although no slot has become free, and the
/// least such time.
const LOOK_AGAIN: f32 = 0.25;
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(10);

/// What was found for a pool's candidates with slots.
#[derive(Debug, Default)]
pub(super) struct Slotted {
    /// Their places in the view.
    places: Vec<u16>,
    /// What was said of the last prompt, by place.
    said: Vec<Said>,
}

/// What was said of a prompt at one place.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    /// Tokens that the index says are warm.
    indexed_tokens: f32,
    /// The blocks that are taken to be.
    blocks: usize,
    /// A book says so.
    is_by_book: bool,
    /// How often a second what it would push out is expected back.
    returns_per_s: f32,
}

/// What a request asks, in the words of books.
fn asked<'a>(placement: &Placement, chain: &'a [BlockHash]) -> Asked<'a> {
    Asked {
        id: placement.decision.id,
        chain,
        head: placement.head,
        bytes: placement.decision.prompt_bytes,
        tokens: placement.decision.prompt_tokens,
        session: placement.session,
    }
}

/// What `placement` asks of its replica.
pub(super) fn asked_of(placement: &Placement) -> Asked<'_> {
    asked(placement, placement.chain.get(..placement.prompt_blocks).unwrap_or_default())
}

impl Slotted {
    /// Starts over with the members of `pool`.
    pub(super) fn reset(&mut self, pool: &Pool, snapshot: &Snapshot) {
        self.said.clear();
        self.said.resize(pool.members.len(), Said::default());
        self.places.clear();
        let slotted = (0..).zip(&pool.members).filter(|(_, slot)| snapshot.limits(**slot).is_slotted);
        self.places.extend(slotted.map(|(place, _)| place));
    }

    /// Says in `view` what the prompt would find and push out. Of very many, only those are looked at which the index says
    /// hold any of it.
    pub(super) fn read(
        &mut self,
        view: &mut View,
        known: Known<'_>,
        placement: &Placement,
        (chain, depths): (&[BlockHash], &WarmDepths),
    ) {
        for place in view.evicting.drain(..).map(usize::from) {
            (view.eviction_s[place], view.evicted_tokens[place]) = (0.0, 0.0);
        }
        if self.places.is_empty() {
            return;
        }
        let (block_tokens, asked) =
            (known.snapshot.traits.tokens(placement.decision.pool, BLOCK_BYTES), asked(placement, chain));
        let prompt = Prompt { known, asked, depths, block_tokens };
        if self.places.len() <= BOOKS_MAX {
            for &place in &self.places {
                self.said[usize::from(place)] = prompt.read(view, place);
            }
        } else {
            self.said.fill(Said::default());
            for at in 0..view.warm.len() {
                let place = view.warm[at];
                if self.places.binary_search(&place).is_ok() {
                    self.said[usize::from(place)] = prompt.read(view, place);
                }
            }
        }
    }

    /// What was said of the prompt at `place`: tokens that the index holds warm, and blocks that count as warm, where that
    /// is not all that the index has.
    pub(super) fn said(&self, place: usize) -> Option<(f32, usize)> {
        let place = u16::try_from(place).ok().filter(|place| self.places.binary_search(place).is_ok())?;
        let said = self.said[usize::from(place)];
        Some((said.indexed_tokens, said.blocks))
    }

    /// Whether the request that was picked `place` is to be held back, having waited since it was first decided.
    pub(super) fn hold(
        &self,
        view: &View,
        candidates: usize,
        place: usize,
        placement: &Placement,
        known: Known<'_>,
    ) -> Option<Hold> {
        let loss_s = view.eviction_s[place];
        let said = self.said.get(place).filter(|said| said.is_by_book)?;
        if loss_s <= 0.0 || placement.attempts > 1 || !placement.wish.slo.is_none() {
            return None;
        }
        let others = known.shared.slots.held_back();
        if others >= HELD_BACK_MAX {
            return None;
        }
        let prefill_share = known.shared.backlogs.prefill_share(view.slots[place], known.now);
        #[expect(clippy::cast_precision_loss, reason = "few")]
        let line = others as f32 / candidates.max(1) as f32;
        let crowd = (1.0 + view.in_flight[place] + line) / (1.0 - prefill_share.min(PREFILL_SHARE_MAX));
        let each_s = view.prefill_s_per_token[place];
        if said.returns_per_s * view.evicted_tokens[place] * each_s * crowd <= 1.0 {
            return None;
        }
        let own_s = view.base_s[place] + view.uncached_tokens(place) * each_s;
        let most = (crowd * loss_s.min(own_s)).min(HOLD_MAX.as_secs_f32());
        let left = most - known.now.since(placement.decision.at).as_secs_f32();
        let again = Duration::from_secs_f32((left * LOOK_AGAIN).max(0.0)).max(LOOK_AGAIN_MIN);
        (left > 0.0).then(|| Hold::Slot { again: known.now.plus(again) })
    }
}

/// A prompt before candidates with slots.
struct Prompt<'p> {
    known: Known<'p>,
    asked: Asked<'p>,
    depths: &'p WarmDepths,
    block_tokens: f32,
}

impl Prompt<'_> {
    /// Says in `view` what is to be said of `place`.
    fn read(&self, view: &mut View, place: u16) -> Said {
        let at = usize::from(place);
        let slot = view.slots[at];
        let outlook = self.known.shared.slots.peek(slot, &self.asked, self.known.now);
        let is_by_book = outlook.is_some_and(|(_, trust)| trust == Trust::Book);
        let mut said = self.by_index(view, at);
        match outlook {
            Some((prospect, Trust::Book)) => {
                let loss;
                (said.blocks, loss) = self.by_book(view, place, &prospect);
                said.returns_per_s = loss.returns_per_s;
            }
            Some((prospect, Trust::Untold)) if view.prefix_wait_s[at] <= 0.0 => evict(view, place, &prospect),
            Some((_, Trust::Untold | Trust::Index)) | None => {}
        }
        Said { is_by_book, ..said }
    }

    /// By the index: where the prompt stands in a slot that others will use first, that is worth waiting for, or the
    /// replica is as good as cold.
    fn by_index(&self, view: &mut View, place: usize) -> Said {
        let slot = view.slots[place];
        let blocks = self.depths.get(slot) as usize;
        if blocks > 0 && view.warm_tokens[place] > 0.0 {
            let saved_s = view.warm_tokens[place] * view.prefill_s_per_token[place];
            let wait_s = self.wait_s(view, place, blocks, saved_s, 0);
            self.wait_or_leave(view, place, wait_s, saved_s);
        }
        Said { indexed_tokens: view.warm_tokens[place], blocks, ..Said::default() }
    }

    /// By the book: what is in the slot that it would be given, or in one that is waited for. Returns its blocks, and what
    /// would be lost.
    fn by_book(&self, view: &mut View, place: u16, prospect: &Prospect) -> (usize, Loss) {
        let at = usize::from(place);
        (view.restore_tokens[at], view.prefix_wait_s[at]) = (0.0, 0.0);
        let mut chosen = (prospect.blocks, prospect.bytes, prospect.loss);
        if let Some((blocks, loss)) = prospect.busy {
            let each_s = view.prefill_s_per_token[at];
            let spared = prospect.loss.tokens * prospect.loss.likely - loss.tokens * loss.likely;
            let saved_s = (lossy(blocks - prospect.blocks) * self.block_tokens + spared) * each_s;
            let wait_s = self.wait_s(view, at, blocks, saved_s, 1);
            if wait_s < saved_s * BUSY_SLOT_PATIENCE {
                (view.prefix_wait_s[at], view.is_awaited) = (wait_s, true);
                chosen = (blocks, blocks * BLOCK_BYTES, loss);
            }
        }
        let (blocks, bytes, loss) = chosen;
        let tokens = lossy(bytes) / BLOCK_BYTES as f32 * self.block_tokens;
        view.warm_tokens[at] = tokens.min((view.prompt_tokens - 1.0).max(0.0));
        if bytes > 0 && !view.warm.contains(&place) {
            view.warm.push(place);
        }
        evict(view, place, &Prospect { loss, ..*prospect });
        (blocks, loss)
    }

    /// Seconds until the requests before this one, at least `least`, are done with the slot that holds `blocks` of it.
    #[expect(clippy::cast_precision_loss, reason = "at most 64")]
    fn wait_s(&self, view: &View, place: usize, blocks: usize, saved_s: f32, least: usize) -> f32 {
        let ahead = self.known.shared.pending.ahead(view.slots[place], self.asked.chain, blocks).max(least);
        let service_s = view.service_s[place];
        ahead as f32 * if service_s > 0.0 { service_s } else { view.base_s[place] + saved_s }
    }

    fn wait_or_leave(&self, view: &mut View, place: usize, wait_s: f32, saved_s: f32) {
        if wait_s < saved_s * BUSY_SLOT_PATIENCE {
            view.prefix_wait_s[place] = wait_s;
            view.is_awaited = true;
        } else {
            view.warm_tokens[place] = 0.0;
            view.restore_tokens[place] = 0.0;
        }
    }
}

/// Prices what is pushed out at `place`.
fn evict(view: &mut View, place: u16, prospect: &Prospect) {
    let (at, loss) = (usize::from(place), prospect.loss);
    let loss_s = loss.tokens * loss.likely * view.prefill_s_per_token[at];
    if loss_s > 0.0 {
        (view.eviction_s[at], view.evicted_tokens[at]) = (loss_s, loss.tokens);
        view.evicting.push(place);
    }
}

/// Whether `slot` keeps prompts in slots, and how many it has.
pub(super) fn slots_of(snapshot: &Snapshot, slot: ReplicaSlot) -> Option<u32> {
    let slots = snapshot.fleet.replica(slot).and_then(|replica| replica.slots);
    slots.filter(|_| snapshot.limits(slot).is_slotted)
}

#[expect(clippy::cast_precision_loss, reason = "good to 7 digits")]
const fn lossy(count: usize) -> f32 {
    count as f32
}

#[cfg(test)]
mod tests;
