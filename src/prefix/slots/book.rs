//! One server's slots as this gateway's requests have left them. The rules are those of llama.cpp's server, which
//! `sim::slots` cites and tests hold against a real one; here they run over chains of block hashes instead of tokens.

use super::head::Head;
use super::pauses::Pauses;
use super::stay::{Ending, Term};
use crate::clock::Now;
use crate::id::{BlockHash, DecisionId};
use crate::prefix::BLOCK_BYTES;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// `--slot-prompt-similarity`: the part of a prompt that a slot must hold to be given for what it holds.
const SIMILARITY_MIN: f32 = 0.1;
/// A template's beginning has no more tokens than this; and the weight of each answer that shows how many.
const PREAMBLE_TOKENS_MAX: f32 = 128.0;
const PREAMBLE_WEIGHT: f32 = 0.2;
/// Requests in a server's own queue that are followed, at most.
const WAITING_MAX: usize = 64;
/// Conversations remembered after they have lost their slot, to learn how long they pause.
const PARTED_MAX: usize = 8;

/// A prompt, as it is asked of a server.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Of which decision.
    pub id: DecisionId,
    /// Its fingerprint.
    pub chain: &'a [BlockHash],
    /// How it begins.
    pub head: Head,
    /// Its length.
    pub bytes: u32,
    /// The same in tokens, as far as is known.
    pub tokens: f32,
    /// The conversation it belongs to, where it says so.
    pub session: Option<u64>,
}

/// What is lost when a slot is given away.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Tokens that nobody else holds.
    pub tokens: f32,
    /// How likely they are asked for again while the slot would still hold them, 0 to 1.
    pub likely: f32,
    /// How often a second, if they are waited for: the chance of a return by the time it takes.
    pub returns_per_s: f32,
}

/// What a request would find if it came now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prospect {
    /// The slot that it would be given; `None` while all are busy: then it waits for the one that is free next.
    pub slot: Option<usize>,
    /// Blocks of its prompt there; none where all are busy.
    pub blocks: usize,
    /// Bytes of it there, as far as is known: those blocks, or less than one.
    pub bytes: usize,
    /// What it would push out.
    pub loss: Loss,
    /// The busy slot that holds more of the prompt than any idle one: its blocks, and what would be lost there.
    pub busy: Option<(usize, Loss)>,
}

/// Blocks from the first that a slot holds.
#[derive(Clone, Debug, Default)]
struct Held {
    chain: Vec<BlockHash>,
    head: Head,
    tokens: f32,
    session: Option<u64>,
    /// Of its blocks, those that a later request has put elsewhere, too.
    covered: usize,
}

impl Held {
    fn take(&mut self, asked: &Asked<'_>) {
        self.chain.clear();
        self.chain.extend_from_slice(asked.chain);
        (self.head, self.tokens, self.session, self.covered) = (asked.head, asked.tokens, asked.session, 0);
    }

    fn common(&self, chain: &[BlockHash]) -> usize {
        common_prefix(&self.chain, chain)
    }

    /// Bytes that it and `asked` begin with, `blocks` among them.
    fn common_bytes(&self, asked: &Asked<'_>, blocks: usize) -> usize {
        if blocks > 0 { blocks * BLOCK_BYTES } else { self.head.common_bytes(&asked.head) }
    }

    /// Whether a prompt that shares so many blocks, or is of that session, goes on with it.
    fn goes_on(&self, common: usize, session: Option<u64>) -> bool {
        2 * common >= self.chain.len() || session.is_some() && session == self.session
    }

    /// Tokens that are lost when only `common` blocks are kept for a prompt of `session`: those of another conversation
    /// that has not gone on elsewhere.
    fn lost_tokens(&self, common: usize, session: Option<u64>) -> f32 {
        let kept = common.max(self.covered);
        if self.goes_on(common, session) || 2 * kept >= self.chain.len() {
            return 0.0;
        }
        self.tokens * (1.0 - share(kept, self.chain.len()))
    }

    fn cut(&mut self, blocks: usize) {
        if blocks < self.chain.len() {
            self.tokens *= share(blocks, self.chain.len());
            self.chain.truncate(blocks);
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Slot {
    held: Held,
    /// What was there before the last request, for it may turn out not to have come here.
    before: Held,
    /// The request that runs in it.
    term: Option<Arc<Term>>,
    /// The last request that was given it, and what it found.
    last: Option<DecisionId>,
    granted: Common,
    /// Number of the release that last made it idle; zero: never used.
    released: u64,
    idle_since: Now,
}

/// What a prompt shares with what a slot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Common {
    pub(super) blocks: usize,
    pub(super) bytes: usize,
    /// There was something that it could have shared.
    pub(super) is_used: bool,
}

impl Slot {
    fn common(&self, asked: &Asked<'_>) -> Common {
        let blocks = self.held.common(asked.chain);
        Common { blocks, bytes: self.held.common_bytes(asked, blocks), is_used: self.held.tokens > 0.0 }
    }

    const fn is_idle(&self) -> bool {
        self.term.is_none()
    }
}

#[derive(Debug)]
struct Waiting {
    id: DecisionId,
    chain: Vec<BlockHash>,
    head: Head,
    bytes: u32,
    tokens: f32,
    session: Option<u64>,
    term: Arc<Term>,
}

/// A conversation that has lost its slot, known by the block in its middle.
#[derive(Clone, Copy, Debug)]
struct Parted {
    middle: usize,
    hash: BlockHash,
    idle_since: Now,
}

/// The slots of one server.
#[derive(Debug)]
pub(super) struct SlotBook {
    slots: Vec<Slot>,
    waiting: VecDeque<Waiting>,
    parted: VecDeque<Parted>,
    /// Tokens that the server's template puts before every prompt, as far as has shown.
    preamble_tokens: f32,
}

impl SlotBook {
    /// A server of so many slots that has just started.
    pub(super) fn new(slots: usize) -> Self {
        Self {
            slots: vec![Slot::default(); slots.max(1)],
            waiting: VecDeque::new(),
            parted: VecDeque::new(),
            preamble_tokens: 0.0,
        }
    }

    /// How many slots there are.
    pub(super) const fn len(&self) -> usize {
        self.slots.len()
    }

    /// The server has started anew, or emptied its slots.
    pub(super) fn clear(&mut self) {
        *self = Self { preamble_tokens: self.preamble_tokens, ..Self::new(self.slots.len()) };
    }

    /// What `asked` would find if it came at `now`.
    pub(super) fn peek(&mut self, asked: &Asked<'_>, now: Now, pauses: &Pauses) -> Prospect {
        self.settle(now, pauses);
        let mut prospect = match self.choose(asked) {
            Some((at, Common { blocks, bytes, .. })) => {
                let loss = loss(&self.slots[at], blocks, asked.session, now, pauses);
                Prospect { slot: Some(at), blocks, bytes, loss, busy: None }
            }
            None => Prospect { loss: self.loss_of_next(asked, pauses), ..Prospect::default() },
        };
        let busy = self.slots.iter().filter(|slot| !slot.is_idle()).map(|slot| (slot.held.common(asked.chain), slot));
        prospect.busy = busy
            .max_by_key(|(blocks, _)| *blocks)
            .filter(|(blocks, _)| *blocks > prospect.blocks)
            .map(|(blocks, slot)| (blocks, loss(slot, blocks, asked.session, now, pauses)));
        prospect
    }

    /// `asked` has been sent: it is given a slot, or waits for one.
    pub(super) fn admit(&mut self, asked: &Asked<'_>, term: Arc<Term>, now: Now, pauses: &Pauses) {
        self.settle(now, pauses);
        if self.slots.iter().any(Slot::is_idle) {
            self.grant(asked, term, now, pauses);
        } else if self.waiting.len() < WAITING_MAX {
            let Asked { id, head, bytes, tokens, session, .. } = *asked;
            self.waiting.push_back(Waiting { id, chain: asked.chain.to_vec(), head, bytes, tokens, session, term });
        }
    }

    /// A prompt has been sent, here or elsewhere, that goes on with what is idle here or was: since when that had been so,
    /// if it has not gone on before. What the prompt has in common with others is theirs alone no more.
    pub(super) fn gone_on(&mut self, asked: &Asked<'_>, now: Now, pauses: &Pauses) -> Option<Now> {
        self.settle(now, pauses);
        let mut since: Option<Now> = None;
        for slot in self.slots.iter_mut().filter(|slot| slot.is_idle() && !slot.held.chain.is_empty()) {
            let (blocks, held) = (slot.held.chain.len(), &mut slot.held);
            let common = held.common(asked.chain);
            if 2 * common >= blocks && 2 * held.covered < blocks {
                since = since.max(Some(slot.idle_since));
            }
            held.covered = held.covered.max(if held.goes_on(common, asked.session) { blocks } else { common });
        }
        self.parted.retain(|parted| {
            let goes_on = asked.chain.get(parted.middle) == Some(&parted.hash);
            since = if goes_on { since.max(Some(parted.idle_since)) } else { since };
            !goes_on
        });
        since
    }

    /// The conversation of request `id` is now `chain`, in so many tokens.
    pub(super) fn extend(&mut self, id: DecisionId, chain: &[BlockHash], tokens: f32) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.last == Some(id)) {
            let known = slot.held.chain.len();
            if chain.get(..known) == Some(&slot.held.chain) {
                slot.held.chain.extend_from_slice(&chain[known..]);
                slot.held.tokens = tokens;
            }
        }
    }

    /// What the slot of request `id` holds is so many tokens, as the server counts.
    pub(super) fn weigh(&mut self, id: DecisionId, tokens: f32) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.last == Some(id)) {
            slot.held.tokens = tokens;
        }
    }

    /// What request `id` should have found; `None` when its slot is not known any more.
    pub(super) fn granted(&self, id: DecisionId) -> Option<Common> {
        self.slots.iter().find(|slot| slot.last == Some(id)).map(|slot| slot.granted)
    }

    /// A prompt that shares nothing known with its slot found so many tokens there: the template's.
    pub(super) fn learn_preamble(&mut self, tokens: f32) {
        if tokens <= PREAMBLE_TOKENS_MAX {
            self.preamble_tokens += (tokens - self.preamble_tokens) * PREAMBLE_WEIGHT;
        }
    }

    /// Request `id` found so many blocks, give or take `slack`, and not those it should have: where another slot holds as
    /// many, it is in that one, and where it was thought to be things are as before.
    pub(super) fn correct(&mut self, id: DecisionId, found: usize, slack: usize) {
        let Some(at) = self.slots.iter().position(|slot| slot.last == Some(id)) else { return };
        if found <= self.slots[at].granted.blocks + slack {
            return;
        }
        let chain = std::mem::take(&mut self.slots[at].held.chain);
        let fits = |slot: &Slot| slot.is_idle() && slot.held.common(&chain).abs_diff(found) <= slack;
        let other = (0..self.slots.len()).find(|other| *other != at && fits(&self.slots[*other]));
        self.slots[at].held.chain = chain;
        let Some(other) = other else { return };
        let mut moved = std::mem::take(&mut self.slots[at]);
        let Slot { held, released, idle_since, .. } = std::mem::take(&mut self.slots[other]);
        let kept = std::mem::replace(&mut moved.before, held);
        moved.granted = Common { blocks: found, bytes: found * BLOCK_BYTES, is_used: true };
        self.slots[other] = moved;
        // When that one was last used is forgotten; it was before.
        self.slots[at] = Slot { held: kept, released, idle_since, ..Slot::default() };
    }

    /// Takes up what has ended, in the order in which it did: each release takes the request that has waited longest.
    fn settle(&mut self, now: Now, pauses: &Pauses) {
        for _ in 0..self.slots.len() + WAITING_MAX {
            let ends = self.slots.iter().enumerate().filter_map(|(at, slot)| {
                let (number, ending) = slot.term.as_ref()?.ended()?;
                Some((number, at, ending))
            });
            let Some((number, at, ending)) = ends.min_by_key(|(number, ..)| *number) else { return };
            self.release(at, number, ending, now);
            self.waiting.retain(|one| one.term.ended().is_none_or(|(ended, _)| ended > number));
            if let Some(Waiting { id, chain, head, bytes, tokens, session, term }) = self.waiting.pop_front() {
                let freed = self.slots[at].idle_since;
                self.grant(&Asked { id, chain: &chain, head, bytes, tokens, session }, term, freed, pauses);
            }
        }
    }

    fn release(&mut self, at: usize, number: u64, ending: Ending, now: Now) {
        let slot = &mut self.slots[at];
        let Some(term) = slot.term.take() else { return };
        match ending {
            Ending::Whole => {}
            // How far it came is not known.
            Ending::Cut => slot.held.cut(slot.granted.blocks),
            Ending::Refused => {
                std::mem::swap(&mut slot.held, &mut slot.before);
                (slot.last, slot.held.covered) = (None, 0);
                return;
            }
        }
        (slot.released, slot.idle_since) = (number, term.ended_at().unwrap_or(now));
    }

    /// Gives `asked` an idle slot.
    fn grant(&mut self, asked: &Asked<'_>, term: Arc<Term>, now: Now, pauses: &Pauses) {
        let Some((at, granted)) = self.choose(asked) else { return };
        let slot = &mut self.slots[at];
        if slot.held.lost_tokens(granted.blocks, asked.session) > 0.0 {
            pauses.taken(now.since(slot.idle_since));
            let middle = slot.held.chain.len() / 2;
            let parted =
                slot.held.chain.get(middle).map(|hash| Parted { middle, hash: *hash, idle_since: slot.idle_since });
            if self.parted.len() >= PARTED_MAX
                && let Some(lost) = self.parted.pop_front()
            {
                pauses.lost(now.since(lost.idle_since));
            }
            self.parted.extend(parted);
        }
        std::mem::swap(&mut slot.held, &mut slot.before);
        slot.held.take(asked);
        (slot.term, slot.last, slot.granted) = (Some(term), Some(asked.id), granted);
    }

    /// The idle slot that a prompt is given, and what it finds there: the one that holds most of it, of equals the first, if
    /// that is more than a tenth; else the one that has been idle for longest, of those never used the last.
    fn choose(&self, asked: &Asked<'_>) -> Option<(usize, Common)> {
        let tokens_per_byte = asked.tokens / lossy(asked.bytes as usize).max(1.0);
        let (mut best, mut most) = (None, SIMILARITY_MIN);
        for (at, slot) in self.slots.iter().enumerate().filter(|(_, slot)| slot.is_idle()) {
            let common = slot.common(asked);
            let preamble = if common.is_used { self.preamble_tokens } else { 0.0 };
            let alike = (lossy(common.bytes) * tokens_per_byte + preamble) / asked.tokens.max(1.0);
            if alike > most {
                (best, most) = (Some((at, common)), alike);
            }
        }
        best.or_else(|| {
            let idle = self.slots.iter().enumerate().rev().filter(|(_, slot)| slot.is_idle());
            let longest = idle.min_by_key(|(_, slot)| slot.released);
            longest.map(|(at, slot)| (at, slot.common(asked)))
        })
    }

    /// What a request costs that takes the slot which is free next: any of those that run, and has just been used.
    fn loss_of_next(&self, asked: &Asked<'_>, pauses: &Pauses) -> Loss {
        let lost = |held: &Held| held.lost_tokens(held.common(asked.chain), asked.session);
        let tokens = self.slots.iter().map(|slot| lost(&slot.held)).sum::<f32>() / lossy(self.slots.len().max(1));
        loss_of(tokens, Duration::ZERO, pauses)
    }
}

fn loss(slot: &Slot, common: usize, session: Option<u64>, now: Now, pauses: &Pauses) -> Loss {
    let since = if slot.is_idle() { slot.idle_since } else { now };
    loss_of(slot.held.lost_tokens(common, session), now.since(since), pauses)
}

/// The loss of so many tokens of a conversation that has been idle for so long.
fn loss_of(tokens: f32, idle: Duration, pauses: &Pauses) -> Loss {
    if tokens > 0.0 {
        Loss { tokens, likely: pauses.likely(idle), returns_per_s: pauses.per_s(idle) }
    } else {
        Loss::default()
    }
}

/// Blocks that two chains share: chained hashes, once different, stay so.
pub(super) fn common_prefix(a: &[BlockHash], b: &[BlockHash]) -> usize {
    if a.first() != b.first() {
        return 0;
    }
    let (mut low, mut high) = (0, a.len().min(b.len()));
    while low < high {
        let middle = low + (high - low) / 2;
        if a[middle] == b[middle] { low = middle + 1 } else { high = middle }
    }
    low
}

fn share(part: usize, whole: usize) -> f32 {
    lossy(part) / lossy(whole.max(1))
}

#[expect(clippy::cast_precision_loss, reason = "good to 7 digits")]
const fn lossy(count: usize) -> f32 {
    count as f32
}
