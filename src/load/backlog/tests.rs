//! What a newcomer meets, as one replica's prompts and answers go on.

use super::*;

const SLOT: ReplicaSlot = ReplicaSlot(1);
const PACE: Pace =
    Pace { travel_s: 0.01, token_s: 1e-4, pair_s: 0.0, step_s: 0.02, step_request_s: 0.0, step_token_s: 0.0 };

fn at(ms: u64) -> Now {
    Now(ms * 1_000_000)
}

fn start(backlogs: &Arc<Backlogs>, tokens: f32, ms: u64) -> Work {
    let task = Task { new_tokens: tokens, cached_tokens: 0.0, sent: at(ms) };
    Work::start(backlogs, SLOT, &task, &PACE, at(ms))
}

fn ahead_ms(backlogs: &Backlogs, ms: u64) -> u128 {
    let found = backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(ms));
    (Duration::from_secs_f32(found.ahead_s) + Duration::from_micros(500)).as_millis()
}

#[test]
fn what_is_ahead_becomes_less_as_it_is_computed() {
    let backlogs = Arc::new(Backlogs::new(2));
    let mut first = start(&backlogs, 2000.0, 100);
    // It is there at 110 and computed at 310; who is sent at 150 is there at 160.
    assert_eq!(ahead_ms(&backlogs, 150), 150);
    let mut second = start(&backlogs, 3000.0, 150);
    assert_eq!(ahead_ms(&backlogs, 150), 150 + 300, "in the second's step, after it");
    first.prefilled(at(330));
    assert_eq!(ahead_ms(&backlogs, 330), 310, "it took longer: the second's step ends at 330 + 300 + 20");
    second.prefilled(at(650));
    let then = backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(650));
    assert_eq!((then.prefills, then.decoding), (0, 2));
    assert_eq!((first.followers(), second.followers()), (1, 0));
    drop((first, second));
    assert_eq!(backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(660)).decoding, 0);
}

#[test]
fn a_newcomer_waits_for_the_step_that_runs_when_it_is_there() {
    let backlogs = Arc::new(Backlogs::new(2));
    let mut work = start(&backlogs, 100.0, 0);
    work.prefilled(at(20));
    for token in 1..=100 {
        let _told = work.token(at(20 + 30 * token));
    }
    // A step of 30 ms ends at 3,020; who is sent at 3,025 is there at 3,035.
    let found = backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(3025));
    assert!((found.step_s - 0.03).abs() < 1e-4 && (found.ahead_s - 0.015).abs() < 1e-4, "{found:?}");
    assert!((found.generated_tokens - 100.0).abs() < 1.0, "{found:?}");
    // Nothing was seen for long: half a step, as steps are held to be.
    let found = backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(9000));
    assert!((found.ahead_s - 0.01).abs() < 1e-4, "{found:?}");
}

#[test]
fn all_of_it_is_taken_back_however_a_request_ends() {
    let backlogs = Arc::new(Backlogs::new(2));
    for tokens in [0.0, f32::NAN, -1.0, f32::INFINITY, 1e9] {
        let task = Task { new_tokens: tokens, cached_tokens: tokens, sent: at(5) };
        let pace = Pace { travel_s: tokens, ..PACE };
        let work = Work::start(&backlogs, SLOT, &task, &pace, at(5));
        assert!(
            backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(5)).ahead_s.is_finite(),
            "{tokens}"
        );
        drop(work);
        assert_eq!(backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(5)).prefills, 0);
    }
    let mut many: Vec<Work> = (0..200).map(|_| start(&backlogs, 1000.0, 5)).collect();
    let full = backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(5));
    assert!(full.prefills == 200 && (15.0..25.0).contains(&full.ahead_s), "{full:?}");
    many.iter_mut().skip(50).step_by(2).for_each(|work| work.prefilled(at(90)));
    drop(many);
    let empty = backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(100));
    assert_eq!((empty.prefills, empty.decoding, empty.ahead_s), (0, 0, 0.0));
    let _outside = Work::start(&backlogs, ReplicaSlot(9), &Task::default(), &PACE, at(5));
}

#[test]
fn a_request_that_is_held_is_not_there_before_it_is_sent() {
    let backlogs = Arc::new(Backlogs::new(2));
    let _first = start(&backlogs, 1000.0, 0);
    let task = Task { new_tokens: 500.0, cached_tokens: 1000.0, sent: at(110) };
    let held = Work::start(&backlogs, SLOT, &task, &PACE, at(10));
    assert_eq!(ahead_ms(&backlogs, 50), 50, "who comes before it does not wait for it");
    held.sent(at(40));
    assert_eq!(ahead_ms(&backlogs, 50), 50 + 50);
}

#[test]
fn the_share_of_prefill_is_what_came_lately() {
    let backlogs = Arc::new(Backlogs::new(2));
    for second in 0..100 {
        drop(start(&backlogs, 4000.0, 1000 * second));
    }
    let share = |ms| backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(ms)).prefill_share;
    assert!((share(99_500) - 0.4).abs() < 0.05, "{}", share(99_500));
    assert!(share(130_000) < 0.03);
}
