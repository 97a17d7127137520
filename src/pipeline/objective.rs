//! Requests with objectives (SLO headers): what becomes of the policy's pick, and who is refused.

use super::candidates::Seen;
use super::{Placement, Shared};
use crate::policy::Pick;
use crate::policy::slo::{self, Late, Objective, Predicted, Slo, Standing};
use crate::reject::Reject;

/// What a request asks of its times, and how much it matters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wish {
    /// Its objectives.
    pub slo: Slo,
    /// Below zero: it may be refused instead of being late.
    pub priority: i32,
}

/// How a decision stands to the request's objectives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// What was asked.
    pub slo: Slo,
    /// What is predicted of it.
    pub standing: Standing,
    /// Without objectives another replica would have been picked.
    pub is_moved: bool,
}

/// The pick among `seen` by the objectives of `placement`, where it has any and the policy has picked `pick`.
///
/// # Errors
/// [`Reject::SloUnreachable`] for a request that would be late everywhere and may be refused: at its first placement, and
/// where predictions rest on answers.
pub(super) fn choose(
    shared: &Shared,
    placement: &Placement,
    seen: Seen<'_>,
    (costs, is_priced): (&[f32], bool),
    pick: Pick,
    predicted: &mut Predicted,
    rng: &mut fastrand::Rng,
) -> Result<(Pick, Option<Bound>), Reject> {
    let Wish { slo, priority } = placement.wish;
    if slo.is_none() {
        return Ok((pick, None));
    }
    let Some((among, standing)) = slo::choose(seen.view, costs, is_priced, &slo, predicted, rng) else {
        return Ok((pick, None));
    };
    if let Standing::Late(late) = standing
        && priority < 0
        && placement.attempts == 0
        && shared.rates.is_predictable(seen.view.slots[among.best])
    {
        return Err(unreachable(late));
    }
    // Of equals, either is the policy's.
    let is_moved = costs[among.best] > costs[pick.best];
    Ok((among, Some(Bound { slo, standing, is_moved })))
}

/// The refusal of a request that would be `late`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative; saturates")]
fn unreachable(late: Late) -> Reject {
    let what = match late.objective {
        Objective::Ttft => "the first token",
        Objective::Tpot => "each further token",
    };
    let ms = |seconds: f32| (seconds * 1e3).ceil() as u32;
    Reject::SloUnreachable { what, wanted_ms: ms(late.wanted_s), predicted_ms: ms(late.predicted_s) }
}
