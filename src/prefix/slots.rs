//! What engines hold that keep prompts not in blocks but in slots (llama.cpp): a book a server, kept from what this
//! gateway sends there and sees end there.
//!
//! Such a server keeps as many conversations as it has slots, however short; gives a request the slot that is most like
//! its prompt or the one that has been idle for the longest; and what was there beyond that is gone. All of it follows
//! from the requests, so the book says which slot a request would be given, what it would find there and what it would
//! push out ([`SlotBooks::peek`]), and of what is pushed out how likely somebody asks for it again (`pauses`).
//!
//! Reality wins. What answers say they found is held against the book and against the prefix index, which knows nothing of
//! slots ([`SlotBooks::judge`]): other clients, a host cache that keeps what leaves a slot, or other rules make the index
//! the better guess, and then it is what counts. Before either was wrong, neither is preferred ([`Trust`]).
//!
//! Locks are never waited for where requests are decided, sent or ended: who finds one taken goes without. A book has a
//! bounded number of chains: one a slot, one that each slot held before, and those of the server's own queue.

mod book;
mod head;
mod pauses;
mod stay;
#[cfg(test)]
mod tests;

pub use book::{Asked, Loss, Prospect};
pub use head::{Head, PIECE_BYTES};
pub use stay::{Ending, Stay};

use crate::clock::Now;
use crate::id::{BlockHash, DecisionId, ReplicaSlot};
use crate::prefix::BLOCK_BYTES;
use book::SlotBook;
use parking_lot::Mutex;
use pauses::Pauses;
use stay::Term;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Slots of one server that are followed, at most; one with more has no book.
pub const SLOTS_MAX: u32 = 256;
/// Servers whose books are all looked into for each request; of more, each request concerns its own alone.
pub const BOOKS_MAX: usize = 256;
/// Requests held back at once, at most.
pub const HELD_BACK_MAX: u32 = 256;
/// Attempts at a lock that another core holds for a microsecond.
const ATTEMPTS: usize = 16;
/// Share of a prompt by which book and index must differ from what was found to be told apart.
const TELLING: f32 = 0.1;
/// Weight of what was learned before of the two.
const FADE: f32 = 0.8;

/// Whose word counts for what a server holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The book's: it has been right where the index was wrong.
    Book,
    /// Nothing has told them apart yet.
    Untold,
    /// The index's.
    Index,
}

impl Trust {
    /// Name in `/replicas`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Book => "book",
            Self::Untold => "untold",
            Self::Index => "index",
        }
    }
}

/// What an answer says it found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Whose answer.
    pub id: DecisionId,
    /// Length of its prompt.
    pub prompt_bytes: u32,
    /// The same in tokens, as the engine counts.
    pub prompt_tokens: f32,
    /// Of these, the ones found.
    pub cached_tokens: f32,
    /// The ones that the index said would be.
    pub indexed_tokens: f32,
    /// Tokens it generated.
    pub output_tokens: f32,
}

/// A server's book, and how it has done.
#[derive(Debug)]
struct Kept {
    book: SlotBook,
    /// By which share of a prompt the index was further off than the book, where they differed, of late; `None`: never.
    lead: Option<f32>,
}

#[derive(Debug, Default)]
struct Cell {
    kept: Mutex<Option<Box<Kept>>>,
    is_kept: AtomicBool,
    /// What is in the book is void.
    is_void: AtomicBool,
    ends: AtomicU64,
}

impl Cell {
    /// Opens the book, if there is one and nobody has it open.
    fn open<T>(&self, look: impl FnOnce(&mut Kept) -> T) -> Option<T> {
        if !self.is_kept.load(Acquire) {
            return None;
        }
        let mut kept = (0..ATTEMPTS).find_map(|_| {
            let kept = self.kept.try_lock();
            if kept.is_none() {
                std::hint::spin_loop();
            }
            kept
        })?;
        let kept = kept.as_mut()?;
        if self.is_void.swap(false, AcqRel) {
            kept.book.clear();
        }
        Some(look(kept))
    }
}

/// The books of all servers.
#[derive(Debug)]
pub struct SlotBooks {
    cells: Box<[Cell]>,
    /// Above the last cell that has ever had a book, and how many have one now.
    last: AtomicUsize,
    books: AtomicUsize,
    pauses: Pauses,
    /// As [`Kept::lead`], of all servers (bits of an `f32`); not a number: never.
    lead: AtomicU32,
    /// Rings when a slot is free.
    freed: Notify,
    held_back: AtomicU32,
}

impl SlotBooks {
    /// Room for `slots_max` servers; no books yet.
    #[must_use]
    pub fn new(slots_max: usize) -> Self {
        Self {
            cells: (0..slots_max).map(|_| Cell::default()).collect(),
            last: AtomicUsize::new(0),
            books: AtomicUsize::new(0),
            pauses: Pauses::default(),
            lead: AtomicU32::new(f32::NAN.to_bits()),
            freed: Notify::new(),
            held_back: AtomicU32::new(0),
        }
    }

    /// The server at `replica` has so many slots; `None`: it is not such a server, or does not say. Not for the request
    /// path.
    pub fn assume(&self, replica: ReplicaSlot, slots: Option<u32>) {
        let Some(cell) = self.cells.get(replica.index()) else { return };
        let slots = slots.filter(|slots| (1..=SLOTS_MAX).contains(slots)).map(|slots| slots as usize);
        let mut kept = cell.kept.lock();
        if kept.as_ref().map(|kept| kept.book.len()) == slots {
            return;
        }
        let had = kept.is_some();
        *kept = slots.map(|slots| Box::new(Kept { book: SlotBook::new(slots), lead: None }));
        cell.is_kept.store(kept.is_some(), Release);
        match (had, kept.is_some()) {
            (false, true) => self.books.fetch_add(1, Relaxed),
            (true, false) => self.books.fetch_sub(1, Relaxed),
            (true, true) | (false, false) => 0,
        };
        self.last.fetch_max(replica.index() + 1, Relaxed);
    }

    /// `replica` has changed hands.
    pub fn reset(&self, replica: ReplicaSlot) {
        self.assume(replica, None);
    }

    /// The server at `replica` has started anew, or emptied its slots.
    pub fn forget(&self, replica: ReplicaSlot) {
        if let Some(cell) = self.cells.get(replica.index()) {
            cell.is_void.store(true, Release);
        }
    }

    /// What `asked` would find at `replica` if it came at `now`, and whether that is to be believed. `None`: there is no
    /// book, or somebody has it open.
    #[must_use]
    pub fn peek(&self, replica: ReplicaSlot, asked: &Asked<'_>, now: Now) -> Option<(Prospect, Trust)> {
        let cell = self.cells.get(replica.index())?;
        cell.open(|kept| (kept.book.peek(asked, now, &self.pauses), self.trust(kept.lead)))
    }

    /// Whose word counts for `replica`; `None` without a book.
    #[must_use]
    pub fn trusted(&self, replica: ReplicaSlot) -> Option<Trust> {
        self.cells.get(replica.index())?.open(|kept| self.trust(kept.lead))
    }

    /// A server that has shown nothing itself is taken to be like the others.
    fn trust(&self, own: Option<f32>) -> Trust {
        match own.unwrap_or_else(|| f32::from_bits(self.lead.load(Relaxed))) {
            lead if lead > 0.0 => Trust::Book,
            lead if lead < 0.0 => Trust::Index,
            _neither => Trust::Untold,
        }
    }

    /// `asked` has been sent to `replica`. `None`: there is no book, or somebody has it open.
    #[must_use]
    pub fn admit(self: &Arc<Self>, replica: ReplicaSlot, asked: &Asked<'_>, now: Now) -> Option<Stay> {
        let cell = self.cells.get(replica.index())?;
        if !cell.is_kept.load(Acquire) {
            return None;
        }
        let all = if self.books.load(Relaxed) <= BOOKS_MAX {
            self.cells.get(..self.last.load(Relaxed)).unwrap_or_default()
        } else {
            std::slice::from_ref(cell)
        };
        let since = all.iter().filter_map(|cell| cell.open(|kept| kept.book.gone_on(asked, now, &self.pauses))?).max();
        if let Some(since) = since {
            self.pauses.ended(now.since(since));
        }
        let term = Arc::new(Term::default());
        cell.open(|kept| kept.book.admit(asked, Arc::clone(&term), now, &self.pauses))?;
        Some(Stay::new(Arc::clone(self), replica, term))
    }

    /// The conversation of request `id` at `replica` is now `chain`, in about so many tokens: with what was answered.
    pub fn extend(&self, replica: ReplicaSlot, id: DecisionId, chain: &[BlockHash], tokens: f32) {
        if let Some(cell) = self.cells.get(replica.index()) {
            cell.open(|kept| kept.book.extend(id, chain, tokens));
        }
    }

    /// Holds what an answer of `replica` found against what book and index had said, and puts the book right.
    pub fn judge(&self, replica: ReplicaSlot, found: &Found) {
        let Found { id, prompt_tokens, cached_tokens, .. } = *found;
        let Some(cell) = self.cells.get(replica.index()).filter(|_| prompt_tokens > 0.0) else { return };
        let tokens_per_block = prompt_tokens / (lossy(found.prompt_bytes) / BLOCK_BYTES as f32).max(1.0);
        let off = |said: f32| ((said - cached_tokens).abs() - tokens_per_block).max(0.0) / prompt_tokens;
        let lead = cell.open(|kept| {
            let granted = kept.book.granted(id)?;
            kept.book.weigh(id, prompt_tokens + found.output_tokens);
            if granted.is_used && granted.bytes == 0 {
                kept.book.learn_preamble(cached_tokens);
            }
            #[expect(clippy::cast_precision_loss, reason = "good to 7 digits")]
            let said = (granted.bytes as f32 / BLOCK_BYTES as f32 * tokens_per_block).min(prompt_tokens);
            let (book, index) = (off(said), off(found.indexed_tokens));
            if book > TELLING {
                let slack = whole(TELLING * prompt_tokens / tokens_per_block) + 1;
                kept.book.correct(id, whole(cached_tokens / tokens_per_block), slack);
            }
            let lead = index - book;
            (lead.abs() > TELLING).then(|| {
                kept.lead = Some(kept.lead.map_or(lead, |before| before * FADE + lead * (1.0 - FADE)));
                lead
            })
        });
        if let Some(lead) = lead.flatten() {
            let before = f32::from_bits(self.lead.load(Relaxed));
            let lead = if before.is_nan() { lead } else { before * FADE + lead * (1.0 - FADE) };
            self.lead.store(lead.to_bits(), Relaxed);
        }
    }

    /// The number of the end that a request at `replica` has come to now.
    fn number_end(&self, replica: ReplicaSlot) -> u64 {
        self.cells.get(replica.index()).map_or(1, |cell| cell.ends.fetch_add(1, Relaxed) + 1)
    }

    /// Resolves when a slot is free, at any server.
    pub fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Requests that are held back.
    #[must_use]
    pub fn held_back(&self) -> u32 {
        self.held_back.load(Relaxed)
    }

    /// Counts a request that is held back, as long as what is returned lives.
    #[must_use]
    pub fn hold_back(&self) -> HeldBack<'_> {
        self.held_back.fetch_add(1, Relaxed);
        HeldBack { books: self }
    }
}

/// A request that is held back. Counted until it is dropped.
#[derive(Debug)]
pub struct HeldBack<'b> {
    books: &'b SlotBooks,
}

impl Drop for HeldBack<'_> {
    fn drop(&mut self) {
        self.books.held_back.fetch_sub(1, Relaxed);
    }
}

#[expect(clippy::cast_precision_loss, reason = "good to 7 digits")]
const fn lossy(count: u32) -> f32 {
    count as f32
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative; saturates")]
const fn whole(count: f32) -> usize {
    count as usize
}
