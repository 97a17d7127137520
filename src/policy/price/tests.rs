//! What is cheapest, and who waits.

use super::super::pick;
use super::super::pushed_out::SIZES;
use super::*;
use crate::id::ReplicaSlot;
use crate::learn::{Band, Coefficients};
use crate::load::backlog::{Backlog, CHUNK_TOKENS};
use crate::policy::latency::Load;

/// An eighth of a millisecond a token: a prompt of 2,000 takes a quarter of a second.
const TOKEN_S: f32 = 1.25e-4;

/// Candidates, each with so many requests, seconds of prefill ahead, and tokens of a prompt of 2,000.
fn view(candidates: &[(f32, f32, f32)]) -> View {
    let mut view = View::default();
    let slots: Vec<_> = (0..candidates.len()).filter_map(ReplicaSlot::from_index).collect();
    view.reset(&slots);
    view.prompt_tokens = 2000.0;
    view.restore_s_per_token.fill(3.4e-6);
    let learned = Coefficients {
        token_s: TOKEN_S,
        ahead: 1.0,
        steps: 1.0,
        ttft: [[1.0, 2.0]; Band::COUNT],
        ..Coefficients::default()
    };
    for (place, (requests, ahead_s, warm)) in candidates.iter().enumerate() {
        let prefills = u32::from(*ahead_s > 0.0);
        let backlog = Backlog { prefills, ahead_s: *ahead_s, room_tokens: CHUNK_TOKENS, ..Backlog::default() };
        view.latency.learn(place, &learned);
        view.latency.settle(place, &Load { backlog, requests: *requests, ..Load::default() });
        (view.in_flight[place], view.warm_tokens[place]) = (*requests, *warm);
    }
    view.warm = (0..).zip(candidates).filter(|(_, one)| one.2 > 0.0).map(|(place, _)| place).collect();
    view
}

fn costs(policy: &Price, view: &View) -> Vec<f32> {
    let mut costs = vec![0.0; view.len()];
    policy.cost(view, &mut fastrand::Rng::with_seed(5), &mut costs);
    costs
}

fn best(view: &View) -> usize {
    let costs = costs(&Price::new(&PolicyConfig::default()), view);
    pick(&costs, &mut fastrand::Rng::with_seed(5)).unwrap().best
}

fn pushes_out(view: &mut View, place: usize, share: f32) {
    view.pushed_out.set(place, &[share; SIZES]);
}

#[test]
fn a_warm_replica_wins_until_waiting_costs_more() {
    assert_eq!(best(&view(&[(1.0, 0.0, 1900.0), (0.0, 0.0, 0.0)])), 0);
    assert_eq!(best(&view(&[(1.0, 0.2, 1900.0), (0.0, 0.0, 0.0)])), 0);
    assert_eq!(best(&view(&[(1.0, 2.0, 1900.0), (0.0, 0.0, 0.0)])), 1);
}

#[test]
fn a_burst_on_a_cold_prefix_stays_together() {
    // The first of the burst is being prefilled at 0: its blocks are on record there already.
    assert_eq!(best(&view(&[(1.0, 0.25, 2000.0), (0.0, 0.0, 0.0)])), 0);
}

#[test]
fn a_price_is_made_of_the_time_to_the_first_token_and_of_what_others_lose() {
    let mut view = view(&[(3.0, 0.5, 800.0)]);
    pushes_out(&mut view, 0, 0.25);
    let config = PolicyConfig { reuse_bonus: 2.0, eviction_weight: 4.0, decode_weight: 0.5, ..PolicyConfig::default() };
    let prefill_s = 1200.0 * TOKEN_S;
    let wanted = 0.5 + prefill_s + prefill_s * (2.0 + 4.0 * 0.25 + 0.5 * 3.0);
    let found = costs(&Price::new(&config), &view)[0];
    assert!((found - wanted).abs() < 1e-5, "{found} {wanted}");
    // The time of its answer counts where that is wanted.
    view.answer_tokens = 100.0;
    let config = PolicyConfig { answer_weight: 1.0, ..config };
    let tpot_s = view.latency.tpot_column()[0];
    assert!((costs(&Price::new(&config), &view)[0] - wanted - 100.0 * tpot_s).abs() < 1e-5);
}

#[test]
fn cold_prompts_go_where_they_push_out_what_nobody_needs() {
    let mut view = view(&[(0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.4, 0.0)]);
    pushes_out(&mut view, 0, 0.9);
    assert_eq!(best(&view), 1);
    // Better a little later than at the cost of a conversation.
    pushes_out(&mut view, 1, 0.9);
    assert_eq!(best(&view), 2);
    // A warm prompt pushes out little, and is priced by that.
    view.warm_tokens[0] = 1990.0;
    view.warm = vec![0];
    assert_eq!(best(&view), 0);
}

#[test]
fn answers_under_way_are_held_up_by_a_long_prompt() {
    assert_eq!(best(&view(&[(9.0, 0.0, 0.0), (2.0, 0.0, 0.0)])), 1);
}

#[test]
fn who_is_barred_is_not_picked() {
    let mut view = view(&[(1.0, 0.0, 0.0), (0.0, 0.0, 2000.0), (5.0, 0.0, 0.0)]);
    assert_eq!(best(&view), 1);
    view.barred = vec![1];
    assert_eq!(best(&view), 0);
    view.barred = vec![0, 1];
    assert_eq!(best(&view), 2);
}

#[test]
fn a_prefix_that_others_use_first_is_waited_for_or_left() {
    let mut view = view(&[(1.0, 0.0, 2000.0), (0.0, 0.0, 0.0)]);
    (view.prefix_wait_s[0], view.is_awaited) = (0.1, true);
    assert_eq!(best(&view), 0);
    view.prefix_wait_s[0] = 2.0;
    assert_eq!(best(&view), 1);
}

#[test]
fn what_is_in_host_memory_is_worth_less_than_on_the_device_and_more_than_nothing() {
    let mut view = view(&[(0.0, 0.0, 0.0), (0.0, 0.0, 1900.0), (0.0, 0.0, 1900.0)]);
    (view.restore_tokens[1], view.is_restored) = (1500.0, true);
    assert_eq!(best(&view), 2);
    view.barred = vec![2];
    assert_eq!(best(&view), 1);
    // Where restoring takes longer than computing, it is no use.
    view.restore_s_per_token[1] = 1e-3;
    assert_eq!(best(&view), 0);
}

#[test]
fn the_conversation_in_a_slot_has_its_price() {
    let mut view = view(&[(0.0, 0.0, 0.0), (0.0, 0.2, 0.0)]);
    (view.eviction_s[0], view.evicting) = (0.3, vec![0]);
    assert_eq!(best(&view), 1);
}

#[test]
fn few_warm_and_many_are_priced_alike() {
    let mut rng = fastrand::Rng::with_seed(8);
    let candidates: Vec<_> = (0..100).map(|_| (9.0 * rng.f32(), rng.f32(), 0.0)).collect();
    let mut view = view(&candidates);
    (0..100).for_each(|place| pushes_out(&mut view, place, rng.f32()));
    for place in [3, 50, 99] {
        view.warm_tokens[place] = 1500.0;
    }
    let policy = Price::new(&PolicyConfig::default());
    view.warm = vec![3, 50, 99];
    let few = costs(&policy, &view);
    view.warm = (0..100).filter(|place| ![3, 50, 99].contains(place)).take(29).chain([3, 50, 99]).collect();
    assert_eq!(few, costs(&policy, &view));
}

/// Whether the prompt waits that would push out `needed` at a replica with `ahead_s` to do.
fn waits(config: &PolicyConfig, needed: f32, standing: Standing) -> bool {
    let mut view = view(&[(1.0, standing.ahead_s, 0.0)]);
    view.prompt_tokens = 4000.0;
    pushes_out(&mut view, 0, needed);
    Price::new(config).waits(&view, 0, standing)
}

#[test]
fn who_would_push_out_what_is_needed_waits_while_engines_are_busy_and_no_longer() {
    let config = PolicyConfig::default();
    let behind = |ahead_s: f32| Standing { ahead_s, is_first: true, is_spent: false };
    assert!(waits(&config, 0.5, behind(0.3)));
    assert!(!waits(&config, 1.0, behind(0.0)), "an idle engine is used");
    assert!(!waits(&config, 0.05, behind(0.3)), "what it pushes out is over");
    assert!(waits(&config, 0.0, behind(2.0)), "there is time to decide later");
    assert!(waits(&config, 0.5, Standing { is_first: false, ..behind(0.0) }), "others are due before");
    assert!(waits(&config, 0.5, Standing { is_spent: true, ..behind(0.0) }), "too much is computed again");
    let mut idle = view(&[(0.0, 0.0, 0.0)]);
    idle.prompt_tokens = 4000.0;
    pushes_out(&mut idle, 0, 0.5);
    let price = Price::new(&config);
    assert!(
        !price.waits(&idle, 0, Standing { is_spent: true, ..behind(0.0) }),
        "an engine without any request is used"
    );
    assert!((price.spends_s(&idle, 0) - 0.25).abs() < 1e-4);
    idle.prompt_tokens = 2000.0;
    assert!(price.spends_s(&idle, 0) <= 0.0, "who does not wait does not spend");
    assert!(!waits(&config, 0.05, Standing { is_spent: true, ..behind(0.0) }), "nothing will be");
    assert!(!waits(&PolicyConfig { wait: false, ..config }, 1.0, behind(2.0)));
    let mut warm = view(&[(1.0, 3.0, 1500.0)]);
    pushes_out(&mut warm, 0, 1.0);
    assert!(!Price::new(&PolicyConfig::default()).waits(&warm, 0, behind(3.0)), "it is short");
}
