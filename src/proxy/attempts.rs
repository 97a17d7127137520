//! Trying replicas until one answers: what waits, what is retried elsewhere, and what each failure says of a replica.

use super::body::Body;
use super::exchange::{Exchange, Outcome, Then};
use super::forward::{self, Answer, Failure, Outbound};
use crate::clock::Now;
use crate::pipeline::{self, Hold, Placement, Underway};
use crate::prefix::slots::SlotBooks;
use crate::reject::Reject;
use std::sync::Arc;

/// How waiting for a prefix ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waited {
    /// There was nothing to wait for, or it took too long.
    No,
    /// Whoever it waited for is done, well or badly.
    ForOther,
}

/// A request on its way to a replica.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) at: Now,
    /// Uncached prompt tokens before its first output token: its own, and those already waiting there.
    pub(super) tokens_ahead: u64,
}

impl Exchange<'_> {
    /// Tries replicas until one answers, then relays its answer.
    pub(super) async fn forward(&mut self, mut placement: Placement, body: Body) -> Outcome {
        self.shard.budget.lock().deposit(&self.snapshot.config.retry, self.started);
        loop {
            let now = self.shard.core.clock.now();
            let mut underway = Underway::begin(&self.shard.core.shared, &self.snapshot, &placement, now);
            let waited = self.wait_for_prefix(&mut underway).await;
            if waited == Some(Waited::ForOther) && self.leave_ejected(&mut placement) {
                continue;
            }
            let (sent, tried) = match waited {
                Some(_) => {
                    let sent = self.sent(&placement, &mut underway);
                    (sent, self.attempt(&placement, &body, &mut underway).await)
                }
                // It left before anything was sent.
                None => (Sent { at: now, tokens_ahead: 0 }, None),
            };
            let shared = &self.shard.core.shared;
            let failure = match tried {
                None => {
                    self.left_early(&placement, &underway);
                    return Outcome::rejected(Some(placement), Reject::ClientClosed, Then::Close);
                }
                Some(Ok(answer)) => {
                    let status = answer.head.status.as_u16();
                    self.judge(&placement, status);
                    if status >= 400 {
                        shared.retract(&placement);
                        underway.refused(self.shard.core.clock.now());
                    }
                    if self.may_repeat(status) && self.elsewhere(&mut placement) {
                        continue;
                    }
                    drop(body);
                    return self.relay(placement, answer, underway, sent).await;
                }
                Some(Err(failure)) => failure,
            };
            self.shard.metrics.upstream_failures.with_label_values(&[failure.reject.code()]).inc();
            self.note_failure(&placement);
            if failure.reject == Reject::UpstreamConnect {
                shared.health.refused(placement.decision.chosen.slot, self.shard.core.clock.now());
            }
            shared.retract(&placement);
            if failure.is_down {
                shared.forget(placement.decision.chosen.slot);
            }
            underway.refused(self.shard.core.clock.now());
            drop(underway);
            let may_move = failure.elsewhere && (self.is_repeatable() || failure.reject == Reject::UpstreamConnect);
            if !may_move || !self.elsewhere(&mut placement) {
                return Outcome::rejected(Some(placement), failure.reject, Then::Tell);
            }
        }
    }

    /// A request that may run twice: inference always may, other paths where their method says so.
    fn is_repeatable(&self) -> bool {
        self.api.is_some() || self.session.req_header().method.is_idempotent()
    }

    /// An answer that another replica may better.
    fn may_repeat(&self, status: u16) -> bool {
        (status == 429 || status >= 500) && self.is_repeatable()
    }

    /// The client left before the first byte. A replica that has been silent for far too long by then is suspect: clients
    /// with little patience must not hide that it hangs.
    fn left_early(&self, placement: &Placement, underway: &Underway) {
        let now = self.shard.core.clock.now();
        if underway.is_overdue(now) {
            self.note_failure(placement);
        }
        if !underway.is_prefilled(now) {
            self.shard.core.shared.retract(placement);
        }
    }

    /// Whoever this request waited for has found its replica failing: moves it elsewhere, at no cost to the budget.
    fn leave_ejected(&self, placement: &mut Placement) -> bool {
        let core = &self.shard.core;
        let now = core.clock.now();
        if !core.shared.health.is_failing(placement.decision.chosen.slot, now) {
            return false;
        }
        core.shared.retract(placement);
        self.shard.decider.lock().place_again(&core.shared, &self.snapshot, placement, now).is_ok()
    }

    /// One attempt; `None` when the client left meanwhile.
    async fn attempt(
        &mut self,
        placement: &Placement,
        body: &Body,
        underway: &mut Underway,
    ) -> Option<Result<Answer, Failure>> {
        let slot = placement.decision.chosen.slot;
        let replica = self.snapshot.fleet.replica(slot);
        let Some((replica, address)) = replica.and_then(|replica| Some((replica, replica.address()?))) else {
            return Some(Err(Failure { reject: Reject::UpstreamConnect, elsewhere: true, is_down: false }));
        };
        let head = self.session.req_header().clone();
        let has_body = !body.bytes.is_empty() || head.method == http::Method::POST;
        let outbound = Outbound {
            head: &head,
            is_repeatable: self.is_repeatable(),
            body: has_body.then_some(&body.bytes),
            authority: &replica.authority,
            address,
        };
        // Boxed, so that its memory is gone while the answer streams.
        let mut attempt = Box::pin(forward::attempt(&self.shard.connector, &outbound, &self.snapshot.config.timeouts));
        loop {
            let prefilled = self.until(underway.prefilled_by());
            tokio::select! {
                biased;
                tried = &mut attempt => return Some(tried),
                _left = self.session.read_body_or_idle(true) => return None,
                () = prefilled => underway.prefilled(self.shard.core.clock.now()),
            }
        }
    }

    /// Waits as long as the request is held back ([`Hold`]).
    ///
    /// # Errors
    /// [`Reject::ClientClosed`], [`Reject::WaitedTooLong`], or that there is no replica left.
    pub(super) async fn hold_back(&mut self, placement: &mut Placement, body: &Body) -> Result<(), Reject> {
        if placement.hold().is_none() {
            return Ok(());
        }
        let before = self.shard.core.clock.now();
        let placed = self.wait_to_be_placed(placement, body, before).await;
        let waited_s = self.shard.core.clock.now().seconds_since(before);
        self.held_s += waited_s;
        self.shard.metrics.admission_wait.observe(waited_s);
        placed
    }

    async fn wait_to_be_placed(&mut self, placement: &mut Placement, body: &Body, from: Now) -> Result<(), Reject> {
        let core = Arc::clone(&self.shard.core);
        let limit = self.snapshot.config.timeouts.wait;
        let last = from.plus(limit);
        let mut counted = None;
        while let Some(hold) = placement.hold() {
            let books = &core.shared.slots;
            let again = match hold {
                Hold::Slot { again } => {
                    counted.get_or_insert_with(|| books.hold_back());
                    Some(again)
                }
                Hold::Line { again, .. } => again,
            };
            let again = self.until(Some(again.map_or(last, |again| again.min(last))));
            tokio::select! {
                () = freed(hold, books, placement.called()) => {}
                () = again => {}
                _left = self.session.read_body_or_idle(true) => return Err(Reject::ClientClosed),
            }
            let now = core.clock.now();
            if now.since(from) >= limit {
                return Err(Reject::WaitedTooLong { limit });
            }
            let snapshot = core.snapshot.load_full();
            if snapshot.generation() == self.snapshot.generation() {
                self.shard.decider.lock().look_again(&core.shared, &self.snapshot, placement, now)?;
            } else {
                // Replicas have come or gone: it is another decision.
                self.snapshot = snapshot;
                *placement = self.decide_anew(body, placement, now)?;
            }
        }
        Ok(())
    }

    /// Waits until the prefix that this request reuses has been computed, where that is still under way; `None` when
    /// the client left meanwhile.
    async fn wait_for_prefix(&mut self, underway: &mut Underway) -> Option<Waited> {
        let Some(awaited) = underway.take_awaited() else { return Some(Waited::No) };
        let before = self.shard.core.clock.now();
        let too_long = self.until(Some(awaited.until));
        let waited = tokio::select! {
            () = awaited.ticket.over() => Some(Waited::ForOther),
            () = too_long => Some(Waited::No),
            _left = self.session.read_body_or_idle(true) => None,
        };
        self.held_since(before);
        waited
    }

    fn held_since(&mut self, before: Now) {
        let held_s = self.shard.core.clock.now().seconds_since(before);
        self.held_s += held_s;
        self.shard.metrics.prefix_wait.observe(held_s);
    }

    /// Resolves at `when`; never, if there is no such time.
    fn until(&self, when: Option<Now>) -> impl Future<Output = ()> + Send + use<> {
        let wait = when.map(|when| when.since(self.shard.core.clock.now()));
        async move {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        }
    }

    /// What stands before the first token at the moment the request is sent.
    fn sent(&self, placement: &Placement, underway: &mut Underway) -> Sent {
        let (shared, slot) = (&self.shard.core.shared, placement.decision.chosen.slot);
        let at = self.shard.core.clock.now();
        underway.sent(shared, placement, at);
        Sent { at, tokens_ahead: shared.load.prefill_tokens(slot) }
    }

    /// Moves the request to another replica, if attempts, budget and fleet allow it.
    fn elsewhere(&self, placement: &mut Placement) -> bool {
        let retry = &self.snapshot.config.retry;
        let members =
            self.snapshot.fleet.pools.get(usize::from(placement.decision.pool.0)).map_or(0, |p| p.members.len());
        let most = usize::from(retry.attempts).min(pipeline::ATTEMPTS_MAX).min(members);
        if placement.attempts() >= most {
            return false;
        }
        let now = self.shard.core.clock.now();
        if !self.shard.budget.lock().withdraw(retry, now) {
            self.shard.metrics.retries_refused.inc();
            return false;
        }
        let moved =
            self.shard.decider.lock().place_again(&self.shard.core.shared, &self.snapshot, placement, now).is_ok();
        if moved {
            self.shard.metrics.retries.inc();
        }
        moved
    }

    /// What a status says of the replica: overload and the client's own errors say nothing bad.
    fn judge(&self, placement: &Placement, status: u16) {
        match status {
            500.. => self.note_failure(placement),
            // A success is one when the whole answer has come. Overload (429) is an answer.
            ..300 => {}
            _ => self.shard.core.shared.health.succeeded(placement.decision.chosen.slot),
        }
    }

    pub(super) fn note_failure(&self, placement: &Placement) {
        let core = &self.shard.core;
        let slot = placement.decision.chosen.slot;
        let peers = self.snapshot.fleet.pools.get(usize::from(placement.decision.pool.0));
        let peers = peers.map_or(&[][..], |pool| &pool.members);
        if core.shared.health.failed(slot, peers, &self.snapshot.config.ejection, core.clock.now()) {
            self.shard.metrics.ejections.inc();
        }
    }

    pub(super) fn replica_name(&self, placement: &Placement) -> &str {
        self.snapshot.fleet.replica(placement.decision.chosen.slot).map_or("?", |replica| &replica.config.id)
    }
}

/// Resolves when what a request is held back for may have become free.
async fn freed(hold: Hold, books: &SlotBooks, called: impl Future<Output = ()>) {
    match hold {
        Hold::Slot { .. } => books.freed().await,
        Hold::Line { .. } => called.await,
    }
}
