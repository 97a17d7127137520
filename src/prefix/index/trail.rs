//! What a replica was known to have of a prompt just before the prompt was placed there, wherever the window said it ends:
//! runs of blocks that were used last at one time, and how many others the replica has used since. Held against what the
//! engine then reused, a trail tells how long the replica really remembers.

/// Runs kept of one prompt. Most prompts have three: what all share, what the session had before its last turn, that turn.
const RUNS: usize = 8;

/// Blocks of a prompt that follow each other and were used last at about one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Blocks of the prompt before it.
    pub from: u32,
    /// Blocks of the prompt before its end.
    pub to: u32,
    /// Other blocks that the replica has used since. What a least-recently-used cache needs to have room for, with the
    /// run itself, to still hold it.
    pub since: u32,
}

/// All runs of a prompt that are not too long ago to be known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trail {
    /// Deepest first. Until [`Self::settle`], `since` is a stamp.
    runs: [Run; RUNS],
    len: usize,
}

impl Trail {
    /// The runs, from the prompt's beginning on.
    pub fn runs(&self) -> impl Iterator<Item = Run> {
        self.runs.get(..self.len).unwrap_or_default().iter().rev().copied()
    }

    /// A trail of `runs`, from the prompt's beginning on; no more than are kept.
    #[must_use]
    pub fn of(runs: &[Run]) -> Self {
        let mut trail = Self::default();
        for (place, run) in trail.runs.iter_mut().zip(runs.iter().take(RUNS).rev()) {
            *place = *run;
            trail.len += 1;
        }
        trail
    }

    /// True when nothing of the prompt was known there.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds the block at `depth`, used last at `stamp`. Blocks come deepest first; past the room there is, what is more is
    /// taken for part of the last run.
    #[inline]
    pub(super) fn add(&mut self, depth: usize, stamp: u32) {
        let depth = u32::try_from(depth).unwrap_or(u32::MAX);
        let stamp = stamp & 0xffff;
        let is_full = self.len == RUNS;
        if let Some(last) = self.len.checked_sub(1).and_then(|last| self.runs.get_mut(last))
            && (last.since == stamp || is_full)
        {
            last.from = depth - 1;
            return;
        }
        if let Some(free) = self.runs.get_mut(self.len) {
            *free = Run { from: depth - 1, to: depth, since: stamp };
            self.len += 1;
        }
    }

    /// Turns stamps into blocks used since: `since` says how many there are by now, and how many with the stamp itself;
    /// the prompt's own `blocks` are among them. Runs too long ago are dropped.
    pub(super) fn settle(&mut self, blocks: usize, since: impl Fn(u32) -> Option<(u64, u64)>) {
        let all = u32::try_from(blocks).unwrap_or(u32::MAX);
        let mut kept = 0;
        for at in 0..self.len {
            let run = self.runs[at];
            let Some((newer, beside)) = since(run.since) else { continue };
            // All of the prompt counts as used now. What stands before the run was before, too.
            let own = u64::from(all - run.from.min(all));
            // In which order a stamp's blocks were used is not known: half of them after the run.
            let others = (newer + beside / 2).saturating_sub(own);
            self.runs[kept] = Run { since: u32::try_from(others).unwrap_or(u32::MAX), ..run };
            kept += 1;
        }
        self.len = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_and_are_bounded() {
        let mut trail = Trail::default();
        for (depth, stamp) in [(9, 3), (8, 3), (7, 3), (5, 4), (4, 4), (3, 6), (2, 6), (1, 6)] {
            trail.add(depth, stamp);
        }
        let seen: Vec<_> = trail.runs().map(|run| (run.from, run.to, run.since)).collect();
        assert_eq!(seen, [(0, 3, 6), (3, 5, 4), (6, 9, 3)]);
        (1..100).rev().for_each(|depth| trail.add(depth, u32::try_from(depth).unwrap()));
        assert_eq!(trail.runs().count(), RUNS);
        assert_eq!(trail.runs().next().unwrap().from, 0);
    }

    #[test]
    fn a_run_is_as_old_as_what_was_used_since() {
        let mut trail = Trail::default();
        trail.add(20, 1);
        trail.add(10, 2);
        // 30 blocks are newer than the second stamp, 70 than the first; 30 of them are the prompt itself.
        trail.settle(30, |stamp| (stamp > 0).then_some((if stamp == 2 { 40 } else { 70 }, 6)));
        let seen: Vec<_> = trail.runs().map(|run| run.since).collect();
        assert_eq!(seen, [40 - 21 + 3, 70 - 11 + 3]);
        trail.settle(30, |_| None);
        assert!(trail.is_empty());
    }
}
