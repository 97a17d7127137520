//! The book of a server's slots, held against the model of such a server that agrees with a real one on every request
//! (see `calibration`): whatever is asked, in whatever order it ends, the book says which slot a request is given and what
//! it finds there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use emberlane::clock::Now;
use emberlane::id::{BlockHash, DecisionId, ReplicaSlot};
use emberlane::prefix::hash::PrefixHasher;
use emberlane::prefix::slots::{Asked, Ending, Head, SlotBooks, Stay};
use emberlane::sim::slots::SlotCache;
use emberlane::sim::workload::Segment;

const SERVER: ReplicaSlot = ReplicaSlot(0);
/// Bytes of a token.
const TOKEN_BYTES: u32 = 4;
/// Requests in the server's own queue, at most.
const QUEUE_MAX: usize = 4;

/// How finely prompts are made, so that what two of them share is known exactly.
#[derive(Clone, Copy, Debug)]
struct Grain {
    /// Tokens that all segments are multiples of.
    tokens: u32,
    /// Longest prompt, grains.
    longest: u32,
}

/// Whole blocks of 256 bytes.
const BLOCKS: Grain = Grain { tokens: 64, longest: 60 };
/// Prompts of less than a block, of pieces of 16 bytes.
const PIECES: Grain = Grain { tokens: 4, longest: 12 };

/// A conversation: its segments, and the same as text.
#[derive(Clone, Debug, Default)]
struct Talk {
    segments: Vec<Segment>,
    text: Vec<u8>,
    chain: Vec<BlockHash>,
    head: Head,
}

impl Talk {
    fn say(&mut self, hasher: &PrefixHasher, id: u64, tokens: u32) {
        self.segments.push(Segment { id, tokens });
        let mut letters = fastrand::Rng::with_seed(id);
        self.text.extend((0..tokens * TOKEN_BYTES).map(|_| letters.u8(..)));
        hasher.chain(0, &self.text, &mut self.chain);
        self.head = Head::of(hasher, 0, &self.text);
    }

    fn tokens(&self) -> u32 {
        self.segments.iter().map(|segment| segment.tokens).sum()
    }

    fn asked(&self, id: u64) -> Asked<'_> {
        let bytes = self.tokens() * TOKEN_BYTES;
        let tokens = f32::from(u16::try_from(self.tokens()).unwrap());
        Asked { id: DecisionId(id), chain: &self.chain, head: self.head, bytes, tokens, session: None }
    }
}

/// A request that is somewhere at the server.
struct Request {
    id: u64,
    talk: Talk,
    stay: Stay,
}

/// The server, its book, and those that run and wait, in order.
struct Bench {
    grain: Grain,
    hasher: PrefixHasher,
    dice: fastrand::Rng,
    server: SlotCache,
    books: Arc<SlotBooks>,
    now: Now,
    next: u64,
    talks: Vec<Talk>,
    running: Vec<(usize, Request)>,
    waiting: VecDeque<Request>,
}

impl Bench {
    fn new(grain: Grain, seed: u64) -> Self {
        let mut dice = fastrand::Rng::with_seed(seed);
        let slots = dice.u32(1..6);
        let books = Arc::new(SlotBooks::new(1));
        books.assume(SERVER, Some(slots));
        Self {
            grain,
            hasher: PrefixHasher::from_seed(seed),
            server: SlotCache::new(slots, slots * 65_536, 0),
            dice,
            books,
            now: Now(1),
            next: 1,
            talks: vec![Talk::default()],
            running: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A talk to go on from, with something new said; mostly one of late.
    fn talk(&mut self) -> Talk {
        let late = self.talks.len().saturating_sub(12);
        let from = if self.dice.u32(..8) == 0 { 0 } else { self.dice.usize(late..self.talks.len()) };
        let most = self.grain.longest / 5;
        let is_long = self.talks[from].tokens() >= (self.grain.longest - most) * self.grain.tokens;
        let mut talk = if is_long { Talk::default() } else { self.talks[from].clone() };
        let (id, grains) = (self.number(), self.dice.u32(1..=most));
        talk.say(&self.hasher, id, grains * self.grain.tokens);
        talk
    }

    /// What the book says of `talk` is what the server would do.
    fn compare(&self, talk: &Talk) {
        let (prospect, _) = self.books.peek(SERVER, &talk.asked(0), self.now).unwrap();
        let grant = self.server.clone().admit(&talk.segments);
        assert_eq!(prospect.slot, grant.map(|grant| grant.slot), "{talk:?}");
        // The last token of a prompt is computed, whatever is held.
        let found = (u32::try_from(prospect.bytes).unwrap() / TOKEN_BYTES).min(talk.tokens() - 1);
        assert_eq!(found, grant.map_or(0, |grant| grant.cached_tokens), "{talk:?}");
    }

    fn ask(&mut self) {
        let talk = self.talk();
        self.compare(&talk);
        self.talks.push(talk.clone());
        let id = self.number();
        let stay = self.books.admit(SERVER, &talk.asked(id), self.now).unwrap();
        let request = Request { id, talk, stay };
        match self.server.admit(&request.talk.segments) {
            Some(grant) => self.running.push((grant.slot, request)),
            None => self.waiting.push_back(request),
        }
    }

    /// One of those that run ends, with an answer that the conversation goes on from or not.
    fn end(&mut self) {
        let (slot, mut request) = self.running.swap_remove(self.dice.usize(..self.running.len()));
        // Of less than a block, what is said is not known.
        let grains = if self.grain.tokens < BLOCKS.tokens { 0 } else { self.dice.u32(..4) };
        let (id, tokens) = (self.number(), grains * self.grain.tokens);
        // The last token of an answer is not kept.
        self.server.release(slot, Segment { id, tokens: tokens + 1 });
        request.stay.end(Ending::Whole, self.now);
        if tokens > 0 {
            request.talk.say(&self.hasher, id, tokens);
            self.books.extend(SERVER, DecisionId(request.id), &request.talk.chain, 0.0);
            self.talks.push(request.talk);
        }
        if let Some(next) = self.waiting.pop_front() {
            let grant = self.server.admit(&next.talk.segments).unwrap();
            self.running.push((grant.slot, next));
        }
    }

    fn step(&mut self) {
        self.now = self.now.plus(Duration::from_millis(self.dice.u64(..2000)));
        match self.dice.u32(..100) {
            0 => {
                self.server.clear();
                self.books.forget(SERVER);
                self.running.clear();
                self.waiting.clear();
            }
            1..50 if self.waiting.len() < QUEUE_MAX => self.ask(),
            _ if !self.running.is_empty() => self.end(),
            _ => {}
        }
        let probe = self.talk();
        self.compare(&probe);
    }
}

fn the_book_says_what_the_server_does(grain: Grain) {
    for seed in 0..50 {
        let mut bench = Bench::new(grain, seed);
        (0..400).for_each(|_| bench.step());
    }
}

#[test]
fn the_book_says_what_the_server_does_with_long_prompts() {
    the_book_says_what_the_server_does(BLOCKS);
}

#[test]
fn the_book_says_what_the_server_does_with_prompts_of_less_than_a_block() {
    the_book_says_what_the_server_does(PIECES);
}
