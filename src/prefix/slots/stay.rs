//! A request's stay in a slot. How it ended is left in two atomics for whoever opens the book next: an end waits for no
//! lock, and the order of ends is kept.

use super::SlotBooks;
use crate::clock::Now;
use crate::id::ReplicaSlot;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// How a stay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The prompt was computed: the slot holds it, and what was said.
    Whole,
    /// It was broken off before: nobody knows how far the server came.
    Cut,
    /// The server did not take it: its slot is as it was.
    Refused,
}

/// Bits of [`Term::end`] that say how.
const HOW_BITS: u32 = 2;

/// One stay, as its book sees it.
#[derive(Debug, Default)]
pub(super) struct Term {
    /// When it ended; zero: not known.
    at: AtomicU64,
    /// Number of its end among those of the server, and how; zero: it lasts.
    end: AtomicU64,
}

impl Term {
    /// It is over, as the server's end `number` (from 1 on).
    pub(super) fn end(&self, number: u64, ending: Ending, at: Option<Now>) {
        self.at.store(at.map_or(0, |at| at.0.max(1)), Relaxed);
        let how = match ending {
            Ending::Whole => 0,
            Ending::Cut => 1,
            Ending::Refused => 2,
        };
        self.end.store(number << HOW_BITS | how, Release);
    }

    /// Number and kind of its end; `None` while it lasts.
    pub(super) fn ended(&self) -> Option<(u64, Ending)> {
        let end = self.end.load(Acquire);
        let ending = match end & ((1 << HOW_BITS) - 1) {
            0 => Ending::Whole,
            1 => Ending::Cut,
            _ => Ending::Refused,
        };
        (end > 0).then_some((end >> HOW_BITS, ending))
    }

    /// When it ended, if that is known.
    pub(super) fn ended_at(&self) -> Option<Now> {
        let at = self.at.load(Relaxed);
        (at > 0).then_some(Now(at))
    }
}

/// A request that is at its server. Dropping it without a word means that it was broken off.
#[derive(Debug)]
pub struct Stay {
    books: Arc<SlotBooks>,
    replica: ReplicaSlot,
    term: Arc<Term>,
    is_computed: bool,
    is_over: bool,
}

impl Stay {
    pub(super) const fn new(books: Arc<SlotBooks>, replica: ReplicaSlot, term: Arc<Term>) -> Self {
        Self { books, replica, term, is_computed: false, is_over: false }
    }

    /// Its prompt is computed: the slot holds all of it, even if it is broken off.
    pub const fn computed(&mut self) {
        self.is_computed = true;
    }

    /// It is over; the slot is free from `now` on.
    pub fn end(&mut self, ending: Ending, now: Now) {
        self.finish(ending, Some(now));
    }

    fn finish(&mut self, ending: Ending, at: Option<Now>) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.term.end(self.books.number_end(self.replica), ending, at);
            self.books.freed.notify_waiters();
        }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.finish(if self.is_computed { Ending::Whole } else { Ending::Cut }, None);
    }
}
