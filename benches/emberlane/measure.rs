//! Timing: a candidate and its rival take turns in one process, over inputs that rotate, so that neither has the quieter
//! machine, the warmer cache or a branch predictor that knows the answer.

use std::{hint::black_box, time::Instant};

/// Times of one contender, nanoseconds a call, sorted.
pub(crate) struct Times(Vec<f64>);

impl Times {
    fn sorted(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    /// The median.
    pub(crate) fn p50(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    /// The least: what the code costs when nothing disturbs it.
    pub(crate) fn min(&self) -> f64 {
        self.0[0]
    }

    /// The value below which 99 in 100 lie.
    pub(crate) fn p99(&self) -> f64 {
        self.0[self.0.len() * 99 / 100]
    }
}

/// Nanoseconds that `work` takes, `batch` calls at a time. `work` gets a number that counts calls up, to pick an input.
fn time<R>(batch: usize, first: usize, work: &mut impl FnMut(usize) -> R) -> f64 {
    let start = Instant::now();
    for call in first..first + batch {
        black_box(work(black_box(call)));
    }
    start.elapsed().as_nanos() as f64 / batch as f64
}

/// Times `work` alone: `samples` times `batch` calls after a tenth as many to warm up.
pub(crate) fn alone<R>(samples: usize, batch: usize, mut work: impl FnMut(usize) -> R) -> Times {
    for sample in 0..samples / 10 {
        time(batch, sample * batch, &mut work);
    }
    Times::sorted((samples / 10..samples + samples / 10).map(|sample| time(batch, sample * batch, &mut work)).collect())
}

/// Times `work` and `rival` in turn; see [`alone`].
pub(crate) fn against<R, S>(
    samples: usize,
    batch: usize,
    work: impl FnMut(usize) -> R,
    rival: impl FnMut(usize) -> S,
) -> (Times, Times) {
    prepared(samples, batch, |_| (), work, rival)
}

/// As [`against`], with `prepare` called, untimed, before each of the two: to bring in the input as the step before
/// would have left it.
pub(crate) fn prepared<R, S>(
    samples: usize,
    batch: usize,
    mut prepare: impl FnMut(usize),
    mut work: impl FnMut(usize) -> R,
    mut rival: impl FnMut(usize) -> S,
) -> (Times, Times) {
    let warm_up = samples / 10;
    let (mut ours, mut theirs) = (Vec::with_capacity(samples), Vec::with_capacity(samples));
    for sample in 0..warm_up + samples {
        let first = sample * batch;
        prepare(first);
        let our = time(batch, first, &mut work);
        prepare(first);
        let their = time(batch, first, &mut rival);
        if sample >= warm_up {
            ours.push(our);
            theirs.push(their);
        }
    }
    (Times::sorted(ours), Times::sorted(theirs))
}
