//! Which request goes where, by method and path, and which headers say what (the aliases are those of llm-d, the
//! Gateway API inference extension, and common clients).

use crate::parse::Api;
use crate::reject::Reject;
use http::Method;

/// Headers that name a conversation, first match wins.
pub(super) const SESSION_HEADERS: [&str; 5] =
    ["x-emberlane-session", "x-session-id", "x-claude-code-session-id", "x-session-affinity", "session-id"];

/// What is done with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Read, decided, forwarded.
    Inference(Api),
    /// Answered from the pools.
    Models,
    /// Answered from the pools, for one model.
    Model,
    /// Answered: the gateway is alive.
    Health,
    /// Forwarded by load alone.
    Passthrough,
}

/// The route of a request.
///
/// # Errors
/// [`Reject::UnknownRoute`] and [`Reject::MethodNotAllowed`].
pub(super) fn route(method: &Method, path: &str, passthrough: bool) -> Result<Route, Reject> {
    if let Some(api) = Api::from_path(path) {
        return if method == Method::POST { Ok(Route::Inference(api)) } else { Err(Reject::MethodNotAllowed) };
    }
    let is_read = method == Method::GET || method == Method::HEAD;
    match path {
        "/v1/models" if is_read => Ok(Route::Models),
        "/v1/models" => Err(Reject::MethodNotAllowed),
        "/health" | "/healthz" if is_read => Ok(Route::Health),
        _ if is_read && path.strip_prefix("/v1/models/").is_some_and(|name| !name.is_empty()) => Ok(Route::Model),
        _ if passthrough && method != Method::CONNECT => Ok(Route::Passthrough),
        _ => Err(Reject::UnknownRoute),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes() {
        let get = |path| route(&Method::GET, path, false);
        assert_eq!(get("/v1/models"), Ok(Route::Models));
        assert_eq!(get("/v1/models/llama"), Ok(Route::Model));
        assert_eq!(get("/v1/chat/completions"), Err(Reject::MethodNotAllowed));
        assert_eq!(get("/nope"), Err(Reject::UnknownRoute));
        assert_eq!(route(&Method::GET, "/nope", true), Ok(Route::Passthrough));
        assert_eq!(route(&Method::CONNECT, "host:443", true), Err(Reject::UnknownRoute));
        let post = route(&Method::POST, "/v1/messages", false);
        assert_eq!(post, Ok(Route::Inference(Api::Messages)));
    }
}
