//! What a mock engine does wrong on purpose: for the whole engine (command line, `POST /mock/faults`, in process), or
//! for one request by its headers.

use std::time::Duration;

use pingora_http::RequestHeader;
use serde::{Deserialize, Serialize};

/// Faults of a whole engine. The default is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// Share of requests that meet the fault, 0 to 1. Spread evenly, not at random: 0.25 is each fourth.
    pub rate: f64,
    /// Requests that meet it before the engine is well again; `null` is for ever.
    pub times: Option<u64>,
    /// GET routes (`/health`, `/v1/models`, `/metrics`) meet it too.
    pub everywhere: bool,
    /// Answer with this status instead.
    pub status: Option<u16>,
    /// `retry-after` of that answer, seconds.
    pub retry_after_s: Option<u32>,
    /// Wait before anything of the answer is sent, milliseconds.
    pub head_delay_ms: u64,
    /// Never answer; end when the client leaves.
    pub hang: bool,
    /// Close the connection.
    pub close: Option<CloseAt>,
    /// With `close = mid`: chunks of a stream sent before.
    pub close_after_chunks: u32,
    /// Answer with bytes that are not HTTP, and close.
    pub garbage: bool,
}

/// When a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CloseAt {
    /// After the request's head, with its body unread.
    Head,
    /// After the request's body, before any answer.
    Body,
    /// In the answer's body: after some chunks of a stream, or half of a plain answer.
    Mid,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            rate: 1.0,
            times: None,
            everywhere: false,
            status: None,
            retry_after_s: None,
            head_delay_ms: 0,
            hang: false,
            close: None,
            close_after_chunks: 2,
            garbage: false,
        }
    }
}

/// A fault that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fault {text:?}: {reason}")]
pub struct FaultError {
    text: String,
    reason: String,
}

impl Faults {
    /// The first `times` requests are answered with `status`; `None` is all of them.
    #[must_use]
    pub fn status(status: u16, times: Option<u64>) -> Self {
        Self { status: Some(status), times, ..Self::default() }
    }

    /// Connections are closed at `at`.
    #[must_use]
    pub fn close(at: CloseAt) -> Self {
        Self { close: Some(at), ..Self::default() }
    }

    /// Reads `key=value` settings as the command line has them; keys are the fields' names.
    ///
    /// # Errors
    /// Unknown keys and values of the wrong kind.
    pub fn from_settings<S: AsRef<str>>(settings: &[S]) -> Result<Self, FaultError> {
        let mut object = serde_json::Map::new();
        for text in settings.iter().map(AsRef::as_ref) {
            let (key, value) = text.split_once('=').unwrap_or((text, "true"));
            let value =
                serde_json::from_str(value).unwrap_or_else(|_not_json| serde_json::Value::String(value.to_owned()));
            object.insert(key.to_owned(), value);
        }
        serde_json::from_value(object.into()).map_err(|error| FaultError {
            text: settings.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" "),
            reason: error.to_string(),
        })
    }

    const fn is_none(&self) -> bool {
        self.status.is_none() && self.head_delay_ms == 0 && !self.hang && self.close.is_none() && !self.garbage
    }
}

/// What happens to one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) status: Option<u16>,
    pub(super) retry_after_s: Option<u32>,
    pub(super) head_delay: Duration,
    pub(super) hang: bool,
    pub(super) close: Option<CloseAt>,
    pub(super) close_after_chunks: u32,
    pub(super) garbage: bool,
}

impl Plan {
    /// Reads the headers `x-mock-status`, `x-mock-hang-ms`, `x-mock-close`, `x-mock-garbage`; values that make no
    /// sense count for nothing.
    pub(super) fn from_headers(head: &RequestHeader) -> Option<Self> {
        let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        let plan = Self {
            status: text("x-mock-status").and_then(|value| value.parse().ok()),
            head_delay: Duration::from_millis(text("x-mock-hang-ms").and_then(|value| value.parse().ok()).unwrap_or(0)),
            close: text("x-mock-close").and_then(|value| match value {
                "head" => Some(CloseAt::Head),
                "body" => Some(CloseAt::Body),
                "mid" => Some(CloseAt::Mid),
                _ => None,
            }),
            close_after_chunks: 2,
            garbage: text("x-mock-garbage").is_some(),
            ..Self::default()
        };
        let idle = Self { close_after_chunks: 2, ..Self::default() };
        (plan != idle).then_some(plan)
    }
}

/// Deals an engine's faults out to its requests.
#[derive(Debug, Default)]
pub(super) struct Dealer {
    faults: Faults,
    /// Sum of rates not yet dealt.
    owed: f64,
    dealt: u64,
}

impl Dealer {
    pub(super) fn new(faults: Faults) -> Self {
        Self { faults, owed: 0.0, dealt: 0 }
    }

    pub(super) const fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The plan of the next request, if it meets the fault.
    pub(super) fn deal(&mut self, is_inference: bool) -> Option<Plan> {
        let faults = &self.faults;
        if faults.is_none() || !(is_inference || faults.everywhere) || faults.times.is_some_and(|n| self.dealt >= n) {
            return None;
        }
        self.owed += faults.rate;
        if self.owed < 1.0 {
            return None;
        }
        self.owed -= 1.0;
        self.dealt += 1;
        Some(Plan {
            status: faults.status,
            retry_after_s: faults.retry_after_s,
            head_delay: Duration::from_millis(faults.head_delay_ms),
            hang: faults.hang,
            close: faults.close,
            close_after_chunks: faults.close_after_chunks,
            garbage: faults.garbage,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_unknown_ones_refused() {
        let faults = Faults::from_settings(&["status=503", "rate=0.25", "close=mid", "hang"]).unwrap();
        assert_eq!((faults.status, faults.close, faults.hang), (Some(503), Some(CloseAt::Mid), true));
        for bad in ["staus=503", "close=later", "status=teapot"] {
            assert!(Faults::from_settings(&[bad]).is_err(), "{bad}");
        }
        assert_eq!(Faults::from_settings::<&str>(&[]).unwrap(), Faults::default());
    }

    #[test]
    fn the_rate_is_spread_evenly_and_times_ends_it() {
        let mut dealer = Dealer::new(Faults { rate: 0.25, times: Some(2), ..Faults::status(503, None) });
        let hits: Vec<usize> = (0..20).filter(|_| dealer.deal(true).is_some()).collect();
        assert_eq!(hits, [3, 7]);
        let mut dealer = Dealer::new(Faults::status(429, None));
        assert!(dealer.deal(false).is_none());
        assert_eq!(dealer.deal(true).unwrap().status, Some(429));
        assert!(Dealer::new(Faults::default()).deal(true).is_none());
    }

    #[test]
    fn headers_make_a_plan() {
        let mut head = RequestHeader::build("POST", b"/", None).unwrap();
        assert_eq!(Plan::from_headers(&head), None);
        head.insert_header("x-mock-close", "nonsense").unwrap();
        assert_eq!(Plan::from_headers(&head), None);
        head.insert_header("x-mock-status", "429").unwrap();
        assert_eq!(Plan::from_headers(&head).unwrap().status, Some(429));
    }
}
