//! Made-up views for the tests of policies.

use super::{Policy, View, pick};
use crate::id::ReplicaSlot;

/// Replicas with `in_flight` requests that hold `warm` tokens of a prompt of 1,000; at each a token takes 0.1 ms.
pub(super) fn view(in_flight: &[f32], warm: &[f32]) -> View {
    let n = in_flight.len();
    let slots: Vec<_> = (0..n).filter_map(ReplicaSlot::from_index).collect();
    let mut view = View::default();
    view.reset(&slots);
    view.in_flight = in_flight.to_vec();
    view.warm_tokens = warm.to_vec();
    view.warm = (0..).zip(warm).filter(|(_, warm)| **warm > 0.0).map(|(place, _)| place).collect();
    view.prefill_s_per_token = vec![1e-4; n];
    view.kv_tokens = vec![400_000.0; n];
    (view.prompt_tokens, view.affinity_key) = (1000.0, 42);
    view.total();
    view
}

/// How often each replica is picked, of 400 times, when nothing is ever placed.
pub(super) fn picked(policy: &dyn Policy, view: &View) -> Vec<u32> {
    let mut rng = fastrand::Rng::with_seed(2);
    let mut costs = vec![0.0; view.len()];
    let mut seen = vec![0; view.len()];
    for _ in 0..400 {
        policy.cost(view, &mut rng, &mut costs);
        seen[pick(&costs, &mut rng).unwrap().best] += 1;
    }
    seen
}

/// The replica that is always picked.
#[track_caller]
pub(super) fn best(policy: &dyn Policy, view: &View) -> usize {
    let picked = picked(policy, view);
    picked.iter().position(|times| *times == 400).unwrap_or_else(|| panic!("{policy:?} picks {picked:?}"))
}

/// Places one request where the policy wants it, and says where that is.
pub(super) fn place(policy: &dyn Policy, view: &View, rng: &mut fastrand::Rng) -> usize {
    let mut costs = vec![0.0; view.len()];
    policy.cost(view, rng, &mut costs);
    let place = pick(&costs, rng).unwrap().best;
    policy.placed(view, place);
    place
}
