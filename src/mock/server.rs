//! The HTTP side of a mock engine: routes, faults, the echo, and answers that stop the moment the client leaves.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{Method, header};
use parking_lot::Mutex;
use pingora_core::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use pingora_http::{RequestHeader, ResponseHeader};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::answer::{self, Answer};
use super::engine::{Engine, TooLong};
use super::faults::{CloseAt, Dealer, Faults, Plan};
use super::prompt::{Tokens, Work, word};
use super::{MockEngineConfig, metrics};
use crate::clock::Clock;
use crate::parse::Api;

/// Largest body taken.
const BODY_LIMIT: usize = 256 << 20;

/// What a finished connection is handed on as; `None` closes it.
type Reuse = Option<ReusedHttpStream>;

/// One mock engine as a Pingora application.
#[derive(Debug)]
pub(super) struct App {
    pub(super) engine: Arc<Engine>,
    pub(super) faults: Mutex<Dealer>,
    id: String,
    answers: AtomicU64,
    options: HttpServerOptions,
}

/// A plain answer.
struct Plain {
    status: u16,
    content_type: &'static str,
    retry_after_s: Option<u32>,
    body: Bytes,
}

impl Plain {
    fn json(status: u16, value: &Value) -> Self {
        Self { status, content_type: "application/json", retry_after_s: None, body: value.to_string().into() }
    }

    fn error(api: Option<Api>, status: u16, message: &str) -> Self {
        Self::json(status, &answer::error(api, status, message))
    }

    fn text(body: String) -> Self {
        Self {
            status: 200,
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            retry_after_s: None,
            body: body.into(),
        }
    }
}

#[async_trait]
impl HttpServerApp for App {
    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }

    async fn process_new_http(self: &Arc<Self>, mut session: ServerSession, _shutdown: &ShutdownWatch) -> Reuse {
        if !session.read_request().await.ok()? {
            return None;
        }
        self.serve(Box::new(session)).await
    }
}

impl App {
    pub(super) fn new(engine: Arc<Engine>, id: String) -> Self {
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        let faults = Mutex::new(Dealer::new(engine.config().faults.clone()));
        Self { engine, faults, id, answers: AtomicU64::new(0), options }
    }

    async fn serve(&self, mut session: Box<ServerSession>) -> Reuse {
        let head = session.req_header();
        let (method, path) = (head.method.clone(), head.uri.path().to_owned());
        if path.starts_with("/mock/") {
            let body = self.read_body(&mut session).await?;
            let plain = self.control(&method, &path, &body);
            return self.reply(session, plain, None).await;
        }
        let api = Api::from_path(&path).filter(|_| method == Method::POST);
        let is_echo = head.headers.contains_key("x-mock-echo");
        if api.is_some() || is_echo {
            self.engine.count(|stats| stats.requests += 1);
        }
        let plan = Plan::from_headers(head).or_else(|| self.faults.lock().deal(api.is_some() || is_echo));
        if plan.is_some() {
            self.engine.count(|stats| stats.faulted += 1);
        }
        let plan = plan.unwrap_or_default();
        if plan.close == Some(CloseAt::Head) {
            return None;
        }
        let body = self.read_body(&mut session).await?;
        if let Some(end) = self.misbehave(&mut session, &plan, api).await? {
            return match end {
                Misdeed::Close => None,
                Misdeed::Garbage => garbage(session).await,
                Misdeed::Answer(plain) => self.reply(session, plain, None).await,
            };
        }
        if is_echo {
            let plain = Plain::json(200, &echo(session.req_header(), &body));
            return self.reply(session, plain, plan.close).await;
        }
        match api {
            Some(api) => self.infer(session, api, &body, &plan).await,
            None => {
                let plain = self.get(&method, &path);
                self.reply(session, plain, plan.close).await
            }
        }
    }

    /// The whole body; `None` when the client left or sent too much.
    async fn read_body(&self, session: &mut ServerSession) -> Option<Bytes> {
        if session.get_header(header::EXPECT).is_some() {
            session.write_continue_response().await.ok()?;
        }
        let Some(first) = session.read_request_body().await.ok()? else { return Some(Bytes::new()) };
        let mut whole: Option<BytesMut> = None;
        while let Some(more) = session.read_request_body().await.ok()? {
            let whole = whole.get_or_insert_with(|| BytesMut::from(first.as_ref()));
            whole.extend_from_slice(&more);
            if whole.len() > BODY_LIMIT {
                return None;
            }
        }
        Some(whole.map_or(first, BytesMut::freeze))
    }

    /// Carries out what of `plan` comes before the answer. `None`: the client left.
    async fn misbehave(&self, session: &mut ServerSession, plan: &Plan, api: Option<Api>) -> Option<Option<Misdeed>> {
        if plan.hang {
            unless_gone(session, std::future::pending::<()>()).await?;
        }
        if !plan.head_delay.is_zero() {
            unless_gone(session, tokio::time::sleep(plan.head_delay)).await?;
        }
        if plan.close == Some(CloseAt::Body) {
            return Some(Some(Misdeed::Close));
        }
        if plan.garbage {
            return Some(Some(Misdeed::Garbage));
        }
        Some(plan.status.map(|status| {
            let mut plain = Plain::error(api, status, "asked to fail");
            plain.retry_after_s = plan.retry_after_s;
            Misdeed::Answer(plain)
        }))
    }

    fn get(&self, method: &Method, path: &str) -> Plain {
        let config = self.engine.config();
        match path {
            "/health" | "/ping" => Plain::text(String::new()),
            "/metrics" => Plain::text(metrics::render(config, &self.engine.stats())),
            "/v1/models" if method == Method::GET => Plain::json(200, &models(config)),
            _ if Api::from_path(path).is_some() => Plain::error(None, 405, "use POST"),
            _ => Plain::json(404, &json!({"detail": "Not Found"})),
        }
    }

    fn control(&self, method: &Method, path: &str, body: &[u8]) -> Plain {
        let state = || json!({"id": self.id, "stats": self.engine.stats(), "faults": self.faults.lock().faults()});
        match (method.as_str(), path) {
            ("GET", "/mock/stats") => Plain::json(200, &state()),
            ("POST", "/mock/faults") => match serde_json::from_slice::<Faults>(body) {
                Ok(faults) => {
                    *self.faults.lock() = Dealer::new(faults);
                    Plain::json(200, &state())
                }
                Err(error) => Plain::error(None, 400, &error.to_string()),
            },
            ("POST", "/mock/restart") => {
                self.engine.clear_cache();
                Plain::json(200, &state())
            }
            _ => Plain::json(404, &json!({"detail": "GET /mock/stats, POST /mock/faults, POST /mock/restart"})),
        }
    }

    async fn infer(&self, session: Box<ServerSession>, api: Api, body: &[u8], plan: &Plan) -> Reuse {
        let config = self.engine.config();
        let refusal = match Work::parse(api, body, config.bytes_per_token) {
            Err(error) => Plain::error(Some(api), 400, &error.to_string()),
            Ok(work) => match &work.model {
                Some(model) if !config.models.is_empty() && !config.models.contains(model) => {
                    Plain::error(Some(api), 404, &format!("The model `{model}` does not exist."))
                }
                _ if work.is_stream && generates(api) => return self.stream(session, work, plan).await,
                _ => return self.whole(session, work, plan).await,
            },
        };
        self.engine.count(|stats| stats.refused += 1);
        self.reply(session, refusal, None).await
    }

    fn answer(&self, work: &Work) -> Answer {
        let first = self.engine.config().models.first();
        Answer {
            api: work.api,
            number: self.answers.fetch_add(1, Ordering::Relaxed),
            created: Clock::unix_ms() / 1_000,
            model: work.model.clone().or_else(|| first.cloned()).unwrap_or_default(),
            prompt_tokens: 0,
            cached_tokens: 0,
            output_tokens: 0,
            is_cut: work.is_limited,
            include_usage: work.include_usage,
        }
    }

    async fn whole(&self, mut session: Box<ServerSession>, work: Work, plan: &Plan) -> Reuse {
        let plain = match work.api {
            Api::CountTokens => Plain::json(200, &json!({"input_tokens": work.prompts.first().map_or(0, Tokens::len)})),
            Api::Tokenize => Plain::json(200, &tokenized(&work, self.engine.config())),
            Api::Detokenize => {
                let text = work.prompts.first().map_or_else(String::new, Tokens::text);
                Plain::json(200, &json!({"prompt": text}))
            }
            Api::ChatCompletions
            | Api::Completions
            | Api::Responses
            | Api::Messages
            | Api::Embeddings
            | Api::Rerank => unless_gone(&mut session, Box::pin(self.run(work))).await?,
        };
        self.reply(session, plain, plan.close).await
    }

    /// Runs the prompts one after the other and answers at once.
    async fn run(&self, mut work: Work) -> Plain {
        let mut answer = self.answer(&work);
        let (mut texts, mut seeds) = (Vec::new(), Vec::new());
        for tokens in &mut work.prompts {
            let mut running = match self.engine.prefill(tokens).await {
                Ok(running) => running,
                Err(error) => return self.too_long(work.api, error),
            };
            answer.prompt_tokens += running.prompt_tokens;
            answer.cached_tokens += running.cached_tokens;
            let (seed, mut text) = (tokens.seed(), String::new());
            if generates(work.api) {
                for at in 0..work.max_tokens {
                    running.token().await;
                    text.push_str(&word(seed, at, self.engine.config().bytes_per_token));
                }
                answer.output_tokens += u64::from(work.max_tokens);
                tokens.push(&text);
            }
            running.finish(tokens);
            seeds.push(seed);
            texts.push(text);
        }
        let value = if work.api == Api::Embeddings {
            answer::embeddings(&answer, &seeds)
        } else if work.api == Api::Rerank {
            answer::rerank(&answer, &seeds)
        } else {
            answer.whole(&texts)
        };
        Plain::json(200, &value)
    }

    /// Runs the prompts one after the other and sends each word as it comes.
    async fn stream(&self, mut session: Box<ServerSession>, mut work: Work, plan: &Plan) -> Reuse {
        let bytes_per_token = self.engine.config().bytes_per_token;
        let mut answer = self.answer(&work);
        let (mut text, mut chunks) = (String::new(), 0_u32);
        let mut is_started = false;
        if self.engine.config().is_head_early {
            self.stream_head(&mut session).await?;
            is_started = true;
        }
        for (index, tokens) in work.prompts.iter_mut().enumerate() {
            let mut running = match unless_gone(&mut session, self.engine.prefill(tokens)).await? {
                Ok(running) => running,
                Err(error) if !is_started => {
                    let plain = self.too_long(work.api, error);
                    return self.reply(session, plain, None).await;
                }
                Err(_too_late_to_say) => return None,
            };
            answer.prompt_tokens += running.prompt_tokens;
            answer.cached_tokens += running.cached_tokens;
            if !is_started {
                self.stream_head(&mut session).await?;
                is_started = true;
            }
            let (seed, prior) = (tokens.seed(), text.len());
            for at in 0..work.max_tokens {
                unless_gone(&mut session, running.token()).await?;
                if plan.close == Some(CloseAt::Mid) && chunks >= plan.close_after_chunks {
                    return None;
                }
                if at == 0 && index == 0 {
                    send(&mut session, answer.stream_start()).await?;
                }
                let word = word(seed, at, bytes_per_token);
                text.push_str(&word);
                send(&mut session, answer.stream_word(index, at, &word)).await?;
                chunks += 1;
            }
            answer.output_tokens += u64::from(work.max_tokens);
            tokens.push(text.get(prior..).unwrap_or_default());
            running.finish(tokens);
            send(&mut session, answer.stream_prompt_end(index)).await?;
        }
        session.write_response_body(answer.stream_end(&text), true).await.ok()?;
        reuse(session).await
    }

    async fn stream_head(&self, session: &mut ServerSession) -> Option<()> {
        let mut head = self.head(200, "text/event-stream; charset=utf-8")?;
        head.insert_header(header::CACHE_CONTROL, "no-cache").ok()?;
        if !session.is_http2() {
            head.insert_header(header::TRANSFER_ENCODING, "chunked").ok()?;
        }
        session.write_response_header(Box::new(head)).await.ok()
    }

    fn too_long(&self, api: Api, error: TooLong) -> Plain {
        self.engine.count(|stats| stats.refused += 1);
        let TooLong { prompt_tokens, limit } = error;
        let message = format!("This model's maximum context length is {limit} tokens; the prompt has {prompt_tokens}.");
        Plain::error(Some(api), 400, &message)
    }

    fn head(&self, status: u16, content_type: &str) -> Option<ResponseHeader> {
        let mut head = ResponseHeader::build(status, Some(6)).ok()?;
        head.insert_header(header::CONTENT_TYPE, content_type).ok()?;
        head.insert_header("x-mock-engine", &self.id).ok()?;
        Some(head)
    }

    /// Sends a plain answer; with `close` in its middle, half of it.
    async fn reply(&self, mut session: Box<ServerSession>, plain: Plain, close: Option<CloseAt>) -> Reuse {
        let mut head = self.head(plain.status, plain.content_type)?;
        head.set_content_length(plain.body.len()).ok()?;
        if let Some(seconds) = plain.retry_after_s {
            head.insert_header(header::RETRY_AFTER, seconds.to_string()).ok()?;
        }
        session.write_response_header(Box::new(head)).await.ok()?;
        if close == Some(CloseAt::Mid) {
            let half = plain.body.slice(..plain.body.len() / 2);
            send(&mut session, half).await?;
            return None;
        }
        session.write_response_body(plain.body, true).await.ok()?;
        reuse(session).await
    }
}

/// A fault that takes the place of the answer.
enum Misdeed {
    Close,
    Garbage,
    Answer(Plain),
}

const fn generates(api: Api) -> bool {
    matches!(api, Api::ChatCompletions | Api::Completions | Api::Responses | Api::Messages)
}

/// Runs `work` to its end, or drops it when the client leaves.
async fn unless_gone<T>(session: &mut ServerSession, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        _gone = session.read_body_or_idle(true) => None,
    }
}

async fn send(session: &mut ServerSession, chunk: Bytes) -> Option<()> {
    // An empty chunk would end a chunked body.
    if chunk.is_empty() { Some(()) } else { session.write_response_body(chunk, false).await.ok() }
}

async fn reuse(session: Box<ServerSession>) -> Reuse {
    let settings = HttpPersistentSettings::for_session(&session);
    let stream = session.finish().await.ok()??;
    Some(ReusedHttpStream::from_reusable_stream(stream, settings))
}

/// Writes bytes that no HTTP client understands. HTTP/2 streams are closed.
async fn garbage(session: Box<ServerSession>) -> Reuse {
    if let ServerSession::H1(session) = *session {
        let mut stream = session.into_inner();
        stream.write_all(b"\x16\x03\x01 this is not HTTP \xff\xfe\r\n\r\n\0\0\0\0").await.ok()?;
        stream.flush().await.ok()?;
        stream.shutdown().await.ok()?;
    }
    None
}

fn models(config: &MockEngineConfig) -> Value {
    let data: Vec<Value> = config
        .models
        .iter()
        .map(|name| {
            json!({"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "mock",
                   "root": name, "parent": null, "max_model_len": config.kv_tokens})
        })
        .collect();
    json!({"object": "list", "data": data})
}

fn tokenized(work: &Work, config: &MockEngineConfig) -> Value {
    let ids = work.prompts.first().map_or_else(Vec::new, Tokens::ids);
    json!({"count": ids.len(), "max_model_len": config.kv_tokens, "tokens": ids})
}

/// What arrived, so that a test can tell that it is what was sent.
fn echo(head: &RequestHeader, body: &[u8]) -> Value {
    let text = |name: header::HeaderName| head.headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()));
    let headers: Vec<Value> = head
        .headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect();
    let model = serde_json::from_slice::<Value>(body).ok().and_then(|json| json.get("model").cloned());
    json!({
        "len": body.len(),
        "fnv1a64": format!("{:016x}", fnv1a64(body)),
        "content_length": text(header::CONTENT_LENGTH),
        "transfer_encoding": text(header::TRANSFER_ENCODING),
        "version": format!("{:?}", head.version),
        "method": head.method.as_str(),
        "path": head.uri.path_and_query().map(http::uri::PathAndQuery::as_str),
        "model": model,
        "headers": headers,
    })
}

/// 64-bit FNV-1a (<http://www.isthe.com/chongo/tech/comp/fnv/>).
fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
