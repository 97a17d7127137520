//! Requests with objectives: where they go among the candidates that a policy has priced.
//!
//! 1. Of those whose predicted times, at the ninetieth percentile, are within the objectives, the cheapest by the policy's
//!    own costs. Where costs are seconds, all that cost hardly more than the cheapest count as equal, and the fullest of
//!    them is taken: what still fits there leaves others empty for requests that fit nowhere else.
//! 2. Where none is, the one that is least late, as a multiple of the objective.
//!
//! Who may be refused instead of being late is for the caller to say.

use super::{Pick, View};

/// Costs that differ by less than this share of the objective are equal: nobody would notice.
const EQUAL_WITHIN: f32 = 0.02;

/// What a request asks of its times; `None` asks nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slo {
    /// Seconds to the first token.
    pub ttft_s: Option<f32>,
    /// Seconds per output token after it.
    pub tpot_s: Option<f32>,
}

impl Slo {
    /// It asks nothing.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.ttft_s.is_none() && self.tpot_s.is_none()
    }
}

/// Which of two times is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// The time to the first token.
    Ttft,
    /// The time per output token.
    Tpot,
}

/// The objective that is missed by the largest multiple.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Late {
    /// Which.
    pub objective: Objective,
    /// What was asked, seconds.
    pub wanted_s: f32,
    /// What is predicted at the ninetieth percentile, seconds.
    pub predicted_s: f32,
}

impl Late {
    fn by(&self) -> f32 {
        self.predicted_s / self.wanted_s.max(1e-6)
    }
}

/// How predictions compare with what was asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Standing {
    /// Within it.
    Met,
    /// Beyond it, everywhere.
    Late(Late),
}

/// Columns of predictions, kept for their memory.
#[derive(Debug, Default)]
pub struct Predicted {
    ttft_p50_s: Vec<f32>,
    ttft_p90_s: Vec<f32>,
    tpot_p90_s: Vec<f32>,
}

impl Predicted {
    fn fill(&mut self, view: &View) {
        for column in [&mut self.ttft_p50_s, &mut self.ttft_p90_s, &mut self.tpot_p90_s] {
            column.resize(view.len(), 0.0);
        }
        let (p50_s, p90_s) = (&mut self.ttft_p50_s, &mut self.ttft_p90_s);
        view.latency.predict_ttft(view.prompt_tokens, &view.warm_tokens, p50_s, p90_s);
        view.latency.predict_tpot_p90(view.prompt_tokens, &mut self.tpot_p90_s);
    }

    /// The objective that the candidate at `place` misses the most, or meets by the least.
    fn worst(&self, slo: &Slo, place: usize) -> Option<Late> {
        let late = |objective, wanted_s: Option<f32>, predicted_s| {
            wanted_s.map(|wanted_s| Late { objective, wanted_s, predicted_s })
        };
        let ttft = late(Objective::Ttft, slo.ttft_s, self.ttft_p90_s[place]);
        let tpot = late(Objective::Tpot, slo.tpot_s, self.tpot_p90_s[place]);
        match (ttft, tpot) {
            (Some(ttft), Some(tpot)) => Some(if tpot.by() > ttft.by() { tpot } else { ttft }),
            (ttft, tpot) => ttft.or(tpot),
        }
    }
}

/// The choice among candidates of `view` with finite `costs`, which are seconds if `is_priced`; `None` without any.
#[must_use]
pub fn choose(
    view: &View,
    costs: &[f32],
    is_priced: bool,
    slo: &Slo,
    predicted: &mut Predicted,
    rng: &mut fastrand::Rng,
) -> Option<(Pick, Standing)> {
    predicted.fill(view);
    let places = || (0..costs.len()).filter(|place| costs[*place].is_finite());
    let met = || places().filter(|place| predicted.worst(slo, *place).is_none_or(|late| late.by() <= 1.0));
    let cost = |place: usize| costs[place];
    if let Some(cheapest) = least(met(), cost, rng) {
        let equal = if is_priced { EQUAL_WITHIN * slo.ttft_s.unwrap_or(0.0) } else { 0.0 };
        let enough = costs[cheapest] + equal;
        let fullest = met().filter(|place| costs[*place] <= enough).map(|place| view.in_flight[place]);
        let fullest = fullest.fold(0.0, f32::max);
        let fits = |place: &usize| costs[*place] <= enough && view.in_flight[*place] >= fullest;
        let best = least(met().filter(fits), cost, rng).unwrap_or(cheapest);
        let runner_up = least(met().filter(|place| *place != best), cost, rng);
        return Some((Pick { best, runner_up }, Standing::Met));
    }
    let lateness = |place| predicted.worst(slo, place).map_or(0.0, |late| late.by());
    let best = least(places(), lateness, rng)?;
    let runner_up = least(places().filter(|place| *place != best), lateness, rng);
    let standing = predicted.worst(slo, best).map_or(Standing::Met, Standing::Late);
    Some((Pick { best, runner_up }, standing))
}

/// The place of the least value; among equals each is as likely.
fn least(places: impl Iterator<Item = usize>, value: impl Fn(usize) -> f32, rng: &mut fastrand::Rng) -> Option<usize> {
    let mut found: Option<(usize, f32)> = None;
    let mut equals = 0_u32;
    for place in places {
        let value = value(place);
        match found {
            Some((_, least)) if value > least => {}
            Some((_, least)) if value >= least => {
                equals += 1;
                if rng.u32(..equals) == 0 {
                    found = Some((place, value));
                }
            }
            Some(_) | None => (found, equals) = (Some((place, value)), 1),
        }
    }
    found.map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::super::latency::Load;
    use super::*;
    use crate::id::ReplicaSlot;
    use crate::learn::{Band, Coefficients};

    /// Replicas that need so many milliseconds for the first token of anything, and so many for each after it.
    fn view(ttft_ms: &[f32], tpot_ms: &[f32], in_flight: &[f32]) -> View {
        let mut view = View::default();
        view.reset(&(0..ttft_ms.len()).filter_map(ReplicaSlot::from_index).collect::<Vec<_>>());
        view.in_flight.copy_from_slice(in_flight);
        for place in 0..ttft_ms.len() {
            let learned = Coefficients {
                base_s: ttft_ms[place] * 1e-3,
                tpot_s: tpot_ms[place] * 1e-3,
                ttft: [[0.5, 1.0]; Band::COUNT],
                tpot: [[0.5, 1.0]; 2],
                ..Coefficients::default()
            };
            view.latency.learn(place, &learned);
            view.latency.settle(place, &Load::default());
        }
        view
    }

    fn chosen(view: &View, costs: &[f32], slo: Slo) -> Option<(usize, Option<usize>, Standing)> {
        let (mut predicted, mut rng) = (Predicted::default(), fastrand::Rng::with_seed(4));
        let (pick, standing) = choose(view, costs, true, &slo, &mut predicted, &mut rng)?;
        Some((pick.best, pick.runner_up, standing))
    }

    const fn ttft(seconds: f32) -> Slo {
        Slo { ttft_s: Some(seconds), tpot_s: None }
    }

    #[test]
    fn of_those_within_the_objective_the_cheapest_is_taken() {
        let view = view(&[900.0, 400.0, 300.0], &[10.0; 3], &[0.0; 3]);
        assert_eq!(chosen(&view, &[0.1, 0.2, 0.3], ttft(0.5)), Some((1, Some(2), Standing::Met)));
        assert_eq!(chosen(&view, &[0.1, 0.2, 0.3], ttft(1.0)), Some((0, Some(1), Standing::Met)));
        assert_eq!(chosen(&view, &[0.1, f32::INFINITY, 0.3], ttft(0.5)), Some((2, None, Standing::Met)));
    }

    #[test]
    fn of_equals_the_fullest_that_still_fits_is_taken() {
        let view = view(&[100.0, 200.0, 700.0, 300.0], &[10.0; 4], &[1.0, 3.0, 9.0, 5.0]);
        let costs = [0.100, 0.104, 0.103, 0.130];
        assert_eq!(chosen(&view, &costs, ttft(0.5)).map(|chosen| chosen.0), Some(1), "the last costs more");
        assert_eq!(chosen(&view, &costs, ttft(0.15)).map(|chosen| chosen.0), Some(0));
    }

    #[test]
    fn where_none_is_the_least_late_is_taken() {
        let view = view(&[900.0, 400.0, 300.0], &[10.0, 20.0, 60.0], &[0.0; 3]);
        let late = |slo| match chosen(&view, &[0.1, 0.2, 0.3], slo) {
            Some((best, runner_up, Standing::Late(late))) => {
                (best, runner_up, late.objective, (late.predicted_s * 1e3).round())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(late(ttft(0.1)), (2, Some(1), Objective::Ttft, 300.0));
        let both = Slo { ttft_s: Some(0.1), tpot_s: Some(0.01) };
        assert_eq!(late(both), (1, Some(2), Objective::Ttft, 400.0));
        let tpot = Slo { ttft_s: None, tpot_s: Some(0.005) };
        assert_eq!(late(tpot), (0, Some(1), Objective::Tpot, 10.0));
        assert_eq!(chosen(&view, &[f32::INFINITY; 3], tpot), None);
    }

    #[test]
    fn ties_are_broken_at_random() {
        let view = view(&[100.0; 4], &[10.0; 4], &[0.0; 4]);
        let (mut predicted, mut rng) = (Predicted::default(), fastrand::Rng::with_seed(4));
        for slo in [ttft(1.0), ttft(0.01)] {
            let mut seen = [0_u32; 4];
            for _ in 0..4000 {
                let chosen = choose(&view, &[1.0; 4], true, &slo, &mut predicted, &mut rng);
                seen[chosen.unwrap().0.best] += 1;
            }
            assert!(seen.iter().all(|count| (850..1150).contains(count)), "{seen:?}");
        }
    }
}
