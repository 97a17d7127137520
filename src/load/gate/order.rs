//! Whether a sender's beacon comes in its order: after all that were heard, and of the engine that runs now.
//!
//! As a rule the sequence alone says so, for it rises with each beacon and across restarts of the sender. But a sender
//! takes its first sequence from its clock, and clocks are set back. Were a lower sequence refused for good, a sender
//! whose clock was an hour ahead when it started would mute its successor for an hour. So a lower sequence is a new
//! beginning when
//!
//! - its predecessor has been silent for three of its periods: two that send for one replica do not take turns, and
//! - it was sent later, by the senders' clocks, than any beacon heard before. Hence it was never heard before.
//!
//! From then on, whatever was sent no later than the beacons of the old order is refused, whatever its sequence. So in
//! either order no beacon is heard twice: within one, because sequences rise; of an older one, because it was sent too
//! early. And as soon as the old order's last time of sending is out of the clock's bound, any beacon that passes that
//! bound was sent later, so that nobody is muted for longer.
//!
//! Sequences far ahead of the time are taken as they come: by the same rule they can mute nobody, and a sender whose
//! clock was set back while it ran has such sequences in good faith.

use super::Refusal;
use crate::clock::Now;
use crate::load::heard::PERIODS_UNTIL_STALE;
use crate::wire::beacon::Head;
use std::time::Duration;

/// Sequences before the newest of which it is remembered whether they were heard. It only tells causes apart.
pub(super) const WINDOW: u64 = 64;

/// What was heard of a sender.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    incarnation: u64,
    /// Highest sequence since the order began.
    newest: u64,
    /// Bit n: `newest - n` was heard.
    window: u64,
    /// Latest time of sending.
    sent_ns: u64,
    /// Latest time of sending before this order began.
    floor_ns: Option<u64>,
    /// When the last was heard.
    heard: Now,
    period: Duration,
}

impl Order {
    /// The order that begins with this beacon.
    pub(super) const fn begin(head: &Head, now: Now) -> Self {
        Self {
            incarnation: head.incarnation,
            newest: head.sequence,
            window: 1,
            sent_ns: head.sent_unix_ns,
            floor_ns: None,
            heard: now,
            period: Duration::from_micros(head.period_us as u64),
        }
    }

    /// Whether the beacon comes in its order; if so, it is part of it, and the answer is whether the engine is another
    /// than before.
    pub(super) fn admit(&mut self, head: &Head, now: Now) -> Result<bool, Refusal> {
        let is_silent = now.since(self.heard) > self.period * PERIODS_UNTIL_STALE;
        if head.incarnation < self.incarnation && !is_silent {
            return Err(Refusal::Leftover);
        }
        if self.floor_ns.is_some_and(|floor_ns| head.sent_unix_ns <= floor_ns) {
            return Err(Refusal::Leftover);
        }
        if head.sequence > self.newest {
            let by = head.sequence - self.newest;
            let shifted = u32::try_from(by).ok().and_then(|by| self.window.checked_shl(by));
            self.window = shifted.unwrap_or(0) | 1;
        } else if is_silent && head.sent_unix_ns > self.sent_ns {
            self.floor_ns = Some(self.sent_ns);
            self.window = 1;
        } else {
            let behind = self.newest - head.sequence;
            let was_heard = behind >= WINDOW || self.window >> behind & 1 != 0;
            return Err(if was_heard { Refusal::Replayed } else { Refusal::Late });
        }
        let is_restart = head.incarnation != self.incarnation;
        self.incarnation = head.incarnation;
        self.newest = head.sequence;
        self.sent_ns = self.sent_ns.max(head.sent_unix_ns);
        self.heard = now;
        self.period = Duration::from_micros(head.period_us.into());
        Ok(is_restart)
    }
}
