//! The rules of passive ejection, the table of transitions, and health under many threads.

use super::*;
use machine::{Cause, EJECTIONS_MAX};
use std::time::Duration;

const RULES: EjectionConfig = EjectionConfig {
    consecutive_failures: 2,
    base: Duration::from_secs(2),
    max: Duration::from_secs(5),
    max_percent: 50,
};
const PEERS: [ReplicaSlot; 2] = [ReplicaSlot(0), ReplicaSlot(1)];

fn at(seconds: u64) -> Now {
    Now(seconds * 1_000_000_000)
}

#[test]
fn ejection_doubles_and_probation_lets_one_through() {
    let health = HealthColumns::new(2);
    let bad = PEERS[0];
    assert!(!health.failed(bad, &PEERS, &RULES, at(0)));
    assert!(health.failed(bad, &PEERS, &RULES, at(0)));
    assert!(!health.admits(bad, 0, at(1)));
    assert_eq!(health.state(bad, at(2)), HealthState::Probation);
    assert!(health.admits(bad, 7, at(2)), "streams from before do not keep it out");
    health.placed(bad, at(2));
    assert!(!health.admits(bad, 0, at(2)), "one at a time");
    assert!(health.failed(bad, &PEERS, &RULES, at(2)), "on probation one failure is enough");
    assert_eq!(health.state(bad, at(5)), HealthState::Ejected);
    assert_eq!(health.state(bad, at(6)), HealthState::Probation);
    health.succeeded(bad);
    assert_eq!(health.state(bad, at(6)), HealthState::Healthy);
    health.placed(bad, at(6));
    assert!(health.admits(bad, 1, at(6)), "no lease for the healthy");
}

#[test]
fn a_probe_that_never_ends_gives_way_to_the_next() {
    let health = HealthColumns::new(2);
    let bad = PEERS[0];
    assert!((0..2).any(|_| health.failed(bad, &PEERS, &RULES, at(0))));
    // Decided before it was ejected, placed again after: the lease counts from the probation on.
    health.placed(bad, at(1));
    assert!(!health.admits(bad, 0, at(2)) && !health.admits(bad, 0, at(31)));
    assert!(health.admits(bad, 0, at(32)));
}

#[test]
fn failures_from_before_an_ejection_do_not_prolong_it() {
    let health = HealthColumns::new(2);
    let ejected = (0..18).filter(|_| health.failed(PEERS[0], &PEERS, &RULES, at(0))).count();
    assert_eq!(ejected, 1);
    assert_eq!(health.state(PEERS[0], at(2)), HealthState::Probation);
}

#[test]
fn a_pool_is_never_emptied() {
    let health = HealthColumns::new(2);
    let eject = |slot| (0..4).any(|_| health.failed(slot, &PEERS, &RULES, at(0)));
    assert!(eject(PEERS[0]));
    assert!(!eject(PEERS[1]), "half of the pool is out already");
    let later = (0..4).any(|_| health.failed(PEERS[1], &PEERS, &RULES, at(2)));
    assert!(!later, "the other is on probation: it may fail yet");
    let alone = HealthColumns::new(1);
    assert!(!(0..9).any(|_| alone.failed(PEERS[0], &PEERS[..1], &RULES, at(0))));
}

#[test]
fn success_between_failures_starts_the_count_again() {
    let health = HealthColumns::new(2);
    for _ in 0..9 {
        assert!(!health.failed(PEERS[0], &PEERS, &RULES, at(0)));
        health.succeeded(PEERS[0]);
    }
}

/// The states of the table: all that differ in what an event makes of them, but for drains, which nothing looks at.
fn states() -> Vec<(&'static str, State)> {
    let healthy = State::default();
    let of = |phase| State { phase, ..healthy };
    let ejected = Phase::Ejected { until_ms: 60_000 };
    let not_ready = State { phase: Phase::Down(Cause::NotReady), said: Said::NotReady, ..healthy };
    vec![
        ("starting", of(Phase::Starting)),
        ("starting, joined late", State { is_new: true, ..of(Phase::Starting) }),
        ("starting, asked in vain", of(Phase::InVain)),
        ("starting, says not ready", State { said: Said::NotReady, ..of(Phase::InVain) }),
        ("healthy", healthy),
        ("healthy, one check failed", State { checks_failed: 1, ..healthy }),
        ("healthy, one check timed out", State { checks_failed: 1, is_slow: true, ..healthy }),
        ("healthy, says ready", State { said: Said::Ready, ..healthy }),
        ("healthy, beacons silent", State { said: Said::Silent, ..healthy }),
        ("healthy, ejected once before", State { ejections: 1, ..healthy }),
        ("ejected", State { ejections: 1, ..of(ejected) }),
        ("probation", State { ejections: 1, ..of(Phase::Ejected { until_ms: 1_000 }) }),
        ("down: checks", State { checks_failed: 2, ..of(Phase::Down(Cause::Checks)) }),
        ("down: checks, says ready", State { checks_failed: 2, said: Said::Ready, ..of(Phase::Down(Cause::Checks)) }),
        ("down: says not ready", not_ready),
        ("down: silence", State { checks_failed: 1, said: Said::Silent, ..of(Phase::Down(Cause::Silence)) }),
        ("healthy, drains by beacon", State { drains: Drains(2), ..healthy }),
    ]
}

fn events() -> Vec<(&'static str, Event)> {
    let blame = |is_limit, pool_can_spare| {
        Event::RequestFailed(Blame {
            is_limit,
            pool_can_spare,
            base: Duration::from_secs(2),
            max: Duration::from_secs(60),
        })
    };
    vec![
        ("joined at start", Event::Joined { is_late: false }),
        ("joined late", Event::Joined { is_late: true }),
        ("nobody checks", Event::Trusted),
        ("check ok", Event::CheckOk),
        ("check failed (2 may)", Event::CheckFailed { limit: 2 }),
        ("check timed out (2 may)", Event::CheckTimedOut { limit: 2 }),
        ("request ok", Event::RequestOk),
        ("request failed, not the last straw", blame(false, true)),
        ("request failed, as many as may", blame(true, true)),
        ("the same, but the pool needs it", blame(true, false)),
        ("connection refused", Event::Refused),
        ("beacon: ready", Event::SaidReady),
        ("beacon: not ready", Event::SaidNotReady),
        ("beacons fall silent", Event::FellSilent),
        ("restarted", Event::Restarted),
        ("drained by admin", Event::Drained(DrainCause::Admin)),
        ("undrained by beacon", Event::Undrained(DrainCause::Beacon)),
        ("left", Event::Left),
    ]
}

/// A state in words: its name, and all that is not as in a replica of which nothing else is to be said.
fn in_words(state: State, now: Now) -> String {
    let mut words = vec![match state.phase {
        Phase::InVain => "starting in vain".to_owned(),
        Phase::Ejected { until_ms } if !state.is_on_probation(now) => {
            format!("ejected for {} s", until_ms / 1000 - now.0 / 1_000_000_000)
        }
        Phase::Down(cause) => match cause {
            Cause::Checks => "down (checks)".to_owned(),
            Cause::NotReady => "down (not ready)".to_owned(),
            Cause::Silence => "down (silence)".to_owned(),
        },
        Phase::Starting | Phase::Healthy | Phase::Ejected { .. } => HealthState::of(state, now).as_str().to_owned(),
    }];
    let mut say = |is_so: bool, text: String| words.extend(is_so.then_some(text));
    say(state.checks_failed > 0, format!("failed checks: {}", state.checks_failed));
    say(state.is_slow, "the last for time".to_owned());
    say(state.ejections > 0, format!("ejections: {}", state.ejections));
    say(state.said == Said::Ready, "said ready".to_owned());
    say(state.said == Said::NotReady, "said not ready".to_owned());
    say(state.said == Said::Silent, "silent".to_owned());
    say(state.is_new, "will warm up".to_owned());
    for cause in state.drains.causes() {
        say(true, format!("drains by {}", cause.as_str()));
    }
    words.join(", ")
}

/// The whole table, as people read it.
fn table() -> String {
    let now = at(30);
    let mut text = String::from(
        "Every transition of the health of a replica: from each state, by each event. What changes nothing is left out.\n\
         Behind the arrow is the state that follows; in brackets what is done beside that.\n",
    );
    for (name, state) in states() {
        text.push_str(&format!("\n{name}: {}\n", in_words(state, now)));
        let mut same = Vec::new();
        for (event_name, event) in events() {
            let (after, effects) = next(state, event, now);
            let done = [
                (effects.is_ejected, "counts as an ejection"),
                (effects.warms_up, "warms up"),
                (effects.check_now, "checked at once"),
            ];
            let done: Vec<_> = done.iter().filter(|(is_so, _)| *is_so).map(|(_, text)| *text).collect();
            if after == state && done.is_empty() {
                same.push(event_name);
                continue;
            }
            let done = if done.is_empty() { String::new() } else { format!(" [{}]", done.join(", ")) };
            text.push_str(&format!("  {event_name:<36}-> {}{done}\n", in_words(after, now)));
        }
        text.push_str(&format!("  no change: {}\n", if same.is_empty() { "-".to_owned() } else { same.join("; ") }));
    }
    text
}

/// `EMBERLANE_BLESS=1` writes the table anew.
#[test]
fn the_table_of_transitions_is_the_one_on_record() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/health/transitions.txt");
    let table = table();
    if std::env::var_os("EMBERLANE_BLESS").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let on_record = std::fs::read_to_string(path).unwrap_or_default();
    for (number, (found, expected)) in table.lines().zip(on_record.lines()).enumerate() {
        assert_eq!(found, expected, "line {}; if that is meant: EMBERLANE_BLESS=1", number + 1);
    }
    assert_eq!(table.lines().count(), on_record.lines().count(), "if that is meant: EMBERLANE_BLESS=1");
}

/// Any state, from a number.
fn any_state(random: &mut fastrand::Rng) -> State {
    let (_, mut state) = random.choice(states()).unwrap();
    state.drains = Drains(random.u8(..8));
    state.ejections = random.u8(..=EJECTIONS_MAX);
    state.checks_failed = random.u16(..=CHECKS_MAX);
    (state.is_slow, state.is_new) = (random.bool(), random.bool());
    state
}

#[test]
fn a_word_holds_a_whole_state() {
    bolero::check!().with_type::<u64>().for_each(|seed| {
        let state = any_state(&mut fastrand::Rng::with_seed(*seed));
        assert_eq!(unpack(pack(state)), state);
        assert_eq!(pack(state) & OUT == 0, state.is_plain(), "{state:?}");
    });
    assert_eq!(pack(State::default()), 0);
}

#[test]
fn drains_and_everything_else_leave_each_other_alone() {
    bolero::check!().with_type::<u64>().for_each(|seed| {
        let random = &mut fastrand::Rng::with_seed(*seed);
        let state = any_state(random);
        let (_, event) = random.choice(events()).unwrap();
        let now = at(30);
        let (with, with_effects) = next(state, event, now);
        let (without, effects) = next(State { drains: Drains::default(), ..state }, event, now);
        assert_eq!(State { drains: without.drains, ..with }, without);
        assert_eq!(with_effects, effects);
    });
}

/// From whatever came before, one good sign from whoever spoke ill of a replica brings it back, and quickly.
#[test]
fn good_signs_always_lead_back() {
    bolero::check!().with_type::<u64>().for_each(|seed| {
        let random = &mut fastrand::Rng::with_seed(*seed);
        let mut state = any_state(random);
        for _ in 0..random.usize(..20) {
            (state, _) = next(state, random.choice(events()).unwrap().1, at(30));
        }
        for event in [Event::SaidNotReady, Event::SaidReady, Event::CheckOk, Event::RequestOk] {
            (state, _) = next(state, event, at(30));
        }
        assert_eq!(state.phase, Phase::Healthy);
    });
}

/// Threads of random events, each with a replica of its own and one that all share. Nobody ever finds its own replica
/// out and hears that all are plain; and when all is over, the count is exact.
#[test]
fn nobody_out_while_all_are_plain() {
    let health = HealthColumns::new(5);
    let shared = ReplicaSlot(4);
    health.set_warm_up_time(Some(Duration::from_secs(1)));
    std::thread::scope(|scope| {
        for thread in 0..4_u16 {
            let health = &health;
            scope.spawn(move || stir_and_look(health, thread, shared));
        }
    });
    let out = health.cells.iter().filter(|cell| cell.word.load(Relaxed) & OUT != 0).count();
    assert_eq!(health.out.load(Relaxed) as usize, out);
    for slot in (0..5).map(ReplicaSlot) {
        health.sweep(slot, at(10_000));
        health.reset(slot);
    }
    assert!(health.is_all_plain(at(0)), "back to nothing");
    assert_eq!(health.warming.load(Relaxed), 0);
}

/// An agent that is stopped says goodbye for its engine. Where the engine goes on, checks soon speak for it.
#[test]
fn a_goodbye_does_not_bind_for_ever() {
    let (health, slot) = (HealthColumns::new(1), ReplicaSlot(0));
    let period = Duration::from_millis(50);
    health.beacon(slot, true, true, period, at(100));
    health.sweep(slot, at(110));
    assert!(health.drains(slot).has(DrainCause::Beacon));
    health.set_drain(slot, DrainCause::Admin, true);
    health.sweep(slot, at(131));
    assert!(!health.drains(slot).has(DrainCause::Beacon) && health.drains(slot).has(DrainCause::Admin));
}

/// Random events for the replica `thread` and the `shared` one; the first is looked at after each.
fn stir_and_look(health: &HealthColumns, thread: u16, shared: ReplicaSlot) {
    let random = &mut fastrand::Rng::with_seed(u64::from(thread));
    for turn in 0..20_000 {
        let (own, now) = (ReplicaSlot(thread), at(turn / 100));
        let slot = if random.bool() { own } else { shared };
        stir(health, slot, random, now);
        let is_out = health.word(own) & OUT != 0 || health.is_warming(own, now);
        assert!(!(is_out && health.is_all_plain(now)), "thread {thread}, turn {turn}");
        assert_eq!(health.state(own, now) == HealthState::Healthy, health.word(own) & 7 == 0);
    }
}

/// One random thing happens to `slot`.
fn stir(health: &HealthColumns, slot: ReplicaSlot, random: &mut fastrand::Rng, now: Now) {
    let peers: Vec<_> = (0..5).map(ReplicaSlot).collect();
    match random.u8(..13) {
        0 => health.joined(slot, Arrival::Later, now),
        1 => health.checked(slot, Err(CheckFault::Refused), 2, now),
        2 => health.checked(slot, Err(CheckFault::TimedOut), 2, now),
        3 | 4 => health.checked(slot, Ok(()), 2, now),
        5 => health.set_drain(slot, DrainCause::Admin, random.bool()),
        6 => health.beacon(slot, random.bool(), random.bool(), Duration::from_millis(50), now),
        7 => health.restarted(slot, now),
        8 => health.reset(slot),
        9 => _ = health.failed(slot, &peers, &RULES, now),
        10 => health.sweep(slot, now),
        11 => health.refused(slot, now),
        _ => health.succeeded(slot),
    }
}

#[test]
fn silence_alone_takes_nobody_out_but_with_a_failed_check_at_once() {
    let health = HealthColumns::new(1);
    let slot = ReplicaSlot(0);
    let period = Duration::from_secs(1);
    health.beacon(slot, true, false, period, at(0));
    health.sweep(slot, at(4));
    assert!(health.is_silent(slot, at(4)) && health.state(slot, at(4)) == HealthState::Healthy);
    health.checked(slot, Ok(()), 2, at(5));
    assert_eq!(health.state(slot, at(5)), HealthState::Healthy);
    health.checked(slot, Err(CheckFault::Status(503)), 2, at(6));
    let found = health.describe(slot, at(7));
    assert_eq!((found.state, found.since), (HealthState::Down, at(6)));
    assert_eq!(found.why.to_string(), "its beacons stopped and a health check failed: HTTP 503");
    health.beacon(slot, true, false, period, at(8));
    assert_eq!(health.state(slot, at(8)), HealthState::Healthy, "it speaks again");
    for _ in 0..2 {
        health.checked(slot, Err(CheckFault::Refused), 2, at(9));
    }
    health.beacon(slot, true, false, period, at(9));
    assert_eq!(health.state(slot, at(9)), HealthState::Down, "nothing new in that");
}

#[test]
fn those_that_join_later_warm_up_and_those_of_the_start_do_not() {
    let health = HealthColumns::new(2);
    let (first, later) = (PEERS[0], PEERS[1]);
    health.set_warm_up_time(Some(Duration::from_secs(60)));
    health.joined(first, Arrival::AtStart, at(0));
    health.joined(later, Arrival::Later, at(0));
    assert!(health.may_try(first) && !health.admits(first, 0, at(0)) && !health.is_all_plain(at(0)));
    health.checked(first, Ok(()), 2, at(1));
    health.checked(later, Ok(()), 2, at(1));
    assert!(health.admits(first, 0, at(1)) && health.admits(later, 0, at(1)));
    assert!(!health.is_warming(first, at(1)) && health.is_warming(later, at(60)));
    assert_eq!(health.warming_count(at(60)), 1);
    assert!(!health.is_all_plain(at(60)) && health.is_all_plain(at(61)));
    health.restarted(first, at(70));
    assert!(health.is_warming(first, at(70)) && health.admits(first, 0, at(70)));
    health.warmed_up(first);
    health.sweep(later, at(71));
    assert!(health.is_all_plain(at(71)));
    assert_eq!(health.warming.load(Relaxed), 0);
}
