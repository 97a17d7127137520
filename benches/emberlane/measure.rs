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

/// Times `work` and `rival` in turn: `samples` times `batch` calls each, after a tenth as many to warm
/// up.
pub(crate) fn against<R, S>(
    samples: usize,
    batch: usize,
    work: impl FnMut(usize) -> R,
    rival: impl FnMut(usize) -> S,
) -> (Times, Times) {
    prepared(samples, batch, 1, |_| (), work, rival)
}

/// As [`against`], with `prepare` called, untimed, before each sample: to bring in the input as the step before would
/// have left it. The two change places every `turn` samples, so that each finds the caches as its own calls left them
/// and not swept by the other's.
pub(crate) fn prepared<R, S>(
    samples: usize,
    batch: usize,
    turn: usize,
    mut prepare: impl FnMut(usize),
    mut work: impl FnMut(usize) -> R,
    mut rival: impl FnMut(usize) -> S,
) -> (Times, Times) {
    let warm_up = samples / 10;
    let (mut ours, mut theirs) = (Vec::with_capacity(samples), Vec::with_capacity(samples));
    for turn_start in (0..warm_up + samples).step_by(turn) {
        for sample in turn_start..turn_start + turn {
            prepare(sample * batch);
            ours.push(time(batch, sample * batch, &mut work));
        }
        for sample in turn_start..turn_start + turn {
            prepare(sample * batch);
            theirs.push(time(batch, sample * batch, &mut rival));
        }
    }
    (Times::sorted(ours.split_off(warm_up)), Times::sorted(theirs.split_off(warm_up)))
}
