//! One core's share of the gateway: a pinned single-thread runtime with its own listening sockets, its own pool of
//! connections to replicas, and its own decision maker. Shards share only what [`Core`] holds.

use super::body::{self, BodyMemory};
use super::core::Core;
use super::exchange::Exchange;
use super::headers;
use super::respond::{self, Dialect};
use super::retry::RetryBudget;
use super::route::{self, Route};
use crate::load::ring::Inbox;
use crate::pipeline::{Decider, Snapshot};
use crate::reject::Reject;
use crate::telemetry::metrics::ShardMetrics;
use crate::telemetry::record::Ring;
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora_core::connectors::ConnectorOptions;
use pingora_core::connectors::http::v1::Connector;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::H2Options;
use pingora_core::server::ShutdownWatch;
use pingora_error::ErrorType;
use std::sync::Arc;
use std::time::Duration;

/// Idle connections to replicas that one shard keeps.
const UPSTREAM_POOL: usize = 1024;
/// HTTP/2 windows: the default of 64 KiB makes uploads of long prompts slow.
const H2_WINDOW: u32 = 1 << 20;
const H2_STREAMS_MAX: u32 = 1024;
const H2_HEADERS_MAX: u32 = 64 * 1024;
/// How long an idle client connection may still bring a request once the process is stopping.
const IDLE_AT_STOP: Duration = Duration::from_secs(1);

/// One shard's state. Its locks are never waited for: only the shard's own thread takes them.
pub struct Shard {
    pub(super) core: Arc<Core>,
    pub(super) connector: Connector,
    pub(super) decider: Arc<Mutex<Decider>>,
    pub(super) budget: Mutex<RetryBudget>,
    pub(super) body_memory: Arc<BodyMemory>,
    pub(super) metrics: ShardMetrics,
    pub(super) ring: Arc<Ring>,
    pub(super) access: super::access::Sampler,
    options: HttpServerOptions,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("body_memory", &self.body_memory).finish_non_exhaustive()
    }
}

impl Shard {
    /// The shard numbered `index` of `count`, which hears load reports through `inbox`.
    #[must_use]
    pub fn new(core: &Arc<Core>, index: usize, count: usize, ring: Arc<Ring>, inbox: Inbox) -> Self {
        let snapshot = core.snapshot.load();
        let mut decider = Decider::new(&snapshot.config, core.slots_max, index as u64, count as u64, fastrand::u64(..));
        decider.attach(inbox);
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        options.h2_idle_timeout = Some(snapshot.config.timeouts.client_idle);
        Self {
            connector: Connector::new(Some(ConnectorOptions::new(UPSTREAM_POOL))),
            decider: Arc::new(Mutex::new(decider)),
            budget: Mutex::new(RetryBudget::new(&snapshot.config.retry, core.clock.now())),
            body_memory: Arc::new(BodyMemory::default()),
            metrics: core.metrics.shard(),
            ring,
            access: super::access::Sampler::default(),
            core: Arc::clone(core),
            options,
        }
    }

    /// Hears load reports while no request does: for the shard's own thread, and without end.
    pub fn hearing(&self) -> impl Future<Output = ()> + Send + use<> {
        hear(Arc::clone(&self.core), Arc::clone(&self.decider))
    }

    /// Waits for the next request on a connection. `None`: nothing more will come.
    async fn next_request(&self, session: &mut ServerSession, shutdown: &ShutdownWatch) -> Option<bool> {
        let mut stopping = shutdown.clone();
        let read = tokio::select! {
            biased;
            read = session.read_request() => read,
            () = async {
                // An error means that the server is gone altogether.
                let _changed = stopping.wait_for(|stop| *stop).await.map(|_| ());
                tokio::time::sleep(IDLE_AT_STOP).await;
            } => return None,
        };
        match read {
            Ok(true) => Some(true),
            Ok(false) => None,
            Err(error) => {
                self.refuse_head(session, &error).await;
                None
            }
        }
    }

    /// Answers a head that could not be read; what it asked for is unknown, so OpenAI's shape it is.
    async fn refuse_head(&self, session: &mut ServerSession, error: &pingora_error::Error) {
        let too_large = error.context.as_ref().is_some_and(|context| context.as_str().contains("larger than"))
            || error.cause.as_ref().is_some_and(|cause| cause.to_string().contains("too many headers"));
        if *error.etype() != ErrorType::InvalidHTTPHeader {
            return;
        }
        let reject = if too_large { Reject::HeadersTooLarge } else { Reject::Framing };
        self.metrics.refused_heads.inc();
        let (status, body) = (reject.status(), Dialect::OpenAi.error_body(reject));
        let mut head = pingora_http::ResponseHeader::build(status, None).ok();
        if let Some(head) = head.as_mut() {
            let framed = head.insert_header("content-type", "application/json").is_ok()
                && head.insert_header("content-length", body.len().to_string()).is_ok()
                && head.insert_header("connection", "close").is_ok();
            if !framed {
                return;
            }
        }
        session.set_keepalive(None);
        if let Some(head) = head {
            // The client may be gone: nothing is owed to it then.
            if session.write_response_header(Box::new(head)).await.is_ok() {
                let _sent = session.write_response_body(body.into(), true).await;
            }
        }
    }

    async fn serve(&self, session: &mut ServerSession) -> bool {
        let started = self.core.clock.now();
        let snapshot = self.core.snapshot.load_full();
        let request = session.req_header();
        let path = request.uri.path();
        let dialect = Dialect::of(path, request.headers.contains_key("anthropic-version"));
        let route = route::route(&request.method, path, snapshot.config.passthrough);
        if let Err(reject) = headers::check_head(session) {
            session.set_keepalive(None);
            self.metrics.refused_heads.inc();
            respond::reject(session, dialect, reject, reject.retry_after()).await;
            body::linger(session).await;
            return false;
        }
        let api = match route {
            Ok(Route::Inference(api)) => Some(api),
            Ok(Route::Passthrough) => None,
            Ok(own) => return self.answer(session, &snapshot, own, dialect).await,
            Err(reject) => return self.refuse(session, dialect, reject).await,
        };
        Exchange { shard: self, session, snapshot, api, dialect, started, held_s: 0.0 }.serve().await
    }

    async fn answer(&self, session: &mut ServerSession, snapshot: &Snapshot, route: Route, dialect: Dialect) -> bool {
        let json = |body| (200, "application/json", body);
        let (status, kind, body) = match route {
            Route::Models => json(respond::models(&snapshot.fleet)),
            Route::Model => {
                let name = session.req_header().uri.path().trim_start_matches("/v1/models/");
                match respond::model(&snapshot.fleet, name) {
                    Some(body) => json(body),
                    None => return self.refuse(session, dialect, Reject::UnknownModel).await,
                }
            }
            Route::Health | Route::Passthrough | Route::Inference(_) => (200, "text/plain", "ok\n".into()),
        };
        let drained = session.drain_request_body().await.is_ok();
        respond::whole(session, status, &[("content-type", kind.to_owned())], body).await && drained
    }

    async fn refuse(&self, session: &mut ServerSession, dialect: Dialect, reject: Reject) -> bool {
        self.metrics.refused_route(reject);
        if session.is_body_empty() {
            return respond::reject(session, dialect, reject, reject.retry_after()).await;
        }
        session.set_keepalive(None);
        respond::reject(session, dialect, reject, reject.retry_after()).await;
        body::linger(session).await;
        false
    }
}

/// Takes up what replicas say, whenever the bell of `decider` rings.
pub(crate) async fn hear(core: Arc<Core>, decider: Arc<Mutex<Decider>>) {
    let Some(bell) = decider.lock().bell() else { return };
    let mut dropped = 0;
    loop {
        bell.rung().await;
        decider.lock().hear(&core.shared, core.clock.now());
        let before = std::mem::replace(&mut dropped, bell.dropped());
        core.metrics.load.lost_reports.inc_by(dropped - before);
    }
}

#[async_trait]
impl HttpServerApp for Shard {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let _open = self.core.open_connection();
        session.set_pipelining_enabled(true);
        let timeouts = self.core.snapshot.load().config.timeouts;
        session.set_read_timeout(Some(timeouts.body));
        session.set_write_timeout(Some(timeouts.gap));
        let limit = timeouts.client_idle + timeouts.body;
        tokio::time::timeout(limit, self.next_request(&mut session, shutdown)).await.ok()??;
        let busy = self.core.open_request();
        let stopping = *shutdown.borrow();
        // What the client does not want (HTTP/1.0, `Connection: close`) stays off.
        let keeps = session.get_keepalive().is_some() && !stopping;
        session.set_keepalive(keeps.then_some(timeouts.client_idle.as_secs().max(1)));
        let reusable = self.serve(&mut session).await;
        drop(busy);
        if !reusable {
            session.shutdown().await;
            return None;
        }
        let settings = HttpPersistentSettings::for_session(&session);
        let stream = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(stream, settings))
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }

    fn h2_options(&self) -> Option<H2Options> {
        let mut options = H2Options::new();
        options
            .initial_window_size(H2_WINDOW)
            .initial_connection_window_size(H2_WINDOW * 16)
            .max_concurrent_streams(H2_STREAMS_MAX)
            .max_header_list_size(H2_HEADERS_MAX);
        Some(options)
    }
}
