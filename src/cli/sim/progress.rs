//! How far the simulations are: a bar where somebody watches, a line now and then where nobody does.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Between two lines where there is no terminal.
const LINE_PERIOD: Duration = Duration::from_secs(10);
const TEMPLATE: &str = "{bar:30} {pos}/{len} runs  {msg}  {elapsed} (about {eta} to go)";

/// Tells on standard error.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    mode: Mode,
    told: Duration,
    simulated: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Bar,
    Lines,
    Quiet,
}

impl Progress {
    /// Begins, with so many runs ahead.
    pub(crate) fn start(runs: usize, is_quiet: bool) -> Self {
        let mode = match (is_quiet, std::io::stderr().is_terminal()) {
            (true, _) => Mode::Quiet,
            (false, true) => Mode::Bar,
            (false, false) => Mode::Lines,
        };
        let target = if mode == Mode::Bar { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(runs as u64), target);
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.progress_chars("━╸ "));
        }
        Self { bar, mode, told: Duration::ZERO, simulated: 0 }
    }

    /// There are so many runs, as is known by now.
    pub(crate) fn set_runs(&self, runs: usize) {
        self.bar.set_length(runs as u64);
    }

    /// So many runs have ended, and so many requests were simulated, in `part` (empty for the whole).
    pub(crate) fn look(&mut self, ended: usize, simulated: u64, part: &str) {
        self.simulated = simulated;
        self.bar.set_position(ended as u64);
        let separator = if part.is_empty() { "" } else { ": " };
        self.bar.set_message(format!("{part}{separator}{}", rate(simulated, self.bar.elapsed())));
        let elapsed = self.bar.elapsed();
        if self.mode == Mode::Lines && elapsed >= self.told + LINE_PERIOD {
            self.told = elapsed;
            self.line(elapsed);
        }
    }

    /// Prints something to standard output between two pictures of the bar.
    pub(crate) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Clears the bar; where lines were told, the last.
    pub(crate) fn finish(self) {
        let elapsed = self.bar.elapsed();
        if self.told > Duration::ZERO {
            self.line(elapsed);
        }
        self.bar.finish_and_clear();
    }

    fn line(&self, elapsed: Duration) {
        let (ended, runs) = (self.bar.position(), self.bar.length().unwrap_or_default());
        let message = self.bar.message();
        // Nowhere is left to tell of a closed stderr.
        let _ = writeln!(std::io::stderr(), "{ended}/{runs} runs  {message}  {} s", elapsed.as_secs());
    }
}

/// Requests simulated a second.
fn rate(simulated: u64, elapsed: Duration) -> String {
    let per_s = simulated as f64 / elapsed.as_secs_f64().max(1e-3);
    match per_s {
        per_s if per_s >= 1e6 => format!("{:.1}M requests/s", per_s / 1e6),
        per_s if per_s >= 1e3 => format!("{:.1}k requests/s", per_s / 1e3),
        per_s => format!("{per_s:.0} requests/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_short() {
        assert_eq!(rate(0, Duration::ZERO), "0 requests/s");
        assert_eq!(rate(45_000, Duration::from_secs(2)), "22.5k requests/s");
        assert_eq!(rate(9_000_000, Duration::from_secs(4)), "2.2M requests/s");
    }

    #[test]
    fn what_is_printed_between_is_passed_on() {
        let mut progress = Progress::start(3, true);
        progress.look(1, 500, "coding");
        assert!(progress.bar.message().starts_with("coding: "));
        assert_eq!(progress.suspend(|| 7), 7);
        progress.finish();
    }
}
