//! One request at the edge, from its head to its record: read the body, let the pipeline decide, forward, relay, and
//! tell the pipeline what came of it.

use super::attempts::Sent;
use super::body::{self, Body, BodyLimits};
use super::events::EventGate;
use super::forward::Answer;
use super::relay::{End, Relay, Seen};
use super::respond::{self, Dialect};
use super::shard::Shard;
use super::{headers, route, wish};
use crate::clock::Now;
use crate::parse::answer::AnswerReader;
use crate::parse::{Api, splice_model};
use crate::pipeline::{Answered, Asked, Hints, Placement, Snapshot, Underway, Wish};
use crate::reject::Reject;
use crate::telemetry::record::{Ending, Record, Taken};
use pingora_core::protocols::http::ServerSession;
use pingora_http::ResponseHeader;
use std::sync::Arc;
use std::time::Duration;

/// Header with a decision as compact JSON, on request.
const DECISION_HEADER: &str = "x-emberlane-decision";

/// What became of a request, for its record.
pub(super) struct Outcome {
    placement: Option<Placement>,
    status: u16,
    reject: Option<Reject>,
    seen: Option<Seen>,
    /// What the client's connection is good for now.
    then: Then,
}

/// What is left to do once a request is on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// The connection can take another request.
    Reuse,
    /// It cannot.
    Close,
    /// The client has yet to be told why there is no answer; its body was read.
    Tell,
    /// The same, but its body was not read.
    TellAndClose,
}

impl Outcome {
    pub(super) const fn rejected(placement: Option<Placement>, reject: Reject, then: Then) -> Self {
        Self { placement, status: reject.status(), reject: Some(reject), seen: None, then }
    }
}

/// One request of one client.
pub(super) struct Exchange<'e> {
    pub(super) shard: &'e Shard,
    pub(super) session: &'e mut ServerSession,
    pub(super) snapshot: Arc<Snapshot>,
    /// What it speaks; `None` for a path that is passed through.
    pub(super) api: Option<Api>,
    pub(super) dialect: Dialect,
    pub(super) started: Now,
    /// Seconds waited for prefixes under way.
    pub(super) held_s: f64,
}

impl Exchange<'_> {
    /// Serves the request. Returns whether the client's connection can take another.
    pub(super) async fn serve(mut self) -> bool {
        let outcome = self.answer().await;
        let (then, reject) = (outcome.then, outcome.reject);
        // A client that has been told may look at the records at once: they come first.
        self.record(outcome);
        match (then, reject) {
            (Then::Reuse, _) => true,
            (Then::Tell, Some(reject)) => {
                let retry_after = self.retry_after(reject);
                respond::reject(self.session, self.dialect, reject, retry_after).await
            }
            (Then::TellAndClose, Some(reject)) => {
                self.session.set_keepalive(None);
                let retry_after = self.retry_after(reject);
                respond::reject(self.session, self.dialect, reject, retry_after).await;
                body::linger(self.session).await;
                false
            }
            (Then::Close | Then::Tell | Then::TellAndClose, _) => false,
        }
    }

    /// When it may be better: where no replica takes requests, not before one of them is checked again.
    fn retry_after(&self, reject: Reject) -> Option<Duration> {
        if reject == Reject::NoReplica {
            return Some(self.shard.core.shared.health.retry_after(self.shard.core.clock.now()));
        }
        reject.retry_after()
    }

    async fn answer(&mut self) -> Outcome {
        let limits = BodyLimits {
            bytes: self.snapshot.config.limits.body_bytes,
            in_memory: self.snapshot.config.limits.body_bytes_in_flight,
            deadline: self.snapshot.config.timeouts.body,
        };
        let body = match body::read(self.session, &self.shard.body_memory, limits).await {
            Ok(body) => body,
            Err(Reject::ClientClosed) => return Outcome::rejected(None, Reject::ClientClosed, Then::Close),
            Err(reject) => return Outcome::rejected(None, reject, Then::TellAndClose),
        };
        // A body may take a minute to come: what is in force now is what counts.
        self.snapshot = self.shard.core.snapshot.load_full();
        let mut placement = match self.decide(&body) {
            Ok(placement) => placement,
            Err(reject) => return Outcome::rejected(None, reject, Then::Tell),
        };
        if let Err(reject) = self.hold_back(&mut placement, &body).await {
            let then = if reject == Reject::ClientClosed { Then::Close } else { Then::Tell };
            return Outcome::rejected(Some(placement), reject, then);
        }
        let body = self.rewritten(body, &placement);
        self.forward(placement, body).await
    }

    fn hints(&self) -> Result<Hints<'_>, Reject> {
        let request_headers = &self.session.req_header().headers;
        Ok(Hints {
            session: headers::first(request_headers, &route::SESSION_HEADERS),
            wish: if self.api.is_some() { wish::read(request_headers)? } else { Wish::default() },
        })
    }

    /// Decides anew on a request that has waited with `former`, by the present snapshot.
    pub(super) fn decide_anew(&self, body: &Body, former: &mut Placement, now: Now) -> Result<Placement, Reject> {
        let Some(api) = self.api else { return self.decide(body) };
        let asked = Asked { api, body: &body.bytes, hints: self.hints()? };
        self.shard.decider.lock().decide_anew(&self.shard.core.shared, &self.snapshot, asked, former, now)
    }

    fn decide(&self, body: &Body) -> Result<Placement, Reject> {
        let hints = self.hints()?;
        let core = &self.shard.core;
        let before = core.clock.now();
        let mut decider = self.shard.decider.lock();
        let placed = match self.api {
            Some(api) => decider.decide(&core.shared, &self.snapshot, api, &body.bytes, hints, before),
            None => decider.place_blind(&core.shared, &self.snapshot, before),
        };
        drop(decider);
        self.shard.metrics.decide.observe(core.clock.now().seconds_since(before));
        if let Some(age) = placed.as_ref().ok().and_then(|placement| placement.decision.chosen.load_age()) {
            self.shard.metrics.load_age.observe(age.as_secs_f64());
        }
        placed
    }

    /// The body as the replica shall see it: the client's bytes, with another model name where one is configured.
    fn rewritten(&self, mut body: Body, placement: &Placement) -> Body {
        let pool = self.snapshot.fleet.pools.get(usize::from(placement.decision.pool.0));
        if let Some(served_as) = pool.and_then(|pool| pool.served_as.as_deref())
            && !placement.model_span.is_empty()
        {
            body.bytes = splice_model(&body.bytes, placement.model_span.clone(), served_as);
        }
        body
    }

    pub(super) async fn relay(
        &mut self,
        mut placement: Placement,
        answer: Answer,
        mut underway: Underway,
        sent: Sent,
    ) -> Outcome {
        let status = answer.head.status.as_u16();
        let is_stream = is_event_stream(&answer.head);
        let head = match self.client_head(&placement, &answer) {
            Ok(head) => head,
            Err(reject) => return Outcome::rejected(Some(placement), reject, Then::Tell),
        };
        let is_plain = !answer.head.headers.contains_key(http::header::CONTENT_ENCODING);
        let ends_with_connection = !answer.head.headers.contains_key(http::header::CONTENT_LENGTH)
            && !answer.head.headers.contains_key(http::header::TRANSFER_ENCODING);
        let reader =
            self.api.map(|api| if is_stream { AnswerReader::for_stream(api) } else { AnswerReader::for_json(api) });
        let reader = reader.map(|reader| if placement.goes_on() { reader.telling() } else { reader });
        let relay = Relay {
            shard: self.shard,
            session: self.session,
            underway: &mut underway,
            placement: &mut placement,
            reader,
            dialect: self.dialect,
            timeouts: &self.snapshot.config.timeouts,
            is_stream,
            gate: (is_stream && is_plain).then(EventGate::default),
            ends_with_connection,
        };
        let seen = Box::pin(relay.run(answer, head)).await;
        let is_followed = underway.is_followed();
        drop(underway);
        if status < 400 {
            self.learn(&placement, &seen, sent, is_followed);
        }
        let reject = match seen.end {
            End::Complete => None,
            End::ClientLeft => Some(Reject::ClientClosed),
            End::Broken(reject) => {
                self.note_failure(&placement);
                Some(reject)
            }
        };
        let then = if seen.is_framed { Then::Reuse } else { Then::Close };
        Outcome { placement: Some(placement), status, reject, seen: Some(seen), then }
    }

    fn client_head(&self, placement: &Placement, answer: &Answer) -> Result<ResponseHeader, Reject> {
        let replica = self.replica_name(placement);
        let request = self.session.req_header();
        let has_body = request.method != http::Method::HEAD && !matches!(answer.head.status.as_u16(), 204 | 304);
        let needs_chunked = has_body
            && !self.session.is_http2()
            && request.version == http::Version::HTTP_11
            && !answer.head.headers.contains_key(http::header::CONTENT_LENGTH);
        let mut head = headers::client_response(&answer.head, replica, needs_chunked)
            .map_err(|_unsettable| Reject::UpstreamInvalid)?;
        if request.headers.get("x-emberlane-explain").is_some_and(|value| value.as_bytes() == b"1") {
            let decision = crate::telemetry::record::decision_json(&placement.decision, &self.snapshot).to_string();
            // A header that cannot be set must not cost the answer.
            let _unsettable = head.insert_header(DECISION_HEADER, decision);
        }
        Ok(head)
    }

    /// Tells the pipeline what the answer taught.
    fn learn(&self, placement: &Placement, seen: &Seen, sent: Sent, is_followed: bool) {
        let (shared, now) = (&self.shard.core.shared, self.shard.core.clock.now());
        let total = now.seconds_since(sent.at);
        let nothing_came = if seen.is_stream { seen.content_events == 0 } else { seen.bytes == 0 };
        if seen.told_failure || (seen.end != End::Complete && nothing_came) {
            shared.retract(placement);
            return;
        }
        if !matches!(seen.end, End::Broken(_)) {
            shared.health.succeeded(placement.decision.chosen.slot);
        }
        shared.confirm(placement);
        if seen.end != End::Complete {
            return;
        }
        let leaves_cache = self.api.is_some_and(Api::leaves_cache);
        let answer = Answered {
            tokens_ahead: sent.tokens_ahead,
            held_s: sent.at.seconds_since(placement.placed_at()),
            first_token_s: seen.first_token.map(|first| first.seconds_since(sent.at)),
            total_s: total,
            usage: seen.usage,
            is_followed,
        };
        if let (Some(tokens), Some(cached), true) = (seen.usage.prompt_tokens, seen.usage.cached_tokens, leaves_cache) {
            self.shard.metrics.cached_tokens(f64::from(placement.decision.chosen.warm_tokens), cached, tokens);
        }
        if let (Some(first), true) = (seen.first_token, shared.rates.is_predictable(placement.decision.chosen.slot)) {
            let actual_s = first.seconds_since(placement.placed_at());
            self.shard.metrics.predicted_ttft(f64::from(placement.decision.chosen.predicted.ttft_p50_s), actual_s);
        }
        if shared.learn(&self.snapshot, placement, &answer, leaves_cache).is_cache_lost {
            let replica = self.replica_name(placement);
            tracing::warn!(replica, "replica holds nothing of what it should: taken to have restarted");
        }
    }

    /// Leaves the decision record and the metrics of a finished request.
    fn record(&self, outcome: Outcome) {
        let now = self.shard.core.clock.now();
        let ending = Ending {
            status: outcome.status,
            reject: outcome.reject,
            total_s: now.seconds_since(self.started),
            ttft_s: outcome.seen.and_then(|seen| seen.first_token).map(|first| first.seconds_since(self.started)),
            usage: outcome.seen.map(|seen| seen.usage).unwrap_or_default(),
            taken: outcome.placement.as_ref().zip(outcome.seen).and_then(|(placement, seen)| taken(placement, &seen)),
            attempts: outcome.placement.as_ref().map_or(0, Placement::attempts),
            held_s: self.held_s,
        };
        self.shard.metrics.finished(self.api, outcome.placement.as_ref().map(|p| &p.decision), &ending);
        super::access::log(self.shard, &self.snapshot, self.api, outcome.placement.as_ref(), &ending);
        if let Some(placement) = outcome.placement {
            let snapshot = Arc::clone(&self.snapshot);
            self.shard.ring.push(Record { decision: placement.decision, snapshot, ending });
            self.shard.decider.lock().recycle(placement);
        } else {
            self.shard.ring.refused(ending);
        }
    }
}

/// The times that were predicted, as they were.
fn taken(placement: &Placement, seen: &Seen) -> Option<Taken> {
    let (first, last) = (seen.first_token?, seen.last_token?);
    let further = seen.usage.output_tokens.unwrap_or(seen.content_events).saturating_sub(1);
    #[expect(clippy::cast_precision_loss, reason = "tokens are far below 2^52")]
    let tpot_s = (further > 0).then(|| last.seconds_since(first) / further as f64);
    Some(Taken { ttft_s: first.seconds_since(placement.placed_at()), tpot_s })
}

fn is_event_stream(head: &ResponseHeader) -> bool {
    head.headers.get(http::header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}
