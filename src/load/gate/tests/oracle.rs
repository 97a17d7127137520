//! Random streams of a sender, with loss, duplication, reordering, replays, restarts and clocks that are set, against a
//! model that keeps everything it ever admitted and looks through all of it.

use super::*;

/// A beacon, by what its order depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sent {
    incarnation: u64,
    sequence: u64,
    sent_ns: u64,
}

/// Everything that was admitted: the orders so far, the last being the present one, each with its beacons and when each
/// was heard.
#[derive(Default)]
struct Model {
    orders: Vec<Vec<(Sent, u64)>>,
}

impl Model {
    fn admit(&mut self, sent: Sent, now: u64) -> Result<(), Refusal> {
        if sent.sent_ns.abs_diff(UNIX_NS + now) > 30 * SECOND {
            return Err(Refusal::Clock);
        }
        let Some((present, past)) = self.orders.split_last_mut() else {
            self.orders.push(vec![(sent, now)]);
            return Ok(());
        };
        let (last, heard) = *present.last().unwrap();
        let is_silent = now > heard + 3 * PERIOD;
        let was_before = |order: &[(Sent, u64)]| order.iter().all(|(other, _)| other.sent_ns < sent.sent_ns);
        if sent.incarnation < last.incarnation && !is_silent || !past.iter().all(|order| was_before(order)) {
            return Err(Refusal::Leftover);
        }
        if present.iter().all(|(other, _)| other.sequence < sent.sequence) {
            present.push((sent, now));
            return Ok(());
        }
        if is_silent && was_before(present) {
            self.orders.push(vec![(sent, now)]);
            return Ok(());
        }
        let newest = present.iter().map(|(other, _)| other.sequence).max().unwrap();
        let is_near = newest - sent.sequence < order::WINDOW;
        let is_known = present.iter().any(|(other, _)| other.sequence == sent.sequence);
        Err(if is_near && !is_known { Refusal::Late } else { Refusal::Replayed })
    }
}

/// A sender, and the network between it and the gate.
struct Stream {
    r: fastrand::Rng,
    now: u64,
    /// By how much its clock is off.
    clock: i64,
    incarnation: u64,
    sequence: u64,
    /// Everything it ever sent, for replays.
    sent: Vec<Sent>,
    /// Under way: when it arrives, and what.
    under_way: Vec<(u64, Sent)>,
}

impl Stream {
    fn new(seed: u64) -> Self {
        let r = fastrand::Rng::with_seed(seed);
        let (sent, under_way) = (Vec::new(), Vec::new());
        let mut stream = Self { r, now: 3600 * SECOND, clock: 0, incarnation: 0, sequence: 0, sent, under_way };
        stream.start();
        stream.incarnation = stream.unix_ns() / 1000;
        stream
    }

    fn unix_ns(&self) -> u64 {
        (UNIX_NS + self.now).checked_add_signed(self.clock).unwrap()
    }

    /// The sender starts.
    fn start(&mut self) {
        self.sequence = self.unix_ns() / 1000;
    }

    /// One period passes: what arrives.
    fn step(&mut self) -> Vec<Sent> {
        self.now += PERIOD;
        match self.r.u32(..1000) {
            0..4 => self.start(),
            4..8 => self.incarnation = self.unix_ns() / 1000,
            8..10 => self.now += self.r.u64(..100 * PERIOD),
            10..12 => self.clock = self.r.i64(-12..12) * 1_000_000_000,
            12 => self.clock = 3_600_000_000_000 * self.r.i64(-1..=1),
            13..20 => self.clock = 0,
            _ => {}
        }
        self.sequence += 1;
        let sent = Sent { incarnation: self.incarnation, sequence: self.sequence, sent_ns: self.unix_ns() };
        self.sent.push(sent);
        for _ in 0..[0, 0, 1, 1, 1, 2][self.r.usize(..6)] {
            let delay = if self.r.u8(..4) == 0 { self.r.u64(..80 * PERIOD) } else { 0 };
            self.under_way.push((self.now + delay, sent));
        }
        if self.r.u8(..8) == 0 {
            let back = self.r.usize(1..=self.sent.len().min(700));
            self.under_way.push((self.now, self.sent[self.sent.len() - back]));
        }
        let now = self.now;
        self.under_way.extract_if(.., |(arrives, _)| *arrives <= now).map(|(_, sent)| sent).collect()
    }
}

fn said(sent: Sent) -> Message {
    let mut message = message(sent.sequence, 0);
    (message.head.incarnation, message.head.sent_unix_ns) = (sent.incarnation, sent.sent_ns);
    message
}

/// Runs a stream through gate and model; how many were admitted.
fn run(seed: u64, periods: usize) -> usize {
    let (world, mut model, mut stream) = (World::unkeyed(), Model::default(), Stream::new(seed));
    let mut last = None;
    for _ in 0..periods {
        for sent in stream.step() {
            let answer = world.say(&said(sent), stream.now);
            let expected = model.admit(sent, stream.now);
            assert_eq!(answer.map(|_| ()), expected, "seed {seed}: {sent:?} at {}", stream.now);
            if let Ok((_, [is_first, is_restart, ..])) = answer {
                let before: Option<u64> = last.replace(sent.incarnation);
                assert_eq!(
                    (is_first, is_restart),
                    (before.is_none(), before.is_some_and(|was| was != sent.incarnation))
                );
            }
        }
    }
    let admitted: Vec<Sent> = model.orders.iter().flatten().map(|(sent, _)| *sent).collect();
    let once: std::collections::HashSet<Sent> = admitted.iter().copied().collect();
    assert_eq!(once.len(), admitted.len(), "seed {seed}: one was heard twice");

    // Whatever was before: its clock is right, it stays up, and is heard for good after the clock's bound, and three
    // periods of silence for the order and three for the incarnation.
    stream.clock = 0;
    stream.start();
    let right = stream.now;
    while stream.now < right + 60 * SECOND {
        stream.now += PERIOD;
        stream.sequence += 1;
        let sent = Sent { incarnation: 1, sequence: stream.sequence, sent_ns: stream.unix_ns() };
        let answer = world.say(&said(sent), stream.now);
        assert!(answer.is_ok() || stream.now <= right + 30 * SECOND + 8 * PERIOD, "seed {seed}: {answer:?} is mute");
    }
    admitted.len()
}

#[test]
fn random_streams_are_judged_as_by_a_model_that_forgets_nothing() {
    let admitted: usize = (0..200).map(|seed| run(seed, 1000)).sum();
    assert!(admitted > 200 * 200, "{admitted} of 200 streams of 1000 beacons");
    bolero::check!().with_type::<u64>().for_each(|&seed| {
        run(seed, 100);
    });
}
