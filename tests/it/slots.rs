//! The book of a server's slots, held against the model of such a server that agrees with a real one on every request
//! (see `calibration`): whatever is asked, in whatever order it ends, the book says which slot a request is given and what
//! it finds there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use emberlane::clock::Now;
use emberlane::id::{BlockHash, DecisionId, ReplicaSlot};
use emberlane::prefix::slots::{Asked, Ending, Head, SlotBooks, Stay};
use emberlane::sim::slots::SlotCache;
use emberlane::sim::workload::Segment;

const SERVER: ReplicaSlot = ReplicaSlot(0);
/// Tokens to a block of 256 bytes.
const BLOCK_TOKENS: u32 = 64;
/// Requests in the server's own queue, at most.
const QUEUE_MAX: usize = 4;

/// A conversation: segments that are whole blocks, so that tokens and blocks say the same.
#[derive(Clone, Debug, Default)]
struct Talk {
    segments: Vec<Segment>,
    chain: Vec<BlockHash>,
}

impl Talk {
    fn say(&mut self, id: u64, blocks: u32) {
        self.segments.push(Segment { id, tokens: blocks * BLOCK_TOKENS });
        self.chain.extend((0..u64::from(blocks)).map(|block| BlockHash(id << 16 | block)));
    }

    fn blocks(&self) -> u32 {
        u32::try_from(self.chain.len()).unwrap()
    }

    fn asked(&self, id: u64) -> Asked<'_> {
        let tokens = f64::from(self.blocks() * BLOCK_TOKENS) as f32;
        let bytes = self.blocks() * 256;
        Asked { id: DecisionId(id), chain: &self.chain, head: Head::default(), bytes, tokens, session: None }
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
    fn new(seed: u64) -> Self {
        let mut dice = fastrand::Rng::with_seed(seed);
        let slots = dice.u32(1..6);
        let books = Arc::new(SlotBooks::new(1));
        books.assume(SERVER, Some(slots));
        Self {
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
        let mut talk = if self.talks[from].blocks() > 60 { Talk::default() } else { self.talks[from].clone() };
        let (id, blocks) = (self.number(), self.dice.u32(1..12));
        talk.say(id, blocks);
        talk
    }

    /// What the book says of `talk` is what the server would do.
    fn compare(&self, talk: &Talk) {
        let (prospect, _) = self.books.peek(SERVER, &talk.asked(0), self.now).unwrap();
        let grant = self.server.clone().admit(&talk.segments);
        assert_eq!(prospect.slot, grant.map(|grant| grant.slot), "{talk:?}");
        // The last token of a prompt is computed, whatever is held.
        let found = (u32::try_from(prospect.blocks).unwrap() * BLOCK_TOKENS).min(talk.blocks() * BLOCK_TOKENS - 1);
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
        let (id, blocks) = (self.number(), self.dice.u32(..4));
        // The last token of an answer is not kept.
        self.server.release(slot, Segment { id, tokens: blocks * BLOCK_TOKENS + 1 });
        request.stay.end(Ending::Whole, self.now);
        if blocks > 0 {
            request.talk.say(id, blocks);
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

#[test]
fn the_book_says_what_the_server_does() {
    for seed in 0..60 {
        let mut bench = Bench::new(seed);
        (0..400).for_each(|_| bench.step());
    }
}
