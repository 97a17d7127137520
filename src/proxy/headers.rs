//! Header hygiene: what must not pass from one connection to another, in either direction (RFC 9110, section 7.6.1), and
//! the framing checks that keep two parsers from disagreeing.

use crate::reject::Reject;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use pingora_core::protocols::http::ServerSession;
use pingora_error::Result;
use pingora_http::{RequestHeader, ResponseHeader};

/// Most headers that `Connection` may name.
const CONNECTION_TOKENS_MAX: usize = 32;

/// Bytes of request line and headers taken.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Refuses heads that are too large, and what parsers could read differently: a length beside chunked, or two lengths.
///
/// # Errors
/// [`Reject::HeadersTooLarge`] and [`Reject::Framing`].
pub(super) fn check_head(session: &ServerSession) -> Result<(), Reject> {
    let headers = &session.req_header().headers;
    let fields = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
    if fields + session.req_header().raw_path().len() > HEAD_BYTES_MAX {
        return Err(Reject::HeadersTooLarge);
    }
    if headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err(Reject::Framing);
    }
    if let Some(length) = headers.get(CONTENT_LENGTH)
        && !(1..=19).contains(&length.len()) | !length.as_bytes().iter().all(u8::is_ascii_digit)
    {
        return Err(Reject::Framing);
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
        let only_chunked = encodings.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if !only_chunked || encodings.next().is_some() {
            return Err(Reject::Framing);
        }
        // The server session drops a Content-Length beside chunked; the raw head still shows it.
        let raw = session.to_h1_raw();
        let names_length = raw
            .split(|byte| *byte == b'\n')
            .any(|line| line.get(..15).is_some_and(|start| start.eq_ignore_ascii_case(b"content-length:")));
        if names_length {
            return Err(Reject::Framing);
        }
    }
    Ok(())
}

/// The request head for a replica: the client's, less what belongs to the client's connection, framed by length.
///
/// # Errors
/// When a header cannot be set; never for valid authorities.
pub(super) fn upstream_request(
    client: &RequestHeader,
    authority: &str,
    body_len: Option<usize>,
) -> Result<RequestHeader> {
    let mut head = client.clone();
    head.set_version(http::Version::HTTP_11);
    strip_connection(&client.headers, |name| {
        head.remove_header(name);
    });
    for name in [EXPECT, CONTENT_LENGTH, TE] {
        head.remove_header(&name);
    }
    if let Some(len) = body_len {
        head.insert_header(CONTENT_LENGTH, len.to_string())?;
    }
    head.insert_header(HOST, authority)?;
    Ok(head)
}

/// The response head for a client: the replica's, less what belongs to the replica's connection.
///
/// # Errors
/// When a header cannot be set; never for valid replica ids.
pub(super) fn client_response(upstream: &ResponseHeader, replica: &str, needs_chunked: bool) -> Result<ResponseHeader> {
    let mut head = upstream.clone();
    strip_connection(&upstream.headers, |name| {
        head.remove_header(name);
    });
    head.set_version(http::Version::HTTP_11);
    if needs_chunked {
        head.insert_header(TRANSFER_ENCODING, "chunked")?;
    }
    head.insert_header("x-emberlane-replica", replica)?;
    Ok(head)
}

fn strip_connection(headers: &HeaderMap, mut remove: impl FnMut(&str)) {
    if headers.contains_key(CONNECTION) {
        let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        let tokens = values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty());
        for token in tokens.take(CONNECTION_TOKENS_MAX) {
            remove(token);
        }
    }
    for name in [CONNECTION.as_str(), TRANSFER_ENCODING.as_str(), TRAILER.as_str(), UPGRADE.as_str()] {
        remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "http2-settings"] {
        remove(name);
    }
}

/// The value of the first of `names` that is there and is text.
#[must_use]
pub(super) fn first<'h>(headers: &'h HeaderMap, names: &[&str]) -> Option<&'h str> {
    names.iter().find_map(|name| headers.get(*name)?.to_str().ok()).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_by_hop_headers_do_not_pass() {
        let mut client = RequestHeader::build("POST", b"/v1/chat/completions", None).unwrap();
        for (name, value) in [
            ("connection", "keep-alive, x-private"),
            ("x-private", "1"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("host", "public.example"),
            ("authorization", "Bearer k"),
        ] {
            client.append_header(name, value).unwrap();
        }
        let head = upstream_request(&client, "10.0.0.1:8000", Some(12)).unwrap();
        for gone in ["connection", "x-private", "transfer-encoding", "expect"] {
            assert!(!head.headers.contains_key(gone), "{gone}");
        }
        assert_eq!(head.headers["host"], "10.0.0.1:8000");
        assert_eq!(head.headers["content-length"], "12");
        assert_eq!(head.headers["authorization"], "Bearer k");
    }

    #[test]
    fn the_replica_is_named() {
        let mut upstream = ResponseHeader::build(200, None).unwrap();
        upstream.append_header("connection", "close").unwrap();
        upstream.append_header("content-type", "text/event-stream").unwrap();
        let head = client_response(&upstream, "r1", true).unwrap();
        assert!(!head.headers.contains_key("connection"));
        assert_eq!(head.headers["transfer-encoding"], "chunked");
        assert_eq!(head.headers["x-emberlane-replica"], "r1");
    }
}
