//! What books say of servers, and what they make of being wrong. That they follow the servers' rules is held against the
//! simulator's model of one in `tests/it/slots.rs`.

use super::*;
use std::time::Duration;

const A: ReplicaSlot = ReplicaSlot(0);
const B: ReplicaSlot = ReplicaSlot(1);

/// Books of two servers, a virtual clock, and numbers for requests.
struct Bench {
    books: Arc<SlotBooks>,
    now: Now,
    next: u64,
}

/// A chain of blocks: `path` names each.
fn chain(path: &[u64]) -> Vec<BlockHash> {
    path.iter().map(|block| BlockHash(*block)).collect()
}

/// The blocks `from` to `to` of a conversation.
fn talk(number: u64, blocks: u64) -> Vec<u64> {
    (0..blocks).map(|block| number * 1000 + block).collect()
}

fn asked(id: u64, chain: &[BlockHash]) -> Asked<'_> {
    let blocks = u32::try_from(chain.len()).unwrap();
    let (bytes, tokens) = (blocks * 256, 64.0 * lossy(blocks));
    Asked { id: DecisionId(id), chain, head: Head::default(), bytes, tokens, session: None }
}

impl Bench {
    fn new(slots: u32) -> Self {
        let books = Arc::new(SlotBooks::new(4));
        books.assume(A, Some(slots));
        books.assume(B, Some(slots));
        Self { books, now: Now(1), next: 0 }
    }

    fn wait(&mut self, seconds: u64) {
        self.now = self.now.plus(Duration::from_secs(seconds));
    }

    fn peek(&self, at: ReplicaSlot, path: &[u64]) -> Prospect {
        self.books.peek(at, &asked(u64::MAX, &chain(path)), self.now).unwrap().0
    }

    fn send(&mut self, at: ReplicaSlot, path: &[u64]) -> (DecisionId, Stay) {
        self.next += 1;
        let stay = self.books.admit(at, &asked(self.next, &chain(path)), self.now).unwrap();
        (DecisionId(self.next), stay)
    }

    /// Sends a request that is answered a second later.
    fn run(&mut self, at: ReplicaSlot, path: &[u64]) -> DecisionId {
        let (id, mut stay) = self.send(at, path);
        self.wait(1);
        stay.end(Ending::Whole, self.now);
        id
    }

    /// The answer to `id` at `at`, whose prompt has `blocks`: so many of them were found, where the index had said
    /// `indexed`.
    fn found(&self, at: ReplicaSlot, id: DecisionId, blocks: u32, found: u32, indexed: u32) {
        let tokens = |blocks: u32| 64.0 * lossy(blocks);
        let found = Found {
            id,
            prompt_bytes: blocks * 256,
            prompt_tokens: tokens(blocks),
            cached_tokens: tokens(found),
            indexed_tokens: tokens(indexed),
            output_tokens: 1.0,
        };
        self.books.judge(at, &found);
    }
}

#[test]
fn who_has_no_slots_has_no_book() {
    let bench = Bench::new(2);
    let prompt = chain(&talk(1, 4));
    for at in [ReplicaSlot(2), ReplicaSlot(99)] {
        assert_eq!(bench.books.peek(at, &asked(1, &prompt), bench.now), None);
        assert!(bench.books.admit(at, &asked(1, &prompt), bench.now).is_none());
        assert_eq!(bench.books.trusted(at), None);
    }
    bench.books.assume(ReplicaSlot(2), Some(SLOTS_MAX + 1));
    assert_eq!(bench.books.trusted(ReplicaSlot(2)), None, "too many to follow");
    bench.books.reset(A);
    assert_eq!(bench.books.trusted(A), None);
    assert!(bench.books.peek(B, &asked(1, &prompt), bench.now).is_some());
}

#[test]
fn a_cold_prompt_pushes_out_what_has_been_idle_for_the_longest() {
    let mut bench = Bench::new(2);
    assert_eq!(bench.peek(A, &talk(1, 10)), Prospect { slot: Some(1), ..Prospect::default() });
    bench.run(A, &talk(1, 10));
    bench.run(A, &talk(2, 20));
    let cold = bench.peek(A, &talk(3, 10));
    assert_eq!((cold.slot, cold.blocks, cold.loss.tokens), (Some(1), 0, 640.0));
    let warm = bench.peek(A, &talk(1, 12));
    assert_eq!((warm.slot, warm.blocks, warm.loss), (Some(1), 10, Loss::default()), "it goes on: nothing is lost");
    bench.run(A, &talk(1, 12));
    assert_eq!(whole(bench.peek(A, &talk(3, 10)).loss.tokens), 1280);
    let fresh = bench.peek(A, &talk(3, 10)).loss.likely;
    bench.wait(36_000);
    assert!(bench.peek(A, &talk(3, 10)).loss.likely < fresh / 2.0, "idle for hours, it is likely over");
}

#[test]
fn who_shares_a_beginning_cuts_off_the_rest() {
    let mut bench = Bench::new(2);
    let branch = |number: u64, blocks: u64| [talk(9, 5), talk(number, blocks)].concat();
    bench.run(A, &branch(1, 15));
    let other = bench.peek(A, &branch(2, 15));
    assert_eq!((other.slot, other.blocks, other.loss.tokens), (Some(1), 5, 15.0 * 64.0), "though a slot is empty");
    // The same conversation, as it says, has given that branch up.
    let session = Some(7);
    let prompts = [branch(1, 15), branch(3, 15)].map(|path| chain(&path));
    let mut stay = bench.books.admit(B, &Asked { session, ..asked(90, &prompts[0]) }, bench.now).unwrap();
    stay.end(Ending::Whole, bench.now);
    let loss_for = |session| {
        let (prospect, _) = bench.books.peek(B, &Asked { session, ..asked(91, &prompts[1]) }, bench.now).unwrap();
        whole(prospect.loss.tokens)
    };
    assert_eq!([loss_for(session), loss_for(Some(8)), loss_for(None)], [0, 960, 960]);
}

#[test]
fn what_went_on_elsewhere_is_no_loss() {
    let mut bench = Bench::new(1);
    bench.run(A, &talk(1, 10));
    assert!(bench.peek(A, &talk(2, 10)).loss.tokens > 0.0);
    bench.run(B, &talk(1, 12));
    assert_eq!(bench.peek(A, &talk(2, 10)).loss, Loss::default());
    assert_eq!(bench.peek(A, &talk(1, 14)).blocks, 10, "it is still there");
    // Of a common beginning only that.
    let mut bench = Bench::new(1);
    bench.run(A, &[talk(9, 4), talk(1, 12)].concat());
    bench.run(B, &[talk(9, 4), talk(2, 12)].concat());
    assert_eq!(whole(bench.peek(A, &talk(3, 10)).loss.tokens), 12 * 64);
}

#[test]
fn busy_slots_are_seen_and_free_themselves_in_order() {
    let mut bench = Bench::new(2);
    let (_, mut first) = bench.send(A, &talk(1, 10));
    let (_, mut second) = bench.send(A, &talk(2, 10));
    let full = bench.peek(A, &talk(1, 12));
    assert_eq!((full.slot, full.blocks, full.busy.map(|busy| busy.0)), (None, 0, Some(10)));
    assert_eq!((full.loss.tokens, full.loss.likely > 0.99), (320.0, true), "either of both, just used");
    let (_, _third) = bench.send(A, &talk(3, 10));
    bench.wait(1);
    second.end(Ending::Whole, bench.now);
    first.end(Ending::Whole, bench.now);
    // The second's slot was free first, and was given to the third.
    assert_eq!((bench.peek(A, &talk(2, 12)).slot, bench.peek(A, &talk(2, 12)).blocks), (Some(1), 0));
    assert_eq!(bench.peek(A, &talk(1, 12)).blocks, 10);
    assert_eq!(bench.peek(A, &talk(3, 12)).busy.map(|busy| busy.0), Some(10));
}

#[test]
fn who_gives_up_waiting_takes_no_slot() {
    let mut bench = Bench::new(1);
    let (_, mut first) = bench.send(A, &talk(1, 10));
    let (_, second) = bench.send(A, &talk(2, 10));
    drop(second);
    first.end(Ending::Whole, bench.now);
    assert_eq!(bench.peek(A, &talk(1, 12)).blocks, 10);
}

#[test]
fn what_a_server_did_not_take_leaves_its_slot_as_it_was() {
    let mut bench = Bench::new(1);
    bench.run(A, &talk(1, 10));
    let (_, mut refused) = bench.send(A, &talk(2, 90));
    refused.end(Ending::Refused, bench.now);
    assert_eq!((bench.peek(A, &talk(1, 12)).blocks, bench.peek(A, &talk(2, 90)).blocks), (10, 0));
    let (_, cut) = bench.send(A, &talk(1, 30));
    drop(cut);
    assert_eq!(bench.peek(A, &talk(1, 30)).blocks, 10, "what it had computed of the rest is not known");
    let (_, mut late) = bench.send(A, &talk(1, 30));
    late.computed();
    drop(late);
    assert_eq!(bench.peek(A, &talk(1, 30)).blocks, 30, "it was answering");
}

#[test]
fn answers_are_part_of_what_is_held() {
    let mut bench = Bench::new(1);
    let id = bench.run(A, &talk(1, 10));
    bench.books.extend(A, id, &chain(&talk(1, 13)), 830.0);
    assert_eq!(bench.peek(A, &talk(1, 20)).blocks, 13);
    bench.books.extend(A, id, &chain(&talk(2, 20)), 830.0);
    bench.books.extend(A, DecisionId(77), &chain(&talk(1, 30)), 830.0);
    assert_eq!(bench.peek(A, &talk(1, 40)).blocks, 13, "of another request, nothing");
}

#[test]
fn a_server_that_starts_anew_holds_nothing() {
    let mut bench = Bench::new(2);
    bench.run(A, &talk(1, 10));
    let (_, mut stay) = bench.send(A, &talk(2, 10));
    bench.books.forget(A);
    assert_eq!(bench.peek(A, &talk(1, 12)), Prospect { slot: Some(1), ..Prospect::default() });
    stay.end(Ending::Whole, bench.now);
    assert_eq!(bench.peek(A, &talk(2, 12)).blocks, 0);
}

#[test]
fn neither_is_believed_more_until_one_was_wrong() {
    let mut bench = Bench::new(1);
    let trusted = |bench: &Bench| [A, B].map(|at| bench.books.trusted(at).unwrap());
    let id = bench.run(A, &talk(1, 10));
    bench.found(A, id, 10, 0, 0);
    let id = bench.run(A, &talk(1, 12));
    bench.found(A, id, 12, 10, 10);
    assert_eq!(trusted(&bench), [Trust::Untold; 2]);
    // Pushed out, as the book knows and the index does not.
    bench.run(A, &talk(2, 10));
    let id = bench.run(A, &talk(1, 14));
    bench.found(A, id, 14, 0, 12);
    assert_eq!(trusted(&bench), [Trust::Book; 2], "the other is taken to be like it");
    // That one has a host cache.
    bench.run(B, &talk(3, 10));
    bench.run(B, &talk(4, 10));
    let id = bench.run(B, &talk(3, 12));
    bench.found(B, id, 12, 10, 10);
    assert_eq!(trusted(&bench), [Trust::Book, Trust::Index]);
}

#[test]
fn one_odd_answer_does_not_change_what_many_have_shown() {
    let mut bench = Bench::new(1);
    let mut next = 10;
    let mut round = |bench: &mut Bench, found: u32| {
        bench.run(A, &talk(next, 10));
        bench.run(A, &talk(next + 1, 10));
        let id = bench.run(A, &talk(next, 12));
        bench.found(A, id, 12, found, 10);
        next += 2;
        bench.books.trusted(A).unwrap()
    };
    (0..10).for_each(|_| assert_eq!(round(&mut bench, 0), Trust::Book));
    assert_eq!(round(&mut bench, 10), Trust::Book);
    assert_eq!((0..10).map(|_| round(&mut bench, 10)).last(), Some(Trust::Index));
}

#[test]
fn a_request_that_found_what_another_slot_holds_was_given_that_one() {
    let mut bench = Bench::new(2);
    bench.run(A, &talk(1, 10));
    bench.run(A, &talk(2, 10));
    // So long that what it shares seems too little for its slot.
    let (id, prompt) = (DecisionId(50), chain(&talk(2, 12)));
    let long = Asked { bytes: 99_999, tokens: 25_000.0, ..asked(id.0, &prompt) };
    let mut stay = bench.books.admit(A, &long, bench.now).unwrap();
    stay.end(Ending::Whole, bench.now);
    assert_eq!([bench.peek(A, &talk(1, 12)).blocks, bench.peek(A, &talk(2, 14)).blocks], [0, 12]);
    assert_eq!(bench.peek(A, &talk(2, 14)).slot, Some(1));
    bench.found(A, id, 12, 10, 10);
    assert_eq!([bench.peek(A, &talk(1, 12)).blocks, bench.peek(A, &talk(2, 14)).blocks], [10, 12]);
    assert_eq!(bench.peek(A, &talk(2, 14)).slot, Some(0));
}

#[test]
fn whoever_finds_a_book_open_goes_without() {
    let bench = Bench::new(1);
    let prompt = chain(&talk(1, 4));
    let open = bench.books.cells[0].kept.lock();
    assert_eq!(bench.books.peek(A, &asked(1, &prompt), bench.now), None);
    assert!(bench.books.admit(A, &asked(1, &prompt), bench.now).is_none());
    bench.books.forget(A);
    bench.books.extend(A, DecisionId(1), &prompt, 1.0);
    drop(open);
    assert!(bench.books.admit(A, &asked(1, &prompt), bench.now).is_some());
}

#[test]
fn an_end_needs_no_lock() {
    let mut bench = Bench::new(1);
    let (_, mut stay) = bench.send(A, &talk(1, 4));
    {
        let _open = bench.books.cells[0].kept.lock();
        stay.end(Ending::Whole, bench.now);
    }
    assert_eq!(bench.peek(A, &talk(1, 5)).slot, Some(0));
}

#[test]
fn those_held_back_are_counted() {
    let bench = Bench::new(1);
    let held = [bench.books.hold_back(), bench.books.hold_back()];
    assert_eq!(bench.books.held_back(), 2);
    drop(held);
    assert_eq!(bench.books.held_back(), 0);
}

#[tokio::test]
async fn a_free_slot_wakes_who_waits_for_one() {
    let mut bench = Bench::new(1);
    let (_, stay) = bench.send(A, &talk(1, 4));
    let books = Arc::clone(&bench.books);
    let waiting = books.freed();
    drop(stay);
    waiting.await;
}

/// Sends and ends 3,000 requests to either server, up to three at once.
fn storm(books: &Arc<SlotBooks>, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut stays = Vec::new();
    for step in 0..3000 {
        let at = [A, B][random.usize(..2)];
        let prompt = chain(&talk(random.u64(0..9), random.u64(1..20)));
        let (id, now) = (seed * 1_000_000 + step, Now(1 + step * 1_000_000));
        let _prospect = books.peek(at, &asked(id, &prompt), now);
        stays.extend(books.admit(at, &asked(id, &prompt), now));
        if stays.len() > 2 {
            stays.swap_remove(random.usize(..3)).end(Ending::Whole, now);
        }
    }
}

#[test]
fn many_at_once_leave_books_that_balance() {
    let bench = Bench::new(3);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let books = &bench.books;
            scope.spawn(move || storm(books, seed));
        }
    });
    // All have ended: whoever comes finds a slot.
    for at in [A, B] {
        let prompt = chain(&talk(99, 3));
        assert!(bench.books.peek(at, &asked(1, &prompt), Now(u64::MAX)).unwrap().0.slot.is_some());
    }
}
