//! Work for replicas that have just come, or come back: their caches are empty, so by price alone they would be given
//! either all that is cold (they are the emptiest) or, where every prompt is warm somewhere, nothing.
//!
//! So while some warm up, a request that is cold everywhere is drawn to one side: to those that warm up, with the
//! configured probability or their share of the fleet if that is more, else to the others. On either side it is placed as
//! ever. A request that is warm somewhere, and a fleet that warms up as a whole, are not touched.

use super::candidates::Known;
use crate::policy::View;

/// Where a request that is cold everywhere goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// To one of those that warm up.
    Warming,
    /// To one of the others.
    Others,
}

/// Draws a side for a request that is cold everywhere; `share` is the probability configured. `None`: there is only one.
#[expect(clippy::cast_precision_loss, reason = "at most 4,096")]
fn draw(share: f64, warming: usize, candidates: usize, rng: &mut fastrand::Rng) -> Option<Side> {
    if warming == 0 || warming >= candidates {
        return None;
    }
    let share = share.max(warming as f64 / candidates as f64).clamp(0.0, 1.0);
    Some(if rng.f64() < share { Side::Warming } else { Side::Others })
}

/// Bars the side that was not drawn, if the request is one that sides are drawn for. `view.barred` is sorted, before and
/// after.
pub(super) fn choose_side(view: &mut View, known: Known<'_>, rng: &mut fastrand::Rng) -> Option<Side> {
    let share = known.snapshot.config.warm_up?.share;
    let is_barred = |barred: &[u16], place: &u16| barred.binary_search(place).is_ok();
    let is_held = |place: &u16| view.warm_tokens[usize::from(*place)] > 0.0 && !is_barred(&view.barred, place);
    if view.prompt_tokens <= 0.0 || view.warm.iter().any(is_held) {
        return None;
    }
    let is_warming = |place: &u16| known.shared.health.is_warming(view.slots[usize::from(*place)], known.now);
    let open = |place: &u16| !is_barred(&view.barred, place);
    let places = || (0..).take(view.len());
    let warming = places().filter(open).filter(is_warming).count();
    let side = draw(share, warming, view.len() - view.barred.len(), rng)?;
    let mut barred = std::mem::take(&mut view.barred);
    let given = barred.len();
    for place in (0..).take(view.len()) {
        let is_warming = known.shared.health.is_warming(view.slots[usize::from(place)], known.now);
        if is_warming != (side == Side::Warming) && barred[..given].binary_search(&place).is_err() {
            barred.push(place);
        }
    }
    barred.sort_unstable();
    view.barred = barred;
    Some(side)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_side_gets_its_share() {
        let mut rng = fastrand::Rng::with_seed(17);
        for (share, warming, candidates, wanted) in
            [(0.25, 1, 10, 0.25), (0.25, 6, 10, 0.6), (0.0, 1, 4, 0.25), (7.0, 1, 4, 1.0), (f64::NAN, 1, 4, 0.25)]
        {
            let drawn = (0..20_000).filter(|_| draw(share, warming, candidates, &mut rng) == Some(Side::Warming));
            let seen = drawn.count() as f64 / 20_000.0;
            assert!((seen - wanted).abs() < 0.015, "{seen} of {wanted} at {share} with {warming} of {candidates}");
        }
        assert_eq!(draw(0.5, 0, 4, &mut rng), None);
        assert_eq!(draw(0.5, 4, 4, &mut rng), None);
        assert_eq!(draw(0.5, 1, 1, &mut rng), None);
    }
}
