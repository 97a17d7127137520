//! Listens to an engine's KV events over ZeroMQ, and tells what they come to. Reconnects for ever, at most once a
//! second; lost batches are counted.

use std::time::Duration;

use tokio::sync::mpsc;
use zeromq::{Socket as _, SocketEvent, SocketOptions, SocketRecv as _, SubSocket, ZmqMessage};

use super::Event;
use crate::engine::kv_events::{Batch, Order, Sequence, read_batch, read_sequence};

/// Between two attempts to connect.
const RETRY: Duration = Duration::from_secs(1);
/// Longest attempt.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// How often it is looked whether the publisher is still there.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What was heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KvNews {
    pub(super) batch: Batch,
    /// Batches that were sent and not heard.
    pub(super) lost: u64,
    /// Messages that could not be read.
    pub(super) broken: u32,
}

/// Listens at `endpoint` until nobody wants to know.
pub(super) async fn listen(endpoint: String, news: mpsc::Sender<Event>) {
    let mut sequence = Sequence::default();
    loop {
        let ended = session(&endpoint, &mut sequence, &news).await;
        if news.is_closed() || news.send(Event::Gone { endpoint: endpoint.clone(), why: ended }).await.is_err() {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// One connection, to its end.
async fn session(endpoint: &str, sequence: &mut Sequence, news: &mpsc::Sender<Event>) -> String {
    let mut options = SocketOptions::default();
    options.connect_timeout(CONNECT_LIMIT);
    let mut socket = SubSocket::with_options(options);
    let mut monitor = socket.monitor();
    // An empty subscription hears every topic: vLLM's is empty by default, `kv@host:port@model` by custom.
    if let Err(error) = socket.subscribe("").await {
        return error.to_string();
    }
    // As vLLM does with its side: what has a star is bound.
    let is_bound = endpoint.contains("//*:");
    let joined = if is_bound {
        socket.bind(&endpoint.replace("//*:", "//0.0.0.0:")).await.map(|_endpoint| ())
    } else {
        socket.connect(endpoint).await
    };
    if let Err(error) = joined {
        return error.to_string();
    }
    if news.send(Event::Joined { endpoint: endpoint.to_owned() }).await.is_err() {
        return String::new();
    }
    loop {
        tokio::select! {
            message = socket.recv() => match message {
                Ok(message) => {
                    let heard = read(&message, sequence);
                    if heard != KvNews::default() && news.send(Event::Heard(heard)).await.is_err() {
                        return String::new();
                    }
                }
                Err(error) => return error.to_string(),
            },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        // The crate would reconnect by itself, but up to half a minute late.
        while let Ok(event) = monitor.try_recv() {
            if matches!(event, SocketEvent::Disconnected(_)) && !is_bound {
                return "the publisher went away".to_owned();
            }
        }
    }
}

/// Topic, sequence number, payload.
fn read(message: &ZmqMessage, sequence: &mut Sequence) -> KvNews {
    let broken = KvNews { broken: 1, ..KvNews::default() };
    let [Some(number), Some(payload)] = [1, 2].map(|index| message.get(index)) else { return broken };
    let Some(number) = read_sequence(number) else { return broken };
    let lost = match sequence.hear(number) {
        Order::Next | Order::Anew => 0,
        Order::After(lost) => lost,
    };
    match read_batch(payload) {
        Ok(batch) => KvNews { batch, lost, broken: 0 },
        Err(_fault) => KvNews { lost, ..broken },
    }
}
