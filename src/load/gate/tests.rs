//! The gate: one test for each cause of refusal, then faults, and (`oracle`) random streams against a naive model.

mod oracle;

use super::*;
use crate::wire::beacon::{Facts, Head, Load, Message};
use crate::wire::key::Key;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The gateway's clock at `Now(0)`.
const UNIX_NS: u64 = 1_750_000_000_000_000_000;
const SECOND: u64 = 1_000_000_000;
const PERIOD: u64 = SECOND / 20;
const SKEW: Duration = Duration::from_secs(30);
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const REMOTE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));
const SLOT: ReplicaSlot = ReplicaSlot(3);

fn key(id: u32, fill: u8) -> Key {
    Key::new(id, &[fill; 16]).unwrap()
}

fn sender() -> SenderId {
    SenderId::of("a:1")
}

/// A beacon of [`sender`], sent at `now` by the gateway's clock.
fn message(sequence: u64, now: u64) -> Message {
    Message {
        head: Head {
            sender: sender(),
            incarnation: 100,
            sequence,
            sent_unix_ns: UNIX_NS + now,
            period_us: u32::try_from(PERIOD / 1000).unwrap(),
        },
        load: Load { ready: true, ..Load::default() },
        facts: Facts::default(),
    }
}

fn encoded(message: &Message, key: Option<&Key>) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(key, &mut out).unwrap();
    out
}

/// A gate that knows [`sender`] at [`SLOT`], and what it goes by.
struct World {
    gate: Gate,
    keys: Keys,
    registration: bool,
}

/// What the tests ask of a beacon that was let in: its place, and first, restart, cache reset, new facts.
type Answer = Result<(Who, [bool; 4]), Refusal>;

const FIRST: [bool; 4] = [true, false, false, false];
const USUAL: [bool; 4] = [false; 4];
const RESTART: [bool; 4] = [false, true, false, false];
const RESET: [bool; 4] = [false, false, true, false];

impl World {
    fn new(keys: Keys) -> Self {
        let gate = Gate::new(16);
        gate.set_directory(vec![(sender(), SLOT)]);
        Self { gate, keys, registration: false }
    }

    fn unkeyed() -> Self {
        Self::new(Keys::default())
    }

    fn raw(&self, datagram: &[u8], from: IpAddr, now: u64) -> Answer {
        let rules = Rules { keys: &self.keys, clock_skew: SKEW, registration: self.registration };
        let heard = self.gate.admit(datagram, from, &rules, UNIX_NS + now, Now(now))?;
        Ok((heard.who, [heard.is_first, heard.is_restart, heard.is_cache_reset, heard.are_facts_new]))
    }

    /// Says `message`, signed if there are keys.
    fn say(&self, message: &Message, now: u64) -> Answer {
        self.raw(&encoded(message, self.keys.signing()), LOCAL, now)
    }

    #[track_caller]
    fn expect(&self, message: &Message, now: u64, expected: [bool; 4]) {
        assert_eq!(self.say(message, now), Ok((Who::Replica(SLOT), expected)));
    }

    #[track_caller]
    fn refuse(&self, message: &Message, now: u64, expected: Refusal) {
        assert_eq!(self.say(message, now), Err(expected));
    }
}

#[test]
fn malformed_datagrams_are_refused_by_cause() {
    let world = World::unkeyed();
    let good = encoded(&message(1, 0), None);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        world.raw(&bytes, LOCAL, 0).unwrap_err()
    };
    assert_eq!(with(0, b'e'), Refusal::NotABeacon);
    assert_eq!(with(4, 2), Refusal::Version);
    assert_eq!(with(5, 1), Refusal::Version);
    assert_eq!(with(6, 0), Refusal::Length);
    assert_eq!(world.raw(&good[..50], LOCAL, 0), Err(Refusal::Length));
    assert_eq!(world.gate.refused_last(SLOT), None, "nobody's");
    assert_eq!(with(51, 0xff), Refusal::Malformed);
    assert_eq!(world.gate.refused_last(SLOT), Some((Refusal::Malformed, Now(0))));
    world.expect(&message(1, 0), 0, FIRST);
}

#[test]
fn unsigned_beacons_are_for_loopback_without_keys() {
    let world = World::unkeyed();
    let bytes = |sequence| encoded(&message(sequence, 0), None);
    assert_eq!(world.raw(&bytes(1), REMOTE, 0), Err(Refusal::NotLoopback));
    for (sequence, from) in [
        (1, LOCAL),
        (2, Ipv4Addr::new(127, 9, 9, 9).into()),
        (3, Ipv6Addr::LOCALHOST.into()),
        (4, Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()),
    ] {
        assert!(world.raw(&bytes(sequence), from, 0).is_ok(), "{from}");
    }
    let mapped = IpAddr::V6(Ipv4Addr::new(10, 0, 0, 7).to_ipv6_mapped());
    assert_eq!(world.raw(&bytes(5), mapped, 0), Err(Refusal::NotLoopback));
    assert_eq!(world.raw(&encoded(&message(5, 0), Some(&key(1, 1))), LOCAL, 0), Err(Refusal::UnknownKey));

    let world = World::new(key(1, 1).into());
    assert_eq!(world.raw(&bytes(1), LOCAL, 0), Err(Refusal::NotSigned));
}

#[test]
fn every_key_of_the_file_is_accepted_and_no_other() {
    let keys = Keys::parse(&format!("2:{}\n1:{}", "02".repeat(16), "01".repeat(16))).unwrap();
    let world = World::new(keys);
    let say = |sequence, key: Key| world.raw(&encoded(&message(sequence, 0), Some(&key)), REMOTE, 0).map(|_| ());
    assert_eq!(say(1, key(1, 1)), Ok(()));
    assert_eq!(say(2, key(2, 2)), Ok(()));
    assert_eq!(say(3, key(3, 3)), Err(Refusal::UnknownKey));
    assert_eq!(say(3, key(2, 1)), Err(Refusal::WrongMac));
    assert_eq!(world.gate.refused_last(SLOT), Some((Refusal::WrongMac, Now(0))));
    assert_eq!(say(3, key(1, 1)), Ok(()));
}

/// A forger without the secret cannot move the sequence, whatever he writes.
#[test]
fn a_forged_sequence_mutes_nobody() {
    let world = World::new(key(1, 1).into());
    world.expect(&message(1, 0), 0, FIRST);
    let forged = encoded(&message(u64::MAX, 0), Some(&key(1, 9)));
    assert_eq!(world.raw(&forged, REMOTE, 0), Err(Refusal::WrongMac));
    let mut turned = encoded(&message(2, 0), world.keys.signing());
    turned[39] = 0x7f;
    assert_eq!(world.raw(&turned, REMOTE, 0), Err(Refusal::WrongMac));
    world.expect(&message(2, PERIOD), PERIOD, USUAL);
}

#[test]
fn unknown_senders_are_refused_unless_they_may_register() {
    let mut world = World::new(key(1, 1).into());
    let mut stranger = message(1, 0);
    stranger.head.sender = SenderId(9);
    world.refuse(&stranger, 0, Refusal::UnknownSender);
    world.registration = true;
    world.refuse(&stranger, 0, Refusal::UnknownSender); // it does not say where it is
    stranger.facts.url = Some("http://b:1".to_owned());
    let facts_too = [true, false, false, true];
    assert_eq!(world.say(&stranger, 0), Ok((Who::Stranger(SenderId(9)), facts_too)));
    world.refuse(&stranger, 1, Refusal::Replayed);
    // It becomes a replica: heard first there, and what was heard before is not heard again.
    let slot = ReplicaSlot(4);
    world.gate.set_directory(vec![(sender(), SLOT), (SenderId(9), slot)]);
    world.refuse(&stranger, 2, Refusal::Replayed);
    assert_eq!(world.gate.refused_last(slot), Some((Refusal::Replayed, Now(2))));
    stranger.head.sequence = 2;
    assert_eq!(world.say(&stranger, 3), Ok((Who::Replica(slot), facts_too)));
    // It moves, and leaves.
    world.gate.set_directory(vec![(SenderId(9), ReplicaSlot(5))]);
    world.refuse(&stranger, 4, Refusal::Replayed);
    stranger.head.sequence = 3;
    assert_eq!(world.say(&stranger, 5), Ok((Who::Replica(ReplicaSlot(5)), facts_too)));
    world.refuse(&message(9, 0), 5, Refusal::UnknownSender);

    // Without a key, anyone could.
    let mut world = World::unkeyed();
    world.registration = true;
    world.refuse(&stranger, 0, Refusal::UnknownSender);
}

#[test]
fn strangers_are_bounded_and_the_oldest_makes_room() {
    let mut world = World::new(key(1, 1).into());
    world.registration = true;
    let stranger = |id: usize| {
        let mut stranger = message(1, 0);
        stranger.head.sender = SenderId(u64::try_from(id).unwrap() + 1);
        stranger.facts.url = Some("http://b:1".to_owned());
        stranger
    };
    for id in 0..=STRANGERS_MAX {
        assert!(world.say(&stranger(id), u64::try_from(id).unwrap()).is_ok(), "{id}");
    }
    world.refuse(&stranger(1), 0, Refusal::Replayed);
    world.refuse(&stranger(STRANGERS_MAX), 0, Refusal::Replayed);
    assert!(world.say(&stranger(0), 0).is_ok(), "its place was taken");
}

#[test]
fn clocks_that_are_off_are_refused_either_way() {
    let world = World::unkeyed();
    let skew = 30 * SECOND;
    let now = 3600 * SECOND;
    for (sent, ok) in [(now - skew - 1, false), (now - skew, true), (now + skew, true), (now + skew + 1, false)] {
        let answer = world.say(&message(sent, sent), now);
        assert_eq!(answer.map(|_| ()), if ok { Ok(()) } else { Err(Refusal::Clock) }, "{sent}");
    }
    world.refuse(&message(u64::MAX, now + 3600 * SECOND), now, Refusal::Clock);
}

#[test]
fn a_beacon_counts_once_and_never_after_a_later_one() {
    let world = World::unkeyed();
    let say = |sequence| message(sequence, 0);
    world.expect(&say(1000), 0, FIRST);
    world.refuse(&say(1000), 0, Refusal::Replayed);
    world.expect(&say(1003), 0, USUAL);
    for (sequence, refusal) in [(1001, Refusal::Late), (1000, Refusal::Replayed), (1003, Refusal::Replayed)] {
        world.refuse(&say(sequence), 0, refusal);
    }
    world.expect(&say(1063), 0, USUAL);
    world.refuse(&say(1000), 0, Refusal::Replayed);
    world.refuse(&say(1001), 0, Refusal::Late);
    world.expect(&say(1064), 0, USUAL);
    world.refuse(&say(1000), 0, Refusal::Replayed); // beyond the window: not known any more
    world.refuse(&say(1001), 0, Refusal::Late);
    world.expect(&say(u64::MAX), 0, USUAL);
    world.refuse(&say(1064), 0, Refusal::Replayed);
}

#[test]
fn an_engine_that_restarts_is_told_and_its_leftovers_are_not_heard() {
    let world = World::unkeyed();
    let of = |incarnation, sequence, now| {
        let mut message = message(sequence, now);
        message.head.incarnation = incarnation;
        message
    };
    world.expect(&of(100, 1, 0), 0, FIRST);
    world.expect(&of(200, 2, PERIOD), PERIOD, RESTART);
    world.refuse(&of(100, 3, PERIOD), PERIOD, Refusal::Leftover);
    world.expect(&of(200, 4, 2 * PERIOD), 2 * PERIOD, USUAL);
    // The engine's clock was ahead when it said 200. Three periods of silence later, it is believed again.
    world.refuse(&of(150, 5, 5 * PERIOD), 5 * PERIOD, Refusal::Leftover);
    world.expect(&of(150, 6, 5 * PERIOD + 1), 5 * PERIOD + 1, RESTART);
    assert_eq!(world.gate.refused_last(SLOT), Some((Refusal::Leftover, Now(5 * PERIOD))));
}

#[test]
fn a_cache_reset_is_told_once() {
    let world = World::unkeyed();
    let mut of = message(1, 0);
    let mut say = |incarnation, cache_resets, expected| {
        (of.head.incarnation, of.load.cache_resets) = (incarnation, cache_resets);
        world.expect(&of, 0, expected);
        of.head.sequence += 1;
    };
    say(1, 5, FIRST);
    say(1, 5, USUAL);
    say(1, 6, RESET);
    say(1, 6, USUAL);
    say(1, 0, RESET);
    say(2, 9, RESTART);
    say(2, 9, USUAL);
}

#[test]
fn facts_are_told_when_they_change_and_anew_after_a_restart() {
    let world = World::unkeyed();
    let mut of = message(1, 0);
    let mut say = |incarnation, model: &str| {
        of.head.incarnation = incarnation;
        of.facts.models = Some(model.to_owned()).filter(|model| !model.is_empty()).into_iter().collect();
        let answer = world.say(&of, 0).unwrap();
        of.head.sequence += 1;
        answer.1
    };
    assert_eq!(say(1, "a"), [true, false, false, true]);
    assert_eq!(say(1, ""), USUAL);
    assert_eq!(say(1, "a"), USUAL);
    assert_eq!(say(1, "b"), [false, false, false, true]);
    assert_eq!(say(2, "b"), [false, true, false, true]);
    assert_eq!(say(2, "b"), USUAL);
}

#[test]
fn another_replica_in_a_slot_starts_anew() {
    let world = World::unkeyed();
    world.expect(&message(5, 0), 0, FIRST);
    world.refuse(&message(5, 0), 0, Refusal::Replayed);
    world.gate.set_directory(vec![(SenderId(9), SLOT), (SenderId(9), ReplicaSlot(0)), (sender(), ReplicaSlot(16))]);
    world.gate.forget(SLOT);
    world.refuse(&message(6, 0), 0, Refusal::UnknownSender);
    assert_eq!(world.gate.refused_last(SLOT), None);
    let mut other = message(1, 0);
    other.head.sender = SenderId(9);
    world.expect(&other, 0, FIRST);
    // The same sender in the same slot is forgotten too, but for its order.
    world.gate.forget(SLOT);
    world.refuse(&other, 0, Refusal::Replayed);
    other.head.sequence = 2;
    world.expect(&other, 0, FIRST);
}

/// Its clock was ahead when it started: its sequences are an hour ahead, its times are right. It is heard; and when it
/// restarts, its successor is too, three periods later.
#[test]
fn a_sender_whose_clock_was_an_hour_ahead_mutes_nobody() {
    let world = World::unkeyed();
    let ahead = 3600 * 1_000_000;
    world.refuse(&message(ahead, 3600 * SECOND), 0, Refusal::Clock);
    world.expect(&message(ahead + 1, PERIOD), PERIOD, FIRST);
    world.expect(&message(ahead + 2, 2 * PERIOD), 2 * PERIOD, USUAL);
    world.refuse(&message(1000, 5 * PERIOD), 5 * PERIOD, Refusal::Replayed);
    world.expect(&message(1001, 6 * PERIOD), 6 * PERIOD, USUAL);
    world.expect(&message(1002, 7 * PERIOD), 7 * PERIOD, USUAL);
    // What the predecessor sent cannot be played back now, though its sequences are higher.
    world.refuse(&message(ahead + 1, PERIOD), 8 * PERIOD, Refusal::Leftover);
    world.refuse(&message(ahead + 2, 2 * PERIOD), 20 * PERIOD, Refusal::Leftover);
    world.expect(&message(1003, 21 * PERIOD), 21 * PERIOD, USUAL);
}

/// The clock is set back by ten seconds and the sender restarts: until its clock has caught up, what it sends could be
/// old; then it is heard.
#[test]
fn a_clock_set_back_within_the_bound_mutes_until_it_has_caught_up() {
    let world = World::unkeyed();
    let start = 100 * SECOND;
    world.expect(&message(start / 1000, start), start, FIRST);
    let back = 10 * SECOND;
    let mut heard_after = None;
    for beat in 1..1000 {
        let now = start + beat * PERIOD;
        let answer = world.say(&message((start - back) / 1000 + beat, now - back), now);
        if answer.is_ok() {
            heard_after = heard_after.or(Some(now - start));
        }
        assert_eq!(answer.is_ok(), now - start > back, "{answer:?} after {beat} beacons");
    }
    assert_eq!(heard_after, Some(back + PERIOD));
}

/// Two that send for one replica, by mistake: one is heard, they do not take turns.
#[test]
fn of_two_that_send_for_one_replica_one_is_heard() {
    let world = World::unkeyed();
    let (mut first, mut second) = (0, 0);
    for beat in 0..1000 {
        let now = beat * PERIOD;
        first += u32::from(world.say(&message(5_000_000 + beat, now), now).is_ok());
        second += u32::from(world.say(&message(1_000_000 + beat, now + 1), now + 1).is_ok());
    }
    assert_eq!((first, second), (1000, 0));
}

#[test]
fn refusals_have_names_and_words_of_their_own() {
    for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
        assert_eq!(refusal.index(), index);
        assert_eq!(Refusal::unpack(refusal.pack(Now(77))), Some((refusal, Now(77))));
        let names = Refusal::ALL.iter().filter(|other| other.as_str() == refusal.as_str());
        let words = Refusal::ALL.iter().filter(|other| other.to_string() == refusal.to_string());
        assert_eq!((names.count(), words.count()), (1, 1));
    }
    assert_eq!(Refusal::unpack(0), None);
    assert_eq!(Refusal::unpack(31), None);
}

/// Threads that admit and one that replaces the directory under them: no beacon is admitted twice.
#[test]
fn several_threads_admit_no_beacon_twice() {
    let world = World::unkeyed();
    let beacons: Vec<Vec<u8>> = (1..=2000).map(|sequence| encoded(&message(sequence, 0), None)).collect();
    let admitted: Vec<AtomicU64> = beacons.iter().map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for (beacon, admitted) in beacons.iter().zip(&admitted) {
                    admitted.fetch_add(world.raw(beacon, LOCAL, 0).is_ok().into(), Relaxed);
                }
            });
        }
        for turn in 0..200 {
            world.gate.set_directory(vec![(SenderId(turn), ReplicaSlot(0)), (sender(), SLOT)]);
        }
    });
    assert!(admitted.iter().all(|times| times.load(Relaxed) <= 1));
    assert_eq!(admitted.last().unwrap().load(Relaxed), 1);
}
