//! Everything a caller can be told instead of an answer: one enum, one variant a cause. The variant alone decides the
//! HTTP status, the stable `code`, the metric label, the log field and whether waiting helps.

use std::time::Duration;

/// Why a body could not be read as a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyFault {
    /// The body is empty.
    #[error("the request body is empty; send a JSON object")]
    Empty,
    /// Not JSON, or cut short. `offset` is where the parser stopped, in bytes, when it knows.
    #[error("the request body is not valid JSON{}", .offset.map_or_else(String::new, |at| format!(" (near byte {at})")))]
    Syntax {
        /// Byte offset into the body, when known.
        offset: Option<u32>,
    },
    /// Bytes that are not UTF-8, or an escape that names half a character.
    #[error("the request body is not valid UTF-8 text")]
    Utf8,
    /// Nested deeper than the limit.
    #[error("the request body is nested deeper than {limit} levels")]
    Depth {
        /// Levels allowed.
        limit: u16,
    },
    /// More values than the limit (each array element and object member counts).
    #[error("the request body holds more than {limit} JSON values")]
    Elements {
        /// Values allowed.
        limit: u32,
    },
    /// The top of the document is not an object.
    #[error("the request body must be a JSON object")]
    NotAnObject,
    /// A key that decides routing stands twice: parsers differ on which copy wins.
    #[error("`{key}` appears more than once")]
    Duplicate {
        /// The key.
        key: &'static str,
    },
    /// A field has the wrong type.
    #[error("`{field}` must be {expected}")]
    Type {
        /// Path of the field, such as `messages[].content`.
        field: &'static str,
        /// What it must be, with its article: "a string".
        expected: &'static str,
    },
    /// A required field is missing.
    #[error("`{field}` is required")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A list that must hold something is empty.
    #[error("`{field}` must not be empty")]
    NoItems {
        /// The field.
        field: &'static str,
    },
    /// A number outside what the field can mean.
    #[error("`{field}` is out of range")]
    Range {
        /// The field.
        field: &'static str,
    },
}

/// A request that gets no answer from a replica, and why. Messages name what to do where something can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// The body cannot be read as a request.
    #[error("{0}")]
    Body(#[from] BodyFault),
    /// The message framing is ambiguous or broken (two lengths, length and chunked, bad chunk).
    #[error("the request's framing is invalid or ambiguous")]
    Framing,
    /// A header that the gateway reads has a value it cannot mean.
    #[error("the header `{name}` must be {expected}")]
    Header {
        /// Its name.
        name: &'static str,
        /// What it must be, with its article: "a number".
        expected: &'static str,
    },
    /// No replica is expected to be fast enough, and the request may be refused.
    #[error(
        "no replica is expected to give {what} within {wanted_ms} ms: the best would take up to {predicted_ms} ms, and \
         the request's priority is below 0; try again later, or with priority 0 to be served late"
    )]
    SloUnreachable {
        /// What is late: "the first token".
        what: &'static str,
        /// What was asked, milliseconds.
        wanted_ms: u32,
        /// What is predicted where it is least late, in nine of ten cases, milliseconds.
        predicted_ms: u32,
    },
    /// The body is larger than `limit_bytes`.
    #[error("the request body is larger than the limit of {limit_bytes} bytes")]
    BodyTooLarge {
        /// Configured limit, bytes.
        limit_bytes: u64,
    },
    /// The body did not arrive within the configured time.
    #[error("the request body did not arrive within {} s", .limit.as_secs_f32())]
    BodyTooSlow {
        /// Configured limit.
        limit: Duration,
    },
    /// Too many headers, or too large.
    #[error("the request's headers are too many or too large")]
    HeadersTooLarge,
    /// No route for this path.
    #[error("no such route; see /v1/models for what is served")]
    UnknownRoute,
    /// The path exists, the method does not.
    #[error("this route does not allow that method")]
    MethodNotAllowed,
    /// No pool serves the model the client named.
    #[error("the model does not exist or is not served here; GET /v1/models lists those that are")]
    UnknownModel,
    /// The pool has no replica that can take the request now.
    #[error("no replica can take the request now; try again later")]
    NoReplica,
    /// The bodies in memory are at their limit.
    #[error("the gateway holds as many request bodies as it may; try again later")]
    Overloaded,
    /// Too many requests wait for a replica of the pool already.
    #[error("too many requests wait for a replica of this model; try again later")]
    LineFull,
    /// It waited for a replica for as long as it may.
    #[error("no replica had time for the request within {} s", .limit.as_secs_f32())]
    WaitedTooLong {
        /// How long that was.
        limit: Duration,
    },
    /// The gateway is stopping.
    #[error("the gateway is shutting down; try again")]
    ShuttingDown,
    /// Every attempt to reach a replica failed to connect.
    #[error("no replica accepted a connection")]
    UpstreamConnect,
    /// The replica closed the connection before it answered.
    #[error("the replica closed the connection before it answered")]
    UpstreamClosed,
    /// The replica's answer is not HTTP, or broke its own framing.
    #[error("the replica sent an invalid answer")]
    UpstreamInvalid,
    /// The replica did not answer in time.
    #[error("the replica did not answer within {} s", .limit.as_secs_f32())]
    UpstreamTimeout {
        /// Configured limit.
        limit: Duration,
    },
    /// The client left before the answer. Logged, never sent.
    #[error("the client closed the request")]
    ClientClosed,
}

impl Reject {
    /// HTTP status. 499 is for the log alone.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Body(_) | Self::Framing | Self::Header { .. } => 400,
            Self::UnknownRoute | Self::UnknownModel => 404,
            Self::MethodNotAllowed => 405,
            Self::BodyTooSlow { .. } => 408,
            Self::BodyTooLarge { .. } => 413,
            Self::SloUnreachable { .. } | Self::LineFull | Self::WaitedTooLong { .. } => 429,
            Self::HeadersTooLarge => 431,
            Self::ClientClosed => 499,
            Self::UpstreamConnect | Self::UpstreamClosed | Self::UpstreamInvalid => 502,
            Self::NoReplica | Self::Overloaded | Self::ShuttingDown => 503,
            Self::UpstreamTimeout { .. } => 504,
        }
    }

    /// Stable machine-readable code; also the metric label and the log field.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Body(fault) => match fault {
                BodyFault::Empty => "body_empty",
                BodyFault::Syntax { .. } => "body_not_json",
                BodyFault::Utf8 => "body_not_utf8",
                BodyFault::Depth { .. } => "body_too_deep",
                BodyFault::Elements { .. } => "body_too_many_values",
                BodyFault::NotAnObject => "body_not_an_object",
                BodyFault::Duplicate { .. } => "duplicate_field",
                BodyFault::Type { .. } => "invalid_type",
                BodyFault::Missing { .. } => "missing_field",
                BodyFault::NoItems { .. } => "empty_field",
                BodyFault::Range { .. } => "out_of_range",
            },
            Self::Framing => "invalid_framing",
            Self::Header { .. } => "invalid_header",
            Self::SloUnreachable { .. } => "slo_unreachable",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::BodyTooSlow { .. } => "body_too_slow",
            Self::HeadersTooLarge => "headers_too_large",
            Self::UnknownRoute => "unknown_route",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::UnknownModel => "model_not_found",
            Self::NoReplica => "no_replica",
            Self::Overloaded => "overloaded",
            Self::LineFull => "line_full",
            Self::WaitedTooLong { .. } => "waited_too_long",
            Self::ShuttingDown => "shutting_down",
            Self::UpstreamConnect => "upstream_connect",
            Self::UpstreamClosed => "upstream_closed",
            Self::UpstreamInvalid => "upstream_invalid",
            Self::UpstreamTimeout { .. } => "upstream_timeout",
            Self::ClientClosed => "client_closed",
        }
    }

    /// The field the error is about, for OpenAI's `param`.
    #[must_use]
    pub const fn param(self) -> Option<&'static str> {
        match self {
            Self::Body(
                BodyFault::Duplicate { key: field }
                | BodyFault::Type { field, .. }
                | BodyFault::Missing { field }
                | BodyFault::NoItems { field }
                | BodyFault::Range { field },
            ) => Some(field),
            Self::Header { name, .. } => Some(name),
            Self::UnknownModel => Some("model"),
            Self::Body(_)
            | Self::Framing
            | Self::SloUnreachable { .. }
            | Self::BodyTooLarge { .. }
            | Self::BodyTooSlow { .. }
            | Self::HeadersTooLarge
            | Self::UnknownRoute
            | Self::MethodNotAllowed
            | Self::NoReplica
            | Self::Overloaded
            | Self::LineFull
            | Self::WaitedTooLong { .. }
            | Self::ShuttingDown
            | Self::UpstreamConnect
            | Self::UpstreamClosed
            | Self::UpstreamInvalid
            | Self::UpstreamTimeout { .. }
            | Self::ClientClosed => None,
        }
    }

    /// How long to wait before trying again, where waiting helps.
    #[must_use]
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::NoReplica | Self::Overloaded | Self::ShuttingDown | Self::UpstreamConnect => {
                Some(Duration::from_secs(1))
            }
            // Who waits in the line has been there for seconds at least.
            Self::LineFull | Self::WaitedTooLong { .. } => Some(Duration::from_secs(10)),
            Self::SloUnreachable { wanted_ms, predicted_ms, .. } => {
                // What is ahead has to be done first.
                let late_ms = predicted_ms.saturating_sub(wanted_ms);
                Some(Duration::from_millis(if late_ms < 60_000 { late_ms } else { 60_000 } as u64))
            }
            Self::Body(_)
            | Self::Framing
            | Self::Header { .. }
            | Self::BodyTooLarge { .. }
            | Self::BodyTooSlow { .. }
            | Self::HeadersTooLarge
            | Self::UnknownRoute
            | Self::MethodNotAllowed
            | Self::UnknownModel
            | Self::UpstreamClosed
            | Self::UpstreamInvalid
            | Self::UpstreamTimeout { .. }
            | Self::ClientClosed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_cannot_be_in_time_is_told_what_is_expected_and_when_to_come_again() {
        let late =
            |wanted_ms, predicted_ms| Reject::SloUnreachable { what: "the first token", wanted_ms, predicted_ms };
        assert_eq!((late(100, 2400).status(), late(100, 2400).code()), (429, "slo_unreachable"));
        assert_eq!(late(100, 2400).retry_after(), Some(Duration::from_millis(2300)));
        assert_eq!(late(100, u32::MAX).retry_after(), Some(Duration::from_secs(60)));
        let told = late(100, 2400).to_string();
        assert!(told.contains("first token within 100 ms") && told.contains("2400 ms"), "{told}");
    }
}
