//! The demo with a stand-in for the gateway: an HTTP forwarder that takes replicas in turn, or by the prompt's start.

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::BytesMut;
use pingora_core::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream, ServerApp};
use pingora_core::connectors::http::Connector;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::server::ShutdownWatch;
use pingora_core::upstreams::peer::HttpPeer;
use tokio::sync::watch;

use super::*;

struct Forwarder {
    connector: Connector,
    peers: Vec<HttpPeer>,
    by_prompt: bool,
    turn: AtomicUsize,
}

#[async_trait]
impl HttpServerApp for Forwarder {
    async fn process_new_http(
        self: &Arc<Self>,
        mut down: ServerSession,
        _: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if !down.read_request().await.ok()? {
            return None;
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = down.read_request_body().await.ok()? {
            body.extend_from_slice(&chunk);
        }
        let number = if self.by_prompt {
            // The team's number stands early in its system prompt; one-off prompts differ from the start.
            let start = body.windows(9).position(|bytes| bytes == b"\"content\"").unwrap_or(0);
            body.iter()
                .skip(start)
                .take(40)
                .fold(7_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(*byte)))
        } else {
            self.turn.fetch_add(1, Ordering::Relaxed)
        };
        let peer = &self.peers[number % self.peers.len()];
        let (mut up, _) = self.connector.get_http_session(peer).await.ok()?;
        up.write_request_header(Box::new(down.req_header().clone())).await.ok()?;
        up.write_request_body(body.freeze(), true).await.ok()?;
        up.finish_request_body().await.ok()?;
        up.read_response_header().await.ok()?;
        down.write_response_header(Box::new(up.response_header()?.clone())).await.ok()?;
        while let Some(chunk) = up.read_response_body().await.ok()? {
            down.write_response_body(chunk, false).await.ok()?;
        }
        down.write_response_body(Bytes::new(), true).await.ok()?;
        self.connector.release_http_session(up, peer, Some(Duration::from_secs(3))).await;
        let settings = HttpPersistentSettings::for_session(&down);
        Some(ReusedHttpStream::from_reusable_stream(down.finish().await.ok()??, settings))
    }
}

struct StandIn {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl RunningGateway for StandIn {
    fn listen_addr(&self) -> SocketAddr {
        self.addr
    }
    fn admin_addr(&self) -> Option<SocketAddr> {
        None
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.thread.take().unwrap().join().unwrap();
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of a gateway's start")]
fn stand_in(config: Config) -> Result<Box<dyn RunningGateway>, String> {
    let listener = TcpListener::bind(config.listen[0]).map_err(|error| error.to_string())?;
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    let peers = config.replicas.iter().map(|replica| {
        let addr = replica.url.socket_addrs(|| None).unwrap()[0];
        HttpPeer::new(addr, false, String::new())
    });
    let app = Arc::new(Forwarder {
        connector: Connector::new(None),
        peers: peers.collect(),
        by_prompt: config.policy.name != PolicyName::RoundRobin,
        turn: AtomicUsize::new(0),
    });
    let (stop, mut stopped) = watch::channel(false);
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let shutdown = stopped.clone();
            loop {
                let stream = tokio::select! {
                    _ = stopped.wait_for(|stop| *stop) => return,
                    accepted = listener.accept() => accepted.unwrap().0,
                };
                let (app, shutdown) = (Arc::clone(&app), shutdown.clone());
                tokio::spawn(async move { app.process_new(Box::new(Stream::from(stream)), &shutdown).await });
            }
        });
        runtime.shutdown_background();
    });
    Ok(Box::new(StandIn { addr, stop, thread: Some(thread) }))
}

#[test]
fn both_fleets_get_the_same_traffic_and_the_report_adds_up() {
    let options = DemoOptions { replicas: 2, duration: Some(Duration::from_millis(2_500)), ..DemoOptions::default() };
    let mut out = Vec::new();
    let reports = run(&options, &stand_in, &mut out, false).unwrap();
    let text = String::from_utf8(out).unwrap();
    let [chosen, baseline] = reports.as_slice() else { panic!("{reports:?}") };
    assert_eq!((chosen.policy, baseline.policy), ("price", "round_robin"));
    for report in &reports {
        assert!(report.requests > 3 && report.failures == 0, "{report:?}");
        assert!(report.ttft_p95 >= report.ttft_p50 && report.ttft_p50 > Duration::ZERO);
        assert_eq!(report.by_replica.len(), 2);
    }
    assert!(text.contains("   2 s  price: ") && text.contains("prompt tokens reused"), "{text}");
}

#[test]
fn a_gateway_that_does_not_start_is_an_error() {
    let options = DemoOptions { replicas: 2, ..DemoOptions::default() };
    let refused = run(&options, &|_| Err("no".to_owned()), &mut Vec::new(), false);
    assert!(matches!(refused, Err(DemoError::Gateway(reason)) if reason == "no"));
}

/// Not a check but the way to tune the demo's load: `cargo test --lib demo -- --ignored --nocapture`.
#[test]
#[ignore = "runs for twenty seconds"]
fn full_length() {
    let mut out = Vec::new();
    run(&DemoOptions::default(), &stand_in, &mut out, false).unwrap();
    Write::write_all(&mut io::stderr(), &out).unwrap();
}
