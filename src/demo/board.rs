//! What the demo shows: two fleets side by side, redrawn in place on a terminal, a line a second elsewhere.

use std::io::{self, Write};
use std::time::Duration;

/// One fleet, as measured.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetReport {
    /// The gateway's policy.
    pub policy: &'static str,
    /// Requests answered with 200.
    pub requests: u64,
    /// Requests that failed or were refused.
    pub failures: u64,
    /// Prompt tokens the engines saw.
    pub prompt_tokens: u64,
    /// Those of them the engines had cached, by their own count.
    pub cached_tokens: u64,
    /// Time to first token of streams, median.
    pub ttft_p50: Duration,
    /// And the 95th percentile.
    pub ttft_p95: Duration,
    /// Requests waiting in the engines now.
    pub waiting: u64,
    /// Requests of each replica.
    pub by_replica: Vec<u64>,
}

impl FleetReport {
    /// Share of prompt tokens that were cached, 0 to 1.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
    pub fn reused(&self) -> f64 {
        self.cached_tokens as f64 / self.prompt_tokens.max(1) as f64
    }

    /// Share of each replica, in percent.
    #[expect(clippy::cast_precision_loss, reason = "request counts are far below 2^52")]
    fn shares(&self) -> String {
        let total = self.by_replica.iter().sum::<u64>().max(1) as f64;
        let shares: Vec<String> =
            self.by_replica.iter().map(|count| format!("{:.0}", 100.0 * *count as f64 / total)).collect();
        shares.join(" ")
    }

    /// Prompt tokens that had to be prefilled.
    const fn prefilled(&self) -> u64 {
        self.prompt_tokens.saturating_sub(self.cached_tokens)
    }
}

/// Draws.
pub(super) struct Board<'w> {
    out: &'w mut dyn Write,
    is_terminal: bool,
    lines_drawn: usize,
}

impl<'w> Board<'w> {
    pub(super) fn new(out: &'w mut dyn Write, is_terminal: bool) -> Self {
        Self { out, is_terminal, lines_drawn: 0 }
    }

    /// Text that stays.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        self.lines_drawn = 0;
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }

    /// The state after `elapsed`.
    pub(super) fn draw(&mut self, elapsed: Duration, fleets: &[FleetReport]) -> io::Result<()> {
        if self.is_terminal {
            let table = format!("{:>4} s\n{}", elapsed.as_secs(), table(fleets));
            if self.lines_drawn > 0 {
                write!(self.out, "\x1b[{}A", self.lines_drawn)?;
            }
            for line in table.lines() {
                writeln!(self.out, "{line}\x1b[K")?;
            }
            self.lines_drawn = table.lines().count();
        } else {
            let sides: Vec<String> = fleets.iter().map(line).collect();
            writeln!(self.out, "{:>4} s  {}", elapsed.as_secs(), sides.join(" | "))?;
        }
        self.out.flush()
    }

    /// The end: the table once more, where it was not drawn already.
    pub(super) fn close(&mut self, elapsed: Duration, fleets: &[FleetReport]) -> io::Result<()> {
        if self.is_terminal {
            return self.draw(elapsed, fleets);
        }
        write!(self.out, "\n{}", table(fleets))?;
        self.out.flush()
    }
}

fn line(fleet: &FleetReport) -> String {
    format!(
        "{}: {} requests, {:.0} % reused, TTFT p50 {} p95 {} ms",
        fleet.policy,
        fleet.requests,
        100.0 * fleet.reused(),
        fleet.ttft_p50.as_millis(),
        fleet.ttft_p95.as_millis()
    )
}

fn table(fleets: &[FleetReport]) -> String {
    let mut text = String::new();
    let mut row = |name: &str, cell: &dyn Fn(&FleetReport) -> String| {
        text.push_str(&format!("  {name:<26}"));
        for fleet in fleets {
            text.push_str(&format!("{:>22}", cell(fleet)));
        }
        text.push('\n');
    };
    row("", &|fleet| fleet.policy.to_owned());
    row("requests answered", &|fleet| fleet.requests.to_string());
    row("requests failed", &|fleet| fleet.failures.to_string());
    row("prompt tokens reused", &|fleet| format!("{:.1} %", 100.0 * fleet.reused()));
    row("prompt tokens prefilled", &|fleet| fleet.prefilled().to_string());
    row("TTFT p50", &|fleet| format!("{} ms", fleet.ttft_p50.as_millis()));
    row("TTFT p95", &|fleet| format!("{} ms", fleet.ttft_p95.as_millis()));
    row("waiting in engines", &|fleet| fleet.waiting.to_string());
    row("share of each replica, %", &FleetReport::shares);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(policy: &'static str) -> FleetReport {
        FleetReport {
            policy,
            requests: 40,
            failures: 0,
            prompt_tokens: 1_000,
            cached_tokens: 800,
            ttft_p50: Duration::from_millis(30),
            ttft_p95: Duration::from_millis(90),
            waiting: 2,
            by_replica: vec![10, 30],
        }
    }

    #[test]
    fn a_terminal_is_redrawn_in_place() {
        let mut out = Vec::new();
        let mut board = Board::new(&mut out, true);
        let fleets = [fleet("price"), fleet("round_robin")];
        board.draw(Duration::from_secs(1), &fleets).unwrap();
        board.draw(Duration::from_secs(2), &fleets).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("\x1b[10A").count(), 1);
        assert_eq!(text.lines().count(), 20);
        assert!(text.contains("80.0 %") && text.contains("25 75"));
    }

    #[test]
    fn elsewhere_each_second_is_a_line_and_the_table_ends_it() {
        let mut out = Vec::new();
        let mut board = Board::new(&mut out, false);
        board.draw(Duration::from_secs(3), &[fleet("price")]).unwrap();
        board.close(Duration::from_secs(3), &[fleet("price")]).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("   3 s  price: 40 requests, 80 % reused, TTFT p50 30 p95 90 ms\n"), "{text}");
        assert!(!text.contains('\x1b'));
    }
}
