//! Answers the gateway writes itself: errors in the dialect of the API that was called, the list of models, and the
//! event that ends a stream which broke midway.

use crate::fleet::Fleet;
use crate::reject::Reject;
use bytes::Bytes;
use pingora_core::protocols::http::ServerSession;
use pingora_http::ResponseHeader;
use serde_json::json;
use std::time::Duration;

/// Shape of an error body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `{"error": {"message", "type", "param", "code"}}`
    OpenAi,
    /// `{"type": "error", "error": {"type", "message", "code"}}`
    Anthropic,
}

impl Dialect {
    /// The dialect spoken on `path`; unknown paths get OpenAI's, or Anthropic's when the client says who it is.
    #[must_use]
    pub fn of(path: &str, has_anthropic_version: bool) -> Self {
        if path.starts_with("/v1/messages") || has_anthropic_version { Self::Anthropic } else { Self::OpenAi }
    }

    /// The error type that the dialect's SDKs know for a status.
    const fn error_type(self, status: u16) -> &'static str {
        match (self, status) {
            (Self::OpenAi, 401) | (Self::Anthropic, 401) => "authentication_error",
            (Self::OpenAi, 403) | (Self::Anthropic, 403) => "permission_error",
            (Self::Anthropic, 404) => "not_found_error",
            (Self::Anthropic, 413) => "request_too_large",
            (Self::Anthropic, 429) => "rate_limit_error",
            (Self::Anthropic, 503) => "overloaded_error",
            (Self::Anthropic, 504) => "timeout_error",
            (Self::OpenAi, 429) => "rate_limit_exceeded",
            (Self::OpenAi, 500..) => "server_error",
            (Self::Anthropic, 500..) => "api_error",
            (Self::OpenAi | Self::Anthropic, _) => "invalid_request_error",
        }
    }

    /// The body that tells a client of `reject`.
    #[must_use]
    pub fn error_body(self, reject: Reject) -> Vec<u8> {
        let kind = self.error_type(reject.status());
        let (message, code) = (reject.to_string(), reject.code());
        let body = match self {
            Self::OpenAi => json!({"error": {"message": message, "type": kind, "param": reject.param(), "code": code}}),
            Self::Anthropic => json!({"type": "error", "error": {"type": kind, "message": message, "code": code}}),
        };
        body.to_string().into_bytes()
    }

    /// The server-sent event that ends a stream which broke midway.
    #[must_use]
    pub fn error_event(self, reject: Reject) -> Bytes {
        let body = String::from_utf8_lossy(&self.error_body(reject)).into_owned();
        Bytes::from(match self {
            Self::OpenAi => format!("data: {body}\n\n"),
            Self::Anthropic => format!("event: error\ndata: {body}\n\n"),
        })
    }
}

/// Writes `reject` to the client, who may try again after `retry_after`. False when the connection cannot be used again.
pub(super) async fn reject(
    session: &mut ServerSession,
    dialect: Dialect,
    reject: Reject,
    retry_after: Option<Duration>,
) -> bool {
    let body = dialect.error_body(reject);
    let mut headers = vec![("content-type", "application/json".to_owned())];
    if reject == Reject::MethodNotAllowed {
        headers.push(("allow", "POST".to_owned()));
    }
    if let Some(wait) = retry_after {
        headers.push(("retry-after", wait.as_secs_f64().ceil().max(1.0).to_string()));
    }
    whole(session, reject.status(), &headers, Bytes::from(body)).await
}

/// Writes a whole answer. False when it could not be written.
pub(super) async fn whole(
    session: &mut ServerSession,
    status: u16,
    headers: &[(&'static str, String)],
    body: Bytes,
) -> bool {
    let Ok(mut head) = ResponseHeader::build(status, Some(headers.len() + 2)) else { return false };
    for (name, value) in headers {
        if head.insert_header(*name, value).is_err() {
            return false;
        }
    }
    let is_head = session.req_header().method == http::Method::HEAD;
    if head.insert_header("content-length", body.len().to_string()).is_err() {
        return false;
    }
    if session.write_response_header(Box::new(head)).await.is_err() {
        return false;
    }
    let body = if is_head { Bytes::new() } else { body };
    session.write_response_body(body, true).await.is_ok()
}

/// `GET /v1/models`: every public model name, in OpenAI's shape with the fields Anthropic's adds.
#[must_use]
pub(super) fn models(fleet: &Fleet) -> Bytes {
    let data: Vec<_> = fleet.pools.iter().filter(|pool| !pool.is_wildcard()).map(|pool| card(&pool.model)).collect();
    let id = |card: Option<&serde_json::Value>| card.map(|card| card["id"].clone());
    let (first, last) = (id(data.first()), id(data.last()));
    let body = json!({"object": "list", "data": data, "has_more": false, "first_id": first, "last_id": last});
    Bytes::from(body.to_string())
}

/// `GET /v1/models/NAME`, when that model is served.
#[must_use]
pub(super) fn model(fleet: &Fleet, name: &str) -> Option<Bytes> {
    let pool = fleet.pools.iter().find(|pool| !pool.is_wildcard() && pool.model == name)?;
    Some(Bytes::from(card(&pool.model).to_string()))
}

fn card(model: &str) -> serde_json::Value {
    json!({
        "id": model,
        "object": "model",
        "type": "model",
        "created": 0,
        "created_at": "1970-01-01T00:00:00Z",
        "display_name": model,
        "owned_by": "emberlane",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reject::BodyFault;

    #[test]
    fn errors_speak_the_dialect_of_the_route() {
        let fault = Reject::Body(BodyFault::Missing { field: "messages" });
        let openai: serde_json::Value =
            serde_json::from_slice(&Dialect::of("/v1/chat/completions", false).error_body(fault)).unwrap();
        assert_eq!(openai["error"]["type"], "invalid_request_error");
        assert_eq!(openai["error"]["param"], "messages");
        assert_eq!(openai["error"]["code"], "missing_field");
        let anthropic: serde_json::Value =
            serde_json::from_slice(&Dialect::of("/v1/messages", false).error_body(Reject::UnknownModel)).unwrap();
        assert_eq!(anthropic["type"], "error");
        assert_eq!(anthropic["error"]["type"], "not_found_error");
        let event = Dialect::Anthropic.error_event(Reject::UpstreamClosed);
        assert!(event.starts_with(b"event: error\ndata: {") && event.ends_with(b"}\n\n"));
    }
}
