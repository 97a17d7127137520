//! An HTTP/2 client without TLS (prior knowledge), for what HTTP/1.1 cannot show.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Status code.
    pub(crate) status: u16,
    /// Body.
    pub(crate) body: Vec<u8>,
}

/// Runs `work` on a runtime of its own, at most `limit` long.
pub(crate) fn run<T>(limit: Duration, work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(limit, work).await.unwrap_or_else(|_| panic!("took over {limit:?}")) })
}

/// Connects.
pub(crate) async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    client
}

/// Sends one POST and reads the answer.
pub(crate) async fn post(client: &SendRequest<Bytes>, path: &str, body: Bytes) -> Result<Answer, h2::Error> {
    let response = send(client, path, body).await?;
    let status = response.status().as_u16();
    let mut incoming = response.into_body();
    let mut body = Vec::new();
    while let Some(piece) = incoming.data().await {
        let piece = piece?;
        body.extend_from_slice(&piece);
        let _ = incoming.flow_control().release_capacity(piece.len());
    }
    Ok(Answer { status, body })
}

/// Sends one POST; the answer's body, to be read piece by piece. Dropping it resets the stream.
pub(crate) async fn open(client: &SendRequest<Bytes>, path: &str, body: Bytes) -> Result<RecvStream, h2::Error> {
    Ok(send(client, path, body).await?.into_body())
}

/// Sends one POST, the body in pieces as flow control allows; the answer's head.
async fn send(client: &SendRequest<Bytes>, path: &str, body: Bytes) -> Result<http::Response<RecvStream>, h2::Error> {
    let request = http::Request::post(format!("http://gateway.test{path}"))
        .header("content-type", "application/json")
        .body(())
        .unwrap();
    let (response, mut stream) = client.clone().ready().await?.send_request(request, false)?;
    let mut rest = body;
    while !rest.is_empty() {
        stream.reserve_capacity(rest.len());
        let room = match std::future::poll_fn(|context| stream.poll_capacity(context)).await {
            Some(room) => room?,
            None => break,
        };
        let piece = rest.split_to(room.min(rest.len()));
        stream.send_data(piece, rest.is_empty())?;
    }
    response.await
}
